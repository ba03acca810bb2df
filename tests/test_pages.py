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
        nodes.Text("-th. ✗ "),
        formula("a"),
    ]
    before = document.astext()
    pages.keep_together(None, document)
    assert document.astext() == before
    together = [n.astext() for n in document.findall(nodes.inline)]
    assert together == ["x,", "y),", "(i-th.", "✗ a"]


def test_a_number_stays_with_what_it_counts(pages):
    """Catches a line that begins with a dot or %, and code or formulas changed."""
    document = new_document("page")
    said = ["12b · A U-Net · two", "a4 · Metrics", "95 % of 28 × 28", "a × b"]
    document += [nodes.paragraph(t, t) for t in said]
    document += [nodes.literal_block(said[2], said[2])]
    document[0] += [nodes.literal("", said[2]), nodes.math("", said[2])]
    pages.keep_numbers(None, document)
    assert document[0][0] == "12b\u00a0·\u00a0A U-Net · two"
    assert document[1][0] == "a4\u00a0·\u00a0Metrics"
    assert document[2][0] == "95\u00a0% of 28\u00a0×\u00a028"
    assert document[3][0] == said[3]
    assert all(n[0] == said[2] for n in (document[0][1], document[0][2], document[4]))


def test_a_docstring_is_plain_text_with_code(pages):
    """Catches an option with a dash for --, curly quotes, (B, *D) as emphasis."""
    lines = [
        'Points (B, *D) by "rk4" or --out-dir; `--x "y"` is *not* _y | 6" --- "a b".'
    ]
    pages.plain_docstring(None, None, None, None, None, lines)
    assert lines == [
        'Points (B, \\*D) by ``"rk4"`` or ``--out-dir``; ``--x "y"`` is *not* _y \\| '
        '6" --- "a b".'
    ]
