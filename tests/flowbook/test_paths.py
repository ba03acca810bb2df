"""The four paths and one's own: values, derivatives, ends, and the last ulp near 1."""

import math
import pickle

import pytest
import torch
from torch.autograd.functional import jvp
from torch.testing import assert_close

from flowbook.gaussian_path import GaussianPath
from flowbook.paths import (
    CosinePath,
    CustomPath,
    GaussianFlow,
    OTPath,
    VEPath,
    VPPath,
    kinetic_energy,
    straightness,
)

from ..given import seeded

PATHS = [
    OTPath(),
    OTPath(0.1),
    VPPath(),
    VPPath(0.3, 7.0),
    VEPath(0.02, 5.0),
    CosinePath(),
]
TIMES = torch.tensor([0.0, 0.1, 0.35, 0.5, 0.8, 0.97], dtype=torch.float64)


def quadratic(t):
    return t**2


def narrowing(t):
    return 2 - 1.5 * t


OWN = CustomPath(quadratic, narrowing)


def named(value):
    """An id that is the same in each process: the repr of OWN holds addresses."""
    return "own" if value is OWN else repr(value)


def batch(shape=(6, 3), dtype=torch.float64):
    g = seeded(4)
    x0, x1 = torch.randn(2, *shape, generator=g, dtype=dtype).unbind()
    return x0, x1


def by_the_book(path, t):
    """alpha and sigma from the paper's formulas, in Python floats."""
    s = 1 - t
    match path:
        case OTPath(sigma_min):
            return t, 1 - (1 - sigma_min) * t
        case VPPath(low, high):
            area = (low + (low + (high - low) * s)) / 2 * s  # trapezium under β
            return math.exp(-area / 2), math.sqrt(1 - math.exp(-area))
        case VEPath(low, high):
            return 1.0, high ** (1 - t) * low**t
        case CosinePath():
            return math.sin(math.pi / 2 * t), math.cos(math.pi / 2 * t)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_values_are_the_papers(path):
    """Catches a constant, a factor, the clock not reversed, alpha and sigma
    exchanged.
    """
    expected = torch.tensor(
        [by_the_book(path, t) for t in TIMES.tolist()], dtype=torch.float64
    )
    alpha, sigma, _, _ = path.schedule(TIMES)
    assert_close(alpha, expected[:, 0])
    assert_close(sigma, expected[:, 1])


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_derivatives_are_those_of_the_values(path):
    """Catches a sign, a factor or a term of dalpha or dsigma."""
    t = TIMES.clone().requires_grad_()
    slopes = path.schedule(TIMES)[2:]
    for value, slope in zip(path.schedule(t)[:2], slopes, strict=True):
        total = value.sum() + 0 * t.sum()  # in the graph even if constant
        (expected,) = torch.autograd.grad(total, t, retain_graph=True)
        assert_close(slope, expected)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("shape", [(6, 1), (6, 3), (6, 2, 3, 4)])
def test_shortened_arithmetic_is_the_general_one(path, shape):
    """Catches a factor or a sign in a path's own `_flow`; the prior's width not
    divided out.
    """
    x0, x1 = batch(shape)
    sample = path.interpolate(path.prior_std * x0, x1, TIMES)
    alpha, sigma, dalpha, dsigma = path.schedule(
        TIMES.view(-1, *[1] * (len(shape) - 1))
    )
    assert_close(sample.xt, alpha * x1 + sigma * x0)
    assert_close(sample.ut, dalpha * x1 + dsigma * x0)
    general = GaussianPath._flow(
        path, path.prior_std * x0, x1, TIMES.view(-1, *[1] * (len(shape) - 1))
    )
    assert_close((sample.xt, sample.ut), general)
    assert_close(path.velocity(sample.xt, TIMES, x1), sample.ut)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elementwise_and_in_the_dtype_of_t(path, dtype):
    """Catches a reduction, or a constant that changes the dtype."""
    t = TIMES.to(dtype)
    made = [path.schedule(s) for s in (t, t.view(3, 2, 1), t[2])]
    for flat, folded, one in zip(*made, strict=True):
        assert flat.dtype == dtype
        assert_close(folded.view(6), flat)
        assert_close(one, flat[2])


