"""Every solver against its tableau, a scalar twin, and closed forms."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowbook.solvers import (
    RK4,
    Dopri5,
    Euler,
    FixedSteps,
    Heun,
    Midpoint,
    Solution,
    solve,
)

from ..given import F64, draw, swirl

FIXED = [Euler, Midpoint, Heun, RK4]
TABLEAUX = {  # c, A, b, from the textbook
    Euler: ([0], [[]], [1]),
    Midpoint: ([0, 1 / 2], [[], [1 / 2]], [0, 1]),
    Heun: ([0, 1], [[], [1]], [1 / 2, 1 / 2]),
    RK4: (
        [0, 1 / 2, 1 / 2, 1],
        [[], [1 / 2], [0, 1 / 2], [0, 0, 1]],
        [1 / 6, 1 / 3, 1 / 3, 1 / 6],
    ),
}
# the last two rows of Dormand and Prince's table are the weights of order 5 and 4
DP_C = [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1]
DP_A = [
    [],
    [1 / 5],
    [3 / 40, 9 / 40],
    [44 / 45, -56 / 15, 32 / 9],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
]
DP_4 = [5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40]


def rms(v, scale):
    return math.sqrt(sum((a / s) ** 2 for a, s in zip(v, scale, strict=True)) / len(v))


def scalar_dopri5(f, x, t0, t1, rtol, atol):
    """The same method for one sample, in plain floats: times, end point, nfe."""

    def ask(y, s):
        v = f(torch.tensor([y], dtype=F64), torch.tensor([s], dtype=F64))
        return v[0].tolist()

    def shift(y, *terms):
        return [a + sum(w * k[i] for w, k in terms) for i, a in enumerate(y)]

    way, t, k, nfe = (1 if t1 > t0 else -1), t0, ask(x, t0), 2
    scale = [atol + rtol * abs(a) for a in x]
    d0, d1 = rms(x, scale), rms(k, scale)
    h = 1e-6 if min(d0, d1) < 1e-5 else d0 / d1 / 100
    h = min(h, abs(t1 - t0))
    probe = ask(shift(x, (way * h, k)), t0 + way * h)
    steepest = max(d1, rms(shift(probe, (-1, k)), scale) / h)
    h = min(100 * h, abs(t1 - t0), (0.01 / steepest) ** 0.2 if steepest else math.inf)
    times, before = [t0], 1e-4
    while t != t1:
        h = min(h, abs(t1 - t))
        end = t1 if h == abs(t1 - t) else t + way * h
        ks = [k]
        for c, row in zip(DP_C[1:], DP_A[1:], strict=True):
            y = shift(x, *((way * h * a, q) for a, q in zip(row, ks, strict=True)))
            ks.append(ask(y, end if c == 1 else t + way * c * h))
        gap = [b - e for b, e in zip([*DP_A[-1], 0], DP_4, strict=True)]
        error = shift(
            [0.0] * len(x), *((h * g, q) for g, q in zip(gap, ks, strict=True))
        )
        big = [atol + rtol * max(abs(a), abs(b)) for a, b in zip(x, y, strict=True)]
        r, nfe = rms(error, big), nfe + 6
        if r <= 1:
            factor = 0.9 / r**0.17 * before**0.04 if r else math.inf
            h, before = h * min(10, max(1 / 5, factor)), max(r, 1e-4)
            x, k, t = y, ks[-1], end
        else:
            h *= max(1 / 5, 0.9 / r**0.2) if r < math.inf else 1 / 5
        times.append(t)
    return times, x, nfe


# --- fixed steps ---------------------------------------------------------------------


@pytest.mark.parametrize("method", FIXED)
def test_tableau(method):
    """Catches a changed weight, node or factor h in any step function."""
    c, a, b = TABLEAUX[method]
    stages, asked, t, h = len(c), [], 0.25, 0.5
    x0 = draw(1, stages)

    def spy(x, s):
        asked.append((x, s))
        return torch.eye(stages, dtype=F64)[len(asked) - 1][None]

    end = method.step(spy, x0, torch.tensor([t], dtype=F64), h)
    rows = [row + [0] * (stages - len(row)) for row in a]
    assert method.evaluations == len(asked) == stages
    for (x, s), node, row in zip(asked, c, rows, strict=True):
        assert_close(s, torch.tensor([t + node * h], dtype=F64))
        assert_close(x, x0 + h * torch.tensor([row], dtype=F64))
    assert_close(end, x0 + h * torch.tensor([b], dtype=F64))


@pytest.mark.parametrize("method", FIXED)
def test_order(method):
    """Catches a wrong `order`: the error falls by 2**order per halving."""

    def logistic(x, t):
        return 2 * torch.cos(2 * t)[:, None] * x * (1 - x)

    x0 = torch.tensor([[0.1], [0.3], [0.8]], dtype=F64)
    truth = torch.sigmoid(torch.logit(x0) + math.sin(2))
    runs = [solve(logistic, x0, method(n)).x - truth for n in (40, 80)]
    slope = math.log2(runs[0].norm() / runs[1].norm())
    assert abs(slope - method.order) < 0.03  # O(h) = 1/80, times ~1


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3, 4)])
def test_shapes_times_and_cost(dtype, shape):
    """Catches a lost state, time or evaluation, and an x0 changed in place."""
    x0 = torch.ones(shape, dtype=dtype)
    kept, calls = x0.clone(), []

    def field(x, t):
        calls.append(t)
        assert t.shape == (5,) and t.dtype == dtype
        return -x

    run = solve(field, x0, RK4(6), t0=0.5, t1=2.0, trajectory=True)
    assert isinstance(run, Solution)
    assert_close(x0, kept, rtol=0, atol=0)
    assert run.trajectory.shape == (7, *shape)
    assert_close(run.trajectory[0], x0)
    assert_close(run.trajectory[-1], run.x, rtol=0, atol=0)
    want = torch.linspace(0.5, 2, 7, dtype=dtype)[:, None].expand(7, 5)
    assert_close(run.t, want)
    assert_close(run.nfe, torch.full((5,), 24))
    assert len(calls) == run.calls == 24
    assert_close(run.x, x0 * math.exp(-1.5), rtol=2e-4, atol=0)  # 1.5 h⁴/120 = 5e-5
    assert solve(field, x0, Euler(2)).trajectory is None


@pytest.mark.parametrize("t1", [1.0, 0.999])
@pytest.mark.parametrize("method", FIXED)
def test_times_stay_inside_in_float32(method, t1):
    """Catches t added up or h taken in float64: some t would leave [0, t1]."""
    asked = []

    def field(x, t):
        asked.append(t)
        return x

    for n in (3, 10, 49):
        solve(field, torch.ones(1, 1), method(n), t1=t1)
        solve(field, torch.ones(1, 1), method(n), t0=t1, t1=0)
    asked = torch.stack(asked)
    assert asked.min() >= 0
    # half an ulp of t1 can be gained where t1 is not a power of two
    assert asked.max() <= torch.tensor(t1) + (0 if t1 == 1 else 2**-24)


def test_steps_are_a_uniform_grid_and_grids_are_followed():
    """Catches a grid that is ignored, and a step that isn't the grid's difference."""
    grid = torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=F64)
    run = solve(swirl, draw(5, 2), Euler(grid=grid))
    x = draw(5, 2)
    for a, b in ((0.0, 0.1), (0.1, 0.4), (0.4, 1.0)):
        x = x + (b - a) * swirl(x, torch.full((5,), a, dtype=F64))
    assert_close(run.x, x)
    assert_close(run.t[:, 0], grid)
    back = solve(swirl, draw(5, 2), Heun(grid=[1, 0.5, 0]), t0=1, t1=0)
    assert_close(back.x, solve(swirl, draw(5, 2), Heun(2), t0=1, t1=0).x)
    equal = solve(swirl, draw(5, 2), Heun(grid=[0, 0.25, 0.5, 0.75, 1]))
    assert_close(equal.x, solve(swirl, draw(5, 2), Heun(4)).x)


@pytest.mark.parametrize("solver", [*(m(400) for m in FIXED), Dopri5(1e-8, 1e-8)])
def test_backwards(solver):
    """Catches a lost sign of h: there and back must be the identity."""
    there = solve(swirl, draw(5, 2), solver, t0=0.2, t1=1)
    back = solve(swirl, there.x, solver, t0=1, t1=0.2)
    atol = 1e-2 if solver == Euler(400) else 1e-4
    assert_close(back.x, draw(5, 2), rtol=0, atol=atol)
    assert_close(back.t[-1], torch.full((5,), 0.2, dtype=F64))


# --- dopri5 --------------------------------------------------------------------------


def bump(x, t):
    return torch.exp(-(((t - 0.5) / 0.02) ** 2))[:, None] * (1 + x)


def jump(x, t):
    return torch.where(t > 0.5, 100.0, 1.0).to(t.dtype)[:, None] + 0.1 * x


def cliff(x, t):  # not a number beyond x = 0.7, where no path goes
    return torch.where(x > 0.7, torch.nan, 40 * (0.69 - x))


CASES = {
    "swirl": (swirl, draw(3, 2), 0.0, 1.0, 1e-5, 1e-5),
    "backwards": (swirl, draw(3, 2), 1.0, 0.25, 1e-6, 1e-7),
    "loose": (swirl, draw(3, 2), 0.0, 1.0, 3e-2, 1e-3),
    "flat, then a bump": (bump, draw(3, 2), 0.0, 1.0, 1e-4, 1e-6),
    "jump": (jump, draw(3, 2), 0.0, 1.0, 1e-5, 1e-5),
    "at the origin": (swirl, 0 * draw(2, 2), 0.0, 1.0, 1e-5, 1e-5),
    "near the origin": (lambda x, t: 1 - x, 1.06e-10 + 0 * draw(2, 1), 0, 1, 0, 1e-5),
    "at rest": (lambda x, t: 0 * x, draw(2, 2), 0.0, 1.0, 1e-5, 1e-5),
    "nearly at rest": (lambda x, t: 1.06e-10 + 0 * x, draw(2, 2), 0, 1, 0.0, 1e-5),
    "from rest": (lambda x, t: t[:, None] + 0 * x, draw(2, 2), 0, 1, 0.0, 1e-5),
    "short": (swirl, draw(2, 2), 0.3, 0.3 + 1e-7, 1e-5, 1e-5),
    "short span, far": (lambda x, t: 0.01 * x, 1e3 + draw(2, 2), 0, 0.5, 1e-5, 1e-9),
    "a cliff": (cliff, 0.01 * draw(2, 1).abs(), 0.0, 1.0, 1e-2, 1e-2),
}


@pytest.mark.parametrize("name", list(CASES))
def test_dopri5_against_its_scalar_twin(name):
    """Catches any change of the tableau, the controller or the first step."""
    field, x0, t0, t1, rtol, atol = CASES[name]
    run = solve(field, x0, Dopri5(rtol, atol), t0=t0, t1=t1)
    for b, x in enumerate(x0.tolist()):
        times, end, nfe = scalar_dopri5(field, x, t0, t1, rtol, atol)
        times += [t1] * (len(run.t) - len(times))
        assert_close(run.t[:, b], torch.tensor(times, dtype=F64), rtol=1e-7, atol=1e-12)
        assert_close(run.x[b], torch.tensor(end, dtype=F64), rtol=1e-8, atol=1e-12)
        assert run.nfe[b] == nfe


def test_samples_do_not_influence_each_other():
    """Catches an error norm, or a step, shared over the batch."""
    x0 = draw(7, 2) * torch.logspace(-2, 1, 7, dtype=F64)[:, None]
    batch = solve(swirl, x0, trajectory=True)
    assert len(set(batch.nfe.tolist())) > 1
    for b in range(7):
        alone = solve(swirl, x0[b : b + 1])
        assert_close(batch.x[b : b + 1], alone.x, rtol=0, atol=0)
        assert_close(batch.nfe[b : b + 1], alone.nfe)
    assert_close(batch.trajectory[-1], batch.x, rtol=0, atol=0)
    assert batch.trajectory.shape == (*batch.t.shape, 2)


def test_calls_are_the_largest_nfe_and_the_batch_is_whole():
    """Catches uncounted evaluations, and a field called with part of the batch."""
    labels, calls = torch.arange(7), []

    def field(x, t):
        calls.append(x.shape[0] == len(labels) == len(t))
        return swirl(x, t) * (1 + labels[:, None])

    run = solve(field, draw(7, 2))
    assert all(calls) and len(calls) == run.nfe.max() == run.calls
    assert type(run.calls) is int
    assert run.nfe.min() < run.nfe.max()


def two_gaussians(x, t):
    """The linear path's field for N((1.5, 0), ¼I) and N((-1, 1), ¼I), half each."""
    t, means = t[:, None], torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=F64)
    spread = t**2 / 4 + (1 - t) ** 2
    gaps = (x[:, None] - t[:, :, None] * means).square().sum(2)
    mean = torch.softmax(-gaps / (2 * spread), 1) @ means
    return mean + (t / 4 - (1 - t)) / spread * (x - t * mean)


