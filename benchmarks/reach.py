"""Log-densities at equal error: each code at the loosest tolerance that is enough.

A mixture of Gaussians has a closed-form field and log-density. On one ladder of
tolerances every contender looks for the rung at which its worst point is off by less
than the goal, and on the rung above is not; there it is timed. With a probe, the truth
is plain torch's at a tight tolerance. Two libraries take part where they can be
imported: zuko and flow_matching.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from flowbook.likelihood import Exact, Hutchinson, log_prob, standard_normal_log_prob
from flowbook.solvers import Dopri5

from . import plain

LADDER = tuple(10 ** (-k / 8) for k in range(16, 81))  # 1e-2 to 1e-10


class Mixture:
    """Four Gaussians of unequal axes in R^d, and the field of their straight path."""

    def __init__(self, d: int):
        g = torch.Generator().manual_seed(5)
        self.calls, self.generator = 0, g
        self.means = torch.randn(4, d, generator=g, dtype=torch.float64)
        spread = torch.rand(4, d, generator=g, dtype=torch.float64)
        self.variances = 0.01**spread
        self.log_weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).double().log()

    def sample(self, n: int) -> Tensor:
        k = torch.multinomial(self.log_weights.exp(), n, True, generator=self.generator)
        z = torch.randn(self.means[k].shape, generator=self.generator).double()
        return self.means[k] + self.variances[k].sqrt() * z

    def log_prob(self, x: Tensor) -> Tensor:
        return self._parts(x, torch.ones_like(x[:, 0]))[0].logsumexp(1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        log_p, v = self._parts(x, t)
        return (log_p.softmax(1)[..., None] * v).sum(1)

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """log of w p for each component (B, 4), and its field (B, 4, d)."""
        t = t[:, None, None]
        variance = t**2 * self.variances + (1 - t) ** 2
        gap = (x[:, None] - t * self.means) / variance
        log_p = (gap.square() * variance + (2 * math.pi * variance).log()).sum(2) / -2
        v = self.means + (t * self.variances - (1 - t)) * gap
        return log_p + self.log_weights, v


@dataclass(frozen=True)
class Contender:
    """A code that makes log-densities (B,) at a tolerance, and what they should be."""

    run: Callable[[float], Tensor]
    truth: Tensor

    def error(self, tol: float) -> float:
        return (self.run(tol) - self.truth).abs().max().item()

    def loosest(self, goal: float) -> float:
        """A rung at which every point is within `goal`, and above it is not."""
        place = bisect_left(LADDER, True, key=lambda tol: self.error(tol) < goal)
        return LADDER[place]


def contenders(field: Mixture, x: Tensor, probe: bool) -> dict[str, Contender]:
    """Ours, plain torch, and the libraries that are there; each with its own probe."""

    def truth(z: Tensor | None) -> Tensor:
        return plain.log_prob(field, x, 1e-11, z)[0] if probe else field.log_prob(x)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    @torch.no_grad()
    def ours(tol: float) -> Tensor:
        method = Hutchinson(1, generator()) if probe else Exact()
        return log_prob(field, x, solver=Dopri5(tol, tol), divergence=method)

    z = Hutchinson(1, generator()).draw(x)[0] if probe else None
    normal = torch.randn(x.shape, generator=generator(), dtype=x.dtype)
    made = {
        "flowbook": Contender(ours, truth(z)),
        "plain": Contender(lambda tol: plain.log_prob(field, x, tol, z)[0], truth(z)),
    }
    if find_spec("zuko"):
        run = partial(_by_zuko, field, x, probe)
        made["zuko"] = Contender(run, truth(normal))
    if find_spec("flow_matching"):
        run = partial(_by_flow_matching, field, x, probe)
        made["flow_matching"] = Contender(run, truth(2.0 * (normal < 0) - 1))
    return made


@torch.no_grad()
def _by_zuko(field: Mixture, x: Tensor, probe: bool, tol: float) -> Tensor:
    from zuko.transforms import FreeFormJacobianTransform

    def f(t, x):
        return field(x, t.expand(len(x)))

    torch.manual_seed(0)  # its probe is torch.randn_like(x)
    way = FreeFormJacobianTransform(f, 1.0, 0.0, atol=tol, rtol=tol, exact=not probe)
    x0, log_det = way.call_and_ladj(x)
    return standard_normal_log_prob(x0) + log_det


def _by_flow_matching(field: Mixture, x: Tensor, probe: bool, tol: float) -> Tensor:
    from flow_matching.solver import ODESolver

    def model(x, t):
        return field(x, t.expand(len(x)))

    torch.manual_seed(0)  # its probe is where torch.randn_like(x) is negative
    usual = torch.get_default_dtype()
    torch.set_default_dtype(x.dtype)  # of the zeros that it makes
    try:
        return ODESolver(model).compute_likelihood(
            x.clone(),
            standard_normal_log_prob,
            step_size=None,
            method="dopri5",
            atol=tol,
            rtol=tol,
            time_grid=torch.tensor([1.0, 0.0], dtype=x.dtype),
            exact_divergence=not probe,
        )[1]
    finally:
        torch.set_default_dtype(usual)
