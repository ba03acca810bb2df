"""Chapter 13: the training loop."""

import contextlib
import functools
import io
import itertools
import math
import os
import signal
import threading
import time
import types

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close
from torch.utils.data import Dataset

from flowbook import processes, resume, training
from flowbook.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from flowbook.draws import draw_seeds, draw_step, other_seed
from flowbook.losses import Floor, cfm_loss
from flowbook.networks import MLP
from flowbook.resume import RunState
from flowbook.schedules import CosinePath, CustomPath, OTPath, VPPath
from flowbook.training import (
    choose_precision,
    cosine_lr,
    ema_rate,
    progress_bar,
    require_finite_losses,
    train,
    trained_weight,
)

from .crew import Crew, signal_at_line
from .folders import folder

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(shape=3, seed: int = 1) -> MLP:
    torch.manual_seed(seed)
    return MLP(shape, width=8, depth=2, frequencies=3).double()


def points(n: int = 11, *shape: int) -> torch.Tensor:
    return torch.randn(n, *(shape or (3,)), generator=seeded(2), dtype=F64)


def drawn(seeds, step, data, batch_size):
    """The batch, times and noise of a step, from the two seeds."""
    epoch, place = divmod(step, len(data) // batch_size)
    order = torch.randperm(len(data), generator=seeded((seeds[1] + epoch) % 2**32))
    x1 = data[order[place * batch_size :][:batch_size]]
    g = seeded((seeds[0] + step) % 2**32)
    t = torch.rand(batch_size, generator=g, dtype=data.dtype)
    return x1, t, torch.randn(x1.shape, generator=g, dtype=data.dtype)


def by_hand(model, path, data, steps, batch_size, lr, decay, seeds, clip=math.inf):
    """The loop, with optimiser, clipping and an average written out."""
    parameters = list(model.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    average, losses = None, []
    t0, t1 = path.t_span
    for step in range(steps):
        x1, t, x0 = drawn(seeds, step, data, batch_size)
        loss = cfm_loss(model, path, x1, t=t0 + (t1 - t0) * t, x0=x0)
        grads = torch.autograd.grad(loss, parameters)
        size = torch.cat([g.flatten() for g in grads]).norm()
        grads = [g * min(1, clip / (size + 1e-6)) for g in grads]
        with torch.no_grad():
            for p, g, m, v in zip(parameters, grads, first, second, strict=True):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                scale = (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                p -= lr(step) * m / (1 - 0.9 ** (step + 1)) / scale
            now = [p.clone() for p in parameters]
            rate = min(decay, (1 + step) / (10 + step))
            if average is None:
                average = now
            else:
                pairs = zip(average, now, strict=True)
                average = [rate * old + (1 - rate) * new for old, new in pairs]
        losses.append(loss.detach())
    return losses, average


@pytest.mark.parametrize("decay", [0.999, 0.3, 0.0])
@pytest.mark.parametrize("clip", [None, 0.7])
def test_train_is_the_loop_by_hand(decay, clip):
    """Catches: lr, ema or clip ignored, t off its span, gradients that add up."""
    path, data, seeds = VPPath(), points(11), draw_seeds(seeded(3))

    def lr(step):
        return 0.02 / (1 + step)

    expected, model = network(), network()
    given = (path, data, 8, 4, lr, decay, seeds, clip or math.inf)
    losses, average = by_hand(expected, *given)
    options = {"steps": 8, "batch_size": 4, "lr": lr, "ema": decay, "clip": clip}
    run = train(model, path, data, **options, generator=seeded(3), progress=False)
    assert run.model is model
    assert_close(run.losses, torch.stack(losses))
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert_close(found, wanted)
    for found, wanted in zip(run.ema.parameters(), average, strict=True):
        assert_close(found, wanted.detach())


def test_to_the_last_bit():
    """Catches: another order of the draws; Adam with other defaults."""
    path, data, seeds = OTPath(), points(9), draw_seeds(seeded(4))
    expected = network()
    optimiser = torch.optim.Adam(expected.parameters(), lr=1e-3)
    losses = []
    for step in range(5):
        x1, t, x0 = drawn(seeds, step, data, 4)
        loss = cfm_loss(expected, path, x1, t=t, x0=x0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    model = network()
    options = {"steps": 5, "batch_size": 4, "generator": seeded(4), "progress": False}
    run = train(model, path, data, **options)
    assert torch.equal(run.losses, torch.stack(losses))
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


SHORT = {"steps": 6, "batch_size": 4, "progress": False}


def short_run(seed=3, model=None, data=None, path=None, **options):
    model = model or network()
    data = points() if data is None else data
    given = {**SHORT, "generator": seeded(seed), **options}
    return train(model, path or OTPath(), data, **given)


def equal_runs(a, b) -> bool:
    """Whether losses, weights and averages agree in every bit."""
    pairs = [(a.losses, b.losses)]
    for one, other in ((a.model, b.model), (a.ema, b.ema)):
        pairs += zip(
            one.state_dict().values(), other.state_dict().values(), strict=True
        )
    return all(torch.equal(x, y) for x, y in pairs)


class Drops(nn.Module):
    """A field with dropout and a buffer that counts calls."""

    def __init__(self):
        super().__init__()
        self.inner, self.drop = network(), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, t):
        self.calls += 1
        return self.drop(self.inner(self.drop(x), t))


def test_the_generator_alone_is_what_is_seeded():
    """Catches: draws from global state, dropout's too; global state left changed."""
    runs = []
    for seed in (1, 2):
        model = Drops()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        runs.append(short_run(model=model))
        assert torch.equal(torch.get_rng_state(), before)
    assert equal_runs(*runs)
    assert runs[0].ema.calls == 6  # buffers are the model's
    assert not equal_runs(runs[0], short_run(4, Drops()))


def test_dropout_differs_from_step_to_step():
    """Catches: layers seeded alike in each step, or with the noise's own seed."""
    seen = []

    class Sees(nn.Dropout):
        def forward(self, x):
            seen.append(torch.rand(3, dtype=F64))
            return super().forward(x)

    model = Drops()
    model.drop = Sees()
    short_run(model=model)
    assert len({tuple(x.tolist()) for x in seen}) == len(seen)
    seed = draw_seeds(seeded(3))[0]
    t, _ = draw_step(seed, 0, points(3), lambda u: u)
    assert not torch.equal(seen[0], t)
    g = seeded(
        other_seed(seed, "layers", 5, 0)
    )  # the last step's, of the first process
    assert torch.equal(seen[10], torch.rand(3, generator=g, dtype=F64))


def test_labels_reach_the_model():
    """Catches: labels dropped, or dealt in another order than the points."""

    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=F64))
            self.seen = []

        def forward(self, x, t, y):
            self.seen.append(y)
            return self.scale * x

    data = points(11)
    model, seeds = Labelled(), draw_seeds(seeded(3))
    short_run(model=model, data=(data, torch.arange(11)))
    for step, y in enumerate(model.seen):
        assert torch.equal(data[y], drawn(seeds, step, data, 4)[0])


def test_a_loss_of_your_own():
    """Catches: cfm_loss whatever is asked for; draws that aren't handed on."""

    def tripled(field, path, x1, *, t, x0):
        return 3 * cfm_loss(field, path, x1, t=t, x0=x0)

    assert_close(short_run(loss=tripled).losses[0], 3 * short_run().losses[0])


def test_times_reach_the_loss():
    """Catches: the option ignored."""
    seen = []

    def watching(field, path, x1, *, t, x0):
        seen.append(t)
        return cfm_loss(field, path, x1, t=t, x0=x0)

    short_run(times="stratified", loss=watching)
    assert all((4 * t).floor().tolist() == [0, 1, 2, 3] for t in seen)


def test_cosine_lr():
    """Catches: a climb that starts at 0, a cosine that ends early or too high."""
    rate = cosine_lr(0.8, 12, warmup=4)
    assert_close([rate(k) for k in range(4)], [0.2, 0.4, 0.6, 0.8])
    assert_close(
        [rate(4), rate(6), rate(8), rate(12)], [0.8, 0.4 + 0.4 / 2**0.5, 0.4, 0.0]
    )
    assert rate(20) == pytest.approx(0, abs=1e-16)
    assert cosine_lr(0.8, 12)(0) == 0.8


@pytest.mark.parametrize(("lr", "steps", "warmup"), [(0, 5, 0), (1, 5, 5), (1, 5, -1)])
def test_cosine_lr_refuses(lr, steps, warmup):
    """Catches: a division by no steps."""
    with pytest.raises(ValueError, match=f"lr {lr}, warmup {warmup}, steps {steps}"):
        cosine_lr(lr, steps, warmup=warmup)


def test_choose_precision():
    """Catches: bf16 on a card that only emulates it; a scaler where none is needed."""
    f32 = torch.float32
    for capability, best in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch.cuda, "get_device_capability", lambda d, c=capability: c
            )
            assert choose_precision("auto", f32, "cuda") == best
            assert choose_precision("auto", F64, "cuda") == "no"
            assert choose_precision("no", f32, "cuda") == "no"
            assert choose_precision("fp16", f32, "cuda") == "fp16"
    assert choose_precision("auto", f32, "cpu") == "no"
    assert choose_precision("bf16", f32, "cpu") == "bf16"
    with pytest.raises(ValueError, match=r"must be in \('auto', .*got 'half'"):
        choose_precision("half", f32, "cpu")
    with pytest.raises(ValueError, match=r"bf16 needs float32 weights, got .*float64"):
        choose_precision("bf16", F64, "cpu")


