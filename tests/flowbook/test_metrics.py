"""Three distances against closed forms, SciPy and plain versions, and their nulls."""

import math

import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
import torch
from torch.testing import assert_close

from flowbook.metrics import (
    calibrated_distance,
    distance_null,
    energy_distance,
    energy_distance_null,
    frechet_distance,
    sliced_wasserstein,
)

from ..given import draw, seeded


def by_means(x, y):
    def mean(a, b):
        difference = a.double().flatten(1)[:, None] - b.double().flatten(1)
        return difference.square().sum(-1).sqrt().mean()

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


@pytest.mark.parametrize("chunk", [1, 3, 8, 512])
@pytest.mark.parametrize("shape", [[1], [3], [2, 3, 4]])
def test_three_means(shape, chunk):
    """Catches a lost 2 or sign, sizes swapped, blocks counted once or twice."""
    x, y = draw(5, *shape), 0.5 + 2 * draw(8, *shape, seed=1)
    value = energy_distance(x, y, chunk=chunk)
    assert value.shape == ()
    assert_close(value, by_means(x, y), rtol=0, atol=1e-13)
    assert_close(energy_distance(y, x, chunk=chunk), value, rtol=0, atol=1e-13)


def test_scipy_on_the_line():
    """Catches a root, a factor, a U- for a V-statistic."""
    x, y = draw(40, 1), 0.3 + draw(60, 1, seed=1)
    root = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert_close(energy_distance(x, y).item(), root**2, rtol=1e-12, atol=0.0)


def test_two_points():
    """Catches a factor that a comparison of two estimates would share."""
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert energy_distance(x, y).item() == 10.0


def test_gaussians_in_closed_form():
    """Catches a wrong limit: N(0, 1) and N(1/2, 1.5²), with the V-statistic's bias."""

    def mean_abs(m, s):
        bell = s * math.sqrt(2 / math.pi) * math.exp(-((m / s) ** 2) / 2)
        return bell + m * math.erf(m / s / math.sqrt(2))

    own = mean_abs(0, math.sqrt(2)), mean_abs(0, 1.5 * math.sqrt(2))
    expected = 2 * mean_abs(0.5, math.hypot(1, 1.5)) - sum(own)
    expected += own[0] / 30 + own[1] / 20
    z = draw(300, 50, 1, seed=2)
    values = [energy_distance(a[:30], 0.5 + 1.5 * a[30:]) for a in z]
    values = torch.stack(values)
    error = (values.mean() - expected) / (values.std() / math.sqrt(300))
    assert error.abs() < 4


@pytest.mark.parametrize("d", [2, 40])
def test_equal_samples_are_at_distance_zero(d):
    """Catches a value below zero by rounding, coincident points at 1e-4."""
    x = draw(30, d, dtype=torch.float32)
    value = energy_distance(x, x.flip(0))
    assert value.dtype == torch.float32
    assert 0 <= value < 1e-8


def test_far_from_the_origin():
    """Catches distances by products of large numbers, without centring."""
    x, y = draw(20, 40), draw(30, 40, seed=1)
    moved = energy_distance(x + 1e5, y + 1e5)
    assert_close(moved, energy_distance(x, y), rtol=0, atol=1e-8)


@pytest.mark.parametrize("d", [2, 40])
def test_null_is_the_distance_of_its_splits(d):
    """Catches sets that overlap, wrong weights, a column for another."""
    real = draw(12, d)
    null = energy_distance_null(real, 4, 6, repeats=3, generator=seeded(7), chunk=5)
    g = seeded(7)
    splits = [torch.randperm(12, generator=g) for _ in range(3)]
    expected = [by_means(real[o[:4]], real[o[4:10]]) for o in splits]
    assert_close(null, torch.stack(expected), rtol=0, atol=1e-13)


def test_null_uses_all_points_and_their_shape():
    """Catches images that are not flattened, an unequal split of all the points."""
    real = draw(9, 2, 3, 4, dtype=torch.float32)
    null = energy_distance_null(real, 2, 7, generator=seeded())
    assert null.shape == (200,) and null.dtype == torch.float32
    g = seeded()
    order = torch.randperm(9, generator=g)
    assert_close(null[0].double(), by_means(real[order[:2]], real[order[2:]]))


def test_nothing_flows_back():
    """Catches a graph kept alive over all pairs."""
    x = draw(4, 2).requires_grad_()
    assert not energy_distance(x, draw(5, 2)).requires_grad
    assert not energy_distance_null(x, 2, 2, repeats=2).requires_grad
    assert not sliced_wasserstein(x, draw(5, 2)).requires_grad
    assert not frechet_distance(x, draw(5, 2)).requires_grad


def transport_on_the_line(x, y):
    """W₂² of two samples, by copies: n·m equal masses on either side."""
    n, m = len(x), len(y)
    x, y = (z.sort().values.repeat_interleave(k) for z, k in ((x, m), (y, n)))
    return (x - y).square().mean()