@pytest.mark.parametrize("path", [*PATHS, OWN], ids=named)
def test_a_number_gives_numbers(path):
    """Catches a schedule that takes 0.5 on one path and fails inside torch on
    another.
    """
    for t in (0, 0.1, 0.35, 0.97):
        values = path.schedule(t)
        tensors = path.schedule(torch.tensor(t, dtype=torch.float64))
        assert [*map(type, values)] == [float] * 4
        assert values == tuple(tensor.item() for tensor in tensors)
    for bad, error in ((True, TypeError), ("0.5", TypeError), (1.5, ValueError)):
        with pytest.raises(error, match="t must"):
            path.schedule(bad)
    for value in path.schedule(TIMES.float()):  # tensors are as they were
        assert value.dtype == torch.float32


def test_a_number_at_an_end():
    """Catches an infinite speed that raises or becomes NaN; a sigma of 0 that is
    refused.
    """
    assert VPPath().schedule(1) == (1.0, 0.0, 0.05, -math.inf)


def test_known_values():
    """Catches numbers worked out elsewhere: Lipman et al., eq. 19 and 21, by hand."""
    x, x1 = torch.tensor([[[0.7]], [[1.3]]], dtype=torch.float64)
    at = {
        VPPath(): 1.692538776929661,
        OTPath(0.1): (1.3 - 0.9 * 0.7) / (1 - 0.9 * 0.5),
        VEPath(0.01, 10.0): math.log(1000) * 0.6,
        CosinePath(): math.pi / 2 * (1.3 * math.sqrt(2) - 0.7),
    }
    for path, value in at.items():
        assert path.velocity(x, 0.5, x1).item() == pytest.approx(value, rel=1e-12)


def test_where_the_paths_start():
    """Catches beta_max halved or doubled; VE's prior left at 1."""
    zero = torch.zeros(1, dtype=torch.float64)
    assert VPPath().schedule(zero).alpha.item() == pytest.approx(0.00657, abs=5e-6)
    assert VPPath().schedule(zero).sigma.item() == pytest.approx(0.9999784, abs=5e-8)
    assert VEPath(1, 20).prior_std == 20.0 and isinstance(
        VEPath(1, 20).prior_std, float
    )
    assert {p.prior_std for p in PATHS if not isinstance(p, VEPath)} == {1.0}


def test_time_spans():
    """Catches VP trained on the infinite target at t = 1; another path cut for
    nothing.
    """
    assert VPPath().t_span == (0.0, 1 - 1e-5)
    assert {p.t_span for p in PATHS if not isinstance(p, VPPath)} == {(0.0, 1.0)}


@pytest.mark.parametrize("path", [OTPath(1e-6), VPPath(), CosinePath()], ids=repr)
def test_single_precision_near_the_end(path):
    """Catches sigma as 1 − (something near 1), or as the cosine of something near
    π/2.
    """
    t = 1 - torch.logspace(-1, -6.5, 50, dtype=torch.float64).float()
    _, *single = (value.double() for value in path.schedule(t))
    _, *double = path.schedule(t.double())
    for found, true, rtol in zip(single, double, (1e-6, 2e-6, 2e-6), strict=True):
        assert_close(found, true, rtol=rtol, atol=0)


@pytest.mark.parametrize("path", [OTPath(), CosinePath()], ids=repr)
def test_a_clean_end_is_exact(path):
    """Catches a point that misses x1 at t = 1, or an infinite target."""
    x0, x1 = batch(dtype=torch.float32)
    sample = path.interpolate(x0, x1, 1.0)
    assert torch.equal(sample.xt, x1)
    assert sample.ut.isfinite().all()


def test_singular_ends_are_refused():
    """Catches NaN or infinity handed on where a number t said so."""
    x0, x1 = batch()
    for path in (OTPath(), VPPath(), CosinePath()):
        with pytest.raises(ValueError, match="sigma = 0 at t = 1"):
            path.velocity(x0, 1.0, x1)
    with pytest.raises(ValueError, match="infinite speed at t = 1"):
        VPPath().interpolate(x0, x1, 1.0)
    assert VPPath().interpolate(x0, x1, VPPath().t_span[1]).ut.isfinite().all()
    assert OTPath(0.1).velocity(x0, 1.0, x1).isfinite().all()
    assert VEPath(0.1, 2.0).velocity(x0, 1.0, x1).isfinite().all()


