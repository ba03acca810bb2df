"""The two losses and the floor between them."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from flowbook.losses import cfm_loss, fm_loss, loss_floor
from flowbook.notation import time_per_sample
from flowbook.paths import OTPath, VEPath, VPPath

from ..given import F64, points, seeded


class Line:
    """The linear path, by hand, on an uneven span of times."""

    t_span = (0.25, 0.75)

    def interpolate(self, x0, x1, t):
        t = time_per_sample(t, x1)
        s = t.reshape(-1, *[1] * (x1.ndim - 1))
        xt = (1 - s) * x0 + s * x1
        return SimpleNamespace(x0=x0, x1=x1, t=t, xt=xt, ut=x1 - x0)

    prior = staticmethod(torch.randn)


def field(x, t):
    return x.sin() + t.view(-1, *[1] * (x.ndim - 1)) ** 2


def by_hand(x0, x1, t, v=field):
    """One sample and one coordinate at a time."""
    total = 0.0
    for a, b, c in zip(x0, x1, t, strict=True):
        xt = (1 - c) * a + c * b
        error = v(xt[None], c[None])[0] - (b - a)
        total += sum(e.item() ** 2 for e in error.flatten())
    return total / len(x1)


def errors_by_hand(x0, x1, t):
    """Each example's own loss."""
    rows = [[part[i : i + 1] for part in (x0, x1, t)] for i in range(len(x1))]
    return torch.tensor([by_hand(*row) for row in rows], dtype=x1.dtype)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 2, 3)])
def test_weights_and_reductions_by_hand(shape):
    """Catches weights on another example, normalised, squared, or left out of one."""
    x0, x1 = points(*shape, seed=1), points(*shape, seed=2)
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    given, w = {"t": t, "x0": x0}, torch.tensor([2.0, 0.5, 0.0, 3.0, 1.0], dtype=F64)
    errors = errors_by_hand(x0, x1, t)
    for weight, factor in ((None, 1), (w, w), (lambda t: 1 + t**2, 1 + t**2)):
        given["weight"] = weight
        each = cfm_loss(field, Line(), x1, **given, reduction="none")
        assert_close(each, errors * factor)
        assert_close(cfm_loss(field, Line(), x1, **given), (errors * factor).mean())
    seen = []
    at_once = cfm_loss(
        field, Line(), x1, t=0.25, x0=x0, weight=lambda t: seen.append(t) or t
    )
    assert_close(seen[0], torch.full((5,), 0.25, dtype=F64))  # one time for each
    quarter = torch.full_like(t, 0.25)
    assert_close(at_once, 0.25 * errors_by_hand(x0, x1, quarter).mean())


def test_a_condition_is_bound():
    """Catches a condition that another example gets."""
    x0, x1 = points(5, 3, seed=1), points(5, 3, seed=2)
    t, y = torch.linspace(0.1, 0.9, 5, dtype=F64), torch.arange(5, dtype=F64)
    scaled = partial(lambda x, t, y: y[:, None] * x, y=y)
    found = cfm_loss(scaled, Line(), x1, t=t, x0=x0, reduction="none")
    xt = (1 - t[:, None]) * x0 + t[:, None] * x1
    assert_close(found, (y[:, None] * xt - (x1 - x0)).square().sum(1))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"reduction": "sum"}, ValueError, "must be 'mean' or 'none', got 'sum'"),
        ({"reduction": None}, ValueError, "must be 'mean' or 'none', got None"),
        ({"weight": torch.ones(4)}, ValueError, r"weight must return shape \(5,\)"),
        ({"weight": torch.ones(5, 1)}, ValueError, r"weight must return shape \(5,\)"),
        ({"weight": torch.ones(5).double()}, TypeError, "weight must return torch.f"),
        ({"weight": torch.ones(5).long()}, TypeError, "weight must return torch.f"),
        ({"weight": 2.0}, TypeError, "weight must return a tensor, got float"),
        ({"weight": lambda t: t[:, None]}, ValueError, r"weight must return shape"),
        ({"weight": lambda t: 1.0}, TypeError, "weight must return a tensor"),
    ],
)
def test_refuses_weights_and_reductions(options, error, said):
    """Catches weights that broadcast to (B, B), or a misspelt reduction."""
    x1 = points(5, 3, dtype=torch.float32)
    with pytest.raises(error, match=said):
        cfm_loss(field, Line(), x1, generator=seeded(), **options)


