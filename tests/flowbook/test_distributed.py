"""One decision, no trace; and two processes for one.

The first half plays the other processes; the second starts them (gloo, on CPUs).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from flowbook.checkpoints import checkpoints, load_checkpoint
from flowbook.distributed import (
    agree_to_stop,
    all_well,
    borrow_accelerator,
    borrow_layer_generator,
    broadcast_from_rank0,
    gather_full,
    prepare,
    shard_like,
    sharded,
)
from flowbook.networks import MLP

from ..given import F64, draw, seeded
from ..runs import ENV

CPU = torch.device("cpu")


class Others:
    """Stands in for accelerate: the sum of what the other processes say is known."""

    device = "cpu"

    def __init__(self, ranks, *said):
        self.num_processes, self.said = ranks, torch.tensor(said)

    def reduce(self, tensor):
        assert tensor.dtype == torch.float32
        return tensor + self.said

    def at_once(self):
        """These, asked about one number."""
        self.said = self.said[0]
        return self

    def prepare(self, *what):
        return what


@pytest.mark.parametrize(
    ("others", "seconds", "pace"),
    [
        (Others(1), 0.5, 50),  # alone: nobody is asked
        (Others(2, 0.0, 0.0, 0.04), 0.02, 33),
        (Others(4, 0.0, 0.0, 0.25), 0.5, 5),
        (Others(2, 0.0, 0.0, 9.0), 9.0, 1),
        (Others(2, 0.0, 0.0, 1e-4), 1e-4, 50),
    ],
)
def test_when_to_look_again(others, seconds, pace):
    """Catches the sum for the mean, seconds for steps, a pace of 0 or of hours."""
    received = []
    assert agree_to_stop(others, received, seconds) == (False, pace)
    assert received == []


@pytest.mark.parametrize(
    ("here", "interrupted", "terminated", "found"),
    [
        ([], 0.0, 0.0, []),
        ([], 1.0, 0.0, [signal.SIGINT]),
        ([], 0.0, 2.0, [signal.SIGTERM]),
        ([], 1.0, 1.0, [signal.SIGTERM]),
        ([signal.SIGINT], 0.0, 1.0, [signal.SIGINT]),
    ],
)
def test_one_is_asked_and_all_know(here, interrupted, terminated, found):
    """Catches a signal that stays where it came, or turns into the other one."""
    others = Others(3, interrupted, terminated, 0.1)
    assert agree_to_stop(others, here, 0.1)[0] is bool(found)
    assert here == found


def test_alone():
    """Catches a process without others that is never told to stop."""
    assert agree_to_stop(Others(1), [signal.SIGTERM], 0.1) == (True, 50)


def test_a_signal_that_comes_during_the_sum():
    """Catches a process that acts on what it has not told the others."""
    received = []

    class Late(Others):
        def reduce(self, tensor):
            received.append(signal.SIGINT)
            return super().reduce(tensor)

    assert agree_to_stop(Late(2, 0.0, 0.0, 0.5), received, 0.5) == (False, 2)
    assert agree_to_stop(Late(2, 0.0, 0.0, 0.5), received, 0.5) == (True, 2)


@pytest.mark.parametrize(
    ("here", "elsewhere", "well"),
    [(True, 0.0, True), (False, 0.0, False), (True, 1.0, False), (False, 2.0, False)],
)
def test_all_is_well(here, elsewhere, well):
    """Catches a process that goes on where another can't; one that asks nobody."""
    assert all_well(Others(3, elsewhere).at_once(), here) is well
    assert all_well(Others(1), here) is here and all_well(None, here) is here


def test_what_is_told_to_the_others():
    """Catches SIGINT told as SIGTERM, a time that is left out."""
    heard = []

    class Listens(Others):
        def reduce(self, tensor):
            heard.append(tensor.tolist())
            return super().reduce(tensor)

    for received in ([], [signal.SIGINT], [signal.SIGTERM]):
        agree_to_stop(Listens(2, 0.0, 0.0, 0.5), received, 0.25)
    assert heard == [[0, 0, 0.25], [1, 0, 0.25], [0, 1, 0.25]]


