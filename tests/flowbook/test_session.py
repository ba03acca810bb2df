"""The laboratory, a10: what a run needs besides its loop."""

import contextlib
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
from torch.testing import assert_close
from torch.utils.data import Dataset

from flowbook import distributed, runs, session, training
from flowbook.batches import draw_seeds, draw_step, other_seed
from flowbook.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from flowbook.losses import LossFloor, cfm_loss
from flowbook.networks import MLP
from flowbook.paths import CosinePath, CustomPath, OTPath
from flowbook.sampling import sample
from flowbook.session import (
    Session,
    choose_precision,
    progress_bar,
    require_finite_losses,
    trained_weight,
)
from flowbook.training import CosineLR, train

from ..crew import Crew, signal_at_line
from ..folders import folder
from ..given import F64, seeded
from ..runs import REFUSED, Drops, drawn, equal_runs, examples, network, short_run


def test_the_generator_alone_is_what_is_seeded():
    """Catches draws from global state, dropout's too; global state left changed."""
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
    """Catches layers seeded alike in each step, or with the noise's own seed."""
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
    t, _ = draw_step(seed, 0, examples(3), lambda u: u)
    assert not torch.equal(seen[0], t)
    g = seeded(
        other_seed(seed, "layers", 5, 0)
    )  # the last step's, of the first process
    assert torch.equal(seen[10], torch.rand(3, generator=g, dtype=F64))


def test_times_reach_the_loss():
    """Catches the option ignored."""
    seen = []

    def watching(field, path, x1, *, t, x0):
        seen.append(t)
        return cfm_loss(field, path, x1, t=t, x0=x0)

    short_run(times="stratified", loss=watching)
    assert all((4 * t).floor().tolist() == [0, 1, 2, 3] for t in seen)


def test_choose_precision():
    """Catches bf16 on a card that only emulates it; a scaler where none is needed."""
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
    """Catches accelerate's state of the first run in the second; a changed model."""
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
    """Catches an Accelerator of the caller's that stops working."""
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


def test_resumes_bit_for_bit():
    """Catches optimiser, average, buffers, losses or the step not kept."""
    where = folder()
    lr = CosineLR(0.1, 14)
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
    """Catches new seeds in place of the checkpoint's, when none were asked for."""
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
        (
            {"lr": CosineLR(0.1, 9)},
            r"lr: 0.001 there, CosineLR\(lr=0.1, steps=9, warmup=0\) here",
        ),
        ({"ema": 0.5}, "ema: 0.999 there, 0.5 here"),
        ({"clip": 2.0}, "clip: None there, 2.0 here"),
        ({"times": "stratified"}, "times: uniform there, stratified here"),
        ({"path": CosinePath()}, r"path: OTPath.* there, CosinePath\(\) here"),
        ({"data": examples(12)}, r"points: \[11, 3\] there, \[12, 3\] here"),
        ({"data": examples(11) + 1}, r"\(data: \w+ there, \w+ here\)"),
        (
            {"model": network().float(), "precision": "bf16"},
            "precision: no there, bf16",
        ),
        ({"steps": 5}, "step-00000006.safetensors is past the 5 steps"),
    ],
)
def test_refuses_a_checkpoint_of_another_run(change, match):
    """Catches weights of one run, draws of another."""
    where = folder()
    short_run(checkpoint_dir=where)
    with pytest.raises(ValueError, match=match):
        short_run(checkpoint_dir=where, **change)


def test_refuses_a_checkpoint_of_another_model():
    """Catches shapes that differ found deep inside, or broadcast."""
    where = folder()
    short_run(checkpoint_dir=where)
    torch.manual_seed(1)
    other = MLP(3, width=9, depth=2, frequencies=3).double()
    with pytest.raises(
        ValueError, match=r"the shape of perc.*: \[8, 9\] there, \[9, 9\]"
    ):
        short_run(model=other, checkpoint_dir=where)


def test_a_path_of_your_own_is_recognised():
    """Catches addresses in the configuration, which differ in each process."""

    def own():
        return CustomPath(lambda t: t, lambda t: 1 - 0.9 * t)

    where = folder()
    short_run(path=own(), checkpoint_dir=where)
    short_run(path=own(), checkpoint_dir=where, steps=8)


