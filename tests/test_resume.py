"""Chapter 13: killed at any moment, a run goes on as if nothing had happened."""

import itertools
import os
import random
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

# Many small steps, a checkpoint after each: much of the time is spent in writing.
SCRIPT = """
import itertools, sys, torch
from flowbook.losses import cfm_loss
from flowbook.networks import MLP
from flowbook.schedules import OTPath
from flowbook.training import cosine_lr, train

torch.set_num_threads(1)
calls = itertools.count(1)

def loss(*points, **drawn):
    if next(calls) == 3:
        print("at work", flush=True)
    return cfm_loss(*points, **drawn)

torch.manual_seed(1)
model = MLP(2, width=256, depth=2)
data = torch.randn(50, 2, generator=torch.Generator().manual_seed(2))
print("ready", flush=True)
train(
    model, OTPath(), data, steps=int(sys.argv[2]), batch_size=8, loss=loss,
    lr=cosine_lr(1e-2, 400), clip=1.0, generator=torch.Generator().manual_seed(3),
    checkpoint_dir=sys.argv[1], checkpoint_every=int(sys.argv[3]), progress=False,
)
print("done", flush=True)
"""
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(folder: Path, steps: int, every: int) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(steps), str(every)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENV)
    assert run.stdout.readline() == "ready\n"
    return run


def finish(folder: Path, steps: int, every: int) -> dict:
    run = start(folder, steps, every)
    assert run.communicate()[0].endswith("done\n") and run.returncode == 0
    return load_checkpoint(folder / f"step-{steps:08d}.safetensors")


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def half_written(folder: Path) -> bool:
    return any(name.endswith(".part") for name in os.listdir(folder))


def test_kill_9(tmp_path):
    """Catches: half a file believed, a state not kept, a run that starts anew.

    Every other kill is at a random moment; the others come as soon as a file that is
    being written is seen, from outside.
    """
    steps = 400
    whole = finish(tmp_path / "whole", steps, steps)
    folder = tmp_path / "killed"
    folder.mkdir()
    moments, reached, torn = random.Random(4), [0], 0
    for attempt in range(8):
        run = start(folder, steps, 1)
        while max(checkpoints(folder), default=0) == reached[-1]:
            assert run.poll() is None
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.12))
        while attempt % 2 and not half_written(folder):
            assert run.poll() is None, "finished too early to be killed"
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL
        torn += half_written(folder)
        reached.append(max(checkpoints(folder)))
    assert all(a < b for a, b in itertools.pairwise(reached))
    assert torn >= 1
    assert same(finish(folder, steps, 1), whole)
    assert not half_written(folder)
    print(f"killed after steps {reached[1:]}, {torn} times in the middle of a write")


@pytest.mark.parametrize(
    ("number", "codes"),
    [(signal.SIGTERM, [143]), (signal.SIGINT, [1, -signal.SIGINT])],
)
def test_asked_to_stop(number, codes, tmp_path):
    """Catches: a request that loses the steps since the last checkpoint."""
    folder = tmp_path / "asked"
    run = start(folder, 10**6, 10**6)
    assert run.stdout.readline() == "at work\n"
    run.send_signal(number)
    run.communicate()
    assert run.returncode in codes
    (reached,) = checkpoints(folder)
    assert reached > 1
    stopped = load_checkpoint(folder / f"step-{reached:08d}.safetensors")
    again = finish(folder, reached + 5, 10**6)
    whole = finish(tmp_path / "whole", reached + 5, 10**6)
    assert same(again, whole)
    assert torch.equal(stopped["losses"], whole["losses"][:reached])
