"""The U-Net."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d
from torch.testing import assert_close

from flowbook.likelihood import Exact, divergence
from flowbook.solvers import Euler, solve
from flowbook.unet import ResidualBlock, SelfAttention, UNet

from ..given import F64, seeded


def filled(model: nn.Module, dtype=F64, std: float = 0.3) -> nn.Module:
    """The module with every parameter random, so that every part of it counts."""
    model, generator = model.to(dtype), seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=F64)
            parameter.copy_(std * noise)
    return model


def small(dtype=F64, channels=2, **options) -> UNet:
    options = {"width": 8, "multipliers": (1, 2), "blocks": 1, **options}
    return filled(UNet(channels, **options), dtype)


def images(*shape, seed=2, dtype=F64):
    return torch.randn(shape, generator=seeded(seed), dtype=F64).to(dtype)


TIMES = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0], dtype=F64)
LABELS = torch.tensor([2, 0, 1, 2, 0])


# --- the same by hand ------------------------------------------------------------


def by_hand_norm(norm, x):
    b, c = x.shape[:2]
    out = torch.empty_like(x)
    size = c // 8
    for i in range(b):
        for g in range(8):
            part = x[i, g * size : (g + 1) * size]
            mean = part.sum() / part.numel()
            variance = ((part - mean) ** 2).sum() / part.numel()
            out[i, g * size : (g + 1) * size] = (part - mean) / (variance + 1e-5) ** 0.5
    return out * norm.weight.view(1, c, 1, 1) + norm.bias.view(1, c, 1, 1)


def bent(h):
    return h / (1 + torch.exp(-h))


def by_hand_block(block, x, e):
    h = bent(by_hand_norm(block.norm1, x))
    h = conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    numbers = e @ block.modulate.weight.T + block.modulate.bias
    c = h.shape[1]
    factor = numbers[:, :c].view(-1, c, 1, 1)
    offset = numbers[:, c:].view(-1, c, 1, 1)
    h = by_hand_norm(block.norm2, h)
    h = bent(h + factor * h + offset)
    h = conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    if x.shape[1] != c:
        weight = block.skip.weight[:, :, 0, 0]
        x = torch.einsum("mn,bnhw->bmhw", weight, x) + block.skip.bias.view(-1, 1, 1)
    return x + h


def by_hand_attention(part, x):
    b, c, height, width = x.shape
    normed, out = by_hand_norm(part.norm, x), torch.empty_like(x)
    size = c // 4
    for i in range(b):
        places = torch.stack(
            [normed[i, :, r, s] for r in range(height) for s in range(width)]
        )  # (HW, C)
        numbers = places @ part.qkv.weight.T + part.qkv.bias
        q, k, v = numbers[:, :c], numbers[:, c : 2 * c], numbers[:, 2 * c :]
        heads = []
        for first in range(0, c, size):
            rows = slice(first, first + size)
            scores = torch.exp(q[:, rows] @ k[:, rows].T / math.sqrt(size))
            heads.append(scores / scores.sum(1, keepdim=True) @ v[:, rows])
        gathered = torch.cat(heads, 1) @ part.out.weight.T + part.out.bias
        out[i] = gathered.T.reshape(c, height, width)
    return x + out


def by_hand(model, x, t, y=None):
    angles = torch.stack([w * t for w in model.frequencies], 1)
    f = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
    e = bent(f @ model.time[0].weight.T + model.time[0].bias)
    e = e @ model.time[2].weight.T + model.time[2].bias
    if y is not None:
        e = e + torch.stack([model.label.weight[k] for k in y.tolist()])
    e = bent(e)
    h, seen = conv2d(x, model.first.weight, model.first.bias, padding=1), []
    for stage, shrink in zip(model.down, model.shrink, strict=True):
        for block in stage:
            h = by_hand_block(block, h, e)
        seen.append(h)
        h = conv2d(h, shrink.weight, shrink.bias, padding=1)[:, :, ::2, ::2]
    h = by_hand_block(model.before, h, e)
    h = by_hand_attention(model.attention, h)
    h = by_hand_block(model.after, h, e)
    for stage, skip in zip(model.up, seen[::-1], strict=True):
        rows, columns = (
            torch.tensor([i * small // large for i in range(large)])
            for small, large in zip(h.shape[2:], skip.shape[2:], strict=True)
        )
        h = torch.cat([h[:, :, rows][:, :, :, columns], skip], 1)
        for block in stage:
            h = by_hand_block(block, h, e)
    h = bent(by_hand_norm(model.norm, h))
    v = conv2d(h, model.last.weight, model.last.bias, padding=1)
    return v + (f @ model.gate.weight.T + model.gate.bias)[:, :, None, None] * x


@pytest.mark.parametrize("outputs", [16, 24])
def test_residual_block(outputs):
    """Catches scale for 1 + scale, a swapped shift, a shortcut left out."""
    block = filled(ResidualBlock(16, outputs, 5))
    x, e = images(2, 16, 3, 4), images(2, 5, seed=3)
    assert_close(block(x, e), by_hand_block(block, x, e))


def test_attention():
    """Catches keys for values, one head for four, places that change order."""
    part = filled(SelfAttention(16))
    x = images(2, 16, 3, 4)
    assert_close(part(x), by_hand_attention(part, x))
    assert SelfAttention(16).heads == 4


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((4, 5), {}),
        ((9, 8), {"multipliers": (2, 1, 3), "blocks": 2, "frequencies": 3}),
        ((3, 2), {"multipliers": (2,)}),
        ((4, 4), {"classes": 3, "width": 16}),
    ],
)
def test_unet_is_its_formula(size, options):
    """Catches a part left out or wired to another, a wrong size, a lost skip."""
    model = small(**options)
    x = images(2, 2, *size)
    y = LABELS[:2] if "classes" in options else None
    assert_close(model(x, TIMES[1:3], y), by_hand(model, x, TIMES[1:3], y))


def test_sizes():
    """Catches width, multipliers, blocks, classes or frequencies that are ignored."""
    model = UNet(3, width=16, multipliers=(1, 3, 2), blocks=3, classes=7, frequencies=5)
    down = [[tuple(b.conv1.weight.shape[:2]) for b in stage] for stage in model.down]
    up = [[tuple(b.conv1.weight.shape[:2]) for b in stage] for stage in model.up]
    assert down == [[(16, 16)] * 3, [(48, 16), (48, 48), (48, 48)]]
    assert up == [[(48, 80), (48, 48), (48, 48)], [(16, 64), (16, 16), (16, 16)]]
    assert tuple(model.before.conv1.weight.shape[:2]) == (32, 48)
    assert tuple(model.label.weight.shape) == (7, 64)
    assert tuple(model.time[0].weight.shape) == (64, 10)
    assert tuple(model.first.weight.shape[:2]) == (16, 3)
    default = UNet(1)
    assert sum(p.numel() for p in default.parameters()) == 3_124_706
    assert default.label is None and len(default.down) == 2
    assert len(default.down[0]) == 2


# --- what the chapter states -----------------------------------------------------


@pytest.mark.parametrize("classes", [None, 3])
def test_starts_at_zero_and_only_its_last_layers_learn_at_first(classes):
    """Catches a last layer that isn't zero; another that is, and never moves."""
    model = UNet(2, width=8, multipliers=(1, 2), blocks=1, classes=classes).double()
    x, y = images(5, 2, 4, 4), None if classes is None else LABELS
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        out = model(x, TIMES, y)
        if step == 0:
            assert_close(out, torch.zeros_like(x), rtol=0, atol=0)
        optimiser.zero_grad()
        (out - images(5, 2, 4, 4, seed=4)).square().sum().backward()
        moved = {n for n, p in model.named_parameters() if (p.grad != 0).any()}
        if step == 0:
            assert moved == {"last.weight", "last.bias", "gate.weight", "gate.bias"}
        optimiser.step()
    assert moved == {name for name, _ in model.named_parameters()}


