"""flowbook on a CPU beside plain torch: ratios against budgets, in one table.

    python -m benchmarks.speed            everything; exit 1 if a row is over budget
    python -m benchmarks.speed --quick    a smoke test: tiny times, no verdict
    python -m benchmarks.speed --only sample

Each row times flowbook and benchmarks/plain.py in turn, many rounds, on one thread. The
table gives the median of the rounds' ratios and their quartiles; a row is over budget
when three rounds in four are. "the same code twice" shows what the machine's noise is.
Seconds are printed nowhere: they would say more about the machine than about the code.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

from flowbook import CosinePath, OTPath, VEPath, VPPath
from flowbook import sample as flow_sample
from flowbook.likelihood import divergence
from flowbook.networks import MLP
from flowbook.solvers import Dopri5, Euler, Midpoint, solve
from flowbook.toy import sample_moons
from flowbook.training import train

from . import plain, reach
from .timing import Code, Ratio, interleaved, ratio


@dataclass(frozen=True)
class Row:
    """One comparison: ours against the fastest of the others, and the budget."""

    name: str
    ours: Code
    others: tuple[Code, ...]
    budget: float | None
    rounds: int = 31
    note: str = ""  # printed under it


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def trained(quick: bool) -> torch.nn.Module:
    """A field of one's own that a solver has some work with: two moons."""
    torch.manual_seed(0)
    data = sample_moons(4096, generator=generator())
    steps = 20 if quick else 4000
    return plain.train(plain.Perceptron(), data, steps=steps, batch_size=256).eval()


# --- the rows ------------------------------------------------------------------------


def training_rows(quick: bool) -> Iterator[Row]:
    data = sample_moons(8192, generator=generator())
    for batch_size, steps in ((256, 200), (4096, 30)):
        steps = 2 if quick else steps
        ours, other = MLP(2), MLP(2)  # 3 layers of 256

        def by_train(model=ours, batch_size=batch_size, steps=steps):
            train(
                model,
                OTPath(),
                data,
                steps=steps,
                batch_size=batch_size,
                clip=1.0,
                generator=generator(),
                progress=False,
            )

        def by_hand(model=other, batch_size=batch_size, steps=steps):
            plain.train(model, data, steps=steps, batch_size=batch_size)

        yield Row(f"train, batch {batch_size}", by_train, (by_hand,), 1.10, 11)


def path_rows(quick: bool) -> Iterator[Row]:
    pairs = (
        (OTPath(), plain.ot),
        (CosinePath(), plain.cosine),
        (VPPath(), plain.vp),
        (VEPath(0.01, 10.0), plain.ve),
    )
    for shape in ((256, 2), (4096, 2), (256, 784)):
        x0, x1 = torch.randn(2, *shape, generator=generator())
        t = torch.rand(shape[0], generator=generator())
        for path, formula in pairs:
            yield Row(
                f"{type(path).__name__}.interpolate, {shape}",
                lambda path=path, x0=x0, x1=x1, t=t: path.interpolate(x0, x1, t),
                (lambda formula=formula, x0=x0, x1=x1, t=t: formula(x0, x1, t),),
                1.5,
            )


def sample_rows(quick: bool) -> Iterator[Row]:
    field, steps = trained(quick), 2 if quick else 50
    for solver, by_hand in (
        (Euler(steps), plain.euler),
        (Midpoint(steps), plain.midpoint),
    ):
        name = type(solver).__name__.lower()  # as the recorded rows call it
        for batch in (1, 256):
            x0 = torch.randn(batch, 2, generator=generator())
            yield Row(
                f"sample, {name}, batch {batch}",
                lambda x0=x0, s=solver: flow_sample(field, x0, s),
                (lambda x0=x0, by_hand=by_hand: by_hand(field, x0, steps),),
                1.05,
            )
    for batch, budget in ((1, 1.3), (256, 1.1)):
        x0 = torch.randn(batch, 2, generator=generator())
        yield Row(
            f"sample, dopri5 at 1e-5, batch {batch}",
            lambda x0=x0: flow_sample(field, x0, Dopri5()),
            (lambda x0=x0: plain.dopri5(field, x0),),
            budget,
        )


def divergence_rows(quick: bool) -> Iterator[Row]:
    for d, batch in ((2, 256), (64, 256), (784, 16)):
        d = min(d, 8) if quick else d
        torch.manual_seed(0)
        field = MLP(d)
        torch.nn.init.normal_(field.perceptron[-1].weight, std=0.1)
        x = torch.randn(batch, d, generator=generator())
        t = torch.rand(batch, generator=generator())

        def exact(field=field, x=x, t=t):
            with torch.no_grad():
                return divergence(field, x, t)

        yield Row(
            f"exact divergence, d = {d}, batch {batch}",
            exact,
            (  # budget: never slower than either, to what two timings differ by
                lambda field=field, x=x, t=t: plain.divergence_by_loop(field, x, t),
                lambda field=field, x=x, t=t: plain.divergence_at_once(field, x, t),
            ),
            1.05,
            15,
        )