# --- one's own ---------------------------------------------------------------------


def test_own_path_gets_its_derivatives_by_autodiff():
    """Catches alpha_fn and sigma_fn exchanged, or a derivative of the wrong one."""
    falling = torch.full_like(TIMES, -1.5)
    expected = (TIMES**2, 2 - 1.5 * TIMES, 2 * TIMES, falling)
    assert_close(tuple(OWN.schedule(TIMES)), expected)
    folded = TIMES.view(3, 2, 1)
    assert_close(OWN.schedule(folded).dalpha, 2 * folded)
    with torch.no_grad():
        assert_close(OWN.schedule(TIMES).dalpha, 2 * TIMES)


def test_own_path_uses_the_derivatives_it_is_given():
    """Catches given derivatives ignored, or exchanged."""
    told = CustomPath(quadratic, narrowing, torch.sin, torch.cos)
    assert_close(told.schedule(TIMES).dalpha, torch.sin(TIMES))
    assert_close(told.schedule(TIMES).dsigma, torch.cos(TIMES))


def test_own_path_with_a_constant():
    """Catches a function that doesn't depend on t, whose gradient autodiff may lack."""
    path = CustomPath(torch.ones_like, narrowing)
    assert_close(path.schedule(TIMES).dalpha, torch.zeros_like(TIMES))


def test_own_path_takes_part_in_gradients():
    """Catches a derivative by autodiff that is cut off from t."""
    t = TIMES.clone().requires_grad_()
    (second,) = torch.autograd.grad(OWN.schedule(t).dalpha.sum(), t)
    assert_close(second, torch.full_like(t, 2.0))


def test_own_path_has_its_prior_and_span():
    """Catches the prior read at another time; the span ignored."""
    assert OWN.prior_std == 2.0
    assert OWN.t_span == (0.0, 1.0)
    assert CustomPath(quadratic, narrowing, t_span=(0.0, 0.9)).t_span == (0.0, 0.9)
    late = CustomPath(quadratic, lambda t: 1 / t, t_span=(0.25, 1.0))
    assert late.prior_std == 4.0 and isinstance(late.prior_std, float)
    assert_close(
        OWN.prior_log_prob(torch.zeros(1, 2)).exp(), torch.tensor([1 / (8 * math.pi)])
    )


# --- objects, and bad input ----------------------------------------------------------


@pytest.mark.parametrize("path", [*PATHS, OWN], ids=named)
def test_paths_are_values(path):
    """Catches a path that cannot be stored, compared or used as a key."""
    assert isinstance(path, GaussianPath)
    again = pickle.loads(pickle.dumps(path))
    assert again == path and hash(again) == hash(path) and again is not path
    with pytest.raises(AttributeError):
        path.sigma_min = 0.5


def test_repr_is_how_it_was_made():
    """Catches a repr that hides the parameters."""
    for path in PATHS:
        assert eval(repr(path)) == path
    assert repr(VPPath()) == "VPPath(beta_min=0.1, beta_max=20.0)"


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2.0, math.nan, math.inf])
def test_ot_refuses(bad):
    """Catches a deviation that grows, or is negative."""
    with pytest.raises(ValueError, match=r"sigma_min must lie in \[0, 1\), got"):
        OTPath(bad)


@pytest.mark.parametrize(
    "bad", [(0.0, 1.0), (2.0, 1.0), (0.1, math.inf), (math.nan, 1)]
)
def test_vp_and_ve_refuse(bad):
    """Catches rates or deviations that are not positive, ordered and finite."""
    with pytest.raises(
        ValueError, match=r"need 0 < beta_min <= beta_max, got VPPath\(b"
    ):
        VPPath(*bad)
    with pytest.raises(
        ValueError, match=r"need 0 < sigma_min < sigma_max, got VEPath\(s"
    ):
        VEPath(*bad)


def test_ve_needs_its_scales():
    """Catches a default that cannot suit all data."""
    with pytest.raises(TypeError, match="sigma_min"):
        VEPath()
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        VEPath(1.0, 1.0)
    assert VPPath(1.0, 1.0).beta_max == 1.0  # a constant β is a schedule