@pytest.mark.parametrize(
    ("solver", "theirs"),
    [(Euler(10), "euler"), (Midpoint(10), "midpoint"), (Heun(10), "heun2")],
)
def test_fixed_steps_as_in_torchdiffeq(solver, theirs):
    """Catches a slip that the code shares with its own tableau."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    x0, ends = draw(6, 2, seed=1), torch.tensor([0.0, 1.0], dtype=F64)
    options = {"method": theirs, "options": {"step_size": 0.1}}
    other = torchdiffeq.odeint(lambda t, x: swirl(x, t), x0, ends, **options)[-1]
    ours = solve(swirl, x0, solver).x
    few = 50 * 2**-53  # ten steps of a few operations each, in units of the largest
    assert_close(ours, other, rtol=0, atol=few * other.abs().max().item())


@pytest.mark.slow
def test_work_is_no_more_than_torchdiffeq():
    """Catches a controller that wastes steps, or misses the tolerance."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    x0, calls, ends = draw(6, 2, seed=1), 0, torch.tensor([0.0, 1.0], dtype=F64)
    run = solve(two_gaussians, x0)
    truth = solve(two_gaussians, x0, Dopri5(1e-11, 1e-11)).x
    assert (run.x - truth).abs().max() < 5e-4

    def counted(t, x):
        nonlocal calls
        calls += 1
        return two_gaussians(x, t.expand(1))

    for x in x0.split(1):
        torchdiffeq.odeint(counted, x, ends, rtol=1e-5, atol=1e-5)
    assert run.nfe.sum() <= calls and run.nfe.double().mean() < 50


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3, 4)])
@pytest.mark.parametrize(("dtype", "tol"), [(F64, 1e-8), (torch.float32, 1e-5)])
def test_dopri5_shapes_and_dtypes(shape, dtype, tol):
    """Catches a step that does not broadcast over the data dimensions."""
    x0 = draw(*shape, dtype=dtype)
    wide = [1] * (len(shape) - 1)
    run = solve(lambda x, t: x * t.view(5, *wide), x0, Dopri5(tol, tol))
    assert_close(run.x, x0 * math.exp(0.5), rtol=10 * tol, atol=10 * tol)
    assert run.t.dtype == dtype and run.nfe.dtype == torch.int64


