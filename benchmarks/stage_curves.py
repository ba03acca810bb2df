"""The comparison against training steps: four methods, three seeds, a set."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm import tqdm

from flowbook.bits import bits_per_dim, dequantize
from flowbook.comparison import (
    FOUR_METHODS,
    Exam,
    compare,
    draw_exam,
    t_interval,
    train_classifier,
)
from flowbook.datasets import load_digits
from flowbook.images import random_halves
from flowbook.likelihood import Exact, Hutchinson
from flowbook.metrics import calibrated_distance, frechet_distance, sliced_wasserstein
from flowbook.networks import MLP
from flowbook.toy import ring_mixture, sample_checkerboard, sample_moons

from .record import Job, table

BUDGETS = (4, 100)
STEPS = {
    "ring": (500, 1000, 2000, 5000, 10_000, 20_000),
    "moons": (1000, 3000, 5000, 10_000, 20_000, 40_000),
    "checkerboard": (1000, 3000, 6000, 12_000, 24_000),
    "digits": (400, 800, 1600, 3200, 6400, 12_800),
}
SCALE = {"levels": 17, "low": -17 / 16, "high": 17 / 16}  # bins of 1/8 about the greys


def sliced(x: Tensor, y: Tensor) -> Tensor:
    """The same directions for every comparison."""
    return sliced_wasserstein(x, y, generator=torch.Generator().manual_seed(0))


# --- sets in the plane, of which the density is known --------------------------------


def moons_log_prob(x: Tensor, noise: float = 0.05, angles: int = 4000) -> Tensor:
    """Log-density (n,) of `sample_moons` at `x` (n, 2): its mean over angles, float64.

    The midpoint rule on each half circle: nodes 0.016 standard deviations apart.
    """
    angle = math.pi * (torch.arange(angles, dtype=torch.float64) + 0.5) / angles
    arc = torch.stack((angle.cos() - 0.5, angle.sin() - 0.25), 1)
    centres = torch.cat((arc, -arc))

    def log_sum(part: Tensor) -> Tensor:
        squares = torch.cdist(part, centres).square()
        return (-squares / (2 * noise**2)).logsumexp(1)

    logs = [log_sum(part) for part in x.double().split(200)]
    return torch.cat(logs) - math.log(len(centres) * 2 * math.pi * noise**2)


def checkerboard_log_prob(x: Tensor) -> Tensor:
    return torch.full((len(x),), -math.log(8), dtype=torch.float64)


_RING = ring_mixture(8, dtype=torch.float64)
PLANE: dict[str, tuple[Callable, Callable]] = {  # sampler, log-density
    "ring": (ring_mixture(8).sample, lambda x: _RING.log_prob(x.double())),
    "moons": (sample_moons, moons_log_prob),
    "checkerboard": (sample_checkerboard, checkerboard_log_prob),
}


def _plane_exam(job: Job, seed: int) -> Exam:
    size = job.size(1000, 20)
    sampler = PLANE[job.stage][0]
    distances = {"sliced": sliced}
    points = job.size(10_000, 50)
    return draw_exam(sampler, distances, seed=seed, points=points, size=size)


def _plane_baselines(job: Job, seed: int, exam: Exam) -> dict:
    """The law itself: its NLL on the held-out points, and new samples of it, judged."""
    sampler, log_prob = PLANE[job.stage]
    new = sampler(len(exam.noise), generator=torch.Generator().manual_seed(seed + 2000))
    return {
        "the law itself": {
            "nll": -log_prob(exam.held_out).mean().item(),
            "distances": {name: judge(new) for name, judge in exam.judges.items()},
        }
    }


# --- digits --------------------------------------------------------------------------


def digits_exam(job: Job, seed: int) -> tuple[Exam, Tensor, Tensor]:
    """Other halves, other noise over the bins, another classifier for each seed.

    Also the grey levels (n, 64) of the half to train on, and of the held-out one.
    """
    g = torch.Generator().manual_seed(10**6 + seed)
    images, labels = load_digits()
    grey = ((images + 1) * 8).round().long()  # 0 to 16
    images = dequantize(grey, **SCALE, generator=g)
    seen, unseen = random_halves(len(images), generator=g)
    learn = job.size(400, 2)
    features = train_classifier(images[seen], labels[seen], steps=learn, seed=seed)[:-1]

    def frechet(x: Tensor, y: Tensor) -> Tensor:
        return frechet_distance(features(x), features(y))

    size, held_out = job.size(400, 40), images[unseen][: job.size(899, 50)]
    judges = {
        name: calibrated_distance(
            distance, images, held_out, size, repeats=50, generator=g
        )
        for name, distance in {"sliced": sliced, "Fréchet": frechet}.items()
    }
    noise = torch.randn((size, *images.shape[1:]), generator=g)
    exam = Exam(images[seen], noise, judges, held_out)
    levels = grey.flatten(1)
    return exam, levels[seen], levels[unseen][: len(held_out)]


def independent_pixels(seen: Tensor, levels: Tensor) -> Tensor:
    """Log-probability (n,) of `levels` (n, d) by each pixel's counts in `seen`, + 1."""
    counts = one_hot(seen, SCALE["levels"]).sum(0).double() + 1  # (d, levels)
    share = counts / counts.sum(1, keepdim=True)
    return share[torch.arange(len(share)), levels].log().sum(1)