def test_each_sample_alone():
    """Catches statistics over the batch, the first sample's time or label for all."""
    model = small(classes=3)
    x = images(5, 2, 4, 5)
    each = torch.cat(
        [model(x[i : i + 1], TIMES[i].item(), LABELS[i : i + 1]) for i in range(5)]
    )
    assert_close(model(x, TIMES, LABELS), each)
    other = LABELS.clone()
    other[0] = 1
    change = (model(x, TIMES, other) - each).flatten(1).abs().amax(1)
    assert change[0] > 0.01 and change[1:].max() < 1e-12


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (9, 15)], ids=str)
def test_any_size(size):
    """Catches a size that only even halves fit."""
    model = small(torch.float32, 1, multipliers=(1, 1, 1))
    x = images(1, 1, *size, dtype=torch.float32)
    out = model(x, 0.3)
    assert out.shape == x.shape and out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_follows_the_inputs(dtype):
    """Catches a buffer or time that stays in another dtype."""
    out = small(dtype)(images(5, 2, 4, 4, dtype=dtype), TIMES)
    assert out.dtype == dtype and out.shape == (5, 2, 4, 4)


@pytest.mark.parametrize(("low", "bits"), [(torch.bfloat16, 9), (torch.float16, 12)])
def test_under_autocast_the_result_has_the_dtype_of_x(low, bits):
    """Catches half precision that leaks into a solver's state."""
    model = small(torch.float32, classes=3)
    x = images(5, 2, 8, 8, dtype=torch.float32)
    exact = model(x, TIMES, LABELS)
    with torch.autocast("cpu", low):
        out = model(x, TIMES, LABELS)
    assert out.dtype == torch.float32
    # some 30 roundings of 2**-bits one after the other
    assert 0 < (out - exact).norm() / exact.norm() < 30 * 2**-bits


