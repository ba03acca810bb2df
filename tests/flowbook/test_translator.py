"""The translator: each convention against its own training examples, both ways."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from flowbook.translator import (
    CONVENTIONS,
    Convention,
    ddpm_clock,
    ddpm_state,
    edm,
    our_field,
    their_network,
)

from ..given import draw

STEPS = [950, 700, 500, 200, 20]  # of DDPM; everybody is asked at these noise levels
BETAS = [1e-4 + (0.02 - 1e-4) * k / 999 for k in range(1000)]
BARS = [math.prod(1 - beta for beta in BETAS[: r + 1]) for r in STEPS]
LEVELS = torch.tensor([math.sqrt(1 / bar - 1) for bar in BARS], dtype=torch.float64)
TIMES = 1 / (1 + LEVELS)  # ours: data and noise are as t to 1 − t
rows = pytest.mark.parametrize("name", CONVENTIONS)


def data_up(data, noise, level):
    t = 1 / (1 + level)
    return t * data + (1 - t) * noise, t, data - noise


def data_up_999(data, noise, level):
    seen, t, target = data_up(data, noise, level)
    return seen, 999 * t, target


def noise_up(data, noise, level):
    tau = level / (1 + level)
    return tau * noise + (1 - tau) * data, tau, noise - data


def noise_up_1000(data, noise, level):
    seen, tau, target = noise_up(data, noise, level)
    return seen, 1000 * tau, target


def chain(data, noise, level):  # √bar: the signal that is left of a unit
    left = 1 / (1 + level**2)
    step = torch.tensor(STEPS).to(level)[(LEVELS - level[:, None]).abs().argmin(1)]
    return left.sqrt() * data + (1 - left).sqrt() * noise, step, noise


def on_the_circle(data, noise, level):
    angle = level.atan()
    target = angle.cos() * noise - angle.sin() * data
    return (
        angle.cos() * data + angle.sin() * noise,
        angle / (0.5 * math.pi),
        target,
    )


def preconditioned(data, noise, level, deviation=0.5):
    total = level**2 + deviation**2
    c_skip, c_out = deviation**2 / total, level * deviation / total.sqrt()
    noisy, c_in = data + level * noise, 1 / total.sqrt()
    return c_in * noisy, level.log() / 4, (data - c_skip * noisy) / c_out


EXAMPLES = {  # what the network sees, is called with, and should say: from the articles
    "paper": data_up,
    "meta": data_up,
    "rectified": data_up_999,
    "sd3": noise_up_1000,
    "ddpm": chain,
    "v": on_the_circle,
    "edm": preconditioned,
    "pi0": noise_up,
}
MEAN = torch.tensor([1.5, -0.4, 0.3], dtype=torch.float64)  # Gaussian data, three axes
VARIANCE = torch.tensor([0.3, 2.0, 0.9], dtype=torch.float64)


def regression(example, x, level):
    """E[target | seen = x] of Gaussian data, by the four numbers of an example."""
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    (a, _, k), (s, _, ell) = example(one, zero, level), example(zero, one, level)
    a, s, k, ell = (n[:, None] for n in (a, s, k, ell))
    together = k * a * VARIANCE + ell * s
    return k * MEAN + together / (a**2 * VARIANCE + s**2) * (x - a * MEAN)


def asked_at(name, level=LEVELS):
    return EXAMPLES[name](0 * level, 0 * level, level)[1]


def perfect(name):
    def network(x, r):
        assert_close(r, asked_at(name), rtol=1e-9, atol=1e-9)
        return regression(EXAMPLES[name], x, LEVELS)

    return network


def straight(x, t):
    return regression(data_up, x, 1 / t - 1)


@rows
def test_a_foreign_network_is_our_field(name):
    """Catches a clock, a sign, a scale or a factor of a row that isn't its
    convention's.
    """
    x = draw(5, 3)
    found = our_field(perfect(name), CONVENTIONS[name])(x, TIMES)
    assert_close(found, straight(x, TIMES), rtol=1e-9, atol=1e-9)


@rows
def test_our_field_is_a_foreign_network(name):
    """Catches the same in the other direction: both could be wrong together."""
    x = draw(5, 3)
    found = their_network(straight, CONVENTIONS[name])(x, asked_at(name))
    expected = regression(EXAMPLES[name], x, LEVELS)
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


def curved(x, t):
    t = t.view(-1, *[1] * (x.ndim - 1))
    return torch.tanh(2 * x + 3 * t) + 0.1 * t


@rows
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 5), (5, 2, 3)])
def test_there_and_back(name, shape):
    """Catches a time paired with a coordinate; two directions that don't undo each
    other.
    """
    row, x = CONVENTIONS[name], draw(*shape)
    found = our_field(their_network(curved, row), row)(x, TIMES)
    assert_close(found, curved(x, TIMES), rtol=1e-9, atol=1e-9)

    def foreign(x, r):
        return curved(x, r / abs(row.span[0] - row.span[1]))

    r = asked_at(name)
    found = their_network(our_field(foreign, row), row)(x, r)
    assert_close(found, foreign(x, r), rtol=1e-9, atol=1e-9)


@rows
def test_half_a_convention_is_noticed(name):
    """Catches a test above that another row would pass."""
    row, x = CONVENTIONS[name], draw(5, 3)
    for half in (
        replace(row, target=lambda r: [-n for n in row.target(r)]),
        replace(row, target=lambda r: (row.target(r)[0], 0.9 * row.target(r)[1])),
        replace(row, state=lambda r: [1.01 * n for n in row.state(r)]),
    ):
        found = our_field(perfect(name), half)(x, TIMES)
        assert not torch.isclose(found, straight(x, TIMES), rtol=1e-3).all()


@rows
def test_a_row_knows_its_ends(name):
    """Catches a span from data to noise, or the times of another."""
    row = CONVENTIONS[name]
    t0, t1 = row.t_span
    bar, first = math.prod(1 - beta for beta in BETAS), 1 - BETAS[0]
    ends = {
        "ddpm": [1 / (1 + math.sqrt(1 / left - 1)) for left in (bar, first)],
        "edm": [1 / 81, 1 / 1.002],
    }
    assert_close(torch.tensor([t0, t1]), torch.tensor(ends.get(name, [0.0, 1.0])))
    r = torch.tensor(row.span, dtype=torch.float64)
    assert_close(row.their_time(row.our_time(r)), r, rtol=0, atol=1e-6)


def test_ddpm_at_its_steps_and_between():
    """Catches an index that is off by one, the clean end lost, a clock that jumps."""
    t = torch.tensor([0.0, 20, 200, 999], dtype=torch.float64)
    a, s = ddpm_state(t)
    for r, left, deviation in zip(t.tolist(), a, s, strict=True):
        bar = math.prod(1 - beta for beta in BETAS[: int(r) + 1])
        assert_close(left.item(), math.sqrt(bar), rtol=1e-12, atol=0)
        assert_close(deviation.item(), math.sqrt(1 - bar), rtol=1e-9, atol=0)
    clean = torch.tensor([-1.0], dtype=torch.float64)
    assert [n.item() for n in ddpm_state(clean)] == [1.0, 0.0]
    r = torch.linspace(-0.9, 999, 2003, dtype=torch.float64)
    a, s = ddpm_state(r)
    assert (a.diff() < 0).all() and (s.diff() > 0).all()
    assert_close(a**2 + s**2, torch.ones_like(a))
    assert_close(ddpm_clock(a / (a + s)), r, rtol=0, atol=1e-6)
    middle = ddpm_state(torch.tensor(500.25, dtype=torch.float64))[0]
    low, high = (ddpm_state(torch.tensor(r).double())[0] for r in (500, 501))
    assert_close(middle.log(), 0.75 * low.log() + 0.25 * high.log())
    one = torch.tensor(1.0, dtype=torch.float64)
    assert ddpm_clock(one).item() == -1


def test_steps_are_asked_at_the_nearest():
    """Catches a network for whole numbers that is asked between them, or beyond its
    last.
    """
    seen = []

    def network(x, r):
        seen.append(r.tolist())
        return x

    row = CONVENTIONS["ddpm"]
    close = torch.tensor([600.4, 600.6, 2.3, 999.0, 0.0], dtype=torch.float64)
    exact = row.our_time(close)
    our_field(network, row)(draw(5, 3), exact)
    outside = torch.tensor([0.003, 0.001, 0.9999, 1.0, 0.5]).double()
    our_field(network, row)(draw(5, 3), outside)
    assert seen[0] == [600, 601, 2, 999, 0]
    assert seen[1][:4] == [999, 999, 0, 0]
    assert row.their_time(exact).tolist() == seen[0]
    smooth = replace(row, steps=False)
    assert_close(smooth.their_time(exact)[0].item(), 600.4, rtol=1e-9, atol=0)


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
def test_edm_of_another_deviation(deviation):
    """Catches a deviation that the row forgets, in one of its places; another span."""
    row, x = edm(deviation), draw(5, 3)

    def example(data, noise, level):
        return preconditioned(data, noise, level, deviation)

    found = their_network(straight, row)(x, LEVELS.log() / 4)
    assert_close(found, regression(example, x, LEVELS), rtol=1e-9, atol=1e-9)
    assert_close(row.t_span, (1 / 81, 1 / 1.002), rtol=1e-12, atol=0)


@rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_and_precision_follow_the_points(name, dtype):
    """Catches a number treated unlike a tensor, a result in another precision."""
    row, x = CONVENTIONS[name], draw(5, 3, dtype=dtype)
    t = TIMES[2].item()
    r = asked_at(name, LEVELS[2:3]).item()
    network, field = their_network(curved, row), our_field(curved, row)
    whole = torch.full((5,), r, dtype=dtype)
    for time in (r, torch.tensor(r, dtype=torch.float64), whole):
        assert_close(network(x, time), network(x, whole))
        assert network(x, time).dtype == dtype
    whole = torch.full((5,), t, dtype=dtype)
    for time in (t, torch.tensor(t, dtype=torch.float64), whole):
        assert field(x, time).dtype == dtype
        assert_close(field(x, time), field(x, whole), rtol=1e-4, atol=1e-4)
    if row.steps:
        assert_close(network(x, int(r)), network(x, r))
        assert_close(network(x, torch.full((5,), int(r))), network(x, r))


@rows
def test_a_number_outside_is_refused(name):
    """Catches a network asked, without a word, where it was not trained."""
    row, x = CONVENTIONS[name], draw(5, 3)
    field, (t0, t1) = our_field(curved, row), row.t_span
    for t in (t0, 0.5, t1) if t0 > 0 else (0.5, t1):
        assert field(x, t).shape == x.shape
    for t in (t0 / 2, (1 + t1) / 2):
        if not t0 <= t <= t1:
            with pytest.raises(ValueError, match=r"t must lie in the row's t_span \("):
                field(x, t)
            assert field(x, torch.tensor(t)).shape == x.shape
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
        field(x, 1.5)


LINE = CONVENTIONS["paper"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"clock": lambda t: 1 - t}, "clock must undo .*off by 1"),
        ({"clock": lambda t: 1.001 * t}, "clock must undo .*off by 0.001"),
        ({"clock": lambda t: t / 0}, "clock must undo"),
        ({"span": (1, 0)}, r"span must go from noise to data, got \(1, 0\)"),
        ({"span": (0, 2)}, "state must not be negative"),
        ({"state": lambda r: (r - 0.5, 1.5 - r)}, "state must not be negative"),
        ({"state": lambda r: (0.0, 0.0)}, r"state must not be .*\(0, 0\)"),
        ({"state": lambda r: (r / 0, 1 - r)}, "must be finite on span"),
        ({"target": lambda r: (math.nan, 1.0)}, "must be finite on span"),
        ({"target": lambda r: (r, 1 - r)}, "target must say more than the point"),
        ({"target": lambda r: (0.0, 0.0)}, "target must say more than the point"),
    ],
)
def test_a_row_that_is_none_is_refused(entry, said):
    """Catches half a switch that nobody notices before the samples are looked at."""
    with pytest.raises(ValueError, match=said):
        replace(LINE, **entry)
    assert isinstance(replace(LINE), Convention)


def test_wrong_input_is_refused():
    """Catches a broadcast, another precision, or times for another batch, in
    silence.
    """
    x = draw(5, 3)
    network, field = their_network(curved, LINE), our_field(curved, LINE)
    for r in (torch.rand(3), torch.rand(5, 1)):
        with pytest.raises(ValueError, match=r"r must be a number or have shape \(5,"):
            network(x, r)
    with pytest.raises(TypeError, match=r"x must be floating point, got torch.int64"):
        network(x.long(), 0.5)
    with pytest.raises(TypeError, match=r"x must be floating point, got torch.int64"):
        field(x.long(), 0.5)
    for deviation in (0.0, -0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="sigma_data must be positive, got"):
            edm(deviation)
    for wrong, error in (
        (lambda x, t: x[:, :1], ValueError),
        (lambda x, t: x.float(), TypeError),
        (lambda x, t: None, TypeError),
    ):
        with pytest.raises(error, match=r"^the network must return"):
            our_field(wrong, LINE)(x, 0.5)
        with pytest.raises(error, match=r"^the field must return"):
            their_network(wrong, LINE)(x, 0.5)
