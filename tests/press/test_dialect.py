"""The tests themselves: each says in its first line which mistake it catches."""

import ast

import pytest

from press import ROOT

FILES = sorted((ROOT / "tests").rglob("test_*.py"))


def said(file):
    """The first line of each test of a file, by name."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name, (ast.get_docstring(node) or "").partition("\n")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_test_says_what_it_catches(file):
    """Catches a test of which nobody knows what its failure means, and a dialect."""
    wrong = [name for name, line in said(file) if not line.startswith("Catches ")]
    assert not wrong


def test_tests_stand_beside_what_they_test():
    """Catches a file of tests in another folder than its module's."""
    for folder in ("flowbook", "press"):
        modules = {path.stem for path in (ROOT / folder).glob("*.py")}
        tests = {
            p.stem.removeprefix("test_") for p in (ROOT / "tests" / folder).glob("*")
        }
        other = {"flowbook": "press", "press": "flowbook"}[folder]
        others = {path.stem for path in (ROOT / other).glob("*.py")}
        assert not tests & (others - modules)
