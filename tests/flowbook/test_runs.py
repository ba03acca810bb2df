"""What a checkpoint holds of a run, and whose it is.

The second half kills training runs at any moment: they go on as if nothing had
happened.
"""

import copy
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from flowbook import runs
from flowbook.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from flowbook.runs import (
    Checkpointer,
    RunState,
    configuration,
    latest_for_all,
    require_same_run,
)

from ..folders import folder
from ..given import F64
from ..runs import ENV


class Scaler:
    """Stands in for the scaler of float16: one number."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def state_dict(self):
        return {"scale": self.scale}

    def load_state_dict(self, tree):
        self.scale = tree["scale"]


def begun(steps=9, scaler=None, seed=0) -> RunState:
    """A run before its first step, with buffers and a frozen weight."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    model[2].bias.requires_grad_(False)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = torch.zeros(steps, dtype=F64)
    return RunState(model, average, adam, losses, scaler)


def take(state: RunState, last: int) -> RunState:
    """The steps up to `last`, each a function of its number and the state."""
    g = torch.Generator()
    for step in range(state.done, last):
        x = torch.randn(5, 3, generator=g.manual_seed(step), dtype=F64)
        loss = state.model(x).square().mean()
        state.optimiser.zero_grad()
        loss.backward()
        state.optimiser.step()
        with torch.no_grad():
            for name, weight in state.model.named_parameters():
                state.averages[name].lerp_(weight, 0.25)
        state.losses[step], state.done = loss.detach(), step + 1
    return state


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_state_goes_on():
    """Catches a part that is not kept, or is put elsewhere."""
    tree = copy.deepcopy(take(begun(), 4).to_tree())
    assert tree["step"] == 4 and tree["losses"].shape == (4,)
    other = begun(seed=1)
    here = {name: x.data_ptr() for name, x in other.model.state_dict().items()}
    other.load_tree(tree)
    assert same(other.to_tree(), tree)
    assert same(take(other, 9).to_tree(), take(begun(), 9).to_tree())
    there = {name: x.data_ptr() for name, x in other.model.state_dict().items()}
    assert here == there  # what points at the weights still does


def test_a_weight_that_is_one_number():
    """Catches adam's count of steps taken for an average, or the other way round."""

    def scalar():
        model = nn.ParameterList([nn.Parameter(torch.ones((), dtype=F64))])
        adam = torch.optim.Adam(model.parameters())
        average = copy.deepcopy(model).requires_grad_(False)
        return RunState(model, average, adam, torch.zeros(3))

    state, other = scalar(), scalar()
    state.model[0].square().backward()
    state.optimiser.step()
    tree = copy.deepcopy(state.to_tree())
    other.load_tree(copy.deepcopy(tree))
    assert same(other.to_tree(), tree)


def test_a_scaler_is_kept():
    """Catches float16 that begins again with its largest scale."""
    tree = begun(scaler=Scaler(8.0)).to_tree()
    assert tree["scaler"] == {"scale": 8.0} and begun().to_tree()["scaler"] is None
    state = begun(scaler=Scaler())
    state.load_tree({**tree, "scaler": None})
    assert state.scaler.scale == 1
    state.load_tree(tree)
    assert state.scaler.scale == 8
    begun().load_tree(tree)


def test_the_average_has_the_models_buffers():
    """Catches statistics of a normalisation that stay as they began."""
    state = take(begun(), 3)
    assert state.model[1].running_mean.abs().min() > 0
    found = state.gather()
    assert found is state.average
    assert torch.equal(found[1].running_mean, state.model[1].running_mean)
    assert not torch.equal(found[0].weight, state.model[0].weight)


@pytest.mark.parametrize("part", ["model", "ema", "optimiser"])
def test_a_tensor_of_another_shape(part):
    """Catches a row that is broadcast over a matrix."""
    tree = copy.deepcopy(take(begun(), 2).to_tree())
    if part == "optimiser":
        tree[part]["state"][0]["exp_avg"] = torch.zeros(3, dtype=F64)
        with pytest.raises(RuntimeError):
            take(loaded(tree), 3)
    else:
        tree[part]["0.weight"] = torch.zeros(3, dtype=F64)
        with pytest.raises(ValueError, match=r"of shape \(4, 3\), got \(3,\)"):
            loaded(tree)