def shared_states() -> dict[str, dict]:
    """What each class of accelerate that does so keeps for the whole program."""
    import accelerate  # noqa: F401

    modules = [m for name, m in sys.modules.items() if name.startswith("accelerate.")]
    classes = [c for m in modules for c in vars(m).values() if isinstance(c, type)]
    found = {c.__name__: c._shared_state for c in classes if "_shared_state" in vars(c)}
    assert {"PartialState", "AcceleratorState", "GradientState"} <= found.keys()
    return found


def fresh() -> None:
    """What an earlier test, or a mutant of it, left behind is not this one's fault."""
    for state in shared_states().values():
        state.clear()


def states() -> dict[str, dict]:
    return {name: dict(state) for name, state in shared_states().items()}


def nothing() -> dict[str, dict]:
    return {name: {} for name in shared_states()}


def test_accelerate_is_left_as_it_was():
    """Catches a second precision that is refused; the caller's Accelerator spoilt."""
    from accelerate import Accelerator

    fresh()
    for precision in ("no", "bf16"):
        with borrow_accelerator(CPU, lambda device, p=precision: p) as (ours, device):
            assert ours.mixed_precision == precision and device is CPU
        assert states() == nothing()
    theirs = Accelerator(mixed_precision="bf16", cpu=True)
    try:
        before = states()
        with pytest.raises(ZeroDivisionError), borrow_accelerator(CPU, lambda d: "no"):
            raise ZeroDivisionError
        assert states() == before and theirs.mixed_precision == "bf16"
    finally:
        fresh()


def test_a_guest_of_one_that_accumulates():
    """Catches steps that move nothing, since the host had not come to its own; a host
    that no longer accumulates."""
    from accelerate import Accelerator

    fresh()
    theirs = Accelerator(gradient_accumulation_steps=4, cpu=True)
    try:
        with theirs.accumulate(nn.Linear(1, 1)):
            assert not theirs.sync_gradients
        before = states()
        model = nn.Linear(2, 1)
        weight = model.weight.detach().clone()
        adam = torch.optim.Adam(model.parameters())
        with borrow_accelerator(CPU, lambda device: "no") as (ours, _):
            net, optimiser = ours.prepare(model, adam)
            ours.backward(net(torch.ones(3, 2)).sum())
            optimiser.step()
        assert not torch.equal(model.weight, weight)
        assert states() == before
        assert theirs.gradient_accumulation_steps == 4 and not theirs.sync_gradients
    finally:
        fresh()


def test_the_number_of_threads_is_given_back():
    """Catches a caller whose torch is slower after a run of several processes."""
    fresh()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with borrow_accelerator(CPU, lambda device: "no"):
            torch.set_num_threads(1)  # as accelerate does for several
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_precision_that_there_is_not():
    """Catches accelerate's state lost with its refusal."""
    fresh()
    with (
        pytest.raises(ValueError, match="half"),
        borrow_accelerator(CPU, lambda d: "half"),
    ):
        pass
    assert states() == nothing()


@pytest.mark.parametrize(
    ("world", "gpu", "asked", "given", "cpu"),
    [
        ("1", True, "cpu", "cpu", True),
        ("1", True, "meta", "meta", False),
        ("2", True, "cpu", "cuda", False),
        ("2", False, "meta", "cpu", True),
    ],
)
def test_where_a_process_works(world, gpu, asked, given, cpu):
    """Catches several processes on one device; one that leaves its model's."""
    import accelerate

    seen = {}

    class Notes:
        device = "its own"

        def __init__(self, **options):
            seen.update(options)
            self.num_processes = int(world)

    def choose(device):
        seen["device"] = device
        return "no"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerate, "Accelerator", Notes)
        patch.setattr(torch.cuda, "is_available", lambda: gpu)
        patch.setenv("WORLD_SIZE", world)
        with borrow_accelerator(torch.device(asked), choose) as (_, device):
            assert device == (torch.device(asked) if world == "1" else "its own")
    assert seen["device"] == torch.device(given)
    assert seen["cpu"] is cpu and seen["device_placement"] is (world == "2")


class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((), 2.0))
        self.register_buffer("shift", torch.full((3,), 5.0))

    def forward(self, x, t, y):
        return self.scale * x - t[:, None] + y


