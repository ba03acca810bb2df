"""What enters from outside: times, and what a caller's field returns, in two tables."""

import importlib
import inspect
import itertools
import math
import pkgutil

import pytest
import torch
from torch.func import jacrev, jvp, vmap

import flowbook
from flowbook.comparison import as_field, noise_loss, score_loss
from flowbook.continuity import continuity_residual, rate_of_mean
from flowbook.conversions import PREDICTIONS, convert
from flowbook.fields import divergence_free_field, field_from_cdf
from flowbook.likelihood import (
    divergence,
    log_prob,
    standard_normal_log_prob,
    transport,
    velocity_and_divergence,
)
from flowbook.losses import cfm_loss, fm_loss, loss_floor
from flowbook.marginal import EmpiricalMarginal, MixtureMarginal
from flowbook.networks import MLP
from flowbook.notation import (
    ask,
    expand_time,
    require_like,
    rescale_clock,
    reverse_clock,
    time_per_sample,
)
from flowbook.paths import CosinePath, GaussianFlow, OTPath, VPPath
from flowbook.sampling import sample
from flowbook.solvers import RK4, Euler, Heun, Midpoint, solve
from flowbook.toy import GaussianMixture
from flowbook.translator import CONVENTIONS, our_field, their_network
from flowbook.unet import UNet

from ..given import seeded

B, D = 5, 3
X = torch.linspace(-1, 1, B * D).view(B, D)
X1 = X.flip(0) ** 2
PATH = OTPath(0.1)
MIXTURE = GaussianMixture(torch.ones(2) / 2, X[:2], torch.eye(D).expand(2, D, D))
LAWS = {"Empirical": EmpiricalMarginal(PATH, X1), "Mixture": None}
FLOW = GaussianFlow(PATH, X[0], torch.eye(D))
LAWS["Mixture"] = MixtureMarginal(PATH, MIXTURE)


def field(x, t):
    return t[:, None] * x.sin() - x


def gaussian(x, t):
    return standard_normal_log_prob(x * (1 + t[:, None]))


# --- times -----------------------------------------------------------------------

TAKE_A_TIME = {
    "time_per_sample": lambda t: time_per_sample(t, X),
    "expand_time": lambda t: expand_time(t, X),
    "ask": lambda t: ask(field, X, t),
    "reverse_clock": lambda t: reverse_clock(field)(X, t),
    "rescale_clock": lambda t: rescale_clock(field, 2.0)(X, t),
    "rate_of_mean": lambda t: rate_of_mean(lambda x: x.sum(1), field, X, t),
    "continuity_residual": lambda t: continuity_residual(gaussian, field, X, t),
    "field_from_cdf": lambda t: field_from_cdf(lambda x, t: (x + t).sigmoid())(
        X[:, 0], t
    ),
    "velocity_and_divergence": lambda t: velocity_and_divergence(field, X, t),
    "divergence": lambda t: divergence(field, X, t),
    "cfm_loss": lambda t: cfm_loss(field, PATH, X1, t=t, x0=X),
    "fm_loss": lambda t: fm_loss(field, LAWS["Empirical"], X, t),
    "loss_floor": lambda t: loss_floor(PATH, LAWS["Empirical"], X1, t=t, x0=X),
    "noise_loss": lambda t: noise_loss(field, PATH, X1, t=t, x0=X),
    "score_loss": lambda t: score_loss(field, PATH, X1, t=t, x0=X),
    "GaussianPath.interpolate": lambda t: PATH.interpolate(X, X1, t),
    "GaussianPath.velocity": lambda t: PATH.velocity(X, t, X1),
    "GaussianPath.inverse": lambda t: PATH.inverse(X, t, X1),
    "GaussianPath.score": lambda t: PATH.score(X, t, X1),
    "GaussianPath.log_prob": lambda t: PATH.log_prob(X, t, X1),
    "convert": lambda t: convert(X1, X, t, PATH, "velocity", "score"),
    "as_field": lambda t: as_field(field, PATH, "noise")(X, t),
    "our_field": lambda t: our_field(field, CONVENTIONS["paper"])(X, t),
    "GaussianFlow.map": lambda t: FLOW.map(X, t),
    "GaussianFlow.velocity": lambda t: FLOW.velocity(X, t),
    "MLP.forward": lambda t: MLP(D, width=8)(X, t),
    "UNet.forward": lambda t: UNet(1, width=8)(X.new_zeros(B, 1, 8, 8), t),
    **{
        f"convert, {names}": lambda t, names=names: convert(X1, X, t, PATH, *names)
        for names in itertools.permutations(PREDICTIONS, 2)
    },
    **{
        f"{kind}Marginal.{name}": lambda t, law=law, name=name: getattr(law, name)(X, t)
        for kind, law in LAWS.items()
        for name in (
            *("velocity", "score", "log_prob", "posterior_mean", "divergence"),
            "posterior",
        )
    },
}
FORMULAS = {  # of a tensor of times, without points: elementwise, and on any clock
    *("time_features", "loss_weight", "factors"),
    *("ddpm_clock", "Convention.their_time"),
    *("kinetic_energy", "straightness"),
    *("euler_step", "midpoint_step", "heun_step", "rk4_step"),
}


