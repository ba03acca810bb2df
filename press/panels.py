"""What a reader can touch: panels below figures, and films with a player.

A figure cell with `#| panel: NAME` gets a place below its figure, which the script
`panels/NAME.js` fills in the browser. On paper, and without JavaScript, the figure
stands alone. Only pages that need a script load it.
"""

import re

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from . import ROOT
from .errors import BookError

FOLDER = ROOT / "panels"
SHARED = ("math", "plot", "kit")  # what panels are made of, where there are such


def place(cell: NotebookNode, name: str) -> NotebookNode:
    """Where a figure cell's panel goes. Raises BookError if there is no such panel."""
    if not (FOLDER / f"{name}.js").exists():
        raise BookError(f"there is no panel {name!r} in {FOLDER}:\n{cell.source}")
    return _raw(cell, "panel", f'<div class="panel" data-panel="{name}"></div>')


def films(cell: NotebookNode) -> list[str]:
    """The films among a cell's outputs, as HTML: `<figure class="film ...">`."""
    pages = (o.get("data", {}).get("text/html", "") for o in cell.get("outputs", []))
    return [page for page in pages if '<figure class="film' in page]


def with_films(text: str, chapters: dict[str, NotebookNode]) -> str:
    """A page's text with the first film of chapter STEM at `<!-- film: STEM -->`.

    Raises BookError if that chapter shows none.
    """

    def film(mark: re.Match) -> str:
        chapter = chapters.get(mark[1])
        shown = [f for cell in (chapter.cells if chapter else ()) for f in films(cell)]
        if not shown:
            raise BookError(f"there is no film in chapter {mark[1]!r}")
        page = re.sub(r"\n\s*", " ", shown[0])  # a raw block of one line
        return f"```{{raw}} html\n{page}\n{_tags(['player'])}\n```"

    return re.sub(r"<!-- film: (\w+) -->", film, text)


def loading(last: NotebookNode, panels: list[str], *, film: bool) -> list[NotebookNode]:
    """The cell at a page's end that loads style and scripts; none if none is due."""
    shared = [n for n in SHARED if panels and (FOLDER / f"{n}.js").exists()]
    names = [*shared, *panels, *(["player"] if film else [])]
    if not names:
        return []
    return [_raw(last, "scripts", _tags(names))]


def _tags(names: list[str]) -> str:
    tags = [f'<script defer src="../panels/{name}.js"></script>' for name in names]
    return "\n".join(['<link rel="stylesheet" href="../panels/panel.css">', *tags])


def files() -> dict[str, bytes]:
    """The scripts and the style sheet, as they are.

    Not under `_static`: Jupyter Book loads each script there on every page.
    """
    return {f"panels/{p.name}": p.read_bytes() for p in FOLDER.glob("*")}


def _raw(cell: NotebookNode, kind: str, html: str) -> NotebookNode:
    text = f"```{{raw}} html\n{html}\n```"
    return new_markdown_cell(text, id=f"{cell.id}-{kind}"[:64])
