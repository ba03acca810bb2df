"""Benchmarks do what they time; the GPU stages run, go on, and mark what is quick."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats
import torch
from torch.testing import assert_close

from benchmarks import (
    cpu,
    gpu,
    numbers,
    plain,
    reach,
    record,
    stage_curves,
    stage_tests,
    timing,
)
from flowbook import MLP, CosinePath, OTPath, VEPath, VPPath, sample, solve
from flowbook.likelihood import Hutchinson, divergence, log_prob
from flowbook.solvers import Dopri5, Euler, Midpoint
from flowbook.toy import sample_moons
from press import ROOT, recorded
from press.errors import BookError

from ..given import draw, seeded

PATHS = [
    (OTPath(), plain.ot),
    (CosinePath(), plain.cosine),
    (VPPath(), plain.vp),
    (VEPath(0.01, 10.0), plain.ve),
]


def field(x, t):
    mixed = x.roll(1, 1).tanh()
    return t[:, None] * x.sin() - 0.5 * x + 0.25 * mixed


# --- the plain code does the same job ------------------------------------------------


@pytest.mark.parametrize(("path", "formula"), PATHS, ids=lambda p: type(p).__name__)
def test_plain_paths_are_the_paths(path, formula):
    """Catches a comparison with cheaper code that computes something else."""
    x0, x1 = draw(5, 3), draw(5, 3, seed=1)
    t = torch.linspace(0, 0.9, 5, dtype=torch.float64)
    made = path.interpolate(x0, x1, t)
    xt, ut = formula(x0, x1, t)
    assert_close((xt, ut), (made.xt, made.ut))


@pytest.mark.parametrize(
    ("solver", "by_hand"), [(Euler(7), plain.euler), (Midpoint(7), plain.midpoint)]
)
def test_plain_samplers_are_the_samplers(solver, by_hand):
    """Catches a plain loop that takes fewer steps, or half of them."""
    x0 = draw(5, 3)
    assert_close(by_hand(field, x0, 7), sample(field, x0, solver))


def test_plain_dopri5_is_as_accurate_for_as_much():
    """Catches an error control that is cheaper because it is laxer."""
    x0 = draw(5, 3)
    found, nfe = plain.dopri5(field, x0)
    run = solve(field, x0)
    exact = solve(field, x0, Dopri5(1e-10, 1e-10)).x
    # a few steps of tolerance 1e-5 (1 + |x|) each, |x| < 4, and a growth below e^1.75
    assert (found - exact).abs().max() < 10 * 5e-5 * 6
    assert 14 <= nfe <= run.nfe.max() + 12


@pytest.mark.parametrize(
    "by_hand", [plain.divergence_by_loop, plain.divergence_at_once]
)
def test_plain_divergences_are_the_divergence(by_hand):
    """Catches a transposed Jacobian or a dimension left out."""
    x, t = draw(5, 3), draw(5, seed=1).sigmoid()
    assert_close(by_hand(field, x, t), divergence(field, x, t))


@pytest.mark.parametrize(("d", "probe"), [(2, False), (5, False), (3, True)])
def test_plain_log_prob_is_the_log_prob(d, probe):
    """Catches a sign, a time not turned round, a dimension left out, another probe."""
    x, method = draw(5, d), {}
    z = draw(5, d, seed=2).sign() if probe else None

    class Given(Hutchinson):
        def draw(self, x):
            return z[None]

    if probe:
        method = {"divergence": Given()}
    expected = log_prob(field, x, solver=Dopri5(1e-10, 1e-10), **method)
    found, nfe = plain.log_prob(field, x, 1e-9, z)
    assert_close(found, expected, rtol=0, atol=1e-6)
    assert nfe > plain.log_prob(field, x, 1e-5, z)[1]  # the tolerance is passed on


def test_the_mixture_that_is_timed_has_its_density():
    """Catches a field that does not carry N(0, I) to the law of the points."""
    law = reach.Mixture(3)
    x = law.sample(20)
    found = log_prob(law, x, solver=Dopri5(1e-9, 1e-9))
    assert_close(found, law.log_prob(x), rtol=0, atol=1e-5)
    g = torch.Generator().manual_seed(0)
    box = 14 * torch.rand(400_000, 3, generator=g, dtype=torch.float64) - 7
    mass = 14**3 * law.log_prob(box).exp()
    assert abs(mass.mean() - 1) < 4 * mass.std() / 400_000**0.5


@pytest.mark.parametrize("probe", [False, True])
def test_all_contenders_reach_the_truth(probe):
    """Catches a library that is timed at another task, or with another probe."""
    law = reach.Mixture(3)
    for name, code in reach.contenders(law, law.sample(5), probe).items():
        assert code.error(1e-2) > 1e-4 > code.error(1e-7), name


def test_the_loosest_tolerance_that_is_enough():
    """Catches a rung skipped, a mean error, or one that is not absolute."""
    truth = torch.zeros(4)
    worst = torch.tensor([0.0, 0.1, -3.0, 0.0])
    found = reach.Contender(lambda tol: worst * tol, truth).loosest(1e-4)
    place = reach.LADDER.index(found)
    assert 3 * found < 1e-4 <= 3 * reach.LADDER[place - 1]


def test_plain_training_trains_and_averages():
    """Catches a loop without its optimiser, or an average that never moves."""
    torch.manual_seed(0)
    model = MLP(2, width=16)
    before = [p.clone() for p in model.parameters()]
    average = plain.train(model, draw(64, 2).float(), steps=20, batch_size=16)
    for old, new, mean in zip(
        before, model.parameters(), average.parameters(), strict=True
    ):
        assert not torch.equal(old, new) and not mean.requires_grad
        moved, averaged = (new - old).norm(), (mean - old).norm()
        assert 0 < averaged < 0.1 * moved  # 20 updates by a thousandth


# --- timing --------------------------------------------------------------------------


def test_a_ratio_is_by_rounds():
    """Catches a ratio upside down, or medians that mix one round with another."""
    found = timing.ratio([2.0, 20.0, 3.0, 4.0], [1.0, 10.0, 2.0, 2.0])
    assert found.median == 2.0 and found.low < 2.0 <= found.high
    assert found.over(1.8) and not found.over(1.95)
    assert timing.ratio([3.0], [2.0]).median == 1.5


def test_both_codes_are_timed_for_long_enough():
    """Catches a code that is called once where it takes microseconds."""
    calls = {"fast": 0, "slow": 0}

    def fast():
        calls["fast"] += 1

    def slow():
        calls["slow"] += 1
        end = time.process_time() + 0.002
        while time.process_time() < end:
            pass
        time.sleep(0.001)  # as where another process has the CPU

    taken = timing.interleaved({"fast": fast, "slow": slow}, rounds=3, least=0.004)
    assert [len(times) for times in taken.values()] == [3, 3]
    assert calls["fast"] > 10 * calls["slow"] and min(taken["slow"]) >= 0.002


def test_a_busy_machine_makes_no_code_slower():
    """Catches a clock on the wall, which counts what other processes take."""
    assert timing.seconds(lambda: time.sleep(0.2), 1) < 0.1


@pytest.mark.slow
def test_speed_runs():
    """Catches a row that no longer fits what it times."""
    command = [sys.executable, "-m", "benchmarks.speed", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train, batch 4096" in done.stdout and "torchdiffeq" in done.stdout
    assert "mean nothing" in done.stdout


# --- the stages for a GPU ------------------------------------------------------------


def quick(stage, folder, *more):
    where = ["--out", str(folder / "out/gpu"), "--work", str(folder / "work")]
    return gpu.main([stage, "--device", "cpu", "--quick", *where, *more])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.jit, by way of the counter of operations
@pytest.mark.parametrize("stage", gpu.STAGES)
def test_a_stage_runs_and_its_record_is_refused(stage, tmp_path):
    """Catches a stage that would fail on the GPU, or a smoke test shown as a result."""
    assert quick(stage, tmp_path) == 0
    out = tmp_path / "out" / "gpu"
    made = json.loads((out / f"{stage}.json").read_text())
    assert made["quick"] and made["tables"] and made["command"].endswith("QUICK=1")
    assert made["synthetic"] == (stage in ("images", "table"))
    assert not (out / f"{stage}.parts.json").exists()
    with pytest.raises(BookError, match=rf"{stage}\.json.*smoke test"):
        recorded.load(f"gpu/{stage}", out.parent)
    # nothing else keeps it from the page: the form is right
    made |= {"quick": False, "synthetic": False}
    made["hardware"]["device"] = "cuda"
    (out / f"{stage}.json").write_text(json.dumps(made))
    text = recorded.fill(f"<!-- recorded: gpu/{stage} -->", out.parent)
    assert all(name in text for name in ("commit", "torch", "seed"))
    files = list(out.glob("*.png"))
    assert {p["file"] for p in made["pictures"]} == {p.name for p in files}
    assert len(files) <= 8 and all(p.stat().st_size < 2**24 for p in files)


# --- the stages for a CPU ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", cpu.STAGES)
def test_a_long_stage_runs_and_its_record_is_refused(stage, tmp_path):
    """Catches a long run that fails at its end, or a smoke test shown as a result."""
    path = tmp_path / "cpu" / f"{stage}.json"
    assert cpu.main([stage, "--quick", "--out", str(path.parent)]) == 0
    made = json.loads(path.read_text())
    assert made["quick"] and made["command"] == f"make record STAGE={stage} QUICK=1"
    with pytest.raises(BookError, match="smoke test"):
        recorded.load(f"cpu/{stage}", tmp_path)
    path.write_text(json.dumps(made | {"quick": False}))
    text = recorded.fill(f"<!-- recorded: cpu/{stage} -->", tmp_path)
    assert all(name in text for name in ("FM-OT", "DDPM", "commit", "calls"))
    data = made["data"]
    assert len(data["rows"]) == 4 * 2 * 2  # methods, seeds, numbers of steps
    assert {row["seed"] for row in data["rows"]} == {0, 1}
    blocks = numbers.lines(made)
    assert [line.split()[0] for line in blocks[::5]] == [stage, stage]
    assert len(blocks) == 10 and all(line.count("±") == 2 for line in blocks[1:5])


def test_moons_log_prob_is_that_of_the_moons():
    """Catches a moon left out, an arc of another length, a density that is not one."""
    # a point mass at one angle, by hand: the mean over 2 × 4 angles, with wide noise
    x = draw(7, 2)
    angle = math.pi * torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64)
    arc = torch.stack((angle.cos() - 0.5, angle.sin() - 0.25), 1)
    total = torch.zeros(7, dtype=torch.float64)
    for centre in (*arc, *-arc):
        law = torch.distributions.MultivariateNormal(centre, 0.09 * torch.eye(2))
        total += law.log_prob(x.float()).double().exp() / 8
    assert_close(
        stage_curves.moons_log_prob(x, 0.3, 4), total.log(), rtol=1e-4, atol=1e-4
    )
    # and its integral against samples: E[1/p] over a box is the box's share of area
    points = sample_moons(20_000, generator=seeded(0))
    noisy = points.double() + 0.2 * draw(20_000, 2)  # noise 0.05 and 0.2 together
    log_p = stage_curves.moons_log_prob(noisy, math.hypot(0.05, 0.2), 400)
    inside = (noisy.abs() < 0.6).all(1)
    area = torch.where(inside, (-log_p).exp(), 0)
    assert abs(area.mean() - 1.44) < 4 * area.std() / math.sqrt(20_000)


def test_the_laws_of_the_plane_have_their_entropy():
    """Catches a truth that is another law's: it would be subtracted from every NLL."""
    g = seeded(1)
    for name, entropy in (("ring", 1.698), ("checkerboard", math.log(8))):
        sampler, log_prob = stage_curves.PLANE[name]
        values = -log_prob(sampler(4000, generator=g))
        assert values.dtype == torch.float64
        # eight Gaussians that hardly overlap: log 8 + log 2πe σ²
        error = 4 * values.std().item() / math.sqrt(4000)
        assert abs(values.mean() - entropy) <= error + 1e-3
    assert abs(math.log(8) + math.log(2 * math.pi * math.e * 0.04) - 1.698) < 1e-3


