"""Throughput of training and latency of sampling, against a plain loop and the card.

Two ceilings are measured first: the rate of a large matrix product in each precision,
and of a large copy. A row's share of the first counts the operations of its matrix
products and convolutions; its share of the second the fewest bytes that it must move:
weights, gradients, moments and averages read and written once a step, or the weights
read once an evaluation. Neither can reach 1; the larger says what holds a row back.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flowbook.networks import MLP
from flowbook.paths import OTPath
from flowbook.sampling import sample
from flowbook.solvers import Euler
from flowbook.training import train
from flowbook.unet import UNet

from . import plain
from .record import Job, table
from .timing import interleaved

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = ["", "times the plain loop's speed", "of the product's", "of the copy's"]


def run(job: Job) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    peaks = job.part("peaks", lambda: _peaks(job), seconds=30)
    work = list(_works(job))
    found = {
        f"{kind}: {w.name}": job.part(
            f"{kind}: {w.name}", partial(measure, job, w), seconds=100
        )
        for kind, measure in (("Training", _training), ("Sampling", _sampling))
        for w in work
    }
    units = {"bytes/s": "copy, GB/s"}
    rows = [
        [units.get(name, f"matrix product in {name}, Tflop/s"), rate / scale]
        for name, rate in peaks.items()
        if name != "seconds"
        for scale in (1e9 if name in units else 1e12,)
    ]
    tables = [table("Ceilings measured on this card", ["", "rate"], rows)]
    tables += [
        table(title, COLUMNS, _shares(part, peaks)) for title, part in found.items()
    ]
    settings = {
        "matrix product": f"{_side(job)} cubed, random numbers; float32 without TF32",
        "training": "Adam, clipping at 1, averaged weights; straight path",
        "sampling": "50 Euler steps",
    } | {w.name: w.said for w in work}
    job.finish(settings, tables, [])


@dataclass(frozen=True)
class _Work:
    """A network, and the sizes that it is trained and sampled at."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    drawn: int
    steps: int

    @property
    def said(self) -> str:
        return f"points {self.shape}; batch {self.batch}, {self.drawn} drawn at once"


def _works(job: Job) -> Iterator[_Work]:
    sizes = job.size((4096, 256, 300), (16, 2, 3))
    yield _Work("MLP 3 × 256", lambda: MLP(2), (2,), *sizes)
    width = job.size(64, 8)
    sizes = job.size((256, 64, 60), (2, 2, 2))
    yield _Work(
        f"U-Net of width {width}", lambda: UNet(1, width=width), (1, 28, 28), *sizes
    )


# --- the card ------------------------------------------------------------------------


def _side(job: Job) -> int:
    return job.size(8192, 128)


def _peaks(job: Job) -> dict[str, float]:
    """Operations a second by dtype, and bytes a second, read and written."""
    n, peaks = _side(job), {}
    for name, dtype in {"fp32": torch.float32, **HALVES}.items():
        draw = partial(torch.randn, n, n, generator=job.generator(), device=job.device)
        a, b = draw().to(dtype), draw().to(dtype)
        out = torch.empty_like(a)
        taken = _median(job, {"it": lambda a=a, b=b, out=out: torch.mm(a, b, out=out)})
        peaks[name] = 2 * n**3 / taken["it"]
    a = torch.randn(job.size(2**29, 2**16), device=job.device)  # 2 GiB: past the cache
    b = torch.empty_like(a)
    taken = _median(job, {"it": lambda: b.copy_(a)})
    peaks["bytes/s"] = 2 * a.nbytes / taken["it"]
    return peaks


def _median(job: Job, codes: dict[str, Callable]) -> dict[str, float]:
    rounds, least = job.size((15, 0.1), (1, 1e-4))
    taken = interleaved(codes, rounds=rounds, least=least, device=job.device)
    return {name: statistics.median(times) for name, times in taken.items()}


def _shares(part: dict, peaks: dict) -> list[list]:
    """A row a variant: speed over the plain loop's, and the shares of both ceilings."""
    rows = []
    base = part["variants"]["plain loop, fp32"]
    for name, taken in part["variants"].items():
        precision = next((p for p in HALVES if p in name), "fp32")
        product = part["operations"] / taken / peaks[precision]
        rows.append(
            [name, base / taken, product, part["bytes"] / taken / peaks["bytes/s"]]
        )
    return rows


# --- training ------------------------------------------------------------------------


