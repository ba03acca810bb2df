"""Every closed form: batched as one point at a time, in its dtype, on its device.

The expected value is always the float64 CPU result of one sample at a time, B = 1, at
a *number* t. All inputs are float32 numbers, so that both precisions get the same ones.
"""

import itertools
import math
import re
from functools import cache, partial

import pytest
import torch

from flowbook import (
    CosinePath,
    OTPath,
    VEPath,
    VPPath,
    cfm_loss,
    convert,
    log_prob,
    sample,
    solve,
)
from flowbook.change_of_variables import (
    log_abs_det_jacobian,
    push_through,
    pushforward_log_prob,
)
from flowbook.continuity import continuity_residual, rate_of_mean
from flowbook.conversions import PREDICTIONS
from flowbook.fields import field_from_cdf
from flowbook.likelihood import (
    Exact,
    Hutchinson,
    divergence,
    standard_normal_log_prob,
    transport,
)
from flowbook.losses import fm_loss, loss_floor
from flowbook.marginal import EmpiricalMarginal, MixtureMarginal
from flowbook.metrics import energy_distance, energy_distance_null
from flowbook.notation import rescale_clock, reverse_clock
from flowbook.solvers import RK4, Euler, Heun, Midpoint
from flowbook.toy import GaussianMixture

from ..given import draw, seeded

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
DTYPES = (torch.float32, torch.float64)
PATHS = (OTPath(sigma_min=0.1), VPPath(), VEPath(0.01, 10.0), CosinePath())
SHAPES = ((5,), (5, 1), (5, 3), (5, 2, 3, 4))
TIMES = (0.125, 0.25, 0.3125, 0.4375, 0.5)  # exact in both dtypes
MARGINAL = (
    *("velocity", "score", "log_prob"),
    *("posterior", "posterior_mean", "divergence"),
)
CONVERSIONS = {
    f"{source} to {goal}": partial(convert, source=source, goal=goal)
    for source, goal in itertools.permutations(PREDICTIONS, 2)
}
# A schedule is an exponential of a number up to 8, so it is wrong by up to 8 roundings;
# at most four such factors multiply the data in any of the formulas.
ROUNDINGS = 8 * 4

everywhere = pytest.mark.parametrize("device", DEVICES)
in_both = pytest.mark.parametrize("dtype", DTYPES, ids=str)
at_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
on_paths = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
at_times = pytest.mark.parametrize("kind", ("number", "0-d", "batched"))


def coarse(shape, seed):
    """float32 numbers, in float64."""
    return draw(*shape, seed=seed, dtype=torch.float32).double()


def times(kind, dtype, device):
    """The argument t, and each sample's time as a number."""
    if kind == "batched":
        return torch.tensor(TIMES, dtype=dtype, device=device), TIMES
    alone = torch.tensor(0.375, dtype=dtype, device=device)
    return 0.375 if kind == "number" else alone, (0.375,) * 5


def one_by_one(formula, clock, *inputs):
    """formula(*inputs, t) for each sample by itself: (B, ...)."""
    rows = zip(clock, *(x.split(1) for x in inputs), strict=True)
    return torch.cat([formula(*row, t) for t, *row in rows])


def assert_follows(got, expected, like, scale, roundings=ROUNDINGS):
    """`got` is `expected`, with the dtype and device of `like`, up to its roundings.

    `scale` bounds the terms that are added to make the result: a number, or (B,).
    """
    assert got.dtype == like.dtype and got.device == like.device
    assert got.shape == expected.shape
    error = (got.detach().cpu().double() - expected).abs()
    scale = torch.as_tensor(scale, dtype=torch.float64)
    scale = scale.view((*scale.shape, *[1] * (error.ndim - scale.ndim)))
    unit = torch.finfo(like.dtype).eps / 2  # 6e-8 or 1.1e-16
    assert (error <= roundings * unit * scale).all(), (error / scale).max() / unit


