"""Every name of the package on a CUDA device, beside the CPU.

Closed forms are tested more closely in test_devices.py, in both dtypes and against one
sample at a time. Here nothing may be missing: a name without a row in CASES fails on
any machine. The rows run on the CPU as well, so that they are right when a GPU comes.
"""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import flowbook
from flowbook import (
    MLP,
    CosinePath,
    CustomPath,
    OTPath,
    UNet,
    VEPath,
    VPPath,
    cfm_loss,
    convert,
    sample,
    solve,
    train,
)
from flowbook.bits import bits_per_dim, dequantize
from flowbook.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from flowbook.comparison import noise_loss, score_loss
from flowbook.conversions import PREDICTIONS
from flowbook.likelihood import divergence
from flowbook.losses import fm_loss, loss_floor
from flowbook.marginal import EmpiricalMarginal, MixtureMarginal
from flowbook.metrics import (
    calibrated_distance,
    distance_null,
    energy_distance,
    energy_distance_null,
    frechet_distance,
    sliced_wasserstein,
)
from flowbook.notation import rescale_clock, reverse_clock
from flowbook.sampling import time_grid
from flowbook.solvers import RK4, Euler, Midpoint
from flowbook.toy import GaussianMixture, sample_moons
from flowbook.translator import (
    CONVENTIONS,
    ddpm_clock,
    ddpm_state,
    our_field,
    their_network,
)

from ..given import draw

DEVICES = (
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
)
on_devices = pytest.mark.parametrize("device", DEVICES)
only_cuda = pytest.mark.parametrize("device", DEVICES[1:])


def field(x, t):
    return t.view(-1, *[1] * (x.ndim - 1)) * x.sin() - 0.5 * x


def times(device):
    return torch.linspace(0.1, 0.8, 5, dtype=torch.float64, device=device)


def mixture(device):
    return GaussianMixture(
        torch.tensor([0.25, 0.75], dtype=torch.float64),
        torch.tensor([[-1.0, 0.5, 0.25], [1.0, 0.0, -0.75]], dtype=torch.float64),
        torch.eye(3, dtype=torch.float64).repeat(2, 1, 1),
    ).to(torch.float64, device)


def with_weights(make, device):
    """A network with the same weights on every device, none of them zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.05)
    return model.to(device)


# --- a row for every name ------------------------------------------------------------


def a_path(path):
    """Every method of a path: what it makes of points and times there."""

    def on(device):
        x, x1 = draw(5, 3, device=device), draw(5, 3, seed=1, device=device)
        t = times(device)
        made = path.interpolate(x, x1, t)
        methods = (path.velocity, path.inverse, path.score, path.log_prob)
        others = [method(x, t, x1) for method in methods]
        return made.xt, made.ut, made.t, *others, path.prior_log_prob(x)

    return on


def conversions(device):
    x, value = draw(5, 3, device=device), draw(5, 3, seed=1, device=device)
    t = times(device)
    return tuple(
        convert(value, x, t, OTPath(0.1), source, goal)
        for source, goal in itertools.permutations(PREDICTIONS, 2)
    )


def a_loss(loss):
    def on(device):
        t = times(device)
        x0, x1 = draw(5, 3, device=device), draw(5, 3, seed=1, device=device)
        return loss(field, VPPath(), x1, t=t, x0=x0)

    return on


def a_distance(distance):
    def on(device):
        return distance(draw(8, 3, device=device), draw(6, 3, seed=1, device=device))

    return on


def sliced(x, y):
    """One dimension, where every direction gives the same: no randomness to compare."""
    return sliced_wasserstein(x[:, :1], y[:, :1], projections=4)


def a_null(name):
    """Random splits differ between devices; they may not leave the device."""

    def on(device):
        x, same = draw(8, 3, device=device), {"repeats": 3}
        g = torch.Generator(device).manual_seed(0)
        if name == "energy_distance_null":
            values = energy_distance_null(x, 4, 4, generator=g, **same)
        else:
            values = distance_null(energy_distance, x, 4, 4, generator=g, **same)
        return (values >= 0).double(), values.new_tensor(values.shape)

    return on


def a_judge(device):
    x, new = draw(20, 3, device=device), draw(6, 3, seed=1, device=device)
    g = torch.Generator(device).manual_seed(0)
    judge = calibrated_distance(energy_distance, x, new, 5, repeats=3, generator=g)
    return torch.tensor(float(judge(new[:5]) >= 0), device=device)


def a_few_steps(device, **settings):
    """A few steps: batches and noise differ between devices, so only losses' shape."""
    model = MLP(3, width=8).to(device)
    g = torch.Generator(device).manual_seed(0)
    data = draw(64, 3, device=device).float()
    settings = {"steps": 3, "batch_size": 16, "progress": False, **settings}
    return train(model, OTPath(), data, generator=g, **settings)


