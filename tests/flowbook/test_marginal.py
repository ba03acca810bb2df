"""The marginal field of a finite data set and of a Gaussian mixture."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from flowbook.marginal import EmpiricalMarginal, MixtureMarginal
from flowbook.notation import Schedule
from flowbook.paths import VPPath
from flowbook.toy import GaussianMixture

from ..given import F64, points

# Four functions with nothing in common, so that one in the place of another is seen.
skew_parts = {
    "alpha": lambda t: 0.2 + 0.9 * t**2,
    "sigma": lambda t: 1.3 - t + 0.1 * t**3,
    "dalpha": lambda t: 1.8 * t,
    "dsigma": lambda t: -1 + 0.3 * t**2,
}
linear_parts = {
    "alpha": lambda t: t,
    "sigma": lambda t: 1 - t,
    "dalpha": torch.ones_like,
    "dsigma": lambda t: -torch.ones_like(t),
}


def path_of(parts=linear_parts, **changed):
    """A path of four functions, some of them changed."""
    parts = {**parts, **changed}
    return SimpleNamespace(
        schedule=lambda t: Schedule(*(parts[name](t) for name in Schedule._fields))
    )


skew, linear = path_of(skew_parts), path_of()


def mixture(K=3, d=4, dtype=F64):
    roots = points(K, d, d, seed=11)
    covariances = 0.2 * roots @ roots.mT + 0.1 * torch.eye(d, dtype=F64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64)[:K]
    weights = weights / weights.sum()
    return GaussianMixture(weights, points(K, d, seed=12), covariances).to(dtype)


def normal_density(x, mean, covariance):
    offset = x - mean
    square = (offset * torch.linalg.solve(covariance, offset[..., None])[..., 0]).sum(
        -1
    )
    return torch.exp(-square / 2) / torch.linalg.det(2 * math.pi * covariance).sqrt()


def at_time(x, t, path, data, weights):
    """Density, posterior and posterior mean at one point, as the definition reads."""
    alpha, sigma, dalpha, dsigma = path.schedule(t)
    eye = sigma**2 * torch.eye(x.numel(), dtype=F64)
    parts = torch.stack(
        [
            w * normal_density(x.flatten(), alpha * y.flatten(), eye)
            for w, y in zip(weights / weights.sum(), data, strict=True)
        ]
    )
    posterior = parts / parts.sum()
    mean = sum(r * y for r, y in zip(posterior, data, strict=True))
    rate = dsigma / sigma
    velocity = sum(
        r * (dalpha * y + rate * (x - alpha * y))
        for r, y in zip(posterior, data, strict=True)
    )
    return parts.sum(), posterior, mean, velocity


@pytest.mark.parametrize("chunk", [1, 100, 2**22])
@pytest.mark.parametrize("shape", [[3], [1], [2, 3, 4], [70]])
def test_empirical_by_hand(shape, chunk):
    """Catches a dropped weight, a block lost or counted twice, alpha for sigma."""
    data, x = points(7, *shape, seed=2), points(5, *shape, seed=3)
    weights = torch.linspace(1, 2, 7, dtype=F64)
    t = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.7], dtype=F64)
    marginal = EmpiricalMarginal(skew, data, weights, chunk=chunk)
    rows = [at_time(a, s, skew, data, weights) for a, s in zip(x, t, strict=True)]
    density, posterior, mean, velocity = (
        torch.stack(c) for c in zip(*rows, strict=True)
    )
    assert_close(marginal.log_prob(x, t), density.log())
    assert_close(marginal.posterior(x, t), posterior)
    assert_close(marginal.posterior_mean(x, t), mean)
    assert_close(marginal.velocity(x, t), velocity)


def derivatives(marginal, x, t):
    """Score, rate of log p and divergence at each point, by autodiff."""
    x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
    score, rate = torch.autograd.grad(marginal.log_prob(x, t).sum(), (x, t))
    flat = marginal.velocity(x, t).flatten(1)
    divergence = 0
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
        divergence = divergence + row.flatten(1)[:, i]
    return score, rate, divergence


def cases():
    data = points(7, 4, seed=2)
    yield EmpiricalMarginal(skew, data, torch.linspace(1, 2, 7, dtype=F64), chunk=40)
    yield MixtureMarginal(skew, mixture())
    yield MixtureMarginal(skew, mixture(K=1))


@pytest.mark.parametrize("case", range(3))
def test_continuity_score_and_divergence(case):
    """Catches any sign or factor in score, divergence, velocity or log-density."""
    marginal = list(cases())[case]
    x = points(5, 4, seed=3)
    t = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.9], dtype=F64)
    score, rate, divergence = derivatives(marginal, x, t)
    assert_close(marginal.score(x, t), score)
    assert_close(marginal.divergence(x, t), divergence)
    flow = (marginal.velocity(x, t) * marginal.score(x, t)).sum(1)
    assert_close(rate + marginal.divergence(x, t) + flow, torch.zeros_like(rate))


@pytest.mark.parametrize("shape", [[4], [2, 2]])
def test_mixture_by_hand(shape):
    """Catches a covariance without its alpha², a posterior of the wrong components."""
    law, x = mixture(), points(5, *shape, seed=3)
    t = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.9], dtype=F64)
    marginal = MixtureMarginal(skew, law)
    for k, (point, s) in enumerate(zip(x, t, strict=True)):
        alpha, sigma, dalpha, dsigma = skew.schedule(s)
        eye, flat, densities, means = torch.eye(4, dtype=F64), point.flatten(), [], []
        for w, m, C in zip(law.weights, law.means, law.covariances, strict=True):
            S = alpha**2 * C + sigma**2 * eye
            densities.append(w * normal_density(flat, alpha * m, S))
            means.append(m + alpha * C @ torch.linalg.solve(S, flat - alpha * m))
        density = torch.stack(densities)
        posterior = density / density.sum()
        one = point[None], s
        assert_close(marginal.log_prob(*one)[0], density.sum().log())
        assert_close(marginal.posterior(*one)[0], posterior)
        mean = (posterior[:, None] * torch.stack(means)).sum(0).view(shape)
        assert_close(marginal.posterior_mean(*one)[0], mean)
        rate = dsigma / sigma
        velocity = dalpha * mean + rate * (point - alpha * mean)
        assert_close(marginal.velocity(*one)[0], velocity)
        assert_close(marginal.velocity(x, t)[k], velocity)


def test_a_narrow_mixture_is_its_means():
    """Catches a difference between the two classes where they describe one law."""
    law = mixture()
    thin = 1e-12 * torch.eye(4, dtype=F64).repeat(3, 1, 1)
    law = GaussianMixture(law.weights, law.means, thin)
    x, t = points(5, 4, seed=3), torch.linspace(0.1, 0.8, 5, dtype=F64)
    narrow, finite = (
        MixtureMarginal(linear, law),
        EmpiricalMarginal(linear, law.means, law.weights),
    )
    for name in ("velocity", "score", "log_prob", "posterior_mean", "divergence"):
        a, b = getattr(narrow, name)(x, t), getattr(finite, name)(x, t)
        assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["zero", "number", "0-d", "batch"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_times_shapes_and_dtypes(kind, dtype):
    """Catches another dtype or shape of the result, a number t that isn't taken."""
    t = {"zero": 0.0, "number": 0.3, "0-d": torch.tensor(0.3)}.get(
        kind, torch.full((5,), 0.3)
    )
    x = points(5, 2, 3, dtype=dtype, seed=3)
    empirical = EmpiricalMarginal(linear, points(7, 2, 3, seed=2))
    gaussian = MixtureMarginal(linear, mixture(d=6))
    for marginal, parts in ((empirical, 7), (gaussian, 3)):
        for name in ("velocity", "score", "posterior_mean"):
            value = getattr(marginal, name)(x, t)
            assert (value.shape, value.dtype) == (x.shape, dtype), name
        for name in ("log_prob", "divergence"):
            value = getattr(marginal, name)(x, t)
            assert (value.shape, value.dtype) == ((5,), dtype), name
        assert marginal.posterior(x, t).shape == (5, parts)