def schedule(path, clock):
    """alpha, sigma, |dalpha|, |dsigma| at each sample's time, float64, (B,) each."""
    t = torch.tensor(clock, dtype=torch.float64)
    return [value.abs() for value in path.schedule(t)]


def rows(x):
    """Each point as one row, made without the package: (B, d)."""
    return x.reshape(len(x), -1)


def reach(*inputs):
    """The sum of the largest coordinates, by sample: (B,)."""
    return sum(rows(x).abs().amax(1) for x in inputs)


def field(x, t):
    wide = t.view(-1, *[1] * (x.ndim - 1))
    mixed = rows(x).roll(1, 1).view_as(x)
    return wide * x.sin() - 0.5 * x + 0.25 * mixed.tanh()


def warp(x):
    return x + 0.5 * rows(x).roll(1, 1).view_as(x).sin()


def mixture(shape=(5, 3), dtype=torch.float64, device="cpu"):
    """Unequal numbers, `shape` per point; every parameter is exact in both dtypes."""
    n = math.prod(shape[1:])
    i = torch.arange(n, dtype=torch.float64)
    means = torch.stack((i % 3 / 4 - 1, 1 - i % 5 / 8))
    near = ((i[:, None] - i).abs() == 1).double()  # correlated with its neighbours
    first = (1 - i % 3 / 4).diag() + near / 8
    second = (0.5 + i % 2 / 4).diag() - near / 8
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    parts = GaussianMixture(weights, means, torch.stack((first, second)))
    return parts.to(dtype, device)


def data_of(shape):
    """Seven data points, and their weights."""
    weights = torch.tensor([1, 2, 3, 4, 3, 2, 1], dtype=torch.float64)
    return coarse((7, *shape[1:]), 3), weights


@everywhere
@in_both
@at_times
@at_shapes
@on_paths
def test_path(path, shape, kind, dtype, device):
    """Catches times along a data axis; a factor in float64 or on the CPU; 0-d t
    lost.
    """
    x, x1 = coarse(shape, 1), coarse(shape, 2)
    own, own1 = x.to(device, dtype), x1.to(device, dtype)
    t, clock = times(kind, dtype, device)
    alpha, sigma, dalpha, dsigma = schedule(path, clock)
    far, n = reach(x, x1), x[0].numel()
    z = (1 + alpha) * far / sigma
    scales = {
        "inverse": z,
        "score": z / sigma,
        "velocity": dalpha * far + dsigma * z,
        "log_prob": n * (z**2 + sigma.log().abs() + 1),
    }
    for name, scale in scales.items():
        formula = getattr(path, name)
        expected = one_by_one(lambda a, b, s, f=formula: f(a, s, b), clock, x, x1)
        assert_follows(formula(own, t, own1), expected, own, scale)
    got = path.interpolate(own, own1, t)
    for name, scale in {
        "xt": (alpha + sigma) * far,
        "ut": (dalpha + dsigma) * far,
        "t": 1.0,
    }.items():
        expected = one_by_one(
            lambda a, b, s, name=name: getattr(path.interpolate(a, b, s), name),
            clock,
            x,
            x1,
        )
        assert_follows(getattr(got, name), expected, own, scale)
    assert got.x0 is own and got.x1 is own1


@everywhere
@in_both
@at_shapes
@on_paths
def test_prior(path, shape, dtype, device):
    """Catches prior_std dropped, or the dtype or the generator's device ignored."""
    once, again = (torch.Generator(device).manual_seed(4) for _ in range(2))
    got = path.prior(shape, generator=once, dtype=dtype)
    noise = torch.randn(shape, generator=again, dtype=dtype, device=device)
    far = reach(noise.cpu().double())
    scaled = noise.cpu().double() * path.prior_std
    assert_follows(got, scaled, noise, path.prior_std * far, roundings=1)
    named = path.prior(shape, dtype=dtype, device=device)
    assert (named.shape, named.dtype, named.device) == (shape, dtype, noise.device)
    x = coarse(shape, 5)
    own, n = x.to(device, dtype), x[0].numel()
    expected = one_by_one(lambda a, _: path.prior_log_prob(a), TIMES, x)
    scale = n * (reach(x / path.prior_std) ** 2 + 4)  # 4 > log 10 + ½ log 2π
    assert_follows(path.prior_log_prob(own), expected, own, scale)


