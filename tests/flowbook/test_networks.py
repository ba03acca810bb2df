"""Time features and the MLP."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowbook.networks import MLP, time_features, time_frequencies

from ..given import F64, draw, seeded


def random_mlp(shape, dtype=F64, **sizes) -> MLP:
    """An MLP whose zero layers are filled, so that every part of it counts."""
    model = MLP(shape, **sizes).to(dtype)
    generator = seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=F64)
            parameter.copy_(0.5 * noise)
    return model


def test_frequencies_are_a_geometric_ladder():
    """Catches a ladder from 0, swapped ends, a power that is off by one."""
    found = time_frequencies(4, slowest=3.0, fastest=24.0)
    assert_close(found, torch.tensor([3.0, 6.0, 12.0, 24.0], dtype=F64))
    default = time_frequencies()
    assert default.shape == (16,) and default[0] == 1 and default[-1] == 100


def test_features_are_cosines_then_sines():
    """Catches sin for cos, a dropped frequency or time, another order."""
    t = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
    expected = [
        [math.cos(2 * s), math.cos(5 * s), math.sin(2 * s), math.sin(5 * s)]
        for s in t.tolist()
    ]
    found = time_features(t, torch.tensor([2.0, 5.0], dtype=F64))
    assert_close(found, torch.tensor(expected, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_features_take_the_dtype_of_the_times(dtype):
    """Catches float32 times silently raised to the ladder's float64."""
    t = torch.rand(5, dtype=dtype)
    assert time_features(t, time_frequencies(3)).dtype == dtype


def test_features_refuse_other_times():
    """Catches frequencies cut to whole numbers, a column of times taken for rows."""
    with pytest.raises(TypeError, match=r"t must be floating point, got torch\.int64"):
        time_features(torch.arange(5), time_frequencies(3))
    for shape in ((), (5, 1)):
        with pytest.raises(ValueError, match=r"t must have shape \(B,\) .*, got \("):
            time_features(torch.zeros(shape), time_frequencies(3))
    for ladder in (torch.tensor(2.0), torch.ones(5, 1), torch.ones(5, 3)):
        with pytest.raises(ValueError, match=r"frequencies \(K,\), got \(5,\) and \("):
            time_features(torch.zeros(5), ladder)


def by_hand(model: MLP, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    flat = x.reshape(len(x), -1)
    angles = torch.stack([w * t for w in model.frequencies], 1)
    features = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
    h = torch.cat([flat, features], 1)
    *hidden, last = [part for part in model.perceptron if hasattr(part, "weight")]
    for layer in hidden:
        h = h @ layer.weight.T + layer.bias
        h = h * torch.sigmoid(h)
    factors = features @ model.gate.weight.T + model.gate.bias
    v = h @ last.weight.T + last.bias + factors * flat
    return v.reshape(x.shape)


@pytest.mark.parametrize("shape", [3, (3,), (2, 3, 4), torch.Size([2, 3])])
def test_mlp_is_a_perceptron_and_a_gate(shape):
    """Catches the gate dropped or subtracted, features swapped for points."""
    model = random_mlp(shape, width=7, depth=2, frequencies=3)
    x = draw(5, *model.shape, seed=2)
    t = torch.rand(5, generator=seeded(3), dtype=F64)
    assert_close(model(x, t), by_hand(model, x, t))


def test_sizes():
    """Catches width, depth or frequencies that are ignored or off by one."""
    model = MLP((2, 3), width=7, depth=4, frequencies=5)
    shapes = [tuple(p.weight.shape) for p in model.perceptron if hasattr(p, "weight")]
    assert shapes == [(7, 16), (7, 7), (7, 7), (7, 7), (6, 7)]
    assert tuple(model.gate.weight.shape) == (6, 10)
    default = MLP(2)
    shapes = [tuple(p.weight.shape) for p in default.perceptron if hasattr(p, "weight")]
    assert shapes == [(256, 34), (256, 256), (256, 256), (2, 256)]


def test_starts_at_zero_and_can_learn():
    """Catches a last layer that isn't zero; hidden layers that are (dead for ever)."""
    model = MLP((1, 2, 2), width=8)
    x = torch.randn(5, 1, 2, 2, generator=seeded())
    out = model(x, 0.5)
    assert_close(out, torch.zeros_like(x), rtol=0, atol=0)
    (out - x).square().sum().backward()
    for last in (model.perceptron[-1], model.gate):
        assert (last.weight.grad != 0).any() and (last.bias.grad != 0).any()


def test_time_is_a_number_or_one_per_sample():
    """Catches all samples given the first one's time."""
    model = random_mlp(2, width=8)
    x = draw(4, 2)
    t = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=F64)
    each = torch.cat([model(x[i : i + 1], t[i].item()) for i in range(4)])
    assert_close(model(x, t), each)
    assert not torch.allclose(model(x, 0.2), model(x, 0.7))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_follows_the_inputs(dtype):
    """Catches a buffer or time that stays in another dtype."""
    model = random_mlp(3, dtype, width=4)
    out = model(torch.randn(5, 3, dtype=dtype), torch.rand(5, dtype=F64))
    assert out.dtype == dtype and out.shape == (5, 3)


