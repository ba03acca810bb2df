"""The continuity equation as a residual, and its weak form."""

import pytest
import torch
from torch.testing import assert_close

from flowbook.continuity import continuity_residual, rate_of_mean

from ..given import F64, draw

B = torch.tensor([[0.6, -1.5, 0.2], [0.8, -0.2, 0.4], [-0.3, 0.1, 0.5]], dtype=F64)


def times(dtype=F64) -> torch.Tensor:
    return torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=dtype)


def linear_field(x, t):
    return (x.flatten(1) @ B.to(x).T + 0.3).view_as(x)


def quadratic(x, t):  # any smooth function: the residual is defined for all of them
    flat = x.flatten(1)
    return -(1 + t) * flat.square().sum(1) / 2 + t**2 * flat[:, 0]


def by_hand(x, t):
    flat = x.flatten(1)
    rate = -flat.square().sum(1) / 2 + 2 * t * flat[:, 0]
    score = -(1 + t)[:, None] * flat
    score[:, 0] += t**2
    return rate + ((flat @ B.to(x).T + 0.3) * score).sum(1) + B.to(x).trace()


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 1), (5, 1, 1, 3)])
def test_residual_by_hand(shape, dtype):
    """Catches any of the three terms lost or flipped, off-diagonals summed."""
    x, t = draw(*shape, dtype=dtype), times(dtype)
    residual = continuity_residual(quadratic, linear_field, x, t)
    assert_close(residual, by_hand(x, t))
    assert not residual.requires_grad


def test_residual_takes_one_time_for_all():
    """Catches a scalar t not expanded to (B,)."""
    x = draw(5, 3)
    expected = by_hand(x, torch.full((5,), 0.3, dtype=F64))
    for t in (0.3, torch.tensor(0.3, dtype=F64)):
        assert_close(continuity_residual(quadratic, linear_field, x, t), expected)


def test_residual_vanishes_for_a_moving_gaussian():
    """Catches a relative factor between the terms, or the time derivative's sign."""

    def log_prob(x, t):  # N(0, e^{-0.8 t}) carried by v = -0.4 x
        scale = (0.4 * t).exp()
        return -((scale * x[:, 0]) ** 2) / 2 + 0.4 * t

    x = draw(5, 1)
    residual = continuity_residual(log_prob, lambda x, t: -0.4 * x, x, times())
    assert_close(residual, torch.zeros(5, dtype=F64), rtol=0, atol=1e-14)


def test_constant_field_and_still_density():
    """Catches a field without a graph, or a density without t, raising."""
    x = draw(5, 3)
    residual = continuity_residual(
        lambda x, t: -x.square().sum(1) / 2, lambda x, t: torch.ones_like(x), x, 0.5
    )
    assert_close(residual, -x.sum(1))


def test_uniform_density():
    """Catches a density without a graph raising; the field's divergence lost then."""
    x = draw(5, 3)
    residual = continuity_residual(
        lambda x, t: torch.zeros(len(x), dtype=F64), linear_field, x, 0.5
    )
    assert_close(residual, B.trace().expand(5))
    bias = torch.ones(5, dtype=F64, requires_grad=True)  # a graph without x and t
    assert_close(continuity_residual(lambda x, t: bias, linear_field, x, 0.5), residual)


def test_hidden_dependence_is_refused():
    """Catches div v = 0, or a zero score, where autograd cannot follow x."""
    x, bias = draw(5, 3), torch.ones(3, dtype=F64, requires_grad=True)

    @torch.no_grad()
    def hidden(x, t):
        return -x

    def half_hidden(x, t):  # a graph through t and a weight
        return bias * t[:, None] - x.detach()

    for field in (hidden, half_hidden):
        with pytest.raises(ValueError, match="the field varies with x but autograd"):
            continuity_residual(quadratic, field, x, 0.5)
    for log_prob in (torch.no_grad()(quadratic), lambda x, t: quadratic(x.detach(), t)):
        with pytest.raises(ValueError, match="log_prob varies with x but autograd"):
            continuity_residual(log_prob, linear_field, x, 0.5)
    constant = continuity_residual(quadratic, lambda x, t: bias.expand_as(x), x, 0.0)
    assert_close(constant, -x.square().sum(1) / 2 - x.sum(1))


def test_backward_passes():
    """Catches a pass more than the d + 1 that the docstring promises."""
    passes = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            passes.append(1)
            return g

    for d in (1, 2, 5):
        continuity_residual(
            lambda x, t: quadratic(Counted.apply(x), t),
            lambda x, t: Counted.apply(x) * t[:, None],
            draw(5, d),
            times(),
        )
        assert len(passes) == d + 1
        passes.clear()


def test_works_without_autograd_and_leaves_inputs_alone():
    """Catches enable_grad dropped; requires_grad set on the caller's tensors."""
    x, t = draw(5, 3), times()
    with torch.no_grad():
        residual = continuity_residual(quadratic, linear_field, x, t)
        rate = rate_of_mean(lambda x: x.sin().sum(1), linear_field, x, t)
    assert_close(residual, by_hand(x, t))
    assert_close(rate, (x.cos() * linear_field(x, t)).sum(1))
    assert not x.requires_grad and not t.requires_grad


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("shape", [(5, 3), (5, 1, 1, 3)])
def test_weak_rate(shape, dtype):
    """Catches f·v for ∇f·v, a mean over dimensions, a sign; t not handed on."""
    x, t = draw(*shape, dtype=dtype), times(dtype)

    def field(x, t):
        return linear_field(x, t) * t.view(-1, *[1] * (x.ndim - 1))

    rate = rate_of_mean(lambda x: x.flatten(1).sin().sum(1), field, x, t)
    assert_close(rate, (x.cos() * field(x, t)).flatten(1).sum(1))
    assert not rate.requires_grad


def test_weak_rate_of_a_learned_field_keeps_no_graph():
    """Catches a graph through the field's weights kept alive."""
    net = torch.nn.Linear(3, 3).double()
    x = draw(5, 3)
    assert not rate_of_mean(
        lambda x: x.sum(1), lambda x, t: net(x), x, 0.5
    ).requires_grad


def test_bad_input():
    """Catches a silent broadcast of a wrong shape; an integer tensor taken."""
    x, t = draw(5, 3), times()
    with pytest.raises(ValueError, match=r"log_prob must return \(5,\), got \(5, 1\)"):
        continuity_residual(lambda x, t: x[:, :1], linear_field, x, t)
    with pytest.raises(
        ValueError, match=r"must return shape \(5, 3\), as x, got \(5, 1\)"
    ):
        continuity_residual(quadratic, lambda x, t: x[:, :1], x, t)
    with pytest.raises(
        ValueError, match=r"must return shape \(5, 3\), as x, got \(5, 1\)"
    ):
        rate_of_mean(lambda x: x.sum(1), lambda x, t: x[:, :1], x, t)
    with pytest.raises(ValueError, match=r"function must return shape \(5,\), got"):
        rate_of_mean(lambda x: x, linear_field, x, t)
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        continuity_residual(quadratic, linear_field, x, t[:3])
    with pytest.raises(TypeError, match="floating point"):
        rate_of_mean(lambda x: x.sum(1), linear_field, x.long(), t)
    with pytest.raises(TypeError, match="floating point"):
        continuity_residual(quadratic, linear_field, x.long(), t)
