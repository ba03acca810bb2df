"""Record on a CPU what is too long for a page: `make record STAGE=moons`.

    python -m benchmarks.cpu moons             curves that a page draws, results/cpu
    python -m benchmarks.cpu digits --quick           a smoke test, of no value

It needs what `benchmarks.gpu` needs (digits: scikit-learn), and an hour or less of one
core for each stage. Cut off, it goes on from the finished parts when it is run again.
"""

import argparse
import importlib
import sys
from pathlib import Path

from .record import ROOT, Job

STAGES = ("ring", "moons", "checkerboard", "digits")
RESULTS = ROOT / "results" / "cpu"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    if given.quick and given.out.resolve() == RESULTS:
        given.out = ROOT / "_build" / "cpu" / "quick"  # never among the records
    stage = importlib.import_module(".stage_curves", __package__)
    # a later change of another chapter does not make these parts another run's
    code = [m.__file__ for name, m in [*sys.modules.items()] if _counts(name)]
    job = Job(
        given.stage,
        "cpu",
        given.quick,
        given.out,
        minutes=float("inf"),
        code=tuple(map(Path, code)),
        target="record",
    )
    print(f"{job.stage} on {job.key['hardware']['name']}", flush=True)
    stage.run(job)
    return 0


def _counts(name: str) -> bool:
    """Whether a module that is loaded is of the package, or one of these tools."""
    ours = ("benchmarks.cpu", "benchmarks.record", "benchmarks.stage_curves")
    return name.startswith("flowbook.") or name in ours


if __name__ == "__main__":
    sys.exit(main())