def test_more_points_than_a_block():
    """Catches rows of the batch that are lost, or swapped, between its blocks."""
    marginal = EmpiricalMarginal(linear, points(7, 3, seed=2), chunk=100)
    x, t = points(300, 3, seed=3), torch.linspace(0, 0.8, 300, dtype=F64)
    for name in ("velocity", "posterior", "divergence"):
        whole = getattr(marginal, name)(x, t)
        some = torch.cat(
            [
                getattr(marginal, name)(x[k : k + 7], t[k : k + 7])
                for k in range(0, 300, 7)
            ]
        )
        assert_close(whole, some)
    assert marginal.velocity(x[:0], t[:0]).shape == (0, 3)


def test_memory_is_bounded_by_chunk():
    """Catches a block larger than `chunk` numbers, or ever so many small ones."""
    for d in (3, 70):
        marginal = EmpiricalMarginal(linear, points(1000, d), chunk=5_000)
        x, times = marginal._inputs(points(20, d), 0.5)
        sizes = [w.numel() * d for w, _ in marginal._blocks(x, times)]
        assert sum(sizes) == 20 * 1000 * d
        assert max(sizes) <= 5_000 and sum(sizes) / len(sizes) > 3_000


@pytest.mark.parametrize("d", [2, 70])
def test_float32_close_to_the_ends(d):
    """Catches expanded squares, exponents that underflow, 0/0 close to t = 1."""
    data, noise = (
        points(7, d, dtype=torch.float32, seed=2),
        points(6, d, seed=3).float(),
    )
    t = torch.tensor([0.0, 1e-6, 1 - 2**-8, 1 - 2**-14, 1 - 2**-20, 1 - 2**-24])
    sigma = 1 - t[:, None]
    x = t[:, None] * data[:6] + sigma * noise
    marginal = EmpiricalMarginal(linear, data)
    exact = EmpiricalMarginal(linear, data.double())
    # x − αm is a difference of numbers up to 3: 10 roundings of those, over sigma
    gap = (marginal.velocity(x, t) - exact.velocity(x.double(), t.double())) * sigma
    assert gap.abs().max() < 10 * 1.2e-7 * 3
    gap = (marginal.score(x, t) - exact.score(x.double(), t.double())) * sigma**2
    assert gap.abs().max() < 10 * 1.2e-7 * 3
    far = 100 + x
    for name in ("velocity", "score", "log_prob", "posterior", "divergence"):
        assert getattr(marginal, name)(far, t).isfinite().all(), name