def loaded(tree: dict) -> RunState:
    state = begun()
    state.load_tree(tree)
    return state


def test_weights_in_parts():
    """Catches an average of the whole beside its parts; a part saved.

    One process holds all the parts: two of them are in test_distributed.py.
    """
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model = nn.Linear(3, 2, bias=False).double()
        model.register_buffer("scale", torch.tensor(3.0))
        average = copy.deepcopy(model).requires_grad_(False)
        kept = model.weight.detach().clone()
        model.weight = nn.Parameter(distribute_tensor(kept, mesh, [Shard(0)]))
        adam = torch.optim.Adam(model.parameters())
        state = RunState(model, average, adam, torch.zeros(3))
        part = state.averages["weight"]
        assert isinstance(part, DTensor) and not part.requires_grad
        with torch.no_grad():
            part.mul_(2)
        assert average.weight.is_meta and average.scale.is_meta
        other = copy.deepcopy(state.to_tree(kept=False))
        assert other["model"] == {"weight": None, "scale": None} == other["ema"]
        tree = copy.deepcopy(state.to_tree())
        assert average.weight.is_meta  # a save puts together one tensor at a time
        assert type(tree["model"]["weight"]) is torch.Tensor
        assert torch.equal(tree["ema"]["weight"], 2 * kept)
        assert tree["ema"]["scale"] == tree["model"]["scale"] == 3
        Checkpointer(None, {}).require_finite(state)
        with torch.no_grad():
            part.zero_()
            model.weight.fill_(math.nan)
        with pytest.raises(FloatingPointError, match="weights after step -1"):
            Checkpointer(None, {}).require_finite(state)
        state.load_tree(tree)
        for _ in range(2):
            assert torch.equal(state.gather().weight, 2 * kept)
        assert state.gather() is average and average.scale == 3
        assert torch.equal(model.weight.full_tensor(), kept)
    finally:
        torch.distributed.destroy_process_group()


def test_tied_weights_in_parts():
    """Catches an average that forgets, on its way over meta, which weights are one."""
    from torch.distributed.tensor import Shard, distribute_tensor

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        average = copy.deepcopy(model).requires_grad_(False)
        kept = model[0].weight.detach().clone()
        part = nn.Parameter(distribute_tensor(kept, mesh, [Shard(0)]))
        model[0].weight = model[1].weight = part
        adam = torch.optim.Adam(model.parameters())
        state = RunState(model, average, adam, torch.zeros(3))
        with torch.no_grad():
            state.averages["0.weight"].mul_(2)
        for layer in state.gather():
            assert torch.equal(layer.weight, 2 * kept)
    finally:
        torch.distributed.destroy_process_group()


def test_whatever_stops_a_save_is_told_to_all():
    """Catches a writer that leaves by an error nobody thought of; the others wait."""
    said = []

    class Two:
        is_main_process, num_processes, device = True, 2, "cpu"

        def reduce(self, tensor):
            said.append(tensor.item())
            return tensor

    def no_memory(*_):
        raise MemoryError("three copies")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowbook.runs.save_checkpoint", no_memory)
        with pytest.raises(MemoryError, match="three copies"):
            Checkpointer("nowhere", {}, Two()).save(begun())
    assert said == [0, 1]  # the weights are well, the file isn't


# --- whose it is ---------------------------------------------------------------------


class Straight:
    """A path that prints as Python makes it, with its address."""


def test_a_configuration_is_what_json_holds():
    """Catches addresses, functions, shapes as tuples, which differ when read back."""
    settings = {"lr": math.sin, "batch_size": 4, "seeds": [1, 2]}
    found = configuration(nn.Linear(3, 2), Straight(), settings)
    assert found == json.loads(json.dumps(found))
    assert found.pop("path").endswith("Straight object>")
    assert found == {
        "lr": "a function",
        "batch_size": 4,
        "seeds": [1, 2],
        "the shape of weight": [2, 3],
        "the shape of bias": [2],
    }