def test_precisions_one_after_the_other():
    """Catches: accelerate's state of the first run in the second; a changed model."""
    from accelerate import state

    shared = [c._shared_state for c in vars(state).values() if _shares(c)]
    for kept in shared:
        kept.clear()
    model = network().float()
    before = set(vars(model))
    exact = short_run(model=network().float())
    half = short_run(model=model, precision="bf16")
    again = short_run(model=network().float(), precision="no")
    assert equal_runs(exact, again) and not equal_runs(exact, half)
    assert_close(half.losses, exact.losses, rtol=0.05, atol=0.05)  # bf16: 2⁻⁸
    assert half.losses.dtype == torch.float32 and set(vars(model)) == before
    assert len(shared) >= 3 and not any(shared)


def _shares(found) -> bool:
    return isinstance(found, type) and "_shared_state" in vars(found)


def test_leaves_somebody_elses_accelerator_alone():
    """Catches: an Accelerator of the caller's that stops working."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    expected = short_run()
    given = {"mixed_precision": "bf16", "gradient_accumulation_steps": 4}
    theirs = Accelerator(**given, cpu=True)
    try:
        with theirs.accumulate(nn.Linear(1, 1)):  # the first of four
            assert equal_runs(short_run(), expected)
        assert theirs.mixed_precision == "bf16"
        assert theirs.gradient_accumulation_steps == 4 and not theirs.sync_gradients
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


# --- checkpoints --------------------------------------------------------------------


def test_resumes_bit_for_bit():
    """Catches: optimiser, average, buffers, losses or the step not kept."""
    where = folder()
    lr = cosine_lr(0.1, 14)
    options = {"lr": lr, "times": "stratified", "clip": 1.0, "checkpoint_every": 3}
    whole = short_run(model=Drops(), steps=14, **options)
    for steps in (4, 9, 14):
        model = Drops()
        run = short_run(model=model, steps=steps, checkpoint_dir=where, **options)
    assert equal_runs(run, whole)
    assert list(checkpoints(where)) == [9, 12, 14]
    assert equal_runs(
        short_run(model=Drops(), steps=14, checkpoint_dir=where, **options), whole
    )


def test_resumes_without_a_generator():
    """Catches: new seeds in place of the checkpoint's, when none were asked for."""
    where = folder()
    first = short_run(generator=None, checkpoint_dir=where)
    again = short_run(generator=None, checkpoint_dir=where, steps=9)
    assert torch.equal(again.losses[:6], first.losses)
    seeds = load_checkpoint(where / "step-00000009.safetensors")["config"]["seeds"]
    kept = load_checkpoint(where / "step-00000006.safetensors")["config"]["seeds"]
    assert seeds == kept


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 4}, r"seeds: \[\d+, \d+\] there"),
        ({"batch_size": 5}, "batch_size: 4 there, 5 here"),
        ({"lr": 0.5}, "lr: 0.001 there, 0.5 here"),
        ({"lr": lambda step: 0.5}, "lr: 0.001 there, a function here"),
        ({"ema": 0.5}, "ema: 0.999 there, 0.5 here"),
        ({"clip": 2.0}, "clip: None there, 2.0 here"),
        ({"times": "stratified"}, "times: uniform there, stratified here"),
        ({"path": CosinePath()}, r"path: OTPath.* there, CosinePath\(\) here"),
        ({"data": points(12)}, r"points: \[11, 3\] there, \[12, 3\] here"),
        ({"data": points(11) + 1}, r"\(data: \w+ there, \w+ here\)"),
        (
            {"model": network().float(), "precision": "bf16"},
            "precision: no there, bf16",
        ),
        ({"steps": 5}, "step-00000006.safetensors is past the 5 steps"),
    ],
)
def test_refuses_a_checkpoint_of_another_run(change, match):
    """Catches: weights of one run, draws of another."""
    where = folder()
    short_run(checkpoint_dir=where)
    with pytest.raises(ValueError, match=match):
        short_run(checkpoint_dir=where, **change)