def test_the_baselines_of_the_digits_by_hand():
    """Catches counts without their plus one, a covariance over n, transposed images."""
    seen = torch.tensor([[0, 3], [0, 16], [2, 3]])
    levels = torch.tensor([[0, 3], [2, 5]])
    by_hand = [math.log(3 / 20 * 3 / 20), math.log(2 / 20 * 1 / 20)]
    assert_close(
        stage_curves.independent_pixels(seen, levels),
        torch.tensor(by_hand, dtype=torch.float64),
    )
    data = draw(50, 1, 1, 3) @ draw(3, 3, seed=1)
    law = scipy.stats.multivariate_normal(
        data.flatten(1).mean(0).numpy(), np.cov(data.flatten(1).numpy().T)
    )
    assert_close(
        stage_curves.one_gaussian(data, data[:5]).numpy(),
        law.logpdf(data[:5].flatten(1).numpy()),
    )


def test_a_change_elsewhere_keeps_the_parts(tmp_path):
    """Catches hours that are run again because another chapter's code has changed."""
    code = tmp_path / "a.py", tmp_path / "b.py"
    for path in code:
        path.write_text("x = 1\n")
    before = record.sources(code)
    assert record.sources(code[::-1]) == before != record.sources()
    (tmp_path / "c.py").write_text("y = 1\n")
    assert record.sources(code) == before
    code[1].write_text("x = 2\n")
    assert record.sources(code) != before


