"""Fashion-MNIST by the recipe of `train_unet`: one network, and what came out of it."""

from functools import partial

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowbook.comparison import train_classifier
from flowbook.datasets import load_fashion_mnist
from flowbook.images import image_grid, nearest, spherical_blend, train_unet
from flowbook.metrics import (
    distance_null,
    energy_distance,
    frechet_distance,
    sliced_wasserstein,
)
from flowbook.sampling import sample
from flowbook.solvers import Midpoint, solve
from flowbook.unet import UNet

from .record import ROOT, Job, picture, table

CLASSES = "T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, boot"


def images(job: Job, split: str, *, dtype=None) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST from data/ or Debian's package; a smoke test does without."""
    root = ROOT / "data"
    if not job.quick:
        x, y = load_fashion_mnist(
            split, root=root if root.exists() else None, dtype=dtype
        )
        return x.to(job.device), y.to(job.device)
    job.synthetic = True  # bright bars, one width for each label
    g = torch.Generator().manual_seed(len(split))
    y = torch.arange(80) % 4
    x = torch.rand(80, 1, 28, 28, generator=g) * 40
    for row, label in enumerate(y.tolist()):
        x[row, :, 4:24, 6 : 10 + 4 * label] += 180
    levels = x.to(torch.uint8)
    x = levels if dtype == torch.uint8 else levels / 127.5 - 1
    return x.to(job.device), y.to(job.device)


def run(job: Job) -> None:
    steps, width, batch = job.size((8000, 64, 256), (4, 8, 16))
    trained = job.part("training", partial(_train, job, steps, width, batch))
    x, _ = images(job, "train")
    model = _model(job, width)
    pictures = [
        job.part("samples", partial(_samples, job, model), seconds=20),
        job.part("trajectories", partial(_trajectories, job, model), seconds=20),
        job.part("blends", partial(_blends, job, model), seconds=20),
        job.part("neighbours", partial(_neighbours, job, model, x), seconds=30),
    ]
    scores = job.part("distances", partial(_distances, job, model), seconds=90)
    near = pictures[-1]
    facts = [
        ["wall-clock of the training, s", trained["wall"]],
        ["images a second", trained["rate"]],
        ["most GPU memory, GiB", trained["memory_gib"]],
        ["mean loss of the last 500 steps", trained["loss"]],
        ["median distance of a sample to its nearest training image", near["drawn"]],
        ["the same of a held-out image", near["held_out"]],
        ["smallest distance of a sample to a training image", near["smallest"]],
    ]
    columns = ["distance to held-out images", "samples", "real images: median", "95 %"]
    tables = [
        table("Training, and copies", ["", "value"], facts),
        table("Samples against real images", columns, scores["rows"], scores["note"]),
    ]
    settings = {
        "data": "made-up bars" if job.synthetic else "Fashion-MNIST, 60,000 images",
        "steps": steps,
        "batch": batch,
        "network": f"U-Net of width {width}, labelled, {trained['weights']:,} weights",
        "precision": trained["precision"],
        "sampler": "midpoint, 50 steps",
    }
    keys = ("file", "alt", "caption")
    job.finish(settings, tables, [{k: p[k] for k in keys} for p in pictures])


def _train(job: Job, steps: int, width: int, batch: int) -> dict:
    """Train, or go on from the last checkpoint; keep the averaged weights."""
    from time import monotonic

    from flowbook.session import choose_precision

    x, y = images(job, "train")
    torch.manual_seed(job.seed)
    if job.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    kept = job.folder / "checkpoints"
    before = sum(1 for _ in kept.glob("*")) if kept.exists() else 0
    start = monotonic()
    run = train_unet(
        x,
        y,
        steps=steps,
        batch_size=batch,
        width=width,
        generator=job.generator(),
        compile=job.size(True, False),
        checkpoint_dir=kept,
        progress=False,
    )
    losses = run.losses[-500:].mean().item()  # waits for the device
    wall = monotonic() - start
    save_file(dict(run.ema.state_dict()), job.folder / "ema.safetensors")
    card = job.device != "cpu"
    return {
        "wall": round(wall, 1),
        "rate": None if before else round(steps * batch / wall),
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if card else None,
        "loss": losses,
        "weights": sum(p.numel() for p in run.ema.parameters()),
        "precision": choose_precision("auto", torch.float32, job.device),
    }


def _model(job: Job, width: int) -> nn.Module:
    classes = 4 if job.synthetic else 10
    model = UNet(1, width=width, classes=classes)
    model.load_state_dict(load_file(job.folder / "ema.safetensors"))
    return model.to(job.device).eval().requires_grad_(False)


