"""Folders for tests that take no fixtures: those of formulas, see mutants.py."""

import tempfile
from pathlib import Path

KEPT: list[tempfile.TemporaryDirectory] = []


def folder() -> Path:
    """A fresh folder, removed when the process ends."""
    KEPT.append(tempfile.TemporaryDirectory())
    return Path(KEPT[-1].name)
