"""The gates, in order: one command here and in CI. The tree is the same afterwards."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import PACKAGE, ROOT
from .run import BookError

Gate = Callable[[], None]


def _call(*command: str | Path) -> None:
    """Run a command in the root; raise BookError with its name if it fails."""
    # One thread: small tensors gain nothing from more, and a busy machine loses much.
    alone = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=alone)
    if done.returncode:
        raise BookError(f"failed: {' '.join(map(str, command))}")


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
    _call("pytest", "-q", "-m", "not slow and not book")


def tests_pass() -> None:
    _call("pytest", "-q", "-m", "not book")


def mutants_die() -> None:
    _call("tests.mutants")


def book_builds() -> None:
    """Each notebook runs once, from the wheel; warnings of Sphinx are errors."""
    from .__main__ import book

    book()


def book_works_in_a_browser() -> None:
    _call("pytest", "-q", "-m", "book")


QUICK = [notebooks_are_clean, export_leaves_no_diff, ruff_is_content, unit_tests_pass]
ALL = [
    *QUICK[:3],
    tests_pass,
    mutants_die,
    book_builds,
    book_works_in_a_browser,
]


def run(gates: list[Gate]) -> None:
    """Run the gates in order and stop at the first that fails."""
    before = _tree()
    for gate in gates:
        start = time.perf_counter()
        name = gate.__name__.replace("_", " ")
        print(f"== {name}", flush=True)
        gate()
        print(f"   {time.perf_counter() - start:.0f} s", flush=True)
    if _tree() != before:
        raise BookError(f"the gates changed the tree:\n{_status()}")
    if os.environ.get("CI") and _status():
        raise BookError(f"the tree is not clean:\n{_status()}")
    print(f"all {len(gates)} gates passed")


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