@pytest.mark.parametrize("solver", [Dopri5(1e-9, 1e-9), RK4(100)])
def test_gradient(solver):
    """Catches a detached state: d x(1) / d x(0) of a linear field is e^A."""
    a = torch.tensor([[-0.5, -2.0], [2.0, -0.5]], dtype=F64)

    def end(x):
        return solve(lambda x, t: x @ a.T, x[None], solver).x[0]

    jacobian = torch.autograd.functional.jacobian(end, draw(1, 2)[0])
    assert_close(jacobian, torch.matrix_exp(a), rtol=0, atol=1e-7)


def test_no_time_no_work():
    """Catches a division by a span of zero, and x0 handed back as the end point."""
    x0 = draw(5, 2)
    for solver, calls in ((Dopri5(), 0), (RK4(1), 4)):
        run = solve(swirl, x0, solver, t0=0.5, t1=0.5)
        assert_close(run.x, x0, rtol=0, atol=0)
        run.x.zero_()
        assert_close(x0, draw(5, 2), rtol=0, atol=0)
        assert_close(run.nfe, torch.full((5,), calls))
        assert run.calls == calls


def test_solutions_can_be_compared():
    """Catches an == that asks for the truth of a tensor."""
    run, other = (solve(swirl, draw(5, 2), Euler(1)) for _ in range(2))
    assert run == run and run != other and len({run, other}) == 2


