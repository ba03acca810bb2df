"""Recorded runs on the pages: shown, missing, or refused."""

import json
import re

import nbformat
import pytest

from benchmarks import cpu, gpu, numbers
from press import ROOT, recorded, stage
from press.errors import BookError
from press.run import Run

RECORD = {
    "schema": 1,
    "stage": "speed",
    "quick": False,
    "synthetic": False,
    "hardware": {"device": "cuda", "name": "Card 9000", "memory_gib": 80.5},
    "versions": {"python": "3.12.3", "torch": "2.11.0"},
    "seed": 17,
    "commit": "abcdef0123456789",
    "command": "make gpu STAGE=speed",
    "finished": "2031-02-03T04:05:06+00:00",
    "seconds": 123.4,
    "settings": {"batch": 4096, "sampler": "50 Euler steps"},
    "tables": [
        {
            "title": "Training",
            "columns": ["what", "ratio"],
            "rows": [["a loop_of_mine", 1.23456], ["W₂² | x", None]],
            "note": "In all {three} rounds.",
        }
    ],
    "pictures": [{"file": "speed-a.png", "alt": "A line.", "caption": "It falls."}],
}
PNG = b"\x89PNG not looked into"


def put(folder, **changes):
    """A record with some fields changed (or, if None, dropped), and its picture."""
    record = {k: v for k, v in (RECORD | changes).items() if v is not None}
    (folder / "gpu").mkdir()
    (folder / "gpu" / f"{RECORD['stage']}.json").write_text(json.dumps(record))
    (folder / "gpu" / "speed-a.png").write_bytes(PNG)
    return record


def test_a_record_is_shown_with_all_its_origin(tmp_path):
    """Catches a number, a picture or a piece of its origin that the page leaves out."""
    put(tmp_path)
    text = recorded.fill("Before.\n\n<!-- recorded: gpu/speed -->\n\nAfter.", tmp_path)
    assert text.startswith("Before.\n") and text.endswith("\nAfter.")
    assert "<!--" not in text
    for said in ("Card 9000", "80.5", "torch 2.11.0", "17", "abcdef0123456789"):
        assert said in text
    for said in ("make gpu STAGE=speed", "2031-02-03", "123 s", "4,096", "1.23", "—"):
        assert said in text
    assert "{figure} /_static/speed-a.png" in text and ":alt: A line." in text
    assert "It falls. (Recorded, not run by this build.)" in text
    assert recorded.pictures("<!-- recorded: gpu/speed -->", tmp_path) == [
        tmp_path / "gpu" / "speed-a.png"
    ]


def test_text_in_a_record_is_text(tmp_path):
    """Catches a cell that ends a table, or is read as emphasis or a role."""
    put(tmp_path)
    text = recorded.fill("<!-- recorded: gpu/speed -->", tmp_path)
    assert r"a loop\_of\_mine" in text and r"W₂² \| x" in text
    assert r"\{three\}" in text


def test_without_a_record_the_page_says_so(tmp_path):
    """Catches an empty place, or a number made up, where nothing was recorded."""
    text = recorded.fill("<!-- recorded: gpu/table -->", tmp_path)
    assert text.strip("`").strip() == (
        "{note}\nNo run on a GPU is recorded in this copy of the book: "
        "`make gpu STAGE=table` records one."
    )
    assert recorded.pictures("<!-- recorded: gpu/table -->", tmp_path) == []


@pytest.mark.parametrize("place", ["speed", "xpu/speed", "gpu/../x", "gpu/"])
def test_a_page_may_ask_for_two_folders_only(place, tmp_path):
    """Catches a place that is misspelt, or outside: nothing would ever be there."""
    with pytest.raises(BookError, match=rf"{place!r}; expected gpu/STAGE or cpu/"):
        recorded.fill(f"<!-- recorded: {place} -->", tmp_path)


def test_a_line_in_the_text_is_no_place(tmp_path):
    """Catches a page that cannot speak of the line without getting a record."""
    said = "Write `<!-- recorded: gpu/speed -->` on a line."
    assert recorded.fill(said, tmp_path) == said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"quick": True}, "a smoke test"),
        ({"synthetic": True}, "made-up data"),
        ({"hardware": {"device": "cpu", "name": "a CPU"}}, "not on a GPU"),
        ({"stage": "images"}, "schema 1 of images, not 1 of speed"),
        ({"schema": 2}, "schema 2 of speed"),
        ({"seed": None}, "seed is missing"),
        ({"tables": "none"}, "tables is missing"),
        ({"tables": [{**RECORD["tables"][0], "rows": [[1]]}]}, "rows as long"),
        ({"tables": [{**RECORD["tables"][0], "title": 3}]}, "without title"),
        ({"pictures": [{"file": "speed-a.png", "alt": "A."}]}, "without caption"),
        ({"pictures": [{**RECORD["pictures"][0], "file": "b.png"}]}, "b.png"),
        ({"pictures": [{**RECORD["pictures"][0], "file": "../x.png"}]}, "x.png"),
    ],
)
def test_what_is_no_record_is_refused_by_name(changes, why, tmp_path):
    """Catches a quick try, a CPU's number or half a record shown as a result."""
    put(tmp_path, **changes)
    with pytest.raises(BookError, match=rf"speed\.json.*{why}"):
        recorded.load("gpu/speed", tmp_path)