def test_channels_last_stays_so():
    """Catches a view or a permutation that costs a copy of each image."""
    model = small(torch.float32).to(memory_format=torch.channels_last)
    x = images(5, 2, 8, 8, dtype=torch.float32)
    out = model(x.to(memory_format=torch.channels_last), TIMES)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out.contiguous(), model(x, TIMES).contiguous())


@pytest.mark.slow
def test_compiles_to_one_graph():
    """Catches a look at values in `forward`, which would cut the graph in two."""
    model = small(torch.float32, classes=3)
    x = images(5, 2, 7, 8, dtype=torch.float32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(compiled(x, TIMES, LABELS), model(x, TIMES, LABELS))


def test_travels_with_its_buffers():
    """Catches a ladder that isn't saved: a loaded network would keep another clock."""
    model, other = small(), small(frequencies=16)
    assert "frequencies" in model.state_dict()
    other.load_state_dict(model.state_dict())
    x = images(5, 2, 4, 4)
    assert_close(other(x, TIMES), model(x, TIMES), rtol=0, atol=0)


def test_divergence():
    """Catches a part that autograd's batched passes cannot take."""
    model, x = small(channels=1, classes=3), images(2, 1, 4, 5)
    field = partial(model, y=LABELS[:2])
    traces = []
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda z, i=i: model(z[None], 0.3, LABELS[i : i + 1])[0], x[i]
        )
        traces.append(jacobian.reshape(20, 20).trace())
    with torch.no_grad():
        for chunk in (1, 7, 20):
            assert_close(divergence(field, x, 0.3, Exact(chunk)), torch.stack(traces))
    with sdpa_kernel(SDPBackend.MATH):  # the fast kernels have no second derivative
        loss = divergence(field, x, 0.3, Exact(1)).sum()
        (grad,) = torch.autograd.grad(loss, model.first.weight)
    assert grad.isfinite().all() and (grad != 0).any()


