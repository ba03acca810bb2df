"""What `make audit` asks for, and what it does without Node."""

import json
import types

import pytest

from press import audit
from press.errors import BookError


def test_what_is_asked_of_a_page():
    """Catches a page or a category that nobody looks at, a share taken for percent."""
    asked = audit.config(["nbs/a.html", "api/b.html"])
    assert asked["collect"]["url"] == [
        "http://localhost/nbs/a.html",
        "http://localhost/api/b.html",
    ]
    assert asked["assert"]["assertions"] == {
        "categories:performance": ["error", {"minScore": 0.95}],
        "categories:accessibility": ["error", {"minScore": 1}],
        "categories:best-practices": ["error", {"minScore": 1}],
        "categories:seo": ["error", {"minScore": 1}],
    }


@pytest.mark.parametrize("code", [0, 1])
def test_one_bad_page_fails_the_audit(monkeypatch, tmp_path, code):
    """Catches an audit that prints what it found and passes whatever that is."""
    (tmp_path / "index.html").touch()
    monkeypatch.setattr(audit.site, "HTML", tmp_path)
    monkeypatch.setattr(audit, "FOLDER", tmp_path)
    monkeypatch.setattr(audit, "install", lambda: None)
    monkeypatch.setattr(audit.browser, "find", lambda: "a browser")
    seen = []

    def run(command, cwd, env):
        seen.append((command, cwd, env["CHROME_PATH"]))
        return types.SimpleNamespace(returncode=code)

    monkeypatch.setattr(audit.subprocess, "run", run)
    if code:
        with pytest.raises(BookError, match=r"below performance 95, acc.* seo 100"):
            audit.main(["a.html"])
    else:
        audit.main(["a.html"])
    ((command, cwd, chrome),) = seen
    assert command[:3] == ["npx", "lhci", "autorun"] and cwd == tmp_path
    assert chrome == "a browser"
    kept = json.loads((tmp_path / "lighthouserc.json").read_text())
    assert kept["ci"]["collect"]["url"] == ["http://localhost/a.html"]


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
