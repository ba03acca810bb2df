"""The one field on the line, and circulations that no density sees."""

import pytest
import torch
from torch.testing import assert_close

from flowbook.change_of_variables import log_abs_det_jacobian
from flowbook.fields import divergence_free_field, field_from_cdf

from ..given import F64, draw

J = torch.tensor([[0.0, -1.5, 0.4], [1.5, 0.0, 2.0], [-0.4, -2.0, 0.0]], dtype=F64)


def logistic_cdf(x, t):  # moves by t², widens by 1 + t
    return torch.sigmoid((x.flatten() - t**2) / (1 + t))


def logistic_field(x, t):  # so its points obey (x - t²) / (1 + t) = constant
    t = t.view(-1, *[1] * (x.ndim - 1))
    return 2 * t + (x - t**2) / (1 + t)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("shape", [(5, 1), (5, 1, 1)])
def test_field_from_cdf(shape, dtype):
    """Catches the sign, the ratio upside down, the shape of the points lost."""
    x, t = draw(*shape, dtype=dtype), torch.linspace(0, 1, 5, dtype=dtype)
    v = field_from_cdf(logistic_cdf)(x, t)
    assert_close(v, logistic_field(x, t))
    assert not v.requires_grad and not x.requires_grad


def test_field_from_cdf_can_be_differentiated():
    """Catches a graph cut in x or in t."""
    x, t = draw(5, 1).requires_grad_(), torch.linspace(0, 1, 5, dtype=F64)
    for s in (t, t.clone().requires_grad_()):
        (slope,) = torch.autograd.grad(field_from_cdf(logistic_cdf)(x, s).sum(), x)
        assert_close(slope, 1 / (1 + t)[:, None])
    (rate,) = torch.autograd.grad(field_from_cdf(logistic_cdf)(x, s).sum(), s)
    a, b = x.detach()[:, 0], t
    assert_close(rate, 2 - (2 * b * (1 + b) + a - b**2) / (1 + b) ** 2)
    y = x.detach()
    (rate_alone,) = torch.autograd.grad(field_from_cdf(logistic_cdf)(y, s).sum(), s)
    assert_close(rate_alone, rate)


def test_field_from_cdf_under_torch_func():
    """Catches autograd inside the field, which torch.func cannot follow."""
    x, t = draw(5, 1), torch.linspace(0, 1, 5, dtype=F64)
    field = field_from_cdf(logistic_cdf)

    def slope_of(x, t):
        return torch.func.jacrev(lambda y: field(y[None], t[None])[0])(x)

    slope = 1 / (1 + t)
    assert_close(torch.func.vmap(slope_of)(x, t)[:, 0, 0], slope)
    assert_close(torch.func.jacrev(lambda y: field(y, t))(x).sum((1, 2, 3)), slope)
    log_slope = log_abs_det_jacobian(lambda y: field(y, 0.5), x)
    assert_close(log_slope, torch.full((5,), 1 / 1.5, dtype=F64).log())


def test_field_from_cdf_with_weights():
    """Catches a graph cut between the field and the weights of its cdf."""
    shift = torch.tensor(0.4, dtype=F64, requires_grad=True)
    x, t = draw(5, 1), torch.full((5,), 0.5, dtype=F64)
    v = field_from_cdf(lambda x, t: torch.sigmoid(x[:, 0] - shift * t**2))(x, t)
    assert_close(v, shift.expand(5, 1))  # 2 t × shift at t = ½
    (rate,) = torch.autograd.grad(v.sum(), shift)
    assert_close(rate, torch.tensor(5.0, dtype=F64))


def test_field_from_cdf_under_no_grad():
    """Catches enable_grad dropped; a graph kept where none is wanted."""
    x, t = draw(5, 1).requires_grad_(), torch.linspace(0, 1, 5, dtype=F64)
    with torch.no_grad():
        v = field_from_cdf(logistic_cdf)(x, t)
    assert_close(v, logistic_field(x, t).detach())
    assert not v.requires_grad


def test_field_from_cdf_takes_one_time_for_all():
    """Catches a scalar t left without its batch."""
    x, t = draw(5, 1), torch.full((5,), 0.3, dtype=F64)
    for scalar in (0.3, torch.tensor(0.3, dtype=F64)):
        assert_close(field_from_cdf(logistic_cdf)(x, scalar), logistic_field(x, t))


def test_a_path_that_stands_still():
    """Catches an error where F does not depend on t; zero is the field."""
    x, t = draw(5, 1), torch.linspace(0, 1, 5, dtype=F64)
    v = field_from_cdf(lambda x, t: torch.sigmoid(x[:, 0]))(x, t)
    assert_close(v, torch.zeros(5, 1, dtype=F64))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 1)])
def test_circulation(shape, dtype):
    """Catches Jᵀ for J, the score left out, t not handed on, the shape lost."""
    x, t = draw(*shape, dtype=dtype), torch.linspace(0, 1, 5, dtype=dtype)

    def score(x, t):
        return -x.sin() * (1 + t).view(-1, *[1] * (x.ndim - 1))

    w = divergence_free_field(score, J)(x, t)
    flat = score(x, t).flatten(1)
    expected = torch.stack([J.to(dtype) @ row for row in flat]).view(shape)
    assert_close(w, expected)


def test_bad_input():
    """Catches a matrix that makes mass, or points off the line, taken silently."""
    x, t = draw(5, 3), torch.rand(5)
    for matrix in (J + torch.eye(3, dtype=F64), J[:2], J[0], J.abs()):
        with pytest.raises(ValueError, match="square and antisymmetric"):
            divergence_free_field(lambda x, t: x, matrix)
    with pytest.raises(ValueError, match=r"\(3, 3\), the points have 2 dimensions"):
        divergence_free_field(lambda x, t: x, J)(x[:, :2], t)
    with pytest.raises(ValueError, match=r"\(B, 1\), points on a line, got \(5, 3\)"):
        field_from_cdf(logistic_cdf)(x, t)
    with pytest.raises(ValueError, match=r"cdf must return \(5,\), got \(5, 1\)"):
        field_from_cdf(lambda x, t: x.sigmoid())(x[:, :1], t)
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        field_from_cdf(logistic_cdf)(x[:, :1], t[:3])
    with pytest.raises(TypeError, match="floating point"):
        field_from_cdf(logistic_cdf)(x.long(), t)
