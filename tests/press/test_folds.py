"""What of a page folds: decided from what a cell is, and overruled by a directive."""

import pytest
from docutils import nodes
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from press import ledger, notebooks, run, stage

IMPORTS = "import math\n\nfrom a import (\n    b,\n)"
FIGURE = "#| label: fig-a\n#| caption: C.\n#| alt: A.\ndraw()\nshow()"
CHECK = 'gap = f(1) - 2\ncheck("thm-1", "two", gap, 0, because="exact")'
LESSON = "def f(x):\n    return x + 1\n\n\nf(1)"


def folds(source: str, **options) -> list[list]:
    page = stage.page(new_notebook(cells=[new_code_cell(source, **options)]))
    return page.cells[-1].metadata.get("folds", [])


@pytest.mark.parametrize(
    "source, expected",
    [
        (IMPORTS, [[0, 5, "imports · 5 lines"]]),
        (f"{IMPORTS}\nuse_style()", [[0, 6, "imports and settings · 6 lines"]]),
        (f"import math\n{LESSON}", []),  # mostly not imports
        (f"{LESSON}\n{IMPORTS}", []),  # does not begin with them
        (CHECK, [[0, 2, "the check’s code · 2 lines"]]),
        (CHECK.replace("check", "reject"), [[0, 2, "the check’s code · 2 lines"]]),
        ("for c in (check, reject):\n    c(1)", [[0, 2, "the check’s code · 2 lines"]]),
        (FIGURE, [[0, 2, "the figure’s code · 2 lines"]]),
        (LESSON, []),
        ("%matplotlib inline", []),
        (f"#| fold: show\n{CHECK}", []),
        (f"#| fold: the film’s code\n{LESSON}", [[0, 5, "the film’s code · 5 lines"]]),
        ("#| fold: one thing\nf()", [[0, 1, "one thing · 1 line"]]),
    ],
)
def test_a_cell_folds_for_what_it_is(source, expected):
    """Catches a lesson that folds, and imports, a check or a figure that don't."""
    assert folds(source) == expected


def test_a_solution_keeps_its_code_in_one_piece():
    """Catches folds within folds, and a page that never unfolds after a solution."""
    begin, end = "```{solution-start} ex-1\n```", "```{solution-end}\n```"
    outputs = [checked(), checked()]
    cells = [new_markdown_cell(begin), new_code_cell(CHECK, outputs=outputs)]
    cells += [new_markdown_cell(end), new_code_cell(CHECK)]
    _, inside, _, outside = stage.page(new_notebook(cells=cells)).cells
    assert "folds" not in inside.metadata and len(inside.outputs) == 2
    assert "folds" in outside.metadata


EXPORTED = '''#| export
def _require(x):
    if x < 0:
        raise ValueError(x)


@cached
def short(x):
    """One line."""
    return _require(x)


class Path(Base):
    """A path.

    With a docstring.
    """

    sigma: float = 1.0

    def __post_init__(self):
        _require(self.sigma)
        self.fine = True
        self.more = 1

    def velocity(self, x):
        """The formula."""
        return x / self.sigma

    def long(self, x):
        """Its signature and this stand."""
        a = 1
        b = 2
        c = 3
        d = 4
        e = 5
        f = 6
        return a + b + c + d + e + f


LIMIT = 3  # of something


@cached
def _one():
    return 1


def _two():
    return 2
'''


def test_exported_code_shows_signatures_docstrings_and_short_bodies():
    """Catches a signature or formula that folds, a helper or long body that doesn't."""
    lines = notebooks.directives(EXPORTED).code.splitlines()
    made = folds(EXPORTED)
    assert [says for _, _, says in made] == [
        "__post_init__ · 4 lines",
        "body · 7 lines",
        "_one, _two · 7 lines",
    ]
    away = [lines[first:last] for first, last, _ in made]
    assert [piece[0].strip() for piece in away] == [
        "def __post_init__(self):",
        "a = 1",
        "@cached",
    ]
    assert [piece[-1].strip() for piece in away] == [
        "self.more = 1",
        "return a + b + c + d + e + f",
        "return 2",
    ]