def test_refuses_a_checkpoint_of_another_model():
    """Catches: shapes that differ found deep inside, or broadcast."""
    where = folder()
    short_run(checkpoint_dir=where)
    torch.manual_seed(1)
    other = MLP(3, width=9, depth=2, frequencies=3).double()
    with pytest.raises(
        ValueError, match=r"the shape of perc.*: \[8, 9\] there, \[9, 9\]"
    ):
        short_run(model=other, checkpoint_dir=where)


def test_a_path_of_your_own_is_recognised():
    """Catches: addresses in the configuration, which differ in each process."""

    def own():
        return CustomPath(lambda t: t, lambda t: 1 - 0.9 * t)

    where = folder()
    short_run(path=own(), checkpoint_dir=where)
    short_run(path=own(), checkpoint_dir=where, steps=8)


def test_a_damaged_checkpoint_is_passed_over():
    """Catches: a truncated file that ends the run, or starts it anew."""
    where = folder()
    whole = short_run(steps=9, checkpoint_dir=where, checkpoint_every=3)
    last = where / "step-00000009.safetensors"
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="step-00000009.*damaged.* one before it"):
        again = short_run(steps=9, checkpoint_dir=where, checkpoint_every=3)
    assert equal_runs(again, whole)


def test_nothing_is_saved_after_a_loss_that_is_not_finite():
    """Catches: the last good checkpoint overwritten by NaN; it isn't named."""
    where = folder()
    options = {"steps": 20, "checkpoint_dir": where, "checkpoint_every": 4}
    with pytest.raises(
        FloatingPointError, match=r"loss of step 9 is nan.*step 8 is kept"
    ):
        short_run(model=Breaks(9), **options)
    assert list(checkpoints(where)) == [4, 8]