@cache
def converted(path, shape, clock):
    """What each conversion should give, and the sum of its two terms."""
    x, value = coarse(shape, 1), coarse(shape, 2)
    results = {}
    for name, function in CONVERSIONS.items():
        formula = partial(function, path=path)
        expected = one_by_one(formula, clock, value, x)
        first = one_by_one(formula, clock, torch.zeros_like(x), x)  # p x + q 0
        results[name] = expected, reach(first, expected - first)
    return results


@everywhere
@in_both
@at_times
@at_shapes
@on_paths
def test_conversions(path, shape, kind, dtype, device):
    """Catches times along a data axis; a factor made in float64 or left on the CPU."""
    x, value = coarse(shape, 1), coarse(shape, 2)
    own, said = x.to(device, dtype), value.to(device, dtype)
    t, clock = times(kind, dtype, device)
    for name, (expected, scale) in converted(path, shape, clock).items():
        got = CONVERSIONS[name](said, own, t, path)
        assert_follows(got, expected, own, scale)


def assert_marginal(made, exact, x, least, far, setting):
    """`least` (B,): the smallest deviation that x_t has under a single component."""
    path, kind, dtype, device = setting
    own, n = x.to(device, dtype), x[0].numel()
    t, clock = times(kind, dtype, device)
    alpha, sigma, dalpha, dsigma = schedule(path, clock)
    # A logit, -|z|²/2, is wrong by |z| times the rounding of x / least; its weight
    # exp(-|z|²/2) keeps |z| below 4 + √n where it counts.
    wide = (1 + alpha) * far  # bounds x - alpha y and the posterior's spread
    logit = 1 + (4 + n**0.5) * n**0.5 * wide / least
    score = wide / least**2
    velocity = dalpha * far + sigma * dsigma * score
    scales = {
        "posterior_mean": far * (1 + alpha * wide / least**2) * logit,
        "score": score * logit,
        "velocity": (dalpha * far * (1 + alpha * score) + velocity) * logit,
        "log_prob": logit + n * (1 + least.log().abs()),
        "divergence": n * (1 + velocity * score + dsigma / least) * logit,
        "posterior": logit,
    }
    for name, scale in scales.items():
        expected = one_by_one(getattr(exact, name), clock, x)
        for law in (made, exact):  # `exact` is float64 on the CPU, whatever x is
            assert_follows(getattr(law, name)(own, t), expected, own, scale)


@everywhere
@in_both
@at_times
@at_shapes
@on_paths
def test_empirical_marginal(path, shape, kind, dtype, device):
    """Catches one sample's posterior for all; the dtype or device of the data, not
    of x.
    """
    data, weights = data_of(shape)
    x, (_, clock) = coarse(shape, 1), times(kind, dtype, device)
    wide = (-1, *[1] * (x.ndim - 1))
    alpha, sigma, _, _ = (s.view(wide) for s in schedule(path, clock))
    x = (alpha * data[:5] + sigma * x).float().double()  # where the path goes
    far, exact = reach(x) + data.abs().max(), EmpiricalMarginal(path, data, weights)
    setting = path, kind, dtype, device
    own = EmpiricalMarginal(path, data.to(device, dtype), weights.to(device, dtype))
    assert_marginal(own, exact, x, sigma.flatten(), far, setting)


