"""The training loop."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from flowbook.batches import draw_seeds
from flowbook.checkpoints import load_checkpoint
from flowbook.losses import cfm_loss
from flowbook.networks import MLP
from flowbook.paths import OTPath, VPPath
from flowbook.training import CosineLR, ema_rate, train

from ..folders import folder
from ..given import F64, seeded
from ..runs import drawn, examples, network, short_run


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
    """Catches lr, ema or clip ignored, t off its span, gradients that add up."""
    path, data, seeds = VPPath(), examples(11), draw_seeds(seeded(3))

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
    """Catches another order of the draws; Adam with other defaults."""
    path, data, seeds = OTPath(), examples(9), draw_seeds(seeded(4))
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


def test_labels_reach_the_model():
    """Catches labels dropped, or dealt in another order than the points."""

    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=F64))
            self.seen = []

        def forward(self, x, t, y):
            self.seen.append(y)
            return self.scale * x

    data = examples(11)
    model, seeds = Labelled(), draw_seeds(seeded(3))
    short_run(model=model, data=(data, torch.arange(11)))
    for step, y in enumerate(model.seen):
        assert torch.equal(data[y], drawn(seeds, step, data, 4)[0])


def test_a_loss_of_your_own():
    """Catches cfm_loss whatever is asked for; draws that aren't handed on."""

    def tripled(field, path, x1, *, t, x0):
        return 3 * cfm_loss(field, path, x1, t=t, x0=x0)

    assert_close(short_run(loss=tripled).losses[0], 3 * short_run().losses[0])


def test_cosine_lr():
    """Catches a climb that starts at 0, a cosine that ends early or too high."""
    rate = CosineLR(0.8, 12, warmup=4)
    assert_close([rate(k) for k in range(4)], [0.2, 0.4, 0.6, 0.8])
    assert_close(
        [rate(4), rate(6), rate(8), rate(12)], [0.8, 0.4 + 0.4 / 2**0.5, 0.4, 0.0]
    )
    assert rate(20) == pytest.approx(0, abs=1e-16)
    assert CosineLR(0.8, 12)(0) == 0.8


def test_another_schedule_is_another_run():
    """Catches a run that goes on at the rates of another cosine; its own refused."""
    where = folder()
    short_run(lr=CosineLR(0.1, 12, warmup=2), checkpoint_dir=where)
    short_run(lr=CosineLR(0.1, 12, warmup=2), checkpoint_dir=where, steps=8)
    named = (
        r"lr: CosineLR\(lr=0.1, steps=12, warmup=2\) there, CosineLR\(lr=0.1, steps=13"
    )
    with pytest.raises(ValueError, match=named):
        short_run(lr=CosineLR(0.1, 13, warmup=2), checkpoint_dir=where, steps=9)


@pytest.mark.parametrize(("lr", "steps", "warmup"), [(0, 5, 0), (1, 5, 5), (1, 5, -1)])
def test_cosine_lr_refuses(lr, steps, warmup):
    """Catches a division by no steps."""
    with pytest.raises(ValueError, match=f"lr {lr}, warmup {warmup}, steps {steps}"):
        CosineLR(lr, steps, warmup=warmup)


def test_the_run():
    """Catches an average that trains on, or is the model itself; tracked losses."""
    model = network((2, 2))
    given = {"steps": 3, "batch_size": 5, "progress": False}
    run = train(model, OTPath(), examples(6, 2, 2), **given)
    assert run.losses.shape == (3,) and not run.losses.requires_grad
    assert type(run.ema) is MLP and not run.ema.training and model.training
    assert not any(p.requires_grad for p in run.ema.parameters())
    assert all(p.requires_grad for p in model.parameters())
    pairs = zip(model.parameters(), run.ema.parameters(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)
    assert run.ema(examples(5, 2, 2), 0.5).shape == (5, 2, 2)


def test_ema_rate():
    """Catches max for min, a warm-up that is off by one or too slow."""
    found = [ema_rate(0.9, n) for n in (0, 1, 8, 79, 80, 81, 1000)]
    assert found == [1 / 10, 2 / 11, 9 / 18, 80 / 89, 81 / 90, 0.9, 0.9]


def test_ema_forgets_the_first_weights():
    """Catches the warm-up left out (the first weights keep 0.98 after 20 steps)."""
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


@pytest.mark.parametrize(
    ("ema", "lr"),
    [
        (1.0, 1e-3),
        (-0.1, 1e-3),
        (math.nan, 1e-3),
        (0.9, 0.0),
        (0.9, math.inf),
        (0.9, math.nan),
    ],
)
def test_refuses_settings(ema, lr):
    """Catches an average that never moves (ema = 1), lr of NaN."""
    with pytest.raises(ValueError, match=f"got ema {ema}, lr {lr}"):
        short_run(ema=ema, lr=lr)


def test_a_loss_without_a_name():
    """Catches a loss made by functools.partial that stops a run with a folder."""

    def times_n(field, path, x1, *, t, x0, n):
        return n * cfm_loss(field, path, x1, t=t, x0=x0)

    where, doubled = folder(), functools.partial(times_n, n=2)
    short_run(loss=doubled, checkpoint_dir=where)
    tree = load_checkpoint(where / "step-00000006.safetensors")
    assert tree["config"]["loss"] == "a function"


def test_a_rate_that_begins_at_zero():
    """Catches the warm-up min(step, w) / w refused."""
    model, step_0 = network(), []

    def rate(step):
        if step == 1:
            step_0.extend(p.clone() for p in model.parameters())
        return 1e-3 * min(step, 3) / 3

    before = [p.clone() for p in model.parameters()]
    short_run(model=model, lr=rate)
    assert all(map(torch.equal, before, step_0))
    assert not all(map(torch.equal, before, model.parameters()))
