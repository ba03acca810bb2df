"""What follows from settings.ini and from marks; statements in the index; the API."""

from dataclasses import replace

import pytest
import yaml
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)

from press import notebooks, panels, stage
from press.errors import BookError
from press.settings import read_settings

SOMEONE = replace(read_settings(), user="someone", repo="mine", version="1.2.3")


def test_the_owner_decides_every_link_of_the_pages():
    """Catches a repository, a tag or a launch button written down twice."""
    made = yaml.safe_load(stage.config(SOMEONE))
    theme = made["sphinx"]["config"]["html_theme_options"]
    assert theme["repository_url"] == "https://github.com/someone/mine"
    assert theme["repository_branch"] == "v1.2.3"
    assert theme["launch_buttons"]["colab_url"] == "https://colab.research.google.com"
    assert "set--me" not in stage.config(SOMEONE)


def test_without_an_owner_there_is_no_link_to_a_stranger():
    """Catches a button that leads to the placeholder account."""
    made = yaml.safe_load(stage.config(replace(SOMEONE, user="set--me")))
    theme = made["sphinx"]["config"]["html_theme_options"]
    assert "repository_url" not in theme and "launch_buttons" not in theme


def test_a_titled_statement_is_in_the_index():
    """Catches a theorem that the search cannot find by its name."""
    block = "```{prf:theorem} Theorem 3 (Lipman et al.)\n:label: thm-3\n\nA.\n```\n"
    assert stage.ledger.BLOCK.sub(stage._indexed, block) == (
        "```{index} ! single: Theorem 3\n```\n\n" + block
    )
    bare = "```{prf:lemma}\n:label: lem-a\n\nA.\n```\n"
    assert stage.ledger.BLOCK.sub(stage._indexed, bare) == bare


def test_every_module_has_a_page_and_a_place_in_the_contents():
    """Catches a module that the reader of the API does not see."""
    modules = {"gaussian_path": "gaussian_path", "solvers": "solvers"}
    titles = {f"nbs/{stem}": stem for stem in modules.values()}
    assert set(stage.api_pages(modules, [], titles)) == {
        "api/index.md",
        "api/gaussian_path.md",
        "api/solvers.md",
    }
    toc = stage.contents(modules)
    assert "api/gaussian_path" in toc and "nbs/gaussian_path" in toc


def test_every_chapter_of_the_contents_exists():
    """Catches a chapter renamed in one place only."""
    missing = [s for s in notebooks.stems() if not list(notebooks.NBS.glob(f"{s}.*"))]
    assert missing == []


CELL = new_code_cell("""#| export
Field = Callable  # v(x, t)


def _hidden():
    pass


def step(x):
    \"\"\"One step of `x` (B, *D).

    More.
    \"\"\"


class Path:
    pass
""")


def test_each_export_knows_where_it_is_derived():
    """Catches a function whose page does not lead back to its derivation."""
    found = list(stage.exports(CELL, "solvers", "flows", "A step"))
    kinds = [(e.name, e.kind, e.about) for e in found]
    assert kinds == [
        ("Field", "data", "v(x, t)"),
        ("step", "function", "One step of `x` (B, *D)."),
        ("Path", "class", ""),
    ]
    pages = stage.api_pages({"solvers": "flows"}, found, {"nbs/flows": "03"})
    assert ".. autofunction:: flowbook.solvers.step\n" in pages["api/solvers.md"]
    assert (
        ".. py:data:: Field\n   :module: flowbook.solvers\n" in pages["api/solvers.md"]
    )
    assert ":ref:`A step <code-solvers-step-f>`" in pages["api/solvers.md"]
    assert "One step of `x` (B, \\*D)." in pages["api/index.md"]
    mark = stage._mark(CELL, "solvers").source
    assert "(code-solvers-step-f)=" in mark and "`~flowbook.solvers.step`" in mark


def test_names_that_differ_by_case_only_have_places_of_their_own():
    """Catches `Method` and `method`: a label has no capitals."""
    assert stage._label("solvers", "Method") != stage._label("solvers", "method")