def test_mixture_in_float32_up_to_both_ends():
    """Catches a division by sigma, which is 0 at t = 1."""
    x, t = points(4, 4, dtype=torch.float32), torch.tensor([0, 1e-6, 1 - 2**-20, 1])
    law = mixture()
    single, double = MixtureMarginal(linear, mixture(dtype=torch.float32)), None
    double = MixtureMarginal(linear, law)
    for name in ("velocity", "score", "log_prob", "divergence", "posterior_mean"):
        a, b = (
            getattr(single, name)(x, t),
            getattr(double, name)(x.double(), t.double()),
        )
        assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    assert_close(double.velocity(x.double(), 0.0), law.weights @ law.means - x.double())
    end = [
        w * normal_density(x.double(), m, C)
        for w, m, C in zip(law.weights, law.means, law.covariances, strict=True)
    ]
    assert_close(double.log_prob(x.double(), 1.0), sum(end).log())


@pytest.mark.parametrize("alpha", [1e-20, 0.0, -0.5])
def test_small_and_negative_alpha(alpha):
    """Catches a division by alpha."""
    path = path_of(alpha=lambda t: torch.full_like(t, alpha), sigma=torch.ones_like)
    data, x = points(7, 3, seed=2), points(5, 3, seed=3)
    squares = (x[:, None] - alpha * data).square().sum(2)
    posterior = EmpiricalMarginal(path, data).posterior(x, 0.5)
    assert_close(posterior, (-squares / 2).softmax(1))