@everywhere
@in_both
@at_times
@at_shapes
@on_paths
def test_mixture_marginal(path, shape, kind, dtype, device):
    """Catches one sample's time for all; the dtype or device of the mixture, not of
    x.
    """
    x, (_, clock) = coarse(shape, 1), times(kind, dtype, device)
    wide = (-1, *[1] * (x.ndim - 1))
    alpha, sigma, _, _ = schedule(path, clock)
    x = (alpha + sigma).view(wide) * x
    x = x.float().double()
    law = mixture(shape)
    exact = MixtureMarginal(path, law)
    least = torch.linalg.eigvalsh(law.covariances).min()
    width = (alpha**2 * least + sigma**2).sqrt()
    far, setting = reach(x) + law.means.abs().max() + 1, (path, kind, dtype, device)
    own = MixtureMarginal(path, mixture(shape, dtype, device))
    assert_marginal(own, exact, x, width, far, setting)


@everywhere
@in_both
@at_shapes
def test_mixture(shape, dtype, device):
    """Catches components summed over the batch; a constant in float64 whatever x is."""
    x, exact, law = coarse(shape, 1), mixture(shape), mixture(shape, dtype, device)
    own, n = x.to(device, dtype), x[0].numel()
    least = torch.linalg.eigvalsh(exact.covariances).min().sqrt()
    z = (reach(x) + 1) / least
    for name, scale in {"log_prob": n * (z**2 + 4), "score": z**3 / least}.items():
        formula = getattr(exact, name)
        expected = one_by_one(lambda a, _, f=formula: f(a), TIMES, x)
        assert_follows(getattr(law, name)(own), expected, own, scale)


@everywhere
@in_both
@at_times
@at_shapes
@on_paths
def test_losses(path, shape, kind, dtype, device):
    """Catches sum over the batch, mean over the data, or a batch's first time for
    all.
    """
    x0, x1 = coarse(shape, 1), coarse(shape, 2)
    own0, own1 = x0.to(device, dtype), x1.to(device, dtype)
    t, clock = times(kind, dtype, device)
    alpha, sigma, dalpha, dsigma = schedule(path, clock)
    far, n = reach(x0, x1), x1[0].numel()
    got = cfm_loss(field, path, own1, t=t, x0=own0)
    each = one_by_one(
        lambda a, b, s: cfm_loss(field, path, b, t=s, x0=a)[None], clock, x0, x1
    )
    error = 2 * (alpha + sigma) * far + (dalpha + dsigma) * far  # |field(x)| <= 2 |x|
    assert_follows(got, each.mean(), own1, n * error.square().mean())
    data, _ = data_of(shape)
    exact = EmpiricalMarginal(path, data)
    marginal = EmpiricalMarginal(path, data.to(device, dtype))
    x = path.interpolate(x0, data[:5], torch.tensor(clock).double()).xt
    x = x.float().double()
    got = fm_loss(field, marginal, x.to(device, dtype), t)
    each = one_by_one(lambda a, s: fm_loss(field, exact, a, s)[None], clock, x)
    far = reach(x) + data.abs().max()
    wide = (1 + alpha) * far / sigma  # see assert_marginal
    logit = 1 + (4 + n**0.5) * n**0.5 * wide
    target = dalpha * far * (1 + alpha * wide / sigma) + dsigma * wide
    error = (2 * far + target) * (2 * far + target * logit)
    assert_follows(got, each.mean(), own1, n * error.mean())


@everywhere
@in_both
@at_times
@at_shapes
def test_divergence(shape, kind, dtype, device):
    """Catches derivatives of one sample by another; basis or probes in another
    dtype.
    """
    x = coarse(shape, 1)
    own, n = x.to(device, dtype), x[0].numel()
    t, clock = times(kind, dtype, device)
    expected = one_by_one(lambda a, s: divergence(field, a, s), clock, x)
    scale = 2 * n  # a derivative of the field is at most 1 + ½ + ¼
    for chunk in (None, 2):
        got = divergence(field, own, t, Exact(chunk))
        assert_follows(got, expected, own, scale)

    def scaled(x, t):  # diagonal, of squared signs: every probe gives the divergence
        return t.view(-1, *[1] * (x.ndim - 1)) * x.sin()

    once = torch.Generator(device).manual_seed(6)
    got = divergence(scaled, own, t, Hutchinson(probes=2, generator=once))
    expected = one_by_one(lambda a, s: divergence(scaled, a, s), clock, x)
    assert_follows(got, expected, own, scale)


