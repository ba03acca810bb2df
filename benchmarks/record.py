"""A recorded run: what it ran on, what came out, and how to go on when cut off.

A stage is made of parts. A finished part is kept at once in `<stage>.parts.json` and is
not run again, as long as the code, the seed, the device and the sizes are the same;
when all are there, `<stage>.json` is written in one piece, and the parts are removed.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
WORK = ROOT / "_build" / "gpu"  # weights, compiled code: what need not come back
SCHEMA = 1
PACKAGES = ("torch", "accelerate", "numpy", "safetensors", "scikit-learn", "pytest")


class OutOfTime(Exception):
    """The time of this call is spent; what is finished is kept."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_whole(path: Path, value: object) -> None:
    """Write JSON aside, and put it in place: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(aside, path)


def sources(code: tuple[Path, ...] = ()) -> str:
    """A hash of all the code that a number can depend on: of `code`, if it is known."""
    h = hashlib.sha256()
    folders = ("flowbook", "benchmarks", "tests")
    for path in sorted(code) or [
        p for f in folders for p in sorted((ROOT / f).rglob("*.py"))
    ]:
        name = f"{path.parent.name}/{path.name}"
        h.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return h.hexdigest()[:16]


def commit() -> str | None:
    """FLOWBOOK_COMMIT, or what git says (with "+ changes"); None where there is none.

    A machine that got a copy of the files has no git: say the commit in the variable.
    """
    if said := os.environ.get("FLOWBOOK_COMMIT"):
        return said

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=ROOT, capture_output=True, text=True
            )
        except OSError:
            return None
        return None if done.returncode else done.stdout.strip()

    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", "flowbook", "benchmarks", "tests")
    return f"{head} + changes" if head and changed else head


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def hardware(device: str) -> dict[str, str | float]:
    """The device's kind and name; the card's memory in GiB and multiprocessors."""
    found = {"device": device, "system": f"{platform.system()} {platform.machine()}"}
    if device == "cpu":
        return {**found, "name": _cpu(), "cores": os.cpu_count() or 1}
    card = torch.cuda.get_device_properties(0)
    return {
        **found,
        "name": card.name,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "multiprocessors": card.multi_processor_count,
    }


def _cpu() -> str:
    """The processor's name, as Linux or Python know it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return (names[0].strip() if names else platform.processor()) or "a CPU"


@dataclass
class Job:
    """One call of one stage."""

    stage: str
    device: str
    quick: bool
    out: Path
    seed: int = 0
    minutes: float = 9.0
    work: Path = WORK
    begun: float = field(default_factory=time.monotonic)
    synthetic: bool = False  # made-up data: of no use but to try the code
    code: tuple[Path, ...] = ()  # what the numbers depend on; (): all there is
    target: str = "gpu"  # of make

    @property
    def key(self) -> dict:
        """What a kept part has to agree with."""
        return {
            "schema": SCHEMA,
            "hardware": hardware(self.device),
            "quick": self.quick,
            "seed": self.seed,
            "sources": sources(self.code),
        }

    @property
    def folder(self) -> Path:
        """Where this run's weights are kept between calls."""
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode())
        return self.work / f"{self.stage}-{digest.hexdigest()[:12]}"

    @property
    def kept(self) -> Path:
        return self.out / f"{self.stage}.parts.json"

    @property
    def result(self) -> Path:
        return self.out / f"{self.stage}.json"

    def size(self, real, quick):
        """`real`, or what a smoke test takes instead."""
        return quick if self.quick else real

    def generator(self, offset: int = 0) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed + offset)

    def left(self) -> float:
        """Seconds of this call that are left."""
        return 60 * self.minutes - (time.monotonic() - self.begun)

    def parts(self) -> dict[str, dict]:
        """The finished parts of a run with the same key."""
        if not self.kept.exists():
            return {}
        try:
            kept = json.loads(self.kept.read_text())
        except json.JSONDecodeError:
            return {}
        return kept["parts"] if kept.get("key") == self.key else {}

    def part(self, name: str, make: Callable[[], dict], *, seconds: float = 0) -> dict:
        """What part `name` found: kept, or made now and kept with its wall-clock.

        Raises OutOfTime rather than begin a part for whose `seconds` no time is left.
        """
        done = self.parts()
        if name in done:
            print(f"  {name}: kept", flush=True)
            return done[name]
        if self.left() <= (0 if self.quick else seconds):
            raise OutOfTime(name)
        start = time.monotonic()
        found = make()
        if self.device != "cpu":
            torch.cuda.synchronize()
        found["seconds"] = round(time.monotonic() - start, 2)
        print(f"  {name}: {found['seconds']:.1f} s", flush=True)
        write_whole(
            self.kept, {"key": self.key, "parts": {**self.parts(), name: found}}
        )
        return found

    def finish(
        self,
        settings: dict,
        tables: list[dict],
        pictures: list[dict],
        data: dict | None = None,
    ) -> None:
        """Write the record: what `table` makes; pictures with file, alt, caption.

        `data`: numbers that the pages do not show as a table.
        """
        seconds = sum(part["seconds"] for part in self.parts().values())
        record = {
            **self.key,
            "stage": self.stage,
            "synthetic": self.synthetic,
            "versions": versions(),
            "commit": commit(),
            "command": command(self),
            "finished": now(),
            "seconds": round(seconds, 1),
            "settings": settings,
            "tables": tables,
            "pictures": pictures,
            **({"data": data} if data else {}),
        }
        write_whole(self.result, record)
        self.kept.unlink(missing_ok=True)
        print(f"{self.result} is written ({seconds:.0f} s in all)")


def command(job: Job) -> str:
    """How to run this again."""
    words = ["make", job.target, f"STAGE={job.stage}"]
    if job.target == "gpu" and job.device != "cuda":
        words += [f"DEVICE={job.device}"]
    words += ["QUICK=1"] if job.quick else []
    words += [] if job.seed == 0 else [f"SEED={job.seed}"]
    return " ".join(words)


def picture(path: Path, pixels: Tensor, *, scale: int = 1) -> None:
    """Write grey or RGB `pixels` (C, H, W) in [-1, 1] as a PNG, each `scale` wide."""
    from PIL import Image  # not needed by the stages without pictures

    levels = ((pixels.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    levels = levels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    array = levels.permute(1, 2, 0).squeeze(2).contiguous().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, optimize=True)


def table(title: str, columns: list[str], rows: list[list], note: str = "") -> dict:
    """Numbers to show: cells are text or numbers."""
    if any(len(row) != len(columns) for row in rows):
        sys.exit(f"the table {title!r} has rows of another length than {columns}")
    return {"title": title, "columns": columns, "rows": rows, "note": note}