def _training(job: Job, work: _Work) -> dict:
    """Seconds of a step: the plain loop, then `train`, by precision and compiled."""
    shape = (4 * work.batch, *work.shape)
    data = torch.randn(shape, generator=job.generator(), device=job.device)
    variants = {"plain loop, fp32": partial(_plain_step, job, work, data)}
    for precision in job.size(("no", "bf16", "fp16"), ("no", "bf16")):
        said = {"no": "fp32"}.get(precision, precision)
        settings = {"precision": precision, "compile": False}
        variants[f"train, {said}"] = partial(_step, job, work, data, settings)
        if not job.quick and precision != "fp16":
            settings = {"precision": precision, "compile": True}
            variants[f"train, {said}, compiled"] = partial(
                _step, job, work, data, settings
            )
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(job.size(3, 1)):
        for name, step in variants.items():
            taken[name].append(step())
    model = work.make().to(job.device)
    weights = sum(p.nbytes for p in model.parameters())
    return {
        "variants": {n: statistics.median(times) for n, times in taken.items()},
        "operations": _operations(job, work, model, backward=True),
        # gradient written and read; weight, average and two moments read and written
        "bytes": 10 * weights + 2 * work.batch * data[0].nbytes,
    }


def _operations(job: Job, work: _Work, model: nn.Module, *, backward: bool) -> int:
    batch = work.batch if backward else work.drawn
    x = torch.randn(batch, *work.shape, device=job.device)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        v = model(x, 0.5)
        if backward:
            v.square().sum().backward()
    return counter.get_total_flops()


def _clock(job: Job) -> float:
    if job.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _plain_step(job: Job, work: _Work, data: Tensor) -> float:
    model = work.make().to(job.device)
    settings = {"batch_size": work.batch}
    plain.train(model, data, steps=2, **settings)  # warm
    start = _clock(job)
    plain.train(model, data, steps=work.steps, **settings)
    return (_clock(job) - start) / work.steps


def _step(job: Job, work: _Work, data: Tensor, settings: dict) -> float:
    """Seconds of a step of `train` once it is warm, and compiled if it is to be.

    The rate is asked for at the start of each step, so there a clock can be read.
    """
    warm, marks = max(1, work.steps // 5), {}

    def rate(step: int) -> float:
        if step == warm:
            marks["start"] = _clock(job)
        return 1e-3

    train(
        work.make().to(job.device),
        OTPath(),
        data,
        steps=warm + work.steps,
        batch_size=work.batch,
        lr=rate,
        clip=1.0,
        generator=job.generator(),
        progress=False,
        **settings,
    )
    return (_clock(job) - marks["start"]) / work.steps


# --- sampling ------------------------------------------------------------------------


def _sampling(job: Job, work: _Work) -> dict:
    """Seconds of 50 Euler steps: the plain loop, and `sample` of several fields."""
    steps = job.size(50, 2)
    model = work.make().to(job.device).eval().requires_grad_(False)
    x0 = torch.randn(
        work.drawn, *work.shape, generator=job.generator(), device=job.device
    )
    fields = {"fp32": model, "bf16": _in_half(model, "bf16", job.device)}
    if not job.quick:
        fields["fp16"] = _in_half(model, "fp16", job.device)
        fields["fp32, compiled"] = torch.compile(model)
        graphs = torch.compile(model, mode="reduce-overhead")
        fields["fp32, compiled, CUDA graphs"] = graphs
        half = torch.compile(
            _in_half(model, "bf16", job.device), mode="reduce-overhead"
        )
        fields["bf16, compiled, CUDA graphs"] = half
    codes: dict[str, Callable] = {
        "plain loop, fp32": lambda: plain.euler(model, x0, steps)
    }
    for name, field in fields.items():
        codes[f"sample, {name}"] = partial(sample, field, x0, Euler(steps))
    weights = sum(p.nbytes for p in model.parameters())
    return {
        "variants": _median(job, codes),
        "operations": steps * _operations(job, work, model, backward=False),
        "bytes": steps * (weights + 2 * x0.nbytes),
    }


def _in_half(model: nn.Module, precision: str, device: str) -> Callable:
    """The field with its products in half precision; states stay in float32."""
    on = precision in HALVES
    scope = partial(torch.autocast, device, HALVES[precision]) if on else nullcontext

    def field(x: Tensor, t: Tensor) -> Tensor:
        with scope():
            return model(x, t).to(x.dtype)

    return field
