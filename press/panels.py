"""What a reader can touch: panels below figures, and films with a player.

A figure cell with `#| panel: NAME` gets a place below its figure, which the script
`panels/NAME.js` fills in the browser. On paper, and without JavaScript, the figure
stands alone. A page in Markdown says with a mark which it wants (`fill_marks`). Only
pages that need a script load it.
"""

import html
import re

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from . import ROOT
from .errors import BookError
from .notebooks import directives

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


def fill_marks(text: str, chapters: dict[str, NotebookNode]) -> str:
    """A page's text with what its marks ask for, and the scripts that this needs.

    `<!-- film: STEM -->` is the first film of chapter STEM, and with `STEM, loop` it
    begins again when it is over. `<!-- panel: NAME -->` is the panel that a chapter has
    below a figure; its clock starts by itself, and without scripts, and on paper, that
    figure stands in its place. Raises BookError for what no chapter has.
    """
    scripts: list[str] = []

    def film(mark: re.Match) -> str:
        chapter = chapters.get(mark[1])
        shown = [f for cell in (chapter.cells if chapter else ()) for f in films(cell)]
        if not shown:
            raise BookError(f"there is no film in chapter {mark[1]!r}")
        scripts.extend({"player"}.difference(scripts))
        page = re.sub(r"\n\s*", " ", shown[0])  # a raw block of one line
        if mark[2]:
            page = page.replace("<figure ", "<figure data-loop ", 1)
        return _block(page)

    def panel(mark: re.Match) -> str:
        figure = _stand_in(mark[1], chapters)
        scripts.extend(n for n in (*_shared(), mark[1]) if n not in scripts)
        place = f'<div class="panel" data-panel="{mark[1]}" data-starts></div>'
        return _block(place + figure)

    text = re.sub(r"<!-- film: (\w+)(, loop)? -->", film, text)
    text = re.sub(r"<!-- panel: (\w+) -->", panel, text)
    return f"{text}\n{_block(_tags(scripts))}\n" if scripts else text


def _stand_in(name: str, chapters: dict[str, NotebookNode]) -> str:
    """The figure above panel `name`, as HTML. Raises BookError if there is none."""
    for cell in (c for nb in chapters.values() for c in nb.cells):
        values = directives(cell.source).values if cell.cell_type == "code" else {}
        if values.get("panel") != name:
            continue
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                png = "".join(output["data"]["image/png"].split())
                alt = html.escape(values["alt"])
                picture = f'<img src="data:image/png;base64,{png}" alt="{alt}">'
                return f'<figure class="stand-in">{picture}</figure>'
    raise BookError(f"there is no figure with a panel {name!r} in any chapter")


def loading(last: NotebookNode, panels: list[str], *, film: bool) -> list[NotebookNode]:
    """The cell at a page's end that loads style and scripts; none if none is due."""
    shared = _shared() if panels else []
    names = [*shared, *panels, *(["player"] if film else [])]
    if not names:
        return []
    return [_raw(last, "scripts", _tags(names))]


def _shared() -> list[str]:
    return [name for name in SHARED if (FOLDER / f"{name}.js").exists()]


def _tags(names: list[str]) -> str:
    tags = [f'<script defer src="../panels/{name}.js"></script>' for name in names]
    return "\n".join(['<link rel="stylesheet" href="../panels/panel.css">', *tags])


def files() -> dict[str, bytes]:
    """The scripts and the style sheet, as they are.

    Not under `_static`: Jupyter Book loads each script there on every page.
    """
    return {f"panels/{p.name}": p.read_bytes() for p in FOLDER.glob("*")}


def _raw(cell: NotebookNode, kind: str, page: str) -> NotebookNode:
    return new_markdown_cell(_block(page), id=f"{cell.id}-{kind}"[:64])


def _block(page: str) -> str:
    return f"```{{raw}} html\n{page}\n```"