# --- refusals ------------------------------------------------------------------------


def test_blow_up_is_named():
    """Catches a loop that never ends, and a number from dopri5 without a solution."""
    x0 = torch.tensor([[0.5], [2.0], [4.0]], dtype=F64)
    with pytest.raises(RuntimeError, match=r"2 of 3 samples .* at t = 0\.25"):
        solve(lambda x, t: x**2, x0)
    with pytest.raises(RuntimeError, match=r"in [1-9]\d\d steps \(max_steps = 1000\)"):
        # no step over the jump will do, and one below rounding must not be "accepted"
        solve(lambda x, t: torch.where(t > 0.5, 1e20, 1.0).to(t)[:, None] + 0 * x, x0)
    with pytest.raises(RuntimeError, match=r"in 2 steps \(max_steps = 2\)"):
        solve(swirl, draw(5, 2), Dopri5(max_steps=2))
    with pytest.raises(RuntimeError, match=r"2 of 2 samples .* at t = -0\.25"):
        solve(lambda x, t: -(x**2), x0[1:], t0=0, t1=-1)
    with pytest.raises(RuntimeError, match="Euler left the finite numbers"):
        solve(lambda x, t: x**2, x0, Euler(500))
    with pytest.raises(RuntimeError, match="RK4 left the finite numbers"):
        # finite at t0, infinite at the first step's second slope
        solve(lambda x, t: x**2, 1e150 + 0 * x0, RK4(1))
    over = solve(lambda x, t: x**2, x0[1:2], Euler(10)).x.item()
    assert round(over) == 1_103_253  # as documented: a number, and no solution
    enough = int((solve(swirl, draw(1, 2)).nfe.item() - 2) / 6)
    assert solve(swirl, draw(1, 2), Dopri5(max_steps=enough)).t[-1] == 1