def test_a_model_is_wrapped():
    """Catches x for t, a condition dropped, attributes that accelerate adds."""
    model = Labelled()
    before = set(vars(model)), model.forward
    x, t, y = torch.ones(5, 3), torch.arange(5.0), torch.tensor(0.5)
    adam = torch.optim.Adam(model.parameters())
    with borrow_accelerator(CPU, lambda device: "bf16") as (accelerator, _):
        net, optimiser = prepare(accelerator, model, adam)
        assert torch.equal(net(x, t, y=y), 2.5 - t[:, None].expand(5, 3))
    assert optimiser.optimizer is adam
    assert (set(vars(model)), model.forward) == before


def test_all_begin_with_the_first_process_s_weights():
    """Catches a process that trains its own weights, or has its own buffers."""
    import accelerate.utils

    asked, model = [], Labelled()

    def broadcast(tensor):
        asked.append(tensor.shape)
        return torch.full_like(tensor, 7.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerate.utils, "broadcast", broadcast)
        net, adam = prepare(Others(1), model, "adam")
        assert not asked and model.scale == 2
        net, adam = prepare(Others(2), model, "adam")
    assert net.model is model and adam == "adam"
    assert asked == [(), (3,)] and model.scale == 7 and (model.shift == 7).all()


def test_the_first_process_s_value():
    """Catches a value of one's own; a list instead of what is in it."""
    import accelerate.utils

    with borrow_accelerator(CPU, lambda device: "no"):
        assert broadcast_from_rank0((3, "x")) == (3, "x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerate.utils, "broadcast_object_list", lambda v: [v[0] + 1])
        assert broadcast_from_rank0(3) == 4


def test_a_generator_is_given_back():
    """Catches dropout's randomness left where a run's last step was."""
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), borrow_layer_generator(CPU) as g:
        g.manual_seed(3)
        first = torch.rand(2)
        assert torch.equal(first, torch.rand(2, generator=seeded(3)))
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_of_a_gpu():
    """Catches the CPU's, or another GPU's."""
    generators = tuple(torch.Generator() for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "default_generators", generators)
        patch.setattr(torch.cuda, "current_device", lambda: 1)
        for name, index in (("cuda:0", 0), ("cuda", 1), ("cuda:2", 2)):
            with borrow_layer_generator(torch.device(name)) as g:
                assert g is generators[index]


def test_parts_of_a_whole():
    """Catches a sharded weight that is saved as its part, or filled from another's."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        points = draw(5, 3, seed=2)
        for placement in (Shard(1), Replicate()):
            target = distribute_tensor(torch.zeros(5, 3, dtype=F64), mesh, [placement])
            part = shard_like(points, target)
            assert sharded(part) and part.placements == (placement,)
            assert torch.equal(gather_full(part), points)
            assert gather_full({"a": [part, points, 3]}, kept=False) == {
                "a": [None, None, 3]
            }
            found = gather_full({"a": [part, 3], "b": (1, 2)})
            assert torch.equal(found["a"][0], points) and not sharded(found["a"][0])
            assert found["a"][1] == 3 and found["b"] == (1, 2)
    finally:
        torch.distributed.destroy_process_group()
    assert shard_like(points, points) is points and gather_full(points) is points


def test_a_part_of_another_shape():
    """Catches a row that is broadcast over a whole weight."""
    with pytest.raises(ValueError, match=r"of shape \(5, 3\), got \(3,\)"):
        shard_like(torch.zeros(3), torch.zeros(5, 3))


# --- two processes -------------------------------------------------------------------

slow = pytest.mark.slow

SCRIPT = """
import atexit, json, os, sys, time, torch
from flowbook import runs
from flowbook.losses import cfm_loss
from flowbook.networks import MLP
from flowbook.paths import OTPath
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
        with open(f"{folder}/pid-{rank}", "w") as file:
            file.write(str(os.getpid()))
        os.replace(file.name, f"{folder}/at-work-{rank}")
    return cfm_loss(field, path, x1, t=t, x0=x0)

if os.environ.get("SLOW"):  # a write that takes 3 s, or until the other has left
    save = runs.save_checkpoint

    def slowly(*given):
        for _ in range(60):
            if os.path.exists(f"{folder}/left-1"):
                open(f"{folder}/deserted", "w").close()
                break
            time.sleep(0.05)
        return save(*given)

    runs.save_checkpoint = slowly
    atexit.register(lambda: open(f"{folder}/left-{rank}", "w").close())

