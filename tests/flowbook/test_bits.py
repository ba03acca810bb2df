"""Dequantised data, levels again, and bits per dimension."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowbook.bits import bits_per_dim, dequantize, quantize
from flowbook.likelihood import standard_normal_log_prob

from ..given import F64, draw, seeded


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("levels", "low", "high"), [(256, -1.0, 1.0), (17, -1.0, 1.0), (5, 0.0, 5.0)]
)
def test_every_value_stays_in_its_bin(levels, low, high, dtype):
    """Catches noise centred on the level, a bin too many, rounding into the next."""
    data = torch.arange(levels).repeat(400).view(100, 4, levels)
    scale = {"low": low, "high": high}
    x = dequantize(data, levels, **scale, generator=seeded(), dtype=dtype)
    assert x.shape == data.shape and x.dtype == dtype
    assert_close(quantize(x, levels, **scale), data, rtol=0, atol=0)
    width = (high - low) / levels
    share = (x.to(F64) - low) / width - data  # place within the bin
    rounding = 4 * torch.finfo(dtype).eps * max(abs(low), abs(high)) / width
    assert share.min() >= -rounding and share.max() <= 1 + rounding


def test_noise_is_uniform_and_independent():
    """Catches noise of half the width, one draw for all pixels, for all points."""
    data = torch.full((20_000, 3), 2)
    share = dequantize(data, 8, low=0, high=8, generator=seeded(), dtype=F64) - 2
    moments = share.mean(0), share.square().mean(0)
    for moment, expected in zip(moments, (1 / 2, 1 / 3), strict=True):
        assert_close(moment, torch.full((3,), expected, dtype=F64), rtol=0, atol=0.01)
    apart = torch.corrcoef(share.T) - torch.eye(3, dtype=F64)
    assert apart.abs().max() < 0.03  # 4 standard errors


def test_the_noise_is_the_generator_s():
    """Catches noise that runs backwards, or another number of draws."""
    data = torch.randint(0, 7, (5, 3), generator=seeded(2))
    u = torch.rand(5, 3, generator=seeded(), dtype=F64)
    x = dequantize(data, 7, low=-2, high=5, generator=seeded(), dtype=F64)
    assert_close(x, data + u - 2)


def test_defaults_of_dequantize_are_bytes_on_minus_one_to_one():
    """Catches another default scale, dtype, or count of levels."""
    x = dequantize(torch.tensor([[0, 255]], dtype=torch.uint8), generator=seeded())
    assert x.dtype == torch.get_default_dtype()
    assert -1 <= x[0, 0] < -1 + 1 / 128 and 1 - 1 / 128 <= x[0, 1] < 1
    again = dequantize(torch.tensor([[0, 255]]), generator=seeded())
    assert_close(x, again, rtol=0, atol=0)
    assert not torch.equal(x, dequantize(torch.tensor([[0, 255]]), generator=seeded(1)))


def test_quantize_takes_an_edge_upwards_and_clips():
    """Catches bins closed on the other side; samples out of range that wrap."""
    x = torch.tensor([-7.0, 0.0, 0.99, 1.0, 2.5, 3.999, 4.0, 9.0], dtype=F64)
    levels = quantize(x, 4, low=0.0, high=4.0)
    assert levels.tolist() == [0, 0, 0, 1, 2, 3, 3, 3] and levels.dtype == torch.int64
    assert quantize(torch.tensor([[-1.0, 1.0]])).tolist() == [[0, 255]]


def test_bits_of_a_uniform_density():
    """Catches the offset, its sign, nats for bits, a sum for a mean."""
    # uniform on the range: every level has probability 1/K, so log2 K bits each
    for levels, low, high in ((256, -1.0, 1.0), (256, 0.0, 1.0), (17, -2.0, 3.0)):
        log_prob = torch.full((5,), -3 * math.log(high - low), dtype=F64)
        bits = bits_per_dim(log_prob, 3, levels=levels, low=low, high=high)
        assert_close(bits, torch.full((5,), math.log2(levels), dtype=F64))
    known = bits_per_dim(torch.tensor([0.0, -2 * math.log(2)], dtype=F64), 2)
    assert_close(known, torch.tensor([7.0, 8.0], dtype=F64))  # 2 / 256 = 2^-7


def test_bits_do_not_depend_on_the_scale():
    """Catches an offset without the scale's factor, or one that counts it d times."""
    x = draw(5, 1, 2, 3)
    log_prob = standard_normal_log_prob(x)
    here = bits_per_dim(log_prob, (1, 2, 3), levels=32, low=-4.0, high=4.0)
    there = bits_per_dim(
        log_prob - 6 * math.log(2.5), 6, levels=32, low=-9.0, high=11.0
    )  # y = 2.5 x + 1
    assert here.shape == (5,) and here.dtype == F64
    assert_close(here, there)


