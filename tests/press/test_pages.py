"""What the book's own Sphinx extension does to a page's tree."""

import pytest
from docutils import nodes
from docutils.utils import new_document

from press import notebooks


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(notebooks.NBS.parent / "press" / "ext")
    return pytest.importorskip("press_pages")


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
    pages.KeepNumbers(document).apply()  # as before it in a build
    before = document.astext()
    pages.keep_together(None, document)
    assert document.astext() == before
    together = [n.astext() for n in document.findall(nodes.inline)]
    assert together == ["x,", "y),", "(i-th.", "✗\u00a0a"]


def test_a_number_stays_with_what_it_counts(pages):
    """Catches a line that begins with a dot or %, and code or formulas changed."""
    document = new_document("page")
    said = ["12b · A U-Net · two", "a4 · Metrics", "95 % of 28 × 28 in 5 s", "a × b"]
    document += [nodes.paragraph(t, t) for t in said]
    document += [nodes.literal_block(said[2], said[2])]
    document += [nodes.paragraph(t, t) for t in ("so Theorem 1 is", "✗ not ✓ so")]
    document[0] += [nodes.literal("", said[2]), nodes.math("", said[2])]
    document[1] += nodes.literal("", "x" * (pages.SHORT + 1))
    pages.KeepNumbers(document).apply()
    assert document[0][1]["classes"] == ["together"] and not document[1][1]["classes"]
    assert document[0][0] == "12b\u00a0· A U-Net · two"
    assert document[1][0] == "a4\u00a0· Metrics"
    assert document[2][0] == "95\u00a0% of 28\u00a0×\u00a028 in 5\u00a0s"
    assert document[3][0] == said[3]
    assert document[5][0] == "so Theorem\u00a01 is"
    assert document[6][0] == "✗\u00a0not ✓\u00a0so"
    assert all(n[0] == said[2] for n in (document[0][1], document[0][2], document[4]))


def test_a_reference_stays_in_one_piece(pages):
    """Catches a line that begins with the number of a theorem."""
    document = new_document("page")
    for text in ("Theorem 3.2", "Fig. 3.2", "see Theorem 3.2"):
        document += nodes.paragraph("", "", nodes.reference("", text), nodes.Text(text))
    pages.keep_references(None, document, "page")
    texts = [[n.astext() for n in p.children] for p in document]
    assert texts == [
        ["Theorem\u00a03.2", "Theorem 3.2"],
        ["Fig.\u00a03.2", "Fig. 3.2"],
        ["see Theorem 3.2", "see Theorem 3.2"],
    ]


LONG = r"E\bigl[h_{x=0}(X)\bigr]"


@pytest.mark.parametrize(
    "tex, pieces",
    [
        ("a=b", ["a=b"]),  # short
        (f"{LONG}={LONG}={LONG}", [LONG + "={}", LONG + "={}", LONG]),
        (f"{LONG}:={LONG}\\le 1", [LONG + ":={}", LONG + r"\le 1"]),
        (f"m_t={LONG}={LONG}", [f"m_t={LONG}" + "={}", LONG]),
        (rf"\left[{LONG}=0\right]{LONG}", [rf"\left[{LONG}=0\right]{LONG}"]),
        (rf"={LONG}{LONG}", [rf"={LONG}{LONG}"]),
        (rf"\displaystyle {LONG}={LONG}", [rf"\displaystyle {LONG}={LONG}"]),
    ],
)
def test_a_long_formula_may_break_where_tex_would(pages, tex, pieces):
    """Catches a formula cut off on a phone; one torn within braces or fences."""
    assert pages.split_formula(tex) == pieces
    document = new_document("page")
    document += nodes.paragraph("", "", nodes.Text("("), nodes.math(tex, tex))
    document[0] += nodes.Text("), and")
    document += nodes.title("", "", nodes.math(tex, tex))
    pages.break_formulas(None, document)
    assert [m.astext() for m in document[0].findall(nodes.math)] == pieces
    assert len(document[1]) == 1  # titles stay as they are
    pages.keep_together(None, document)
    ends = [n.astext() for n in document[0].findall(nodes.inline)]
    assert ends[0] == "(" + pieces[0] + ("" if len(pieces) > 1 else "),")
    assert ends[-1].endswith(pieces[-1] + "),")


def test_a_docstring_is_plain_text_with_code(pages):
    """Catches an option with a dash for --, curly quotes, (B, *D) as emphasis."""
    lines = [
        'Points (B, *D) by "logit-normal" or --out-dir; t["a"] is "a.0";',
        '`--x "y"` is *not* _y | 6" --- "a b".',
    ]
    pages.plain_docstring(None, None, None, None, None, lines)
    assert lines == [
        'Points (B, \\*D) by ``"logit-normal"`` or ``--out-dir``; t["a"] is ``"a.0"``;',
        '``--x "y"`` is *not* _y \\| 6" --- "a b".',
    ]
