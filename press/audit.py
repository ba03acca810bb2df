"""`make audit`: Lighthouse on every page, over loopback. The one command with Node."""

import gzip
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

from . import BUILD, ROOT, browser, site
from .errors import BookError

LIGHTHOUSE = "lighthouse@12.8.2"  # the last that runs with Node 20
FOLDER = BUILD / "audit"
LEAST = {"performance": 95, "accessibility": 100, "best-practices": 100, "seo": 100}
TEXT = {".html", ".css", ".js", ".json", ".svg"}


class Handler(site.Handler):
    """Serve text compressed, as GitHub Pages does: its weight is part of the speed."""

    def send_head(self):
        path = Path(self.translate_path(self.path))
        accepted = "gzip" in self.headers.get("Accept-Encoding", "")
        if path.suffix not in TEXT or not path.is_file() or not accepted:
            return super().send_head()
        data = gzip.compress(path.read_bytes(), 6, mtime=0)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return BytesIO(data)


def pages(html: Path = site.HTML) -> list[str]:
    """Every page of the site; the bare address only leads to the landing page."""
    found = (p.relative_to(html) for p in html.rglob("*.html"))
    return sorted(
        p.as_posix()
        for p in found
        if "_static" not in p.parts and p != Path("index.html")
    )


def shortfalls(scores: dict[str, int]) -> list[str]:
    """The categories in which a page is below what the book asks of itself."""
    return [name for name, least in LEAST.items() if scores[name] < least]


def install() -> None:
    """Fetch Lighthouse from npm into an ignored folder. Raises BookError."""
    missing = [tool for tool in ("node", "npm") if not shutil.which(tool)]
    if missing:
        raise BookError(f"`make audit` needs Node 20 or newer: no {missing[0]} here")
    if (FOLDER / "node_modules" / "lighthouse").exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"installing {LIGHTHOUSE} into {FOLDER.relative_to(ROOT)}", flush=True)
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", LIGHTHOUSE]
    if subprocess.run(command, cwd=FOLDER).returncode:
        raise BookError(f"npm could not install {LIGHTHOUSE}")


def audit(names: list[str]) -> Iterator[dict]:
    """Yield a page's address, scores and faults, page by page. Raises BookError."""
    handler = partial(Handler, directory=str(site.HTML))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    script = FOLDER / "audit.mjs"  # beside node_modules, where Node looks for imports
    script.write_text((ROOT / "press" / "audit.mjs").read_text())
    command = ["node", script, *(address + name for name in names)]
    env = {**os.environ, "CHROME_PATH": str(browser.find())}
    done = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as node:
        for line in node.stdout:
            found = json.loads(line)
            done += 1
            yield {**found, "page": found["url"].removeprefix(address)}
    server.shutdown()
    server.server_close()
    if node.returncode or done < len(names):
        raise BookError(f"Lighthouse stopped after {done} of {len(names)} pages")


def main(names: list[str]) -> None:
    """Print a table of scores; raise BookError if a page falls short."""
    if not (site.HTML / "index.html").exists():
        raise BookError("there is no book yet: run `make book` first")
    install()
    short = []
    print(f"{'page':40}" + "".join(f"{name:>16}" for name in LEAST))
    for found in audit(names or pages()):
        row = "".join(f"{found['scores'][name]:16}" for name in LEAST)
        print(f"{found['page']:40}{row}", flush=True)
        if shortfalls(found["scores"]):
            short.append(found["page"])
            print("".join(f"    {fault}\n" for fault in found["faults"]), end="")
    if short:
        asked = ", ".join(f"{name} {least}" for name, least in LEAST.items())
        raise BookError(f"{len(short)} pages are below {asked}: {', '.join(short)}")