def test_a_damaged_checkpoint_is_passed_over():
    """Catches a truncated file that ends the run, or starts it anew."""
    where = folder()
    whole = short_run(steps=9, checkpoint_dir=where, checkpoint_every=3)
    last = where / "step-00000009.safetensors"
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="step-00000009.*damaged.* one before it"):
        again = short_run(steps=9, checkpoint_dir=where, checkpoint_every=3)
    assert equal_runs(again, whole)


def test_nothing_is_saved_after_a_loss_that_is_not_finite():
    """Catches the last good checkpoint overwritten by NaN; it isn't named."""
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
    """Catches NaN weights saved, or returned, since every loss was finite."""
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
    """Catches a step torn in two, nothing saved, handlers left behind."""
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
    """Catches an interrupt that is held back although there is nothing to save."""
    model = Breaks(99)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell
    try:
        with pytest.raises(KeyboardInterrupt):
            short_run(model=model, loss=stop_at(signal.SIGINT, 3))
    finally:
        signal.signal(signal.SIGINT, before)
    assert model.calls == 99 - 2


def test_a_full_disk():
    """Catches an error that hides the cause, or an older checkpoint lost to it."""
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
    """Catches the news after the training, without the place."""
    where = folder() / "file"
    where.write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        short_run(checkpoint_dir=where)


def test_data_follow_the_model():
    """Catches float64 data that stop a float32 network, or that are changed."""
    data = examples(6)
    before = data.clone()
    run = train(
        network().float(), OTPath(), data, steps=2, batch_size=3, progress=False
    )
    assert run.losses.dtype == torch.float32
    assert torch.equal(data, before)


def test_the_bar():
    """Catches a bar that stays silent, or speaks when told not to; a wrong mean."""
    shown, silent = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(shown):
        run = train(network(), OTPath(), examples(), steps=53, batch_size=4)
    assert "53/53" in shown.getvalue()
    assert f"loss={run.losses[-50:].mean():.4g}" in shown.getvalue()
    with contextlib.redirect_stderr(silent):
        train(network(), OTPath(), examples(), steps=2, batch_size=4, progress=False)
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
    """Catches a check at the end only; the last bad step named, not the first."""
    model = Breaks(step)
    with pytest.raises(FloatingPointError, match=f"loss of step {step} is nan"):
        train(model, OTPath(), examples(), steps=steps, batch_size=4, progress=False)
    assert model.calls == step - made


def test_infinite_losses():
    """Catches a check for NaN alone."""
    require_finite_losses(torch.ones(3))
    with pytest.raises(FloatingPointError, match="step 1 is inf"):
        require_finite_losses(torch.tensor([1.0, math.inf, math.nan]))
    with pytest.raises(FloatingPointError, match="step 102 is nan"):
        require_finite_losses(torch.tensor([1.0, 2.0, math.nan]), 100)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        *REFUSED,
        (examples(6)[:, 0], ValueError, r"x must have shape \(B, 3\), got \(4,\)"),
        (examples(6)[:0], ValueError, "at least one point, got none"),
        (examples(3), ValueError, r"\[1, 3\], the number of points in data, got 4"),
    ],
)
def test_refuses_data(data, error, match):
    """Catches bad data that fails in the thousandth step, or never."""
    with pytest.raises(error, match=match):
        train(network(), OTPath(), data, steps=1, batch_size=4, progress=False)


@pytest.mark.parametrize("model", [nn.Identity(), network().requires_grad_(False)])
def test_refuses_a_model_without_parameters(model):
    """Catches StopIteration from deep inside; run.ema, which is frozen, trained on."""
    with pytest.raises(ValueError, match=r"(Identity|MLP) has no parameters to train"):
        trained_weight(model)