def _draw(job: Job, model: nn.Module, y: Tensor, offset: int) -> Tensor:
    """Samples with labels `y`, 500 at a time."""
    shape = (len(y), 1, 28, 28)
    x0 = torch.randn(shape, generator=job.generator(offset), device=job.device)
    steps = job.size(50, 2)
    parts = zip(x0.split(500), y.split(500), strict=True)
    return torch.cat(
        [sample(partial(model, y=b), a, Midpoint(steps)) for a, b in parts]
    )


def _picture(job: Job, name: str, grid: Tensor, alt: str, caption: str) -> dict:
    file = f"images-{name}.png"
    picture(job.out / file, grid, scale=2)
    return {"file": file, "alt": alt, "caption": caption}


def _samples(job: Job, model: nn.Module) -> dict:
    y = torch.arange(model.classes, device=job.device).repeat(8)
    grid = image_grid(_draw(job, model, y, 1), model.classes)
    alt = "Eight rows of small grey pictures of clothes, one kind in each column."
    return _picture(job, "samples", grid, alt, f"Samples, a label a column: {CLASSES}.")


def _trajectories(job: Job, model: nn.Module) -> dict:
    y = torch.arange(4, device=job.device)
    shape = (4, 1, 28, 28)
    x0 = torch.randn(shape, generator=job.generator(2), device=job.device)
    with torch.no_grad():
        field = partial(model, y=y)
        way = solve(field, x0, Midpoint(50), trajectory=True).trajectory
    grid = image_grid(way[::5].transpose(0, 1).flatten(0, 1), 11)
    alt = "Four rows: from grey noise on the left to a piece of clothing on the right."
    return _picture(job, "trajectories", grid, alt, "From t = 0 to t = 1 in tenths.")


def _blends(job: Job, model: nn.Module) -> dict:
    shape = (4, 1, 28, 28)
    draw = partial(torch.randn, shape, device=job.device)
    a, b = draw(generator=job.generator(3)), draw(generator=job.generator(4))
    s = torch.linspace(0, 1, 11, device=job.device).repeat(4)
    mixed = spherical_blend(a.repeat_interleave(11, 0), b.repeat_interleave(11, 0), s)
    y = torch.arange(4, device=job.device).repeat_interleave(11)
    x = sample(partial(model, y=y), mixed, Midpoint(job.size(50, 2)))
    alt = "Four rows: a piece of clothing turns step by step into another of its kind."
    caption = "Blends of two noises, of the same label, each carried to the data."
    return _picture(job, "blends", image_grid(x, 11), alt, caption)


def _neighbours(job: Job, model: nn.Module, x: Tensor) -> dict:
    """Samples above their nearest training images, and how far these are."""
    y = torch.arange(job.size(1000, 40), device=job.device) % model.classes
    drawn = _draw(job, model, y, 5)
    held_out, _ = images(job, "test")
    index, distance = nearest(drawn, x)
    _, usual = nearest(held_out[: len(drawn)], x)
    n = 12
    grid = image_grid(torch.cat([drawn[:n], x[index[:n]]]), n)
    alt = (
        "Twelve samples in the upper row, and below each the most similar real picture."
    )
    caption = "Above: samples. Below: the training image nearest to each."
    found = _picture(job, "neighbours", grid, alt, caption)
    return found | {
        "drawn": distance.median().item(),
        "held_out": usual.median().item(),
        "smallest": distance.min().item(),
    }


def _distances(job: Job, model: nn.Module) -> dict:
    """Three distances to held-out images, and what real images have to each other."""
    n, repeats = job.size((2000, 20), (20, 2))
    x, y = images(job, "train")
    held_out, labels = images(job, "test")
    drawn = _draw(job, model, labels[:n], 6)
    classifier = train_classifier(x, y, steps=job.size(2000, 5), seed=job.seed)

    def by_features(a: Tensor, b: Tensor) -> Tensor:
        return frechet_distance(classifier[:-1](a), classifier[:-1](b))

    def sliced(a: Tensor, b: Tensor) -> Tensor:
        return sliced_wasserstein(a, b, generator=job.generator(7))

    rows = []
    distances = {"energy": energy_distance, "sliced W₂²": sliced}
    for name, distance in {**distances, "Fréchet, in features": by_features}.items():
        null = distance_null(
            distance, held_out, n, n, repeats=repeats, generator=job.generator(8)
        )
        value = distance(drawn, held_out[:n]).item()
        rows.append([name, value, null.median().item(), null.quantile(0.95).item()])
    right = (classifier(held_out).argmax(1) == labels).double().mean().item()
    asked = (classifier(drawn).argmax(1) == labels[:n]).double().mean().item()
    note = (
        f"{n} of each. The classifier, of the book's own, is right on "
        f"{100 * right:.1f} % of held-out images, and finds the label that was asked "
        f"for in {100 * asked:.1f} % of the samples."
    )
    return {"rows": rows, "note": note}
