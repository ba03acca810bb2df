"""Where the browser comes from, and what is said when there is none."""

import pytest

from press import browser
from press.errors import BookError


def test_a_named_browser_comes_first(monkeypatch, tmp_path):
    """Catches a `$CHROMIUM` that is passed over."""
    mine = tmp_path / "mine"
    mine.touch()
    monkeypatch.setenv("CHROMIUM", str(mine))
    assert browser.find() == mine


def test_a_named_browser_that_is_not_there_is_an_error(monkeypatch):
    """Catches a silent fall-back to another browser."""
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    with pytest.raises(BookError, match="/nowhere/chromium"):
        browser.find()


def test_without_a_browser_it_says_what_to_install(monkeypatch):
    """Catches a skip: a book that nobody looked at would pass."""
    monkeypatch.delenv("CHROMIUM", raising=False)
    for way in ("_installed", "_playwrights", "_debians"):
        monkeypatch.setattr(browser, way, lambda: None)
    with pytest.raises(BookError, match="install Chromium or Chrome"):
        browser.find()
