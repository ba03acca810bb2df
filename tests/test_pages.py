"""What the book's own Sphinx extension does to a page's tree."""

import pytest
from docutils import nodes
from docutils.utils import new_document

from book import notebooks


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(notebooks.NBS.parent / "book" / "ext")
    return pytest.importorskip("flowbook_pages")


def test_punctuation_stays_with_its_formula_and_in_its_place(pages):
    """Catches a comma set at another formula, because two pieces of text are equal."""
    document, formula = new_document("page"), lambda tex: nodes.math("", tex)
    words = nodes.Text(", "), nodes.strong("", "b"), nodes.Text(", ")
    document += nodes.paragraph("", "", *words, formula("x"), nodes.Text(", "))
    document[0] += [
        formula("y"),
        nodes.Text("), so ("),
        formula("i"),
        nodes.Text("-th"),
    ]
    before = document.astext()
    pages.keep_together(None, document)
    assert document.astext() == before
    together = [n.astext() for n in document.findall(nodes.inline)]
    assert together == ["x,", "y),", "(i-th"]