def test_is_a_field():
    """Catches a labelled network that a solver cannot call."""
    model, x0 = small(classes=3), images(5, 2, 4, 4)
    run = solve(partial(model, y=LABELS), x0, Euler(2))
    middle = x0 + 0.5 * model(x0, torch.zeros(5, dtype=F64), LABELS)
    end = middle + 0.5 * model(middle, torch.full((5,), 0.5, dtype=F64), LABELS)
    assert_close(run.x, end)


# --- refusals ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 1, 4, 4), (5, 2, 3, 4), (5, 2, 4, 3), (5, 2, 4)])
def test_refuses_other_images(size):
    """Catches an error that is left to the third layer."""
    with pytest.raises(ValueError, match=r"\(B, 2, H, W\).* at least 4, got \(5, "):
        small()(torch.zeros(size, dtype=F64), 0.5)


def test_refuses_another_dtype_and_wrong_times():
    """Catches the entry checks left out."""
    x = images(5, 2, 4, 4)
    with pytest.raises(TypeError, match=r"x must be torch.float32, got torch.float64"):
        small(torch.float32)(x, 0.5)
    with pytest.raises(TypeError, match="x must be floating point"):
        small()(x.long(), 0.5)
    with pytest.raises(ValueError, match=r"shape \(5,\).*got shape \(3,\)"):
        small()(x, TIMES[:3])
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 10"):
        small()(x, 10)


@pytest.mark.parametrize(
    ("classes", "y", "error", "words"),
    [
        (3, None, ValueError, "got no labels, but .* classes=3"),
        (None, LABELS, ValueError, "got labels y, but .* classes=None"),
        (3, LABELS.double(), TypeError, "tensor of integers.*got torch.float64"),
        (3, [0, 1, 2, 0, 1], TypeError, "tensor of integers.*got list"),
        (3, LABELS[:4], ValueError, r"shape \(5,\).*got \(4,\)"),
        (3, LABELS[:, None], ValueError, r"shape \(5,\).*got \(5, 1\)"),
        (3, LABELS + 1, ValueError, r"0 \.\.\. 2, got 1 \.\.\. 3"),
        (3, LABELS - 1, ValueError, r"0 \.\.\. 2, got -1 \.\.\. 1"),
    ],
)
def test_refuses_labels(classes, y, error, words):
    """Catches labels that are dropped, taken for others, or wrapped round."""
    with pytest.raises(error, match=words):
        small(classes=classes)(images(5, 2, 4, 4), TIMES, y)


def test_takes_labels_of_either_width():
    """Catches a refusal of int32, which numpy and many data sets have."""
    model, x = small(classes=3), images(5, 2, 4, 4)
    assert_close(model(x, TIMES, LABELS.int()), model(x, TIMES, LABELS))


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 0},
        {"channels": 1.0},
        {"width": -8},
        {"multipliers": ()},
        {"multipliers": (1, 0)},
        {"multipliers": 2},
        {"multipliers": None},
        {"channels": "1"},
        {"blocks": 0},
        {"blocks": True},
        {"classes": 0},
    ],
)
def test_refuses_sizes(options):
    """Catches a size of 0 or a fraction that fails later, without its name."""
    with pytest.raises(ValueError, match="must be positive integers, got"):
        UNet(**{"channels": 1, "width": 8, **options})


@pytest.mark.parametrize("heads", [3, 0, 16])
def test_refuses_heads_that_do_not_divide(heads):
    """Catches a size that fails only when the first image comes."""
    with pytest.raises(ValueError, match=f"multiple of heads, got 8 and {heads}"):
        SelfAttention(8, heads=heads)


def test_takes_an_empty_batch():
    """Catches a maximum over no labels, a mean over no pixels."""
    empty = torch.zeros(0, 2, 4, 4, dtype=F64)
    out = small(classes=3)(empty, 0.5, torch.zeros(0, dtype=torch.int64))
    assert_close(out, empty)


def test_refuses_a_width_that_has_no_eighths():
    """Catches torch's own words about groups, which don't name the width."""
    with pytest.raises(ValueError, match="width must be a multiple of 8, got 12"):
        UNet(1, width=12)
