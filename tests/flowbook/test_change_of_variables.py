"""Densities after a map, against closed forms."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowbook.change_of_variables import (
    log_abs_det_jacobian,
    push_through,
    pushforward_log_prob,
)

from ..given import draw

A = torch.tensor([[1.0, 0.6, 0.0], [-0.4, 0.8, 0.3], [0.2, 0.0, -1.5]]).double()


def linear(x):
    return x @ A.to(x.dtype).mT


def warp(x):  # Jacobian A diag(cosh x), not symmetric
    return linear(x.sinh())


def standard_normal(z):
    return -z.square().sum(1) / 2 - z.shape[1] / 2 * math.log(2 * math.pi)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (None, 1e-13)])
@pytest.mark.parametrize("chunk", [None, 2])
def test_log_abs_det_in_closed_form(dtype, tolerance, chunk):
    """Catches the diagonal for the determinant, a sign, a lost absolute value."""
    x = draw(5, 3).to(dtype or torch.float64)
    expected = A.det().abs().log() + x.double().cosh().log().sum(1)
    value = log_abs_det_jacobian(warp, x, chunk=chunk)
    assert A.det() < 0 and value.dtype == x.dtype
    assert_close(value.double(), expected, rtol=0, atol=tolerance)


def test_log_abs_det_of_images():
    """Catches a Jacobian that is not flattened, pixels out of order."""
    x = draw(5, 2, 3, 4)
    scale = draw(2, 3, 4, seed=1).exp()
    value = log_abs_det_jacobian(lambda x: (scale * x).roll(1, 3), x)
    assert_close(value, scale.log().sum().expand(5), rtol=0, atol=1e-13)


def test_log_abs_det_where_the_determinant_underflows():
    """Catches the logarithm of a determinant."""
    x = draw(2, 400)
    expected = x.new_full((2,), -400 * math.log(100))
    assert_close(
        log_abs_det_jacobian(lambda x: x / 100, x), expected, rtol=1e-13, atol=0
    )


def test_log_abs_det_where_the_map_is_singular():
    """Catches NaN for a determinant of 0."""
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    expected = torch.tensor([-math.inf, math.log(12.0)], dtype=torch.float64)
    assert_close(log_abs_det_jacobian(lambda x: x**3, x), expected, rtol=0, atol=1e-15)


def test_log_abs_det_is_differentiable():
    """Catches a graph cut on the way: d/dx log cosh = tanh."""
    x = draw(5, 3).requires_grad_()
    (slope,) = torch.autograd.grad(log_abs_det_jacobian(warp, x).sum(), x)
    assert_close(slope, x.detach().tanh(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("sign", [1, -1])
def test_lognormal(sign):
    """Catches a sign of the log-determinant, π at x for π at z: X = exp(±Z)."""
    x = torch.tensor([[0.3], [1.0], [4.0]], dtype=torch.float64)
    value = pushforward_log_prob(
        x, inverse=lambda x: sign * x.log(), log_prob=standard_normal
    )
    law = torch.distributions.LogNormal(x.new_tensor(0.0), x.new_tensor(1.0))
    assert_close(value, law.log_prob(x[:, 0]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("chunk", [None, 2])
def test_gaussian_through_a_matrix(chunk):
    """Catches the determinant of f for that of its inverse; |·| lost."""
    x = draw(5, 3)
    value = pushforward_log_prob(
        x,
        inverse=lambda x: x @ torch.linalg.inv(A).mT,
        log_prob=standard_normal,
        chunk=chunk,
    )
    law = torch.distributions.MultivariateNormal(x.new_zeros(3), A @ A.mT)
    assert_close(value, law.log_prob(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("chunk", [None, 2])
def test_layers_are_the_composite(chunk):
    """Catches a layer left out, the determinant after its layer, order reversed."""
    layers = [torch.sinh, linear, torch.asinh, lambda x: x.flip(1) * 2]
    z = draw(5, 3)

    def composite(z):
        return linear(z.sinh()).asinh().flip(1) * 2

    x, log_det = push_through(layers, z, chunk=chunk)
    assert_close(x, composite(z), rtol=0, atol=1e-15)
    assert_close(log_det, log_abs_det_jacobian(composite, z), rtol=0, atol=1e-13)


def test_no_layers():
    """Catches a log-determinant of the identity that is not 0."""
    z = draw(5, 3, dtype=torch.float32)
    x, log_det = push_through([], z)
    assert_close(x, z, rtol=0, atol=0)
    assert_close(log_det, torch.zeros(5), rtol=0, atol=0)


@pytest.mark.parametrize("chunk, calls", [(None, 1), (2, 3), (5, 1)])
def test_chunks_bound_the_points_at_a_time(chunk, calls):
    """Catches a chunk that is not passed on: the values would be the same."""
    x, count = draw(5, 3), []

    def f(x):
        count.append(x.shape)
        return linear(x)

    log_abs_det_jacobian(f, x, chunk=chunk)
    assert count == [(1, 3)] * calls  # under vmap f sees one point of its own
    count.clear()
    push_through([f], x, chunk=chunk)
    assert len(count) == calls + 1
    count.clear()
    pushforward_log_prob(x, inverse=f, log_prob=standard_normal, chunk=chunk)
    assert len(count) == calls + 1


def test_no_points():
    """Catches a look at the first point of none."""
    z = draw(0, 2, 3)
    assert_close(log_abs_det_jacobian(torch.sinh, z), z.new_zeros(0))
    x, log_det = push_through([torch.sinh], z)
    assert x.shape == (0, 2, 3) and log_det.shape == (0,)


X = torch.ones(5, 3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: log_abs_det_jacobian(lambda x: x[:, :2], X),
            ValueError,
            r"takes \(3,\) to \(2,\)",
        ),
        (lambda: log_abs_det_jacobian(torch.sin, X[0, 0]), ValueError, r"\(B, \*D\)"),
        (lambda: log_abs_det_jacobian(torch.sin, X / 0), ValueError, "finite, got 15"),
        (lambda: log_abs_det_jacobian(torch.sin, X.int()), TypeError, "floating point"),
        (
            lambda: pushforward_log_prob(X, inverse=torch.sin, log_prob=torch.exp),
            ValueError,
            r"must return shape \(5,\), got \(5, 3\)",
        ),
        (
            lambda: pushforward_log_prob(-X, inverse=torch.log, log_prob=torch.exp),
            ValueError,
            r"inverse\(x\) must be finite, got 15",
        ),
        (
            lambda: pushforward_log_prob(
                X[0, 0], inverse=torch.log, log_prob=torch.exp
            ),
            ValueError,
            r"x must have shape \(B, \*D\), got \(\)",
        ),
        (lambda: push_through([torch.sin], X[0, 0]), ValueError, r"\(B, \*D\)"),
    ],
)
def test_bad_input_is_named(call, error, message):
    """Catches a determinant of a matrix that isn't square, a silent broadcast."""
    with pytest.raises(error, match=message):
        call()
