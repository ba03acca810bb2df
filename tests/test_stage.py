"""What follows from settings.ini on the pages; statements in the index; the API."""

from dataclasses import replace

import yaml

from book import notebooks, stage
from book.settings import read_settings

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
    modules = {"paths": "09_gaussian_paths", "ode": "03_flows"}
    assert set(stage.api_pages(modules)) == {
        "api/index.md",
        "api/paths.md",
        "api/ode.md",
    }
    toc = stage.contents(modules)
    assert "api/paths" in toc and "nbs/09_gaussian_paths" in toc


def test_every_chapter_of_the_contents_exists():
    """Catches a chapter renamed in one place only."""
    missing = [s for s in notebooks.stems() if not list(notebooks.NBS.glob(f"{s}.*"))]
    assert missing == []
