"""What one can take away: notebooks, a zip that opens from disk, a whole PDF."""

import fcntl
import os
import re
import subprocess
import sys
import zipfile

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pypdf import PdfReader

from press import PACKAGE, ROOT, notebooks, release
from press.errors import BookError
from press.settings import read_settings

BEGIN = "```{solution-start} ex-1\n:class: dropdown\n```"
END = "```{solution-end}\n```"
NAME = f"flowbook-{read_settings().version}"


def notebook(*cells):
    made = [
        new_code_cell(c[1:]) if c[0] == "%" else new_markdown_cell(c) for c in cells
    ]
    return new_notebook(cells=made)


def test_students_get_exercises_and_an_empty_cell_and_no_solution():
    """Catches a solution that stays, and text around it that goes with it."""
    nb = notebook(
        f"Ask.\n\n{BEGIN}", "Because.", "%answer = 42", f"{END}\n\nNext.", "%x"
    )
    found = [c.source for c in release.student(nb).cells]
    assert found == ["Ask.", "", "Next.", "x"]
    assert nb.cells[1].source == "Because."  # the original is left as it was


def test_one_solution_ends_and_the_next_begins_in_one_cell():
    """Catches a second solution that slips through behind the first."""
    nb = notebook(BEGIN, "One.", f"{END}\n\nBetween.\n\n{BEGIN}", "%two = 2", END)
    found = [c.source for c in release.student(nb).cells]
    assert found == ["", "Between.", ""]


@pytest.mark.parametrize("cells", [[BEGIN, "%x = 1"], [END], [BEGIN, BEGIN, END]])
def test_half_a_solution_is_an_error(cells):
    """Catches a notebook cut off from a solution that never ends."""
    with pytest.raises(BookError, match=r"solution"):
        release.student(notebook(*cells))


def test_no_chapter_keeps_a_solution():
    """Catches a way to write solutions that `student` does not know."""
    for path in notebooks.notebooks():
        text = nbformat.writes(release.student(notebooks.read(path)))
        assert "solution-" not in text, path.name
        assert text.count("{exercise}") == path.read_text().count("{exercise}")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """What the command behind `make release` writes, but not to dist/.

    Once for all processes that run these tests: the first that asks makes it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (base / "release.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "released").exists():
            command = [sys.executable, "-m", "press", "release", base / "making"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            (base / "making").rename(base / "released")
    return base / "released"


@pytest.mark.book
def test_a_release_is_four_files(released):
    """Catches a file that is missing, or named without its version."""
    wanted = [NAME + w for w in ("-notebooks.zip", "-site.zip", ".pdf")]
    wanted += [read_settings().wheel]
    assert sorted(p.name for p in released.iterdir()) == sorted(wanted)


@pytest.mark.book
def test_the_released_wheel_holds_the_package_and_the_notebooks_no_solution(released):
    """Catches a module left out, a chapter left out, an answer that got in."""
    with zipfile.ZipFile(released / read_settings().wheel) as wheel:
        for path in PACKAGE.glob("*.py"):
            assert wheel.read(f"flowbook/{path.name}") == path.read_bytes()
    with zipfile.ZipFile(released / f"{NAME}-notebooks.zip") as archive:
        names = [f"{p.stem}_student.ipynb" for p in notebooks.notebooks()]
        assert archive.namelist() == [f"{NAME}-notebooks/{name}" for name in names]
        assert not any(b"solution-" in archive.read(n) for n in archive.namelist())


@pytest.mark.book
def test_the_zip_opens_from_disk_without_a_network(released, chromium, tmp_path):
    """Catches a page, a formula or a search that needs a server."""
    with zipfile.ZipFile(released / f"{NAME}-site.zip") as archive:
        archive.extractall(tmp_path)
    site = tmp_path / f"{NAME}-site"
    context = chromium.new_context(offline=True)
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/nbs/index.html")
    page.goto((site / "nbs" / "gaussian_path.html").as_uri())
    page.wait_for_selector("mjx-container", state="attached")
    page.goto((site / "search.html").as_uri() + "?q=continuity+equation")
    page.wait_for_selector("#search-results li a")
    first = page.locator("#search-results li a").first
    assert "continuity equation" in first.inner_text().lower()
    first.click()
    page.wait_for_url("**/nbs/*.html*")
    assert problems == []
    context.close()


def test_the_same_book_makes_the_same_zip(tmp_path):
    """Catches dates and orders of the disk in what is published."""
    folder = tmp_path / "site"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "x.html").write_text("x")
    (folder / "a.html").write_text("a")
    release.zip_folder(folder, tmp_path / "1.zip", "book")
    (folder / "a.html").write_text("a")  # a new date
    release.zip_folder(folder, tmp_path / "2.zip", "book")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


@pytest.mark.book
def test_the_book_on_paper_is_whole(released):
    """Catches links and numbers lost, a chapter missing; what is cut off stops it."""
    pdf = PdfReader(released / f"{NAME}.pdf")
    text = "\n".join(page.extract_text() for page in pdf.pages)
    text = text.replace("\u00a0", " ")
    for words in (
        "Theorem 1 (Lipman et al.)",
        "Theorem 3 (Lipman et al.)",
        "Proof ledger",
    ):
        assert words in text
    for page in release.page_order():
        if page.startswith("nbs/") and page != "nbs/index":
            assert page[4:6].lstrip("0") in text
    inside, outside = links(pdf)
    written = re.findall('href="#', (release.PRINTED / "print.html").read_text())
    assert len(inside) >= len(written) > 500  # one over two lines counts twice
    assert outside > 20
    assert None not in inside, "a link that leads nowhere"
    raw = [w for w in ("\\frac", "\\mathbb", "{prf:ref}", "#| ") if w in text]
    assert raw == []
    assert len(pdf.outline) > 20


def links(pdf: PdfReader) -> tuple[list, int]:
    """Where each link inside the document leads, and how many lead outside."""
    inside, outside = [], 0
    names = pdf.named_destinations
    for page in pdf.pages:
        for annotation in page.get("/Annots") or []:
            found = annotation.get_object()
            if found.get("/Subtype") != "/Link":
                continue
            if "/Dest" in found:
                goal = found["/Dest"]
                inside.append(names.get(goal) if isinstance(goal, str) else goal)
            else:
                outside += "/URI" in found.get("/A", {})
    return inside, outside
