"""`sample` is `solve` with a default and no gradient; the named grids."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowbook.sampling import sample, time_grid
from flowbook.solvers import RK4, Dopri5, Euler, Heun, Midpoint, solve

from ..given import F64, draw, swirl


def test_default_is_fifty_midpoint_steps():
    """Catches another default method, count or direction of time."""
    x, h = draw(5, 2), 1 / 50
    for k in range(50):
        t = torch.full((5,), k * h, dtype=F64)
        x = x + h * swirl(x + h / 2 * swirl(x, t), t + h / 2)
    assert_close(sample(swirl, draw(5, 2)), x)
    assert_close(sample(swirl, draw(5, 2), Midpoint(50)), x)


@pytest.mark.parametrize("method", [Euler, Midpoint, Heun, RK4, Dopri5])
def test_the_solver_and_the_span_reach_solve(method):
    """Catches a solver or a span that is dropped on its way to `solve`."""
    solvers = [method(3), method(50), method(grid=[0.9, 0.8, 0.2])]
    if method is Dopri5:
        solvers = [Dopri5(), Dopri5(1e-2, 1e-9), Dopri5(1e-9, 1e-2)]
    found = []
    for solver in solvers:
        found.append(sample(swirl, draw(5, 2), solver, t_span=(0.9, 0.2)))
        run = solve(swirl, draw(5, 2), solver, t0=0.9, t1=0.2)
        assert_close(found[-1], run.x, rtol=0, atol=0)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3, 4)])
def test_shapes_and_dtypes(shape, dtype):
    """Catches a sample that changes shape or dtype, and noise that is overwritten."""
    x0 = torch.ones(shape, dtype=dtype)
    x = sample(lambda x, t: -x, x0)
    assert_close(x, x0 * math.exp(-1), rtol=1e-4, atol=0)  # h²/6 = 7e-5
    assert_close(x0, torch.ones(shape, dtype=dtype), rtol=0, atol=0)


def test_no_gradient_and_no_mode_is_changed():
    """Catches a graph kept alive, and a module put into another mode."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    x0 = torch.ones(5, 2, requires_grad=True)
    for training in (True, False):
        net.train(training)
        x = sample(lambda x, t: net(x), x0, Midpoint(2))
        assert not x.requires_grad and net.training == net[1].training == training
    assert sample(lambda x, t: -x, draw(5, 2)).requires_grad is False
    with torch.enable_grad():
        assert (x0 * 1).requires_grad  # the caller's mode is as it was


def test_round_trip():
    """Catches a t_span read in the wrong order."""
    there = sample(swirl, draw(5, 2), RK4(100))
    back = sample(swirl, there, RK4(100), t_span=(1.0, 0.0))
    assert_close(back, draw(5, 2), rtol=0, atol=1e-6)


def test_time_grids():
    """Catches any change of a grid's formula."""
    quarter = (1 - math.sqrt(0.5)) / 2
    ends = 1 / (1 + math.exp(4)), 1 / (1 + math.exp(-4))
    early = (1 / (1 + math.exp(2)) - ends[0]) / (ends[1] - ends[0])
    for kind, first in (("uniform", 0.25), ("cosine", quarter), ("logit", early)):
        want = torch.tensor([0, first, 0.5, 1 - first, 1], dtype=F64)
        grid = time_grid(kind, 4)
        assert_close(grid, want)
        assert grid[0] == 0 and grid[-1] == 1
        assert_close(time_grid(kind, 4, t_span=(0.9, 0.1)), 0.9 - 0.8 * want)
        assert_close(time_grid(kind, 1), torch.tensor([0, 1], dtype=F64))
        x = sample(swirl, draw(5, 2), Midpoint(grid=time_grid(kind, 200)))
        assert_close(x, sample(swirl, draw(5, 2), Dopri5()), rtol=0, atol=1e-3)


def test_bad_input():
    """Catches a validation that was dropped."""
    for solver, error, words in [
        (5, TypeError, "solver must be a .* got 5"),
        ("dopri5", TypeError, "solver must be a .* got 'dopri5'"),
        (Midpoint(grid=[0, 0.5]), ValueError, "must run from"),
    ]:
        with pytest.raises(error, match=words):
            sample(swirl, draw(5, 2), solver)
    with pytest.raises(ValueError, match="x0 must be finite"):
        sample(swirl, draw(5, 2) / 0)
    with pytest.raises(ValueError, match="uniform, cosine, logit, got 'sine'"):
        time_grid("sine", 3)
    for steps, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="steps must be"):
            time_grid("uniform", steps)