def test_what_differs_is_named():
    """Catches ours for theirs; a name that only one of them has; a page of names."""
    ours = {name: 1 for name in "abcdefg"}
    require_same_run(dict(ours), ours, Path("there"))
    with pytest.raises(ValueError, match=r"^there is .* \(b: 2 there, 1 here\): give"):
        require_same_run({**ours, "b": 2}, ours, Path("there"))
    with pytest.raises(
        ValueError, match=r"\(a: None there, 1 here; z: 3 there, None h"
    ):
        require_same_run({"z": 3}, {"a": 1}, Path("there"))
    with pytest.raises(ValueError, match=r"\(a: .*; e: 2 there, 1 here\)"):
        require_same_run(dict.fromkeys(ours, 2), ours, Path("there"))


def test_saved_and_resumed():
    """Catches a file without its configuration, a step that is one off."""
    where, config = folder(), {"lr": 0.1}
    keeper = Checkpointer(where, config)
    assert keeper.kept() == ""
    keeper.save(take(begun(), 4))
    keeper.save(take(begun(), 6))
    assert keeper.kept() == "The checkpoint of step 6 is kept. "
    found = latest_for_all(First(), where)
    assert found[0].name == "step-00000006.safetensors"
    assert found[1]["config"] == config and found[1]["step"] == 6
    state = begun(seed=1)
    keeper.resume(state, found)
    assert same(take(state, 9).to_tree(), take(begun(), 9).to_tree())
    with pytest.raises(ValueError, match=r"lr: 0\.1 there, 0\.2 here"):
        Checkpointer(where, {"lr": 0.2}).resume(begun(), found)
    keeper.resume(begun(steps=6), latest_for_all(First(), where))
    with pytest.raises(
        ValueError, match=r"06\.safetensors is past the 5 steps asked for"
    ):
        keeper.resume(begun(steps=5), found)


def test_weights_with_two_names():
    """Catches of weights that two layers share, an average under one name only."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    model[1].weight = model[0].weight
    average = copy.deepcopy(model).requires_grad_(False)
    adam = torch.optim.Adam(model.parameters())
    state = RunState(model, average, adam, torch.zeros(1))
    with torch.no_grad():
        state.averages["0.weight"].fill_(3)
    tree = state.to_tree()
    assert tree["ema"].keys() == tree["model"].keys() == model.state_dict().keys()
    assert (tree["ema"]["0.weight"] == 3).all() and (tree["ema"]["1.weight"] == 3).all()
    assert not (tree["model"]["1.weight"] == 3).any()


class OneOfTwo:
    """Stands in for accelerate in one of two processes; the other says `said`."""

    num_processes, device = 2, "cpu"

    def __init__(self, first, *said):
        self.is_main_process, self.said = first, [*said]

    def reduce(self, tensor):
        return tensor + self.said.pop(0)


def test_who_writes():
    """Catches two processes that write one file; one that doesn't put its part in."""
    where, state, asked = folder(), begun(), []
    to_tree = state.to_tree
    state.to_tree = lambda kept: asked.append(kept) or to_tree(kept=kept)
    Checkpointer(where, {}, OneOfTwo(False, 0, 0)).save(state)
    assert asked == [False] and not checkpoints(where)
    Checkpointer(None, {}).save(state)
    assert asked == [False] and Checkpointer(None, {}).kept() == ""
    Checkpointer(where, {}, OneOfTwo(True, 0, 0)).save(state)
    Checkpointer(where, {}).save(take(begun(), 2))
    assert asked == [False, True] and [*checkpoints(where)] == [0, 2]


def test_one_that_cannot_go_on():
    """Catches a process that raises alone, while the others wait for it for ever."""
    where, state = folder(), begun()
    state.done = 4
    with pytest.raises(FloatingPointError, match="weights after step 3"):
        Checkpointer(where, {}, OneOfTwo(True, 1)).save(
            state
        )  # the other's part is spoilt
    with pytest.raises(OSError, match="the first process couldn't write"):
        Checkpointer(where, {}, OneOfTwo(False, 0, 1)).save(state)
    with pytest.raises(TypeError, match="can't hold"):
        first = OneOfTwo(True, 0, 0)
        Checkpointer(where, {"path": object()}, first).save(state)
    assert not first.said and not checkpoints(where)  # it has told the other