def test_a_long_run_is_of_a_cpu(tmp_path):
    """Catches a CPU's record that is refused, or a GPU's that is passed off as one."""
    cpu = {"device": "cpu", "name": "Chip 7", "cores": 2}
    record = RECORD | {"stage": "moons", "hardware": cpu, "pictures": []}
    path = tmp_path / "cpu" / "moons.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record))
    text = recorded.fill("<!-- recorded: cpu/moons -->", tmp_path)
    assert "Recorded on 2031-02-03 on a CPU (Chip 7)." in text and "a loop" in text
    path.write_text(json.dumps(record | {"hardware": RECORD["hardware"]}))
    with pytest.raises(BookError, match=r"moons\.json.*'cuda', not on a CPU"):
        recorded.load("cpu/moons", tmp_path)
    path.unlink()
    text = recorded.fill("<!-- recorded: cpu/moons -->", tmp_path)
    assert "No long run is recorded" in text and "`make record STAGE=moons`" in text


def test_each_record_is_looked_for_where_it_is_written():
    """Catches a record that no page shows, and a mark for one that is never made."""
    pages = [*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "nbs").rglob("*.md")]
    text = "".join(path.read_text() for path in pages)
    asked = set(re.findall(r"<!-- recorded: *(\S+) *-->", text))
    made = {f"cpu/{s}" for s in cpu.STAGES} | {f"gpu/{s}" for s in gpu.STAGES}
    assert asked == made
    assert recorded.RESULTS / "cpu" == cpu.RESULTS


def test_the_comparison_draws_what_was_recorded():
    """Catches a figure, or a sentence, of numbers that no record holds."""
    cells = nbformat.read(ROOT / "nbs" / "comparison.ipynb", 4).cells
    (cell,) = [c.source for c in cells if '\nrecorded = """' in c.source]
    said = cell.split('"""')[1].split("\n")
    records = filter(None, (recorded.load(f"cpu/{s}") for s in cpu.STAGES))
    made = [line for record in records for line in numbers.lines(record)]
    assert [line for line in said if line] == made


def test_the_comparison_says_by_how_much_more_fm_vp_asks():
    """Catches a percentage in the conclusion that the record doesn't give."""
    rows = recorded.load("cpu/digits")["data"]["rows"]
    for steps, more in ((800, 1), (12_800, 14)):
        nfe = {(r["method"], r["seed"]): r["nfe"] for r in rows if r["steps"] == steps}
        ratios = [nfe["FM-VP", seed] / nfe["FM-OT", seed] - 1 for seed in range(3)]
        assert round(100 * sum(ratios) / 3) == more


def test_the_comparison_says_with_how_many_seeds_the_bits_rose():
    """Catches a sentence about the last doubling that the record doesn't give."""
    rows = recorded.load("cpu/digits")["data"]["rows"]
    nats = {(r["method"], r["seed"], r["steps"]): r["nll"] for r in rows}
    rise = {
        method: [nats[method, k, 12_800] > nats[method, k, 6400] for k in range(3)]
        for method in ("FM-OT", "FM-VP")
    }
    assert rise == {"FM-OT": [False, True, True], "FM-VP": [False] * 3}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_broken_file_is_refused_by_name(text, tmp_path):
    """Catches a traceback, or a silent "not yet", for a file cut short."""
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "speed.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BookError, match=r"speed\.json"):
        recorded.load("gpu/speed", tmp_path)


def test_pages_are_filled_when_they_are_laid_out(tmp_path, monkeypatch):
    """Catches a hook that no longer runs: the comment would vanish in silence."""
    monkeypatch.setattr(recorded.fill, "__defaults__", (tmp_path,))
    put(tmp_path)
    cell = nbformat.v4.new_markdown_cell("# T\n\n<!-- recorded: gpu/speed -->")
    export = nbformat.v4.new_code_cell("#| default_exp nothing")
    made = stage.page(nbformat.v4.new_notebook(cells=[cell, export]))
    assert "Card 9000" in made.cells[0].source
    assert cell.source == "# T\n\n<!-- recorded: gpu/speed -->"


def test_the_timings_are_the_runs(tmp_path):
    """Catches a page left out, or a total of something else."""
    runs = [
        Run(tmp_path / f"{n}_x.ipynb", None, tmp_path, s) for n, s in (("01", 2.4),)
    ]
    runs.append(Run(tmp_path / "02_y.ipynb", None, tmp_path, 40.0))
    text = recorded.timings("# T\n\n<!-- timings -->\n\nEnd", runs)
    assert "42 s in all" in text and "`nbs/01_x`" in text and "  - 40\n" in text
    assert text.startswith("# T\n") and text.endswith("```\n\nEnd")


def test_one_point_carries_the_mean_that_is_off_the_scale():
    """Catches a page that says of single seeds what the record doesn't."""
    data = numbers.load("ring")["data"]
    truth = {line["seed"]: line["nll"] for line in data["baselines"]}
    last = [row for row in data["rows"] if row["steps"] == 20_000]
    gaps, spread, samples = {}, {}, {}
    for row in last:
        gap = row["nll"] - truth[row["seed"]]
        gaps.setdefault(row["method"], []).append(round(gap, 2))
        spread[row["method"], row["seed"]] = row["nll_error"] / row["nll"]
        samples[row["method"], row["seed"]] = row["distances"]["sliced"][1]
    assert gaps["score matching"][:2] == [0.05, 0.07]
    assert gaps["DDPM"][:2] == [0.04, 0.06]
    # one of n values far above the others: mean m / n, standard error m / n
    assert abs(spread["score matching", 2] - 1) < 1e-3
    others = [samples["score matching", seed] for seed in (0, 1)]
    assert samples["score matching", 2] < max(others)