def training(device):
    run = a_few_steps(device)
    weights = [p for p in run.ema.parameters()]
    assert all(p.device.type == device and p.isfinite().all() for p in weights)
    return run.losses.isfinite().double()


def checkpoint(device, folder):
    """What is written on one device is read on any."""
    tree = {"x": draw(5, 3, device=device), "step": 3}
    save_checkpoint(folder, 3, tree)
    path, found = latest_checkpoint(folder)
    assert load_checkpoint(path)["step"] == found["step"] == 3
    return found["x"].to(device)


def of_network(make, *shape, **settings):
    def on(device):
        model = with_weights(make, device)
        x, t = draw(2, *shape, device=device), draw(2, seed=1, device=device).sigmoid()
        labels = {k: v.to(device) for k, v in settings.items()}
        return model(x, t, **labels).detach()

    return on


def of_law(make, *names):
    def on(device):
        x, law = draw(5, 3, device=device), make(device)
        t = times(device)
        return tuple(getattr(law, name)(x, t) for name in names)

    return on


def a_floor(device):
    law = MixtureMarginal(OTPath(0.1), mixture(device))
    x0, x1 = draw(5, 3, device=device), draw(5, 3, seed=1, device=device)
    found = loss_floor(OTPath(0.1), law, x1, t=times(device), x0=x0)
    return torch.as_tensor(found.value, device=device)


def levels(device):
    return torch.arange(10, device=device).view(2, 5)


def spread(device):
    g = torch.Generator(device).manual_seed(0)
    x = dequantize(levels(device), 16, generator=g)
    bins = ((x + 1) * 8).floor().long()
    return (bins == levels(device)).double()


def bits(device):
    return bits_per_dim(draw(5, device=device), 3)


def ends(run):
    return run.x, run.nfe.double(), run.t


def moved(device):
    return ends(solve(field, draw(5, 3, device=device), RK4(3)))


def walked(solver):
    def on(device):
        run = solve(field, draw(5, 3, device=device), solver, trajectory=True)
        return *ends(run), run.trajectory

    return on


def adaptive(device):
    return ends(solve(field, draw(5, 3, device=device)))[:2]


def moons(device):
    g = torch.Generator(device).manual_seed(0)
    points = sample_moons(64, generator=g)
    return (points.abs() < 10).double()


def clocks(wrap):
    def on(device):
        return wrap(field)(draw(5, 3, device=device), 0.25)

    return on


def marginal(device):
    data = draw(7, 3, seed=2, device=device)
    return EmpiricalMarginal(OTPath(0.1), data)


def translated(wrap):
    """A field from, or in, the words of every convention, at its times."""

    def on(device):
        x, t = draw(5, 3, device=device), times(device)
        return tuple(
            wrap(field, row)(x, t if wrap is our_field else row.their_time(t))
            for row in CONVENTIONS.values()
        )

    return on