@pytest.mark.parametrize("shape", [(5, 3), (5, 1), (5, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_cfm_loss_by_hand(shape, dtype):
    """Catches mean for sum over dimensions, x0 for x1, target with the wrong sign."""
    x0, x1 = points(*shape, dtype=dtype, seed=1), points(*shape, dtype=dtype, seed=2)
    t = torch.linspace(0.1, 0.9, 5, dtype=dtype)
    loss = cfm_loss(field, Line(), x1, t=t, x0=x0)
    assert_close(loss, torch.tensor(by_hand(x0, x1, t), dtype=dtype))


def test_cfm_loss_at_one_time():
    """Catches a number t that isn't given to every sample."""
    x0, x1 = points(5, 3, seed=1), points(5, 3, seed=2)
    loss = cfm_loss(field, Line(), x1, t=0.3, x0=x0)
    expected = by_hand(x0, x1, torch.full((5,), 0.3, dtype=F64))
    assert_close(loss, torch.tensor(expected, dtype=F64))
    zero_d = cfm_loss(field, Line(), x1, t=torch.tensor(0.3, dtype=F64), x0=x0)
    assert_close(zero_d, loss)


def test_draws_follow_the_path():
    """Catches times outside t_span, noise that is not N(0, I), another order."""
    seen = {}

    def spy(x, t):
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    x1 = points(5, 3)
    loss = cfm_loss(spy, Line(), x1, generator=seeded(7))
    same = seeded(7)
    t = 0.25 + 0.5 * torch.rand(5, generator=same, dtype=F64)
    x0 = torch.randn(5, 3, generator=same, dtype=F64)
    assert_close(seen["t"], t)
    assert_close(seen["x"], (1 - t[:, None]) * x0 + t[:, None] * x1)
    assert_close(loss, (x1 - x0).square().sum(1).mean())
    assert_close(cfm_loss(spy, Line(), x1, generator=seeded(7)), loss)


def test_given_times_and_noise_are_used():
    """Catches an argument that is drawn although it is given."""
    x1, x0 = points(5, 3), points(5, 3, seed=3)
    only_noise = cfm_loss(field, Line(), x1, x0=x0, generator=seeded(7))
    t = 0.25 + 0.5 * torch.rand(5, generator=seeded(7), dtype=F64)
    assert_close(only_noise, cfm_loss(field, Line(), x1, x0=x0, t=t))
    only_time = cfm_loss(field, Line(), x1, t=t, generator=seeded(7))
    x0 = points(5, 3, seed=7)
    assert_close(only_time, cfm_loss(field, Line(), x1, x0=x0, t=t))


def test_times_have_the_dtype_of_the_data():
    """Catches times made to go with the noise."""
    path, seen = Line(), []

    def spy(x0, x1, t):
        seen.append(t.dtype)
        return Line.interpolate(path, x0, x1, t)

    path.interpolate, t = spy, torch.tensor(0.3)
    cfm_loss(field, path, points(5, 3), x0=points(5, 3, dtype=torch.float32), t=t)
    assert seen == [F64]


def test_gradients_flow_into_the_field():
    """Catches a loss that is detached, or has the gradient of another one."""
    x0, x1 = points(5, 3, seed=1), points(5, 3, seed=2)
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    cfm_loss(lambda x, t: a * x, Line(), x1, t=t, x0=x0).backward()
    xt = (1 - t[:, None]) * x0 + t[:, None] * x1
    expected = (2 * (0.7 * xt - (x1 - x0)) * xt).sum(1).mean()
    assert_close(a.grad, expected)


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3, 4)])
@pytest.mark.parametrize("t", [0.3, "batch"])
def test_fm_loss_by_hand(shape, t):
    """Catches mean for sum, a gradient into the target, times that go astray."""
    scale = torch.tensor(1.5, dtype=F64, requires_grad=True)
    marginal = SimpleNamespace(velocity=lambda x, t: scale * x.cos() * (1 + t.max()))
    x = points(*shape)
    times = torch.linspace(0.1, 0.9, 5, dtype=F64) if t == "batch" else t
    loss = fm_loss(field, marginal, x, times)
    each = torch.as_tensor(times, dtype=F64).expand(5)
    target = 1.5 * x.cos() * (1 + each.max())
    gap = field(x, each) - target
    expected = sum(e**2 for e in gap.flatten().tolist()) / 5
    assert_close(loss, torch.tensor(expected, dtype=F64))
    assert not loss.requires_grad


