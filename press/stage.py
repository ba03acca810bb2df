"""Lay out what Sphinx reads: pages with their outputs, ledger, API, configuration.

The sources in `nbs/` stay as they are; every change is made on the copy that goes to
`_build/source`. A file is only written when its text has changed, so that Sphinx reads
again no more than it must.
"""

import ast
import base64
import copy
import platform
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from PIL import Image

from . import BUILD, NBS, PACKAGE, ROOT, folds, ledger, numbers, panels, recorded
from .errors import BookError
from .notebooks import directives, module_of, title
from .run import Run
from .settings import Settings, read_settings

SOURCE = BUILD / "source"
REFERENCE = NBS / "reference"  # glossary, bibliography, what the search knows
HEADING = re.compile(r"^#{1,4} (.+)$", re.MULTILINE)
NAMED = re.compile(r"\{prf:ref\}`thm-([123])`")  # they have a name and no number


def page(
    nb: NotebookNode, stem: str = "", known: dict[str, str] | None = None
) -> NotebookNode:
    """Turn an executed notebook, chapter `stem`, into what a reader sees.

    `known` are the chapters' numbers, which the page says where it names a chapter.
    """
    nb = copy.deepcopy(nb)
    module, known = module_of(nb), known or {}
    if stem in known:
        nb.cells[0].source = numbers.headed(nb.cells[0].source, known[stem])
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    cells, touched, film = [], [], False
    for number, cell in enumerate(folds.folded(_unbroken(nb)).cells):
        if cell.cell_type != "code":
            cell.source = NAMED.sub(r"{prf:ref}`Theorem \1 <thm-\1>`", cell.source)
            cell.source = ledger.BLOCK.sub(_indexed, cell.source)
            cell.source = numbers.filled(recorded.fill(cell.source), known)
            cells.append(cell)
            continue
        found = directives(cell.source)
        if found.hidden or not found.code:
            continue
        if "remove-cell" in cell.metadata.get("tags", []):
            continue
        if found.exported:
            home = found.values.get("export") or found.values.get("exporti") or module
            cells.append(_mark(cell, home))
        cell.source = found.code
        cell.execution_count = number
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        _said(cell, stem)
        _caption(cell, found.values, known)
        cells.append(cell)
        film = film or bool(panels.films(cell))
        if "panel" in found.values:
            touched.append(found.values["panel"])
            cells.append(panels.place(cell, touched[-1]))
    nb.cells = cells + panels.loading(cells[-1], touched, film=film)
    return nb


def _said(cell: NotebookNode, stem: str) -> None:
    """Raise BookError if a cell ends in a value that a page would show as its repr."""
    for output in cell.outputs:
        data = output.get("data", {})
        if output.output_type == "execute_result" and data.keys() == {"text/plain"}:
            raise BookError(
                f"{stem}: cell {cell.id} ends in a value; the page would say\n"
                f"{data['text/plain']}\nprint what it is, in words"
            )


def _unbroken(nb: NotebookNode) -> NotebookNode:
    """Keep what a check says together where no line should break."""
    for output in (o for c in nb.cells for o in c.get("outputs", [])):
        if ledger.MIME in output.get("data", {}):
            shown = output["data"]["text/html"]
            output["data"]["text/html"] = ledger.unbroken(shown)
    return nb


def _indexed(block: re.Match) -> str:
    """A statement with an index entry for its title, which the search ranks first."""
    name = re.sub(r"\([^)]* et al\.\)$", "", block["title"].strip()).strip()
    if not name or any(c in name for c in ";!$`"):
        return block[0]
    return f"```{{index}} ! single: {name}\n```\n\n{block[0]}"


def _mark(cell: NotebookNode, module: str) -> NotebookNode:
    """The line above an exported cell: what it defines, linked to the API page."""
    names = [e.name for e in exports(cell, module, "", "")]
    labels = "".join(f"({_label(module, name)})=\n" for name in names)
    links = ", ".join(f"{{py:obj}}`~{PACKAGE.name}.{module}.{name}`" for name in names)
    said = (
        f"exported: {links}"
        if names
        else f"exported to {{py:mod}}`{PACKAGE.name}.{module}`"
    )
    text = f"{labels}```{{div}} exported\n{said}\n```"
    return new_markdown_cell(text, id=f"{cell.id}-mark"[:64])