METHODS = ("velocity", "score", "log_prob", "posterior", "posterior_mean", "divergence")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_nan_never_comes_out(name, dtype):
    """Catches 0/0 or inf - inf where x is not finite, or its squares overflow."""
    far = torch.finfo(dtype).max ** 0.75
    data = torch.cat((points(4, 3), torch.full((1, 3), far, dtype=F64))).to(dtype)
    for marginal in (
        EmpiricalMarginal(linear, data[:4]),
        EmpiricalMarginal(linear, data[:4], chunk=1),
        MixtureMarginal(linear, mixture(d=3, dtype=dtype)),
    ):
        for value in (math.nan, math.inf, -math.inf, far, -far):
            x = points(5, 3).to(dtype)
            x[3, 1] = value
            with pytest.raises(ValueError, match=f"x is not finite, or.*{dtype}"):
                getattr(marginal, name)(x, 0.5)
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]):  # some of the data within reach
        marginal = EmpiricalMarginal(linear, data[order], chunk=1)
        x = torch.cat((points(2, 3).to(dtype), data[4:] / 2))
        assert getattr(marginal, name)(x, 0.5).isfinite().all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("chunk", [1, 2**19])
def test_hard_data_late_in_float32(name, chunk):
    """Catches NaN or a wrong limit from tiny weights, duplicates, or 1 - 1e-7."""
    data = points(4, 3, dtype=torch.float32)[[0, 1, 1, 2, 3]]
    weights = torch.tensor([1.0, 2.0, 3.0, 1e-20, 1e-37])
    marginal = EmpiricalMarginal(linear, data, weights, chunk)
    late = torch.tensor([1 - 1e-7, 1 - 1e-6, 1 - 1e-3])  # the first: 1 - 2**-23
    t, x = late.repeat_interleave(5), data.repeat(3, 1)
    value = getattr(marginal, name)(x, t)
    assert value.isfinite().all()
    picked = torch.eye(5)
    picked[1:3, 1:3] = torch.tensor([0.4, 0.6])
    if name == "posterior":
        assert_close(value, picked.repeat(3, 1))
    if name == "posterior_mean":
        assert_close(value, x)
    if name == "velocity":  # at (1 - σ) x1 the conditional field is x1
        start = t[:, None].double() * x.double()
        slow = EmpiricalMarginal(linear, data.double(), weights.double())
        assert_close(slow.velocity(start, t.double()), x.double(), rtol=1e-6, atol=1e-6)
    if name == "divergence":
        # -3 / σ, but for the mean's rounding: 12 operations of relative error 2^-24 on
        # x1; its square, over σ³, is added to the trace. At the first t it is all.
        slip = (12 * 2**-24) ** 2 * x.square().sum(1) / (1 - t) ** 2
        assert ((value * (1 - t) + 3).abs() <= slip + 1e-5)[5:].all()


