"""What a page folds away: code that one looks up, and checks that come in a row.

A reader sees the lesson: the derivation, its example, and what was measured. Behind one
line each stand the imports, the code that checks, the code of figures, and of exported
code what is longer than a few lines, but for signatures and docstrings. Here it is
decided what folds, from what a cell is; `#| fold: show` in a cell overrules that, and
so does `#| fold: WORDS`, which folds it whole behind these words. The notebooks stay
whole, and a solution, which folds as it is, keeps its code in one piece.

`press/ext/press_folds.py` makes `<details>` of it, `press/static/reading.js` shuts
them before they are drawn.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nbformat import NotebookNode

from .ledger import MIME
from .notebooks import Directives, directives

CHECKS = {"check", "reject"}
LONG = 12  # lines of an exported cell that stand unfolded
FEW = 3  # lines that are not worth a line to open them
CALLED = {"__init__", "__call__"}  # how one makes and uses a thing: not private
CORE = 6  # lines of a body that stand unfolded: short enough to be read as the formula
SOLUTION = re.compile(r"\{solution-(start|end)\}")


@dataclass(frozen=True)
class Fold:
    """Lines of a cell, from 0, that fold behind what the line before them `says`."""

    first: int
    last: int  # the first line after them
    says: str


def folded(nb: NotebookNode) -> NotebookNode:
    """Note on each code cell what of it folds; put its checks in a row behind one line.

    Works on the staged copy `nb`, whose cells still have their directives.
    """
    solving = False
    for cell in nb.cells:
        if cell.cell_type != "code":
            marks = SOLUTION.findall(cell.source)
            solving = marks[-1] == "start" if marks else solving
            continue
        found = directives(cell.source)
        if not found.code:
            continue
        folds = [] if solving and "fold" not in found.values else list(folds_of(found))
        if folds:
            cell.metadata["folds"] = [[f.first, f.last, f.says] for f in folds]
        if not solving:
            cell.outputs = list(grouped(cell.get("outputs", [])))
    return nb


def folds_of(cell: Directives) -> Iterator[Fold]:
    """What of a code cell folds, from what the cell is."""
    wanted, lines = cell.values.get("fold", ""), len(cell.code.splitlines())
    if wanted == "show":
        return
    what = wanted or _whole(cell)
    if what:
        yield Fold(0, lines, f"{what} · {counted(lines, 'line')}")
    elif cell.exported and lines > LONG:
        yield from _joined(_pieces(ast.parse(cell.code).body), cell.code.splitlines())


def _whole(cell: Directives) -> str:
    """What a cell is that folds whole; "" for one that doesn't."""
    try:
        body = ast.parse(cell.code).body
    except SyntaxError:  # a magic
        return ""
    imports = [s for s in body if isinstance(s, (ast.Import, ast.ImportFrom))]
    if imports and len(imports) == len(body):
        return "imports"
    if cell.exported:
        return ""
    if "label" in cell.values:
        return "the figure’s code"
    if any(CHECKS & {getattr(n, "id", "")} for s in body for n in ast.walk(s)):
        return "the check’s code"
    taken = sum(s.end_lineno - s.lineno + 1 for s in imports)
    if imports and body[0] in imports and 2 * taken >= len(cell.code.splitlines()):
        return "imports and settings"
    return ""


# --- exported code -------------------------------------------------------------------


def _pieces(body: list[ast.stmt]) -> Iterator[Fold | None]:
    """A fold for what one looks up, None for what stands: statement by statement."""
    for statement in body:
        first = min([d.lineno for d in _decorators(statement)] + [statement.lineno]) - 1
        if _private(statement):
            yield Fold(first, statement.end_lineno, _name(statement))
        elif isinstance(statement, ast.ClassDef):
            yield None
            yield from _pieces(_after_docstring(statement))
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield None
            yield from _body(_after_docstring(statement))
        else:
            yield None


def _body(statements: list[ast.stmt]) -> Iterator[Fold | None]:
    """A body folds if it is long; a short one is the formula."""
    if statements:
        first, last = statements[0].lineno - 1, statements[-1].end_lineno
        yield Fold(first, last, "body") if last - first > CORE else None


def _joined(pieces: Iterator[Fold | None], lines: list[str]) -> Iterator[Fold]:
    """Neighbours fold together; what saves no line stands."""
    row: list[Fold] = []
    for piece in [*pieces, None]:
        if piece:
            row.append(piece)
            continue
        if row and row[-1].last - row[0].first > FEW:
            names = [f.says for f in row]
            says = ", ".join(names) if len(names) <= 3 else "the rest"
            count = counted(row[-1].last - row[0].first, "line")
            yield Fold(row[0].first, row[-1].last, f"{says} · {count}")
        row = []


def _after_docstring(node: ast.ClassDef | ast.FunctionDef) -> list[ast.stmt]:
    return node.body[1:] if ast.get_docstring(node) is not None else node.body


def _decorators(node: ast.stmt) -> list[ast.expr]:
    return getattr(node, "decorator_list", [])


def _private(node: ast.stmt) -> bool:
    return _name(node).startswith("_") and _name(node) not in CALLED


def _name(node: ast.stmt) -> str:
    """What a statement defines; "" if that isn't one name."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return node.name
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return getattr(targets[0], "id", "")


# --- checks in a row -----------------------------------------------------------------


def grouped(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    """The outputs of a cell; two or more checks in a row become one output.

    It is a line that counts them, and opens to theirs.
    """
    row: list[NotebookNode] = []
    for output in [*outputs, None]:
        if output is not None and MIME in output.get("data", {}):
            row.append(output)
            continue
        yield from [_group(row)] if len(row) > 1 else row
        row = []
        if output is not None:
            yield output


def _group(row: list[NotebookNode]) -> NotebookNode:
    refused = sum(output["data"][MIME]["rejected"] for output in row)
    held = len(row) - refused
    said = [f"✓ {counted(held, 'check')}"] if held else []
    said += [f"✗ {counted(refused, 'wrong formula')} refused"] if refused else []
    shown = "\n".join(output["data"]["text/html"] for output in row)
    text = "\n".join(output["data"]["text/plain"] for output in row)
    page = (
        f'<details class="checks" open><summary>{", ".join(said)}</summary>'
        f"\n{shown}\n</details>"
    )
    data = {"text/plain": text, "text/html": page}
    return NotebookNode(output_type="display_data", data=data, metadata={})


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
