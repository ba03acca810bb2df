"""The tools that turn the notebooks into the package, the book, and a verdict."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PACKAGE = ROOT / "flowbook"
BUILD = ROOT / "_build"
