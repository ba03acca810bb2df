"""The tools that turn the notebooks into the package, the book, and a verdict."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PACKAGE = ROOT / "flowbook"
BUILD = ROOT / "_build"
# Processes that work at once: one a core, but no more than 8 GB of memory can hold.
WORKERS = min(os.cpu_count() or 1, 4)