class BadGradient(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


class BreaksBackwards(nn.Module):
    """A finite field whose gradient is NaN at its call number `calls`."""

    def __init__(self, calls):
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.ones((), dtype=F64)), calls

    def forward(self, x, t):
        self.calls -= 1
        return (BadGradient.apply(self.scale) if self.calls == -1 else self.scale) * x


@pytest.mark.parametrize("kept", [False, True])
def test_a_last_gradient_that_is_not_finite(kept):
    """Catches: NaN weights saved, or returned, since every loss was finite."""
    where = folder() if kept else None
    options = {"checkpoint_dir": where, "checkpoint_every": 4}
    with pytest.raises(FloatingPointError, match="weights after step 7 are not finite"):
        short_run(model=BreaksBackwards(7), steps=8, **options)
    assert where is None or list(checkpoints(where)) == [4]


def stop_at(number, call):
    """A loss that sends a signal to its own process at one of its calls."""
    calls = []

    def stopping(field, path, x1, *, t, x0):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(number)
        return cfm_loss(field, path, x1, t=t, x0=x0)

    return stopping


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_signals_save_and_stop(number, error):
    """Catches: a step torn in two, nothing saved, handlers left behind."""
    where, before = folder(), signal.getsignal(number)
    whole = short_run(steps=9, loss=stop_at(number, 0))
    with pytest.raises(error) as stopped:
        short_run(steps=9, loss=stop_at(number, 5), checkpoint_dir=where)
    assert error is KeyboardInterrupt or stopped.value.code == 143
    assert list(checkpoints(where)) == [5]
    assert signal.getsignal(number) is before
    again = short_run(steps=9, loss=stop_at(number, 0), checkpoint_dir=where)
    assert equal_runs(again, whole)


def test_without_a_folder_ctrl_c_is_immediate():
    """Catches: an interrupt that is held back although there is nothing to save."""
    model = Breaks(99)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell
    try:
        with pytest.raises(KeyboardInterrupt):
            short_run(model=model, loss=stop_at(signal.SIGINT, 3))
    finally:
        signal.signal(signal.SIGINT, before)
    assert model.calls == 99 - 2


def test_a_full_disk():
    """Catches: an error that hides the cause, or an older checkpoint lost to it."""
    where = folder()
    short_run(checkpoint_dir=where)

    def fail(handle):
        raise OSError(28, os.strerror(28))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=r"not written: No space.*step-00000009"):
            short_run(checkpoint_dir=where, steps=9)
    assert os.listdir(where) == ["step-00000006.safetensors"]


def test_a_folder_that_cannot_be_written():
    """Catches: the news after the training, without the place."""
    where = folder() / "file"
    where.write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        short_run(checkpoint_dir=where)


def test_the_run():
    """Catches: an average that trains on, or is the model itself; tracked losses."""
    model = network((2, 2))
    run = train(model, OTPath(), points(6, 2, 2), steps=3, batch_size=5, progress=False)
    assert run.losses.shape == (3,) and not run.losses.requires_grad
    assert type(run.ema) is MLP and not run.ema.training and model.training
    assert not any(p.requires_grad for p in run.ema.parameters())
    assert all(p.requires_grad for p in model.parameters())
    pairs = zip(model.parameters(), run.ema.parameters(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)
    assert run.ema(points(5, 2, 2), 0.5).shape == (5, 2, 2)


def test_data_follow_the_model():
    """Catches: float64 data that stop a float32 network, or that are changed."""
    data = points(6)
    before = data.clone()
    run = train(
        network().float(), OTPath(), data, steps=2, batch_size=3, progress=False
    )
    assert run.losses.dtype == torch.float32
    assert torch.equal(data, before)


def test_ema_rate():
    """Catches: max for min, a warm-up that is off by one or too slow."""
    found = [ema_rate(0.9, n) for n in (0, 1, 8, 79, 80, 81, 1000)]
    assert found == [1 / 10, 2 / 11, 9 / 18, 80 / 89, 81 / 90, 0.9, 0.9]


def test_ema_forgets_the_first_weights():
    """Catches: the warm-up left out (the first weights keep 0.98 after 20 steps)."""
    weight = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(weight.weight)
    average = AveragedModel(weight)
    for n in range(21):
        rate = ema_rate(0.999, n)
        average.multi_avg_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(rate)
        average.update_parameters(weight)
        nn.init.zeros_(weight.weight)
    expected = math.factorial(10) * math.factorial(21) / math.factorial(30)
    assert math.isclose(average.module.weight.item(), expected, rel_tol=1e-12)


def test_the_bar():
    """Catches: a bar that stays silent, or speaks when told not to; a wrong mean."""
    shown, silent = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(shown):
        run = train(network(), OTPath(), points(), steps=53, batch_size=4)
    assert "53/53" in shown.getvalue()
    assert f"loss={run.losses[-50:].mean():.4g}" in shown.getvalue()
    with contextlib.redirect_stderr(silent):
        train(network(), OTPath(), points(), steps=2, batch_size=4, progress=False)
    assert silent.getvalue() == ""
    with progress_bar(3, shown=False) as bar:
        assert bar.disable


class Breaks(nn.Module):
    """A field that turns to NaN at its call number `calls`."""

    def __init__(self, calls: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=F64))
        self.calls = calls

    def forward(self, x, t):
        self.calls -= 1
        return self.scale * x * (math.nan if self.calls < 0 else 1)