def one_gaussian(seen: Tensor, x: Tensor) -> Tensor:
    """Log-density (n,) of `x` (n, d) under the Gaussian with the moments of `seen`."""
    seen, x = seen.flatten(1).double(), x.flatten(1).double()
    law = torch.distributions.MultivariateNormal(seen.mean(0), seen.T.cov())
    return law.log_prob(x)


def _digits_baselines(job: Job, seed: int, exam: Exam) -> dict:
    _, seen, levels = digits_exam(job, seed)
    d, size = seen.shape[1], len(exam.noise)
    width = (SCALE["high"] - SCALE["low"]) / SCALE["levels"]
    by_counts = independent_pixels(seen, levels) - d * math.log(width)  # as a density
    real = {name: judge(exam.data[:size]) for name, judge in exam.judges.items()}
    return {
        "real images": {"nll": None, "distances": real},
        "independent pixels": {"nll": -by_counts.mean().item(), "distances": {}},
        "one Gaussian": {
            "nll": -one_gaussian(exam.data, exam.held_out).mean().item(),
            "distances": {},
        },
    }


# --- the record ----------------------------------------------------------------------


def run(job: Job) -> None:
    digits = job.stage == "digits"
    seeds = [job.seed + k for k in range(job.size(3, 2))]
    steps = job.size(STEPS[job.stage], (2, 4))
    shape, width = ((1, 8, 8) if digits else 2), job.size(128, 8)
    batch = job.size(128 if digits else 256, 8)
    exams: dict[int, Exam] = {}

    def exam(seed: int) -> Exam:
        if seed not in exams:
            exams.clear()
            made = digits_exam(job, seed)[0] if digits else _plane_exam(job, seed)
            exams[seed] = made
        return exams[seed]

    def one(name: str, seed: int) -> dict:
        found = compare(
            {name: FOUR_METHODS[name]},
            lambda: MLP(shape, width=width),
            exam,
            seeds=[seed],
            steps=steps,
            batch_size=batch,
            budgets=BUDGETS,
            divergence=Hutchinson() if digits else Exact(),
            progress=False,
        )
        rows = [{"steps": n, **dataclasses.asdict(row)} for _, _, n, row in found]
        return {"rows": [_rounded(row) for row in rows]}

    baselines = _digits_baselines if digits else _plane_baselines
    rows: list[dict] = []
    lines: list[dict] = []
    parts = [(seed, name) for seed in seeds for name in [None, *FOUR_METHODS]]
    for seed, name in tqdm(parts, desc=job.stage, unit=" parts"):
        if name is None:
            make = partial(lambda s: {"of": baselines(job, s, exam(s))}, seed)
            found = job.part(f"baselines, seed {seed}", make)["of"]
            lines += [{"name": n, "seed": seed, **of} for n, of in found.items()]
        else:
            part = job.part(f"{name}, seed {seed}", partial(one, name, seed))
            rows += [{"method": name, "seed": seed, **row} for row in part["rows"]]
    rows = [{k: v for k, v in row.items() if k != "budgets"} for row in rows]
    lines = [_rounded(line) for line in lines]
    settings = {
        "data": "scikit-learn's digits" if digits else f"{job.stage}, drawn afresh",
        "network": f"MLP of width {width}",
        "steps": ", ".join(map(str, steps)),
        "batch": batch,
        "rate": "Adam, constant 1e-3; average with decay 0.999",
        "seeds": ", ".join(map(str, seeds)),
        "threads": torch.get_num_threads(),
        "solver": "dopri5 at 1e-5; midpoint at a fixed number of evaluations",
    }
    made = _digits_table(rows, lines) if digits else _plane_table(rows, lines)
    job.finish(settings, [made], [], {"rows": rows, "baselines": lines})