def _label(module: str, name: str) -> str:
    return f"code-{module}-{name.lower()}-{'c' if name[0].isupper() else 'f'}"


def _caption(cell: NotebookNode, values: dict[str, str], known: dict[str, str]) -> None:
    """Hand `#| label`, `#| caption` and `#| alt` to MyST-NB."""
    pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
    if pictures and not {"label", "caption", "alt"} <= values.keys():
        raise BookError(f"a figure needs #| label, caption and alt:\n{cell.source}")
    if not pictures or not values.get("label"):
        return
    image = {"alt": values["alt"]}
    if all(_without_ground(o["data"]["image/png"]) for o in pictures):
        image["classes"] = "as-is"
    cell.metadata["mystnb"] = {
        "image": image,
        "figure": {
            "caption": numbers.filled(values["caption"], known),
            "name": values["label"],
        },
    }


def _without_ground(png: str) -> bool:
    """Whether a figure's corner is transparent: dark mode keeps such a one as it is."""
    with Image.open(BytesIO(base64.b64decode(png))) as picture:
        return picture.convert("RGBA").getpixel((0, 0))[3] == 0


# --- pages that the build writes -----------------------------------------------------


@dataclass(frozen=True)
class Export:
    """A public name of the package, and where the book derives it."""

    module: str
    name: str
    kind: str  # "function", "class" or "data"
    about: str  # the docstring's first paragraph; for data the comment beside it
    value: str
    chapter: str
    section: str
    private_base: bool = False  # what it inherits is documented nowhere else


def exports(
    cell: NotebookNode, module: str, chapter: str, section: str
) -> Iterator[Export]:
    """Yield the public names that an exported cell defines, in its order."""
    code = directives(cell.source).code
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            name, value = node.name, ""
            bases = getattr(node, "bases", [])
            inherits = any(isinstance(b, ast.Name) and b.id[0] == "_" for b in bases)
            about = (ast.get_docstring(node) or "").partition("\n\n")[0]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            kind, name, inherits = "data", node.targets[0].id, False
            value = ast.unparse(node.value)
            lines = code.splitlines()
            ends = (lines[node.end_lineno - 1], lines[node.lineno - 1])
            about = next(
                (c for _, _, c in (e.partition("  # ") for e in ends) if c), ""
            )
        else:
            continue
        if not name.startswith("_"):
            yield Export(module, name, kind, about, value, chapter, section, inherits)


def exported_by(nb: NotebookNode, stem: str) -> Iterator[Export]:
    """Yield what a notebook exports, each with the heading it stands under."""
    module, section = module_of(nb), title(nb)
    for cell in nb.cells:
        if cell.cell_type != "code":
            section = (HEADING.findall(cell.source) or [section])[-1]
            continue
        found = directives(cell.source)
        if found.exported:
            home = found.values.get("export") or found.values.get("exporti") or module
            yield from exports(cell, home, stem, section)


def api_pages(
    modules: dict[str, str], exported: list[Export], titles: dict[str, str]
) -> dict[str, str]:
    """One autodoc page a module; `modules` gives the chapter each comes from."""
    pages = {}
    lines = ["(api)=", "# API by chapter", ""]
    lines += ["Every function of the package, in the order of the chapters, with the "]
    lines += ["place where the book derives it.", ""]
    for module, chapter in modules.items():
        doc = ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text())) or ""
        inside = [e for e in exported if e.module == module]
        heading = titles[f"nbs/{chapter}"]
        lines += [f"## {heading}", "", f"{{py:mod}}`{PACKAGE.name}.{module}`", ""]
        lines += [_line(e) for e in inside if e.about] + [""]
        entries = "\n".join(_entry(e) for e in inside)
        pages[f"api/{module}.md"] = (
            f"# {PACKAGE.name}.{module}\n\n{doc}\n"
            f"Derived in {{doc}}`../nbs/{chapter}`.\n\n"
            f"```{{eval-rst}}\n.. py:module:: {PACKAGE.name}.{module}\n\n{entries}```\n"
        )
    pages["api/index.md"] = "\n".join([*lines, ""])
    return pages


