"""What many tests are given: seeded numbers, a field of the plane, paths."""

from functools import partial

import torch

from flowbook.paths import CosinePath, OTPath, VEPath, VPPath

F64 = torch.float64
FIVE_PATHS = [OTPath(), OTPath(0.1), VPPath(), VEPath(0.1, 5.0), CosinePath()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype=F64, device="cpu") -> torch.Tensor:
    """Standard normal numbers, the same on every device: drawn on the CPU."""
    return torch.randn(shape, generator=seeded(seed), dtype=dtype).to(device)


points = partial(draw, seed=1)  # not the numbers that seeded() draws


def swirl(x, t):
    first = torch.sin(2 * x[:, 1]) + t * x[:, 0] / 2
    return torch.stack([first, x[:, 0] + torch.sin(x[:, 1] + t)], 1)