def job(tmp_path, **changes):
    settings = {"stage": "speed", "device": "cpu", "quick": True, "out": tmp_path}
    return record.Job(**{**settings, "work": tmp_path / "work", **changes})


def test_a_finished_part_is_not_run_again(tmp_path):
    """Catches a stage that starts from the beginning after it was cut off."""
    calls = []

    def make():
        calls.append(1)
        return {"x": 0.1}

    first = job(tmp_path).part("a", make)
    assert job(tmp_path).part("a", make) == first and len(calls) == 1
    job(tmp_path, seed=1).part("a", make)
    assert len(calls) == 2  # another seed, another result
    job(tmp_path).part("a", make)
    assert len(calls) == 3  # one run is kept, the latest


def test_a_part_kept_by_other_code_is_run_again(tmp_path, monkeypatch):
    """Catches a record that mixes the numbers of two versions."""
    job(tmp_path).part("a", lambda: {"x": 1})
    monkeypatch.setattr(record, "sources", lambda *_: "another")
    assert job(tmp_path).part("a", lambda: {"x": 2})["x"] == 2


@pytest.mark.parametrize("text", ["", "{", '{"key": 3}'])
def test_a_broken_file_of_parts_is_begun_anew(text, tmp_path):
    """Catches a run that can never go on because its last write was cut short."""
    (tmp_path / "speed.parts.json").write_text(text)
    assert job(tmp_path).part("a", lambda: {"x": 2})["x"] == 2


