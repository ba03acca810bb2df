"""What follows from settings.ini: Colab cells, README, CITATION, names allowed."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from press import stamp
from press.settings import PLACEHOLDER, ROOT, read_settings
from press.tag import check_release

OURS = read_settings()
NOBODY = replace(OURS, user=PLACEHOLDER)
ADA = replace(OURS, user="ada-l", version="0.3.1")
EVE = replace(OURS, user="eve", repo="flows", version="0.3.1")


def notebook(*sources: str) -> dict:
    cells = [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": ["# Title"]},
        *(
            {
                "cell_type": "code",
                "execution_count": None,
                "id": f"cell{i}",
                "metadata": {},
                "outputs": [],
                "source": source.splitlines(keepends=True),
            }
            for i, source in enumerate(sources)
        ),
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


class Shell:
    """Stands in for IPython, and writes down what is asked of it."""

    def __init__(self):
        self.done: list[str] = []

    def run_line_magic(self, name: str, line: str) -> None:
        self.done.append(f"%{name} {line}")


def run_cell(source: str, monkeypatch, *, colab: bool) -> list[str]:
    """Run a cell as IPython does; return what it printed or asked of a magic."""
    shell = Shell()
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", sys)
    else:
        monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    names = {"get_ipython": lambda: shell, "print": shell.done.append}
    exec(TransformerManager().transform_cell(source), names)
    return shell.done


# --- the Colab cell -----------------------------------------------------------------


def test_the_cell_is_quiet_outside_colab(monkeypatch):
    """Catches an installation, or words, on somebody's own machine."""
    for settings in (ADA, NOBODY):
        assert run_cell(stamp.colab_cell(settings), monkeypatch, colab=False) == []


def test_on_colab_it_installs_this_version_and_nothing_else(monkeypatch):
    """Catches main instead of the tag, another owner, --upgrade, a second package."""
    done = run_cell(stamp.colab_cell(ADA), monkeypatch, colab=True)
    address = "git+https://github.com/ada-l/flowbook@v0.3.1"
    assert done == [f'%pip install -q "flowbook-fm @ {address}"']


def test_without_an_owner_it_says_so_and_installs_nothing(monkeypatch):
    """Catches code installed from whoever takes the placeholder's name."""
    (said,) = run_cell(stamp.colab_cell(NOBODY), monkeypatch, colab=True)
    assert "no public home yet" in said
    assert "user in settings.ini" in said
    assert "pip" not in stamp.colab_cell(NOBODY)


def test_the_cell_comes_before_all_other_code():
    """Catches a cell after the imports that it is there for; text pushed down."""
    stamped = stamp.stamp_notebook(notebook("#| default_exp a", "import torch"), ADA)
    assert [c["id"] for c in stamped["cells"]] == ["title", "colab", "cell0", "cell1"]
    cell = stamped["cells"][1]
    assert cell["metadata"] == {"tags": ["remove-cell"]}
    assert "".join(cell["source"]) == stamp.colab_cell(ADA)


def test_stamping_twice_is_stamping_once():
    """Catches a second Colab cell, or one that stays where it was moved to."""
    once = stamp.stamp_notebook(notebook("1", "2"), ADA)
    assert stamp.stamp_notebook(once, ADA) == once
    moved = {**once, "cells": [*once["cells"][2:], once["cells"][1]]}
    moved = {**moved, "cells": [once["cells"][0], *moved["cells"]]}
    assert stamp.stamp_notebook(moved, ADA) == once


def test_the_notebook_that_came_is_left_as_it_was():
    """Catches stamping in place."""
    nb = notebook("1")
    before = json.dumps(nb)
    stamp.stamp_notebook(nb, ADA)
    assert json.dumps(nb) == before


def test_a_page_without_code_gets_no_cell():
    """Catches an installation on pages of prose."""
    assert stamp.stamp_notebook(notebook(), ADA) == notebook()


def test_a_notebook_without_ids_is_refused():
    """Catches a cell id in a format that has none, which Jupyter then rejects."""
    with pytest.raises(ValueError, match=r"4\.5 is needed, got \(4, 4\)"):
        stamp.stamp_notebook({**notebook("1"), "nbformat_minor": 4}, ADA)