def test_loss_floor_by_hand():
    """Catches variance for standard error, a sum of the two fields, a graph kept."""

    def velocity(x, t):
        assert not torch.is_grad_enabled()
        return x.sin() + t[:, None]

    marginal = SimpleNamespace(velocity=velocity)
    x0, x1 = points(6, 3, seed=1), points(6, 3, seed=2)
    t = torch.linspace(0.1, 0.9, 6, dtype=F64)
    floor = loss_floor(Line(), marginal, x1, t=t, x0=x0)
    xt = (1 - t[:, None]) * x0 + t[:, None] * x1
    squares = (x1 - x0 - xt.sin() - t[:, None]).square().sum(1).tolist()
    mean = sum(squares) / 6
    spread = math.sqrt(sum((s - mean) ** 2 for s in squares) / 5)
    assert floor.value == pytest.approx(mean, rel=1e-12)
    assert floor.standard_error == pytest.approx(spread / math.sqrt(6), rel=1e-12)


def test_loss_floor_of_a_gaussian():
    """Catches a floor that isn't the closed form, π/2 for standard normal data."""
    path = Line()
    path.t_span = (0.0, 1.0)

    def velocity(x, t):  # for N(0, 1): (2t − 1) x / (t² + (1 − t)²)
        return (2 * t - 1)[:, None] * x / (t**2 + (1 - t) ** 2)[:, None]

    marginal = SimpleNamespace(velocity=velocity)
    floor = loss_floor(path, marginal, points(4_000, 1), generator=seeded(3))
    assert abs(floor.value - math.pi / 2) < 4 * floor.standard_error < 0.2
    assert not isinstance(floor.value, torch.Tensor)


def test_noise_is_the_prior_s_also_where_that_is_wide():
    """Catches standard normal x0 on a VE path, whose points then lie too near."""
    path, seen = VEPath(0.1, 5.0), {}

    def velocity(x, t):  # for N(0, 1): σ dσ x / (1 + σ²)
        _, sigma, _, dsigma = path.schedule(t)
        seen.update(x=x, variance=1 + sigma**2)
        return (sigma * dsigma / seen["variance"])[:, None] * x

    x1 = points(20_000, 1)
    floor = loss_floor(path, SimpleNamespace(velocity=velocity), x1, generator=seeded())
    whitened = seen["x"][:, 0].square() / seen["variance"]  # χ²(1): variance 2
    assert abs(whitened.mean() - 1) < 4 * math.sqrt(2 / len(x1))
    # ½ L ln((1 + σ_max²) / (1 + σ_min²)), L = ln(σ_max / σ_min)
    closed = 0.5 * math.log(50) * math.log((1 + 25) / (1 + 0.01))
    assert abs(floor.value - closed) < 4 * floor.standard_error < 0.5
    loss = cfm_loss(velocity, path, x1, generator=seeded())
    assert loss.item() == pytest.approx(floor.value, rel=1e-12)