def test_where_everything_ties():
    """Catches powers of a small sigma that overflow before they meet a spread of 0."""
    width = 1e-9  # 1 / width³ fits in float32, 1 / width⁵ would not
    path = path_of(sigma=lambda t: torch.full_like(t, width))
    marginal = EmpiricalMarginal(path, torch.ones(3, 2))
    assert_close(marginal.divergence(0.5 * torch.ones(1, 2), 0.5), torch.tensor([-2e9]))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_end_is_refused(name, dtype):
    """Catches infinity or NaN where sigma is 0, or a limit that is too strict."""
    x, t = points(5, 3).to(dtype), torch.tensor([0.1, 0.2, 1.0, 0.3, 1.0])
    for path in (linear, VPPath()):
        marginal = EmpiricalMarginal(path, points(7, 3).to(dtype))
        for time in (t, 1.0, torch.tensor(1.0), torch.ones(5)):
            with pytest.raises(ValueError, match=f"at t = 1 sigma_t is 0 in {dtype}"):
                getattr(marginal, name)(x, time)
    width = torch.finfo(dtype).tiny ** 0.25
    for factor, allowed in ((0.9, False), (1.1, True)):
        path = path_of(sigma=lambda t, s=factor * width: torch.full_like(t, s))
        thin = EmpiricalMarginal(path, points(7, 3).to(dtype))
        if allowed:
            assert getattr(thin, name)(x, 0.5).isfinite().all()
        else:
            with pytest.raises(ValueError, match="sigma_t is 0"):
                getattr(thin, name)(x, 0.5)


@pytest.mark.parametrize("name", ["alpha", "sigma", "dalpha", "dsigma"])
def test_infinite_schedules_are_refused(name):
    """Catches NaN passed on from a path that is singular at this time."""
    path = path_of(**{name: lambda t: 1 / (t - t)})
    x = points(5, 4)
    for marginal in (
        EmpiricalMarginal(path, points(7, 4)),
        MixtureMarginal(path, mixture()),
    ):
        with pytest.raises(ValueError, match=r"at t = 0\.5 .*the path is infinite"):
            marginal.velocity(x, 0.5)
        if not name.startswith("d"):  # the density needs no derivative
            with pytest.raises(ValueError, match=r"at t = 0\.5 .*path is infinite"):
                marginal.log_prob(x, 0.5)


def test_a_covariance_too_small_for_the_dtype_is_refused_at_the_end_only():
    """Catches NaN where a Gaussian has no density."""
    law = mixture()
    flat = torch.diag(torch.tensor([1.0, 1, 1, 1e-200], dtype=F64)).repeat(3, 1, 1)
    marginal = MixtureMarginal(linear, GaussianMixture(law.weights, law.means, flat))
    x = points(5, 4)
    assert marginal.velocity(x, 0.999).isfinite().all()
    with pytest.raises(ValueError, match="at t = 1 sigma_t is 0"):
        marginal.velocity(x, 1.0)
    for alpha, variance in ((1e30, 1e-200), (1e-3, 1e-147)):  # alpha² C is what counts
        path = path_of(
            alpha=lambda t, a=alpha: torch.full_like(t, a), sigma=torch.zeros_like
        )
        round_ = variance * torch.eye(4, dtype=F64).repeat(3, 1, 1)
        small = MixtureMarginal(path, GaussianMixture(law.weights, law.means, round_))
        x = small._inputs(points(5, 4), 0.5)[0]
        assert x.isfinite().all()