def test_nbdev_leaves_a_stamped_notebook_as_it_is():
    """Catches `clean` and `export` that undo each other, tags or the id lost."""
    from execnb.nbio import dict2nb, nb2str
    from nbdev.clean import clean_nb

    allowed = ["tags", "mystnb"]
    stamped = stamp.stamp_notebook(notebook("1"), ADA)
    cleaned = dict2nb(json.loads(stamp.notebook_text(stamped)))
    clean_nb(cleaned, allowed_cell_metadata_keys=allowed)
    assert nb2str(cleaned) == stamp.notebook_text(stamped)


# --- everything else that names the owner -------------------------------------------


def everything(settings) -> str:
    """All that is written from the settings."""
    parts = [
        stamp.colab_cell(settings),
        stamp.stamp_readme(settings),
        stamp.stamp_index(settings),
        stamp.citation(settings),
        settings.colab_url("nbs/a.ipynb"),
    ]
    return "\n".join(parts)


def test_changing_the_owner_changes_every_link():
    """Catches one address written by hand, or a version that stayed behind."""
    ada, eve = everything(ADA), everything(EVE)
    assert ada.count("ada-l") == eve.count("eve/flows") + eve.count("eve.github") > 9
    assert "ada-l" not in eve
    assert PLACEHOLDER not in ada.replace(f"user = {PLACEHOLDER}", "")
    assert everything(replace(ADA, user="eve", repo="flows")) == eve


def test_without_an_owner_nothing_links_anywhere():
    """Catches a dead link, or a stranger's, in a copy that nobody has published."""
    pages = stamp.stamp_readme(NOBODY) + stamp.stamp_index(NOBODY)
    written = pages + stamp.citation(NOBODY)
    for pattern in (r"github\.com/(?!actions)", r"github\.io", r"colab\.research"):
        assert not re.search(pattern, written)


def test_nobody_is_sent_to_another_project():
    """Catches `pip install flowbook`: on the package index that name isn't ours."""
    for settings in (ADA, NOBODY):
        for text in (stamp.stamp_index(settings), stamp.stamp_readme(settings)):
            assert re.search(r"pip install", text)
            assert not re.search(r"pip install\s+\W*flowbook(?!-fm)", text)


def test_the_landing_page_cites_what_the_settings_say():
    """Catches an author, a version or a year written by hand, and a stranger's url."""
    other = replace(ADA, author="Ada", copyright="2031, Ada", title="T", name="n")
    said = stamp.cite(other)
    for row in ("@software{n,", "{{Ada}}", "{2031}", "{0.3.1}", "{T: "):
        assert row in said
    assert "url = {https://ada-l.github.io/flowbook/}" in said
    assert "url" not in stamp.cite(NOBODY)


def test_what_to_take_along_is_where_it_is_said_to_be():
    """Catches a link to releases that nobody publishes."""
    assert "(https://github.com/eve/flows/releases)" in stamp.take(EVE)
    assert "make release" in stamp.take(NOBODY) and "http" not in stamp.take(NOBODY)


def test_readme_landing_page_and_citation_are_up_to_date():
    """Catches settings.ini changed without `make export`."""
    assert stamp.stamp_readme(OURS) == (ROOT / "README.md").read_text()
    assert stamp.stamp_index(OURS) == (ROOT / "nbs" / "index.md").read_text()
    assert stamp.citation(OURS) == (ROOT / "CITATION.cff").read_text()


def test_readme_survives_a_change_of_owner_and_back():
    """Catches a marker eaten by its own block, text outside the blocks touched."""
    text = stamp.stamp_readme(ADA)
    assert stamp.stamp_readme(ADA, text) == text
    assert stamp.stamp_readme(OURS, text) == (ROOT / "README.md").read_text()


def test_a_lost_or_unknown_block_is_named():
    """Catches a marker misspelt, whose links then never change again."""
    with pytest.raises(ValueError, match=r"nbs/index\.md: blocks \[\], expected"):
        stamp.stamp_index(ADA, "# No block")
    text = stamp.stamp_readme(ADA)
    with pytest.raises(ValueError, match=r"README\.md: blocks .* expected"):
        stamp.stamp_readme(
            ADA, text.replace("settings.ini: badges", "settings: badges")
        )
    with pytest.raises(ValueError, match="'bagdes'"):
        stamp.stamp_readme(ADA, text.replace("ini: badges", "ini: bagdes"))


