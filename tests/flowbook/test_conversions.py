"""The dictionary: each map against two equations, exact marginals, and its inverse."""

import itertools
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch.autograd.functional import jacobian, jvp
from torch.testing import assert_close

from flowbook.conversions import PREDICTIONS, convert, factors, require_prediction
from flowbook.notation import Schedule
from flowbook.paths import CosinePath, OTPath, VPPath
from flowbook.toy import skewed_mixture

from ..given import FIVE_PATHS, draw, seeded

MAPS = list(itertools.permutations(("velocity", "score", "noise", "data"), 2))

SHAPES = [(5, 1), (5, 3), (5, 5), (5, 2, 3, 4)]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@dataclass(frozen=True)
class Crooked:
    """No coincidences: alpha, sigma and their derivatives all differ everywhere."""

    def schedule(self, t):
        return Schedule(0.1 + t**2, 1.5 - t, 2 * t, -torch.ones_like(t))


def consistent(path, shape=(5, 3), dtype=torch.float64):
    """Predictions that belong together: made from data and noise, path by autodiff."""
    g = seeded(7)
    data, noise = torch.randn((2, *shape), generator=g, dtype=dtype)
    t = torch.tensor([0.1, 0.35, 0.5, 0.7, 0.9], dtype=dtype)
    wide = t.view(-1, *[1] * (len(shape) - 1))

    def moved(s):
        alpha, sigma, _, _ = path.schedule(s)
        return alpha * data + sigma * noise

    x, velocity = jvp(moved, (wide,), (torch.ones_like(wide),))
    score = -noise / path.schedule(wide).sigma
    return x, t, dict(zip(PREDICTIONS, (velocity, score, noise, data), strict=True))


twelve = pytest.mark.parametrize(("source", "goal"), MAPS)


@twelve
def test_map_solves_the_two_equations(source, goal):
    """Catches a sign, a factor, a divisor or a function and its derivative
    exchanged.
    """
    x, t, values = consistent(Crooked())
    assert_close(convert(values[source], x, t, Crooked(), source, goal), values[goal])


@pytest.mark.parametrize("shape", SHAPES)
@twelve
def test_each_sample_has_its_own_time(source, goal, shape):
    """Catches times not expanded: paired with coordinates, silently so where B = D."""
    x, t, values = consistent(Crooked(), shape)
    assert_close(convert(values[source], x, t, Crooked(), source, goal), values[goal])


@pytest.mark.parametrize("path", FIVE_PATHS, ids=repr)
@twelve
def test_map_and_its_inverse(source, goal, path):
    """Catches a map that is right for one path only; a pair that is wrong together
    is above.
    """
    x, t, values = consistent(path)
    there = convert(values[source], x, t, path, source, goal)
    assert_close(there, values[goal])
    assert_close(convert(there, x, t, path, goal, source), values[source])


@pytest.mark.parametrize("path", FIVE_PATHS, ids=repr)
def test_exact_marginals_of_a_mixture(path):
    """Catches a dictionary that is consistent, and about something else."""
    law, t = skewed_mixture(dtype=torch.float64), 0.4
    now = torch.tensor(t, dtype=torch.float64)
    x = draw(7, 2, seed=1)

    def log_p(y, s):
        return law.noised(*path.schedule(s)[:2]).log_prob(y)

    y = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_p(y, now).sum(), y)
    u = convert(score, x, t, path, "score", "velocity")
    # the continuity equation: d/dt log p along u is −div u
    _, along = jvp(log_p, (x, now), (u, torch.ones_like(now)))

    def field(z):
        z_score = law.noised(*path.schedule(now)[:2]).score(z)
        return convert(z_score, z, t, path, "score", "velocity")

    div = jacobian(lambda z: field(z).sum(0), x).diagonal(dim1=0, dim2=2).sum(-1)
    assert_close(along, -div)


@twelve
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_number_and_tensor_times_agree(source, goal, dtype):
    """Catches a dtype that is not the points'; a number treated unlike a tensor."""
    x, _, values = consistent(Crooked(), dtype=dtype)
    batch = torch.full((5,), 0.3, dtype=dtype)
    by_number, by_batch, by_scalar = (
        convert(values[source], x, t, Crooked(), source, goal)
        for t in (0.3, batch, torch.tensor(0.3))
    )
    assert by_number.dtype == dtype and by_number.shape == x.shape
    assert_close(by_batch, by_number)
    assert_close(by_scalar, by_number)


@twelve
def test_gradients_pass_through(source, goal):
    """Catches a detach, an in-place operation or a value read out of a tensor."""
    x, t, values = consistent(Crooked())
    value = values[source].clone().requires_grad_()
    made = convert(value, x, t, Crooked(), source, goal)
    (factor,) = torch.autograd.grad(made.sum(), value)
    none = convert(torch.zeros_like(value), x, t, Crooked(), source, goal)
    assert_close((made - none).detach(), factor * value.detach())