@pytest.mark.parametrize(
    ("step", "steps", "made"),
    [(5, 30, 30), (0, 90, 50), (49, 90, 50), (57, 200, 100), (57, 58, 58)],
)
def test_stops_at_a_loss_that_is_not_finite(step, steps, made):
    """Catches: a check at the end only; the last bad step named, not the first."""
    model = Breaks(step)
    with pytest.raises(FloatingPointError, match=f"loss of step {step} is nan"):
        train(model, OTPath(), points(), steps=steps, batch_size=4, progress=False)
    assert model.calls == step - made


def test_infinite_losses():
    """Catches: a check for NaN alone."""
    require_finite_losses(torch.ones(3))
    with pytest.raises(FloatingPointError, match="step 1 is inf"):
        require_finite_losses(torch.tensor([1.0, math.inf, math.nan]))
    with pytest.raises(FloatingPointError, match="step 102 is nan"):
        require_finite_losses(torch.tensor([1.0, 2.0, math.nan]), 100)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ("integers", TypeError, "data must be floating point"),
        ("list", TypeError, "data must be a tensor, got list"),
        ("nan", ValueError, "data must be finite, got 1 NaN"),
        ("flat", ValueError, r"x must have shape \(B, 3\), got \(4,\)"),
        ("empty", ValueError, "at least one point, got none"),
        ("few", ValueError, r"\[1, 3\], the number of points in data, got 4"),
    ],
)
def test_refuses_data(data, error, match):
    """Catches: bad data that fails in the thousandth step, or never."""
    nan = points(6)
    nan[4, 1] = math.nan
    given = {
        "integers": torch.zeros(6, 3, dtype=torch.int64),
        "list": [[1.0, 2.0, 3.0]] * 6,
        "nan": nan,
        "flat": points(6)[:, 0],
        "empty": points(6)[:0],
        "few": points(3),
    }[data]
    with pytest.raises(error, match=match):
        train(network(), OTPath(), given, steps=1, batch_size=4, progress=False)


@pytest.mark.parametrize(
    ("steps", "ema", "lr"),
    [
        (0, 0.9, 1e-3),
        (2.5, 0.9, 1e-3),
        (5, 1.0, 1e-3),
        (5, -0.1, 1e-3),
        (5, math.nan, 1e-3),
        (5, 0.9, 0.0),
        (5, 0.9, math.inf),
        (5, 0.9, math.nan),
    ],
)
def test_refuses_settings(steps, ema, lr):
    """Catches: an average that never moves (ema = 1), no step at all, lr of NaN."""
    with pytest.raises(ValueError, match=f"got steps {steps}, ema {ema}, lr {lr}"):
        train(network(), OTPath(), points(), steps=steps, ema=ema, lr=lr, batch_size=4)


@pytest.mark.parametrize("model", [nn.Identity(), network().requires_grad_(False)])
def test_refuses_a_model_without_parameters(model):
    """Catches: StopIteration from deep inside; run.ema, which is frozen, trained on."""
    with pytest.raises(ValueError, match=r"(Identity|MLP) has no parameters to train"):
        trained_weight(model)


def test_data_follow_the_weights_that_are_trained():
    """Catches: the dtype of a frozen part, which comes first."""
    model = nn.Sequential(network().float().requires_grad_(False), network())
    assert trained_weight(model).dtype == F64


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"clip": 0}, "clip > 0 or None, got 0"),
        ({"clip": math.inf}, "clip > 0 or None, got inf"),
        ({"checkpoint_every": 0}, "checkpoint_every >= 1, got 0"),
        ({"times": "cosine"}, "got 'cosine'"),
        ({"precision": "half"}, "got 'half'"),
    ],
)
def test_refuses_options(option, match):
    """Catches: gradients clipped to nothing, a checkpoint never."""
    with pytest.raises(ValueError, match=match):
        short_run(**option)


def test_the_floor():
    """Catches: a floor that is lost, or shown as something else."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        run = short_run(floor=Floor(0.25, 0.01), progress=True)
    assert run.floor == 0.25
    assert f"excess={run.losses.mean() - 0.25:.3g}" in shown.getvalue()
    assert short_run(floor=0.5).floor == 0.5 and short_run().floor is None


class Alone:
    """Stands in for accelerate: one process, whose sums are its own."""

    num_processes = 1

    def reduce(self, tensor, how):
        assert how == "mean"
        return tensor.clone()


class Silent:
    """Stands in for a checkpoint's keeper and for a bar, and notes what they get."""

    def __init__(self):
        self.saved, self.said, self.moved = [], [], 0

    def kept(self):
        return ""

    def save(self, state):
        self.saved.append(state.done)

    def set_postfix(self, said, refresh):
        self.said.append(said)

    def update(self):
        self.moved += 1


