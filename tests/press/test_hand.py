"""The pages at hand keep what they promise."""

import re

from press import ledger, numbers
from press.notebooks import NBS, directives, read


def test_the_book_in_60_lines_has_no_more():
    """Catches a 61st line, and one that leans on more than torch."""
    cells = [c for c in read(NBS / "sixty.ipynb").cells if c.cell_type == "code"]
    shown = [d.code for d in map(directives, [c.source for c in cells])
             if d.values.get("fold") == "show"]  # fmt: skip
    lines = [line for code in shown for line in code.splitlines() if line.strip()]
    assert len(shown) == 5 and 50 < len(lines) <= 60, len(lines)
    imports = [line for line in lines if line.startswith(("import", "from"))]
    assert {line.split()[1] for line in imports} == {"math", "itertools", "torch"}


def test_the_formula_sheet_has_every_theorem_of_the_chapters():
    """Catches a theorem that the sheet has forgotten, and one that is gone."""
    numbered = [s for s, n in numbers.numbers().items() if n.isdigit()]
    text = {s: "\n".join(c.source for c in read(NBS / f"{s}.ipynb").cells)
            for s in numbered}  # fmt: skip
    known = {
        found.label
        for stem, markdown in text.items()
        for found in ledger.statements(stem, markdown)
        if found.kind == "theorem"
    }
    sheet = (NBS / "reference" / "sheet.md").read_text()
    named = set(re.findall(r"\{prf:ref\}`(?:[^`<]*<)?(thm-[\w-]+)", sheet))
    assert len(known) > 20 and named == known
