"""The proof ledger finds every statement, and says which lack a check."""

from pathlib import Path

import nbformat

from press import ledger

NOTEBOOKS = Path(__file__).parents[2] / "nbs"

TEXT = """
````{prf:theorem} A name
:label: thm-a

**Hypotheses.** f is C¹
and bounded.

Then all is well.
````

```{prf:lemma}
:label: lem-b
% no check: it is a definition in disguise

**Hypotheses.** None.
```

```{prf:definition} D
:label: def-d

No check is asked of a definition.
```
"""


def row(statement: str, rejected: bool = False) -> dict:
    return {
        "page": "nbs/x",
        "statement": statement,
        "claim": "c",
        "residual": 1e-16,
        "tolerance": 1e-12,
        "because": "b",
        "rejected": rejected,
    }


def test_statements_are_found_with_their_hypotheses():
    """Catches a block that the pattern passes over."""
    a, b = ledger.statements("nbs/x", TEXT)
    assert (a.kind, a.title, a.label) == ("theorem", "A name", "thm-a")
    assert a.hypotheses == "f is C¹ and bounded."
    assert b.no_check == "it is a definition in disguise"


def test_a_statement_without_a_check_is_a_gap():
    """Catches a theorem that nothing tests, and a check that tests no theorem."""
    found = list(ledger.statements("nbs/x", TEXT))
    assert ledger.gaps(found, [row("thm-a")]) == []
    assert "thm-a has no check" in ledger.gaps(found, [])[0]
    only_wrong = ledger.gaps(found, [row("thm-a", rejected=True)])
    assert "thm-a has no check" in only_wrong[0]
    assert "'thm-z'" in ledger.gaps(found, [row("thm-a"), row("thm-z")])[0]


def test_the_page_has_a_row_for_each_check():
    """Catches a residual that is measured and not shown."""
    found = list(ledger.statements("nbs/x", TEXT))
    rows = [row("thm-a"), row("thm-a", rejected=True), row("code-c")]
    page = ledger.page(found, rows, {"nbs/w": "W", "nbs/x": "00 · X"})
    assert page.count("1e-16") == 3
    assert "✓ c" in page and "✗ c" in page and "definition in disguise" in page
    assert page.index("## 00 · X") < page.index("### Code, definitions and exercises")
    assert "## W" not in page  # it states nothing and checks nothing


def test_a_check_of_another_chapter_leads_there():
    """Catches "E38", which nobody can place."""
    slip = row("thm-a") | {"page": "nbs/slips"}
    here, there = (ledger.table([r], "nbs/x") for r in (row("thm-a"), slip))
    assert "* - ✓ c" in here and "* - ✓ c (in {ref}`slips`)" in there


def test_a_bar_ends_on_the_right_side_of_the_tolerance():
    """Catches a check drawn as a failure, a log of zero, a bar longer than its box."""
    assert 'class="bar left"' in ledger.bar(1e-3, 1.0)
    assert "width:25.0%" in ledger.bar(1e-3, 1.0)
    assert 'class="bar right"' in ledger.bar(1e3, 1.0)
    assert 'aria-label="0.001 of the tolerance"' in ledger.bar(1e-3, 1.0)
    assert "width:50.0%" in ledger.bar(0.0, 0.0) and "left" in ledger.bar(0.0, 0.0)
    assert "width:50.0%" in ledger.bar(1e300, 1e-300)
    assert 'class="bar right"' in ledger.bar(1.0, 0.0)


def test_a_proof_is_linked_from_its_statement():
    """Catches a link to a proof that is not there, and one to another's proof."""
    proof = "\n```{prf:proof}\nBy inspection.\n```\n"
    a, b = ledger.statements("nbs/x", TEXT)
    assert not a.proved and not b.proved
    a, b = ledger.statements("nbs/x", TEXT + proof)
    assert not a.proved and b.proved
    assert 'href="nbs/x.html#proof-lem-b"' in ledger._link(b)


def test_what_the_book_does_not_prove_it_calls_cited():
    """Catches a statement of the book without a proof, where a1 says there is one."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = nbformat.read(path, 4).cells
        text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
        for found in ledger.statements(path.stem, text):
            assert found.proved or found.title.endswith("cited"), found.label


def test_no_number_of_a_check_breaks():
    """Catches a line that ends in 1e- or ≤."""
    gap, line = "\u00a0", "✓ checked: 2 &lt; 3 — residual 1.5e-16 ≤ 2e-12 (7 × 7, 1 %)"
    number = '<span class="together">{}</span>'.format
    assert ledger.unbroken(line) == (
        f"✓ checked: 2 &lt; 3{gap}— residual {number('1.5e-16')}{gap}≤{gap}"
        f"{number('2e-12')} "
        f"(7{gap}×{gap}7, 1{gap}%)"
    )
    assert ledger.unbroken("1 &gt; 0.5") == f"1{gap}&gt;{gap}0.5"
