"""Find a browser, or say what to install: the book is never left unseen in silence."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from .run import BookError

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
