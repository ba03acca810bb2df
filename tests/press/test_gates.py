"""The gates: what they run, what they say it took, and that a failure ends them."""

import os
import re

import pytest

from press import gates
from press.errors import BookError

# --- the tests, in two processes ------------------------------------------------------

FINE = """
import os, pathlib, pytest

@pytest.mark.parametrize("n", range(40))
def test_fine(n):
    pathlib.Path("seen-" + os.environ["PYTEST_XDIST_WORKER"]).touch()

def test_one_thread():
    assert os.environ["OMP_NUM_THREADS"] == "1"

@pytest.mark.book
def test_of_another_gate():
    assert False
"""
CRASH = "import os\n\ndef test_crash():\n    os._exit(3)\n"
# Both processes are up before the tests are dealt out: the second gets some of these.
SECOND = """
import os, pytest

@pytest.mark.parametrize("n", range(80))
def test_second(n):
    assert os.environ["PYTEST_XDIST_WORKER"] != "gw1"
"""
WRONG = "def test_wrong():\n    assert 2 + 2 == 5\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project with tests of its own, which the gates take for theirs."""
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    monkeypatch.setattr(gates, "WORKERS", 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in [n for n in os.environ if n.startswith("PYTEST_")]:
        monkeypatch.delenv(name)
    ini = "[pytest]\naddopts = --strict-markers\nmarkers =\n    slow\n    book\n"
    (tmp_path / "pytest.ini").write_text(ini)
    (tmp_path / "test_fine.py").write_text(FINE)
    return tmp_path


@pytest.mark.slow
def test_all_run_once_in_two_processes(root, capfd):
    """Catches a test left out or run twice, and all of them in one process."""
    gates.tests_pass()
    assert "\n41 passed in" in capfd.readouterr().out
    assert {p.name for p in root.glob("seen-*")} == {"seen-gw0", "seen-gw1"}


def refused(capfd):
    """What the gate says, and how many tests failed and passed."""
    with pytest.raises(BookError, match="failed: pytest"):
        gates.tests_pass()
    said = capfd.readouterr().out
    counts = re.search(r"(\d+) failed, (\d+) passed", said).groups()
    return said, *map(int, counts)


@pytest.mark.slow
def test_what_fails_in_a_process_fails_the_gate(root, capfd):
    """Catches a failure that is lost between processes, or can't be read."""
    (root / "test_second.py").write_text(SECOND)
    (root / "test_wrong.py").write_text(WRONG)
    said, failed, passed = refused(capfd)
    assert "test_wrong.py::test_wrong - assert (2 + 2) == 5" in said
    assert "AssertionError: assert 'gw1' != 'gw1'" in said
    assert failed > 1 and failed + passed == 41 + 80 + 1


@pytest.mark.slow
def test_a_process_that_dies_fails_the_gate(root, capfd):
    """Catches a crash that nobody names, and tests that are lost with the process.

    Which process takes over from the dead one is left to chance.
    """
    (root / "test_crash.py").write_text(CRASH)
    said, failed, passed = refused(capfd)
    assert "crashed while running 'test_crash.py::test_crash'" in said
    assert (failed, passed) == (1, 41)  # the others ran all the same


@pytest.mark.slow
def test_what_cannot_be_read_fails_the_gate(root, capfd):
    """Catches a file of tests that is passed over because it can't be imported."""
    (root / "test_planted.py").write_text("import nothing_of_the_name")
    with pytest.raises(BookError, match="failed: pytest"):
        gates.tests_pass()
    assert "No module named 'nothing_of_the_name'" in capfd.readouterr().out


# --- the order, and the table ---------------------------------------------------------


def one_that_works():
    end = gates._cpu_seconds() + 0.02
    while gates._cpu_seconds() < end:
        pass


def one_that_fails():
    raise BookError("this is wrong")


def one_that_never_runs():
    raise AssertionError


def test_the_first_that_fails_ends_them_and_the_table_is_shown(
    monkeypatch, capsys, tmp_path
):
    """Catches a gate passed over, a failure swallowed by the table, no table."""
    monkeypatch.setattr(gates, "_tree", dict)
    monkeypatch.setattr(gates, "KEPT", tmp_path / "_build" / "gates.txt")
    with pytest.raises(BookError, match="no gate has run"):
        gates.timings()
    with pytest.raises(BookError, match="this is wrong"):
        gates.run([one_that_works, one_that_fails, one_that_never_runs])
    said = capsys.readouterr().out
    assert [line.split(" ")[:4] for line in said.splitlines()[-3:]] == [
        ["one", "that", "works", ""],
        ["one", "that", "fails", ""],
        ["in", "all", "", ""],
    ]
    assert "never" not in said and "passed" not in said
    assert said.endswith(gates.timings()) and "one that fails" in gates.timings()


def test_the_table_adds_up():
    """Catches columns exchanged, cores that are wall over CPU, a sum of one column."""
    taken = [gates.Taken("first", 10.0, 19.0), gates.Taken("second", 30.0, 21.0)]
    rows = [line.split() for line in gates.table(taken).splitlines()]
    assert rows == [
        ["wall", "CPU", "cores"],
        ["first", "10", "s", "19", "s", "1.9"],
        ["second", "30", "s", "21", "s", "0.7"],
        ["in", "all", "40", "s", "40", "s", "1.0"],
    ]
    assert gates.table([]).endswith("0 s       0 s    0.0")


def test_the_cpu_time_is_that_of_what_a_gate_starts():
    """Catches the time of the process that only waits for pytest."""
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    before = gates._cpu_seconds()
    gates._call("timeit", "-n", "1", "-r", "1", busy)
    assert gates._cpu_seconds() - before >= 0.4