def watched(steps, *, done=0, received=(), asked_at=None, floor=None, every=1000):
    """The steps that are yielded, one a second, and what keeper and bar were told.

    The first one takes a minute more, and so does each save.
    """
    state = RunState(network(), network(), None, torch.zeros(steps), done=done)
    notes, received, taken = Silent(), [*received], []
    with pytest.MonkeyPatch.context() as patch:
        minutes = lambda: 60 * (state.done > done) + 60 * len(notes.saved)  # noqa: E731
        patch.setattr(time, "perf_counter", lambda: 3.0 + state.done + minutes())
        told = {"every": every, "floor": floor, "batch_size": 12_345}
        for step in training._watched(state, Alone(), notes, received, notes, **told):
            taken.append(step)
            state.losses[step] = step
            if step == asked_at:
                received.append(signal.SIGTERM)
    assert notes.moved == len(taken)
    return taken, notes


def test_what_the_bar_says():
    """Catches: floor minus loss, seconds for samples, the steps of an earlier start."""
    taken, notes = watched(120, done=4, floor=0.5)
    assert taken == [*range(4, 120)]
    assert [said["loss"] for said in notes.said] == ["28.5", "78.5", "94.5"]
    assert [said["excess"] for said in notes.said] == ["28", "78", "94"]
    rates = [said["samples/s"] for said in notes.said]
    assert rates == [f"{12_345 * 50 / 110:,.0f}", "12,345", "12,345"]
    rates = [said["samples/s"] for said in watched(120, every=40)[1].said]
    assert rates == [f"{12_345 * 40 / 100:,.0f}", "12,345", "12,345"]
    assert "excess" not in watched(3)[1].said[0]
    with progress_bar(9, done=4, shown=False) as bar:
        assert (bar.total, bar.n) == (9, 4)


def test_when_it_looks_and_saves():
    """Catches: a look at each step, none before a save, a request that is put off."""
    assert watched(120, every=40)[1].saved == [40, 80, 120]
    assert len(watched(120, every=40)[1].said) == 3
    assert len(watched(120)[1].said) == 3  # after 50, 100 and 120
    taken, notes = watched(120, every=40, asked_at=46)
    assert taken == [*range(47)] and notes.saved == [40, 47]
    assert watched(5, done=5)[0] == []


def test_several_look_together():
    """Catches: one process that leaves alone; losses of one's share; a fixed pace."""
    state = RunState(network(), network(), None, torch.zeros(9))
    notes, received, calls = Silent(), [], itertools.count()

    class Two(Alone):
        num_processes, device = 2, "cpu"

        def reduce(self, tensor, how="sum"):
            if how == "mean":
                return tensor + 1
            stops = next(calls) == 2  # the other process, when they look a third time
            return tensor + torch.tensor([0, stops, 0.5])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: state.done / 2)
        patch.setattr(training, "agree_to_stop", slower(training.agree_to_stop))
        told = {"every": 9, "floor": None, "batch_size": 8}
        taken = [*training._watched(state, Two(), notes, received, notes, **told)]
    assert taken == [*range(5)] and notes.saved == [5]  # after looks at 1, 3 and 5
    assert received == [signal.SIGTERM]
    assert state.losses.tolist() == [1.0] * 5 + [0.0] * 4


def test_a_signal_during_the_sum():
    """Catches: one process that stops by itself, as it has heard since it was asked."""
    state = RunState(network(), network(), None, torch.zeros(4))
    notes, received = Silent(), []

    class Interrupted(Alone):
        num_processes, device = 2, "cpu"

        def reduce(self, tensor, how="sum"):
            if how == "sum" and state.done == 1 and not received:
                received.append(signal.SIGTERM)  # after it was read
            return 2 * tensor if how == "sum" else tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: float(state.done))
        told = {"every": 9, "floor": None, "batch_size": 8}
        processes = Interrupted()
        taken = [*training._watched(state, processes, notes, received, notes, **told)]
    assert taken == [0, 1] and notes.saved == [2]  # heard at the next look


def slower(agree):
    """Asked after a step of half a second, two processes look again after two."""

    def checked(accelerator, received, seconds):
        assert seconds == 0.5
        stop, pace = agree(accelerator, received, seconds)
        assert pace == 2
        return stop, pace

    return checked


def test_a_loss_without_a_name():
    """Catches: a loss made by functools.partial that stops a run with a folder."""

    def times_n(field, path, x1, *, t, x0, n):
        return n * cfm_loss(field, path, x1, t=t, x0=x0)

    where, doubled = folder(), functools.partial(times_n, n=2)
    short_run(loss=doubled, checkpoint_dir=where)
    tree = load_checkpoint(where / "step-00000006.safetensors")
    assert tree["config"]["loss"] == "a function"


