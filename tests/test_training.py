"""Chapter 13: the training loop."""

import contextlib
import io
import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from flowbook.losses import cfm_loss
from flowbook.networks import MLP
from flowbook.schedules import CosinePath, OTPath
from flowbook.training import (
    batches,
    ema_rate,
    progress_bar,
    require_finite_losses,
    require_generator,
    train,
    training_data,
)

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(shape=3, seed: int = 1) -> MLP:
    torch.manual_seed(seed)
    return MLP(shape, width=8, depth=2, frequencies=3).double()


def points(n: int = 11, *shape: int) -> torch.Tensor:
    return torch.randn(n, *(shape or (3,)), generator=seeded(2), dtype=F64)


def by_hand(model, path, data, steps, batch_size, lr, decay, generator):
    """The loop, with an optimiser and an average written out."""
    parameters = list(model.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    average, losses = None, []
    for step in range(steps):
        place = step % (len(data) // batch_size)
        if place == 0:
            order = torch.randperm(len(data), generator=generator)
        x1 = torch.stack([data[i] for i in order.tolist()[place * batch_size :]])
        loss = cfm_loss(model, path, x1[:batch_size], generator=generator)
        grads = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, grads, first, second, strict=True):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                scale = (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                p -= lr * m / (1 - 0.9 ** (step + 1)) / scale
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
def test_train_is_the_loop_by_hand(decay):
    """Catches: lr or ema ignored, a batch dealt twice, gradients that add up."""
    path, data = CosinePath(), points(11)
    expected = network()
    losses, average = by_hand(expected, path, data, 8, 4, 0.02, decay, seeded(3))
    model = network()
    run = train(
        model,
        path,
        data,
        steps=8,
        batch_size=4,
        lr=0.02,
        ema=decay,
        generator=seeded(3),
        progress=False,
    )
    assert run.model is model
    assert_close(run.losses, torch.stack(losses))
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert_close(found, wanted)
    for found, wanted in zip(run.ema.parameters(), average, strict=True):
        assert_close(found, wanted.detach())


def test_to_the_last_bit():
    """Catches: another order of the draws; Adam with other defaults."""
    path, data, g = OTPath(), points(9), seeded(4)
    expected = network()
    optimiser = torch.optim.Adam(expected.parameters(), lr=1e-3)
    losses = []
    for step in range(5):
        if step % 2 == 0:
            order = torch.randperm(9, generator=g)
        rows = order[:4] if step % 2 == 0 else order[4:8]
        loss = cfm_loss(expected, path, data[rows], generator=g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    model = network()
    options = {"steps": 5, "batch_size": 4, "generator": seeded(4), "progress": False}
    run = train(model, path, data, **options)
    assert torch.equal(run.losses, torch.stack(losses))
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


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


def test_batches_deal_every_point_once():
    """Catches: draws with replacement, one shuffle for ever, a short last batch."""
    data = torch.arange(7.0)[:, None]
    dealt = list(itertools.islice(batches(data, 2, generator=seeded()), 9))
    assert all(batch.shape == (2, 1) for batch in dealt)
    epochs = [torch.cat(dealt[i : i + 3]).flatten().tolist() for i in (0, 3, 6)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


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
        ("empty", ValueError, r"\[1, 0\], the number of points in data, got 4"),
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


@pytest.mark.parametrize("batch_size", [0, 2.0, 12])
def test_refuses_batch_sizes(batch_size):
    """Catches: an empty batch, whose mean is NaN."""
    with pytest.raises(ValueError, match=f"number of points in data, got {batch_size}"):
        training_data(network(), points(11), batch_size)


@pytest.mark.parametrize("model", [nn.Identity(), network().requires_grad_(False)])
def test_refuses_a_model_without_parameters(model):
    """Catches: StopIteration from deep inside; run.ema, which is frozen, trained on."""
    with pytest.raises(ValueError, match=r"(Identity|MLP) has no parameters to train"):
        training_data(model, points(), 4)


def test_data_follow_the_weights_that_are_trained():
    """Catches: the dtype of a frozen part, which comes first."""
    model = nn.Sequential(network().float().requires_grad_(False), network())
    assert training_data(model, points().float(), 4).dtype == F64


def test_refuses_data_that_overflow_in_the_dtype_of_the_model():
    """Catches: data that are finite in float64 only, looked at before the cast."""
    with pytest.raises(ValueError, match="data must be finite, got 33 NaN or inf"):
        training_data(network().float(), 1e300 * points().abs() + 1e300, 4)


def test_refuses_a_generator_on_another_device():
    """Catches: a CPU generator for a model on a GPU ("meta" stands in for one)."""
    message = r"generator is on cpu, .* on meta: expected torch.Generator\('meta'\)"
    with pytest.raises(ValueError, match=message):
        train(network().to("meta"), OTPath(), points(), generator=seeded())
    with pytest.raises(ValueError, match=message):
        next(batches(torch.zeros(6, 3, device="meta"), 2, generator=seeded()))
    require_generator(None, torch.device("meta"))
    require_generator(seeded(), torch.device("cpu"))


@pytest.mark.parametrize("batch_size", [0, 7])
def test_batches_refuse_a_size(batch_size):
    """Catches: epochs without a batch, which loop for ever."""
    with pytest.raises(ValueError, match=rf"lie in \[1, 6\], got {batch_size}"):
        next(batches(points(6), batch_size))