def test_no_part_is_begun_without_time_for_it(tmp_path):
    """Catches a stage that is killed in the middle of a part instead of stopping."""
    real = job(tmp_path, quick=False, minutes=1.0)
    assert real.part("short", lambda: {}, seconds=30)["seconds"] >= 0
    with pytest.raises(record.OutOfTime, match="long"):
        real.part("long", lambda: {}, seconds=90)


@pytest.mark.filterwarnings("default")
def test_a_stage_out_of_time_says_to_run_it_again(tmp_path, capsys):
    """Catches an exit status of 0 for a stage that is not finished."""
    assert quick("speed", tmp_path, "--minutes", "0") == gpu.UNFINISHED
    assert "run it again" in capsys.readouterr().out


def test_a_cpu_has_nothing_to_record(tmp_path, capsys):
    """Catches hours on a CPU, or a traceback where there is no CUDA."""
    assert gpu.main(["speed", "--device", "cpu", "--out", str(tmp_path)]) == 2
    if not torch.cuda.is_available():
        assert gpu.main(["speed", "--out", str(tmp_path)]) == 2
        assert "no CUDA device" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_commit_is_known_without_git(monkeypatch):
    """Catches a traceback on a machine that got the files alone."""
    monkeypatch.setenv("FLOWBOOK_COMMIT", "abc")
    assert record.commit() == "abc"
    monkeypatch.delenv("FLOWBOOK_COMMIT")
    monkeypatch.setenv("PATH", "")
    assert record.commit() is None


def test_a_failed_test_is_counted_and_named():
    """Catches a record of passed tests in which some have failed, or none has run."""
    found = stage_tests.summary(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure/>'
        '</testcase><testcase name="c"><skipped/></testcase></testsuite></testsuites>'
    )
    assert found == {"passed": 1, "failed": 1, "skipped": 1, "failures": ["b"]}
    assert stage_tests.summary("<testsuite/>")["failures"] == ["no test ran"]


def test_a_picture_is_what_was_drawn(tmp_path):
    """Catches grey levels out of order, or channels taken for rows."""
    from PIL import Image

    grey = torch.tensor([[[-1.0, 0.0, 1.0], [1.0, -1.0, 3.0]]])
    record.picture(tmp_path / "a.png", grey, scale=2)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (6, 4)
        assert [image.getpixel((x, y)) for x, y in ((0, 0), (4, 1), (0, 2))] == [
            *(0, 255, 255)
        ]
    record.picture(tmp_path / "b.png", torch.eye(3).view(3, 3, 1) * 2 - 1)
    with Image.open(tmp_path / "b.png") as image:
        assert image.getpixel((0, 1)) == (0, 255, 0)