def _line(export: Export) -> str:
    """A function on the API's first page: its name, what it does, its derivation."""
    parts = " ".join(export.about.split()).split("`")
    parts[::2] = [re.sub(r"[*_$<\[\]|\\]", r"\\\g<0>", part) for part in parts[::2]]
    parts[::2] = [re.sub(r'"[\w-]+"', r"`\g<0>`", part) for part in parts[::2]]
    where = f"{{ref}}`derivation <{_label(export.module, export.name)}>`"
    name = f"{{py:obj}}`~{PACKAGE.name}.{export.module}.{export.name}`"
    return f"- {name}: {'`'.join(parts)} ({where})"


def _entry(export: Export) -> str:
    """A function on its module's page, in reStructuredText: autodoc writes that."""
    name = f"{PACKAGE.name}.{export.module}.{export.name}"
    place = re.sub(r"[`$\\{}<>]", "", export.section)
    where = f":ref:`{place} <{_label(export.module, export.name)}>`"
    if export.kind == "data":
        plain = len(export.value) < 80 and not re.search(r"\b_\w", export.value)
        value = f"   :value: {export.value}\n" if plain else ""
        about = re.sub(r"[*|`\\]", r"\\\g<0>", export.about)
        home = f"   :module: {PACKAGE.name}.{export.module}\n"
        head = f".. py:data:: {export.name}\n{home}{value}\n   {about}\n"
    elif export.kind == "class":
        head = f".. autoclass:: {name}\n   :members:\n   :member-order: bysource\n"
        head += "   :inherited-members:\n" if export.private_base else ""
    else:
        head = f".. autofunction:: {name}\n"
    return f"{head}\n   Derived in {where}.\n"


def contents(modules: dict[str, str]) -> str:
    """`_toc.yml`, with a page for each module below the API's."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [c for part in toc["parts"] for c in part["chapters"]]
    for api in [c for c in chapters if c["file"] == "api/index"]:
        api["sections"] = [{"file": f"api/{module}"} for module in modules]
    return yaml.safe_dump(toc, sort_keys=False, allow_unicode=True)


def config(settings: Settings) -> str:
    """`_config.yml`: every book's, this book's over it, what settings.ini says."""
    own = ROOT / "_config.yml"
    loaded = yaml.safe_load((ROOT / "press" / "config.yml").read_text())
    loaded = _over(loaded, yaml.safe_load(own.read_text()) if own.exists() else {})
    loaded["title"], loaded["author"] = settings.title, settings.author
    loaded["copyright"] = settings.copyright.partition(",")[0]
    sphinx = loaded["sphinx"]["config"]
    sphinx["press_about"] = settings.description
    sphinx["press_colophon"] = colophon(settings)
    sphinx["press_aliases"] = aliases()
    sphinx["press_numbers"] = numbers.numbers()
    if settings.has_owner:
        sphinx["press_repository"] = settings.repository_url
        sphinx["press_branch"] = settings.branch
        sphinx["html_theme_options"] |= {
            "repository_url": settings.repository_url,
            "repository_branch": settings.tag,
            "path_to_docs": "",
            "use_repository_button": True,
            "use_issues_button": True,
            "launch_buttons": {"colab_url": "https://colab.research.google.com"},
        }
    return yaml.safe_dump(loaded, sort_keys=False, allow_unicode=True)


def _over(below: dict, above: dict) -> dict:
    """A configuration laid over another: what both have is the upper one's."""
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict):
            merged[key] = _over(below[key], above[key])
    return merged


def colophon(settings: Settings) -> str:
    """What this copy of the book is, and what it last ran with."""
    torch = metadata.version("torch").partition("+")[0]
    python = platform.python_version()
    ran = f"last run with torch {torch} and Python {python}"
    return f"{settings.title} {settings.version} · {ran}"


def aliases() -> dict[str, dict[str, str]]:
    """`aliases.toml`: names that the search should know and no heading says."""
    path = REFERENCE / "aliases.toml"
    return tomllib.loads(path.read_text()) if path.exists() else {}


