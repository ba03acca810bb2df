"""Runs recorded by `make gpu` and `make record`: their numbers on the book's pages.

A page says `<!-- recorded: gpu/STAGE -->`, or `cpu/STAGE` for what is too long for a
page; the build puts `results/gpu/STAGE.json` there, or says that there is none yet.
What was tried in a hurry, or on another device, is refused.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from . import ROOT
from .errors import BookError
from .run import Run

RESULTS = ROOT / "results"
PLACE = re.compile(r"^<!-- recorded: *(\S+) *-->[ ]*$", re.MULTILINE)
RUNS = re.compile(r"^<!-- timings -->$", re.MULTILINE)


@dataclass(frozen=True)
class Device:
    """Where a run was recorded: a folder of `results/`, and how a page speaks of it."""

    kind: str  # torch's name
    said: str
    run: str
    target: str  # of make


DEVICES = {
    "gpu": Device("cuda", "a GPU", "run on a GPU", "gpu"),
    "cpu": Device("cpu", "a CPU", "long run", "record"),
}
FIELDS = {
    "stage": str,
    "quick": bool,
    "synthetic": bool,
    "hardware": dict,
    "versions": dict,
    "seed": int,
    "command": str,
    "finished": str,
    "seconds": (int, float),
    "settings": dict,
    "tables": list,
    "pictures": list,
}
TABLE = {"title": str, "columns": list, "rows": list, "note": str}
PICTURE = {"file": str, "alt": str, "caption": str}


def load(place: str, results: Path | None = None) -> dict | None:
    """The record at a place, as "gpu/speed", or None.

    Raises BookError for a place that can't be, or a file that is no record, by name.
    """
    device, _, stage = place.partition("/")
    if device not in DEVICES or not re.fullmatch(r"\w+", stage):
        raise BookError(f"a page asks for {place!r}; expected gpu/STAGE or cpu/STAGE")
    path = (results or RESULTS) / f"{place}.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BookError(f"{path} is not a record: {error}") from None
    trouble = _trouble(record, stage, DEVICES[device], path.parent)
    if trouble:
        raise BookError(f"{path} is no record to show: {trouble}")
    return record


def _trouble(record: object, stage: str, device: Device, folder: Path) -> str:
    """What is wrong with a record, in a few words, or nothing."""
    missing = _missing(record, FIELDS)
    if missing:
        return f"{missing} is missing, or of another kind"
    if record.get("schema") != 1 or record["stage"] != stage:
        return f"schema {record.get('schema')} of {record['stage']}, not 1 of {stage}"
    if record["quick"] or record["synthetic"]:
        return "a smoke test, or made-up data"
    if record["hardware"].get("device") != device.kind:
        return f"it ran on {record['hardware'].get('device')!r}, not on {device.said}"
    for table in record["tables"]:
        missing = _missing(table, TABLE)
        if missing or any(len(row) != len(table["columns"]) for row in table["rows"]):
            return f"a table without {missing or 'rows as long as its columns'}"
    for picture in record["pictures"]:
        if missing := _missing(picture, PICTURE):
            return f"a picture without {missing}"
        name = picture["file"]
        if Path(name).name != name or not (folder / name).is_file():
            return f"its picture {name!r} is not beside it"
    return ""


def _missing(value: object, fields: dict) -> str:
    if not isinstance(value, dict):
        return "all"
    wrong = [n for n, kind in fields.items() if not isinstance(value.get(n), kind)]
    return ", ".join(wrong)


# --- on a page -----------------------------------------------------------------------


def fill(text: str, results: Path | None = None) -> str:
    """Replace each `<!-- recorded: gpu/STAGE -->` line of a page's Markdown."""

    def one(found: re.Match) -> str:
        record = load(found[1], results)
        return shown(record) if record else missing(found[1])

    return PLACE.sub(one, text)


def pictures(text: str, results: Path | None = None) -> list[Path]:
    """The files that the records named in a page's Markdown show."""
    results = results or RESULTS
    records = [(load(place, results), place) for place in PLACE.findall(text)]
    return [
        (results / place).with_name(picture["file"])
        for record, place in records
        if record
        for picture in record["pictures"]
    ]