def test_numbers_are_points():
    """Catches numbers (B,) taken for one point of B coordinates, or refused."""
    x, y = draw(6), draw(5, seed=1)
    for distance in (energy_distance, sliced_wasserstein, frechet_distance):
        assert_close(distance(x, y), distance(x[:, None], y[:, None]))


@pytest.mark.parametrize("n, m", [(1, 1), (4, 4), (5, 8), (6, 4), (1, 7)])
def test_transport_on_the_line(n, m):
    """Catches unsorted points, a piece of a quantile function lost, a root."""
    x, y = draw(n, 1), 0.3 + 2 * draw(m, 1, seed=1)
    value = sliced_wasserstein(x, y, projections=3, generator=seeded())
    assert value.shape == ()
    assert_close(value, transport_on_the_line(x[:, 0], y[:, 0]), rtol=0, atol=1e-13)


def test_transport_is_the_best_assignment():
    """Catches a pairing that is sorted but not optimal."""
    x, y = draw(9, 1), draw(9, 1, seed=1).exp()
    cost = (x - y[:, 0]).square()
    rows, columns = scipy.optimize.linear_sum_assignment(cost.numpy())
    value = sliced_wasserstein(x, y, projections=1)
    assert_close(value, cost[rows, columns].mean(), rtol=0, atol=1e-13)


