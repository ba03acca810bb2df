"""The energy distance against a closed form, SciPy and three plain means."""

import math

import pytest
import scipy.stats
import torch
from torch.testing import assert_close

from flowbook.metrics import energy_distance, energy_distance_null


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def by_means(x, y):
    def mean(a, b):
        difference = a.double().flatten(1)[:, None] - b.double().flatten(1)
        return difference.square().sum(-1).sqrt().mean()

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


@pytest.mark.parametrize("chunk", [1, 3, 8, 512])
@pytest.mark.parametrize("shape", [[1], [3], [2, 3, 4]])
def test_three_means(shape, chunk):
    """Kills: a lost 2 or sign, sizes swapped, blocks counted once or twice."""
    x, y = draw(5, *shape), 0.5 + 2 * draw(8, *shape, seed=1)
    value = energy_distance(x, y, chunk=chunk)
    assert value.shape == ()
    assert_close(value, by_means(x, y), rtol=0, atol=1e-13)
    assert_close(energy_distance(y, x, chunk=chunk), value, rtol=0, atol=1e-13)


def test_scipy_on_the_line():
    """Kills: a root, a factor, a U- for a V-statistic."""
    x, y = draw(40, 1), 0.3 + draw(60, 1, seed=1)
    root = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert_close(energy_distance(x, y).item(), root**2, rtol=1e-12, atol=0.0)


def test_two_points():
    """Kills: a factor that a comparison of two estimates would share."""
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert energy_distance(x, y).item() == 10.0


def test_gaussians_in_closed_form():
    """Kills: a wrong limit: N(0, 1) and N(1/2, 1.5²), with the V-statistic's bias."""

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
    """Kills: a value below zero by rounding, coincident points at 1e-4."""
    x = draw(30, d, dtype=torch.float32)
    value = energy_distance(x, x.flip(0))
    assert value.dtype == torch.float32
    assert 0 <= value < 1e-8


def test_far_from_the_origin():
    """Kills: distances by products of large numbers, without centring."""
    x, y = draw(20, 40), draw(30, 40, seed=1)
    moved = energy_distance(x + 1e5, y + 1e5)
    assert_close(moved, energy_distance(x, y), rtol=0, atol=1e-8)


@pytest.mark.parametrize("d", [2, 40])
def test_null_is_the_distance_of_its_splits(d):
    """Kills: sets that overlap, wrong weights, a column for another."""
    real = draw(12, d)
    null = energy_distance_null(real, 4, 6, repeats=3, generator=seeded(7), chunk=5)
    g = seeded(7)
    splits = [torch.randperm(12, generator=g) for _ in range(3)]
    expected = [by_means(real[o[:4]], real[o[4:10]]) for o in splits]
    assert_close(null, torch.stack(expected), rtol=0, atol=1e-13)


def test_null_uses_all_points_and_their_shape():
    """Kills: images that are not flattened, an unequal split of all the points."""
    real = draw(9, 2, 3, 4, dtype=torch.float32)
    null = energy_distance_null(real, 2, 7, generator=seeded())
    assert null.shape == (200,) and null.dtype == torch.float32
    g = seeded()
    order = torch.randperm(9, generator=g)
    assert_close(null[0].double(), by_means(real[order[:2]], real[order[2:]]))


def test_nothing_flows_back():
    """Kills: a graph kept alive over all pairs."""
    x = draw(4, 2).requires_grad_()
    assert not energy_distance(x, draw(5, 2)).requires_grad
    assert not energy_distance_null(x, 2, 2, repeats=2).requires_grad


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
    ],
)
def test_bad_input_is_named(call, error, message):
    """Kills: a silent broadcast, NaN passed on, an empty mean."""
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_ten_thousand_points():
    """Kills: a matrix of all pairs, 3 GB here, kept in memory."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value = energy_distance(*draw(20_000, 64).split(10_000))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if after > 1 << 30 else 1024  # bytes on macOS, KiB on Linux
    assert (after - before) * unit < 1 << 30
    bias = 2 * 11.27 / 10_000  # E|X − X′| = 2 Γ(65/2) / Γ(32)
    assert_close(value.item(), bias, rtol=0.35, atol=0.0)  # 4 standard deviations
