"""Running notebooks: failures are named, results are kept, Colab is stood in for."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from press import run, stamp
from press.settings import read_settings

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    return tmp_path


def notebook(folder, *cells: str):
    path = folder / "a.ipynb"
    nb = new_notebook(cells=[new_code_cell(c) for c in cells])
    nbformat.write(nb, path)
    return path


def test_a_failing_cell_is_named(runs):
    """Catches a failure that does not say which notebook, which cell, which error."""
    path = notebook(runs, "x = 1", "x / 0")
    with pytest.raises(run.BookError, match=r"a\.ipynb, cell 1 .*ZeroDivisionError"):
        run.execute(path, runs, threads=1)
    assert run.cached(path) is None


def test_a_warning_fails_the_run(runs):
    """Catches a warning on the error stream, which the page does not show."""
    path = notebook(runs, "import warnings; warnings.warn('old')")
    with pytest.raises(run.BookError, match="UserWarning: old"):
        run.execute(path, runs, threads=1)


def test_what_is_marked_eval_false_does_not_run(runs):
    """Catches jupyter Book's habit of running these cells."""
    path = notebook(runs, "#| eval: false\nraise SystemError", "print('done')")
    done = run.execute(path, runs, threads=1)
    assert done.nb.cells[0].outputs == []
    assert done.nb.cells[1].outputs[0].text == "done\n"


def test_prose_may_change_without_a_new_run_but_code_may_not(runs):
    """Catches a cache that is keyed on too little or on too much."""
    path = notebook(runs, "open('a.txt', 'w').write('b')")
    done = run.execute(path, runs, threads=1)
    assert (done.files / "a.txt").read_text() == "b"
    nb = run.read(path)
    nb.cells.append(nbformat.v4.new_markdown_cell("More prose."))
    nbformat.write(nb, path)
    assert run.cached(path).nb.cells[0].outputs == done.nb.cells[0].outputs
    nb.cells[0].source += "\n"
    nbformat.write(nb, path)
    assert run.cached(path) is None


def test_an_edit_to_an_exported_function_is_noticed(runs, monkeypatch):
    """Catches a chapter that keeps the outputs of another chapter's old code."""
    before = run.key(
        run.read(notebook(runs, "from flowbook.paths import GaussianPath"))
    )
    package = runs / "flowbook"
    package.mkdir()
    for path in run.PACKAGE.glob("*.py"):
        (package / path.name).write_text(path.read_text())
    monkeypatch.setattr("press.notebooks.PACKAGE", package)
    same = run.key(run.read(runs / "a.ipynb"))
    with (package / "notation.py").open("a") as module:  # imported by flowbook.paths
        module.write("# edited\n")
    assert before == same != run.key(run.read(runs / "a.ipynb"))


def test_colab_would_install_exactly_this_version(runs):
    """Catches an install from anywhere but the owner's tag, or an install elsewhere."""
    from dataclasses import replace

    settings = replace(read_settings(), user="someone")
    path = notebook(runs, stamp.colab_cell(settings))
    done = run.execute(path, runs, threads=1)
    (line,) = (done.files / "colab-install.txt").read_text().splitlines()
    assert settings.pip_requirement in line


def test_without_an_owner_colab_installs_nothing(runs):
    """Catches a placeholder account whose code a reader would run."""
    from dataclasses import replace

    settings = replace(read_settings(), user="set--me")
    path = notebook(runs, stamp.colab_cell(settings))
    done = run.execute(path, runs, threads=1)
    assert not (done.files / "colab-install.txt").exists()
    assert done.nb.cells[0].outputs[0].text.count("\n") == 1


def test_the_longest_start_first_and_come_back_in_order(runs, monkeypatch):
    """Catches an order by name, seconds of the last run forgotten, pages exchanged."""
    paths = [runs / f"{name}.ipynb" for name in "abcd"]
    for path, size in zip(paths, (10, 3000, 2000, 10), strict=True):
        cells = [
            new_code_cell("x" * size),
            new_code_cell("#| eval: false\n" + "y" * 9999),
        ]
        nbformat.write(new_notebook(cells=cells), path)
    kept = run.RUNS / "d" / "of-other-code"
    kept.mkdir(parents=True)
    (kept / "outputs.json").write_text('{"seconds": 9.5, "outputs": []}')
    started = []

    def execute(path, site, threads):
        started.append(path.stem)
        return run.Run(path, None, None, 0.0)

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(run, "installed_wheel", lambda: None)
    monkeypatch.setattr(run, "WORKERS", 1)
    assert [r.path for r in run.run_all(paths)] == paths
    assert started == ["b", "d", "c", "a"]  # 12, 9.5, 8 and 0 seconds