def test_bad_points_and_fields():
    """Catches a validation that was dropped."""
    x0 = draw(5, 2)
    for bad, error, words in [
        (x0.tolist(), TypeError, "x0 must be a tensor"),
        (torch.ones(5, 2, dtype=torch.int64), TypeError, "x0 must be floating point"),
        (torch.tensor(1.0), ValueError, r"x0 must have shape \(B, \*D\)"),
        (x0 / 0, ValueError, "x0 must be finite"),
    ]:
        with pytest.raises(error, match=words):
            solve(swirl, bad)
    for solver in (*(m(2) for m in FIXED), Dopri5()):
        for field, error, words in [
            (lambda x, t: x[:, :1], ValueError, r"\(5, 2\), as x, got \(5, 1\)"),
            (lambda x, t: x.float(), TypeError, "float64 .* got torch.float32"),
            (lambda x, t: (x,), TypeError, "must return a tensor, got tuple"),
            (lambda x, t: x.to("meta"), TypeError, "got torch.float64 on meta"),
        ]:
            with pytest.raises(error, match=words):
                solve(field, x0, solver)
        with pytest.raises(ValueError, match="the field at t0 must be finite"):
            solve(lambda x, t: x / 0, x0, solver)


@pytest.mark.parametrize("method", FIXED)
def test_bad_fixed_steps(method):
    """Catches steps or times that can't be meant, and are found out late or never."""
    rises = "two times or more that move on"
    for arguments, error, words in [
        ({}, TypeError, f"{method.__name__} takes steps or grid"),
        ({"steps": 3, "grid": [0, 1]}, TypeError, "steps or grid"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
        ({"steps": True}, TypeError, "steps must be an integer, got True"),
        ({"steps": [0, 1]}, TypeError, r"steps must be an integer, got \[0, 1\]"),
        ({"grid": []}, ValueError, rises),
        ({"grid": [0.0]}, ValueError, rises),
        ({"grid": [0, 0.5, 0.5, 1]}, ValueError, rises),
        ({"grid": [0, 0.6, 0.5, 1]}, ValueError, rises),
        ({"grid": [math.nan, 1]}, ValueError, rises),
        ({"grid": [0, math.nan, 1]}, ValueError, rises),
        ({"grid": [0, math.inf]}, ValueError, rises),
        ({"grid": 5}, TypeError, "a sequence of times, got 5"),
        ({"grid": "cosine"}, TypeError, "a sequence of times, got 'cosine'"),
        ({"grid": torch.zeros(2, 2)}, TypeError, "a sequence of times, got tensor"),
    ]:
        with pytest.raises(error, match=words):
            method(**arguments)


def test_bad_tolerances():
    """Catches a tolerance or a limit that can't be kept."""
    for arguments, error, words in [
        ({"rtol": -1e-3}, ValueError, "expected rtol >= 0"),
        ({"rtol": math.nan}, ValueError, "expected rtol >= 0"),
        ({"rtol": math.inf}, ValueError, "expected rtol >= 0"),
        ({"atol": 0.0}, ValueError, "expected rtol >= 0 and atol > 0"),
        ({"atol": math.inf}, ValueError, "expected rtol >= 0 and atol > 0"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        ({"max_steps": 1.5}, TypeError, "max_steps must be an integer, got 1.5"),
        ({"grid": [0, 0.5, 0.5]}, ValueError, "two times or more that move on"),
    ]:
        with pytest.raises(error, match=words):
            Dopri5(**arguments)
    assert Dopri5(rtol=0, atol=1).allowed(draw(5, 2)).unique().tolist() == [1]


def test_bad_options():
    """Catches a solver that is no solver, and a grid of another span."""
    x0, over = draw(5, 2), [0, 1 + 2e-7, 1 + 5e-7]  # beyond t1, its end moved onto it
    for solver, error, words in [
        ("rk4", TypeError, "Euler, Midpoint, Heun, RK4 or Dopri5, .* got 'rk4'"),
        (Euler, TypeError, r"as Euler\(10\), got <class"),
        (None, TypeError, "got None"),
        (Euler(grid=[1, 0]), ValueError, "must run from t0 = 0.0 to t1 = 1.0, got one"),
        (Euler(grid=[0, 0.9]), ValueError, "must run .* got one from 0.0 to 0.9"),
        (Euler(grid=[0.1, 1]), ValueError, "must run from t0 = 0.0"),
        (Euler(grid=[1.06e-6, 1]), ValueError, "must run from t0 = 0.0"),
        (Euler(grid=[0, 1 + 1.06e-6]), ValueError, "must run from t0 = 0.0"),
        (Dopri5(grid=[0.1, 1]), ValueError, "must run from t0 = 0.0"),
        (Euler(grid=over), ValueError, "grid must move"),
        (Dopri5(grid=over), ValueError, "grid must move"),
    ]:
        with pytest.raises(error, match=words):
            solve(swirl, x0, solver)
    for span in ({"t1": math.inf}, {"t0": math.nan}):
        with pytest.raises(ValueError, match="t0 and t1 must be finite"):
            solve(swirl, x0, **span)
    with pytest.raises(TypeError, match="abstract"):
        FixedSteps(3)


def test_solvers_are_values():
    """Catches a solver that changes, differs from its equal, or keeps a tensor."""
    times = torch.tensor([0, 0.25, 1])
    for method in (*FIXED, Dopri5):
        solver = method(grid=times)
        assert solver.grid == (0.0, 0.25, 1.0) and type(solver.grid[0]) is float
        assert solver == method(grid=[0, 0.25, 1]) != method(grid=[0, 0.5, 1])
        assert len({solver, method(grid=(0, 0.25, 1))}) == 1
        with pytest.raises(AttributeError, match="cannot assign"):
            solver.grid = None
    assert Euler(3) != Midpoint(3) and Midpoint(3) == Midpoint(steps=3)
    assert repr(Midpoint(3)) == "Midpoint(steps=3, grid=None)"
    assert type(Dopri5(1, 1).rtol) is type(Dopri5(1, 1).atol) is float


def test_a_method_of_your_own():
    """Catches a subclass that is refused, or charged by what it says of itself."""

    class Third(FixedSteps):  # Heun's method of order 3, one look too many for free
        order, evaluations = 3, 1

        @staticmethod
        def step(field, x, t, h):
            k1 = field(x, t)
            k2 = field(x + h / 3 * k1, t + h / 3)
            k3 = field(x + 2 * h / 3 * k2, t + 2 * h / 3)
            return x + h / 4 * (k1 + 3 * k3)

    run = solve(swirl, draw(5, 2), Third(20))
    assert run.calls == 60 == run.nfe.max()
    expected = solve(swirl, draw(5, 2), Dopri5(1e-9, 1e-9)).x
    assert_close(run.x, expected, rtol=0, atol=1e-3)


def test_defaults():
    """Catches another default tolerance or method."""
    run = solve(swirl, draw(5, 2))
    same = solve(swirl, draw(5, 2), Dopri5(rtol=1e-5, atol=1e-5, max_steps=1000))
    assert_close(run.x, same.x, rtol=0, atol=0)
    assert_close(run.t, same.t, rtol=0, atol=0)
    assert Dopri5() == Dopri5(1e-5, 1e-5, 1000, None)


# --- states at the times of a grid ---------------------------------------------------


def dense_scalar(x, y, h, ks, s):
    """Hairer, Nørsett, Wanner's CONTD5, in plain floats."""
    d = [-12715105075 / 11282082432, 0, 87487479700 / 32700410799]
    d += [-10690763975 / 1880347072, 701980252875 / 199316789632]
    d += [-1453857185 / 822651844, 69997945 / 29380423]
    difference = y - x
    spline = h * ks[0] - difference
    last = difference - h * ks[6] - spline
    bump = h * sum(w * k for w, k in zip(d, ks, strict=True))
    inner = spline + s * (last + (1 - s) * bump)
    return x + s * (difference + (1 - s) * inner)


def test_between_the_steps_as_in_the_textbook():
    """Catches a changed weight of the continuous extension, or a lost term."""
    from flowbook.solvers import _between

    *slopes, x, y = (draw(5, 2, seed=k) for k in range(9))
    s = torch.linspace(0, 1, 5, dtype=F64)[:, None]
    h = 2 * s - 1
    found = _between(x, y, h, slopes, s)
    for i in range(5):
        for j in range(2):
            ks = [k[i, j].item() for k in slopes]
            ends = x[i, j].item(), y[i, j].item()
            expected = dense_scalar(*ends, h[i].item(), ks, s[i].item())
            assert abs(found[i, j].item() - expected) < 1e-13
    assert torch.equal(found[0], x[0]) and torch.equal(found[4], y[4])


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.25)])
@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 3)])
def test_states_at_the_times_of_a_grid(shape, t0, t1):
    """Catches a time left out or taken from a neighbour's step; more evaluations."""

    def wide(x, t):  # each number turns on its own: any shape will do
        return torch.sin(3 * x) + torch.cos(9 * t).view(-1, *[1] * (x.ndim - 1))

    x0 = draw(*shape, seed=4)
    grid = torch.linspace(t0, t1, 33, dtype=F64)
    run = solve(wide, x0, Dopri5(1e-9, 1e-9, grid=grid), t0=t0, t1=t1, trajectory=True)
    plain = solve(wide, x0, Dopri5(1e-9, 1e-9), t0=t0, t1=t1)
    assert torch.equal(run.x, plain.x) and torch.equal(run.nfe, plain.nfe)
    assert run.calls == plain.calls
    assert_close(run.t, grid[:, None].expand(33, 5), rtol=0, atol=0)
    assert run.trajectory.shape == (33, *shape)
    assert torch.equal(run.trajectory[0], x0)
    assert torch.equal(run.trajectory[-1], run.x)
    fine = torch.linspace(t0, t1, 3201, dtype=F64)
    truth = solve(wide, x0, RK4(grid=fine), t0=t0, t1=t1, trajectory=True)
    # between steps the error is of order 4, at 1e-9 some hundred times that of order 5
    assert_close(run.trajectory, truth.trajectory[::100], rtol=0, atol=1e-6)
    assert solve(wide, x0, Dopri5(grid=grid), t0=t0, t1=t1).trajectory is None