def own_files() -> list[Path]:
    """Styles and scripts of every book, and the pictures of this one."""
    folders = (ROOT / "press" / "static", NBS / "static")
    return [p for folder in folders for p in folder.glob("*") if p.is_file()]


# --- the whole -----------------------------------------------------------------------


def stage(runs: list[Run], folder: Path = SOURCE) -> None:
    """Write everything that Sphinx reads. Raises BookError if the ledger has gaps."""
    files: dict[str, str | bytes] = {}
    found: list[ledger.Statement] = []
    measured: list[dict] = []
    modules: dict[str, str] = {}
    exported: list[Export] = []
    titles: dict[str, str] = {}
    known = numbers.numbers()
    static = own_files()
    files |= panels.files()
    for run in runs:
        stem = run.path.stem
        nb = page(run.nb, stem, known)
        titles[f"nbs/{stem}"] = title(nb)
        files[f"nbs/{stem}.ipynb"] = nbformat.writes(nb)
        found += ledger.statements(f"nbs/{stem}", _markdown(nb))
        measured += ledger.checks(f"nbs/{stem}", run.nb)
        static += recorded.pictures(_markdown(run.nb))
        exported += exported_by(run.nb, stem)
        for cell in (c for c in run.nb.cells if c.cell_type == "code"):
            values = directives(cell.source).values
            for module in (values.get("default_exp"), values.get("export")):
                if module and (PACKAGE / f"{module}.py").exists():
                    modules.setdefault(module, stem)
        static += run.files.glob("*.webp")
        static += run.files.glob("*.png")
    missing = ledger.gaps(found, measured)
    if missing:
        raise BookError("the proof ledger has gaps:\n" + "\n".join(missing))
    chapters = {run.path.stem: run.nb for run in runs}
    for path in NBS.glob("*.md"):
        text = numbers.filled(path.read_text(), known)
        files[f"nbs/{path.name}"] = panels.fill_marks(text, chapters)
    for path in static:
        files[f"_static/{path.name}"] = path.read_bytes()
    files |= api_pages(modules, exported, titles)
    files["ledger.md"] = numbers.filled(ledger.page(found, measured, titles), known)
    files |= reference(runs, known)
    files["_toc.yml"] = contents(modules)
    files["_config.yml"] = config(read_settings())
    write(files, folder)


def reference(runs: list[Run], known: dict[str, str]) -> dict[str, str]:
    """The pages that are not chapters, as far as this book has them."""
    files = {path.name: path.read_text() for path in REFERENCE.glob("*.bib")}
    for path in REFERENCE.glob("*.md"):
        text = recorded.fill(recorded.timings(path.read_text(), runs))
        files[path.name] = numbers.filled(text, known)
    for path in ROOT.glob("CHANGELOG.md"):
        files["changelog.md"] = path.read_text()
    return files


def _markdown(nb: NotebookNode) -> str:
    return "\n\n".join(c.source for c in nb.cells if c.cell_type == "markdown")


def write(files: dict[str, str | bytes], folder: Path) -> None:
    """Make `folder` hold exactly these files, touching only those that differ."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        name = str(path.relative_to(folder))
        if name not in files and name != "conf.py":
            path.unlink()
    for name, text in files.items():
        path = folder / name
        data = text if isinstance(text, bytes) else text.encode()
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def stage_one(run: Run, folder: Path) -> None:
    """Write one chapter as a book of its own, to look at while one writes it."""
    stem = run.path.stem
    static = own_files()
    static += recorded.pictures(_markdown(run.nb))
    cited = [*REFERENCE.glob("*.bib"), *REFERENCE.glob("bibliography.md")]
    files: dict[str, str | bytes] = {
        f"nbs/{stem}.ipynb": nbformat.writes(page(run.nb, stem, numbers.numbers())),
        "_toc.yml": yaml.safe_dump(
            {
                "format": "jb-book",
                "root": f"nbs/{stem}",
                "chapters": [{"file": p.stem} for p in cited if p.suffix == ".md"],
            }
        ),
        "_config.yml": config(read_settings()),
    }
    files |= {p.name: p.read_text() for p in cited}
    files |= {f"_static/{p.name}": p.read_bytes() for p in static} | panels.files()
    write(files, folder)
