"""Four losses, one dictionary between them, and a table that counts honestly."""

import math
from functools import partial

import pytest
import scipy.stats
import torch
from torch.testing import assert_close

from flowbook.comparison import (
    FOUR_METHODS,
    Exam,
    Recipe,
    as_field,
    compare,
    draw_exam,
    evaluate,
    loss_weight,
    noise_loss,
    score_loss,
    t_interval,
    train_classifier,
)
from flowbook.likelihood import Hutchinson
from flowbook.losses import cfm_loss
from flowbook.marginal import MixtureMarginal
from flowbook.metrics import calibrated_distance, energy_distance
from flowbook.networks import MLP
from flowbook.paths import CosinePath, OTPath, VEPath, VPPath
from flowbook.solvers import Dopri5, solve
from flowbook.toy import sample_moons, skewed_mixture
from flowbook.training import train

from ..given import FIVE_PATHS, draw, seeded

exact = partial(assert_close, rtol=1e-12, atol=1e-12)


def times(n, seed=5):
    t = torch.rand(n, generator=seeded(seed), dtype=torch.float64)
    return 0.05 + 0.9 * t


def model(x, t):  # any function of both, of the right shape
    wide = t.view(-1, *[1] * (x.ndim - 1))
    return torch.sin(2 * x + 1) * (1 + wide) + 0.3 * x.flip(-1) * (x.ndim > 1)


@pytest.mark.parametrize("path", FIVE_PATHS, ids=repr)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (3, 3), (5, 2, 3, 4)])
def test_losses_by_their_definitions(path, shape):
    """Catches a sign, a lost weight, a mean over dimensions, t broadcast over D."""
    x1, x0, t = draw(*shape), draw(*shape, seed=1), times(shape[0])
    squares, scores = [], []
    for b in range(len(x1)):
        a, s, _, _ = path.schedule(t[b])
        xt = a * x1[b] + s * x0[b]
        out = model(xt[None], t[b : b + 1])[0]
        squares.append((out - x0[b]).square().sum())
        target = path.score(xt[None], t[b].item(), x1[b : b + 1])[0]
        scores.append(s**2 * (out - target).square().sum())
    value = noise_loss(model, path, x1, t=t, x0=path.prior_std * x0)
    assert value.shape == ()
    exact(value, torch.stack(squares).mean())
    value = score_loss(model, path, x1, t=t, x0=path.prior_std * x0)
    assert value.shape == ()
    exact(value, torch.stack(scores).mean())


@pytest.mark.parametrize("path", FIVE_PATHS, ids=repr)
@pytest.mark.parametrize("predicts", ["noise", "score"])
def test_one_regression_with_different_weights(path, predicts):
    """Catches a weight without its square, alpha for sigma, a wrong conversion."""
    x1, x0, t = draw(5, 3), draw(5, 3, seed=1), times(5)
    loss = {"noise": noise_loss, "score": score_loss}[predicts]
    field = as_field(model, path, predicts)
    for b in range(5):
        one = {"t": t[b : b + 1], "x0": x0[b : b + 1]}
        velocity = cfm_loss(field, path, x1[b : b + 1], **one)
        weighted = loss_weight(path, t[b]) * loss(model, path, x1[b : b + 1], **one)
        assert_close(velocity, weighted, rtol=1e-10, atol=1e-10)


def test_weights_in_closed_form():
    """Catches a weight that the identity above shares with the conversions."""
    t = times(7)
    exact(loss_weight(OTPath(), t), 1 / t**2)
    path = VPPath(0.1, 20.0)
    beta = 0.1 + 19.9 * (1 - t)
    exact(loss_weight(path, t), beta**2 / (4 * path.schedule(t).sigma ** 2))


@pytest.mark.parametrize("path", [OTPath(), VPPath(), CosinePath()], ids=repr)
def test_exact_predictions_give_the_exact_field(path):
    """Catches a sign between score and noise, a conversion for another path."""
    marginal = MixtureMarginal(path, skewed_mixture(dtype=torch.float64))
    x, t = draw(5, 2), times(5)

    def noise(x, t):
        return -path.schedule(t).sigma[:, None] * marginal.score(x, t)

    velocity = marginal.velocity(x, t)
    for prediction, name in (
        (marginal.score, "score"),
        (noise, "noise"),
        (marginal.posterior_mean, "data"),
    ):
        assert_close(
            as_field(prediction, path, name)(x, t), velocity, rtol=1e-9, atol=1e-9
        )
    assert torch.equal(as_field(model, path)(x, t), model(x, t))