def test_no_function_that_takes_a_time_is_missing():
    """Catches a new function with an argument t that nobody put into the table."""
    named = set()
    for name in (m.name for m in pkgutil.iter_modules(flowbook.__path__)):
        module = importlib.import_module(f"flowbook.{name}")
        for public in getattr(module, "__all__", []):
            found = getattr(module, public)
            if getattr(found, "_is_protocol", False):
                continue  # it says what others do
            methods = vars(found).items() if inspect.isclass(found) else [("", found)]
            for method, function in methods:
                if not inspect.isfunction(function) or method.startswith("_"):
                    continue
                if "t" in inspect.signature(function).parameters:
                    named.add(f"{public}.{method}".strip("."))
    schedules = {n for n in named if n.endswith(".schedule")}
    assert named - schedules - FORMULAS <= set(TAKE_A_TIME)
    assert len(named - schedules) > 30 and len(schedules) > 5


@pytest.mark.parametrize("name", TAKE_A_TIME)
@pytest.mark.parametrize(
    ("t", "got"),
    [
        (1.5, "1.5"),
        (torch.tensor(1.5), "1.5"),
        (torch.tensor(-0.5, requires_grad=True), "-0.5"),
        (torch.tensor([0.5, 0.5, 1.5, 0.5, 0.5]), "values from 0.5 to 1.5"),
        (torch.tensor([0.5, 0.5, -0.5, 0.5, 0.5]), "values from -0.5 to 0.5"),
        (torch.tensor([0.5, math.nan, 0.5, 0.5, 0.5]), "values from nan to nan"),
        (torch.tensor(math.nan), "nan"),
        (torch.full((B,), 1 + 1e-12, dtype=torch.float64), "values from 1.0"),
    ],
)
def test_a_time_outside_is_refused(name, t, got):
    """Catches finite garbage from times that no path has; a rounding that hides it."""
    with pytest.raises(ValueError, match=rf"^t must lie in \[0, 1\], got {got}"):
        TAKE_A_TIME[name](t)


@pytest.mark.parametrize("name", TAKE_A_TIME)
def test_a_time_inside_is_taken(name):
    """Catches a table whose rows fail for another reason; times with a gradient."""
    for t in (0.5, torch.tensor(0.5), torch.linspace(0.1, 0.9, B).requires_grad_()):
        TAKE_A_TIME[name](t)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_leaves_no_time_outside(dtype):
    """Catches 1 + 1 ulp from what the package itself makes of times in [0, 1]."""

    def looks(x, t):
        return time_per_sample(t, x)[:, None] * x

    u = torch.rand(4000, generator=seeded(0), dtype=dtype)
    ends = u.new_tensor([0, 1, torch.finfo(dtype).eps, 1 - torch.finfo(dtype).eps / 2])
    u = torch.cat([ends, u])
    x = u[:, None]
    for first, last in ((0.0, 1.0), (1e-5, 1.0), (0.3, 1.0), (0.0, 1 - 1e-5)):
        time_per_sample(first + (last - first) * u, x)  # as `cfm_loss` draws
        for start, end in ((first, last), (last, first)):
            for method in (Euler, Midpoint, Heun, RK4):
                for steps in (1, 3, 7, 49):
                    solve(looks, x[:3], method(steps), t0=start, t1=end)
            if dtype != torch.bfloat16:
                solve(looks, x[:3], t0=start, t1=end)
    time_per_sample(1 - u, x)
    time_per_sample((torch.arange(len(u)) + u) / len(u), x)  # as "stratified" does
    time_per_sample(u.double(), x.float())
    t = u[:, None]
    assert reverse_clock(reverse_clock(looks))(t, u).shape == t.shape


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # jvp's
def test_what_cannot_be_read_is_not_read():
    """Catches torch.func, torch.compile or a meta tensor that a look at t breaks."""
    t = torch.linspace(0.1, 0.9, B)

    def moved(t):
        return PATH.interpolate(X, X1, t).xt

    assert vmap(moved)(torch.stack([t, t])).shape == (2, B, D)
    assert vmap(moved)(t).shape == (B, B, D)
    _, slope = jvp(moved, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(slope, PATH.interpolate(X, X1, t).ut)
    by_time = jacrev(moved)(t)  # (B, D, B)
    torch.testing.assert_close(by_time.diagonal(dim1=0, dim2=2).mT, slope)
    each = vmap(jacrev(moved))(torch.stack([t, t]))
    torch.testing.assert_close(each[1], by_time)
    meta = time_per_sample(torch.empty(B, device="meta"), X.to("meta"))
    assert meta.shape == (B,) and meta.device.type == "meta"
    assert time_per_sample(t[:0], X[:0]).shape == (0,)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["GaussianPath.interpolate", "convert", "cfm_loss", "MLP.forward"]
)
def test_one_graph(name):
    """Catches a graph that breaks at the look at t."""
    t = torch.linspace(0.1, 0.9, B)
    model = MLP(D, width=8)
    calls = {**TAKE_A_TIME, "MLP.forward": lambda t: model(X, t)}

    def compiled(t):
        made = calls[name](t)
        return made.xt if hasattr(made, "xt") else made

    found = torch.compile(compiled, fullgraph=True, backend="aot_eager")(t)
    torch.testing.assert_close(found, compiled(t))