@everywhere
@in_both
@at_shapes
def test_log_prob_of_a_flow(shape, dtype, device):
    """Catches another sample's log-determinant; a float64 result of float32."""
    x = coarse(shape, 1)
    own, n, solver = x.to(device, dtype), x[0].numel(), RK4(2)
    expected = one_by_one(lambda a, _: log_prob(field, a, solver=solver), TIMES, x)
    grown = 6 * reach(x)  # back over one unit of time, slopes below 1.75: e^1.75 < 6
    scale = n * (grown**2 + 2)
    assert_follows(log_prob(field, own, solver=solver), expected, own, scale)


@everywhere
@in_both
@at_shapes
@pytest.mark.parametrize("solver", (Euler(3), Midpoint(3), Heun(3), RK4(3)))
def test_fixed_steps(solver, shape, dtype, device):
    """Catches one time for all data axes; a step or a time in float64 whatever x is."""
    x = coarse(shape, 1)
    own = x.to(device, dtype)
    expected = one_by_one(lambda a, _: sample(field, a, solver), TIMES, x)
    scale = 6 * reach(x)  # slopes below 1.75 grow a rounding by e^1.75 < 6
    assert_follows(sample(field, own, solver), expected, own, scale)
    run = solve(field, own, solver, trajectory=True)
    assert_follows(run.x, expected, own, scale)
    assert run.t.dtype == run.trajectory.dtype == dtype
    assert run.t.device == run.trajectory.device == run.nfe.device == own.device
    assert run.trajectory.shape == (4, *shape) and run.t.shape == (4, 5)


@everywhere
@in_both
@at_shapes
def test_adaptive_steps(shape, dtype, device):
    """Catches a step shared by the batch: the hardest sample then sets the others'
    error.
    """
    x = coarse(shape, 1) * torch.tensor([0.125, 1, 2, 4, 8]).view(
        -1, *[1] * (len(shape) - 1)
    )
    own = x.to(device, dtype)
    alone = [solve(field, a) for a in x.split(1)]
    run = solve(field, own)
    expected = torch.cat([one.x for one in alone])
    calls = [int(one.nfe) for one in alone]
    # A rounding of x changes the length of a step, and its error, by less than itself.
    # In float32 it may also refuse a step, at rtol = atol = 1e-5 a step.
    grown = 6 * (1 + reach(x))  # slopes below 1.75: e^1.75 < 6
    steps = max(calls) // 6
    solver = 0.0 if dtype == torch.float64 else steps * 1e-5
    unit = torch.finfo(dtype).eps / 2
    most = steps * ROUNDINGS + solver / unit
    assert_follows(run.x, expected, own, grown, roundings=most)
    if dtype == torch.float64:
        assert run.nfe.tolist() == calls
    assert run.t.dtype == dtype and run.t.device == run.nfe.device == own.device


@everywhere
@in_both
@at_shapes
def test_energy_distance(shape, dtype, device):
    """Catches a pair left out or counted twice across blocks; float64 handed back."""
    x, y = coarse(shape, 1), 2 * coarse((7, *shape[1:]), 2)

    def mean(a, b):  # one pair at a time
        pairs = itertools.product(a.split(1), b.split(1))
        return sum((p - q).square().sum().sqrt() for p, q in pairs) / (len(a) * len(b))

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    scale = 4 * x[0].numel() ** 0.5 * (x.abs().max() + y.abs().max())
    own, other = x.to(device, dtype), y.to(device, dtype)
    for chunk in (512, 2):
        got = energy_distance(own, other, chunk=chunk)
        assert_follows(got, expected, own, scale)


