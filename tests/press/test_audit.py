"""What `make audit` asks for, and what it does without Node."""

import gzip
import threading
import urllib.request
from functools import partial
from http.server import ThreadingHTTPServer

import pytest

from press import audit
from press.errors import BookError

GOOD = {"performance": 95, "accessibility": 100, "best-practices": 100, "seo": 100}


def test_a_page_below_the_line_is_named():
    """Catches a comparison the wrong way round, and a category nobody looks at."""
    assert audit.shortfalls(GOOD) == []
    for name, score in GOOD.items():
        assert audit.shortfalls({**GOOD, name: score - 1}) == [name]


def test_one_bad_page_fails_the_audit(monkeypatch, tmp_path, capsys):
    """Catches an audit that prints a table and passes whatever is in it."""
    (tmp_path / "index.html").touch()
    monkeypatch.setattr(audit.site, "HTML", tmp_path)
    monkeypatch.setattr(audit, "install", lambda: None)
    rows = [
        {"page": "a.html", "scores": GOOD, "faults": []},
        {"page": "b.html", "scores": {**GOOD, "seo": 91}, "faults": ["seo: no title"]},
    ]
    monkeypatch.setattr(audit, "audit", lambda names: iter(rows))
    with pytest.raises(BookError, match=r"1 pages are below.*: b\.html"):
        audit.main(["a.html", "b.html"])
    assert "seo: no title" in capsys.readouterr().out


def test_without_node_it_says_what_is_missing(monkeypatch):
    """Catches a traceback instead of a sentence."""
    monkeypatch.setattr(audit.shutil, "which", lambda tool: None)
    with pytest.raises(BookError, match="needs Node 20"):
        audit.install()


def test_every_page_is_audited_but_the_front_door(tmp_path):
    """Catches a folder that is passed over, and fragments taken for pages."""
    for name in ("index.html", "nbs/a.html", "api/b.html", "_static/c.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert audit.pages(tmp_path) == ["api/b.html", "nbs/a.html"]


def test_text_is_served_compressed(tmp_path):
    """Catches a body that is not what its header says."""
    (tmp_path / "a.html").write_text("x" * 10_000)
    handler = partial(audit.Handler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/a.html"
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request) as reply:
        body = reply.read()
    assert len(body) < 200 and gzip.decompress(body) == b"x" * 10_000
    with urllib.request.urlopen(url) as reply:
        assert reply.read() == b"x" * 10_000
    server.shutdown()
    server.server_close()