def test_a_span_that_begins_later():
    """Catches: times that end outside, since all paths begin at 0."""
    seen = []

    def watching(field, path, x1, *, t, x0):
        seen.append(t)
        return cfm_loss(field, OTPath(), x1, t=t, x0=x0)

    short_run(
        path=types.SimpleNamespace(t_span=(0.25, 0.75), prior_std=1.0), loss=watching
    )
    times = [drawn(draw_seeds(seeded(3)), k, points(), 4)[1] for k in range(6)]
    assert_close(torch.stack(seen), 0.25 + 0.5 * torch.stack(times))


def test_the_noise_is_the_prior_s():
    """Catches: standard normal noise on a path that starts wider."""
    seen = []

    def watching(field, path, x1, *, t, x0):
        seen.append(x0)
        return cfm_loss(field, OTPath(), x1, t=t, x0=x0)

    span = {"t_span": (0.0, 1.0), "prior_std": 5.0}
    short_run(path=types.SimpleNamespace(**span), loss=watching)
    noise = [drawn(draw_seeds(seeded(3)), k, points(), 4)[2] for k in range(6)]
    assert_close(torch.stack(seen), 5 * torch.stack(noise))


def test_the_second_of_three_processes():
    """Catches: rows of another share, or two; layers seeded alike in all processes."""
    seen = []

    def watching(field, path, x1, *, t, x0):
        seen.append((torch.initial_seed(), x1, t, x0))
        return cfm_loss(field, path, x1, t=t, x0=x0)

    seeds = draw_seeds(seeded(1))
    with second_of_three():
        short_run(1, steps=3, batch_size=6, loss=watching)
    for step, (seed, *found) in enumerate(seen):
        assert seed == other_seed(seeds[0], "layers", step, 1)
        for part, whole in zip(found, drawn(seeds, step, points(), 6), strict=True):
            assert torch.equal(part, whole[2:4])


@contextlib.contextmanager
def second_of_three():
    """`train` as the second of three processes sees it."""
    borrowed = training.borrow_accelerator

    class SecondOfThree:
        process_index, num_processes, is_main_process = 1, 3, False

        def __init__(self, accelerator):
            self.accelerator = accelerator

        def __getattr__(self, name):
            return getattr(self.accelerator, name)

        def reduce(self, tensor, how="sum"):
            return tensor

    @contextlib.contextmanager
    def second(*given):
        with borrowed(*given) as (accelerator, device):
            yield SecondOfThree(accelerator), device

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "borrow_accelerator", second)
        yield


class Jittered(Dataset):
    """Points that are moved at random when they are read, by torch's own generator."""

    def __len__(self):
        return 11

    def __getitem__(self, row):
        return points()[row] + torch.randn(3, dtype=F64)


@contextlib.contextmanager
def as_on_a_gpu():
    """Layers draw from another generator than a `Dataset`, as they do on a GPU."""
    layers = torch.Generator()
    with pytest.MonkeyPatch.context() as patch:
        borrowed = contextlib.nullcontext(layers)
        patch.setattr(training, "borrow_layer_generator", lambda device: borrowed)
        yield


@pytest.mark.parametrize("where", [contextlib.nullcontext, as_on_a_gpu])
def test_a_dataset_with_random_transforms(where):
    """Catches: crops and flips that nobody seeds where the model is on a GPU."""
    with where():
        runs = []
        for seed in (1, 2):
            model = network()
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            runs.append(short_run(model=model, data=Jittered(), steps=9))
            assert torch.equal(torch.get_rng_state(), before)
        assert equal_runs(*runs)
        assert not equal_runs(runs[0], short_run(4, data=Jittered(), steps=9))
        kept = folder()
        for steps in (4, 9):  # cut off in the middle of an epoch
            torch.manual_seed(steps)
            again = short_run(data=Jittered(), steps=steps, checkpoint_dir=kept)
        assert equal_runs(again, runs[0])


@pytest.mark.parametrize("where", [contextlib.nullcontext, as_on_a_gpu])
def test_a_share_of_a_dataset_with_random_transforms(where):
    """Catches: items that change with the number of processes; steps that repeat."""
    seen = []

    def watching(field, path, x1, *, t, x0):
        seen.append(x1)
        return cfm_loss(field, path, x1, t=t, x0=x0)

    given = {"data": Jittered(), "steps": 3, "batch_size": 6, "loss": watching}
    with where():
        short_run(1, **given)
        alone, seen = seen, []
        with second_of_three():
            short_run(1, **given)
    for part, whole in zip(seen, alone, strict=True):
        assert torch.equal(part, whole[2:4])
    order = [drawn(draw_seeds(seeded(1)), step, points(), 6)[0] for step in range(3)]
    moved = torch.stack(alone) - torch.stack(order)
    assert len(moved.flatten().unique()) == moved.numel()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e-3])