@everywhere
@in_both
@at_shapes
def test_change_of_variables(shape, dtype, device):
    """Catches a Jacobian across samples; only the last axis of an image; a float64
    total.
    """
    x = coarse(shape, 1)
    own, n = x.to(device, dtype), x[0].numel()

    def base(z):
        return -rows(z).square().sum(1) / 2

    def moved(a):
        return pushforward_log_prob(a, inverse=warp, log_prob=base)

    # 1 + a cyclic shift of slopes below ½: singular values in [½, 3/2], condition 3;
    # elimination makes n roundings in each of n pivots
    scale = 3 * n * (1 + n / 4)
    expected = one_by_one(lambda a, _: log_abs_det_jacobian(warp, a), TIMES, x)
    for chunk in (None, 2):
        got = log_abs_det_jacobian(warp, own, chunk=chunk)
        assert_follows(got, expected, own, scale)
    expected = one_by_one(lambda a, _: moved(a), TIMES, x)
    assert_follows(moved(own), expected, own, scale + n * (1 + reach(x)) ** 2)
    got = push_through([warp, warp], own)
    for i, size in ((0, 2 * (1 + reach(x))), (1, 2 * scale)):
        expected = one_by_one(
            lambda a, _, i=i: push_through([warp, warp], a)[i], TIMES, x
        )
        assert_follows(got[i], expected, own, size)


LINE = OTPath(sigma_min=0.1)
NUMBERS = {  # formulas of x and x1 (B,), t (B,); a result that isn't (B,) is unpacked
    **{
        f"path {name}": lambda x, x1, t, f=name: getattr(LINE, f)(x, t, x1)
        for name in ("velocity", "inverse", "score", "log_prob")
    },
    "path xt": lambda x, x1, t: LINE.interpolate(x, x1, t).xt,
    "path ut": lambda x, x1, t: LINE.interpolate(x, x1, t).ut,
    "prior": lambda x, x1, t: LINE.prior_log_prob(x),
    **{
        name: lambda x, x1, t, f=function: f(x1, x, t, LINE)
        for name, function in CONVERSIONS.items()
    },
    **{
        f"data {name}": lambda x, x1, t, f=name: getattr(
            EmpiricalMarginal(LINE, x1 / 2), f
        )(x, t)
        for name in MARGINAL
    },
    **{
        f"mixture {name}": lambda x, x1, t, f=name: getattr(
            MixtureMarginal(LINE, mixture((5,))), f
        )(x, t)
        for name in MARGINAL
    },
    "mixture log_prob at t = 1": lambda x, x1, t: mixture((5,)).log_prob(x),
    "mixture score at t = 1": lambda x, x1, t: mixture((5,)).score(x),
    "cfm_loss": lambda x, x1, t: cfm_loss(field, LINE, x1, t=t, x0=x),
    "fm_loss": lambda x, x1, t: fm_loss(field, EmpiricalMarginal(LINE, x1), x, t),
    "loss_floor": lambda x, x1, t: torch.tensor(
        loss_floor(LINE, EmpiricalMarginal(LINE, x1), x1, t=t, x0=x).value
    ),
    "rate_of_mean": lambda x, x1, t: rate_of_mean(
        lambda y: rows(y).sin().sum(1), field, x, t
    ),
    "continuity": lambda x, x1, t: continuity_residual(
        MixtureMarginal(LINE, mixture((5,))).log_prob, field, x, t
    ),
    "field_from_cdf": lambda x, x1, t: field_from_cdf(
        lambda y, s: torch.sigmoid(rows(y).sum(1) - s)
    )(x, t),
    "divergence": lambda x, x1, t: divergence(field, x, t),
    "hutchinson": lambda x, x1, t: divergence(field, x, t, Hutchinson()),
    "standard normal": lambda x, x1, t: standard_normal_log_prob(x),
    "transport": lambda x, x1, t: transport(field, x).x,
    "log_det": lambda x, x1, t: transport(field, x).log_det,
    "log_prob": lambda x, x1, t: log_prob(field, x),
    "solve": lambda x, x1, t: solve(field, x).x,
    "sample": lambda x, x1, t: sample(field, x, Midpoint(3)),
    "energy_distance": lambda x, x1, t: energy_distance(x, x1),
    "log_abs_det": lambda x, x1, t: log_abs_det_jacobian(warp, x),
    "pushforward": lambda x, x1, t: pushforward_log_prob(
        x, inverse=warp, log_prob=standard_normal_log_prob
    ),
    "push_through": lambda x, x1, t: push_through([warp, warp], x)[0],
    "reverse_clock": lambda x, x1, t: reverse_clock(field)(x, t),
    "rescale_clock": lambda x, x1, t: rescale_clock(field, 0.5)(x, t),
}


