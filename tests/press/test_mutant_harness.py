"""The harness itself: a weak test lets a mutant live, a strong one does not."""

import contextlib
import os
import signal
import sys
import time
import types

import pytest

from tests import mutants

SOURCE = """
import torch
TABLE = (1.0, 2.0)

class Line:
    def __init__(self, a, b):
        self.a, self.b = a, b

    @property
    def slope(self):
        return -self.a

    def at(self, x):
        if x < 0 - 1:
            raise ValueError(f"x is {x - 1}")
        return TABLE[0] * self.b - self.a * x
"""


@pytest.fixture
def line(tmp_path, monkeypatch):
    path = tmp_path / "line_under_test.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield path.stem
    for name in ("line_under_test", "module_of_tests"):
        sys.modules.pop(name, None)


def module_with(*tests) -> str:
    module = types.ModuleType("module_of_tests")
    for test in tests:
        setattr(module, test.__name__, test)
    sys.modules["module_of_tests"] = module
    return "module_of_tests"


def test_a_strong_test_kills_every_mutant(line):
    """Catches a harness that reports dead mutants as survivors."""

    def test_values():
        from line_under_test import Line

        assert Line(3.0, 5.0).at(2.0) == -1.0 and Line(3.0, 5.0).slope == -3.0

    dead, survivors, _ = mutants.examine(line, module_with(test_values), {})
    changes = [(m.function, m.change) for m in survivors]
    # TABLE[1] is in no formula, and 1.0 * b is b: both are honest survivors.
    assert changes == [
        ("Line.at", "TABLE[0] * self.b -> self.b"),
        ("", "2.0 -> 2.25"),
    ]
    assert dead > 5


def test_a_weak_test_lets_them_live(line):
    """Catches a harness that would call every mutant dead."""

    def test_that_it_runs():
        from line_under_test import Line

        assert Line(3.0, 5.0).at(0.0) and Line(3.0, 5.0).slope

    _, survivors, _ = mutants.examine(line, module_with(test_that_it_runs), {})
    assert ("Line.slope", "-self.a -> self.a") in [
        (m.function, m.change) for m in survivors
    ]


def test_the_code_is_put_back(line):
    """Catches a mutant that stays in place and poisons the next."""

    def test_nothing():
        from line_under_test import Line

        Line(3.0, 5.0).at(2.0)

    mutants.examine(line, module_with(test_nothing), {})
    from line_under_test import TABLE, Line

    assert Line(3.0, 5.0).at(2.0) == -1.0 and TABLE == (1.0, 2.0)


def test_validations_and_messages_are_left_alone():
    """Catches mutants of what only refuses: they belong to the bad-input tests."""
    changes = [m.change for m in mutants.mutants("m", SOURCE)]
    assert not any("x - 1" in c or "0 - 1" in c for c in changes)


def test_a_test_that_fails_when_run_again_is_refused(line):
    """Catches a test that leaves something behind, and so would kill every mutant."""
    runs = []

    def test_once():
        from line_under_test import Line

        runs.append(Line(3.0, 5.0).at(2.0))
        assert len(runs) == 1

    with pytest.raises(RuntimeError, match="module_of_tests fails the second time"):
        mutants.examine(line, module_with(test_once), {})


@pytest.mark.parametrize("times", [1, 2])
def test_a_proof_is_given_up_for_a_test_that_fails_twice(line, capsys, times):
    """Catches a stale proof that is kept; one lost to a test that fails by chance."""
    runs = []

    def test_that_fails_at_times():
        from line_under_test import Line

        assert Line(3.0, 5.0).at(2.0) and Line(3.0, 5.0).slope
        runs.append(1)
        assert len(runs) not in failing, "by chance"

    key = (line, "Line.at", "self.a * x -> x")
    tests = module_with(test_that_fails_at_times)
    failing = ()
    order = [(m.function, m.change) for m in mutants.examine(line, tests, {})[1]]
    place = order.index(key[1:]) + 3  # after the two without a change
    runs, failing = [], range(place, place + times)
    _, survivors, excused = mutants.examine(line, tests, {key: "a proof"})
    assert (excused == {key}) == (times == 1)
    assert len(survivors) == len(order) - 1
    said = capsys.readouterr().err
    assert ("Line.at | self.a * x -> x is told by" in said) == (times == 2)
    assert ("AssertionError: by chance" in said) == (times == 2)


# --- time ----------------------------------------------------------------------------


