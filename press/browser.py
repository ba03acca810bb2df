"""Find a browser, or say what to install: the book is never left unseen in silence."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BookError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Milliseconds for what takes one or two seconds where nothing else runs: what is waited
# for comes at once when it is there, and is late only on a machine that is very busy.
PATIENCE = 600_000

NAMES = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
]
MAC = [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
]


def find() -> Path:
    """Return a Chromium: `$CHROMIUM`, an installed one, Playwright's, or Debian's.

    Debian's is installed only in CI or a container, by root. Raises BookError.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        if not Path(named).exists():
            raise BookError(f"CHROMIUM={named}: there is no such file")
        return Path(named)
    return _installed() or _playwrights() or _debians() or _give_up()


@contextmanager
def running(*arguments: str) -> Iterator["Browser"]:
    """Run the block with a browser whose pages wait for PATIENCE, not for 30 s."""
    from playwright.sync_api import sync_playwright

    command, options = str(find()), ["--no-sandbox", *arguments]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=command, args=options, timeout=PATIENCE
        )
        chromium.on("context", lambda made: made.set_default_timeout(PATIENCE))
        try:
            yield chromium
        finally:
            chromium.close()


def _installed() -> Path | None:
    found = [Path(p) for name in NAMES if (p := shutil.which(name))]
    found += [Path(p) for p in MAC if platform.system() == "Darwin"]
    return next((p for p in found if p.exists()), None)


def _playwrights() -> Path | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    return path if path.exists() else None


def _debians() -> Path | None:
    contained = os.environ.get("CI") or Path("/.dockerenv").exists()
    if not (contained and os.geteuid() == 0 and shutil.which("apt-get")):
        return None
    print("installing Debian's chromium", flush=True)
    for command in (["update"], ["install", "-y", "chromium"]):
        subprocess.run(["apt-get", "-qq", *command], check=True)
    return _installed()


def _give_up() -> Path:
    raise BookError(
        "no browser to test the book in: install Chromium or Chrome, or run "
        "`.venv/bin/playwright install chromium`, or set CHROMIUM to one"
    )