def test_a_tree_of_something_else():
    """Catches a KeyError, deep inside, for a checkpoint that no run has written."""
    where, tree = folder(), begun().to_tree()
    for other in ({**tree}, {"config": {}, "weights": torch.ones(2)}, [torch.ones(2)]):
        save_checkpoint(where, 3, other)
        with pytest.raises(ValueError, match=r"03\.safetensors is no checkpoint"):
            latest_for_all(First(), where)
    with pytest.raises(ValueError, match=r"it lacks \['config'\]: give another"):
        save_checkpoint(where, 3, tree)
        latest_for_all(First(), where)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite(bad):
    """Catches a good checkpoint pushed out by a spoilt one; infinity let pass."""
    where, state = folder(), take(begun(), 4)
    keeper = Checkpointer(where, {})
    keeper.save(state)
    state.done = 7
    nn.init.constant_(state.model[2].bias, bad)
    with pytest.raises(
        FloatingPointError, match=r"weights after step 6 are .* of step 4 is kept\. A"
    ):
        keeper.save(state)
    assert [*checkpoints(where)] == [4]


class First:
    """Stands in for accelerate, as the first process sees it."""

    is_main_process = True


class Second:
    is_main_process = False


def test_the_first_process_chooses():
    """Catches a file that another process finds by itself; no folder at all."""
    where = folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "broadcast_from_rank0", lambda value: value)
        assert latest_for_all(First(), None) is None
        assert latest_for_all(First(), where) is None
        for step in (2, 4):
            Checkpointer(where, {}).save(take(begun(), step))
        assert latest_for_all(First(), where)[1]["step"] == 4
        patch.setattr(
            runs,
            "broadcast_from_rank0",
            lambda value: chosen if value is None else 1 / 0,
        )
        chosen = where / "step-00000002.safetensors"
        path, tree = latest_for_all(Second(), where)
        assert path == chosen and tree["step"] == 2
        chosen = None
        assert latest_for_all(Second(), where) is None


# --- killed --------------------------------------------------------------------------

slow = pytest.mark.slow

# Many small steps, a checkpoint after each: much of the time is spent in writing.
SCRIPT = """
import itertools, sys, torch
from flowbook.losses import cfm_loss
from flowbook.networks import MLP
from flowbook.paths import OTPath
from flowbook.training import CosineLR, train

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
    lr=CosineLR(1e-2, 400), clip=1.0, generator=torch.Generator().manual_seed(3),
    checkpoint_dir=sys.argv[1], checkpoint_every=int(sys.argv[3]), progress=False,
)
print("done", flush=True)
"""


def start(folder: Path, steps: int, every: int) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(steps), str(every)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENV)
    assert run.stdout.readline() == "ready\n"
    return run


def finish(folder: Path, steps: int, every: int) -> dict:
    run = start(folder, steps, every)
    assert run.communicate()[0].endswith("done\n") and run.returncode == 0
    return load_checkpoint(folder / f"step-{steps:08d}.safetensors")


def half_written(folder: Path) -> bool:
    return any(name.endswith(".part") for name in os.listdir(folder))


@slow
def test_kill_9(tmp_path):
    """Catches half a file believed, a state not kept, a run that starts anew.

    Every other kill is at a random moment; the others come as soon as a file that is
    being written is seen, from outside.
    """
    endless = 10**6  # no step so slow that a run could end before it is killed
    folder = tmp_path / "killed"
    folder.mkdir()
    moments, reached, torn = random.Random(4), [0], 0
    for attempt in range(100):
        run = start(folder, endless, 1)
        while max(checkpoints(folder), default=0) == reached[-1]:
            assert run.poll() is None
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.12))
        while attempt % 2 and not half_written(folder):
            assert run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL
        torn += half_written(folder)
        reached.append(max(checkpoints(folder)))
        if attempt >= 7 and torn:
            break
    assert all(a < b for a, b in itertools.pairwise(reached))
    assert torn >= 1
    steps = reached[-1] + 5
    whole = finish(tmp_path / "whole", steps, steps)
    assert same(finish(folder, steps, 1), whole)
    assert not half_written(folder)
    print(f"killed after steps {reached[1:]}, {torn} times in the middle of a write")


@slow
@pytest.mark.parametrize(
    ("number", "codes"),
    [(signal.SIGTERM, [143]), (signal.SIGINT, [1, -signal.SIGINT])],
)
def test_asked_to_stop(number, codes, tmp_path):
    """Catches a request that loses the steps since the last checkpoint."""
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
