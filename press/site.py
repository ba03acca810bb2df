"""Build the site with Sphinx, and serve it on this machine."""

import hashlib
import http.server
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from . import BUILD, ROOT
from .errors import BookError
from .stage import SOURCE

HTML = BUILD / "html"
EXTENSION = ROOT / "press" / "ext"
UNUSED = ["sphinx_thebe", "sphinx_comments", "sphinx_jupyterbook_latex"]


def _digest(folder: Path) -> str:
    h = hashlib.sha256()
    for path in sorted(
        p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"
    ):
        h.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return h.hexdigest()


def build(strict: bool = True, source: Path = SOURCE, html: Path = HTML) -> None:
    """Turn `source` into `html`; with `strict` a warning is an error.

    Raises BookError with Sphinx's own words. Does nothing if nothing has changed.
    """
    _configure(source)
    extension = _digest(EXTENSION)
    digest = _digest(source) + extension + _commit()
    stamp = html.with_name(f"{html.name}.txt")
    if stamp.exists() and stamp.read_text() == digest and html.exists():
        return
    stamp.unlink(missing_ok=True)
    # Sphinx does not see that our extension has changed, nor that unchanged pages have
    # another sidebar: then it reads all anew.
    frame = extension + (source / "_toc.yml").read_text()
    frame = hashlib.sha256(frame.encode()).hexdigest()
    doctrees = html.with_name(f"{html.name}-doctrees-{frame[:8]}")
    if not doctrees.exists():
        for old in (html, *html.parent.glob(f"{html.name}-doctrees-*")):
            shutil.rmtree(old, ignore_errors=True)
    flags = ["-W", "--keep-going"] if strict else []
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", doctrees]
    done = subprocess.run(
        [*command, *flags, source, html],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXTENSION}"},
    )
    if done.returncode:
        raise BookError(f"Sphinx does not accept the book:\n{done.stderr}")
    # Sphinx copies these only when it has written a page.
    for folder in ("_static", "panels"):
        shutil.copytree(source / folder, html / folder, dirs_exist_ok=True)
    stamp.write_text(digest)


def _commit() -> str:
    """The commit that the pages name in their last line; nothing where Git is not."""
    command = ["git", "-C", ROOT, "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def _configure(source: Path) -> None:
    """Let Jupyter Book write Sphinx's `conf.py` from `_config.yml` and `_toc.yml`."""
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [jupyter_book, "config", "sphinx", source]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BookError(
            f"Jupyter Book refuses _config.yml:\n{done.stdout}{done.stderr}"
        )
    with (source / "conf.py").open("a") as conf:
        conf.write(f"\nextensions = [e for e in extensions if e not in {UNUSED}]\n")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve files without a line for each request."""

    def log_message(self, *_) -> None:
        pass


def server(port: int = 0, html: Path = HTML) -> http.server.ThreadingHTTPServer:
    """A server for the site on the loopback interface only; port 0 picks a free one."""
    handler = partial(Handler, directory=str(html))
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)


def serve(port: int = 8000) -> None:
    """Serve the site until Ctrl-C."""
    if not (HTML / "index.html").exists():
        raise BookError("there is no book yet: run `make book` first")
    try:
        served = server(port)
    except OSError:
        served = server(0)
    print(f"The book is at http://127.0.0.1:{served.server_port}/ (Ctrl-C stops)")
    try:
        served.serve_forever()
    except KeyboardInterrupt:
        print()