@pytest.mark.parametrize(
    "wrong, error, match",
    [
        (lambda x, t: x[:, :1], ValueError, r"\(5, 3\), as x, got \(5, 1\)"),
        (lambda x, t: x[:1], ValueError, r"as x, got \(1, 3\)"),
        (lambda x, t: x.float(), TypeError, "float64.*got.*float32"),
        (lambda x, t: None, TypeError, "tensor, got NoneType"),
    ],
)
def test_field_of_another_shape_or_dtype(wrong, error, match):
    """Catches a silent broadcast or upcast of the field's answer."""
    x1 = points(5, 3)
    with pytest.raises(error, match=match):
        cfm_loss(wrong, Line(), x1)
    with pytest.raises(error, match=match):
        fm_loss(wrong, SimpleNamespace(velocity=lambda x, t: x), x1, 0.5)


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"x1": torch.ones(5, 3, dtype=torch.int64)}, TypeError, "x1.*int64"),
        ({"x1": torch.tensor(1.0)}, ValueError, r"x1.*got \(\)"),
        ({"x0": torch.ones(5)}, ValueError, r"x0 \(5,\), x1 \(5, 3\)"),
        ({"x1": torch.ones(0, 3)}, ValueError, r"no points.*\(0, 3\)"),
        ({"x0": torch.ones(5, 1)}, ValueError, r"x0 \(5, 1\), x1 \(5, 3\)"),
        ({"x0": torch.ones(5, 3, dtype=torch.int64)}, TypeError, "x0.*int64"),
        ({"t": 1.5}, ValueError, "1.5"),
        ({"t": torch.rand(4)}, ValueError, r"\(4,\)"),
        ({"t": torch.ones(5, dtype=torch.int64)}, TypeError, "int64"),
    ],
)
def test_bad_input(change, error, match):
    """Catches a refusal that is lost, or doesn't name what came."""
    given = {"x1": torch.ones(5, 3)} | change
    x1 = given.pop("x1")
    with pytest.raises(error, match=match):
        cfm_loss(field, Line(), x1, **given)


def test_floor_of_one_point():
    """Catches a standard error of NaN from a single point."""
    with pytest.raises(ValueError, match="two points, got 1"):
        loss_floor(Line(), None, points(1, 3))


def test_fm_loss_of_bad_points():
    """Catches integer points, or none, accepted by fm_loss."""
    marginal = SimpleNamespace(velocity=lambda x, t: x)
    with pytest.raises(TypeError, match="int64"):
        fm_loss(field, marginal, torch.ones(5, 3, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match="no points"):
        fm_loss(field, marginal, torch.ones(0, 3), 0.5)


def test_a_number_t_is_for_the_path_to_refuse():
    """Catches a number turned into a tensor, which the path doesn't read: inf."""
    path, x1 = VPPath(), points(5, 3)
    marginal = SimpleNamespace(velocity=lambda x, t: x)
    for loss in (
        lambda t: cfm_loss(field, path, x1, t=t, generator=seeded()),
        lambda t: loss_floor(path, marginal, x1, t=t, generator=seeded()).value,
    ):
        with pytest.raises(ValueError, match="infinite speed at t = 1"):
            loss(1.0)
        tensor = torch.full((5,), 0.3, dtype=F64)
        assert float(loss(0.3)) == float(loss(tensor))


def test_a_triple_with_any_law():
    """Catches a mean target that is used where noise and data belong together.

    Pairs that don't cross have the floor 0 (displacement); the same noise and data,
    shuffled, have that of independent draws, π/2 times the deviation.
    """
    path, z = OTPath(), points(40_000, 1)

    def displacement(x, t):  # x_t = 1.5 t + (1 − t/2) z, of U = 1.5 − z/2
        return 1.5 - 0.5 * (x - 1.5 * t[:, None]) / (1 - 0.5 * t)[:, None]

    paired = cfm_loss(displacement, path, 1.5 + 0.5 * z, x0=z, generator=seeded())
    assert paired < 1e-28
    shuffled = cfm_loss(
        displacement, path, 1.5 + 0.5 * z, x0=z.roll(1, 0), generator=seeded()
    )
    assert shuffled > math.pi / 4
