"""The dictionary: each map against two equations, exact marginals, and its inverse."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch.autograd.functional import jacobian, jvp
from torch.testing import assert_close

from flowbook import conversions
from flowbook.conversions import (
    data_to_noise,
    data_to_score,
    data_to_velocity,
    noise_to_data,
    noise_to_score,
    noise_to_velocity,
    score_to_data,
    score_to_noise,
    score_to_velocity,
    velocity_to_data,
    velocity_to_noise,
    velocity_to_score,
)
from flowbook.notation import Schedule
from flowbook.schedules import CosinePath, OTPath, VEPath, VPPath
from flowbook.toy import skewed_mixture

KINDS = ("velocity", "score", "noise", "data")
NAMES = [f"{a}_to_{b}" for a, b in itertools.permutations(KINDS, 2)]
PATHS = [OTPath(), OTPath(0.1), VPPath(), VEPath(0.1, 5.0), CosinePath()]
SHAPES = [(5, 1), (5, 3), (5, 5), (5, 2, 3, 4)]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@dataclass(frozen=True)
class Crooked:
    """No coincidences: alpha, sigma and their derivatives all differ everywhere."""

    def schedule(self, t):
        return Schedule(0.1 + t**2, 1.5 - t, 2 * t, -torch.ones_like(t))


def exact(path, shape=(5, 3), dtype=torch.float64):
    """Predictions that belong together: made from data and noise, path by autodiff."""
    g = torch.Generator().manual_seed(7)
    data, noise = torch.randn((2, *shape), generator=g, dtype=dtype)
    t = torch.tensor([0.1, 0.35, 0.5, 0.7, 0.9], dtype=dtype)
    wide = t.view(-1, *[1] * (len(shape) - 1))

    def moved(s):
        alpha, sigma, _, _ = path.schedule(s)
        return alpha * data + sigma * noise

    x, velocity = jvp(moved, (wide,), (torch.ones_like(wide),))
    score = -noise / path.schedule(wide).sigma
    return x, t, dict(zip(KINDS, (velocity, score, noise, data), strict=True))


def convert(name, values, x, t, path):
    source, goal = name.split("_to_")
    return getattr(conversions, name)(values[source], x, t, path), values[goal]


@pytest.mark.parametrize("name", NAMES)
def test_map_solves_the_two_equations(name):
    """A sign, a factor, a divisor or a function and its derivative exchanged."""
    x, t, values = exact(Crooked())
    assert_close(*convert(name, values, x, t, Crooked()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_each_sample_has_its_own_time(name, shape):
    """Times not expanded: paired with coordinates, silently so where B = D."""
    x, t, values = exact(Crooked(), shape)
    assert_close(*convert(name, values, x, t, Crooked()))


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_map_and_its_inverse(name, path):
    """A map that is right for one path only; a pair that is wrong together is above."""
    x, t, values = exact(path)
    there, expected = convert(name, values, x, t, path)
    assert_close(there, expected)
    source, goal = name.split("_to_")
    back = getattr(conversions, f"{goal}_to_{source}")(there, x, t, path)
    assert_close(back, values[source])


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_exact_marginals_of_a_mixture(path):
    """A dictionary that is consistent, and about something else."""
    law, t = skewed_mixture(dtype=torch.float64), 0.4
    now = torch.tensor(t, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    x = torch.randn((7, 2), generator=g, dtype=torch.float64)

    def log_p(y, s):
        return law.noised(*path.schedule(s)[:2]).log_prob(y)

    y = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_p(y, now).sum(), y)
    u = score_to_velocity(score, x, t, path)
    # the continuity equation: d/dt log p along u is −div u
    _, along = jvp(log_p, (x, now), (u, torch.ones_like(now)))

    def field(z):
        z_score = law.noised(*path.schedule(now)[:2]).score(z)
        return score_to_velocity(z_score, z, t, path)

    div = jacobian(lambda z: field(z).sum(0), x).diagonal(dim1=0, dim2=2).sum(-1)
    assert_close(along, -div)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_number_and_tensor_times_agree(name, dtype):
    """A dtype that is not the points'; a number treated unlike a tensor."""
    x, _, values = exact(Crooked(), dtype=dtype)
    source = values[name.split("_to_")[0]]
    function = getattr(conversions, name)
    by_number = function(source, x, 0.3, Crooked())
    assert by_number.dtype == dtype and by_number.shape == x.shape
    batch = torch.full((5,), 0.3, dtype=dtype)
    assert_close(function(source, x, batch, Crooked()), by_number)
    assert_close(function(source, x, torch.tensor(0.3), Crooked()), by_number)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_through(name):
    """A detach, an in-place operation or a value read out of a tensor."""
    x, t, values = exact(Crooked())
    source = values[name.split("_to_")[0]].clone().requires_grad_()
    function = getattr(conversions, name)
    (factor,) = torch.autograd.grad(function(source, x, t, Crooked()).sum(), source)
    zero = torch.zeros_like(source)
    step = function(source, x, t, Crooked()) - function(zero, x, t, Crooked())
    assert_close(step.detach(), factor * source.detach())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_times_on_the_cpu_do_for_points_anywhere(name, device):
    """A schedule that stays behind on the CPU, or a result that does."""
    x, t, values = exact(Crooked())
    there = {kind: value.to(device) for kind, value in values.items()}
    assert_close(*convert(name, there, x.to(device), t, Crooked()))
    source, function = name.split("_to_")[0], getattr(conversions, name)
    by_number = function(there[source], x.to(device), 0.3, Crooked())
    assert_close(by_number.cpu(), function(values[source], x, 0.3, Crooked()))