@pytest.mark.parametrize("device", DEVICES)
@twelve
def test_times_on_the_cpu_do_for_points_anywhere(source, goal, device):
    """Catches a schedule that stays behind on the CPU, or a result that does."""
    x, t, values = consistent(Crooked())
    value, there = values[source].to(device), x.to(device)
    made = convert(value, there, t, Crooked(), source, goal)
    assert_close(made, values[goal].to(device))
    by_number = convert(value, there, 0.3, Crooked(), source, goal)
    here = convert(values[source], x, 0.3, Crooked(), source, goal)
    assert_close(by_number.cpu(), here)


@twelve
def test_a_number_is_read_once_and_a_tensor_never(source, goal):
    """Catches a guard that reads the points' device, so that a GPU has to be waited
    for.
    """
    seen = []

    class Watching(Crooked):
        def schedule(self, t):
            seen.append((t.shape, t.device.type))
            return super().schedule(t)

    x = torch.ones((5, 3), dtype=torch.float64, device="meta")
    assert convert(x, x, 0.3, Watching(), source, goal).shape == (5, 3)
    made = convert(x, x, torch.tensor(0.3), Watching(), source, goal)
    assert made.device.type == "meta"
    assert seen == [((), "cpu"), ((5, 1), "meta")]


@pytest.mark.parametrize("path", FIVE_PATHS, ids=repr)
def test_single_precision_near_both_ends(path):
    """Catches a difference of two large numbers, or a product that leaves the range."""
    near = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3)
    t = torch.tensor([*near, *(1 - e for e in near), 1 - 6e-8], dtype=torch.float32)
    # B <= 10.05 of VP has three roundings, and half of it is an exponent: 15 of alpha
    # or 1 - alpha²; three schedules and six operations with them, each half an epsilon
    tolerance = (3 * (15 + 2) + 6) / 2 * torch.finfo(torch.float32).eps
    for source, goal in MAPS:
        found = torch.stack(factors(path, t, source, goal), 1)
        expected = [by_substitution(path, s, source, goal) for s in t.double()]
        expected = torch.tensor(expected, dtype=torch.float64)
        assert_close(found.double(), expected, rtol=tolerance, atol=0)


def by_substitution(path, t, source, goal):
    """k a + ell p = P and k s + ell q = Q, solved without rounding, in fractions."""
    a, s, da, ds = (Fraction(value.item()) for value in path.schedule(t))
    made_of = dict(velocity=(da, ds), score=(0, -1 / s), noise=(0, 1), data=(1, 0))
    (p, q), (P, Q) = made_of[source], made_of[goal]
    ell = (P - a / s * Q) / (p - a / s * q)
    return float((Q - ell * q) / s), float(ell)


NOISE_END = [(f, g) for f in ("noise", "score") for g in ("velocity", "data")]
DATA_END = [
    *((f, "score") for f in ("velocity", "noise", "data")),
    *(("data", g) for g in ("velocity", "noise")),
]


@pytest.mark.parametrize("path", [OTPath(), CosinePath()], ids=repr)
@pytest.mark.parametrize(
    ("source", "goal", "t"),
    [(*names, 0.0) for names in NOISE_END] + [(*names, 1.0) for names in DATA_END],
)
def test_no_value_is_a_sentence_at_a_number_and_not_finite_at_a_tensor(
    source, goal, t, path
):
    """Catches a division by zero that is passed on."""
    x, _, values = consistent(path)
    said = f"^{source} to {goal} has no finite value at t = {t}: its factors would be"
    with pytest.raises(ValueError, match=said):
        convert(values["noise"], x, t, path, source, goal)
    with pytest.raises(ValueError, match="no finite value at t"):
        convert(values["noise"], x, int(t), path, source, goal)
    times = torch.full((5,), 0.5, dtype=torch.float64)
    times[2] = t
    out = convert(values["noise"], x, times, path, source, goal).isfinite().all(1)
    assert out.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("path", [OTPath(), CosinePath()], ids=repr)