def test_data_follow_the_weights_that_are_trained():
    """Catches the dtype of a frozen part, which comes first."""
    model = nn.Sequential(network().float().requires_grad_(False), network())
    assert trained_weight(model).dtype == F64


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"clip": 0}, "clip > 0 or None, got 0"),
        ({"clip": math.inf}, "clip > 0 or None, got inf"),
        ({"checkpoint_every": 0}, "checkpoint_every >= 1, got 0"),
        ({"checkpoint_every": 1.5}, "checkpoint_every >= 1, got 1.5"),
        ({"steps": 0}, "steps >= 1, got 0"),
        ({"steps": 2.5}, "steps >= 1, got 2.5"),
        ({"times": "cosine"}, "got 'cosine'"),
        ({"precision": "half"}, "got 'half'"),
    ],
)
def test_refuses_options(option, match):
    """Catches gradients clipped to nothing, no step at all, a checkpoint never."""
    with pytest.raises(ValueError, match=match):
        short_run(**option)


def test_the_floor():
    """Catches a floor that is lost, or shown as something else."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        run = short_run(floor=LossFloor(0.25, 0.01), progress=True)
    assert run.floor == 0.25
    assert f"excess={run.losses.mean() - 0.25:.3g}" in shown.getvalue()
    assert short_run(floor=0.5).floor == 0.5 and short_run().floor is None


class Notes:
    """Stands in for a checkpoint's keeper and for a bar, and notes what they get."""

    writes = True

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


class Two:
    """Stands in for accelerate: the first of two processes."""

    process_index, num_processes, device = 0, 2, "cpu"

    def __init__(self, reduce):
        self.reduce = reduce


def opened(steps, **options):
    """A session that saves nothing."""
    given = {"batch_size": 4, "settings": {}, "progress": False, **options}
    return Session(network(), OTPath(), examples(), steps=steps, **given)


def watched(steps, *, done=0, asked_at=None, every=1000, **options):
    """The steps that are dealt, 3,000 a second, and what keeper and bar were told.

    The first one takes 60 times as long more, and so does each save.
    """
    notes, taken = Notes(), []
    with (
        opened(steps, checkpoint_every=every, **options) as run,
        pytest.MonkeyPatch.context() as patch,
    ):
        run.keeper = run.bar = notes
        run.state.done, run.rate = done, 0.5
        waits = lambda: 60 * (run.state.done > done) + 60 * len(notes.saved)  # noqa: E731
        clock = lambda: 3 + (run.state.done + waits()) / 3000  # noqa: E731
        patch.setattr(time, "perf_counter", clock)
        for step, *_ in run.batches():
            taken.append(step)
            run.losses[step] = step
            if step == asked_at:
                run.received.append(signal.SIGTERM)
    assert notes.moved == len(taken)
    return taken, notes


def test_what_the_bar_says():
    """Catches floor minus loss, seconds for samples, the steps of an earlier start."""
    taken, notes = watched(120, done=4, floor=0.5)
    assert taken == [*range(4, 120)]
    assert [said["loss"] for said in notes.said] == ["28.5", "78.5", "94.5"]
    assert [said["excess"] for said in notes.said] == ["28", "78", "94"]
    rates = [said["samples/s"] for said in notes.said]
    assert rates == [f"{12_000 * 50 / 110:,.0f}", "12,000", "12,000"]
    rates = [said["samples/s"] for said in watched(120, every=40)[1].said]
    assert rates == [f"{12_000 * 40 / 100:,.0f}", "12,000", "12,000"]
    assert "excess" not in watched(3)[1].said[0]
    with progress_bar(9, done=4, shown=False) as bar:
        assert (bar.total, bar.n) == (9, 4)


def test_when_it_looks_and_saves():
    """Catches a look at each step, none before a save, a request that is put off."""
    assert watched(120, every=40)[1].saved == [40, 80, 120]
    assert len(watched(120, every=40)[1].said) == 3
    assert len(watched(120)[1].said) == 3  # after 50, 100 and 120
    taken, notes = watched(120, every=40, asked_at=46)
    assert taken == [*range(47)] and notes.saved == [40, 47]
    assert watched(5, done=5)[0] == []