CUSTOM = CustomPath(lambda t: t**2, lambda t: 2 - t)
LAW = ("velocity", "score", "log_prob", "posterior_mean", "divergence")
CASES = {
    "convert": conversions,
    "OTPath": a_path(OTPath(0.1)),
    "VPPath": a_path(VPPath()),
    "VEPath": a_path(VEPath(0.01, 10.0)),
    "CosinePath": a_path(CosinePath()),
    "CustomPath": a_path(CUSTOM),
    "cfm_loss": a_loss(cfm_loss),
    "noise_loss": a_loss(noise_loss),
    "score_loss": a_loss(score_loss),
    "loss_floor": a_floor,
    "fm_loss": lambda device: fm_loss(
        field, marginal(device), draw(5, 3, device=device), 0.25
    ),
    "EmpiricalMarginal": of_law(marginal, *LAW),
    "MixtureMarginal": of_law(
        lambda device: MixtureMarginal(VPPath(), mixture(device)), *LAW
    ),
    "GaussianMixture": lambda device: (
        mixture(device).log_prob(draw(5, 3, device=device)),
        mixture(device).score(draw(5, 3, device=device)),
    ),
    "divergence": lambda device: divergence(field, draw(5, 3, device=device), 0.25),
    "log_prob": lambda device: flowbook.log_prob(
        field, draw(5, 3, device=device), solver=RK4(2)
    ),
    "Exact": lambda device: divergence(
        field, draw(5, 3, device=device), 0.25, flowbook.Exact(chunk=2)
    ),
    "Hutchinson": lambda device: divergence(  # signs are exact on 2x
        lambda x, t: 2 * x, draw(5, 3, device=device), 0.25, flowbook.Hutchinson(2)
    ),
    "Euler": walked(Euler(3)),
    "Midpoint": walked(Midpoint(3)),
    "Heun": walked(flowbook.Heun(3)),
    "RK4": walked(RK4(3)),
    "Dopri5": walked(flowbook.Dopri5(grid=[0, 0.3, 1])),
    "solve": moved,
    "Solution": adaptive,
    "sample": lambda device: sample(field, draw(5, 3, device=device), Midpoint(3)),
    "time_grid": lambda device: sample(
        field, draw(5, 3, device=device), Midpoint(grid=time_grid("cosine", 3))
    ),
    "reverse_clock": clocks(reverse_clock),
    "rescale_clock": clocks(partial(rescale_clock, scale=2.0)),
    "our_field": translated(our_field),
    "their_network": translated(their_network),
    "ddpm_state": lambda device: ddpm_state(800 * times(device)),
    "ddpm_clock": lambda device: ddpm_clock(times(device)),
    "MLP": of_network(lambda: MLP(3, width=8), 3),
    "UNet": of_network(
        lambda: UNet(1, width=8, classes=3), 1, 8, 8, y=torch.tensor([2, 0])
    ),
    "train": training,
    "energy_distance": a_distance(energy_distance),
    "sliced_wasserstein": a_distance(sliced),
    "frechet_distance": a_distance(frechet_distance),
    "distance_null": a_null("distance_null"),
    "energy_distance_null": a_null("energy_distance_null"),
    "calibrated_distance": a_judge,
    "sample_moons": moons,
    "dequantize": spread,
    "bits_per_dim": bits,
}


BESIDES = {  # of the modules: what makes or reads tensors on a device, too
    *("EmpiricalMarginal", "GaussianMixture", "MixtureMarginal", "sample_moons"),
    *("Solution", "time_grid", "divergence", "rescale_clock", "reverse_clock"),
    *("fm_loss", "loss_floor", "noise_loss", "score_loss"),
    *("our_field", "their_network", "ddpm_state", "ddpm_clock"),
    *("bits_per_dim", "dequantize", "calibrated_distance", "distance_null"),
    *("energy_distance", "energy_distance_null"),
    *("frechet_distance", "sliced_wasserstein"),
}


def test_no_name_is_missing():
    """Catches a new export that nobody has run on a GPU, and a row that is gone."""
    assert set(flowbook.__all__) | BESIDES == set(CASES)