def test_a_grid_on_the_steps_gives_the_steps():
    """Catches an extension that is not exact where it must be."""
    run = solve(swirl, draw(1, 2), trajectory=True)
    taken = torch.cat([torch.tensor([True]), run.t[:, 0].diff() > 0])
    again = solve(swirl, draw(1, 2), Dopri5(grid=run.t[taken, 0]), trajectory=True)
    assert torch.equal(again.trajectory, run.trajectory[taken])


def test_a_grid_in_float32_and_with_a_gradient():
    """Catches a time lost to rounding, a state not filled in, a gradient cut."""
    x0 = draw(64, 2, dtype=torch.float32)
    grid = torch.linspace(0, 1, 1001, dtype=F64) ** 2
    run = solve(swirl, x0, Dopri5(grid=grid), trajectory=True)
    assert run.trajectory.dtype == torch.float32
    same = solve(swirl, x0.double(), Dopri5(1e-9, 1e-9, grid=grid), trajectory=True)
    assert_close(run.trajectory.double(), same.trajectory, rtol=0, atol=3e-3)
    assert (run.trajectory.diff(dim=0).abs().amax((1, 2)) < 0.03).all()

    def middle(rate):
        kept = solve(
            lambda x, t: rate * x, draw(5, 2), Dopri5(1e-9, 1e-9, grid=[0, 0.3, 1]),
            trajectory=True,
        ).trajectory  # fmt: skip
        return kept[1].sum()

    rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(middle(rate), rate)
    expected = 0.3 * math.exp(0.21) * draw(5, 2).sum()
    assert_close(slope, expected, rtol=1e-6, atol=1e-6)


