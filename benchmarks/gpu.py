"""Record on a GPU what a CPU can't: `make gpu STAGE=tests|speed|images|table`.

    python -m benchmarks.gpu images --out results/gpu
    python -m benchmarks.gpu speed --device cpu --quick     a smoke test, of no value

It needs a Python with torch, accelerate and safetensors (tests: pytest; table, images:
scikit-learn and Pillow), no installed book and no network; Fashion-MNIST comes from
data/, where `make data` puts it. A stage takes less than ten minutes on one large card.
If it is cut off or its --minutes are spent, run it again: it goes on from what is kept.
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch

from .record import ROOT, WORK, Job, OutOfTime

STAGES = ("tests", "speed", "images", "table")
UNFINISHED = 75  # the exit status of "try again"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; to try the code: DEVICE=cpu QUICK=1")
        return 2
    if given.device == "cpu" and not given.quick:
        print("on a CPU only QUICK=1: a whole stage would take hours")
        return 2
    if given.quick and given.out.resolve() == ROOT / "results" / "gpu":
        given.out = given.work / "quick"  # never among the records
    job = Job(**vars(given))
    print(f"{job.stage} on {job.key['hardware']['name']}", flush=True)
    stage = importlib.import_module(f".stage_{job.stage}", __package__)
    try:
        stage.run(job)
    except OutOfTime as missing:
        print(f"the {job.minutes:g} minutes are spent before {missing}: run it again")
        return UNFINISHED
    return 0


if __name__ == "__main__":
    sys.exit(main())
