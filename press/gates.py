"""The gates, in order: one command here and in CI. The tree is the same afterwards."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import BUILD, PACKAGE, ROOT, WORKERS
from .errors import BookError

Gate = Callable[[], None]
KEPT = BUILD / "gates.txt"  # what they took when they ran last


def _call(*command: str | Path) -> None:
    """Run a command in the root; raise BookError with its name if it fails."""
    # One thread: small tensors gain nothing from more, and a busy machine loses much.
    alone = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=alone)
    if done.returncode:
        raise BookError(f"failed: {' '.join(map(str, command))}")


def _tests(marks: str) -> None:
    """Run the tests with these marks, a process a core: each takes over from the other.

    Not `loadfile`, which waits for the longest file, and starts a test that crashes
    its process again in the next, and the next.
    """
    _call("pytest", "-q", "-n", str(WORKERS), "--dist", "worksteal", "-m", marks)


def notebooks_are_clean() -> None:
    """No outputs, no stray metadata, the Colab cell and the README up to date."""
    from . import notebooks, stamp

    dirty = [p.name for p in notebooks.clean(check=True)]
    if dirty:
        raise BookError(f"not clean: {', '.join(dirty)}; run `make clean-notebooks`")
    stale = stamp.stamp_all(check=True)
    if stale:
        names = ", ".join(str(s) for s in stale)
        raise BookError(f"not what settings.ini says: {names}; run `make export`")


def export_leaves_no_diff() -> None:
    """The package is what the notebooks export, and nothing is left over."""
    from . import notebooks

    before = _contents(PACKAGE)
    notebooks.export()
    changed = sorted(k for k in before.items() ^ _contents(PACKAGE).items())
    if changed:
        names = sorted({name for name, _ in changed})
        raise BookError(f"the package was not what the notebooks export: {names}")


def ruff_is_content() -> None:
    _call("ruff", "check", ".")
    _call("ruff", "format", "--check", ".")


def unit_tests_pass() -> None:
    _tests("not slow and not book")


def tests_pass() -> None:
    _tests("not book")


def mutants_die() -> None:
    _call("tests.mutants")


def book_builds() -> None:
    """Each notebook runs once, from the wheel; warnings of Sphinx are errors."""
    from . import build

    build.book()


def book_works_in_a_browser() -> None:
    from . import browser

    browser.find()  # if one has to be installed, then once
    _tests("book")


QUICK = [notebooks_are_clean, export_leaves_no_diff, ruff_is_content, unit_tests_pass]
ALL = [
    *QUICK[:3],
    tests_pass,
    mutants_die,
    book_builds,
    book_works_in_a_browser,
]


@dataclass(frozen=True)
class Taken:
    """What a gate took, in seconds: on the wall, and of all processes' CPU time."""

    name: str
    wall: float
    cpu: float


def run(gates: list[Gate]) -> None:
    """Run the gates in order, stop at the first that fails, say what each took."""
    before, taken = _tree(), []
    try:
        for gate in gates:
            name = gate.__name__.replace("_", " ")
            print(f"== {name}", flush=True)
            wall, cpu = time.perf_counter(), _cpu_seconds()
            try:
                gate()
            finally:
                wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
                taken.append(Taken(name, wall, cpu))
    finally:
        told = table(taken)
        print(told, flush=True)
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(told + "\n")
    if _tree() != before:
        raise BookError(f"the gates changed the tree:\n{_status()}")
    if os.environ.get("CI") and _status():
        raise BookError(f"the tree is not clean:\n{_status()}")
    print(f"all {len(gates)} gates passed")


def timings() -> str:
    """The table of the last run. Raises BookError if none ran here."""
    if not KEPT.exists():
        raise BookError("no gate has run in this copy yet: `make check` or `make test`")
    return KEPT.read_text()


def _cpu_seconds() -> float:
    """The CPU time of this process and of those it started that have ended."""
    return sum(os.times()[:4])


def table(taken: list[Taken]) -> str:
    """A line a gate, and one for all; the last column says how many cores it kept busy.

    No gate fails for it: on a machine that does other work the wall's seconds grow.
    """
    wall, cpu = sum(t.wall for t in taken), sum(t.cpu for t in taken)
    lines = [f"{'':30}{'wall':>8}{'CPU':>10}{'cores':>7}"]
    for t in (*taken, Taken("in all", wall, cpu)):
        cores = t.cpu / t.wall if t.wall else 0.0
        lines.append(f"{t.name:30}{t.wall:6.0f} s{t.cpu:8.0f} s{cores:7.1f}")
    return "\n".join(lines)


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    }


def _status() -> str:
    command = ["git", "status", "--porcelain"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def _tree() -> dict[str, str]:
    """The contents of every file that git tracks or would."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()
    }