def test_slices_one_by_one():
    """Catches directions that are not unit, not uniform, or shared wrongly."""
    x, y = draw(5, 2, 3), 0.5 + draw(8, 2, 3, seed=1)
    value = sliced_wasserstein(x, y, projections=7, generator=seeded(3))
    g = seeded(3)
    theta = torch.randn((6, 7), generator=g, dtype=torch.float64)
    slices = [
        transport_on_the_line(x.flatten(1) @ e, y.flatten(1) @ e)
        for e in torch.nn.functional.normalize(theta, dim=0).mT
    ]
    assert_close(value, torch.stack(slices).mean(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_shift_and_scale_in_closed_form(scale):
    """Catches 1/d lost, a root: SW₂² = E|Y − X|²/d for Y = sX + c, s ≥ 0."""
    x = draw(40, 3)
    y = scale * x + torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    M = (y - x).mT @ (y - x) / 40
    variance = 2 / (3 * 5) * (M.square().sum() - M.trace() ** 2 / 3)
    value = sliced_wasserstein(x, y, projections=4000, generator=seeded(1))
    assert (value - M.trace() / 3).abs() < 4 * (variance / 4000).sqrt()


def test_sliced_far_from_the_origin_and_at_zero():
    """Catches projections of large numbers, without centring."""
    x, y = ((z * 1024).round() / 1024 for z in (draw(20, 4), draw(30, 4, seed=1)))
    here = sliced_wasserstein(x, y, generator=seeded(1))
    far = sliced_wasserstein(x + 2**30, y + 2**30, generator=seeded(1))  # exact sums
    assert_close(far, here, rtol=0, atol=1e-10)
    same = sliced_wasserstein(x.float(), x.float().flip(0), generator=seeded(1))
    assert same.dtype == torch.float32 and 0 <= same < 1e-12


def with_moments(z, mean, C):
    z = z - z.mean(0)
    white = torch.linalg.solve(torch.linalg.cholesky(z.mT.cov()), z.mT).mT
    return mean + white @ torch.linalg.cholesky(C).mT


def test_frechet_of_gaussians():
    """Catches a wrong sign or factor, n for n − 1, the overlap of commuting only."""
    half, shift = draw(3, 3, seed=4), torch.tensor([1.0, -2.0, 0.5]).double()
    C, D = half @ half.mT, torch.diag(torch.tensor([0.5, 1.0, 3.0])).double() + 0.2
    x, y = with_moments(draw(5, 3), 0 * shift, C), with_moments(draw(8, 3), shift, D)
    root = scipy.linalg.sqrtm((C @ D).numpy()).real
    expected = shift.square().sum() + C.trace() + D.trace() - 2 * root.trace()
    value = frechet_distance(x, y)
    assert value.shape == ()
    assert_close(value, expected, rtol=0, atol=1e-12)
    assert_close(frechet_distance(y, x), expected, rtol=0, atol=1e-12)


def test_frechet_on_the_line():
    """Catches biased deviations: (x̄ − ȳ)² + (s_x − s_y)² for d = 1."""
    x, y = draw(5, 1), 0.5 + 2 * draw(8, 1, seed=1)
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert_close(frechet_distance(x, y), expected, rtol=0, atol=1e-13)


def test_frechet_with_fewer_points_than_features():
    """Catches roots of eigenvalues that should be 0; a value below 0."""
    x = draw(6, 2, 3, 4, dtype=torch.float32)
    value = frechet_distance(x, x.flip(0))
    assert value.dtype == torch.float32 and 0 <= value < 1e-12
    a, b = draw(6, 24), draw(5, 24, seed=1)
    dense = [z.mT.cov().numpy() for z in (a, b)]
    root = scipy.linalg.sqrtm(dense[0] @ dense[1] + 0j).real  # singular: half digits
    expected = (a.mean(0) - b.mean(0)).square().sum() + dense[0].trace()
    expected = expected + dense[1].trace() - 2 * root.trace()
    assert_close(frechet_distance(a, b), expected, rtol=0, atol=1e-5)


def test_frechet_bias():
    """Catches a correction that isn't documented, a wrong n: N(0, 1), n = 6, m = 9."""

    def mean_deviation(n):
        ratio = math.lgamma(n / 2) - math.lgamma((n - 1) / 2)
        return math.sqrt(2 / (n - 1)) * math.exp(ratio)

    expected = 1 / 6 + 1 / 9 + 2 - 2 * mean_deviation(6) * mean_deviation(9)
    z = draw(600, 15, 1, seed=2)
    values = torch.stack([frechet_distance(a[:6], a[6:]) for a in z])
    assert ((values.mean() - expected) / (values.std() / math.sqrt(600))).abs() < 4


def test_one_null_for_all_distances():
    """Catches a null of other splits than the fast one's, sizes exchanged."""
    real = draw(12, 2, 3)
    sizes = {"size_x": 4, "size_y": 6, "repeats": 3}
    slow = distance_null(energy_distance, real, **sizes, generator=seeded(7))
    fast = energy_distance_null(real, **sizes, generator=seeded(7))
    assert_close(slow, fast, rtol=0, atol=1e-13)
    counts = distance_null(lambda x, y: torch.tensor(len(x) - len(y)), real, 4, 6)
    assert counts.tolist() == [-2] * 200


def test_judge_is_the_distance_in_units_of_the_null():
    """Catches held-out points and samples exchanged, another quantile or size."""
    real, held_out, x = draw(30, 2), draw(6, 2, seed=1), draw(5, 2, seed=2)

    def lopsided(a, b):
        return energy_distance(a, b) + a[:, 0].mean().exp()

    judge = calibrated_distance(
        lopsided, real, held_out, 5, repeats=40, generator=seeded(3)
    )
    null = distance_null(lopsided, real, 5, 6, repeats=40, generator=seeded(3))
    assert judge(x) == (lopsided(x, held_out) / null.quantile(0.95)).item()


X = torch.zeros(4, 3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: energy_distance(X, X[:, :2]), ValueError, r"\(4, 3\) and \(4, 2\)"),
        (lambda: energy_distance(X, X.double()), TypeError, "must have one dtype"),
        (lambda: energy_distance(X, X[0]), ValueError, r"got \(4, 3\) and \(3,\)"),
        (
            lambda: energy_distance(X, X[0, 0]),
            ValueError,
            r"y must have shape \(B, \*D",
        ),
        (lambda: energy_distance(X.int(), X), TypeError, "x must be floating point"),
        (lambda: energy_distance(X, X / 0), ValueError, "y must be finite, got 12"),
        (lambda: energy_distance(X[:0], X), ValueError, "x must hold at least one"),
        (lambda: energy_distance(X, X, chunk=0), ValueError, "chunk must be at least"),
        (lambda: energy_distance_null(X, 2, 3), ValueError, r"≤ 4.*got 2, 3, 200"),
        (lambda: energy_distance_null(X, 0, 3), ValueError, "got 0, 3, 200"),
        (lambda: energy_distance_null(X, 2, 0), ValueError, "got 2, 0, 200"),
        (
            lambda: energy_distance_null(X, 2, 2, repeats=0),
            ValueError,
            "got 2, 2, 0",
        ),
        (
            lambda: energy_distance_null(X[0, 0], 1, 1),
            ValueError,
            "real must have shape",
        ),
        (lambda: sliced_wasserstein(X, X[:, :2]), ValueError, r"\(4, 3\) and \(4, 2\)"),
        (lambda: sliced_wasserstein(X, X, projections=0), ValueError, "got 0"),
        (lambda: sliced_wasserstein(X, X, projections=2.0), ValueError, "got 2.0"),
        (lambda: frechet_distance(X, X.double()), TypeError, "must have one dtype"),
        (lambda: frechet_distance(X, X[:1]), ValueError, "two points, got 4 and 1"),
        (lambda: distance_null(energy_distance, X, 2, 3), ValueError, "got 2, 3, 200"),
        (
            lambda: calibrated_distance(energy_distance, X, X[:2], 2),
            ValueError,
            "no yardstick",
        ),
        (
            lambda: calibrated_distance(energy_distance, draw(5, 2), draw(2, 2), 3)(
                draw(4, 2)
            ),
            ValueError,
            "the null is for 3 samples, got 4",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    """Catches a silent broadcast, NaN passed on, an empty mean."""
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_ten_thousand_points():
    """Catches a matrix of all pairs, 3 GB here, kept in memory."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value = energy_distance(*draw(20_000, 64).split(10_000))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if after > 1 << 30 else 1024  # bytes on macOS, KiB on Linux
    assert (after - before) * unit < 1 << 30
    bias = 2 * 11.27 / 10_000  # E|X − X′| = 2 Γ(65/2) / Γ(32)
    assert_close(value.item(), bias, rtol=0.35, atol=0.0)  # 4 standard deviations
