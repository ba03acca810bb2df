"""Runs recorded by `make gpu` and `make record`: their numbers on the book's pages.

A page says `<!-- recorded: STAGE -->`; the build puts the record there, or says that
there is none yet. What was tried in a hurry, or on another device, is refused.
"""

import json
import math
import re
from pathlib import Path

from . import ROOT
from .errors import BookError
from .run import Run

RESULTS = ROOT / "results"  # a folder for each device
ON_GPU = ("tests", "speed", "images", "table")
ON_CPU = ("ring", "moons", "checkerboard", "digits")  # too long for a page
STAGES = (*ON_GPU, *ON_CPU)
PLACE = re.compile(r"^<!-- recorded: *(\S+) *-->[ ]*$", re.MULTILINE)
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


def _home(stage: str, folder: Path | None) -> Path:
    return folder or RESULTS / ("cpu" if stage in ON_CPU else "gpu")


def load(stage: str, folder: Path | None = None) -> dict | None:
    """The record of a stage, or None. Raises BookError, naming the file, if unfit."""
    folder = _home(stage, folder)
    path = folder / f"{stage}.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BookError(f"{path} is not a record: {error}") from None
    trouble = _trouble(record, stage, folder)
    if trouble:
        raise BookError(f"{path} is no record to show: {trouble}")
    return record


def _trouble(record: object, stage: str, folder: Path) -> str:
    """What is wrong with a record, in a few words, or nothing."""
    missing = _missing(record, FIELDS)
    if missing:
        return f"{missing} is missing, or of another kind"
    if record.get("schema") != 1 or record["stage"] != stage:
        return f"schema {record.get('schema')} of {record['stage']}, not 1 of {stage}"
    if record["quick"] or record["synthetic"]:
        return "a smoke test, or made-up data"
    wanted, said = ("cpu", "a CPU") if stage in ON_CPU else ("cuda", "a GPU")
    if record["hardware"].get("device") != wanted:
        return f"it ran on {record['hardware'].get('device')!r}, not on {said}"
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


def fill(text: str, folder: Path | None = None) -> str:
    """Replace each `<!-- recorded: STAGE -->` line of a page's Markdown."""

    def one(found: re.Match) -> str:
        stage = found[1]
        if stage not in STAGES:
            raise BookError(f"a page asks for {stage!r}; recorded are {STAGES}")
        record = load(stage, folder)
        return shown(record) if record else missing(stage)

    return PLACE.sub(one, text)


def pictures(text: str, folder: Path | None = None) -> list[Path]:
    """The files that the records named in a page's Markdown show."""
    records = [(load(s, folder), _home(s, folder)) for s in PLACE.findall(text)]
    return [home / p["file"] for r, home in records if r for p in r["pictures"]]


def missing(stage: str) -> str:
    run, target = ("long run", "record") if stage in ON_CPU else ("run on a GPU", "gpu")
    said = f"No {run} is recorded in this copy of the book"
    return f"```{{note}}\n{said}: `make {target} STAGE={stage}` records one.\n```"


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
    on = f"a CPU ({name})" if record["stage"] in ON_CPU else f"one {name}"
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


def timings(runs: list[Run], folder: Path | None = None) -> str:
    """The page of timings: seconds of each notebook in this build, recorded speeds."""
    rows = [[f"{{doc}}`nbs/{run.path.stem}`", f"{run.seconds:.0f}"] for run in runs]
    total = sum(run.seconds for run in runs)
    lines = ["* - Page", "  - Seconds"]
    lines += [line for page, s in rows for line in (f"* - {page}", f"  - {s}")]
    return "\n".join(
        [
            "(timings)=",
            "# Timings",
            "",
            f"How long each notebook ran, {total:.0f} s in all, when the pages were "
            "made: on the machine that built them, several at a time. A notebook whose "
            "code has not changed since is not run again. Compare the numbers with "
            "each other, not with another machine's.",
            "",
            "```{list-table}",
            ":header-rows: 1",
            "",
            *lines,
            "```",
            "",
            "`make bench` compares the package with plain torch code for the same job "
            "on a CPU, as ratios with a budget each.",
            "",
            "## On a GPU",
            "",
            "`make gpu` times the package on a GPU, and compares each function there "
            "with the same on the CPU.",
            "",
            "### Speed",
            "",
            fill("<!-- recorded: speed -->", folder),
            "",
            "### The same numbers as the CPU",
            "",
            fill("<!-- recorded: tests -->", folder),
            "",
        ]
    )