def test_what_a_hook_is_shown():
    """Catches seconds since the last look, steps that are not done, another rate."""
    seen = []
    _, notes = watched(120, done=4, on_look=lambda step, run: seen.append((step, run)))
    assert [step for step, _ in seen] == [54, 104, 120] and notes.saved == [120]
    assert [len(run.losses) for _, run in seen] == [54, 104, 120]
    assert [run.losses[-1].item() for _, run in seen] == [53.0, 103.0, 119.0]
    assert {run.rate for _, run in seen} == {0.5}
    assert_close([run.seconds * 3000 for _, run in seen], [110.0, 160.0, 176.0])
    speeds = [run.samples_per_second for _, run in seen]
    assert_close(speeds, [12_000 * 50 / 110, 12_000.0, 12_000.0])


def test_a_hook_changes_nothing():
    """Catches draws or a mode of the hook's that the next step feels."""
    data = (examples(), torch.arange(11))

    class Labelled(Drops):
        def forward(self, x, t, y=None):
            return super().forward(x, t)

    def looking(step, run):
        model, ema = run.model, run.ema
        assert model.training and model.drop.training and not ema.training
        assert not any(p.requires_grad for p in ema.parameters())
        assert ema.calls == model.calls == step and len(run.losses) == step
        sample(ema, torch.randn(4, 3, dtype=F64))
        model.eval(), ema.train()
        run.losses.zero_()
        torch.manual_seed(step)

    given = {"data": data, "steps": 103, "clip": 0.5, "lr": CosineLR(0.1, 103)}
    plain = short_run(model=Labelled(), **given)
    before = torch.get_rng_state()
    assert equal_runs(short_run(model=Labelled(), on_look=looking, **given), plain)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_hook_sees_is_the_run():
    """Catches an average of an earlier step, a rate of the next, a save before it."""
    where, seen = folder(), []

    def looking(step, run):
        kept = list(checkpoints(where))
        average = [p.clone() for p in run.ema.parameters()]
        seen.append((step, kept, run.rate, run.losses, average))

    def lr(step):
        return 0.1 / (1 + step)

    given = {"checkpoint_dir": where, "checkpoint_every": 3, "on_look": looking}
    short_run(steps=7, lr=lr, **given)
    assert [look[:2] for look in seen] == [(3, []), (6, [3]), (7, [3, 6])]
    for step, _, rate, losses, average in seen:
        alone = short_run(steps=step, lr=lr)
        assert rate == lr(step - 1) and torch.equal(losses, alone.losses)
        assert all(map(torch.equal, average, alone.ema.parameters()))


def test_no_hook_sees_a_loss_that_is_not_finite():
    """Catches a hook that draws a picture of NaN."""
    seen = []
    given = {"steps": 90, "on_look": lambda step, run: seen.append(step)}
    with pytest.raises(FloatingPointError):
        short_run(model=Breaks(57), **given)
    assert seen == [50]


class Enough(BaseException):
    """Not even an Exception."""


def test_a_hook_that_raises():
    """Catches an error swallowed, a save after it, something left borrowed."""
    where, before = folder(), signal.getsignal(signal.SIGINT)

    def enough(step, run):
        run.model.eval()
        if step == 6:
            raise Enough(step)

    given = {"steps": 9, "checkpoint_dir": where, "checkpoint_every": 3}
    model = network()
    state = torch.get_rng_state()
    with pytest.raises(Enough):
        short_run(model=model, on_look=enough, **given)
    assert list(checkpoints(where)) == [3] and model.training
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.equal(torch.get_rng_state(), state)
    assert equal_runs(short_run(**given), short_run(steps=9))


def test_what_is_refused_leaves_nothing_borrowed():
    """Catches accelerate's state of a run that never began."""
    from accelerate import state

    shared = [c._shared_state for c in vars(state).values() if _shares(c)]
    before = [dict(kept) for kept in shared]
    with pytest.raises(ValueError, match="got 12"):
        short_run(batch_size=12)
    assert [dict(kept) for kept in shared] == before


def test_the_average():
    """Catches the shares exchanged; weights that are averaged themselves."""
    with opened(2) as run:
        first = [p.detach().clone() for p in run.model.parameters()]
        for p in run.model.parameters():
            nn.init.constant_(p, 3.0)
        run.average(0.25)
        average = run.finish()
    for p, old, new in zip(average.parameters(), first, run.weights, strict=True):
        assert_close(p, 0.25 * old + 0.75 * 3.0)
        assert bool((new == 3.0).all())


