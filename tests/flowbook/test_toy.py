"""Distributions with exact densities, against torch.distributions and quadrature."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowbook.toy import (
    GaussianMixture,
    line_mixture,
    ring_mixture,
    sample_checkerboard,
    sample_moons,
    sample_rings,
    skewed_mixture,
)

from ..given import draw, seeded

N = 20_000


def mixture_3d(dtype=torch.float64):  # K = 2, d = 3, correlated, unequal weights
    factor = torch.tensor(
        [
            [[1.0, 0.0, 0.0], [0.4, 0.7, 0.0], [-0.3, 0.2, 0.5]],
            [[0.6, 0.0, 0.0], [-0.5, 0.9, 0.0], [0.1, 0.3, 1.2]],
        ],
        dtype=dtype,
    )
    means = torch.tensor([[0.5, -1.0, 2.0], [-1.5, 0.3, 0.4]], dtype=dtype)
    weights = torch.tensor([0.3, 0.7], dtype=dtype)
    return GaussianMixture(weights, means, factor @ factor.mT)


def reference(law):
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(law.weights),
        torch.distributions.MultivariateNormal(law.means, law.covariances),
    )


def in_standard_errors(terms, expected):
    return (terms.mean(0) - expected) / (terms.std(0) / math.sqrt(len(terms)))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (None, 1e-13)])
def test_log_prob_against_torch_distributions(dtype, tolerance):
    """Catches a wrong normaliser, sign, factor ½ or weight."""
    law = mixture_3d().to(dtype)
    x = draw(5, 3).to(law.means)
    expected = reference(law).log_prob(x)
    assert_close(law.log_prob(x), expected, rtol=tolerance, atol=tolerance)
    parts = law.component_log_prob(x)
    assert parts.shape == (5, 2)
    assert_close(parts.exp().sum(1).log(), expected, rtol=tolerance, atol=tolerance)


def test_log_prob_far_away_in_float32():
    """Catches exponentials before the logarithm, whose sum is 0 out there."""
    law = skewed_mixture(dtype=torch.float32)
    x = torch.tensor([[60.0, -40.0], [0.0, 300.0]])
    expected = skewed_mixture(dtype=torch.float64).log_prob(x.double()).float()
    assert_close(law.log_prob(x), expected, rtol=1e-5, atol=0.0)
    assert law.score(x).isfinite().all()


def test_score_is_the_gradient():
    """Catches a sign, the posterior without weights, C for its inverse."""
    law = mixture_3d()
    x = draw(5, 3).requires_grad_()
    (expected,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    assert_close(law.score(x), expected, rtol=1e-12, atol=1e-12)


def test_moments_by_quadrature():
    """Catches a covariance without the spread of the means."""
    law = line_mixture(dtype=torch.float64)
    x = torch.linspace(-8, 8, 801, dtype=torch.float64)
    mass = law.log_prob(x[:, None]).exp() * (x[1] - x[0])
    mean = (mass @ x)[None]
    variance = (mass @ (x - mean).square())[None, None]
    assert_close(law.mean, mean, rtol=0, atol=1e-13)
    assert_close(law.covariance, variance, rtol=0, atol=1e-13)
    assert law.dim == 1


def test_covariance_by_hand():
    """Catches transposed or dropped factors of the spread, in more dimensions."""
    law = mixture_3d()
    mean = 0.3 * law.means[0] + 0.7 * law.means[1]
    second = sum(
        w * (C + torch.outer(m, m))
        for w, m, C in zip(law.weights, law.means, law.covariances, strict=True)
    )
    assert_close(law.mean, mean, rtol=0, atol=1e-14)
    assert_close(law.covariance, second - torch.outer(mean, mean), rtol=0, atol=1e-14)
    assert law.dim == 3


@pytest.mark.parametrize("law", [skewed_mixture(dtype=torch.float64), mixture_3d()])
def test_sampler_by_stein(law):
    """Catches Lᵀz for Lz, a lost mean, wrong weights: E s = 0 and E x sᵀ = −I fail."""
    x = law.sample(N, generator=seeded(1))
    s = law.score(x)
    assert x.shape == (N, law.dim) and x.dtype == torch.float64
    products = (x[:, :, None] * s[:, None, :]).flatten(1)
    eye = torch.eye(law.dim, dtype=torch.float64).flatten()
    assert in_standard_errors(s, 0).abs().max() < 4.5
    assert in_standard_errors(products, -eye).abs().max() < 4.5
    assert in_standard_errors(x, law.mean).abs().max() < 4.5


def test_sample_is_mean_plus_factor_times_noise():
    """Catches another order of draws, a mirrored noise: a recorded seed means a set."""
    law = mixture_3d()
    g = seeded(5)
    k = torch.multinomial(law.weights, 6, replacement=True, generator=g)
    z = torch.randn(6, 3, generator=g, dtype=torch.float64)
    L = torch.linalg.cholesky(law.covariances)[k]
    expected = law.means[k] + torch.einsum("nij,nj->ni", L, z)
    assert_close(law.sample(6, generator=seeded(5)), expected, rtol=0, atol=1e-14)
    assert len(k.unique()) == 2


def test_sampling_repeats_with_the_seed_only():
    """Catches a generator that is not passed on."""
    law = skewed_mixture(dtype=torch.float32)
    first, again = (law.sample(7, generator=seeded(3)) for _ in range(2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, law.sample(7, generator=seeded(4)))
    assert first.dtype == torch.float32


@pytest.mark.parametrize("alpha, sigma", [(0.6, 0.5), (-1.3, 0.0), (0.0, 0.7)])
def test_noised_by_moment_generating_function(alpha, sigma):
    """Catches α for α², σ for σ², a mean without α."""
    law = mixture_3d()
    v = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)

    def log_mgf(mixture, v):  # log E exp(v·X), exact
        quadratic = torch.einsum("i,kij,j->k", v, mixture.covariances, v)
        return (mixture.weights.log() + mixture.means @ v + quadratic / 2).logsumexp(0)

    noise = sigma**2 * v.square().sum() / 2
    expected = log_mgf(law, alpha * v) + noise
    assert_close(log_mgf(law.noised(alpha, sigma), v), expected, rtol=1e-13, atol=1e-13)


def test_noised_is_differentiable_in_its_numbers():
    """Catches numbers detached on the way."""
    law = line_mixture(dtype=torch.float64)
    x = torch.tensor([[0.2]], dtype=torch.float64)
    a = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(law.noised(a, 0.3).log_prob(x).sum(), a)
    h = 1e-5
    ends = [law.noised(0.6 + s * h, 0.3).log_prob(x).sum() for s in (1, -1)]
    assert_close(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-8, atol=1e-8)


def test_to_another_dtype():
    """Catches a part left behind."""
    law = skewed_mixture(dtype=torch.float64).to(torch.float32)
    assert {law.weights.dtype, law.means.dtype, law.covariances.dtype} == {
        torch.float32
    }
    with pytest.raises(TypeError, match="floating point, got torch"):
        law.to(torch.int64)


def test_a_wider_dtype_can_be_reached():
    """Catches weights that sum to 1 only as closely as their first dtype could say."""
    law = skewed_mixture(dtype=torch.float32).to(torch.float64)
    assert_close(law.weights.sum().item(), 1.0, rtol=0, atol=1e-15)
    assert_close(
        law.means, skewed_mixture(dtype=torch.float64).means, rtol=0, atol=1e-6
    )


def test_ready_mixtures():
    """Catches a constant of the ring; std for its square."""
    ring = ring_mixture(5, radius=2.0, std=0.3, dtype=torch.float64)
    assert_close(ring.means[0], torch.tensor([2.0, 0.0]).double(), rtol=0, atol=0)
    quarter = ring_mixture(4, radius=3.0, dtype=torch.float64).means[1]
    assert_close(quarter, torch.tensor([0.0, 3.0]).double(), rtol=0, atol=1e-15)
    expected = (2.0 + 0.09) * torch.eye(2, dtype=torch.float64)
    assert_close(ring.covariance, expected, rtol=0, atol=1e-14)
    assert_close(ring.mean, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-14)
    assert ring_mixture().weights.tolist() == [0.125] * 8
    for law in (ring_mixture(), skewed_mixture(), line_mixture()):
        assert law.means.dtype == torch.float32


def test_skewed_and_line_mixtures_are_these():
    """Catches another number in a law that recorded results depend on."""
    law = skewed_mixture(dtype=torch.float64)
    at = torch.tensor([[0.5, -0.5], [-1.0, 1.0]], dtype=torch.float64)
    covariances = [
        [[0.5, 0.3], [0.3, 0.4]],
        [[0.3, -0.15], [-0.15, 0.2]],
        [[0.15, 0.05], [0.05, 0.6]],
    ]
    expected = GaussianMixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([[-1.0, 0.2], [1.4, 1.0], [0.6, -1.7]], dtype=torch.float64),
        torch.tensor(covariances, dtype=torch.float64),
    )
    assert_close(law.log_prob(at), expected.log_prob(at), rtol=0, atol=0)
    line = line_mixture(dtype=torch.float64)
    numbers = [line.weights, line.means[:, 0], line.covariances[:, 0, 0]]
    table = torch.tensor([[0.3, 0.7], [-1.5, 1.0], [0.16, 0.36]]).double()
    assert_close(torch.stack(numbers), table, rtol=0, atol=1e-7)


def test_moons():
    """Catches a moved centre, a half angle, moons of unequal weight, noise squared."""
    x = sample_moons(N, noise=0.0, generator=seeded(), dtype=torch.float64)
    upper, lower = x + x.new_tensor([0.5, 0.25]), -x + x.new_tensor([0.5, 0.25])
    on_upper = (upper.norm(dim=1) - 1).abs() < 1e-12
    on_lower = (lower.norm(dim=1) - 1).abs() < 1e-12
    assert (on_upper | on_lower).all()
    assert (
        upper[on_upper, 1].min() > -1e-12 and lower[on_lower & ~on_upper, 1].min() > 0
    )
    assert (on_upper.double().mean() - 0.5).abs() < 4 * 0.5 / math.sqrt(N)
    angle = torch.atan2(upper[on_upper, 1], upper[on_upper, 0])
    error = (angle.mean() - math.pi / 2) * math.sqrt(len(angle))
    assert error.abs() < 4 * math.pi / math.sqrt(12)
    assert (angle > 3).any() and (angle < 0.14).any()
    g = seeded()
    torch.rand(N, 2, generator=g, dtype=torch.float64)
    grain = torch.randn(N, 2, generator=g, dtype=torch.float64)
    noisy = sample_moons(N, noise=0.2, generator=seeded(), dtype=torch.float64)
    assert_close(noisy - x, 0.2 * grain, rtol=0, atol=1e-14)
    assert sample_moons(3).dtype == torch.float32


def test_checkerboard():
    """Catches a colour swapped, a square missed or hit too often, a wrong frame."""
    x = sample_checkerboard(N, generator=seeded(), dtype=torch.float64)
    assert x.abs().max() <= 2
    uniform = torch.rand(N, 2, generator=seeded(), dtype=torch.float64)
    assert_close(x[:, 0], 4 * uniform[:, 0] - 2, rtol=0, atol=0)
    column, row = (x.floor() + 2).long().unbind(1)
    assert ((column + row) % 2 == 0).all()
    counts = torch.bincount(4 * column + row, minlength=16).double() / N
    used = counts[counts > 0]
    assert len(used) == 8
    assert (used - 1 / 8).abs().max() < 4.5 * math.sqrt(7 / 64 / N)
    inside = x - x.floor()
    assert (inside.mean(0) - 0.5).abs().max() < 4.5 / math.sqrt(12 * N)
    assert (inside.var(0) - 1 / 12).abs().max() < 0.002


def test_rings():
    """Catches rings of equal weight, half rings, noise without its factor."""
    radii = (0.5, 1.25, 2.0)
    x = sample_rings(N, noise=0.0, generator=seeded(), dtype=torch.float64)
    r = x.norm(dim=1)
    for radius in radii:
        share = ((r - radius).abs() < 1e-12).double().mean()
        p = radius / sum(radii)
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / N)
    direction = x / r[:, None]
    assert direction.mean(0).abs().max() < 4.5 / math.sqrt(2 * N)
    g = seeded()
    torch.multinomial(torch.tensor(radii).double(), N, replacement=True, generator=g)
    torch.rand(N, generator=g, dtype=torch.float64)
    grain = torch.randn(N, 2, generator=g, dtype=torch.float64)
    noisy = sample_rings(N, noise=0.1, generator=seeded(), dtype=torch.float64)
    assert_close(noisy - x, 0.1 * grain, rtol=0, atol=1e-14)
    assert sample_rings(3).dtype == torch.float32


def test_rings_have_the_density_that_the_page_states():
    """Catches another weight, or another Bessel function, on the page."""
    noise, radii = 0.2, torch.tensor([0.5, 1.25, 2.0], dtype=torch.float64)
    rho = torch.linspace(0, 4, 4001, dtype=torch.float64)[:, None]
    bessel = torch.special.i0e(rho * radii / noise**2)
    bell = (-(((rho - radii) / noise) ** 2) / 2).exp() / (2 * math.pi * noise**2)
    density = (bell * bessel) @ (radii / radii.sum())
    mass = torch.cumulative_trapezoid(2 * math.pi * rho[:, 0] * density, rho[:, 0])
    assert abs(mass[-1] - 1) < 1e-6
    x = sample_rings(N, noise=noise, generator=seeded(), dtype=torch.float64)
    share = (x.norm(dim=1) <= rho[1:]).double().mean(1)
    dkw = math.sqrt(math.log(2 / 6e-5) / (2 * N))
    assert (share - mass).abs().max() < dkw


@pytest.mark.parametrize("sample", [sample_moons, sample_checkerboard, sample_rings])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shown_laws_are_drawn_where_they_are_asked_for(sample, dtype):
    """Catches a device or a dtype that one of the draws ignores."""
    x = sample(5, dtype=dtype, device="meta")  # any tensor left on the CPU would raise
    assert x.shape == (5, 2) and x.dtype == dtype and x.device.type == "meta"


W, M, C = torch.tensor([0.4, 0.6]), torch.zeros(2, 3), torch.eye(3).repeat(2, 1, 1)
ASYMMETRIC = C + torch.tensor([[0, 1e-3, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    "parts, error, message",
    [
        ((W[:1], M, C), ValueError, r"got \(1,\), \(2, 3\), \(2, 3, 3\)"),
        ((W, M[0], C), ValueError, r"got \(2,\), \(3,\), \(2, 3, 3\)"),
        ((W, M, C[0]), ValueError, r"got \(2,\), \(2, 3\), \(3, 3\)"),
        ((W, M[:, :0], C[:, :0, :0]), ValueError, r"\(2, 0\)"),
        ((0 * W, M, C), ValueError, ">= 0 and not all 0"),
        ((torch.tensor([-0.1, 1.1]), M, C), ValueError, ">= 0 and not all 0"),
        ((W, M, ASYMMETRIC), ValueError, "symmetric, got a gap of 0.001"),
        (
            (W, M, torch.stack((ASYMMETRIC[0], C[1]))),
            ValueError,
            "symmetric, got a gap",
        ),
        ((W, M, -C), ValueError, r"covariances \[0, 1\] are not positive definite"),
        ((W, M * torch.nan, C), ValueError, "means must be finite"),
        ((W.double(), M, C), TypeError, "must share a dtype and a device"),
        ((W, M.int(), C), TypeError, "means must be a floating-point tensor"),
        (([0.4, 0.6], M, C), TypeError, "weights must be a floating-point tensor"),
    ],
)
def test_what_is_no_mixture_is_refused(parts, error, message):
    """Catches a validation that lets something else through."""
    with pytest.raises(error, match=message):
        GaussianMixture(*parts)


def test_weights_are_divided_by_their_sum():
    """Catches a density that integrates to 2; weights changed that sum to 1 already."""
    law = skewed_mixture(dtype=torch.float64)
    twice = GaussianMixture(2 * law.weights, law.means, law.covariances)
    assert_close(twice.weights, law.weights)
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).view(5, 2)
    assert_close(twice.log_prob(x), law.log_prob(x))
    assert_close(twice.noised(0.5, 1.0).mean, 0.5 * law.mean)
    assert torch.equal(GaussianMixture(W, M, C).weights, W)
    third = torch.full((3,), 1 / 3)  # sums to 1 but for rounding
    kept = GaussianMixture(third, M[:1].expand(3, 3), C[:1].expand(3, 3, 3))
    assert torch.equal(kept.weights, third)


def test_weights_that_miss_1_by_roundings_stay():
    """Catches another threshold than 4 K roundings, here 8; or none."""
    moments, eps = (torch.zeros(2, 1).double(), torch.ones(2, 1, 1).double()), 2.0**-52
    for missed, stays in ((6, True), (8, True), (9, False), (-9, False)):
        weights = torch.tensor([0.5, 0.5 + missed * eps], dtype=torch.float64)
        kept = GaussianMixture(weights, *moments).weights
        assert torch.equal(kept, weights) == stays
        assert abs(kept.sum() - 1) <= 8 * eps


def test_a_weight_may_be_zero():
    """Catches NaN from the logarithm of a weight of 0, or a draw of it."""
    law = skewed_mixture(dtype=torch.float64)
    weights = torch.tensor([5.0, 0.0, 3.0], dtype=torch.float64)
    thin = GaussianMixture(weights, law.means, law.covariances)
    kept = [0, 2]
    plain = GaussianMixture(weights[kept], law.means[kept], law.covariances[kept])
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).view(5, 2)
    assert_close(thin.log_prob(x), plain.log_prob(x))
    assert_close(thin.score(x), plain.score(x))
    assert thin.sample(50, generator=seeded()).isfinite().all()


def test_rounding_is_no_reason_to_refuse():
    """Catches a tolerance that valid float32 input exceeds."""
    K, d = 300, 20
    weights = torch.rand(K, generator=seeded()).softmax(0)
    factor = torch.randn(K, d, d, generator=seeded()) + 3 * torch.eye(d)
    GaussianMixture(weights, torch.zeros(K, d), factor @ factor.mT)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda m: m.log_prob(torch.zeros(5, 2)), TypeError, "float32, the mixture"),
        (lambda m: m.score(torch.zeros(5, 3).double()), ValueError, r"\(5, 3\)"),
        (lambda m: m.log_prob(torch.zeros(2).double()), ValueError, r"\(2,\)"),
        (lambda m: m.sample(0), ValueError, "n must be at least 1, got 0"),
        (lambda m: m.sample(2.0), TypeError, "n must be an integer, got float"),
        (lambda m: m.noised(0, 0), ValueError, "not both 0, got alpha=0"),
        (lambda m: m.noised(1.0, -0.1), ValueError, "sigma ≥ 0"),
        (lambda m: m.noised(math.nan, 0.1), ValueError, "must be finite"),
        (
            lambda m: m.noised(torch.ones(2), 0.1),
            ValueError,
            r"must be numbers.*\(2,\)",
        ),
        (lambda m: ring_mixture(0), ValueError, "modes must be at least 1"),
        (lambda m: sample_moons(-1), ValueError, "n must be at least 1, got -1"),
        (lambda m: sample_rings(5, radii=(1.0, -1.0)), ValueError, "must be positive"),
        (lambda m: sample_rings(5, radii=()), ValueError, "must be positive"),
        (lambda m: sample_rings(5, radii=(math.inf,)), ValueError, "and finite"),
        (lambda m: m.to(device="nowhere"), RuntimeError, "nowhere"),
        (lambda m: m.to("cuda"), TypeError, "floating point, got 'cuda'"),
        (lambda m: sample_checkerboard(True), TypeError, "got bool"),
    ],
)
def test_bad_input_is_named(call, error, message):
    """Catches a silent broadcast or conversion."""
    with pytest.raises(error, match=message):
        call(skewed_mixture(dtype=torch.float64))