def test_the_four_methods():
    """Catches a row that names one method and runs another."""
    rows = {name: (m.loss, m.predicts) for name, m in FOUR_METHODS.items()}
    assert rows == {
        "FM-OT": (cfm_loss, "velocity"),
        "FM-VP": (cfm_loss, "velocity"),
        "score matching": (score_loss, "score"),
        "DDPM": (noise_loss, "noise"),
    }
    paths = [m.path for m in FOUR_METHODS.values()]
    assert paths == [OTPath(1e-4), VPPath(), VPPath(), VPPath()]


@pytest.mark.parametrize("path", [OTPath(), VPPath(), VEPath(0.1, 5.0)], ids=repr)
@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
def test_evaluate_in_closed_form(path, shape):
    """Catches steps for evaluations, another span, prior, sign or mean of the NLL."""
    rate, seen, asked = 0.7, [], []
    d, (t0, t1) = math.prod(shape), path.t_span

    def field(x, t):
        asked.append(len(x))
        return rate * x

    def judge(samples):
        seen.append(samples)
        return float(len(asked))

    noise, held_out = draw(5, *shape), draw(4, *shape, seed=1)
    row = evaluate(
        field, path, noise=noise, judges={"a": judge}, held_out=held_out,
        budgets=(4, 6), tolerance=1e-9,
    )  # fmt: skip
    counts = row.distances["a"]
    assert row.budgets == (4, 6) and counts[:2] == (4.0, 10.0)
    alone = solve(field, path.prior_std * noise, Dopri5(1e-9, 1e-9), t0=t0, t1=t1)
    assert row.nfe == alone.nfe.double().mean().item()
    assert type(row.calls) is int and row.nfe <= row.calls == counts[2] - 10
    for samples, steps in zip(seen, (2, 3), strict=False):
        h = rate * (t1 - t0) / steps
        exact(samples, path.prior_std * noise * (1 + h + h * h / 2) ** steps)
    growth = math.exp(rate * (t1 - t0))
    assert_close(seen[2], path.prior_std * noise * growth, rtol=1e-7, atol=1e-7)
    std = path.prior_std * growth
    logs = -held_out.flatten(1).square().sum(1) / (2 * std**2)
    nll = -(logs - d * math.log(std) - d / 2 * math.log(2 * math.pi))
    assert row.nll == pytest.approx(nll.mean().item(), abs=1e-6)
    assert row.nll_error == pytest.approx(nll.std().item() / 2, abs=1e-6)


def test_evaluate_in_parts_and_by_probes():
    """Catches samples lost between batches, a divergence that is not passed on."""
    torch.manual_seed(0)
    network, noise = MLP(2, width=8).double(), draw(7, 2)
    torch.nn.init.normal_(network.perceptron[-1].weight)
    judges = {"mean": lambda x: x.mean().item(), "first": lambda x: x[0, 0].item()}
    run = partial(
        evaluate, network, VPPath(), noise=noise, judges=judges, held_out=draw(5, 2)
    )
    whole, parts = run(), run(batch_size=3)
    for name, values in whole.distances.items():
        assert parts.distances[name] == pytest.approx(values, abs=1e-12)
    assert (parts.nfe, len(parts.distances["mean"])) == (whole.nfe, 5)
    assert parts.nll == pytest.approx(whole.nll, abs=1e-12)
    probed = run(divergence=Hutchinson(generator=seeded(1)))
    assert 1e-6 < abs(probed.nll - whole.nll) < 10
    assert run(divergence=Hutchinson(generator=seeded(1))) == probed


def test_a_point_that_no_noise_reaches_costs_infinity():
    """Catches one lost point that stops a record, or is left out of the mean."""
    field, near = (lambda x, t: -(x**3) / 2), draw(5, 1).clamp(-0.5, 0.5)
    run = partial(evaluate, field, OTPath(), noise=near, judges={}, budgets=())
    found = run(held_out=near)  # the way back from x ends at time 1 - 1 / x²
    assert math.isfinite(found.nll) and found.nll_error > 0
    lost = run(held_out=torch.cat((near, near.new_full((1, 1), 2.0))), batch_size=2)
    assert lost.nll == math.inf and math.isnan(lost.nll_error)
    assert lost.nfe == found.nfe


@pytest.mark.parametrize("batch_size", [4, 3, 1000])
def test_calls_are_those_of_the_slowest_batch(batch_size):
    """Catches the mean need as the price, a sum over batches, the last batch's."""
    asked = []

    def field(x, t):  # the first of the points turns, the others stand still
        asked.append(len(x))
        return torch.where(x[:, :1] > 0, torch.sin(30 * t)[:, None] * x.flip(-1), 0)

    noise = torch.tensor([[2.0, 1.0], *[[-1.0, 1.0]] * 5], dtype=torch.float64)
    row = evaluate(
        field, OTPath(), noise=noise, judges={}, held_out=noise, budgets=(),
        batch_size=batch_size,
    )  # fmt: skip
    asked.clear()
    slowest = solve(field, noise[:batch_size]).nfe
    assert row.calls == len(asked) == slowest.max() > 2 * slowest[1]
    assert row.nfe < row.calls / 2


