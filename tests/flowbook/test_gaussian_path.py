"""Theorem 3 as code: every formula against autodiff or another library's."""

import math
import pickle
from dataclasses import FrozenInstanceError, dataclass
from functools import partial

import pytest
import torch
from torch.autograd.functional import jvp
from torch.distributions import Normal
from torch.testing import assert_close

from flowbook.gaussian_path import GaussianPath
from flowbook.notation import PathSample, Schedule
from flowbook.solvers import RK4, solve

from ..given import draw, seeded


@dataclass(frozen=True)
class Crooked(GaussianPath):
    """No coincidences: alpha, sigma and their derivatives all differ everywhere."""

    start: float = 1.5

    def schedule(self, t):
        return Schedule(0.1 + t**2, self.start - t, 2 * t, -torch.ones_like(t))

    @property
    def prior_std(self):
        return self.start


@dataclass(frozen=True)
class Rooted(Crooked):
    """sigma reaches 0 at t = 1, and dsigma is infinite there."""

    def schedule(self, t):
        sigma = (1 - t).sqrt()
        return super().schedule(t)._replace(sigma=sigma, dsigma=-0.5 / sigma)

    @property
    def t_span(self):
        return (0.0, 0.99)


class Plain(Rooted):
    prior_std = GaussianPath.prior_std
    t_span = GaussianPath.t_span


PATH = Crooked()
SHAPES = [(5, 1), (5, 3), (5, 2, 3, 4)]
METHODS = ["velocity", "inverse", "score", "log_prob"]


def batch(shape=(5, 3), dtype=torch.float64):
    g = seeded(3)
    x0, x1 = torch.randn(2, *shape, generator=g, dtype=dtype).unbind()
    return x0, x1, torch.rand(shape[0], generator=g, dtype=dtype)


def mean_and_std(x1, t):
    s = t.view(-1, *[1] * (x1.ndim - 1))
    return (0.1 + s**2) * x1, (1.5 - s).expand_as(x1)


@pytest.mark.parametrize("shape", SHAPES)
def test_interpolate_is_the_map_and_its_time_derivative(shape):
    """Catches alpha and sigma, x0 and x1, or a function and its derivative
    exchanged.
    """
    x0, x1, t = batch(shape)

    def psi(t):
        mean, std = mean_and_std(x1, t)
        return mean + std / PATH.prior_std * x0

    xt, ut = jvp(psi, t, torch.ones_like(t))
    sample = PATH.interpolate(x0, x1, t)
    assert_close(sample.xt, xt)
    assert_close(sample.ut, ut)
    assert sample.x0 is x0 and sample.x1 is x1
    assert_close(sample.t, t)


@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_is_the_target_at_the_point(shape):
    """Catches a sign, a factor, the centre or the division of Theorem 3."""
    x0, x1, t = batch(shape)
    sample = PATH.interpolate(x0, x1, t)
    assert_close(PATH.velocity(sample.xt, t, x1), sample.ut)


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_undoes_interpolate(shape):
    """Catches sigma multiplied instead of divided, or the mean added."""
    x0, x1, t = batch(shape)
    assert_close(PATH.inverse(PATH.interpolate(x0, x1, t).xt, t, x1), x0)


@pytest.mark.parametrize("start", [1.0, 1.5, 4.0])
def test_the_path_takes_what_its_prior_draws(start):
    """Catches the prior's width not divided out: points too far out, or too near."""
    x0, x1, t = batch()
    wide = Crooked(start).interpolate(start * x0, x1, t)
    mean, _ = mean_and_std(x1, t)
    std = (start - t)[:, None]
    assert_close(wide.xt, mean + std * x0)
    assert_close(wide.ut, 2 * t[:, None] * x1 - x0)
    assert_close(Crooked(start).inverse(wide.xt, t, x1), start * x0)
    first = Crooked(start).interpolate(start * x0, x1, 0.0)
    assert_close(first.xt, 0.1 * x1 + start * x0)  # it starts where the prior is


@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob_and_score_are_the_gaussians(shape):
    """Catches a constant, the number of dimensions, a sign or a power of sigma."""
    x, x1, t = batch(shape)
    x.requires_grad_()
    reference = Normal(*mean_and_std(x1, t)).log_prob(x).flatten(1).sum(1)
    (gradient,) = torch.autograd.grad(reference.sum(), x)
    x.requires_grad_(False)
    assert_close(PATH.log_prob(x, t, x1), reference.detach())
    assert_close(PATH.score(x, t, x1), gradient)