if os.environ.get("SHARDED"):  # what accelerate's FSDP does, which it keeps for GPUs
    import accelerate
    from torch.distributed.fsdp import fully_shard

    def prepare(self, net, optimiser):
        fully_shard(net)
        sharded = type(optimiser)(net.parameters(), lr=optimiser.defaults["lr"])
        return net, self.prepare_optimizer(sharded)

    accelerate.Accelerator.prepare = prepare
    to_tree = runs.RunState.to_tree

    def numbers(tree):
        if isinstance(tree, dict):
            return sum(map(numbers, tree.values()))
        return tree.numel() if isinstance(tree, torch.Tensor) else 0

    def counted(state, **kept):
        tree = to_tree(state, **kept)
        held = {n: x.to_local() for n, x in state.averages.items()}
        whole = [p for p in state.average.parameters() if not p.is_meta]
        trees = tree["ema"], tree["model"], tree["optimiser"]["state"]
        with open(f"{folder}/numbers-{rank}.json", "w") as file:
            json.dump([numbers(held), len(whole), *map(numbers, trees)], file)
        return tree

    os.makedirs(folder, exist_ok=True)
    runs.RunState.to_tree = counted

def look(step, run):
    kept = {"ema": run.ema.state_dict(), "field": run.ema(data, 0.5)}
    kept["parts"] = [p.to_local().numel() / p.numel() for p in run.model.parameters()]
    torch.save({**kept, "losses": run.losses}, f"{folder}/look-{rank}-{step}.pt")

seed = 3 if len(sys.argv) < 6 else int(sys.argv[5]) + rank
run = train(
    model, OTPath(), data, steps=int(steps), batch_size=int(batch_size), lr=1e-2,
    clip=1.0, generator=torch.Generator().manual_seed(seed), loss=loss,
    checkpoint_dir=folder, progress=False,
    on_look=look if os.environ.get("LOOK") else None,
)
with open(f"{folder}/seen-{rank}.json", "w") as file:
    json.dump(seen, file)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def command(processes: int, place: Path, *arguments) -> list[str]:
    script = place.parent / "script.py"
    script.write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    many = [*launch, str(processes)] if processes > 1 else []
    return [sys.executable, *many, str(script), str(place), *map(str, arguments)]