def fixed_exam(seed=0):
    return Exam(
        data=draw(16, 2, seed=3).float(),
        noise=draw(6, 2).float(),
        judges={"mean": lambda x: x.square().mean().item()},
        held_out=draw(4, 2, seed=2).float(),
    )


def trial(methods, seeds, exam=fixed_exam, **changes):
    settings = {"steps": 3, "batch_size": 4, "progress": False, **changes}
    network = partial(MLP, 2, width=8)
    found = list(compare(methods, network, exam, seeds=seeds, **settings))
    if isinstance(settings["steps"], int):
        assert {steps for _, _, steps, _ in found} == {settings["steps"]}
        return [(name, seed, row) for name, seed, _, row in found]
    return found


def test_compare_holds_the_seed_equal():
    """Catches methods that start from other weights or batches, one seed for all."""
    twice = {"one": FOUR_METHODS["FM-VP"], "two": FOUR_METHODS["FM-VP"]}
    state = torch.get_rng_state()
    rows = trial(twice, [3, 4])
    assert torch.equal(torch.get_rng_state(), state)  # the caller's is untouched
    assert [row[:2] for row in rows] == [("one", 3), ("two", 3), ("one", 4), ("two", 4)]
    assert rows[0][2] == rows[1][2] and rows[2][2] == rows[3][2]
    assert rows[0][2] != rows[2][2]


def test_compare_uses_each_method_and_setting():
    """Catches a loss, a conversion, or a setting that is not passed on."""
    rows = {name: row for name, _, row in trial(FOUR_METHODS, [0])}
    assert len({row.nll for row in rows.values()}) == 4
    one = {"DDPM": FOUR_METHODS["DDPM"]}
    for changes in ({"lr": 0.02}, {"ema": 0.0}, {"steps": 5}, {"batch_size": 8}):
        assert trial(one, [0], **changes)[0][2] != rows["DDPM"]
    plain = {"DDPM": Recipe(VPPath(), noise_loss, "velocity")}
    assert trial(plain, [0])[0][2] != rows["DDPM"]


@pytest.mark.parametrize("name", ["FM-OT", "score matching"])
def test_compare_looks_at_one_run_on_its_way(name):
    """Catches a new run for each count, an optimiser or noise that starts again."""
    method = {name: FOUR_METHODS[name]}
    exam = fixed_exam()
    found = trial(method, [5], steps=[2, 5, 9], budgets=(2,))
    assert [row[:3] for row in found] == [(name, 5, n) for n in (2, 5, 9)]
    for _, _, steps, row in found:
        assert [(name, 5, row)] == trial(method, [5], steps=steps, budgets=(2,))
        assert row.budgets == (2,)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = MLP(2, width=8)
    path, loss = FOUR_METHODS[name].path, FOUR_METHODS[name].loss
    settings = {"steps": 9, "batch_size": 4, "loss": loss, "progress": False}
    run = train(network, path, exam.data, generator=seeded(5), **settings)
    alone = evaluate(
        as_field(run.ema, path, FOUR_METHODS[name].predicts), path, noise=exam.noise,
        judges=exam.judges, held_out=exam.held_out, budgets=(2,),
    )  # fmt: skip
    assert found[-1][3] == alone


def test_compare_asks_for_an_exam_once_a_seed():
    """Catches one exam for all seeds, or another one for each method."""
    asked = []

    def exam(seed):
        asked.append(seed)
        given = fixed_exam()
        moved = given.noise + seed
        return Exam(given.data, moved, given.judges, given.held_out)

    twice = {"one": FOUR_METHODS["FM-VP"], "two": FOUR_METHODS["FM-VP"]}
    rows = trial(twice, [3, 4], exam=exam)
    assert asked == [3, 4]
    assert rows[0][2] == rows[1][2] and rows[2][2] == rows[3][2]
    same = trial({"one": FOUR_METHODS["FM-VP"]}, [3])
    assert rows[0][2].distances != same[0][2].distances
    assert rows[0][2].nll == same[0][2].nll  # only the starts were moved


@pytest.mark.parametrize("steps", [[], [3, 3], [4, 2]])
def test_compare_refuses_steps_that_do_not_grow(steps):
    """Catches a curve whose last point is not its longest run."""
    with pytest.raises(ValueError, match="growing numbers, got"):
        trial(FOUR_METHODS, [0], steps=steps)