@pytest.mark.parametrize("method", METHODS)
def test_one_time_for_all_is_that_time_for_each(method):
    """Catches a float or 0-d t read differently from a batched one."""
    x, x1, _ = batch()
    call = getattr(PATH, method)
    expected = call(x, torch.full((5,), 0.25, dtype=x.dtype), x1)
    assert_close(call(x, 0.25, x1), expected)
    assert_close(call(x, torch.tensor(0.25), x1), expected)
    sample = PATH.interpolate(x, x1, 0.25)
    assert_close(sample.t, torch.full((5,), 0.25, dtype=x.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_follow_the_points(dtype):
    """Catches a float64 constant that promotes, or a float32 one that demotes."""
    x0, x1, t = batch(dtype=dtype)
    wide = t.double()  # cast to the points' dtype
    results = [getattr(PATH, m)(x0, wide, x1) for m in METHODS]
    sample = PATH.interpolate(x0, x1, wide)
    results += [sample.xt, sample.ut, sample.t, PATH.prior_log_prob(x0)]
    assert {r.dtype for r in results} == {dtype}


def test_bound_velocity_is_a_field():
    """Catches x, t and x1 in another order: a solver has to arrive at ψ_1."""
    x0, x1, _ = batch()
    begin, end = (PATH.interpolate(x0, x1, t).xt for t in (0.0, 1.0))
    field = partial(PATH.velocity, x1=x1)
    # RK4, 32 steps: h⁴ = 1e-6 times |u| of a few
    assert_close(solve(field, begin, RK4(32)).x, end, rtol=0, atol=1e-5)


def test_prior_is_scaled_and_seeded():
    """Catches prior_std dropped or inverted, or the global generator used."""
    draws = [
        path.prior((4, 2), generator=seeded(1), dtype=torch.float64)
        for path in (Crooked(1.0), PATH, Plain())
    ]
    noise = draw(4, 2, seed=1)
    for drawn, expected in zip(draws, (noise, 1.5 * noise, noise), strict=True):
        assert_close(drawn, expected)
    assert PATH.prior(torch.Size([2, 3])).shape == (2, 3)


@pytest.mark.slow  # torch loads a lot for its first meta tensor
def test_prior_lies_on_the_device():
    """Catches device not passed on."""
    assert PATH.prior((2, 3), device="meta").device.type == "meta"


@pytest.mark.parametrize("shape", SHAPES)
def test_prior_log_prob(shape):
    """Catches a constant, the number of dimensions or a power of prior_std."""
    x, _, _ = batch(shape)
    reference = Normal(0.0, 1.5).log_prob(x).flatten(1).sum(1)
    assert_close(PATH.prior_log_prob(x), reference)


def test_defaults():
    """Catches a default that is not N(0, I), or not all of [0, 1]."""
    assert Plain().prior_std == 1.0
    assert Plain().t_span == (0.0, 1.0)


def test_empty_batch():
    """Catches a reduction that needs at least one sample."""
    x = torch.zeros(0, 3)
    assert PATH.interpolate(x, x, torch.zeros(0)).ut.shape == (0, 3)
    assert PATH.log_prob(x, 0.5, x).shape == (0,)
    assert PATH.prior_log_prob(x).shape == (0,)


def test_gradients_flow_to_time_and_data():
    """Catches a detach, or an in-place step."""
    x0, x1, t = batch()
    for leaf in (x0, x1, t):
        leaf.requires_grad_()
    sample = PATH.interpolate(x0, x1, t)
    total = (sample.xt + sample.ut).sum() + PATH.log_prob(x0, t, x1).sum()
    for leaf in torch.autograd.grad(total, (x0, x1, t)):
        assert leaf.isfinite().all() and leaf.abs().sum() > 0


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_values(method):
    """Catches a factor that is detached: a wrong gradient with the right value."""
    x, x1, t = (leaf[:2].requires_grad_() for leaf in batch((2, 2)))
    assert torch.autograd.gradcheck(getattr(PATH, method), (x, t, x1))


def test_sample_is_frozen_and_compares_by_identity():
    """Catches a field overwritten after the fact; == on tensors raising."""
    sample = PATH.interpolate(*batch())
    with pytest.raises(FrozenInstanceError):
        sample.xt = sample.x0
    assert sample == sample and sample != PATH.interpolate(*batch())
    assert len({sample, sample}) == 1
    again = pickle.loads(pickle.dumps(sample))
    assert isinstance(again, PathSample)
    assert_close(again.ut, sample.ut)


# --- bad input -------------------------------------------------------------------


@pytest.mark.parametrize("method", ["interpolate", *METHODS])
def test_refuses_what_does_not_fit(method):
    """Catches a silent broadcast or promotion."""
    x, x1, t = batch()
    call = getattr(PATH, method)
    name = "x0" if method == "interpolate" else "x"

    def run(x, x1, t):
        return call(x, x1, t) if method == "interpolate" else call(x, t, x1)

    with pytest.raises(ValueError, match=rf"got {name} \(5, 3\), x1 \(1, 3\)"):
        run(x, x1[:1], t)
    with pytest.raises(
        TypeError, match=rf"got {name} torch\.float64, x1 torch\.float32"
    ):
        run(x, x1.float(), t)
    with pytest.raises(ValueError, match=r"t must .* got shape \(3,\)"):
        run(x, x1, t[:3])
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
        run(x, x1, 1.5)
    with pytest.raises(TypeError, match="t must be a number or a tensor, got bool"):
        run(x, x1, True)
    with pytest.raises(TypeError, match=r"x1 must be floating point, got torch\.int64"):
        run(x, x1.long(), t)
    with pytest.raises(ValueError, match=rf"{name} must have shape \(B, \*D\)"):
        run(x[0, 0], x1[0, 0], t)
    with pytest.raises(ValueError, match=rf"got {name} \(5,\), x1 \(5, 1\)"):
        run(x[:, 0], x1[:, :1], t)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refuses_a_number_where_sigma_is_zero(method, dtype):
    """Catches NaN or infinity passed on; a t that only rounds to the end passed."""
    x, x1, _ = batch(dtype=dtype)
    call = getattr(Rooted(), method)
    last = 1 - 1e-9 if dtype == torch.float32 else 1.0
    with pytest.raises(ValueError, match=r"Rooted\(start=1.5\) has sigma = 0 at t = "):
        call(x, last, x1)
    assert call(x, 0.999, x1).isfinite().all()
    assert not call(x, torch.ones(5), x1).isfinite().any()  # as documented


def test_interpolate_refuses_a_number_where_the_speed_is_infinite():
    """Catches an infinite regression target passed on."""
    x0, x1, _ = batch()
    with pytest.raises(ValueError, match=r"infinite speed at t = 1: .*\(0.0, 0.99\)"):
        Rooted().interpolate(x0, x1, 1)
    assert Rooted().interpolate(x0, x1, 0.999).ut.isfinite().all()


def test_refuses_a_number_where_the_mean_leaves_at_infinite_speed():
    """Catches dalpha not looked at: an infinite velocity passed on."""

    class Leaping(Crooked):
        def schedule(self, t):
            return super().schedule(t)._replace(dalpha=1 / t)

    x, x1, _ = batch()
    for call in (Leaping().interpolate, lambda x, x1, t: Leaping().velocity(x, t, x1)):
        with pytest.raises(ValueError, match="infinite speed at t = 0: stay within"):
            call(x, x1, 0)
    assert Leaping().score(x, 0, x1).isfinite().all()  # a speed is not asked for


@pytest.mark.parametrize("start", [-0.5, math.nan])
def test_refuses_a_deviation_that_is_no_deviation(start):
    """Catches only sigma = 0 refused, and the logarithm of a negative number passed
    on.
    """
    x, x1, _ = batch()
    with pytest.raises(ValueError, match=r"has sigma = (-0.75|nan) at t = 0.25"):
        Crooked(start).log_prob(x, 0.25, x1)


def test_prior_log_prob_refuses_what_is_no_batch():
    """Catches a single number read as a batch."""
    with pytest.raises(ValueError, match=r"x must have shape \(B, \*D\), got \(\)"):
        PATH.prior_log_prob(torch.zeros(()))


def test_every_path_takes_a_number():
    """Catches a path of one's own, or one that calls its parent's, left out."""

    class Raised(Crooked):
        def schedule(self, t):
            alpha, *others = super().schedule(t)
            return Schedule(alpha + 1, *others)

    class Untouched(Raised):
        pass

    t = torch.tensor(0.25, dtype=torch.float64)
    assert PATH.schedule(0.25) == Schedule(0.1 + 0.25**2, 1.25, 0.5, -1.0)
    assert isinstance(PATH.schedule(0.25), Schedule)
    assert [*map(type, PATH.schedule(0))] == [float] * 4
    assert Raised().schedule(0.25).alpha == 1.1 + 0.25**2
    assert Untouched().schedule(0.25) == Raised().schedule(0.25)
    assert_close(Raised().schedule(t).alpha, t**2 + 1.1)
    with pytest.raises(TypeError, match="t must be a number or a tensor, got list"):
        PATH.schedule([0.25])
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got -0.5"):
        Raised().schedule(-0.5)


def test_a_path_needs_its_schedule():
    """Catches a missing schedule, or a part of one, found only when it is used."""

    class Nothing(GaussianPath):
        pass

    class Half(GaussianPath):
        def schedule(self, t):
            return Schedule(t, 1 - t)

    with pytest.raises(TypeError, match="schedule"):
        Nothing()
    with pytest.raises(TypeError, match="dalpha"):
        Half().schedule(0.5)


def test_known_value():
    """Catches the page's smallest example: 1.2 at x = 1.6, t = 0.5."""

    class Small(Crooked):
        def schedule(self, t):
            ones = torch.ones_like(t)
            return Schedule(t, 1 - 0.8 * t, ones, -0.8 * ones)

    x, x1 = torch.tensor([[1.6]]), torch.tensor([[2.0]])
    assert Small().velocity(x, 0.5, x1).item() == pytest.approx(1.2)
    density = Small().log_prob(x, 0.5, x1).item()
    assert density == pytest.approx(-0.5 - math.log(0.6 * math.sqrt(2 * math.pi)))