def missing(place: str) -> str:
    device, _, stage = place.partition("/")
    found = DEVICES[device]
    said = f"No {found.run} is recorded in this copy of the book"
    return f"```{{note}}\n{said}: `make {found.target} STAGE={stage}` records one.\n```"


def shown(record: dict) -> str:
    """A record as MyST Markdown: its numbers, its pictures, and where they are from."""
    lines = [f"*{_where(record)} This build only shows it.*", ""]
    for table in record["tables"]:
        lines += [f"**{_text(table['title'])}**", ""]
        lines += _table(table["columns"], table["rows"])
        lines += [_text(table["note"]), ""] if table["note"] else []
    for picture in record["pictures"]:
        lines += [f"```{{figure}} /_static/{picture['file']}"]
        lines += [f":alt: {picture['alt']}", ":class: recorded", ""]
        lines += [f"{picture['caption']} (Recorded, not run by this build.)", "```", ""]
    lines += ["````{dropdown} The recorded run"]
    lines += [*_table(["", ""], _origin(record)), "````"]
    return "\n".join(lines)


def _where(record: dict) -> str:
    day = record["finished"].partition("T")[0]
    name = record["hardware"].get("name", "GPU")
    cpu = record["hardware"]["device"] == "cpu"
    on = f"a CPU ({name})" if cpu else f"one {name}"
    return f"Recorded on {day} on {on}."


def _origin(record: dict) -> list[list]:
    """All that somebody needs to run it again."""
    versions = ", ".join(f"{name} {v}" for name, v in record["versions"].items())
    hardware = {k: v for k, v in record["hardware"].items() if k != "device"}
    return [
        ["command", f"`{record['command']}`"],
        ["hardware", ", ".join(f"{k} {_cell(v)}" for k, v in hardware.items())],
        ["finished", record["finished"]],
        ["wall-clock", f"{record['seconds']:.0f} s"],
        ["seed", record["seed"]],
        ["versions", versions],
        ["commit", f"`{record.get('commit') or 'not known'}`"],
        *([name, value] for name, value in record["settings"].items()),
    ]


def _table(columns: list, rows: list) -> list[str]:
    lines = ["```{list-table}", ":header-rows: 1", ":class: recorded", ""]
    if not any(columns):
        lines.remove(":header-rows: 1")
        columns, *rows = rows
    for row in (columns, *rows):
        first, *rest = map(_cell, row)
        lines += [f"* - {first}", *(f"  - {cell}" for cell in rest)]
    return [*lines, "```", ""]


def _cell(value: object) -> str:
    """Three digits of a number; text as it is; a dash for what is not known."""
    if value is None:
        return "—"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _text(str(value))
    if not math.isfinite(value):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _text(text: str) -> str:
    """One line, in which nothing opens a directive, a role or a link."""
    if text.startswith("`") and text.endswith("`") and text.count("`") == 2:
        return text
    return re.sub(r"([\\`*_{}<>$|\[\]])", r"\\\1", " ".join(text.split()))


# --- the appendix --------------------------------------------------------------------


def timings(text: str, runs: list[Run]) -> str:
    """A page's `<!-- timings -->`: the seconds of each notebook in this build."""
    rows = [[f"{{doc}}`nbs/{run.path.stem}`", f"{run.seconds:.0f}"] for run in runs]
    total = sum(run.seconds for run in runs)
    said = (
        f"How long each notebook ran, {total:.0f} s in all, when the pages were made: "
        "on the machine that built them, several at a time. A notebook whose code has "
        "not changed since is not run again. Compare the numbers with each other, not "
        "with another machine's."
    )
    head = ["```{list-table}", ":header-rows: 1", "", "* - Page", "  - Seconds"]
    lines = [line for page, s in rows for line in (f"* - {page}", f"  - {s}")]
    table = "\n".join([said, "", *head, *lines, "```"])
    return RUNS.sub(lambda _: table, text)