def test_an_exam_is_drawn_afresh():
    """Catches starts of another law, points in two roles, a null of other sizes."""
    given = draw_exam(sample_moons, {"e": energy_distance}, seed=2, points=50, size=20)
    parts = given.data, given.held_out, given.noise
    assert [tuple(part.shape) for part in parts] == [(50, 2), (20, 2), (20, 2)]
    g = seeded(10**6 + 2)
    data, held_out, real = (sample_moons(n, generator=g) for n in (50, 20, 60))
    noise = torch.randn((20, 2), generator=g)
    for part, expected in zip(parts, (data, held_out, noise), strict=True):
        assert torch.equal(part, expected)
    judge = calibrated_distance(energy_distance, real, held_out, 20, generator=g)
    assert given.judges["e"](noise + 3) == judge(noise + 3) > 5
    other = draw_exam(sample_moons, {}, seed=3, points=50, size=20)
    assert not torch.equal(other.data, given.data) and other.judges == {}
    whole = draw_exam(sample_moons, {}, seed=2)
    assert (len(whole.data), len(whole.noise), len(whole.held_out)) == (
        10_000,
        *[1000] * 2,
    )


def test_no_exam_comes_from_the_stream_of_the_weights():
    """Catches data that are functions of the numbers the first weights are made of."""
    given = draw_exam(
        lambda n, generator: torch.rand(n, generator=generator), {}, seed=0
    )
    torch_stream = torch.rand(10_000, generator=seeded(0))
    assert (given.data != torch_stream).float().mean() > 0.99


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_interval_is_students(n):
    """Catches 1.96, n for n − 1 degrees, a deviation over n."""
    values = draw(n).tolist()
    mean, half = t_interval(values)
    spread = scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(0.95, n - 1, loc=sum(values) / n, scale=spread)
    assert mean - half == pytest.approx(low, abs=1e-6)
    assert mean + half == pytest.approx(high, abs=1e-6)


def stripes(n):  # two classes of 5 × 9 images: bright left, or bright right
    labels = torch.arange(n) % 2
    images = 0.3 * torch.randn((n, 1, 5, 9), generator=seeded())
    images[..., :3] += (1 - labels.float()).view(-1, 1, 1, 1)
    images[..., 6:] += labels.float().view(-1, 1, 1, 1)
    return images, labels


def test_classifier_learns_and_shows_its_features():
    """Catches labels shuffled against images, a class too few, training left on."""
    images, labels = stripes(60)
    state = torch.get_rng_state()
    train_stripes = partial(
        train_classifier, images, labels, features=6, steps=40, batch_size=16
    )
    network = train_stripes()
    assert torch.equal(torch.get_rng_state(), state)
    assert network(images).shape == (60, 2) and network[:-1](images).shape == (60, 6)
    kinds = ["Conv2d", "SiLU", "Conv2d", "SiLU", "Flatten", "Linear", "SiLU", "Linear"]
    assert [type(layer).__name__ for layer in network] == kinds
    assert (network(images).argmax(1) == labels).float().mean() > 0.95
    assert not network.training and not network(images).requires_grad
    assert torch.equal(train_stripes()(images), network(images))
    assert not torch.equal(train_stripes(seed=1)(images), network(images))


X = torch.zeros(4, 3)
T = torch.full((4,), 0.5)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: noise_loss(lambda x, t: x[:, :1], VPPath(), X, t=T, x0=X),
            "model must",
        ),
        (
            lambda: score_loss(lambda x, t: x[:, :1], VPPath(), X, t=T, x0=X),
            "model must",
        ),
        (lambda: noise_loss(model, VPPath(), X, t=T, x0=X[:2]), "agree"),
        (
            lambda: as_field(model, VPPath(), "image"),
            "score, noise, data, got 'im",
        ),
        (lambda: t_interval([1.0]), "2 to 6 values, got 1"),
        (lambda: t_interval([1.0] * 7), "2 to 6 values, got 7"),
    ],
)
def test_bad_input_is_named(call, message):
    """Catches a silent broadcast, an unknown name, an interval from one value."""
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"budgets": (4, 5)}, r"even: midpoint steps cost 2, got \(4, 5\)"),
        ({"budgets": (0,)}, r"even.*got \(0,\)"),
        ({"held_out": X[:1]}, "two points, got 1"),
    ],
)
def test_bad_evaluation_is_named(changes, message):
    """Catches a budget that is not spent in full, an error of one value."""
    settings = {"noise": X, "judges": {}, "held_out": X, **changes}
    with pytest.raises(ValueError, match=message):
        evaluate(model, OTPath(), **settings)