@pytest.mark.parametrize("name", NAMES)
def test_a_number_is_read_once_and_a_tensor_never(name):
    """A guard that reads the points' device, so that a GPU has to be waited for."""
    seen = []

    class Watching(Crooked):
        def schedule(self, t):
            seen.append((t.shape, t.device.type))
            return super().schedule(t)

    x = torch.ones((5, 3), dtype=torch.float64, device="meta")
    function = getattr(conversions, name)
    assert function(x, x, 0.3, Watching()).shape == (5, 3)
    assert function(x, x, torch.tensor(0.3), Watching()).device.type == "meta"
    assert seen == [((), "cpu"), ((5, 1), "meta")]


NOISE_END = [noise_to_velocity, noise_to_data, score_to_velocity, score_to_data]
DATA_END = [
    velocity_to_score,
    noise_to_score,
    data_to_score,
    data_to_velocity,
    data_to_noise,
]


@pytest.mark.parametrize("path", [OTPath(), CosinePath()], ids=repr)
@pytest.mark.parametrize(
    "function, t", [(f, 0.0) for f in NOISE_END] + [(f, 1.0) for f in DATA_END]
)
def test_no_value_is_a_sentence_at_a_number_and_not_finite_at_a_tensor(
    function, t, path
):
    """A division by zero that is passed on."""
    x, _, values = exact(path)
    with pytest.raises(ValueError, match=f"no finite value at t = {t}: its factors"):
        function(values["noise"], x, t, path)
    with pytest.raises(ValueError, match="no finite value at t"):
        function(values["noise"], x, int(t), path)
    times = torch.full((5,), 0.5, dtype=torch.float64)
    times[2] = t
    out = function(values["noise"], x, times, path).isfinite().all(1)
    assert out.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("path", [OTPath(), CosinePath()], ids=repr)