# --- what a field returns ------------------------------------------------------------

CALL_A_FIELD = {
    "ask": lambda f: ask(f, X, 0.5),
    "solve, dopri5": lambda f: solve(f, X),
    "solve, euler": lambda f: solve(f, X, Euler(2)),
    "sample": lambda f: sample(f, X, Midpoint(2)),
    "velocity_and_divergence": lambda f: velocity_and_divergence(f, X, 0.5),
    "divergence": lambda f: divergence(f, X, 0.5),
    "transport": lambda f: transport(f, X),
    "transport, x with a gradient": lambda f: transport(f, X.clone().requires_grad_()),
    "log_prob": lambda f: log_prob(f, X),
    "rate_of_mean": lambda f: rate_of_mean(lambda x: x.sum(1), f, X, 0.5),
    "continuity_residual": lambda f: continuity_residual(gaussian, f, X, 0.5),
    "cfm_loss": lambda f: cfm_loss(f, PATH, X1),
    "fm_loss": lambda f: fm_loss(f, LAWS["Empirical"], X, 0.5),
    "fm_loss, marginal": lambda f: fm_loss(field, Law(f), X, 0.5),
    "loss_floor": lambda f: loss_floor(PATH, Law(f), X1),
    "noise_loss": lambda f: noise_loss(f, PATH, X1, t=X1[:, 0], x0=X),
    "score_loss": lambda f: score_loss(f, PATH, X1, t=X1[:, 0], x0=X),
    "as_field": lambda f: as_field(f, CosinePath(), "score")(X, X1[:, 0]),
    "our_field": lambda f: our_field(f, CONVENTIONS["pi0"])(X, X1[:, 0]),
    "their_network": lambda f: their_network(f, CONVENTIONS["sd3"])(X, 500.0),
    "divergence_free_field": lambda f: divergence_free_field(f, torch.zeros(D, D))(
        X, X1[:, 0]
    ),
    "reverse_clock": lambda f: reverse_clock(f)(X, 0.5),
    "rescale_clock": lambda f: rescale_clock(f, 2.0)(X, 0.5),
}


class Law:
    def __init__(self, velocity):
        self.velocity = velocity


@pytest.mark.parametrize("call", CALL_A_FIELD)
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda v: v.double(), TypeError),
        (lambda v: v.half(), TypeError),
        (lambda v: v.detach().numpy(), TypeError),
        (lambda v: None, TypeError),
        (lambda v: v.to("meta"), TypeError),
        (lambda v: v[:, :1], ValueError),
        (lambda v: v[0], ValueError),
        (lambda v: v[None], ValueError),
        (lambda v: v.sum(1), ValueError),
    ],
    ids=["double", "half", "numpy", "None", "meta", "column", "row", "more", "number"],
)
def test_a_field_of_another_kind_is_refused(call, wrong, error):
    """Catches a silent broadcast or upcast, and another error in another function."""
    with pytest.raises(error, match="must return"):
        CALL_A_FIELD[call](lambda x, t: wrong(field(x, t)))


@pytest.mark.parametrize("call", CALL_A_FIELD)
def test_a_field_like_its_points_is_taken(call):
    """Catches a table whose rows fail for another reason."""
    CALL_A_FIELD[call](field)


def test_like_comes_back():
    """Catches a copy returned, a message that does not name what came."""
    assert require_like(X1, X) is X1
    for result, error, said in (
        ([1.0], TypeError, "score must return a tensor, got list"),
        (
            X.double(),
            TypeError,
            "score must return torch.float32 on cpu, as x, got tor",
        ),
        (X.mT, ValueError, r"score must return shape \(5, 3\), as x, got \(3, 5\)"),
    ):
        with pytest.raises(error, match=f"^{said}"):
            require_like(result, X, "score")


# --- numbers that are none -----------------------------------------------------------


def test_where_nan_passes_and_where_it_is_refused():
    """Catches a NaN that spreads to other rows, or that a run of hours takes in."""
    x1 = X1.clone()
    x1[2, 1] = math.nan
    point = PATH.interpolate(X, x1, 0.5)
    good = torch.tensor([True, True, False, True, True])
    assert torch.equal(point.xt.isfinite().all(1), good)
    assert torch.equal(PATH.velocity(X, 0.5, x1).isfinite().all(1), good)
    assert cfm_loss(field, PATH, x1, t=0.5, x0=X).isnan()
    for refuse in (
        lambda: solve(field, x1),
        lambda: sample(field, x1),
        lambda: transport(field, x1),
        lambda: log_prob(field, x1),
        lambda: flowbook.train(MLP(D), VPPath(), x1, steps=1, progress=False),
        lambda: EmpiricalMarginal(PATH, x1),
    ):
        with pytest.raises(ValueError, match=r"must be finite, got 1 NaN"):
            refuse()