@pytest.mark.parametrize(
    ("alpha", "sigma", "message"),
    [
        (lambda t: t.sum(), narrowing, r"alpha must be shaped .* got .*\(\[\]\)"),
        (lambda t: t[:, 0], narrowing, r"alpha must be .*\(\[999\]\)"),
        (quadratic, lambda t: 0.5, "sigma must be shaped like t, got 0.5"),
        (lambda t: t / 0, narrowing, "alpha must be finite, and is not at t = 0.001"),
        (lambda t: 1 / (t - 0.25), narrowing, "alpha .* finite, .* at t = 0.25"),
        (quadratic, lambda t: 0.3 - t, r"sigma must be positive, .* at t = 0\.3"),
        (quadratic, torch.zeros_like, r"sigma must be positive, .* at t = 0\.001"),
        (quadratic, lambda t: (t - 0.5).abs(), r"sigma .* positive, .* at t = 0\.5"),
        (quadratic, lambda t: (t - 0.25).abs() - 0.01, r"positive, .* at t = 0\.24"),
        (quadratic, lambda t: 1 / t, r"sigma at t = 0.0 must be positive and finite"),
        (quadratic, lambda t: t, r"sigma at t = 0.0 must be positive and finite"),
    ],
)
def test_own_path_refuses(alpha, sigma, message):
    """Catches a schedule that reduces, is no tensor, is infinite, or crosses zero."""
    with pytest.raises(ValueError, match=message):
        CustomPath(alpha, sigma)


@pytest.mark.parametrize("span", [(0.5, 0.2), (-1.0, 1.0), (0.0, 2.0), (0.3, 0.3)])
def test_own_path_refuses_a_span(span):
    """Catches a span that runs backwards or leaves [0, 1]."""
    with pytest.raises(ValueError, match="need 0 <= t0 < t1 <= 1, got t_span = "):
        CustomPath(quadratic, narrowing, t_span=span)


# --- Gaussian data, and trajectories -------------------------------------------------

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0.4, 0.0], [-0.3, 0.7, 0.2], [0.5, 0.0, 0.4]]).double()
SPREAD = ROOT @ ROOT.mT


@pytest.mark.parametrize("path", [*PATHS, OWN], ids=named)
@pytest.mark.parametrize("shape", [(6, 3), (6, 1, 3)])
def test_gaussian_flow(path, shape):
    """Catches a derivative, a square or a sign; the start that VP and VE miss taken
    as met.
    """
    flow = GaussianFlow(path, MEAN, SPREAD)
    x, _ = batch(shape)
    flat, eye = x.view(6, 3), torch.eye(3, dtype=torch.float64)

    def law(t):  # mean and covariance at a time
        alpha, sigma, _, _ = path.schedule(t)
        return alpha * MEAN, alpha**2 * SPREAD + sigma**2 * eye

    def centre_of(t):
        (_, before), (centre, cov) = (
            law(torch.zeros(()).double()),
            law(torch.tensor(t).double()),
        )
        # the only map that is symmetric, positive, and takes one law to the other
        jac = torch.func.jacrev(lambda y: flow.map(y[None].view(1, *shape[1:]), t)[0])
        jac = jac(flat[0]).reshape(3, 3)
        assert_close(jac, jac.mT)
        assert (torch.linalg.eigvalsh(jac) > 0).all()
        assert_close(jac @ before @ jac.mT, cov)
        return centre

    for t in (0.0, 0.35, 0.8):
        start = path.schedule(0.0).alpha * MEAN
        centre = centre_of(t)
        assert_close(flow.map(start.view(1, *shape[1:]), t).view(3), centre)
    assert_close(flow.map(x, 0.0), x)
    moved = flow.map(x, TIMES)
    t = TIMES.clone()
    rates = jvp(lambda t: flow.map(x, t), t, torch.ones_like(t))[1]
    assert_close(flow.velocity(moved, TIMES), rates)
    assert moved.shape == shape


def test_gaussian_flow_of_a_point_and_of_numbers():
    """Catches a variance of 0 that becomes a little negative; (B,) read as one
    point.
    """
    flat = torch.outer(MEAN, MEAN)  # rank 1
    x, _ = batch()
    assert GaussianFlow(OTPath(), MEAN, flat).map(x, 0.999).isfinite().all()
    line = GaussianFlow(OTPath(), MEAN[:1], SPREAD[:1, :1])
    numbers = x[:, 0]
    for method in (line.map, line.velocity):
        assert_close(method(numbers, 0.3), method(numbers[:, None], 0.3)[:, 0])


