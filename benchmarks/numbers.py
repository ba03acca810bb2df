"""The means that the comparison's figures draw: `python -m benchmarks.numbers`."""

import json
from pathlib import Path

from flowbook.comparison import FOUR_METHODS, t_interval

from .cpu import RESULTS, STAGES
from .stage_curves import BUDGETS, bits


def lines(record: dict) -> list[str]:
    """Two blocks of text: NLL − truth or bits, and the distance at 100 evaluations.

    A head with the numbers of steps, then for each method mean±half-width at each.
    """
    data, stage = record["data"], record["stage"]
    counts = sorted({row["steps"] for row in data["rows"]})
    truth = {line["seed"]: line["nll"] for line in data["baselines"]}
    judge = "Fréchet" if stage == "digits" else "sliced"

    def likelihood(row: dict) -> float:
        if stage == "digits":
            return bits(row["nll"])
        return row["nll"] - truth[row["seed"]]

    def distance(row: dict) -> float:
        return row["distances"][judge][BUDGETS.index(100)]

    made = []
    for name, value in (("NLL", likelihood), ("distance", distance)):
        made.append(" ".join([stage, name, *map(str, counts)]))
        for method in FOUR_METHODS:
            found = [r for r in data["rows"] if r["method"] == method]
            at = [[value(r) for r in found if r["steps"] == n] for n in counts]
            cells = " ".join(map(_cell, at))
            made.append(f"{method.replace(' ', '_')} {cells}")
    return made


def _cell(values: list[float | None]) -> str:
    if None in values or max(map(abs, values)) > 1e4:  # off the scale
        return "inf±inf"
    mean, half = t_interval(values)
    return f"{mean:.3g}±{half:.2g}"


def load(stage: str, folder: Path = RESULTS) -> dict:
    return json.loads((folder / f"{stage}.json").read_text())


if __name__ == "__main__":
    for stage in STAGES:
        if (RESULTS / f"{stage}.json").exists():
            print("\n".join(lines(load(stage))))
