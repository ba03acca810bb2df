"""Lay out what Sphinx reads: pages with their outputs, ledger, API, configuration.

The sources in `nbs/` stay as they are; every change is made on the copy that goes to
`_build/source`. A file is only written when its text has changed, so that Sphinx reads
again no more than it must.
"""

import ast
import copy
import re
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from . import BUILD, NBS, PACKAGE, ROOT, ledger, recorded
from .notebooks import directives, module_of, title
from .run import BookError, Run
from .settings import Settings, read_settings

SOURCE = BUILD / "source"
NAMED = re.compile(r"\{prf:ref\}`thm-([123])`")  # they have a name and no number


def page(nb: NotebookNode) -> NotebookNode:
    """Turn an executed notebook into what a reader sees."""
    nb = copy.deepcopy(nb)
    module = module_of(nb)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    cells = []
    for number, cell in enumerate(nb.cells):
        if cell.cell_type != "code":
            cell.source = NAMED.sub(r"{prf:ref}`Theorem \1 <thm-\1>`", cell.source)
            cell.source = ledger.BLOCK.sub(_indexed, cell.source)
            cell.source = recorded.fill(cell.source)
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
        _caption(cell, found.values)
        cells.append(cell)
    nb.cells = cells
    return nb


def _indexed(block: re.Match) -> str:
    """A statement with an index entry for its title, which the search ranks first."""
    name = block["title"].replace("(Lipman et al.)", "").strip()
    if not name or any(c in name for c in ";!$`"):
        return block[0]
    return f"```{{index}} ! single: {name}\n```\n\n{block[0]}"


def _mark(cell: NotebookNode, module: str) -> NotebookNode:
    """The discreet line above an exported cell, with a link to the API page."""
    text = f"```{{div}} exported\nexported to {{py:mod}}`flowbook.{module}`\n```"
    return new_markdown_cell(text, id=f"{cell.id}-mark"[:64])


def _caption(cell: NotebookNode, values: dict[str, str]) -> None:
    """Hand `#| label`, `#| caption` and `#| alt` to MyST-NB."""
    pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
    if pictures and not {"label", "caption", "alt"} <= values.keys():
        raise BookError(f"a figure needs #| label, caption and alt:\n{cell.source}")
    if not pictures or not values.get("label"):
        return
    cell.metadata["mystnb"] = {
        "image": {"alt": values["alt"]},
        "figure": {"caption": values["caption"], "name": values["label"]},
    }


# --- pages that the build writes -----------------------------------------------------


def api_pages(modules: dict[str, str]) -> dict[str, str]:
    """One autodoc page a module; `modules` gives the chapter each comes from."""
    pages = {}
    lines = ["(api)=", "# API by chapter", ""]
    lines += ["The package, module by module, in the order of the chapters.", ""]
    for module, chapter in modules.items():
        doc = ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text())) or ""
        lines.append(
            f"- {{py:mod}}`flowbook.{module}` — from {{doc}}`../nbs/{chapter}`"
        )
        pages[f"api/{module}.md"] = (
            f"# flowbook.{module}\n\n{doc}\n"
            f"Derived in {{doc}}`../nbs/{chapter}`.\n\n"
            f"```{{eval-rst}}\n.. automodule:: flowbook.{module}\n"
            "   :members:\n   :member-order: bysource\n```\n"
        )
    pages["api/index.md"] = "\n".join([*lines, ""])
    return pages


def contents(modules: dict[str, str]) -> str:
    """`_toc.yml`, with a page for each module below the API's."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [c for part in toc["parts"] for c in part["chapters"]]
    api = next(c for c in chapters if c["file"] == "api/index")
    api["sections"] = [{"file": f"api/{module}"} for module in modules]
    return yaml.safe_dump(toc, sort_keys=False, allow_unicode=True)


def config(settings: Settings) -> str:
    """`_config.yml`, with what follows from `settings.ini`."""
    loaded = yaml.safe_load((ROOT / "_config.yml").read_text())
    loaded["title"], loaded["author"] = settings.title, settings.author
    loaded["copyright"] = settings.copyright.partition(",")[0]
    if settings.has_owner:
        loaded["sphinx"]["config"]["html_theme_options"] |= {
            "repository_url": settings.repository_url,
            "repository_branch": settings.tag,
            "path_to_docs": "",
            "use_repository_button": True,
            "use_issues_button": True,
            "use_source_button": True,
            "launch_buttons": {"colab_url": "https://colab.research.google.com"},
        }
    return yaml.safe_dump(loaded, sort_keys=False, allow_unicode=True)


# --- the whole -----------------------------------------------------------------------


def stage(runs: list[Run], folder: Path = SOURCE) -> None:
    """Write everything that Sphinx reads. Raises BookError if the ledger has gaps."""
    files: dict[str, str | bytes] = {}
    found: list[ledger.Statement] = []
    measured: list[dict] = []
    modules: dict[str, str] = {}
    static = [p for p in (ROOT / "book" / "static").glob("*") if p.is_file()]
    for run in runs:
        nb = page(run.nb)
        stem = run.path.stem
        files[f"nbs/{stem}.ipynb"] = nbformat.writes(nb)
        found += ledger.statements(f"nbs/{stem}", _markdown(nb))
        measured += ledger.checks(run.nb)
        static += recorded.pictures(_markdown(run.nb))
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
    for path in NBS.glob("*.md"):
        files[f"nbs/{path.name}"] = path.read_text()
    for path in static:
        files[f"_static/{path.name}"] = path.read_bytes()
    files |= api_pages(modules)
    titles = {f"nbs/{run.path.stem}": title(run.nb) for run in runs}
    files["ledger.md"] = ledger.page(found, measured, titles)
    files["timings.md"] = recorded.timings(runs)
    files["references.bib"] = (ROOT / "book" / "references.bib").read_text()
    files["bibliography.md"] = (ROOT / "book" / "bibliography.md").read_text()
    files["_toc.yml"] = contents(modules)
    files["_config.yml"] = config(read_settings())
    write(files, folder)


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
    static = [p for p in (ROOT / "book" / "static").glob("*") if p.is_file()]
    static += recorded.pictures(_markdown(run.nb))
    files: dict[str, str | bytes] = {
        f"nbs/{stem}.ipynb": nbformat.writes(page(run.nb)),
        "references.bib": (ROOT / "book" / "references.bib").read_text(),
        "bibliography.md": (ROOT / "book" / "bibliography.md").read_text(),
        "_toc.yml": yaml.safe_dump(
            {
                "format": "jb-book",
                "root": f"nbs/{stem}",
                "chapters": [{"file": "bibliography"}],
            }
        ),
        "_config.yml": config(read_settings()),
    }
    files |= {f"_static/{p.name}": p.read_bytes() for p in static}
    write(files, folder)