def trained(processes: int, place: Path, steps: int, *rest, **env: str) -> dict:
    """The last checkpoint of a run."""
    line = command(processes, place, steps, *rest)
    done = subprocess.run(line, env={**ENV, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_checkpoint(place / f"step-{steps:08d}.safetensors")


def furthest(a: dict, b: dict) -> float:
    """The largest difference of weights, averages and losses."""
    gaps = [(a["losses"] - b["losses"]).abs().max().item()]
    for part in ("model", "ema"):
        gaps += [(a[part][n] - b[part][n]).abs().max().item() for n in a[part]]
    return max(gaps)


@slow
def test_two_take_the_steps_of_one(tmp_path):
    """Catches noise or order of a process's own, gradients summed, a point twice."""
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


@slow
def test_in_single_precision(tmp_path):
    """Catches shares that are rounded to less than their own dtype.

    Each step adds at most the rounding of a gradient, which Adam turns into a change
    of a step by at most lr times its relative error, taken here as 2⁻²⁴ times the 2 · 8
    terms of a sum; small components of a gradient can lose all their digits, though:
    for those the bound is a whole step, lr, for 1 % of the 10 steps.
    """
    one = trained(1, tmp_path / "one", 10, 8, "float32")
    two = trained(2, tmp_path / "two", 10, 8, "float32")
    assert furthest(one, two) < 1e-2 * 10 * (16 * 2**-24 + 0.01)


@slow
def test_the_first_process_decides(tmp_path):
    """Catches processes with generators of their own that draw apart."""
    one = trained(1, tmp_path / "one", 8, 8, "float64", 5)
    two = trained(2, tmp_path / "two", 8, 8, "float64", 5)
    assert furthest(one, two) < 1e-12


@slow
def test_a_batch_that_cannot_be_shared(tmp_path):
    """Catches unequal shares, which weigh some points more."""
    line = command(2, tmp_path / "odd", 3, 7, "float64")
    done = subprocess.run(line, env=ENV, capture_output=True, text=True)
    assert done.returncode != 0
    assert "must be divisible by their number, 2, got 7" in done.stderr


@slow
def test_all_stop_at_one_step(tmp_path):
    """Catches one process that stops while the other waits for it for ever."""
    place = tmp_path / "asked"
    line = command(2, place, 10**6, 8, "float64")
    run = subprocess.Popen(line, env=ENV, stderr=subprocess.DEVNULL)
    while not all((place / f"at-work-{rank}").exists() for rank in (0, 1)):
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait() != 0
    reached = max(checkpoints(place))
    stopped = load_checkpoint(place / f"step-{reached:08d}.safetensors")
    whole = trained(1, tmp_path / "whole", reached, 8, "float64")
    assert torch.equal(
        stopped["optimiser"]["state"][0]["step"], torch.tensor(float(reached))
    )
    assert furthest(stopped, whole) < 1e-10


@slow
def test_nobody_leaves_before_the_file_is_written(tmp_path):
    """Catches one that leaves at once when it is asked to stop: the launcher sees it,
    waits for 30 s, and kills the one that still writes.

    Here the write waits for 3 s to see whether the other has left. A machine that is
    too slow for that makes a fault look right, and nothing look wrong.
    """
    place = tmp_path / "asked"
    line = command(2, place, 10**6, 8, "float64")
    run = subprocess.Popen(line, env={**ENV, "SLOW": "1"}, stderr=subprocess.DEVNULL)
    while not all((place / f"at-work-{rank}").exists() for rank in (0, 1)):
        assert run.poll() is None
        time.sleep(0.05)
    os.kill(int((place / "at-work-1").read_text()), signal.SIGTERM)
    assert run.wait() != 0
    assert (place / "left-1").exists() and not (place / "deserted").exists()
    (reached,) = checkpoints(place)
    assert load_checkpoint(place / f"step-{reached:08d}.safetensors")["step"] == reached


@slow
def test_sharded_weights(tmp_path):
    """Catches checkpoints of parts, averages of parts that are never put together.

    And a whole average beside its parts, or whole weights where nobody writes them.

    torch's own sharding on CPUs, in place of accelerate's, which wants GPUs.
    """
    one = trained(1, tmp_path / "one", 10, 8, "float64")
    two = trained(2, tmp_path / "two", 10, 8, "float64", SHARDED="1")
    assert {n: x.shape for n, x in two["ema"].items()} == {
        n: x.shape for n, x in one["ema"].items()
    }
    assert furthest(one, two) < 1e-12
    adam = one["optimiser"]["state"].values()
    weights = sum(kept["exp_avg"].numel() for kept in adam)
    counts = sum(x.numel() for kept in adam for x in kept.values())
    buffers = sum(x.numel() for x in one["ema"].values()) - weights
    (first, *of_first), (second, *of_second) = (
        json.loads((tmp_path / f"two/numbers-{rank}.json").read_text())
        for rank in (0, 1)
    )
    assert first + second == weights and 0.4 * weights < first < 0.6 * weights
    assert of_first == [0, *2 * [weights + buffers], counts] and not any(of_second)
    resumed = trained(2, tmp_path / "one", 15, 8, "float64", SHARDED="1")
    whole = trained(1, tmp_path / "two", 15, 8, "float64")
    assert furthest(resumed, whole) < 1e-12


@slow
def test_a_hook_sees_whole_averages_of_sharded_weights(tmp_path):
    """Catches a hook that is shown parts, numbers of before, or in both processes.

    And a run that goes on with other numbers after its weights were put together.
    """
    place = tmp_path / "two"
    two = trained(2, place, 10, 8, "float64", SHARDED="1", LOOK="1")
    after = {n: trained(1, tmp_path / str(n), n, 8, "float64") for n in (1, 10)}
    assert furthest(after[10], two) < 1e-12
    assert not list(place.glob("look-1-*"))
    net = MLP(2, width=16, depth=2).double()
    data = draw(20, 2, seed=2)
    for step, alone in after.items():  # several look after their first step, too
        seen = torch.load(place / f"look-0-{step}.pt")
        assert max(seen["parts"]) < 1  # those of the model stay where they are
        assert seen["losses"].shape == (step,)
        assert furthest({**alone, "model": {}}, seen) < 1e-12
        net.load_state_dict(alone["ema"])
        assert (seen["field"] - net(data, 0.5)).abs().max() < 1e-12
    assert all(torch.equal(x, two["ema"][n]) for n, x in seen["ema"].items())
