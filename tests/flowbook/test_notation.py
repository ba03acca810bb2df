"""Shapes at the door, times over points, and clocks."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowbook.notation import (
    expand_time,
    flatten_points,
    require_finite,
    require_points,
    require_same_shape,
    rescale_clock,
    reverse_clock,
    time_per_sample,
)

from ..given import draw

SHAPES = [(5,), (5, 1), (5, 3), (3, 3), (5, 2, 3, 4), (1, 1)]


def times(B, dtype=torch.float64):
    return torch.linspace(0.1, 0.9, B, dtype=dtype)


def field(x, t):  # needs its t to be (B,)
    assert t.shape == x.shape[:1] and t.dtype == x.dtype
    return expand_time(t, x) ** 2 * x + x.sin()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_point_has_its_time(shape, dtype):
    """Catches t lined up with the last axis, which B = D would hide."""
    x, t = draw(*shape, dtype=dtype), times(shape[0])
    expected = torch.stack([a.to(dtype) * b for a, b in zip(t, x, strict=True)])
    assert_close(expand_time(t, x) * x, expected, rtol=0, atol=0)
    assert expand_time(t, x).shape == (shape[0], *[1] * (len(shape) - 1))
    assert_close(time_per_sample(t, x), t.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    "kind", [float, torch.tensor, torch.zeros(1).double().new_tensor]
)
def test_one_time_for_all(kind):
    """Catches another value, a wrong shape or dtype, for numbers and 0-d tensors."""
    x, t = draw(5, 2, 3), kind(0.25)
    expected = torch.full((5,), 0.25, dtype=torch.float64)
    assert_close(time_per_sample(t, x), expected, rtol=0, atol=0)
    assert_close(expand_time(t, x), expected[:, None, None], rtol=0, atol=0)


@pytest.mark.parametrize("t", [0, 1, 0.0, 1.0])
def test_both_ends_are_times(t):
    """Catches a strict inequality."""
    assert time_per_sample(t, draw(2, 3)).tolist() == [t, t]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_rounding_leaves_outside_is_the_end(dtype):
    """Catches a loop's last t + h refused or kept outside; garbage taken for it."""
    eps = torch.finfo(dtype).eps
    t = torch.tensor([-8 * eps, 0.5, 1 + 8 * eps], dtype=dtype)
    assert t[2] > 1
    assert time_per_sample(t, draw(3, 2)).tolist() == [0, 0.5, 1]
    assert time_per_sample(t[2], draw(2, 2)).tolist() == [1, 1]
    for bad in (-9 * eps, 1 + 9 * eps, math.nan, -math.inf):
        for wrong in (torch.tensor(bad, dtype=dtype), t.new_tensor([0.5, bad, 0.5])):
            with pytest.raises(ValueError, match=r"^t must lie in \[0, 1\], got"):
                time_per_sample(wrong, draw(3, 2))


