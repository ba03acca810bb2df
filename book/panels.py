"""What a reader can touch: panels below figures, and films with a player.

A figure cell with `#| panel: NAME` gets a place below its figure, which the script
`book/static/panels/NAME.js` fills in the browser. On paper, and without JavaScript, the
figure stands alone. Only pages that need a script load it.
"""

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from . import ROOT
from .run import BookError

FOLDER = ROOT / "book" / "static" / "panels"
SHARED = ("math", "plot", "kit")  # what every panel is made of


def place(cell: NotebookNode, name: str) -> NotebookNode:
    """Where a figure cell's panel goes. Raises BookError if there is no such panel."""
    if not (FOLDER / f"{name}.js").exists():
        raise BookError(f"there is no panel {name!r} in {FOLDER}:\n{cell.source}")
    return _raw(cell, "panel", f'<div class="panel" data-panel="{name}"></div>')


def has_film(cell: NotebookNode) -> bool:
    """Whether `flowbook.plots.film` has left one among a cell's outputs."""
    pages = (o.get("data", {}).get("text/html", "") for o in cell.outputs)
    return any('<figure class="film' in page for page in pages)


def loading(last: NotebookNode, panels: list[str], *, film: bool) -> list[NotebookNode]:
    """The cell at a page's end that loads style and scripts; none if none is due."""
    names = [*(SHARED if panels else ()), *panels, *(("player",) if film else ())]
    if not names:
        return []
    tags = [f'<script defer src="../panels/{name}.js"></script>' for name in names]
    style = '<link rel="stylesheet" href="../panels/panel.css">'
    return [_raw(last, "scripts", "\n".join([style, *tags]))]


def files() -> dict[str, bytes]:
    """The scripts and the style sheet, as they are.

    Not under `_static`: Jupyter Book loads each script there on every page.
    """
    return {f"panels/{p.name}": p.read_bytes() for p in FOLDER.iterdir()}


def _raw(cell: NotebookNode, kind: str, html: str) -> NotebookNode:
    text = f"```{{raw}} html\n{html}\n```"
    return new_markdown_cell(text, id=f"{cell.id}-{kind}"[:64])