def test_several_look_together():
    """Catches one process that leaves alone; losses of one's share; a fixed pace."""
    notes, calls = Notes(), itertools.count()

    def reduce(tensor, how="sum"):
        if how == "mean":
            return tensor + 1
        stops = next(calls) == 2  # the other process, when they look a third time
        return tensor + torch.tensor([0, stops, 0.5])

    with opened(9) as run, pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: run.state.done / 2)
        patch.setattr(session, "agree_to_stop", slower(session.agree_to_stop))
        run.keeper, run.bar, run.accelerator = notes, notes, Two(reduce)
        taken = [step for step, *_ in run.batches()]
    assert taken == [*range(5)] and notes.saved == [5]  # after looks at 1, 3 and 5
    assert run.received == [signal.SIGTERM]
    assert run.losses.tolist() == [1.0] * 5 + [0.0] * 4


def test_a_signal_during_the_sum():
    """Catches one process that stops by itself, as it has heard since it was asked."""
    notes = Notes()

    def reduce(tensor, how="sum"):
        if how == "sum" and run.state.done == 1 and not run.received:
            run.received.append(signal.SIGTERM)  # after it was read
        return 2 * tensor if how == "sum" else tensor

    with opened(4) as run, pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: float(run.state.done))
        run.keeper, run.bar, run.accelerator = notes, notes, Two(reduce)
        taken = [step for step, *_ in run.batches()]
    assert taken == [0, 1] and notes.saved == [2]  # heard at the next look


def slower(agree):
    """Asked after a step of half a second, two processes look again after two."""

    def checked(accelerator, received, seconds):
        assert seconds == 0.5
        stop, pace = agree(accelerator, received, seconds)
        assert pace == 2
        return stop, pace

    return checked


def test_a_span_that_begins_later():
    """Catches times that end outside, since all paths begin at 0."""
    seen = []

    def watching(field, path, x1, *, t, x0):
        seen.append(t)
        return cfm_loss(field, OTPath(), x1, t=t, x0=x0)

    short_run(
        path=types.SimpleNamespace(t_span=(0.25, 0.75), prior_std=1.0), loss=watching
    )
    times = [drawn(draw_seeds(seeded(3)), k, examples(), 4)[1] for k in range(6)]
    assert_close(torch.stack(seen), 0.25 + 0.5 * torch.stack(times))


def test_the_noise_is_the_prior_s():
    """Catches standard normal noise on a path that starts wider."""
    seen = []

    def watching(field, path, x1, *, t, x0):
        seen.append(x0)
        return cfm_loss(field, OTPath(), x1, t=t, x0=x0)

    span = {"t_span": (0.0, 1.0), "prior_std": 5.0}
    short_run(path=types.SimpleNamespace(**span), loss=watching)
    noise = [drawn(draw_seeds(seeded(3)), k, examples(), 4)[2] for k in range(6)]
    assert_close(torch.stack(seen), 5 * torch.stack(noise))


def test_the_second_of_three_processes():
    """Catches rows of another share, or two; layers seeded alike in all processes."""
    seen = []

    def watching(field, path, x1, *, t, x0):
        seen.append((torch.initial_seed(), x1, t, x0))
        return cfm_loss(field, path, x1, t=t, x0=x0)

    seeds = draw_seeds(seeded(1))
    with second_of_three():
        short_run(1, steps=3, batch_size=6, loss=watching)
    for step, (seed, *found) in enumerate(seen):
        assert seed == other_seed(seeds[0], "layers", step, 1)
        for part, whole in zip(found, drawn(seeds, step, examples(), 6), strict=True):
            assert torch.equal(part, whole[2:4])


@contextlib.contextmanager
def second_of_three():
    """`train` as the second of three processes sees it."""
    borrowed = session.borrow_accelerator

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
        patch.setattr(session, "borrow_accelerator", second)
        yield


class Jittered(Dataset):
    """Points that are moved at random when they are read, by torch's own generator."""

    def __len__(self):
        return 11

    def __getitem__(self, row):
        return examples()[row] + torch.randn(3, dtype=F64)