def test_gradient_through_the_time():
    """Catches a time that is cut off from its graph."""
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = draw(5, 3)
    (slope,) = torch.autograd.grad((expand_time(t, x) * x).sum(), t)
    assert_close(slope, x.sum(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape, d", [((5,), 1), ((5, 3), 3), ((5, 2, 3, 4), 24)])
@pytest.mark.parametrize("B", [5, 0])
def test_points_are_rows(shape, d, B):
    """Catches another order, points mixed, numbers or no points at all that fail."""
    x = draw(*shape)[:B]
    expected = torch.stack([*[point.flatten() for point in x], torch.zeros(d)])[:B]
    assert_close(flatten_points(x), expected, rtol=0, atol=0, check_dtype=False)
    assert flatten_points(x).dtype == x.dtype


def test_what_is_right_comes_back():
    """Catches a copy or another tensor returned."""
    x = draw(5, 3)
    assert require_points(x) is x and require_points(x[0]).shape == (3,)
    assert require_finite(x) is x
    require_same_shape(x0=x, x1=x.float())


@pytest.mark.parametrize("shape", SHAPES)
def test_reversed_clock(shape):
    """Catches the sign or the 1 − τ forgotten."""
    x, t = draw(*shape), times(shape[0])
    other = reverse_clock(field)
    assert_close(other(x, t), -field(x, 1 - t), rtol=0, atol=0)
    assert_close(other(x, 0.25), -field(x, time_per_sample(0.75, x)), rtol=0, atol=0)
    assert_close(reverse_clock(other)(x, t), field(x, t), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("scale", [2.5, 1000])
def test_rescaled_clock(scale):
    """Catches the factor or the argument forgotten, one of them inverted."""
    x, t = draw(5, 3), times(5)

    def slow(x, s):  # s from 0 to scale, and no look at it
        return (s[:, None] / scale) ** 2 * x + x.sin()

    told = rescale_clock(slow, scale)
    expected = scale * (t[:, None] ** 2 * x + x.sin())
    assert_close(told(x, t), expected, rtol=1e-13, atol=1e-13)
    assert_close(told(x, 0.25), told(x, torch.full_like(t, 0.25)), rtol=0, atol=0)


def test_same_noise_same_samples():
    """Catches any clock on which the motion is another; ẋ = 2t, exact for midpoint."""

    def run(field, x, start, end, steps=4):
        h = (end - start) / steps
        for k in range(steps):
            t = x.new_full((len(x),), start + (k + 0.5) * h)
            x = x + h * field(x, t)
        return x

    def speed(x, t):
        return 2 * expand_time(t, x) * torch.ones_like(x)

    x0 = draw(5, 3)
    x1 = x0 + 1

    def slow(x, s):  # the same motion, told from 0 to 8
        return s[:, None] / 32 * torch.ones_like(x)

    for other, start, end in (
        (speed, 0.0, 1.0),
        (reverse_clock(speed), 1.0, 0.0),
        (slow, 0.0, 8.0),
        (rescale_clock(slow, 8), 0.0, 1.0),
    ):
        assert_close(run(other, x0, start, end), x1, rtol=0, atol=1e-14)


X = torch.zeros(5, 3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: require_points([1.0]), TypeError, "x must be a tensor, got list"),
        (lambda: require_points(X.int(), "x0"), TypeError, "x0 must be floating point"),
        (lambda: require_points(X[0, 0]), ValueError, r"\(B, \*D\), got \(\)"),
        (
            lambda: require_same_shape(x0=X, x1=X.mT),
            ValueError,
            r"x0 \(5, 3\), x1 \(3, 5\)",
        ),
        (
            lambda: require_same_shape(x0=X[:, 0], x1=X[:, :1]),
            ValueError,
            r"x0 \(5,\), x1 \(5, 1\)",
        ),
        (lambda: require_finite(X / 0, "x1"), ValueError, "x1 must be finite, got 15"),
        (lambda: time_per_sample(1.1, X), ValueError, r"\[0, 1\], got 1.1"),
        (lambda: time_per_sample(-0.1, X), ValueError, r"\[0, 1\], got -0.1"),
        (lambda: time_per_sample(math.nan, X), ValueError, r"\[0, 1\], got nan"),
        (lambda: time_per_sample("0", X), TypeError, "number or a tensor, got str"),
        (lambda: time_per_sample(True, X), TypeError, "number or a tensor, got bool"),
        (lambda: time_per_sample(X[:, 0].int(), X), TypeError, "t must be floating"),
        (lambda: expand_time(X[0], X), ValueError, r"shape \(5,\).*got shape \(3,\)"),
        (lambda: expand_time(X[:, :1], X), ValueError, r"got shape \(5, 1\)"),
        (lambda: rescale_clock(field, 0), ValueError, "positive and finite, got 0"),
        (lambda: rescale_clock(field, -1.0), ValueError, "positive and finite, got -1"),
        (lambda: rescale_clock(field, math.inf), ValueError, "finite, got inf"),
        (lambda: rescale_clock(field, math.nan), ValueError, "finite, got nan"),
        (lambda: rescale_clock(field, True), TypeError, "must be a number, got bool"),
        (lambda: rescale_clock(field, "2"), TypeError, "must be a number, got str"),
        (lambda: reverse_clock(field)(X, X[0]), ValueError, r"got shape \(3,\)"),
    ],
)
def test_bad_input_is_named(call, error, message):
    """Catches a silent broadcast or conversion."""
    with pytest.raises(error, match=message):
        call()