def module_of_source(tmp_path, monkeypatch, source: str) -> str:
    (tmp_path / "loop_under_test.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "loop_under_test", raising=False)
    return "loop_under_test"


def test_a_busy_machine_kills_nothing(line, monkeypatch):
    """Catches a limit on the wall clock: a test that waits its turn is not too slow."""
    monkeypatch.setattr(mutants, "FLOOR", 0.05)

    def test_that_it_runs_at_last():
        from line_under_test import Line

        time.sleep(0.2)  # as where other processes have the CPU
        assert Line(3.0, 5.0).at(0.0) and Line(3.0, 5.0).slope

    tests = module_with(test_that_it_runs_at_last)
    _, survivors, _ = mutants.examine(line, tests, {})
    assert ("Line.slope", "-self.a -> self.a") in [
        (m.function, m.change) for m in survivors
    ]


def test_an_endless_loop_is_dead(tmp_path, monkeypatch):
    """Catches a harness that a mutant can stop for ever, and a hidden time-out."""
    source = "def down(k):\n    while k > 0:\n        k = k - 1\n    return k\n"
    name = module_of_source(tmp_path, monkeypatch, source)
    monkeypatch.setattr(mutants, "FLOOR", 0.1)

    def test_that_hides_what_it_meets():
        from loop_under_test import down

        with contextlib.suppress(Exception):
            down(3)

    dead, survivors, _ = mutants.examine(
        name, module_with(test_that_hides_what_it_meets), {}
    )
    assert [m.change for m in survivors] == ["k - 1 -> 1 - k", "k - 1 -> k - 2"]
    assert dead == 1


def test_waiting_for_ever_is_an_error_and_no_death(tmp_path, monkeypatch):
    """Catches a harness that hangs on a deadlock, or counts it as a dead mutant."""
    source = "import time\n\n\ndef rest(a):\n    time.sleep(a - a)\n"
    name = module_of_source(tmp_path, monkeypatch, source)
    monkeypatch.setattr(mutants, "PATIENCE", 0.5)

    def test_rest():
        from loop_under_test import rest

        rest(10_000.0)

    with pytest.raises(
        RuntimeError, match=r"rest \| a - a -> a \+ a: .*test_rest.*waits"
    ):
        mutants.examine(name, module_with(test_rest), {})


def test_what_computes_does_not_wait(monkeypatch):
    """Catches a patience that ends while a test still computes."""
    monkeypatch.setattr(mutants, "PATIENCE", 0.05)
    # For 0.05 s a busy machine may run something else only: no CPU time is enough here.
    monkeypatch.setattr(mutants, "IDLE", 0.0)

    def test_that_computes():
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass

    assert not mutants.killer({test_that_computes: 10.0})


# --- more than one process ------------------------------------------------------------


def work(name: str) -> str:
    """What the processes below do with a name."""
    if name == "dies":
        os._exit(1)
    if name == "fails":
        raise RuntimeError("it waits")
    return f"{name}, in the main thread: {signal.getsignal(signal.SIGPROF) is not None}"


@pytest.mark.slow
def test_each_name_is_worked_on_in_order_and_a_crash_is_named():
    """Catches work lost with its process, an error without its name, another order."""
    names = ["a", "dies", "b", "fails", "c", "d"]
    found = dict(mutants.shared(work, names, 2))
    assert list(found) == names
    for name in "abcd":
        assert found[name] == work(name)
    assert "killed, or crashed" in str(found["dies"])
    assert "RuntimeError: it waits" in str(found["fails"])


def told(monkeypatch, capsys, **verdicts) -> tuple[int, str]:
    """The exit code and the words of the command, given what becomes of the modules."""
    monkeypatch.setattr(mutants, "shared", lambda *_: iter(verdicts.items()))
    monkeypatch.setattr(mutants, "known_equivalent", lambda: {("flowbook.b", "f"): ""})
    monkeypatch.setattr(sys, "argv", ["mutants", *verdicts])
    return mutants.main(), capsys.readouterr().out


DEAD = mutants.Verdict(3, (), frozenset(), 1.0)
ALIVE = mutants.Verdict(3, ("f: a + b -> a - b",), frozenset(), 1.0)
EXCUSED = mutants.Verdict(3, (), frozenset({("flowbook.b", "f")}), 1.0)


@pytest.mark.parametrize(
    ("verdicts", "code", "said"),
    [
        ({"a": DEAD, "b": EXCUSED}, 0, "mutants: 6 killed, 0 survived"),
        ({"b": EXCUSED, "a": ALIVE}, 1, "\n  survived: f: a + b -> a - b\n"),
        ({"a": DEAD, "b": DEAD}, 1, "but dead or gone: flowbook.b | f"),
        ({"a": mutants.Crashed("it crashed"), "b": EXCUSED}, 1, "a: no verdict: it cr"),
        ({"a": mutants.Verdict(0, (), frozenset(), 1.0)}, 1, "mutants: 0 killed"),
    ],
    ids=["dead", "a survivor", "stale", "a crash", "none at all"],
)
def test_one_module_without_a_clean_verdict_fails_all(
    monkeypatch, capsys, verdicts, code, said
):
    """Catches a survivor, a stale excuse or a crash that another process hides."""
    found, words = told(monkeypatch, capsys, **verdicts)
    assert found == code and said in words


def test_every_module_with_tests_is_examined():
    """Catches a module that is left out when the work is shared."""
    here = {
        p.stem.removeprefix("test_")
        for p in (mutants.ROOT / "tests" / "flowbook").glob("test_*")
    }
    package = {p.stem for p in (mutants.ROOT / "flowbook").glob("*.py")}
    assert sorted(mutants.modules()) == sorted(here & package)
    assert len(mutants.modules()) > 25