def test_short_exported_code_stands():
    """Catches a fold that hides three lines behind one."""
    assert folds("#| export\ndef f(x):\n" + "    x += 1\n" * 9) == []
    assert folds("#| export\n" + LESSON.replace("f(1)", "") + "    pass\n" * 3) == []


def checked(rejected: bool = False, claim: str = "two"):
    record = {"statement": "thm-1", "claim": claim, "rejected": rejected}
    mark = "rejected" if rejected else "passed"
    page = f'<p class="check {mark}">{claim} — 1e-12 ≤ 1e-11</p>'
    data = {ledger.MIME: record, "text/html": page, "text/plain": claim}
    return new_output("display_data", data=data)


def test_checks_in_a_row_stand_behind_one_line():
    """Catches a line that miscounts, a check that is lost, a lone one that folds."""
    text = new_output("stream", text="said\n")
    row = [checked(), checked(True), checked(True), text, checked(True), checked(True)]
    cell = new_code_cell(CHECK, outputs=[*row, text, checked()])
    nb = new_notebook(cells=[cell])
    shown = stage.page(nb).cells[0].outputs
    assert [o.output_type for o in shown] == ["display_data", "stream"] * 2 + [
        "display_data"
    ]
    first, second, lone = (o.data["text/html"] for o in shown[::2])
    assert "<summary>✓ 1 check, ✗ 2 wrong formulas refused</summary>" in first
    assert "<summary>✗ 2 wrong formulas refused</summary>" in second
    assert first.count('<p class="check') == 3 and "<details" not in lone
    assert first.startswith('<details class="checks" open>'), "reads without a script"
    assert '<span class="together">1e-12</span>' in first and "together" in lone
    assert len(list(ledger.checks("nbs/a", nb))) == 6  # the ledger has them all


def test_how_a_cell_is_shown_asks_for_no_new_run():
    """Catches a notebook that runs for an hour because a cell folds now."""
    bare, told = (
        new_notebook(cells=[new_code_cell(source)])
        for source in (f"#| label: fig-a\n{LESSON}", f"#| fold: show\n{LESSON}")
    )
    plain = new_notebook(cells=[new_code_cell(LESSON)])
    assert run.key(told) == run.key(plain) != run.key(bare)


@pytest.fixture
def extension(monkeypatch):
    monkeypatch.syspath_prepend(notebooks.NBS.parent / "press" / "ext")
    return pytest.importorskip("press_folds")


def test_the_page_divides_a_cell_and_loses_no_line(extension):
    """Catches a line that stands twice or nowhere, and a fold in the wrong place."""
    code = notebooks.directives(EXPORTED).code
    cell = nodes.container(cell_metadata={"folds": folds(EXPORTED)}, classes=["cell"])
    block = nodes.literal_block(code, code, language="ipython3")
    cell += nodes.container("", block, classes=["cell_input"])
    extension.fold_code(None, cell)
    pieces = cell[0].children
    kinds = [type(piece).__name__ for piece in pieces]
    block, fold = "literal_block", "folded_code"
    assert kinds == [block, fold, block, fold, block, fold]
    assert [p["says"] for p in pieces[1::2]] == [s for _, _, s in folds(EXPORTED)]
    kept = [line for p in pieces for line in p.astext().splitlines() if line.strip()]
    assert kept == [line for line in code.splitlines() if line.strip()]
    assert all(b["language"] == "ipython3" for b in cell.findall(nodes.literal_block))
    assert "divided" in cell["classes"] and all(p.parent is cell[0] for p in pieces)


def test_a_page_has_the_switches_that_it_needs(extension):
    """Catches a switch for proofs on a page without one, and room for none."""
    for marks, names in {
        '<details class="code" open>': " data-code",
        '<details class="checks" open><details class="fold long">': (
            " data-code data-proofs"
        ),
    }.items():
        context = {"body": f"<h1>A</h1><h1>B</h1>{marks}"}
        extension.place_switches(None, "a", "", context, None)
        assert context["body"].count("switches") == 1
        assert context["body"].startswith(
            f'<h1>A</h1>\n<div class="switches"{names}></div>'
        )
    context = {"body": "<h1>A</h1>"}
    extension.place_switches(None, "a", "", context, None)
    assert context == {"body": "<h1>A</h1>"}
