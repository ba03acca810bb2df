"""Halves, nearest neighbours, pictures, blends, and the recipe."""

import math
import tempfile
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from flowbook.checkpoints import checkpoints
from flowbook.images import (
    image_grid,
    nearest,
    random_halves,
    spherical_blend,
    train_unet,
)
from flowbook.paths import OTPath
from flowbook.training import CosineLR, train
from flowbook.unet import UNet

from ..given import F64, draw, seeded


@pytest.mark.parametrize("n", [2, 7, 8])
def test_halves(n):
    """Catches halves that overlap or leave one out; no shuffle; a fixed one."""
    first, second = random_halves(n, generator=seeded())
    assert (len(first), len(second)) == (n // 2, n - n // 2)
    assert sorted(first.tolist() + second.tolist()) == list(range(n))
    again = random_halves(n, generator=seeded())
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])


def test_halves_are_random():
    """Catches a split in the order of the file."""
    splits = {
        tuple(random_halves(9, generator=seeded(k))[0].tolist()) for k in range(9)
    }
    assert len(splits) > 5


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_nearest(dtype, chunk):
    """Catches the farthest, a chunk that loses rows, a squared or mean distance."""
    x = draw(5, 2, 3, seed=1, dtype=dtype)
    data = draw(7, 2, 3, seed=2, dtype=dtype) + 10
    index, distance = nearest(x, data, chunk=chunk)
    for row in range(5):
        gaps = [
            math.sqrt(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)))
            for p, q in (
                (x[row].flatten().tolist(), y.flatten().tolist()) for y in data
            )
        ]
        assert index[row] == gaps.index(min(gaps))
        assert math.isclose(distance[row], min(gaps), rel_tol=1e-5)
    assert index.shape == distance.shape == (5,) and distance.dtype == dtype


def test_a_copy_has_distance_zero():
    """Catches distances from products of large numbers, which hide a copy."""
    data = torch.randn(30, 4, generator=seeded()) + 1000
    index, distance = nearest(data[10:15], data)
    assert index.tolist() == [10, 11, 12, 13, 14] and (distance == 0).all()


def test_a_copy_is_nearer_than_its_near_twin():
    """Catches distances from products in float32, which take the twin for the copy."""
    copy = torch.randn(1, 64, generator=seeded(3))
    twin = copy.clone()
    twin[0, 7] += 1e-4
    far = torch.randn(40, 64, generator=seeded(4)) + 5
    index, distance = nearest(copy.expand(30, -1), torch.cat([far, twin, copy]))
    assert (index == 41).all() and (distance == 0).all()


def test_nearest_refuses_another_dtype():
    """Catches a comparison in a precision that nobody asked for."""
    with pytest.raises(TypeError, match=r"got x torch.float64, data torch.float32"):
        nearest(torch.zeros(2, 3, dtype=F64), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("x", "data", "chunk", "match"),
    [
        ((5, 3), (7, 4), 9, r"got \(5, 3\), \(7, 4\)"),
        ((5, 3), (0, 3), 9, r"got \(5, 3\), \(0, 3\)"),
        ((5, 3), (7, 3), 0, "and chunk 0"),
        ((5,), (7, 3), 9, r"got \(5,\), \(7, 3\)"),
        ((5,), (7, 1), 9, r"got \(5,\), \(7, 1\)"),
        ((), (7, 3), 9, r"x must have shape \(B, \*D\), got \(\)"),
    ],
)
def test_nearest_refuses(x, data, chunk, match):
    """Catches shapes that broadcast, and an argmin over nothing."""
    with pytest.raises(ValueError, match=match):
        nearest(torch.zeros(x), torch.zeros(data), chunk=chunk)


def test_nearest_refuses_nan():
    """Catches a NaN sample that is nearest to image 0."""
    with pytest.raises(ValueError, match="x must be finite, got 3 NaN"):
        nearest(torch.full((1, 3), math.nan), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="data must be floating point"):
        nearest(torch.zeros(1, 3), torch.zeros(2, 3, dtype=torch.uint8))


@pytest.mark.parametrize("gap", [0, 2])
def test_grid(gap):
    """Catches rows for columns, transposed images, a gap left at the end."""
    images = torch.arange(5 * 2 * 3 * 4, dtype=F64).view(5, 2, 3, 4)
    grid = image_grid(images, 3, gap=gap)
    assert grid.shape == (2, 2 * 3 + gap, 3 * 4 + 2 * gap)
    expected = torch.full_like(grid, -1)
    for k in range(5):
        top, left = k // 3 * (3 + gap), k % 3 * (4 + gap)
        expected[:, top : top + 3, left : left + 4] = images[k]
    assert_close(grid, expected)