@pytest.mark.parametrize("dtype, tolerance", [(F64, 1e-11), (torch.float32, 2e-5)])
def test_vp_mixture_at_its_singular_end(dtype, tolerance):
    """Catches 0 times infinity from sigma dsigma at t = 1, or another limit of it.

    There alpha = 1, sigma = 0, alpha' = β/2, sigma sigma' = (e^-B)'/-2 → -β/2, with
    β = beta_min: the field is β/2 (x + ∇log q), its divergence β/2 (d + Δ log q).
    """
    law, beta = mixture(), 0.3
    marginal = MixtureMarginal(VPPath(beta, 20.0), law.to(dtype))
    x = points(5, 4)
    at, times = x.to(dtype), torch.tensor([1.0, 0.2, 1.0, 0.7, 1.0], dtype=dtype)
    point = x.clone().requires_grad_()
    score = law.score(point)
    rows = [
        torch.autograd.grad(score[:, i].sum(), point, retain_graph=True)[0][:, i]
        for i in range(4)
    ]
    expected = {
        "velocity": beta / 2 * (x + score.detach()),
        "divergence": beta / 2 * (4 + sum(rows)),
        "score": score.detach(),
        "log_prob": law.log_prob(x),
        "posterior": law.component_log_prob(x).softmax(1),
        "posterior_mean": x,
    }
    close = {"rtol": tolerance, "atol": tolerance}
    for name in METHODS:
        value = getattr(marginal, name)(at, 1.0)
        assert value.dtype == dtype
        assert_close(value.double(), expected[name], **close)
        mixed = getattr(marginal, name)(at, times)
        assert_close(mixed[::2], value[::2], **close)
        alone = getattr(marginal, name)(at[3:4], 0.7)
        assert_close(mixed[3:4], alone, **close)
    near = marginal.velocity(at, 1 - 2.0**-20)
    assert_close(near.double(), expected["velocity"], rtol=1e-3, atol=1e-3)


def test_a_singular_speed_in_the_middle():
    """Catches a limit that is always taken at t = 1."""
    path = path_of(
        sigma=lambda t: (0.5 - t).sqrt(), dsigma=lambda t: -0.5 / (0.5 - t).sqrt()
    )
    law, x = mixture(K=1), points(5, 4)
    S, offset = 0.25 * law.covariances[0], x - 0.5 * law.means
    gain = 0.5 * law.covariances[0] - 0.5 * torch.eye(4, dtype=F64)  # σσ' = −½
    expected = law.means + torch.linalg.solve(S, offset.T).T @ gain
    assert_close(MixtureMarginal(path, law).velocity(x, 0.5), expected)