def test_frequencies_travel_with_the_weights():
    """Catches a ladder that isn't saved: a loaded network would keep another clock."""
    assert "frequencies" in MLP(2, width=4).state_dict()


@pytest.mark.parametrize("size", [(5, 64), (5, 8, 8, 1)])
def test_refuses_other_points(size):
    """Catches a check of the number of values instead of the shape."""
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\), got \(5, "):
        MLP((1, 8, 8), width=4)(torch.zeros(size), 0.5)


def test_refuses_points_of_another_dtype():
    """Catches torch's own words, which name neither x nor the model."""
    with pytest.raises(TypeError, match=r"x must be torch.float64, got torch.float32"):
        random_mlp(3, width=4)(torch.zeros(5, 3), 0.5)


def test_refuses_integers_and_wrong_times():
    """Catches the entry checks left out."""
    model = MLP(2, width=4)
    with pytest.raises(TypeError, match="x must be floating point"):
        model(torch.zeros(5, 2, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match=r"shape \(5,\).*got shape \(3,\)"):
        model(torch.zeros(5, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 10"):
        model(torch.zeros(5, 2), 10)


@pytest.mark.parametrize(
    ("shape", "width", "depth"),
    [
        ((), 4, 2),
        (0, 4, 2),
        ((2, -1), 4, 2),
        ((2, 2.0), 4, 2),
        (2, 0, 2),
        (2, 4, 0),
        (2, 4, True),
        (2.0, 4, 2),
        (None, 4, 2),
        ("2", 4, 2),
    ],
)
def test_refuses_sizes(shape, width, depth):
    """Catches a size of 0 or a fraction that fails later, without its name."""
    with pytest.raises(ValueError, match="must be positive integers, got shape"):
        MLP(shape, width=width, depth=depth)


def test_takes_a_list_of_sizes():
    """Catches a shape that only a tuple can give."""
    assert MLP([2, 3], width=4).shape == (2, 3)


@pytest.mark.parametrize(
    ("count", "slowest", "fastest"),
    [
        (1, 1.0, 100.0),
        (4.0, 1.0, 100.0),
        (True, 1.0, 100.0),
        (4, 0.0, 100.0),
        (4, 100.0, 100.0),
        (4, 1.0, math.inf),
        (4, 1.0, math.nan),
    ],
)
def test_refuses_ladders(count, slowest, fastest):
    """Catches a ladder of one rung (a division by zero) or with a rung at 0."""
    with pytest.raises(
        ValueError, match="an integer count >= 2 of frequencies and 0 < slowest"
    ):
        time_frequencies(count, slowest=slowest, fastest=fastest)
