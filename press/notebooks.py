"""Read, clean and export the notebooks: the sources of the book and of the package."""

import ast
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from . import NBS, PACKAGE, ROOT

KNOWN = {"default_exp", "export", "exporti", "hide", "eval"}
KNOWN |= {"label", "caption", "alt", "panel", "fold"}
PARSING = threading.Lock()  # CPython 3.11 counts the depth of all threads together


def stems() -> list[str]:
    """The pages of `_toc.yml`, in order, without the folder and the ending."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    parts = toc.get("parts", [toc])
    files = [toc["root"], *(c["file"] for p in parts for c in p["chapters"])]
    return [Path(f).name for f in files if Path(f).parent.name == "nbs"]


def notebooks() -> list[Path]:
    """The notebooks of `_toc.yml`, in order."""
    paths = (NBS / f"{stem}.ipynb" for stem in stems())
    return [path for path in paths if path.exists()]


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


# --- directives --------------------------------------------------------------------


@dataclass(frozen=True)
class Directives:
    """The `#| name: value` lines at the head of a code cell, and the code below."""

    code: str
    values: dict[str, str] = field(default_factory=dict)

    @property
    def exported(self) -> bool:
        return "export" in self.values or "exporti" in self.values

    @property
    def runs(self) -> bool:
        return self.values.get("eval") != "false"

    @property
    def hidden(self) -> bool:
        return "hide" in self.values or "default_exp" in self.values


def directives(source: str) -> Directives:
    """Split a code cell; a line indented by four spaces continues the one above.

    Raises ValueError for a directive that the book does not know.
    """
    values: dict[str, str] = {}
    lines = source.splitlines()
    last = None
    while lines and lines[0].startswith("#|"):
        line = lines.pop(0)[2:]
        if line.startswith("     ") and last:
            values[last] += " " + line.strip()
            continue
        last, _, value = line.strip().partition(":")
        if not value:
            last, _, value = last.partition(" ")
        if last not in KNOWN:
            raise ValueError(f"unknown directive {last!r}; known: {sorted(KNOWN)}")
        values[last] = value.strip()
    return Directives("\n".join(lines).strip("\n"), values)


def module_of(nb: NotebookNode) -> str | None:
    """The module that a notebook's plain `#| export` cells go to."""
    for cell in nb.cells:
        if cell.cell_type == "code":
            name = directives(cell.source).values.get("default_exp")
            if name:
                return name
    return None


def title(nb: NotebookNode) -> str:
    """The text of a notebook's first heading. Raises ValueError if it has none."""
    for cell in nb.cells:
        found = re.search(r"^# (.+)$", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and found:
            return found[1]
    raise ValueError("a notebook needs a title: a line that starts with '# '")


# --- clean and export ----------------------------------------------------------------


def cleaned(path: Path) -> str:
    """The notebook's text without outputs, counts, and metadata nobody wrote."""
    from execnb.nbio import nb2str, read_nb
    from nbdev.clean import clean_nb
    from nbdev.config import get_config

    allowed = get_config(path=ROOT).allowed_cell_metadata_keys.split()
    nb = read_nb(path)
    for cell in nb.cells:
        cell.pop("outputs", None) if cell.cell_type != "code" else None
        if cell.cell_type == "code":
            cell["outputs"] = []
    clean_nb(nb, allowed_cell_metadata_keys=allowed)
    return nb2str(nb)


def clean(check: bool = False) -> list[Path]:
    """Clean every notebook in `nbs/`; return those that were (or would be) changed."""
    changed = []
    for path in sorted(NBS.glob("*.ipynb")):
        text = cleaned(path)
        if text != path.read_text():
            changed.append(path)
            if not check:
                path.write_text(text)
    return changed


def exported_modules() -> set[str]:
    """The names of the modules that some notebook exports to."""
    names = set()
    for path in NBS.glob("*.ipynb"):
        for cell in read(path).cells:
            if cell.cell_type == "code":
                values = directives(cell.source).values
                names |= {values.get(k, "") for k in ("default_exp", "export")}
    return names - {""}


def orphans() -> list[Path]:
    """The modules in the package that no notebook exports any more."""
    keep = exported_modules() | {"__init__", "_modidx"}
    return sorted(p for p in PACKAGE.glob("*.py") if p.stem not in keep)


def export() -> None:
    """Write the package from the notebooks, and delete what none of them exports."""
    from nbdev.doclinks import nbdev_export

    os.chdir(ROOT)
    nbdev_export.__wrapped__()
    for path in orphans():
        path.unlink()


# --- what a notebook can see of the package ------------------------------------------


def visible_modules(nb: NotebookNode) -> set[Path]:
    """The files of the package that a notebook's code can reach through its imports."""
    from IPython.core.inputtransformer2 import TransformerManager

    transform = TransformerManager().transform_cell
    waiting = {"__init__"}
    for cell in nb.cells:
        if cell.cell_type == "code":
            waiting |= set(_imported(transform(cell.source)))
    seen: set[Path] = set()
    while waiting:
        path = PACKAGE / f"{waiting.pop()}.py"
        if path in seen or not path.exists():
            continue
        seen.add(path)
        if path.stem != "__init__":  # its names are lazy: see _imported
            waiting |= set(_imported(path.read_text()))
    return seen


def _imported(source: str) -> Iterator[str]:
    """Yield the package's modules that are named by a source's import statements."""
    with PARSING:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            own = (node.module or "").split(".")[0] == PACKAGE.name
            name = (node.module or "").removeprefix(PACKAGE.name).lstrip(".")
            inside = node.level == 1 or own
            if inside and name:
                yield name.split(".")[0]
            elif inside:
                yield from (p.stem for p in PACKAGE.glob("*.py"))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts == [PACKAGE.name]:
                    yield from (p.stem for p in PACKAGE.glob("*.py"))
                elif parts[0] == PACKAGE.name:
                    yield parts[1]
