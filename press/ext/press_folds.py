"""Code that folds: `<details>` around the lines of a cell that the stage has named.

Each stands open in the page, so that it reads without a script and in print;
`reading.js` shuts them before they are drawn. A page with something to fold gets a
place for the reader's switches below its title, which the same script fills.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html import HTML5Translator

SWITCHES = {  # the mark of what folds on a page, the attribute that says so
    '<details class="fold long"': "data-proofs",
    '<details class="code"': "data-code",
    '<details class="checks"': "data-code",
}


class folded_code(nodes.Element):
    """Code behind what it `says`."""


def fold_code(app: Sphinx, doctree: nodes.document) -> None:
    """Divide the code of each cell into what stands and what folds."""
    for cell in doctree.findall(nodes.container):
        folds = cell.get("cell_metadata", {}).get("folds")
        code = cell.next_node(nodes.literal_block) if folds else None
        if code is not None:
            code.parent.children = list(_divided(code, folds))
            cell["classes"].append("divided" if len(code.parent) > 1 else "folded")


def _divided(code: nodes.literal_block, folds: list) -> list[nodes.Element]:
    lines, at, made = code.rawsource.splitlines() or code.astext().splitlines(), 0, []
    for first, last, says in [*folds, (len(lines), len(lines), "")]:
        made += _piece(code, lines[at:first])
        inside = _piece(code, lines[first:last])
        made += [folded_code("", *inside, says=says)] if inside else []
        at = last
    for piece in made:
        piece.parent = code.parent
    return made


def _piece(code: nodes.literal_block, lines: list[str]) -> list[nodes.literal_block]:
    """The same kind of block with some of its lines; none if these are empty."""
    text = "\n".join(lines).strip("\n")
    piece = nodes.literal_block(text, text, **code.attributes)
    return [piece] if text else []


def visit_folded(self: HTML5Translator, node: folded_code) -> None:
    self.body.append('<details class="code" open>')
    self.body.append(f"<summary>{self.encode(node['says'])}</summary>")


def depart_folded(self: HTML5Translator, node: folded_code) -> None:
    self.body.append("</details>")


def place_switches(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """Leave room for the switches below the title: nothing moves when they come."""
    body = context.get("body", "")
    names = sorted({name for mark, name in SWITCHES.items() if mark in body})
    if names:
        place = f'</h1>\n<div class="switches" {" ".join(names)}></div>'
        context["body"] = re.sub("</h1>", place, body, count=1)


def setup(app: Sphinx) -> dict:
    app.add_node(folded_code, html=(visit_folded, depart_folded))
    app.connect("doctree-read", fold_code)
    app.connect("html-page-context", place_switches, priority=800)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
