"""Numbers of chapters: counted, put where they are named, and in no source."""

import ast
import re

import pytest

from press import ROOT, numbers
from press.notebooks import directives, module_of, notebooks, read

KNOWN = {"one": "1", "two": "12", "slips": "B"}


def test_chapters_are_counted_and_appendices_lettered(tmp_path, monkeypatch):
    """Catches a letter in the main line, a number for a page that is no chapter."""
    (tmp_path / "_toc.yml").write_text(
        "root: nbs/index\nparts:\n"
        "- {caption: I, chapters: [{file: nbs/how}, {file: nbs/a}, {file: nbs/b}]}\n"
        "- {caption: Appendices · X, chapters: [{file: nbs/x}]}\n"
        "- {caption: II, chapters: [{file: nbs/c}, {file: ledger}]}\n"
        "- {caption: Appendix, chapters: [{file: nbs/y}]}\n"
    )
    for stem in "abcxy":
        (tmp_path / f"{stem}.ipynb").touch()
    (tmp_path / "how.md").touch()
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    monkeypatch.setattr(numbers, "NBS", tmp_path)
    assert numbers.numbers() == {"a": "0", "b": "1", "c": "2", "x": "A", "y": "B"}


def test_every_notebook_has_one():
    """Catches a notebook that no part of the contents holds, and a number twice."""
    found = numbers.numbers()
    assert list(found) == [path.stem for path in notebooks()]
    assert len(set(found.values())) == len(found) > 25


def test_the_first_heading_takes_the_number():
    """Catches a number in a later heading, or in a comment of code."""
    text = "(flows)=\n# Flows\n\n# Not this\n"
    assert numbers.headed(text, "3") == "(flows)=\n# 3 · Flows\n\n# Not this\n"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("by {ref}`one`.", "by {ref}`chapter 1 <one>`."),
        ("by {ref}`slips`.", "by {ref}`appendix B <slips>`."),
        ("{ref}`one` has it", "{ref}`Chapter 1 <one>` has it"),
        ("It is so. {ref}`two` says", "It is so. {ref}`Chapter 12 <two>` says"),
        ("So.\n\n{ref}`two` says", "So.\n\n{ref}`Chapter 12 <two>` says"),
        ("**Next.** {ref}`two`", "**Next.** {ref}`Chapter 12 <two>`"),
        ("| 1 | {ref}`two`: x", "| 1 | {ref}`chapter 12 <two>`: x"),
        ("so ({ref}`one`)", "so ({ref}`chapter 1 <one>`)"),
        ("so far\n{ref}`one` went", "so far\n{ref}`chapter 1 <one>` went"),
        ("{ref}`part {} <two>`", "{ref}`part 12 <two>`"),
        ("{ref}`the slips <slips>`", "{ref}`the slips <slips>`"),
        ("{ref}`fig-one-map` {ref}`elsewhere`", "{ref}`fig-one-map` {ref}`elsewhere`"),
        ("{prf:ref}`one`", "{prf:ref}`one`"),
    ],
)
def test_a_reference_says_the_number(written, read):
    """Catches a text of one's own that is lost, a wrong capital, another role."""
    assert numbers.filled(written, KNOWN) == read


def test_sources_know_no_number():
    """Catches a chapter named by a number: an insertion would make it wrong."""
    for path in notebooks():
        for cell in read(path).cells:
            named = re.findall(
                r"(?<!`\) \()\b[Cc]hapter \d+|\bchapter-\d+", cell.source
            )
            named = [n for n in named if "villani" not in cell.source]
            assert not named, f"{path.name}: {named}"


def test_one_stem():
    """Catches a notebook whose label or module has another name than its file."""
    for path in notebooks():
        nb = read(path)
        assert nb.cells[0].source.startswith(f"({path.stem})=\n# "), path.name
        assert module_of(nb) in (None, path.stem), path.name


def test_labels_carry_the_name_of_their_own_chapter():
    """Catches a figure or an exercise that moved and kept another chapter's name."""
    stems = {path.stem.replace("_", "-"): path.stem for path in notebooks()}
    longest = "|".join(sorted(stems, key=len, reverse=True))
    kinds = r"(?::label: *|#\| label: *|\$\$ *\()(?:fig|eq|ex)-"
    for path in notebooks():
        for cell in read(path).cells:
            for found in re.finditer(rf"{kinds}({longest})-", cell.source):
                assert stems[found[1]] == path.stem, f"{path.name}: {found[0]}"


def test_exported_code_imports_only_what_comes_earlier():
    """Catches a chapter that needs a later one; appendices may be used everywhere."""
    known = numbers.numbers()
    order = {module_of(read(path)): known[path.stem] for path in notebooks()}
    place = {
        m: (n.isdigit(), int(n) if n.isdigit() else ord(n)) for m, n in order.items()
    }
    pairs = [(module, used) for module in order if module for used in imported(module)]
    for module, used in pairs:
        chapter, position = place[used]
        if chapter and place[module][0]:
            assert position < place[module][1], f"{module} imports {used}"
    assert len(pairs) > 40


def imported(module):
    """The package's modules that a module of it imports."""
    tree = ast.parse((ROOT / "flowbook" / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        name = (node.module or "").removeprefix("flowbook").lstrip(".")
        if node.level or (node.module or "").split(".")[0] == "flowbook":
            yield from [name] if name else [a.name for a in node.names]


def test_titles_have_no_number():
    """Catches a number that a source says and the contents contradict."""
    for path in notebooks():
        text = read(path).cells[0].source
        assert not re.search(r"^# (\d|[a-z]\d)", text, re.MULTILINE), path.name
        assert not directives(text).values