def test_gradients_flow():
    """Catches bits that cannot be trained through."""
    log_prob = torch.zeros(5, dtype=F64, requires_grad=True)
    bits_per_dim(log_prob, 3).sum().backward()
    expected = torch.full((5,), -1 / (3 * math.log(2)), dtype=F64)
    assert_close(log_prob.grad, expected)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dequantize(torch.zeros(5, 3)), TypeError, "integer.*float32"),
        (lambda: dequantize(torch.zeros(5, 3) > 0), TypeError, "integer.*bool"),
        (lambda: dequantize(torch.tensor([3, 256])), ValueError, r"0 to 255.*3 to 256"),
        (lambda: dequantize(torch.tensor([-1, 3])), ValueError, r"0 to 255.*-1 to 3"),
        (lambda: dequantize(torch.tensor([1]), 0), ValueError, "levels"),
        (lambda: dequantize(torch.tensor([1]), True), ValueError, "levels"),
        (lambda: dequantize(torch.tensor([1]), 2.0), ValueError, "levels"),
        (lambda: dequantize(torch.tensor([1]), low=1.0), ValueError, "low < high"),
        (lambda: dequantize(torch.tensor([1]), high=math.inf), ValueError, "finite"),
        (lambda: dequantize(torch.tensor([1]), low=math.nan), ValueError, "finite"),
        (
            lambda: dequantize(torch.tensor([1]), 8192, dtype=torch.float16),
            ValueError,
            "8192.*float16",
        ),
        (lambda: dequantize(torch.tensor([1]), dtype=torch.int64), TypeError, "int64"),
        (lambda: quantize(torch.tensor([1])), TypeError, "floating.*int64"),
        (lambda: quantize(torch.zeros(1), 0), ValueError, "levels"),
        (lambda: quantize(torch.tensor([math.nan])), ValueError, "finite"),
        (lambda: bits_per_dim(torch.zeros(5, 1), 3), ValueError, r"\(B,\).*\(5, 1\)"),
        (lambda: bits_per_dim(torch.zeros(5).long(), 3), TypeError, "int64"),
        (lambda: bits_per_dim(torch.full((5,), math.nan), 3), ValueError, "NaN"),
        (lambda: bits_per_dim(torch.zeros(5), 0), ValueError, "dims"),
        (lambda: bits_per_dim(torch.zeros(5), (1, 0)), ValueError, "dims"),
        (lambda: bits_per_dim(torch.zeros(5), 2.5), ValueError, "dims"),
        (lambda: bits_per_dim(torch.zeros(5), (3, 1.5)), ValueError, r"dims.*1\.5"),
        (lambda: bits_per_dim(torch.zeros(5), ()), ValueError, "dims"),
        (lambda: bits_per_dim(torch.zeros(5), True), ValueError, "dims.*True"),
        (lambda: bits_per_dim(torch.zeros(5), 3, levels=-4), ValueError, "levels"),
        (lambda: bits_per_dim(torch.zeros(5), 3, low=1.0), ValueError, "low < high"),
    ],
)
def test_errors_name_what_came(call, error, words):
    """Catches silent acceptance of the wrong units, range or shape."""
    with pytest.raises(error, match=words):
        call()


def test_an_impossible_point_costs_infinitely_many_bits():
    """Catches a log-density of -inf refused, or turned into NaN."""
    assert bits_per_dim(torch.tensor([-math.inf]), 3).item() == math.inf


def test_one_level_and_no_points():
    """Catches a limit that forbids the smallest cases."""
    one = dequantize(torch.zeros(5, dtype=torch.int64), 1, generator=seeded())
    assert one.min() >= -1 and one.max() < 1
    assert dequantize(torch.zeros((0, 3), dtype=torch.int64)).shape == (0, 3)