def test_what_a_private_base_gives_is_documented():
    """Catches methods that stand on no page, as their class is not exported."""
    cell = new_code_cell(
        "#| export\nclass Path(_Base):\n    pass\n\nclass Net(Module):\n    pass"
    )
    private, public = stage.exports(cell, "paths", "gaussian_path", "Paths")
    assert ":inherited-members:" in stage._entry(private)
    assert ":inherited-members:" not in stage._entry(public)


def test_a_constant_of_many_lines_has_its_comment():
    """Catches a name of the API without a word."""
    cell = new_code_cell(
        "#| export\nA = {  # by name\n    1: 2,\n}\nB = 3\nC = [\n]  # c"
    )
    said = [e.about for e in stage.exports(cell, "paths", "gaussian_path", "Paths")]
    assert said == ["by name", "", "c"]


def chapter(source, **data):
    """A chapter of one cell that has run."""
    kind = {key.replace("_", "/"): value for key, value in data.items()}
    shown = new_output("display_data", kind)
    return new_notebook(cells=[new_code_cell(source, outputs=[shown])])


FIGURE = "#| panel: marginal\n#| label: fig-a\n#| alt: Three <b> arrows.\nf()"
CHAPTERS = {
    "one": chapter(FIGURE, image_png="iVBO\nRw0K"),
    "two": chapter("film()", text_html='<figure class="film">\n\n  A\n</figure>'),
}


def test_a_mark_brings_a_panel_with_its_figure_and_scripts():
    """Catches a panel without the figure that stands for it, or without its scripts."""
    page = panels.fill_marks("A\n\n<!-- panel: marginal -->\n\nB\n", CHAPTERS)
    assert page.index('data-panel="marginal"') < page.index("B\n")
    figure = '<img src="data:image/png;base64,iVBORw0K" alt="Three &lt;b&gt; arrows.">'
    assert f'<figure class="stand-in">{figure}</figure>' in page
    loaded = [page.index(f"{n}.js") for n in ("math", "plot", "kit", "marginal")]
    assert loaded == sorted(loaded)


def test_each_script_of_a_page_is_loaded_once():
    """Catches a panel that is built twice, and a script on a page that needs none."""
    marks = "<!-- panel: marginal -->\n<!-- film: two -->\n"
    page = panels.fill_marks(2 * marks, CHAPTERS)
    for name in ("math", "plot", "kit", "marginal", "player"):
        assert page.count(f"/{name}.js") == 1
    assert panels.fill_marks("A\n", CHAPTERS) == "A\n"


def test_a_film_begins_again_where_the_mark_says_so():
    """Catches a film that runs for ever in a chapter, and one that stops for good."""
    once = panels.fill_marks("<!-- film: two -->", CHAPTERS)
    assert '<figure class="film"> A </figure>' in once
    again = panels.fill_marks("<!-- film: two, loop -->", CHAPTERS)
    assert '<figure data-loop class="film"> A </figure>' in again


@pytest.mark.parametrize("mark", ["panel: race", "film: one", "film: three"])
def test_a_mark_for_what_is_not_there_is_refused(mark):
    """Catches an empty place on the landing page."""
    with pytest.raises(BookError, match=mark.partition(": ")[2]):
        panels.fill_marks(f"<!-- {mark} -->", CHAPTERS)


def test_a_value_without_words_is_refused():
    """Catches a repr on a page: no reader knows what (0.1187, 3.2e-09) says."""
    tags = {"tags": ["remove-cell"]}
    for data, metadata, refused in (
        ({"text/plain": "(0.1187, 3.2e-09)"}, {}, True),
        ({"text/plain": "(0.1187, 3.2e-09)"}, tags, False),
        ({"text/plain": "<HTML object>", "text/html": "<b>3</b>"}, {}, False),
    ):
        shown = new_output("execute_result", data=data)
        printed = new_output("stream", name="stdout", text="said: 3\n")
        cell = new_code_cell(
            "pair", id="the-pair", outputs=[printed, shown], metadata=metadata
        )
        book = new_notebook(cells=[new_markdown_cell("# One"), cell])
        if not refused:
            stage.page(book, "one")
            continue
        with pytest.raises(BookError, match=r"one: cell the-pair") as error:
            stage.page(book, "one")
        assert "(0.1187, 3.2e-09)" in str(error.value)
