"""Fashion-MNIST in the ignored folder data/: what runs on a GPU takes it along."""

import sys
from pathlib import Path

from flowbook.datasets import (
    DEBIAN_FASHION_MNIST,
    FASHION_MNIST,
    Archive,
    decompress,
    fetch,
)
from press.errors import BookError

from .record import ROOT

DATA = ROOT / "data"


def stage(source: str | Path | None = None, *, into: Path = DATA) -> None:
    """Put the four files into the folder `into`, and print where each came from.

    They come from the folder `source`, or else from Debian's package or a download. A
    file that is there and right stays; one that is not as published is replaced.
    Raises BookError for a file that can't be had.
    """
    for archive in (a for pair in FASHION_MNIST.values() for a in pair):
        print(f"{archive.name}: {_stage_one(archive, source, into)}")
    print(f"{into} holds Fashion-MNIST: all checksums are as published.")


def _stage_one(archive: Archive, source: str | Path | None, into: Path) -> str:
    goal = into / archive.name
    if goal.is_file():
        try:
            decompress(archive, goal)
        except ValueError as error:
            print(f"replaced, because {error}")
            goal.unlink()
        else:
            return "was there"
    try:
        found = _find(archive, source, into)
        decompress(archive, found)
    except (OSError, ValueError) as error:
        raise BookError(f"{archive.name} can't be had: {error}") from error
    if found == goal:
        return f"downloaded from {archive.url}"
    into.mkdir(parents=True, exist_ok=True)
    aside = goal.with_name(f"{goal.name}.part")
    aside.write_bytes(found.read_bytes())
    aside.replace(goal)  # whole, or not there
    return f"copied from {found.parent}"


def _find(archive: Archive, source: str | Path | None, into: Path) -> Path:
    """A file in `source`, or else in Debian's folder, or else downloaded to `into`."""
    if source is not None:
        return fetch(archive, source)
    if (DEBIAN_FASHION_MNIST / archive.name).is_file():
        return DEBIAN_FASHION_MNIST / archive.name
    return fetch(archive, into, download=True)


if __name__ == "__main__":
    try:
        stage(*sys.argv[1:])
    except BookError as error:
        sys.exit(str(error))
