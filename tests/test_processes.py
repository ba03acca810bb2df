"""Chapter 13b: several processes take the same steps as one (gloo, on CPUs)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from book.settings import ROOT
from flowbook.checkpoints import checkpoints, load_checkpoint

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, sys, torch
from flowbook.losses import cfm_loss
from flowbook.networks import MLP
from flowbook.schedules import OTPath
from flowbook.training import train

torch.set_num_threads(1)
folder, steps, batch_size, dtype = sys.argv[1:5]
dtype = getattr(torch, dtype)
rank = int(os.environ.get("RANK", 0))
torch.manual_seed(rank)  # the first process's weights are everybody's
model = MLP(2, width=16, depth=2).to(dtype)
data = torch.randn(20, 2, generator=torch.Generator().manual_seed(2), dtype=dtype)
seen = []

def loss(field, path, x1, *, t, x0):
    seen.append([(data == x).all(1).nonzero().item() for x in x1])
    if len(seen) == 3:
        os.makedirs(folder, exist_ok=True)
        open(f"{folder}/at-work-{rank}", "w").close()
    return cfm_loss(field, path, x1, t=t, x0=x0)

seed = 3 if len(sys.argv) < 6 else int(sys.argv[5]) + rank
run = train(
    model, OTPath(), data, steps=int(steps), batch_size=int(batch_size), lr=1e-2,
    clip=1.0, generator=torch.Generator().manual_seed(seed), loss=loss,
    checkpoint_dir=folder, progress=False,
)
with open(f"{folder}/seen-{rank}.json", "w") as file:
    json.dump(seen, file)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(processes: int, place: Path, *arguments) -> list[str]:
    script = place.parent / "script.py"
    script.write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    many = [*launch, str(processes)] if processes > 1 else []
    return [sys.executable, *many, str(script), str(place), *map(str, arguments)]


def trained(processes: int, place: Path, steps: int, *rest) -> dict:
    """The last checkpoint of a run."""
    line = command(processes, place, steps, *rest)
    done = subprocess.run(line, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_checkpoint(place / f"step-{steps:08d}.safetensors")


def furthest(a: dict, b: dict) -> float:
    """The largest difference of weights, averages and losses."""
    gaps = [(a["losses"] - b["losses"]).abs().max().item()]
    for part in ("model", "ema"):
        gaps += [(a[part][n] - b[part][n]).abs().max().item() for n in a[part]]
    return max(gaps)


def test_two_take_the_steps_of_one(tmp_path):
    """Catches: noise or order of a process's own, gradients summed, a point twice."""
    one = trained(1, tmp_path / "one", 30, 8, "float64")
    two = trained(2, tmp_path / "two", 30, 8, "float64")
    assert furthest(one, two) < 1e-12
    seen = [json.loads((tmp_path / f"two/seen-{r}.json").read_text()) for r in (0, 1)]
    (alone,) = [json.loads((tmp_path / "one/seen-0.json").read_text())]
    assert [a + b for a, b in zip(*seen, strict=True)] == alone
    for epoch in range(15):  # two batches of 8 of 20 points
        dealt = alone[2 * epoch] + alone[2 * epoch + 1]
        assert len(set(dealt)) == 16
    # from two to one, and from one to two
    resumed = trained(1, tmp_path / "two", 40, 8, "float64")
    whole = trained(2, tmp_path / "one", 40, 8, "float64")
    assert furthest(resumed, whole) < 1e-12


def test_in_single_precision(tmp_path):
    """Catches: shares that are rounded to less than their own dtype.

    Each step adds at most the rounding of a gradient, which Adam turns into a change
    of a step by at most lr times its relative error, taken here as 2⁻²⁴ times the 2 · 8
    terms of a sum; small components of a gradient can lose all their digits, though:
    for those the bound is a whole step, lr, for 1 % of the 10 steps.
    """
    one = trained(1, tmp_path / "one", 10, 8, "float32")
    two = trained(2, tmp_path / "two", 10, 8, "float32")
    assert furthest(one, two) < 1e-2 * 10 * (16 * 2**-24 + 0.01)


def test_the_first_process_decides(tmp_path):
    """Catches: processes with generators of their own that draw apart."""
    one = trained(1, tmp_path / "one", 8, 8, "float64", 5)
    two = trained(2, tmp_path / "two", 8, 8, "float64", 5)
    assert furthest(one, two) < 1e-12


def test_a_batch_that_cannot_be_shared(tmp_path):
    """Catches: unequal shares, which weigh some points more."""
    line = command(2, tmp_path / "odd", 3, 7, "float64")
    done = subprocess.run(line, env=ENV, capture_output=True, text=True)
    assert done.returncode != 0
    assert "must be divisible by their number, 2, got 7" in done.stderr


def test_all_stop_at_one_step(tmp_path):
    """Catches: one process that stops while the other waits for it for ever."""
    place = tmp_path / "asked"
    line = command(2, place, 10**6, 8, "float64")
    run = subprocess.Popen(line, env=ENV, stderr=subprocess.DEVNULL)
    while not all((place / f"at-work-{rank}").exists() for rank in (0, 1)):
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=40) != 0
    reached = max(checkpoints(place))
    stopped = load_checkpoint(place / f"step-{reached:08d}.safetensors")
    whole = trained(1, tmp_path / "whole", reached, 8, "float64")
    assert torch.equal(
        stopped["optimiser"]["state"][0]["step"], torch.tensor(float(reached))
    )
    assert furthest(stopped, whole) < 1e-10