def _rounded(value):
    """Five digits of each number; None for one that is not finite."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _said(values: list[float]) -> str:
    """Mean ± half-width of the 95 % interval over the seeds."""
    if None in values or max(map(abs, values)) > 1e4:
        return "off the scale"
    mean, half = t_interval(values)
    digits = 2 if abs(mean) < 100 else 0
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


NOTE = (
    "After {steps:,} steps. Mean over {seeds} seeds, with Student's 95 % interval; "
    "each seed draws {drawn}. Distances are multiples of the 95 % quantile of real "
    "against real. Calls: of the network, by dopri5, until the last sample has come."
)


def _table(rows, lines, first, nll, judges, drawn) -> dict:
    """The methods after their last steps, and the baselines."""
    last = max(row["steps"] for row in rows)
    judged = [(j, k, n) for j in judges for k, n in enumerate(BUDGETS)]
    columns = ["", first, *(f"{judges[j]}, {n} evaluations" for j, _, n in judged)]
    body = []
    for name in FOUR_METHODS:
        found = [r for r in rows if r["method"] == name and r["steps"] == last]
        distances = [[r["distances"][j][k] for r in found] for j, k, _ in judged]
        costs = [[r[c] for r in found] for c in ("nfe", "calls")]
        values = [[nll(r) for r in found], *distances, *costs]
        body.append([name, *map(_said, values)])
    for name in dict.fromkeys(line["name"] for line in lines):
        found = [line for line in lines if line["name"] == name]
        known = [nll(line) for line in found if line["nll"] is not None]
        cells = [_said(known) if known else None]
        for j, _, _ in judged:
            real = [line["distances"][j] for line in found if j in line["distances"]]
            cells.append(_said(real) if real else None)
        body.append([name, *cells, None, None])
    columns += ["mean evaluations of dopri5", "calls"]
    seeds = len({row["seed"] for row in rows})
    note = NOTE.format(steps=last, seeds=seeds, drawn=drawn)
    return table(f"{first}, distance and cost", columns, body, note)


def _plane_table(rows: list[dict], lines: list[dict]) -> dict:
    truth = {line["seed"]: line["nll"] for line in lines}
    drawn = "its own training, held-out and real points, starts and first weights"
    return _table(
        rows,
        lines,
        "NLL − truth, nats",
        lambda r: r["nll"] - truth[r["seed"]],
        {"sliced": "sliced W₂²"},
        drawn,
    )


def bits(nll: float | None) -> float | None:
    """Nats for an image to bits per dimension; None, not finite, stays None."""
    if nll is None:
        return None
    minus = torch.tensor([-nll], dtype=torch.float64)
    return bits_per_dim(minus, (1, 8, 8), **SCALE).item()


def _digits_table(rows: list[dict], lines: list[dict]) -> dict:
    drawn = (
        "its own halves of the digits, noise over the bins, starts and first weights"
    )
    return _table(
        rows,
        lines,
        "bits per dimension",
        lambda r: bits(r["nll"]),
        {"Fréchet": "Fréchet"},
        drawn,
    )
