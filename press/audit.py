"""`make audit`: Lighthouse CI on every page. The one command that needs Node."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from . import BUILD, ROOT, browser, site
from .errors import BookError

LHCI = "@lhci/cli@0.15.1"
FOLDER = BUILD / "audit"
LEAST = {"performance": 95, "accessibility": 100, "best-practices": 100, "seo": 100}
PATIENCE = 600_000  # milliseconds


def pages(html: Path = site.HTML) -> list[str]:
    """Every page of the site; the bare address only leads to the landing page."""
    found = (p.relative_to(html) for p in html.rglob("*.html"))
    return sorted(
        p.as_posix()
        for p in found
        if "_static" not in p.parts and p != Path("index.html")
    )


def config(names: list[str]) -> dict:
    """What Lighthouse CI is asked: the best of three runs of each page.

    What else runs on this machine, and a browser that has just started, only lower it.
    """
    return {
        "collect": {
            "staticDistDir": str(site.HTML),
            "url": [f"http://localhost/{name}" for name in names],
            "numberOfRuns": 3,
            "settings": {
                "preset": "desktop",
                "chromeFlags": "--headless=new --no-sandbox "
                "--disable-background-networking",
                "maxWaitForLoad": PATIENCE,
                "maxWaitForFcp": PATIENCE,
            },
        },
        "assert": {
            "assertions": {
                f"categories:{name}": ["error", {"minScore": least / 100}]
                for name, least in LEAST.items()
            }
        },
        "upload": {"target": "filesystem", "outputDir": str(FOLDER / "reports")},
    }


def install() -> None:
    """Fetch Lighthouse CI from npm into an ignored folder. Raises BookError."""
    missing = [tool for tool in ("node", "npm") if not shutil.which(tool)]
    if missing:
        raise BookError(f"`make audit` needs Node 20 or newer: no {missing[0]} here")
    if (FOLDER / "node_modules" / "@lhci").exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"installing {LHCI} into {FOLDER.relative_to(ROOT)}", flush=True)
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", LHCI]
    if subprocess.run(command, cwd=FOLDER).returncode:
        raise BookError(f"npm could not install {LHCI}")


def main(names: list[str]) -> None:
    """Audit these pages, or all; raise BookError if one falls short."""
    if not (site.HTML / "index.html").exists():
        raise BookError("there is no book yet: run `make book` first")
    install()
    asked = FOLDER / "lighthouserc.json"
    asked.write_text(json.dumps({"ci": config(names or pages())}))
    command = ["npx", "lhci", "autorun", f"--config={asked}"]
    env = {**os.environ, "CHROME_PATH": str(browser.find())}
    if subprocess.run(command, cwd=FOLDER, env=env).returncode:
        least = ", ".join(f"{name} {score}" for name, score in LEAST.items())
        raise BookError(f"the pages named above are below {least}")