def test_stamp_all_changes_what_is_stale_and_says_which(tmp_path):
    """Catches `check` that writes, a file forgotten, a second run that finds more."""
    (tmp_path / "nbs").mkdir()
    path = tmp_path / "nbs" / "01_a.ipynb"
    path.write_text(stamp.notebook_text(notebook("1")))
    for name in ("settings.ini", "README.md", "CITATION.cff", "nbs/index.md"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    ini = (tmp_path / "settings.ini").read_text()
    ini = re.sub(r"(?m)^user = .*", "user = ada-l", ini)
    (tmp_path / "settings.ini").write_text(ini)
    before = path.read_text()
    names = {"README.md", "CITATION.cff", "nbs/01_a.ipynb", "nbs/index.md"}
    assert {str(p) for p in stamp.stamp_all(check=True, root=tmp_path)} == names
    assert path.read_text() == before
    assert {str(p) for p in stamp.stamp_all(root=tmp_path)} == names
    assert stamp.stamp_all(check=True, root=tmp_path) == []
    assert "ada-l/flowbook@v" in path.read_text()


# --- what may stand in settings.ini -------------------------------------------------


@pytest.mark.parametrize(
    "user", ['a"; rm -rf ~', "ada lovelace", "ada/other", "", "-a"]
)
def test_an_owner_that_is_no_account_is_refused(user):
    """Catches anything that could end the command in the Colab cell."""
    with pytest.raises(ValueError, match=r"user = .* is not the name of a GitHub acc"):
        replace(OURS, user=user)


@pytest.mark.parametrize("name", ["flow book", "flowbook;x", "-fm", "Flowbook", ""])
def test_a_distribution_that_has_no_name_is_refused(name):
    """Catches anything that could end the command in the Colab cell."""
    with pytest.raises(ValueError, match=r"distribution = .* is not the name of a dis"):
        replace(OURS, distribution=name)


@pytest.mark.parametrize("version", ["0.1", "v0.1.0", "0.1.0 ", "0.1.0;x", "0.1.0-dev"])
def test_a_version_that_makes_no_tag_is_refused(version):
    """Catches tags that `pip install git+...@tag` can't be given."""
    with pytest.raises(ValueError, match=r"version = .* is not a version such as"):
        replace(OURS, version=version)


def test_a_release_needs_its_tag_and_its_owner():
    """Catches a wheel under another version; notebooks that install other code."""
    check_release(ADA, "v0.3.1", "Ada-L/flowbook")
    with pytest.raises(ValueError, match=r"the tag is v0\.3\.2, .* expected v0\.3\.1"):
        check_release(ADA, "v0.3.2", "ada-l/flowbook")
    with pytest.raises(ValueError, match=r"this repository is eve/flows"):
        check_release(ADA, "v0.3.1", "eve/flows")
    with pytest.raises(ValueError, match=r"settings\.ini says set--me"):
        check_release(NOBODY, NOBODY.tag, "ada-l/flowbook")


# --- README's words -----------------------------------------------------------------


def example(page: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    return code


def test_readme_names_files_that_exist():
    """Catches a link to a file that was renamed or never written."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert "nbs/static/readme.png" in links
    links.append(OURS.first_chapter)  # where the Colab badge leads
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "nbs/index.md"])
def test_an_example_has_ten_lines(page):
    """Catches an example that grew, or that no longer parses."""
    lines = [line for line in example(page).splitlines() if line]
    assert len(lines) <= 10
    ast.parse(example(page))


@pytest.mark.slow
def test_readme_example_runs_as_printed(tmp_path):
    """Catches a name or argument that changed, or a flow that learned nothing."""
    done = subprocess.run(
        [sys.executable, "-c", example("README.md")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    noise, samples = map(float, re.findall(r"[\d.]+(?:e-\d+)?", done.stdout))
    assert 0.05 < noise < 0.1  # what README says
    assert 0 <= samples < 0.015  # 0.0055 to 0.0088 over four seeds


@pytest.mark.slow
def test_the_landing_page_s_example_runs_as_printed():
    """Catches a name or argument that changed, or a flow that learned nothing."""
    code = example("nbs/index.md")
    more = (
        "\nfrom flowbook.metrics import energy_distance as far\n"
        "assert log_density.shape == (2000,) and log_density.isfinite().all()\n"
        "assert far(samples, data[:2000]) < far(noise, data[:2000]) / 3\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import torch; torch.manual_seed(0)\n" + code + more],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
