"""Directives, cleaning, and what a notebook can see of the package."""

import ast
import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from press import notebooks, stage
from press.errors import BookError
from press.run import Run

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def picture() -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", data={"image/png": PIXEL})


def test_directives_are_split_from_the_code():
    """Catches a continuation line that is lost or taken for a directive."""
    found = notebooks.directives(
        "#| export\n#| caption: One line\n#|     and the next.\n\nx = 1\n#| y\n"
    )
    assert found.code == "x = 1\n#| y"
    assert found.values == {"export": "", "caption": "One line and the next."}
    assert found.exported and found.runs and not found.hidden


def test_a_directive_nobody_knows_is_refused():
    """Catches `#| exprt`, which nbdev would pass over in silence."""
    with pytest.raises(ValueError, match="exprt"):
        notebooks.directives("#| exprt\nx = 1")


def test_the_page_shows_no_directive_and_no_hidden_cell():
    """Catches each way in which nbdev's marks could reach the reader."""
    nb = new_notebook(
        cells=[
            new_markdown_cell("# A title"),
            new_code_cell("#| default_exp paths"),
            new_code_cell("#| hide\nsecret = 1"),
            new_code_cell("#| export\ndef f(): ..."),
            new_code_cell("#| eval: false\nnever()"),
            new_code_cell("x", metadata={"tags": ["remove-cell"]}),
        ]
    )
    before = nbformat.writes(nb)
    shown = stage.page(nb)
    assert [c.source for c in shown.cells] == [
        "# A title",
        "(code-paths-f-f)=\n```{div} exported\n"
        "exported: {py:obj}`~flowbook.paths.f`\n```",
        "def f(): ...",
        "never()",
    ]
    assert nbformat.writes(nb) == before, "the source must stay as it is"


def test_a_figure_hands_its_caption_and_alt_text_on():
    """Catches a figure without a caption, a name or an alternative."""
    head = "#| label: fig-a\n#| caption: It falls.\n#| alt: A line.\n"
    good = new_notebook(cells=[new_code_cell(head + "draw()", outputs=[picture()])])
    assert stage.page(good).cells[0].metadata["mystnb"] == {
        "image": {"alt": "A line."},
        "figure": {"caption": "It falls.", "name": "fig-a"},
    }
    bare = new_notebook(cells=[new_code_cell("draw()", outputs=[picture()])])
    with pytest.raises(BookError, match="label, caption and alt"):
        stage.page(bare)


@pytest.mark.parametrize(("alpha", "kept"), [(0, {"classes": "as-is"}), (255, {})])
def test_a_figure_without_a_ground_keeps_its_colours(alpha, kept):
    """Catches a photograph that dark mode turns over, and a curve that it does not."""
    file = io.BytesIO()
    Image.new("RGBA", (2, 2), (255, 255, 255, alpha)).save(file, "png")
    png = base64.b64encode(file.getvalue()).decode()
    drawn = nbformat.v4.new_output("display_data", data={"image/png": png})
    head = "#| label: fig-a\n#| caption: C.\n#| alt: A.\n"
    page = stage.page(new_notebook(cells=[new_code_cell(head + "1", outputs=[drawn])]))
    assert page.cells[0].metadata["mystnb"]["image"] == {"alt": "A.", **kept}


def test_cleaning_keeps_tags_and_drops_outputs(tmp_path):
    """Catches nbdev's default, which deletes tags and MyST-NB's metadata."""
    path = tmp_path / "a.ipynb"
    cell = new_code_cell(
        "1",
        metadata={"tags": ["hide-input"], "mystnb": {"a": 1}, "scrolled": True},
        outputs=[picture()],
        execution_count=3,
    )
    nbformat.write(new_notebook(cells=[cell]), path)
    path.write_text(notebooks.cleaned(path))
    (cleaned,) = notebooks.read(path).cells
    assert cleaned.metadata == {"tags": ["hide-input"], "mystnb": {"a": 1}}
    assert cleaned.outputs == [] and cleaned.execution_count is None


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("import torch", set()),
        ("from flowbook.notation import expand_time", {"notation"}),
        ("%matplotlib inline\nimport flowbook.fields as p", {"fields", "notation"}),
    ],
)
def test_a_notebook_sees_what_it_imports_and_what_that_imports(code, seen):
    """Catches a cache that would not notice an edit two imports away."""
    nb = new_notebook(cells=[new_code_cell(code)])
    found = {p.stem for p in notebooks.visible_modules(nb)} - {"__init__"}
    assert found == seen


def test_the_whole_package_is_seen_through_its_own_name():
    """Catches `import flowbook as fb`, whose names are loaded on first use."""
    nb = new_notebook(cells=[new_code_cell("import flowbook as fb")])
    everything = {p.stem for p in notebooks.PACKAGE.glob("*.py")}
    assert {p.stem for p in notebooks.visible_modules(nb)} == everything


def test_every_exported_module_has_a_notebook():
    """Catches a module that stays behind when its notebook is renamed."""
    assert notebooks.orphans() == []


def test_a_run_can_be_shown(tmp_path):
    """Catches a page that keeps the error stream: progress bars, warnings."""
    noise = nbformat.v4.new_output("stream", name="stderr", text="50%|#####")
    cell = new_code_cell("1", outputs=[noise, picture()])
    cell.source = "#| label: fig-a\n#| caption: C.\n#| alt: A.\n1"
    run = Run(tmp_path / "a.ipynb", new_notebook(cells=[cell]), tmp_path, 1.0)
    (output,) = stage.page(run.nb).cells[0].outputs
    assert output.output_type == "display_data"


def test_no_two_threads_parse_at_once(monkeypatch):
    """Catches CPython 3.11's SystemError, as the runner reads notebooks in threads."""
    inside, most, parse = [], [], ast.parse

    def slowly(source):
        inside.append(source)
        time.sleep(0.001)
        most.append(len(inside))
        inside.pop()
        return parse(source)

    nb = new_notebook(cells=[new_code_cell("import flowbook.fields")])
    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(ast, "parse", slowly)
        list(pool.map(notebooks.visible_modules, [nb] * 8))
    assert max(most) == 1 and len(most) > 8