def test_gaussian_flow_refuses():
    """Catches a broadcast of a mean of another size."""
    with pytest.raises(ValueError, match=r"need mean \(d,\), covariance \(d, d\)"):
        GaussianFlow(OTPath(), MEAN, SPREAD[:2])
    flow = GaussianFlow(OTPath(), MEAN, SPREAD)
    for method in (flow.map, flow.velocity):
        with pytest.raises(ValueError, match=r"3 numbers each: \(6, 1\)"):
            method(batch((6, 1))[0], 0.5)
        with pytest.raises(TypeError, match=r"dtypes must agree, got x torch\.float32"):
            method(batch()[0].float(), 0.5)
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
            method(batch()[0], 1.5)


def test_energy_and_straightness_by_hand():
    """Catches a length of time not divided by, or squared; the mean taken over
    points.
    """
    way = torch.tensor([[0.0, 0.0], [1.0, 2.0], [4.0, 2.0]], dtype=torch.float64)
    t = torch.tensor([0.0, 0.25, 0.75], dtype=torch.float64)
    # the first: velocities 4 and 6, mean 16/3; the second: 8 and 0, mean 8/3
    energy = torch.tensor([16 * 0.25 + 36 * 0.5, 64 * 0.25], dtype=torch.float64)
    bent = energy - torch.tensor([16 / 3, 8 / 3], dtype=torch.float64) ** 2 * 0.75
    for clock in (t, t[:, None].expand(3, 2)):
        assert_close(kinetic_energy(way, clock), energy)
        assert_close(straightness(way, clock), bent)
    assert_close(kinetic_energy(way.flip(0), t.flip(0)), energy)  # from data to noise
    assert_close(straightness(way.flip(0), t.flip(0)), bent)
    both = way[:, None].expand(3, 4, 2)  # four points of two dimensions
    assert_close(kinetic_energy(both, t), energy.sum().expand(4))
    assert_close(straightness(both, t), bent.sum().expand(4))


def test_each_has_its_own_times_and_may_rest():
    """Catches 0/0 where one sample has arrived before another; a straight line that
    bends.
    """
    t = torch.tensor([[0.0, 0.0], [0.5, 1.0], [1.0, 1.0]], dtype=torch.float64)
    way = torch.stack([2 * t, 3 * t + 1], 2)  # (3, 2, 2): straight
    assert_close(kinetic_energy(way, t), torch.tensor([13.0, 13.0]).double())
    assert_close(straightness(way, t), torch.zeros(2).double())
    for measure in (kinetic_energy, straightness):
        assert_close(measure(way, 0 * t), torch.zeros(2).double())  # nobody moves in 0


@pytest.mark.parametrize("t", [torch.zeros(2), torch.zeros(3, 1), torch.zeros(2, 3)])
def test_energy_refuses_other_times(t):
    """Catches times that broadcast over the points."""
    for measure in (kinetic_energy, straightness):
        with pytest.raises(ValueError, match=r"need t \(K,\) or \(K, B\)"):
            measure(torch.zeros(3, 2, 5), t)
        with pytest.raises(ValueError, match=r"need t \(K,\) or \(K, B\)"):
            measure(torch.zeros(1, 2, 5), torch.zeros(1))


@pytest.mark.parametrize("path", [OTPath(), CosinePath()], ids=repr)
def test_the_gaussian_flow_s_energy(path):
    """Catches the excess over the optimal cost not the mean straightness; a lost
    factor.
    """
    c = torch.tensor([2.0, 0.5], dtype=torch.float64)
    flow = GaussianFlow(path, MEAN[:2], c.square().diag())
    nodes = math.sqrt(2) * torch.cat([torch.eye(2), -torch.eye(2)]).double()
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    way = torch.stack([flow.map(nodes, s) for s in t])
    bent, energy = straightness(way, t).mean(), kinetic_energy(way, t).mean()
    cost = MEAN[:2].square().sum() + (1 - c).square().sum()
    assert_close(energy - bent, cost)
    if path == OTPath():  # polygon: h²/12 ∫|ẍ|² = 8.1e-6, see the page
        assert_close(bent, (2 - math.pi / 2) * c.sum(), rtol=0, atol=8.2e-6)