def test_a_probe_that_falls_off_and_a_span_that_rounds_away():
    """Catches a first step that is NaN or 0, and a NaN time handed to the field."""
    x0 = torch.ones(2, 1, dtype=F64)
    for hole in (math.nan, math.inf):

        def field(x, t, hole=hole):  # the probe, at t = 0.01, is the only one to see it
            return torch.where(((t - 0.01).abs() < 1e-4)[:, None], hole, -x)

        run = solve(field, x0)
        assert_close(run.x, x0 * math.exp(-1), rtol=0, atol=1e-5)
        assert run.nfe.max() < 50

    asked = []

    def spy(x, t):
        asked.append(t)
        return x

    assert_close(solve(spy, x0.float(), t0=0.5, t1=0.5 + 1e-12).x, x0.float())
    assert not asked


@pytest.mark.parametrize("t1", [1.0, 0.999, 0.7])
def test_dopri5_asks_for_no_time_outside_the_span(t1):
    """Catches a last step that ends at t + h, an ulp beyond t1."""
    asked = []

    def field(x, t):
        asked.append(t)
        return -x * (1 + t[:, None])

    x0, loose = draw(300, 2, dtype=torch.float32), Dopri5(1e-2, 1e-2)
    solve(field, x0, loose, t1=t1)
    solve(field, x0, loose, t0=t1, t1=0)
    asked = torch.stack(asked)
    assert asked.min() >= 0 and asked.max() <= torch.tensor(t1)
