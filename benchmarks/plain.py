"""The least plain torch that does each job, as one would write it for a single use.

Nothing here checks an argument, and nothing is left out that the job needs: the paths
reach x1 exactly at t = 1, training has the same optimiser, clipping and averaged
weights, dopri5 the same tableau and an error control.
"""

import copy
import math

import torch
from torch import Tensor, nn

# --- paths ---------------------------------------------------------------------------


def ot(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The straight path. x0 + t (x1 − x0) is shorter, but misses x1 by a rounding."""
    t = t.view(-1, 1)
    return (1 - t) * x0 + t * x1, x1 - x0


def cosine(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The quarter of a circle; the cosine itself is wrong by a rounding of π near 1."""
    t, c = t.view(-1, 1), math.pi / 2
    alpha, sigma = torch.sin(c * t), torch.sin(c * (1 - t))
    return alpha * x1 + sigma * x0, c * (sigma * x1 - alpha * x0)


def vp(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The variance preserving path with β from 0.1 to 20."""
    s = 1 - t.view(-1, 1)
    beta = 0.1 + 19.9 * s
    integral = s * (0.5 * (0.1 + beta))
    alpha = torch.exp(-0.5 * integral)
    sigma = torch.sqrt(-torch.expm1(-integral))
    return alpha * x1 + sigma * x0, 0.5 * beta * alpha * (x1 - alpha / sigma * x0)


def ve(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The variance exploding path from sigma_max = 10 to sigma_min = 0.01.

    `x0` is N(0, 10² I).
    """
    noise = (0.01 / 10) ** t.view(-1, 1) * x0
    return x1 + noise, math.log(0.01 / 10) * noise


# --- a network, and training ---------------------------------------------------------


class Perceptron(nn.Module):
    """A field v(x, t) in the plane, of one's own: three layers of 256, t appended."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 256), nn.Linear(256, 2)
        self.second, self.third = nn.Linear(256, 256), nn.Linear(256, 256)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = nn.functional.silu(self.first(torch.cat([x, t[:, None]], dim=1)))
        h = nn.functional.silu(self.second(h))
        return self.last(nn.functional.silu(self.third(h)))


def train(
    model: nn.Module,
    data: Tensor,
    *,
    steps: int,
    batch_size: int,
    clip: float | None = 1.0,
    lr: float = 1e-3,
    decay: float = 0.999,
) -> nn.Module:
    """Adam on the conditional loss along the straight path; returns the average."""
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    average = copy.deepcopy(model).requires_grad_(False)
    weights, averages = list(model.parameters()), list(average.parameters())
    for _ in range(steps):
        x1 = data[torch.randint(len(data), (batch_size,), device=data.device)]
        x0, t = torch.randn_like(x1), torch.rand(batch_size, device=data.device)
        s = t.view(-1, *[1] * (x1.ndim - 1))
        xt, ut = (1 - s) * x0 + s * x1, x1 - x0
        loss = (model(xt, t) - ut).square().flatten(1).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(weights, clip)
        optimiser.step()
        torch._foreach_lerp_(averages, [w.detach() for w in weights], 1 - decay)
    return average


# --- samplers ------------------------------------------------------------------------


@torch.no_grad()
def euler(field, x: Tensor, steps: int) -> Tensor:
    for k in range(steps):
        x = x + field(x, x.new_full((len(x),), k / steps)) / steps
    return x


@torch.no_grad()
def midpoint(field, x: Tensor, steps: int) -> Tensor:
    h = 1 / steps
    for k in range(steps):
        t = x.new_full((len(x),), k * h)
        x = x + h * field(x + h / 2 * field(x, t), t + h / 2)
    return x


@torch.no_grad()
def dopri5(field, x: Tensor, tol: float = 1e-5) -> tuple[Tensor, int]:
    """One step size for the batch, at which every sample keeps to the tolerance."""

    def slope(x, t):
        return field(x, x.new_full((len(x),), t))

    def size(error, scale):
        return (error / scale).square().mean(1).sqrt().max().item()

    k, scale = [slope(x, 0.0)], tol + tol * x.abs()
    d0, d1 = size(x, scale), size(k[0], scale)
    h = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
    d2 = size(slope(x + h * k[0], h) - k[0], scale) / h
    h, t, nfe = min(100 * h, (0.01 / max(d1, d2, 1e-15)) ** 0.2), 0.0, 2
    while t < 1:
        h = min(h, 1 - t)
        for node, row in zip(NODES, ROWS, strict=True):
            y = x + h * sum(a * s for a, s in zip(row, k, strict=True) if a)
            k.append(slope(y, t + node * h))
        error = h * sum(e * s for e, s in zip(ERROR, k, strict=True) if e)
        ratio = size(error, tol + tol * torch.maximum(x.abs(), y.abs()))
        nfe += 6
        if ratio <= 1:
            x, t, k = y, (1.0 if h == 1 - t else t + h), [k[-1]]
        else:
            k = k[:1]
        h *= min(10, max(0.2, 0.9 * max(ratio, 1e-10) ** -0.2))
    return x, nfe


NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
ROWS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (
    *(71 / 57600, 0, -71 / 16695, 71 / 1920),
    *(-17253 / 339200, 22 / 525, -1 / 40),
)

# --- likelihood ----------------------------------------------------------------------


def log_prob(
    field, x: Tensor, tol: float, z: Tensor | None = None
) -> tuple[Tensor, int]:
    """N(0, I) carried from t = 0 to 1: log-density at x, by the trace or one probe z.

    The log-determinant is one more coordinate of dopri5's state. A loop over the
    dimensions is quicker for a few of them, one batched pass for many.
    """
    d = x.shape[1]
    units = torch.eye(d, dtype=x.dtype)[:, None].expand(d, *x.shape)

    def back(state: Tensor, s: Tensor) -> Tensor:
        with torch.enable_grad():
            x = state[:, :-1].detach().requires_grad_()
            v = field(x, 1 - s)
            if z is not None:
                div = (torch.autograd.grad(v, x, z)[0] * z).sum(1)
            elif d < 4:
                div = sum(
                    torch.autograd.grad(v, x, u, retain_graph=True)[0][:, i]
                    for i, u in enumerate(units)
                )
            else:
                (jacobian,) = torch.autograd.grad(v, x, units, is_grads_batched=True)
                div = torch.einsum("ibi->b", jacobian)
        return -torch.cat([v.detach(), div[:, None]], dim=1)

    end, nfe = dopri5(back, torch.cat([x, x.new_zeros(len(x), 1)], dim=1), tol)
    x0, log_det = end[:, :-1], end[:, -1]
    return log_det - (x0.square().sum(1) + d * math.log(2 * math.pi)) / 2, nfe


# --- divergence ----------------------------------------------------------------------


def divergence_by_loop(field, x: Tensor, t: Tensor) -> Tensor:
    """One backward pass for each data dimension."""
    x = x.detach().requires_grad_()
    v, total = field(x, t), 0
    for i in range(x.shape[1]):
        (grad,) = torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)
        total = total + grad[:, i]
    return total.detach()


def divergence_at_once(field, x: Tensor, t: Tensor) -> Tensor:
    """All data dimensions in one vectorised backward pass."""
    x = x.detach().requires_grad_()
    v, d = field(x, t), x.shape[1]
    units = torch.eye(d, dtype=x.dtype, device=x.device)[:, None].expand(d, *x.shape)
    (jacobian,) = torch.autograd.grad(v, x, units, is_grads_batched=True)
    return torch.einsum("ibi->b", jacobian).detach()