@pytest.mark.parametrize("t", (0.375, torch.tensor(TIMES).double()), ids=("one", "B"))
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_points_of_one_number(name, t):
    """Catches (B,) read as one point of B numbers, or broadcast against itself."""
    x, x1 = coarse((5,), 1), coarse((5,), 2)
    got = NUMBERS[name](x, x1, t)
    column = NUMBERS[name](x[:, None], x1[:, None], t)
    if got.ndim == 1 and column.shape == (5, 1):  # shaped like x; else one for each
        column = column[:, 0]
    torch.testing.assert_close(got, column, rtol=1e-13, atol=1e-13)


def test_hutchinson_of_numbers():
    """Catches probes of another shape than the points."""
    once = seeded()
    assert Hutchinson(2).draw(coarse((5,), 1)).shape == (2, 5)
    null = energy_distance_null(coarse((9,), 1), 3, 4, generator=once)
    again = seeded()
    column = energy_distance_null(coarse((9, 1), 1), 3, 4, generator=again)
    torch.testing.assert_close(null, column, rtol=0, atol=0)


@pytest.mark.parametrize("name", NUMBERS)
def test_refuses_a_single_number(name):
    """Catches require_points dropped: a 0-d tensor taken for a point."""
    x = torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"must have shape \(B, \*D\), got \(\)"):
        NUMBERS[name](x, coarse((5,), 2), 0.5)


MIXED = {
    **{
        name: NUMBERS[name]
        for name in ("path velocity", "path inverse", "path score", "path log_prob")
    },
    **{name: NUMBERS[name] for name in ("path xt", "cfm_loss", "energy_distance")},
    **{name: NUMBERS[name] for name in CONVERSIONS},
}


@pytest.mark.parametrize("name", MIXED)
def test_refuses_numbers_with_columns(name):
    """Catches (B,) against (B, 1), which broadcasts to (B, B)."""
    x, x1 = coarse((5,), 1), coarse((5,), 2)
    for a, b in ((x, x1[:, None]), (x[:, None], x1)):
        with pytest.raises(ValueError, match=r"(?s)\(5,\).*\(5, 1\)|\(5, 1\).*\(5,\)"):
            MIXED[name](a, b, 0.5)


@pytest.mark.parametrize("shape", ((3,), (5, 1), (5, 2)))
def test_laws_refuse_points_of_another_kind(shape):
    """Catches a vector (D,) taken for one point of data (N, D); columns against
    numbers.
    """
    data = coarse((7, 3), 3) if shape == (3,) else coarse((7,), 3)
    laws = [EmpiricalMarginal(LINE, data)]
    laws += [MixtureMarginal(LINE, mixture((5, 3)))] if shape != (5, 1) else []
    for law in laws:
        for name in MARGINAL:
            with pytest.raises(ValueError, match=re.escape(f"got {shape}")):
                getattr(law, name)(coarse(shape, 1), 0.5)