@contextlib.contextmanager
def as_on_a_gpu():
    """Layers draw from another generator than a `Dataset`, as they do on a GPU."""
    layers = torch.Generator()
    with pytest.MonkeyPatch.context() as patch:
        borrowed = contextlib.nullcontext(layers)
        patch.setattr(session, "borrow_layer_generator", lambda device: borrowed)
        yield


@pytest.mark.parametrize("where", [contextlib.nullcontext, as_on_a_gpu])
def test_a_dataset_with_random_transforms(where):
    """Catches crops and flips that nobody seeds where the model is on a GPU."""
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
    """Catches items that change with the number of processes; steps that repeat."""
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
    order = [drawn(draw_seeds(seeded(1)), step, examples(), 6)[0] for step in range(3)]
    moved = torch.stack(alone) - torch.stack(order)
    assert len(moved.flatten().unique()) == moved.numel()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e-3])
def test_a_rate_that_goes_wrong(bad):
    """Catches weights that a rate of NaN has spoilt, found out 50 steps later."""
    model = network()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=f"lr >= 0, got {bad} in step 3"):
        short_run(model=model, lr=lambda step: bad if step == 3 else 0.0)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("tree", [{"weights": torch.ones(3)}, [torch.ones(3)], {}])
def test_a_checkpoint_of_something_else(tree):
    """Catches a KeyError for whoever keeps another checkpoint in the folder."""
    where = folder()
    save_checkpoint(where, 3, tree)
    with pytest.raises(ValueError, match=r"step-00000003\.safetensors is no checkp"):
        short_run(checkpoint_dir=where)


def test_a_run_of_another_program():
    """Catches a KeyError for the seeds that another user of `Keeper` has none of."""
    where = folder()
    given = {"checkpoint_dir": where, "generator": None}
    short_run(**given)
    tree = load_checkpoint(where / "step-00000006.safetensors")
    save_checkpoint(where, 8, {**tree, "config": {}})
    with pytest.raises(ValueError, match=r"08\.safetensors is of another run"):
        short_run(steps=9, **given)


PARTS = {m.__file__ for m in (training, session, distributed, runs)}


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

    agree, alone = distributed.agree_to_stop, contextlib.nullcontext
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "save_checkpoint", lambda *given: here.save(*given))
        for module in (session, runs):
            patch.setattr(
                module, "broadcast_from_rank0", lambda value: here.process.agreed(value)
            )
        for name, stand_in in {
            "agree_to_stop": lambda *given: agree(*given[:2], 0.5),  # every 2 steps
            "borrow_accelerator": lambda *_: alone((here.process, torch.device("cpu"))),
            "borrow_layer_generator": lambda _: alone(torch.Generator()),
            "hold_signals": hold,
            "prepare": lambda _, model, adam: (model, Wrapped(adam)),
        }.items():
            patch.setattr(session, name, stand_in)
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


def looked_at_together(hooks):
    """Two threads train; by rank, the steps that its hook saw and how it ended."""
    seen = [], []

    def work(process, received):
        rank = process.process_index

        def looking(step, run):
            seen[rank].append(step)
            hooks[rank](step)

        on_look = looking if hooks[rank] else None
        model = Columns(nn.Bilinear(3, 1, 3).double())
        return short_run(1, model, steps=5, checkpoint_dir="nowhere", on_look=on_look)

    ends, saved, early, _ = played(work, 0, 0)
    assert not early
    return seen, ends, saved


def test_a_hook_of_several_processes():
    """Catches a hook that speaks twice; one that leaves the others waiting."""
    calm = lambda step: None  # noqa: E731

    def raising(step):
        if step == 3:
            raise KeyError("enough")

    for hooks in ((calm, calm), (calm, None)):
        seen, ends, saved = looked_at_together(hooks)
        assert seen == ([1, 3, 5], []) and saved == [5]
        assert all(len(run.losses) == 5 for run in ends)
    assert looked_at_together((None, calm))[0] == ([], [])
    seen, (first, second), saved = looked_at_together((raising, None))
    assert seen == ([1, 3], []) and saved == []
    assert isinstance(first, KeyError) and isinstance(second, RuntimeError)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_at_every_line_of_train(rank):
    """Catches one process that acts on a signal which the sum has not heard of.

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