@pytest.mark.parametrize(
    "variance",
    [
        lambda t: (1 - t).sqrt(),  # its rate is infinite, like 1/√(1 − t)
        lambda t: (1 - t) * (1 - (1 - t).log()),  # and here like a logarithm
    ],
)
def test_a_speed_without_a_limit_is_refused(variance):
    """Catches a number close to the end that is taken for a limit."""
    path = path_of(
        sigma=lambda t: torch.where(t < 1, variance(t), 0).nan_to_num(0).sqrt(),
        dsigma=torch.func.vmap(torch.func.grad(lambda t: variance(t).sqrt())),
    )
    marginal, x = MixtureMarginal(path, mixture()), points(5, 4)
    assert marginal.velocity(x, 1 - 1e-9).isfinite().all()
    assert_close(marginal.log_prob(x, 1.0), mixture().log_prob(x))
    for name in ("velocity", "divergence"):
        with pytest.raises(ValueError, match="at t = 1 the path is infinite"):
            getattr(marginal, name)(x, 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_computed_in_float32(dtype):
    """Catches exponents of size d/2 that are rounded to whole nats."""
    data, x = points(50, 784, seed=2), points(5, 784, seed=3)
    data, x = data.to(dtype), (0.3 * data[:5] + 0.7 * x).to(dtype)
    t = torch.tensor(0.3, dtype=dtype)
    law = mixture()
    for marginal, at in (
        (EmpiricalMarginal(linear, data), x),
        (EmpiricalMarginal(linear, data.view(50, 28, 28)), x.view(5, 28, 28)),
        (MixtureMarginal(linear, law), x[:, :4]),
    ):
        for name in METHODS:
            value = getattr(marginal, name)(at, t)
            exact = getattr(marginal, name)(at.double(), t.double())
            assert value.dtype == dtype and value.shape == exact.shape
            # one rounding of the result, and float32's on the way: 2e-4 of 800 nats
            one = torch.finfo(dtype).eps * exact.abs()
            assert ((value.double() - exact).abs() <= one + 2e-4).all(), name


@pytest.mark.parametrize(
    "data, options, error, match",
    [
        (torch.ones(5, 3, dtype=torch.int64), {}, TypeError, "data.*int64"),
        (torch.tensor(1.0), {}, ValueError, r"data.*got \(\)"),
        (torch.ones(0, 3), {}, ValueError, r"N >= 1, got \(0,\) and \(0, 3\)"),
        (torch.full((5, 3), math.nan), {}, ValueError, "data.*15 NaN"),
        (
            torch.ones(5, 3),
            {"weights": torch.ones(4)},
            ValueError,
            r"got \(4,\) and \(5, 3\)",
        ),
        (torch.ones(5, 3), {"weights": torch.arange(5.0)}, ValueError, "positive"),
        (
            torch.ones(2, 3),
            {"weights": torch.tensor([1, math.inf])},
            ValueError,
            "weights.*1 NaN",
        ),
    ],
)
def test_bad_data(data, options, error, match):
    """Catches a refusal that is lost, or doesn't name what came."""
    with pytest.raises(error, match=match):
        EmpiricalMarginal(linear, data, **options)


def test_bad_points():
    """Catches points that would broadcast against the data."""
    marginal = EmpiricalMarginal(linear, points(7, 2, 3))
    with pytest.raises(ValueError, match=r"\(B, \*\(2, 3\)\), got \(5, 3, 2\)"):
        marginal.velocity(points(5, 3, 2), 0.5)
    with pytest.raises(TypeError, match="int64"):
        marginal.velocity(torch.ones(5, 2, 3, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        marginal.velocity(points(5, 2, 3), torch.rand(4))
    with pytest.raises(ValueError, match=r"\(B, \*\(4,\)\), got \(5, 3\)"):
        MixtureMarginal(linear, mixture()).velocity(points(5, 3), 0.5)
    for law in (
        EmpiricalMarginal(linear, points(7, 4)),
        MixtureMarginal(linear, mixture()),
    ):
        with pytest.raises(ValueError, match=r"\(B, \*\(4,\)\), got \(4,\)"):
            law.velocity(points(4), 0.5)  # one point, without its batch
    with pytest.raises(ValueError, match=r"\(B, \*\(2, 3\)\), got \(6,\)"):
        marginal.velocity(points(6), 0.5)
    with pytest.raises(ValueError, match=r"\(B, \*\(\)\), got \(5, 1\)"):
        EmpiricalMarginal(linear, points(7)).velocity(points(5, 1), 0.5)


def test_flat_data_takes_points_of_any_shape():
    """Catches an image refused, or returned flat, where the data is a table."""
    data, x = points(7, 6), points(5, 2, 3)
    flat = EmpiricalMarginal(linear, data).velocity(x.flatten(1), 0.5)
    assert_close(EmpiricalMarginal(linear, data).velocity(x, 0.5), flat.view(5, 2, 3))


def test_not_a_mixture():
    """Catches parts that nobody has validated."""
    with pytest.raises(TypeError, match=r"GaussianMixture, got.*SimpleNamespace"):
        MixtureMarginal(linear, SimpleNamespace(means=points(3, 4)))


def test_weights_of_any_size():
    """Catches a sum of weights that overflows or underflows."""
    data, x = points(3, 2).float(), points(5, 2).float()
    equal = EmpiricalMarginal(linear, data).posterior(x, 0.5)
    for weight in (3e38, 1e-38):
        marginal = EmpiricalMarginal(linear, data, torch.full((3,), weight))
        assert_close(marginal.posterior(x, 0.5), equal)


def test_one_block_with_all_the_weight_is_not_rounded():
    """Catches mean + w (y - mean), which rounds where w is 1."""
    data = torch.tensor([[1e8], [0.1], [-1e8]], dtype=F64)
    marginal = EmpiricalMarginal(linear, data, chunk=1)
    mean = marginal.posterior_mean(torch.full((1, 1), 0.05, dtype=F64), 0.5)
    assert mean.item() == 0.1