def test_grid_default_gap():
    """Catches no line between neighbours."""
    assert image_grid(torch.zeros(2, 1, 3, 3), 2).shape == (1, 3, 7)


@pytest.mark.parametrize(
    ("size", "columns", "gap"),
    [
        ((5, 3, 4), 2, 1),
        ((0, 1, 3, 4), 2, 1),
        ((5, 1, 3, 4), 0, 1),
        ((5, 1, 3, 4), 2, -1),
    ],
)
def test_grid_refuses(size, columns, gap):
    """Catches a division by zero columns; images laid over each other."""
    with pytest.raises(ValueError, match=r"expected images \(N, C, H, W\)"):
        image_grid(torch.zeros(size), columns, gap=gap)


def test_blend():
    """Catches ends exchanged, sine for cosine, a straight way, a full half circle."""
    a, b = draw(2, 5, 3)
    for s in (0.0, 0.25, 0.6, 1.0):
        angle = s * math.pi / 2
        expected = [
            [math.cos(angle) * p + math.sin(angle) * q for p, q in zip(*r, strict=True)]
            for r in zip(a.tolist(), b.tolist(), strict=True)
        ]
        assert_close(spherical_blend(a, b, s), torch.tensor(expected, dtype=F64))
    assert_close(spherical_blend(a, b, 0.0), a, rtol=0, atol=0)
    assert_close(spherical_blend(a, b, 1.0), b, rtol=0, atol=1e-15)


def test_blend_of_each_pair():
    """Catches one place for all pairs; places broadcast over the wrong dimension."""
    a, b = draw(2, 3, 3, 2)
    s = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    rows = [spherical_blend(a[k : k + 1], b[k : k + 1], s[k].item()) for k in range(3)]
    assert_close(spherical_blend(a, b, s), torch.cat(rows))


def test_blend_refuses():
    """Catches one point of noise broadcast against many."""
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(1, 3\)"):
        spherical_blend(torch.zeros(5, 3), torch.zeros(1, 3), 0.5)


@pytest.mark.parametrize("classes", [None, 3])
def test_recipe(classes):
    """Catches another path, rate, clipping or network than the recipe says."""
    images = draw(10, 1, 4, 4, seed=1)
    labels = None if classes is None else torch.arange(10) % classes
    small = {"width": 8, "multipliers": (1, 1)}
    torch.manual_seed(3)
    run = train_unet(
        images,
        labels,
        steps=41,
        batch_size=5,
        lr=0.02,
        generator=seeded(2),
        progress=False,
        **small,
    )
    torch.manual_seed(3)
    model = UNet(1, classes=classes, **small).double()
    expected = train(
        model,
        OTPath(),
        images if labels is None else (images, labels),
        steps=41,
        batch_size=5,
        lr=CosineLR(0.02, 41, warmup=2),
        clip=16.0,  # 4 × 4 pixels
        generator=seeded(2),
        progress=False,
    )
    assert torch.equal(run.losses, expected.losses)
    assert run.model.classes == classes
    for found, wanted in zip(
        run.ema.parameters(), expected.ema.parameters(), strict=True
    ):
        assert torch.equal(found, wanted) and found.dtype == F64


def test_recipe_goes_on_where_it_was():
    """Catches a folder that is not passed on; a rate that makes a run another's."""
    images = draw(10, 1, 4, 4, seed=1)
    with tempfile.TemporaryDirectory() as name:
        given = {"steps": 6, "batch_size": 5, "width": 8, "multipliers": (1, 1)}
        given |= {"checkpoint_dir": Path(name) / "kept", "progress": False}
        torch.manual_seed(3)
        first = train_unet(images, generator=seeded(2), **given)
        assert [*checkpoints(given["checkpoint_dir"])] == [6]
        torch.manual_seed(4)  # other first weights, which the file replaces
        again = train_unet(images, generator=seeded(2), **given)
    assert torch.equal(first.losses, again.losses)
    for a, b in zip(first.ema.parameters(), again.ema.parameters(), strict=True):
        assert torch.equal(a, b)
