"""Two pieces of code timed against each other: interleaved, and as a ratio."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Code = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How many times as long one code took as another: median and quartiles."""

    median: float
    low: float
    high: float

    def over(self, budget: float) -> bool:
        """Whether three rounds in four were over budget, so that it is not noise."""
        return self.low > budget


def seconds(code: Code, repeats: int, device: str = "cpu") -> float:
    """Seconds of one call, as the mean of `repeats` after one another.

    On a CPU they are this process's own: others that take turns with it cost nothing.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(repeats):
        code()
    if device != "cpu":
        torch.cuda.synchronize()
    return (clock() - start) / repeats


def interleaved(
    codes: dict[str, Code],
    *,
    rounds: int = 31,
    least: float = 0.02,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Seconds of a call of each code, once a round, in an order that turns around.

    A code is repeated within a round until it has taken `least` seconds or so. Each
    round sees the same state of the machine, so it is rounds that are compared.
    """
    repeats = {}
    for name, code in codes.items():
        code()  # warm
        repeats[name] = max(1, round(least / max(seconds(code, 1, device), 1e-9)))
        again = seconds(code, repeats[name], device)
        repeats[name] = max(1, round(least / max(again, 1e-9)))
    taken: dict[str, list[float]] = {name: [] for name in codes}
    for turn in range(rounds):
        order = list(codes.items())
        for name, code in order if turn % 2 else reversed(order):
            taken[name].append(seconds(code, repeats[name], device))
    return taken


def ratio(ours: list[float], others: list[float]) -> Ratio:
    """The ratio of each round: its median and quartiles."""
    each = [a / b for a, b in zip(ours, others, strict=True)]
    if len(each) < 2:
        return Ratio(each[0], each[0], each[0])
    low, median, high = statistics.quantiles(each, n=4, method="inclusive")
    return Ratio(median, low, high)
