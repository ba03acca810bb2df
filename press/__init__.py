"""The tools that turn the notebooks into the package, the book, and a verdict."""

import os

from .settings import ROOT, read_settings

NBS = ROOT / "nbs"
PACKAGE = ROOT / read_settings().name  # what the notebooks export
BUILD = ROOT / "_build"
# Processes that work at once: one a core, but no more than 8 GB of memory can hold.
WORKERS = min(os.cpu_count() or 1, 4)