def test_ends_at_which_there_is_a_value(path):
    """A guard that refuses too much, or a limit that is wrong."""
    x, _, values = exact(path)
    v, noise, data = (values[k] for k in ("velocity", "noise", "data"))
    speed = path.schedule(torch.zeros((), dtype=torch.float64)).dalpha
    fall = path.schedule(torch.ones((), dtype=torch.float64)).dsigma
    start = path.schedule(torch.zeros((), dtype=torch.float64)).dsigma
    last = path.schedule(torch.ones((), dtype=torch.float64)).dalpha
    assert_close(velocity_to_noise(v, x, 0.0, path), x)
    assert_close(velocity_to_score(v, x, 0.0, path), -x)
    assert_close(data_to_noise(data, x, 0.0, path), x)
    assert_close(data_to_score(data, x, 0.0, path), -x)
    assert_close(data_to_velocity(data, x, 0.0, path), speed * data + start * x)
    assert_close(velocity_to_data(v, x, 0.0, path), (v - start * x) / speed)
    assert_close(velocity_to_data(v, x, 1.0, path), x)
    assert_close(noise_to_data(noise, x, 1.0, path), x)
    assert_close(score_to_data(noise, x, 1.0, path), x)
    assert_close(score_to_noise(noise, x, 1.0, path), torch.zeros_like(x))
    assert_close(velocity_to_noise(v, x, 1.0, path), (v - last * x) / fall)
    assert_close(noise_to_velocity(noise, x, 1.0, path), last * x + fall * noise)


def test_vp_has_no_value_at_its_singular_end():
    """A NaN, or a finite number made of 0 times infinity."""
    x, _, values = exact(VPPath())
    for name in NAMES:
        source = values[name.split("_to_")[0]]
        function = getattr(conversions, name)
        if name in ("velocity_to_noise", "score_to_noise"):
            assert_close(function(source, x, 1.0, VPPath()), torch.zeros_like(x))
        elif name in ("noise_to_data", "score_to_data"):
            assert_close(function(source, x, 1.0, VPPath()), x)
        else:
            with pytest.raises(ValueError, match=r"no finite value at t = 1\.0"):
                function(source, x, 1.0, VPPath())


@dataclass(frozen=True)
class Growing(Crooked):
    """alpha = sigma = t: the turn is 0, the ratio of signal to noise stands still."""

    def schedule(self, t):
        return Schedule(t, t, torch.ones_like(t), torch.ones_like(t))


def test_without_a_turn_the_velocity_says_nothing():
    """A finite number made of a division by w = 0; u that still depends on the rest."""
    x, t, values = exact(Growing())
    assert_close(values["velocity"], x / t[:, None])
    for name in NAMES:
        source, goal = name.split("_to_")
        function = getattr(conversions, name)
        if source == "velocity":
            with pytest.raises(ValueError, match=r"no finite value at t = 0\.5"):
                function(values[source], x, 0.5, Growing())
        elif goal == "velocity":
            assert_close(function(0 * x, x, t, Growing()), x / t[:, None])
        else:
            assert_close(*convert(name, values, x, t, Growing()))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_refused(name):
    """A broadcast, a mixed dtype or a time out of range that passes in silence."""
    x, t, values = exact(Crooked())
    v, function = values["velocity"], getattr(conversions, name)
    with pytest.raises(ValueError, match=r"prediction \(5, 1\), x \(5, 3\)"):
        function(v[:, :1], x, t, Crooked())
    with pytest.raises(ValueError, match=r"prediction \(1, 3\), x \(5, 3\)"):
        function(v[:1], x, t, Crooked())
    with pytest.raises(TypeError, match=r"prediction torch.float32, x torch.float64"):
        function(v.float(), x, t, Crooked())
    with pytest.raises(TypeError, match="the prediction must be a tensor, got float"):
        function(1.0, x, t, Crooked())
    with pytest.raises(TypeError, match=r"x must be floating point, got torch.int64"):
        function(v, x.long(), t, Crooked())
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        function(v, x, t[:3], Crooked())
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
        function(v, x, 1.5, Crooked())


@pytest.mark.parametrize("name", NAMES)
def test_no_points_are_no_trouble(name):
    """A guard that reads the first sample of an empty batch."""
    empty = torch.zeros((0, 3), dtype=torch.float64)
    out = getattr(conversions, name)(empty, empty, 0.5, OTPath())
    assert out.shape == (0, 3)