@on_devices
@pytest.mark.parametrize("name", CASES)
def test_as_on_the_cpu(name, device):
    """Catches a tensor left on the CPU, or another result on the GPU than there."""
    expected, got = CASES[name]("cpu"), CASES[name](device)
    expected, got = (r if isinstance(r, tuple) else (r,) for r in (expected, got))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.device.type == device
        # a few hundred roundings of float64, of numbers up to a few hundred
        assert_close(ours.cpu(), theirs, rtol=1e-11, atol=1e-11)


@on_devices
def test_checkpoints_pass_between_devices(device, tmp_path):
    """Catches weights that only come back on the device that wrote them."""
    assert_close(checkpoint(device, tmp_path).cpu(), draw(5, 3), rtol=0, atol=0)


# --- what only a GPU has --------------------------------------------------------------


@on_devices
@pytest.mark.parametrize("precision", ("bf16", "fp16"))
def test_half_precision_trains(precision, device):
    """Catches weights or averages that end up in half precision, or a scaler unused."""
    if (device, precision) == ("cpu", "fp16"):
        pytest.skip("a CPU's fp16 has no scaler")
    run = a_few_steps(device, precision=precision, steps=20)
    assert run.losses.isfinite().all()
    assert {p.dtype for p in run.ema.parameters()} == {torch.float32}


@only_cuda
def test_compiled_training_is_training(device):
    """Catches a compiled step that trains on other numbers."""
    plain, compiled = (
        a_few_steps(device, precision="no", compile=c) for c in (False, True)
    )
    assert_close(compiled.losses, plain.losses, rtol=1e-4, atol=1e-4)


@only_cuda
def test_fixed_steps_wait_only_at_the_ends(device):
    """Catches a look at values between the steps: each makes the GPU wait."""
    x, waits = draw(5, 3, device=device), []

    def watched(x, t):  # from the first evaluation on nobody may look
        torch.cuda.set_sync_debug_mode("error")
        waits.append(t)
        return field(x, t) if len(waits) < 12 else _relaxed(x, t)

    def _relaxed(x, t):  # the last evaluation: afterwards the result is looked at
        v = field(x, t)
        torch.cuda.set_sync_debug_mode("default")
        return v

    try:
        sample(watched, x, RK4(3))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 12


@only_cuda
def test_a_path_and_its_loss_never_wait(device):
    """Catches a check of values, or a number moved to the GPU, in a training step."""
    x0, x1 = draw(5, 3, device=device), draw(5, 3, seed=1, device=device)
    t = torch.rand(5, device=device, dtype=torch.float64)
    cfm_loss(field, VPPath(), x1, t=t, x0=x0)  # warm
    torch.cuda.set_sync_debug_mode("error")
    try:
        for path in (OTPath(), VPPath(), VEPath(0.01, 10.0), CosinePath()):
            cfm_loss(field, path, x1, t=t, x0=x0)
            convert(x0, x1, t, path, "velocity", "score")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@only_cuda
@pytest.mark.parametrize("precision", ("no", "bf16"))
def test_a_training_step_never_waits(precision, device):
    """Catches a look at the loss or a gradient in each step: 1 in 50 may wait."""
    state = {}

    def rate(step):  # asked for in each step; the first ones may warm up
        state["step"] = step
        mode = "error" if 5 <= step < 40 else "default"
        torch.cuda.set_sync_debug_mode(mode)
        return 1e-3

    try:
        a_few_steps(
            device, steps=45, batch_size=1, lr=rate, precision=precision, clip=1.0
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state["step"] == 44


@only_cuda
def test_a_compiled_field_samples_by_cuda_graphs(device):
    """Catches a sampler that keeps what the next replay overwrites."""
    model = with_weights(lambda: MLP(3, width=8), device).float().eval()
    model.requires_grad_(False)
    x0 = draw(5, 3, device=device).float()
    compiled = torch.compile(model, mode="reduce-overhead")
    for solver in (Euler(5), Midpoint(5)):
        expected = sample(model, x0, solver)
        for _ in range(3):  # the third is a replay
            got = sample(compiled, x0, solver)
        assert_close(got, expected, rtol=1e-4, atol=1e-4)