def test_a_rate_that_goes_wrong(bad):
    """Catches: weights that a rate of NaN has spoilt, found out 50 steps later."""
    model = network()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=f"lr >= 0, got {bad} in step 3"):
        short_run(model=model, lr=lambda step: bad if step == 3 else 0.0)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_rate_that_begins_at_zero():
    """Catches: the warm-up min(step, w) / w refused."""
    model, step_0 = network(), []

    def rate(step):
        if step == 1:
            step_0.extend(p.clone() for p in model.parameters())
        return 1e-3 * min(step, 3) / 3

    before = [p.clone() for p in model.parameters()]
    short_run(model=model, lr=rate)
    assert all(map(torch.equal, before, step_0))
    assert not all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("tree", [{"weights": torch.ones(3)}, [torch.ones(3)], {}])
def test_a_checkpoint_of_something_else(tree):
    """Catches: a KeyError for whoever keeps another checkpoint in the folder."""
    where = folder()
    save_checkpoint(where, 3, tree)
    with pytest.raises(ValueError, match=r"step-00000003\.safetensors is no checkp"):
        short_run(checkpoint_dir=where)


def test_a_run_of_another_program():
    """Catches: a KeyError for the seeds that another user of `Keeper` has none of."""
    where = folder()
    given = {"checkpoint_dir": where, "generator": None}
    short_run(**given)
    tree = load_checkpoint(where / "step-00000006.safetensors")
    save_checkpoint(where, 8, {**tree, "config": {}})
    with pytest.raises(ValueError, match=r"08\.safetensors is of another run"):
        short_run(steps=9, **given)


# --- stopping ------------------------------------------------------------------------

PARTS = {m.__file__ for m in (training, processes, resume)}


class Wrapped:
    """Stands in for accelerate's optimiser."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        self.zero_grad, self.step = optimizer.zero_grad, optimizer.step


@contextlib.contextmanager
def threads_for_processes(here):
    """`train` is in the process `here.process`; nothing is written, but `here.save`."""

    @contextlib.contextmanager
    def hold():  # as hold_signals, which hears signals in the main thread alone
        here.held = True
        yield here.received
        here.held = False
        if here.received:
            raise SystemExit(143)

    agree, alone = processes.agree_to_stop, contextlib.nullcontext
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "save_checkpoint", lambda *given: here.save(*given))
        for module in (training, resume):
            patch.setattr(module, "agreed", lambda value: here.process.agreed(value))
        for name, stand_in in {
            "agree_to_stop": lambda *given: agree(*given[:2], 0.5),  # every 2 steps
            "borrow_accelerator": lambda *_: alone((here.process, torch.device("cpu"))),
            "borrow_layer_generator": lambda _: alone(torch.Generator()),
            "hold_signals": hold,
            "prepare": lambda _, model, adam: (model, Wrapped(adam)),
        }.items():
            patch.setattr(training, name, stand_in)
        yield


def played(work, rank: int, moment: int):
    """Two threads at `work(process, received)`; one gets SIGTERM before a line of it.

    Returns what each ended with, the steps saved, who left before a file was written,
    and how many lines there were.
    """
    crew, saved, early, lines, here = Crew(2), [], set(), [], threading.local()

    def save(folder, step, tree):
        early.update(crew.all_wait_for(0))
        saved.append(step)

    def run(process):
        here.process, here.received, here.save, here.held = process, [], save, False
        if process.process_index != rank:
            return work(process, here.received)
        held = lambda: here.held  # noqa: E731
        with signal_at_line(PARTS, moment, here.received, held) as seen:
            try:
                return work(process, here.received)
            finally:
                lines.extend(seen)

    with threads_for_processes(here):
        ends = crew.work(run)
    return ends, saved, early, len(lines)


class Columns(nn.Module):
    """A small field: a bilinear map of x and t."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, t):
        return self.inner(x, t[:, None])


def trained_together(process, received):
    """The steps that one of several takes in `train`, until it leaves."""
    taken = []

    def counting(*given, **drawn):
        taken.append(None)
        return cfm_loss(*given, **drawn)

    model = nn.Bilinear(3, 1, 3).double()
    given = {"checkpoint_dir": "nowhere", "checkpoint_every": 9, "loss": counting}
    with contextlib.suppress(SystemExit):
        short_run(1, Columns(model), steps=3, **given)
    return len(taken)


def stops_well(work, rank: int) -> set[int]:
    """Attack each line of a process; return the steps at which both have stopped."""
    ends, saved, early, lines = played(work, rank, 0)
    assert ends == [5, 5] and saved == [4, 5] and not early
    reached = set()
    for moment in range(1, lines + 1):
        (one, two), saved, early, _ = played(work, rank, moment)
        assert one == two and saved[-1] == one and not early, (moment, one, two, saved)
        reached.add(one)
    return reached


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_at_every_line_of_train(rank):
    """Catches: one process that acts on a signal which the sum has not heard of.

    Or one that leaves while the other still writes.
    """
    ends, saved, early, lines = played(trained_together, rank, 0)
    assert ends == [3, 3] and saved == [3] and not early
    reached = set()
    for moment in range(1, lines + 1):
        (one, two), saved, early, _ = played(trained_together, rank, moment)
        assert one == two and saved[-1] == one and not early, (moment, one, two, saved)
        reached.add(one)
    assert reached == {1, 3}  # both looks, of which the first saves for this alone
