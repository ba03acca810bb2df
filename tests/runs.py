"""Small runs of `train`, and what the steps of one are, for the tests of both."""

import os

import torch
from torch import nn

from flowbook.networks import MLP
from flowbook.paths import OTPath
from flowbook.training import train
from press.settings import ROOT

from .given import draw, seeded


def network(shape=3, seed: int = 1) -> MLP:
    torch.manual_seed(seed)
    return MLP(shape, width=8, depth=2, frequencies=3).double()


def examples(n: int = 11, *shape: int) -> torch.Tensor:
    return draw(n, *(shape or (3,)), seed=2)


_NAN = examples(6)
_NAN[4, 1] = torch.nan
REFUSED = [  # as data: by the source that reads them, and by a run
    (torch.zeros(6, 3).long(), TypeError, "data must be floating point"),
    ([[1.0, 2.0, 3.0]] * 6, TypeError, "data must be a tensor, got list"),
    (_NAN, ValueError, "data must be finite, got 1 NaN"),
]


def drawn(seeds, step, data, batch_size):
    """The batch, times and noise of a step, from the two seeds."""
    epoch, place = divmod(step, len(data) // batch_size)
    order = torch.randperm(len(data), generator=seeded((seeds[1] + epoch) % 2**32))
    x1 = data[order[place * batch_size :][:batch_size]]
    g = seeded((seeds[0] + step) % 2**32)
    t = torch.rand(batch_size, generator=g, dtype=data.dtype)
    return x1, t, torch.randn(x1.shape, generator=g, dtype=data.dtype)


# a run's, in a process of its own
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

SHORT = {"steps": 6, "batch_size": 4, "progress": False}


def short_run(seed=3, model=None, data=None, path=None, **options):
    model = model or network()
    data = examples() if data is None else data
    given = {**SHORT, "generator": seeded(seed), **options}
    return train(model, path or OTPath(), data, **given)


def equal_runs(a, b) -> bool:
    """Whether losses, weights and averages agree in every bit."""
    pairs = [(a.losses, b.losses)]
    for one, other in ((a.model, b.model), (a.ema, b.ema)):
        pairs += zip(
            one.state_dict().values(), other.state_dict().values(), strict=True
        )
    return all(torch.equal(x, y) for x, y in pairs)


class Drops(nn.Module):
    """A field with dropout and a buffer that counts calls."""

    def __init__(self):
        super().__init__()
        self.inner, self.drop = network(), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, t):
        self.calls += 1
        return self.drop(self.inner(self.drop(x), t))
