"""Chapter 14: `sample` is `solve` with a default and no gradient; the named grids."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowbook.ode import METHODS, solve
from flowbook.sampling import sample, time_grid

F64 = torch.float64


def swirl(x, t):
    first = torch.sin(2 * x[:, 1]) + t * x[:, 0] / 2
    return torch.stack([first, x[:, 0] + torch.sin(x[:, 1] + t)], 1)


def points(dtype=F64):
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_default_is_fifty_midpoint_steps():
    """Catches another default method, count or direction of time."""
    x, h = points(), 1 / 50
    for k in range(50):
        t = torch.full((5,), k * h, dtype=F64)
        x = x + h * swirl(x + h / 2 * swirl(x, t), t + h / 2)
    assert_close(sample(swirl, points()), x)
    assert_close(sample(swirl, points(), steps=50), x)


@pytest.mark.parametrize("method", [*METHODS, "dopri5"])
def test_options_reach_the_solver(method):
    """Catches an option that is dropped on its way to `solve`."""
    span = (0.9, 0.2)
    if method == "dopri5":
        choices = [{}, {"rtol": 1e-2, "atol": 1e-9}, {"rtol": 1e-9, "atol": 1e-2}]
    else:
        choices = [{"steps": 3}, {"steps": 50}, {"grid": [0.9, 0.8, 0.2]}]
    found = []
    for options in choices:
        x = sample(swirl, points(), method=method, t_span=span, **options)
        run = solve(swirl, points(), t0=0.9, t1=0.2, method=method, **options)
        assert_close(x, run.x, rtol=0, atol=0)
        found.append(x)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    if method != "dopri5":
        x = sample(swirl, points(), method=method, t_span=span)
        assert_close(x, found[1], rtol=0, atol=0)


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
        x = sample(lambda x, t: net(x), x0, steps=2)
        assert not x.requires_grad and net.training == net[1].training == training
    assert sample(lambda x, t: -x, points()).requires_grad is False
    with torch.enable_grad():
        assert (x0 * 1).requires_grad  # the caller's mode is as it was


def test_round_trip():
    """Catches a t_span read in the wrong order."""
    there = sample(swirl, points(), method="rk4", steps=100)
    back = sample(swirl, there, method="rk4", steps=100, t_span=(1.0, 0.0))
    assert_close(back, points(), rtol=0, atol=1e-6)


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
        x = sample(swirl, points(), grid=time_grid(kind, 200))
        assert_close(x, sample(swirl, points(), method="dopri5"), rtol=0, atol=1e-3)


def test_bad_input():
    """Catches a validation that was dropped."""
    for options, error, words in [
        ({"steps": 0}, ValueError, "at least 1, got 0"),
        ({"steps": 5, "grid": [0, 1]}, TypeError, "steps or grid"),
        ({"method": "rk5"}, ValueError, "method must be one of euler"),
        ({"method": "dopri5", "steps": 5}, TypeError, "does not take steps"),
        ({"rtol": 1e-3}, TypeError, "'midpoint' does not take rtol"),
        ({"atol": 1e-3}, TypeError, "'midpoint' does not take atol"),
        ({"grid": [0, 0.5]}, ValueError, "must run from"),
    ]:
        with pytest.raises(error, match=words):
            sample(swirl, points(), **options)
    with pytest.raises(ValueError, match="x0 must be finite"):
        sample(swirl, points() / 0)
    with pytest.raises(ValueError, match="uniform, cosine, logit, got 'sine'"):
        time_grid("sine", 3)
    for steps, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="steps must be"):
            time_grid("uniform", steps)