def test_ends_at_which_there_is_a_value(path):
    """Catches a guard that refuses too much, or a limit that is wrong."""
    x, _, values = consistent(path)
    v, noise, data = (values[k] for k in ("velocity", "noise", "data"))
    zero, one = torch.tensor([0.0, 1.0], dtype=torch.float64)
    _, _, speed, start = path.schedule(zero)
    _, _, last, fall = path.schedule(one)
    for t, source, goal, value, expected in (
        (0.0, "velocity", "noise", v, x),
        (0.0, "velocity", "score", v, -x),
        (0.0, "data", "noise", data, x),
        (0.0, "data", "score", data, -x),
        (0.0, "data", "velocity", data, speed * data + start * x),
        (0.0, "velocity", "data", v, (v - start * x) / speed),
        (1.0, "velocity", "data", v, x),
        (1.0, "noise", "data", noise, x),
        (1.0, "score", "data", noise, x),
        (1.0, "score", "noise", noise, torch.zeros_like(x)),
        (1.0, "velocity", "noise", v, (v - last * x) / fall),
        (1.0, "noise", "velocity", noise, last * x + fall * noise),
    ):
        assert_close(convert(value, x, t, path, source, goal), expected)


@twelve
def test_vp_has_no_value_at_its_singular_end(source, goal):
    """Catches a NaN, or a finite number made of 0 times infinity."""
    x, _, values = consistent(VPPath())
    value = values[source]
    if (source, goal) in (("velocity", "noise"), ("score", "noise")):
        made = convert(value, x, 1.0, VPPath(), source, goal)
        assert_close(made, torch.zeros_like(x))
    elif (source, goal) in (("noise", "data"), ("score", "data")):
        assert_close(convert(value, x, 1.0, VPPath(), source, goal), x)
    else:
        with pytest.raises(ValueError, match=r"no finite value at t = 1\.0"):
            convert(value, x, 1.0, VPPath(), source, goal)


@dataclass(frozen=True)
class Growing(Crooked):
    """alpha = sigma = t: the turn is 0, the ratio of signal to noise stands still."""

    def schedule(self, t):
        return Schedule(t, t, torch.ones_like(t), torch.ones_like(t))


def test_without_a_turn_the_velocity_says_nothing():
    """Catches a finite number made of a division by w = 0; u that still depends on
    the rest.
    """
    x, t, values = consistent(Growing())
    assert_close(values["velocity"], x / t[:, None])
    for source, goal in MAPS:
        if source == "velocity":
            with pytest.raises(ValueError, match=r"no finite value at t = 0\.5"):
                convert(values[source], x, 0.5, Growing(), source, goal)
        elif goal == "velocity":
            made = convert(0 * x, x, t, Growing(), source, goal)
            assert_close(made, x / t[:, None])
        else:
            made = convert(values[source], x, t, Growing(), source, goal)
            assert_close(made, values[goal])


@twelve
def test_wrong_input_is_refused(source, goal):
    """Catches a broadcast, a mixed dtype or a time out of range that passes in
    silence.
    """
    x, t, values = consistent(Crooked())
    v = values["velocity"]
    for error, said, value, point, when in (
        (ValueError, r"prediction \(5, 1\), x \(5, 3\)", v[:, :1], x, t),
        (ValueError, r"prediction \(1, 3\), x \(5, 3\)", v[:1], x, t),
        (TypeError, "prediction torch.float32, x torch.float64", v.float(), x, t),
        (TypeError, "the prediction must be a tensor, got float", 1.0, x, t),
        (TypeError, "x must be floating point, got torch.int64", v, x.long(), t),
        (ValueError, r"got shape \(3,\)", v, x, t[:3]),
        (ValueError, r"t must lie in \[0, 1\], got 1.5", v, x, 1.5),
    ):
        for same in (goal, source):  # nothing to convert is no excuse
            with pytest.raises(error, match=said):
                convert(value, point, when, Crooked(), source, same)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_prediction_into_itself(name):
    """Catches a name that goes in and comes out as another; a factor that is not 1."""
    x, _, values = consistent(VPPath())
    assert convert(values[name], x, 1.0, VPPath(), name, name) is values[name]
    assert require_prediction(name) == name
    t = torch.tensor([0.2, 0.5], dtype=torch.float64)
    k, ell = factors(Crooked(), t, name, name)
    assert_close(k, torch.zeros_like(t))
    assert_close(ell, torch.ones_like(t))


def test_another_name_is_refused():
    """Catches a misspelt prediction taken for another, or named by a bare KeyError."""
    x, t, _ = consistent(Crooked())
    said = "^a prediction is one of velocity, score, noise, data, got 'image'$"
    for source, goal in (("image", "data"), ("data", "image"), ("image", "image")):
        with pytest.raises(ValueError, match=said):
            convert(x, x, t, Crooked(), source, goal)
        with pytest.raises(ValueError, match=said):
            factors(Crooked(), t, source, goal)


@twelve
def test_no_points_are_no_trouble(source, goal):
    """Catches a guard that reads the first sample of an empty batch."""
    empty = torch.zeros((0, 3), dtype=torch.float64)
    assert convert(empty, empty, 0.5, OTPath(), source, goal).shape == (0, 3)