def likelihood_rows(quick: bool) -> Iterator[Row]:
    """Time until every point's log-density is within 1e-4 nats of the truth."""
    goal = 1e-2 if quick else 1e-4
    for d, batch in ((2, 128), (64, 8)):
        field = reach.Mixture(min(d, 8) if quick else d)
        x = field.sample(2 if quick else batch)
        for probe in (False, True):
            codes, calls = {}, {}
            for name, code in reach.contenders(field, x, probe).items():
                tol, before = code.loosest(goal), field.calls
                code.run(tol)
                calls[name] = field.calls - before
                codes[name] = lambda run=code.run, tol=tol: run(tol)
            yield Row(
                f"to {goal:g} nats, {'a probe' if probe else 'exact'}, d = {d}",
                codes.pop("flowbook"),
                tuple(codes.values()),
                1.0,
                9,
                "evaluations: " + ", ".join(f"{n} {k}" for n, k in calls.items()),
            )


def import_rows(quick: bool) -> Iterator[Row]:
    def start(statement: str) -> Code:
        command = [sys.executable, "-c", statement]
        return lambda: subprocess.run(command, check=True)

    rounds = 1 if quick else 7
    other = (start("import json" if quick else "import torch"),)
    yield Row("import flowbook", start("import flowbook"), other, 1.05, rounds)
    if quick:
        return
    names = "from flowbook import OTPath, MLP, sample, train"
    yield Row(names, start(names), other, None, rounds)


def noise_rows(quick: bool) -> Iterator[Row]:
    x0, x1 = torch.randn(2, 256, 2, generator=generator())
    t = torch.rand(256, generator=generator())

    def same():
        return plain.ot(x0, x1, t)

    yield Row("(the same code twice)", same, (same,), None)


GROUPS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "noise": noise_rows,
    "train": training_rows,
    "path": path_rows,
    "sample": sample_rows,
    "divergence": divergence_rows,
    "likelihood": likelihood_rows,
    "import": import_rows,
}

# --- the table -----------------------------------------------------------------------


def measure(row: Row, quick: bool) -> Ratio:
    codes = {"ours": row.ours}
    codes |= {str(number): code for number, code in enumerate(row.others)}
    rounds, least = (1, 1e-4) if quick else (row.rounds, 0.02)
    taken = interleaved(codes, rounds=rounds, least=least)
    ours = taken.pop("ours")
    return ratio(ours, [min(times) for times in zip(*taken.values(), strict=True)])


def evaluations(quick: bool) -> tuple[float, float]:
    """Mean evaluations of dopri5 at 1e-5 for a sample: ours, and torchdiffeq's."""
    from torchdiffeq import odeint

    field = trained(quick)
    x0 = torch.randn(2 if quick else 64, 2, generator=generator())
    calls = 0

    def counted(t, x):
        nonlocal calls
        calls += 1
        return field(x, t.expand(len(x)))

    ends = torch.tensor([0.0, 1.0])
    stop = {"step_t": ends}  # else it looks past the end and interpolates
    with torch.no_grad():
        ours = solve(field, x0).nfe.double().mean().item()
        for one in x0.split(1):
            odeint(counted, one, ends, rtol=1e-5, atol=1e-5, options=stop)
    return ours, calls / len(x0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--only", choices=GROUPS, help="one group of rows")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [given.only] if given.only else list(GROUPS)
    print(f"{'against plain torch, one thread':44}  ratio  quartiles     budget")
    failed = []
    for row in (row for name in names for row in GROUPS[name](given.quick)):
        found = measure(row, given.quick)
        budget = "—" if row.budget is None else f"{row.budget:.2f}"
        judged = row.budget is not None and not given.quick
        over = judged and found.over(row.budget)
        failed += [row.name] if over else []
        print(
            f"{row.name:44}  {found.median:5.2f}  {found.low:.2f} to {found.high:.2f}"
            f"  {budget:>5}{'  OVER' if over else ''}",
            flush=True,
        )
        if row.note:
            print(f"    {row.note}", flush=True)
    if "sample" in names:
        ours, theirs = evaluations(given.quick)
        more = ours > theirs
        failed += ["evaluations of dopri5"] if more else []
        print(
            f"evaluations of dopri5 at 1e-5, mean of single samples: {ours:.1f}, "
            f"torchdiffeq {theirs:.1f}{'  OVER' if more and not given.quick else ''}"
        )
    if given.quick:
        print("a smoke test: these ratios mean nothing")
        return 0
    if failed:
        print(f"over budget: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
