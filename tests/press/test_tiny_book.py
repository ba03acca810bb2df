"""A second book: three notebooks about something else, and a copy of the press.

All that it has of its own is in tiny_book/: settings, contents, notebooks.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from press import ROOT

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "tiny_book"


@dataclass(frozen=True)
class Book:
    """A copy of the tiny book, and the press in it."""

    root: Path

    def press(self, *arguments: str) -> subprocess.CompletedProcess:
        alone = {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        return subprocess.run(
            [sys.executable, "-m", "press", *arguments],
            cwd=self.root,
            env={**os.environ, **alone},
            capture_output=True,
            text=True,
        )

    def page(self, name: str) -> str:
        return (self.root / "_build" / "html" / f"{name}.html").read_text()

    def edit(self, notebook: str, old: str, new: str) -> None:
        path = self.root / "nbs" / f"{notebook}.ipynb"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Book:
    """The book, built: by the commands that `make export` and `make book` call."""
    root = tmp_path_factory.mktemp("second") / "book"
    shutil.copytree(HERE, root)
    shutil.copytree(ROOT / "press", root / "press")
    book = Book(root)
    for command in ("export", "book"):
        done = book.press(command)
        assert done.returncode == 0, done.stdout + done.stderr
    return book


def test_the_press_names_no_subject():
    """Catches a tool that only works for this book."""
    said = re.compile(r"flow ?book|flow.?matching|lipman", re.IGNORECASE)
    files = [p for p in (ROOT / "press").rglob("*") if p.suffix in (".py", ".js")]
    assert len(files) > 25
    found = {p.name: said.findall(p.read_text()) for p in files}
    # the variable that says which Python to take is older than the press
    found["env.py"] = [w for w in found["env.py"] if w != "FLOWBOOK"]
    assert {name: words for name, words in found.items() if words} == {}


def test_the_package_is_written_and_written_once(tiny):
    """Catches an export into another folder, or one that changes what it wrote."""
    module = tiny.root / "sums" / "odd.py"
    before = module.read_text()
    assert "def odd_numbers(n: int)" in before
    assert tiny.press("export").returncode == 0
    assert module.read_text() == before
    assert sorted(p.stem for p in module.parent.glob("*.py")) == [
        *("__init__", "_modidx", "cubes", "odd", "tools")
    ]


def test_each_page_is_there_with_its_number(tiny):
    """Catches a page that is lost, and chapters counted from another place."""
    for name, title in (
        ("nbs/index", "Sums"),
        ("nbs/odd", "0 · Odd numbers"),
        ("nbs/cubes", "1 · Cubes"),
        ("nbs/tools", "A · Tools"),
        ("ledger", "Proof ledger"),
        ("glossary", "Glossary"),
        ("timings", "Timings"),
        ("bibliography", "Bibliography"),
    ):
        heading = re.search(r"<h1>(.*?)<", tiny.page(name))[1]
        assert heading.replace("\xa0", " ") == title
    assert "Chapter 0" not in tiny.page("nbs/cubes")
    assert "chapter 0" in tiny.page("nbs/cubes").replace("\xa0", " ")
    words = re.sub(r"<[^>]+>", "", tiny.page("nbs/odd"))
    assert "Theorem 0.1  (Squares)" in words.replace("\xa0", " ")


def test_the_ledger_has_each_statement_and_what_was_measured(tiny):
    """Catches a statement without a row, and a wrong formula counted as a check."""
    text = re.sub(r"<[^>]+>", "", tiny.page("ledger")).replace("\xa0", " ")
    assert "3 statements, 3 checks, and 1 formulas that are wrong on purpose" in text
    assert "No check: the next one has it" in text
    assert "the run of 7" in text and "n (n + 1) instead" in text


def test_the_api_page_has_signature_words_and_derivation(tiny):
    """Catches a function without a page, or a page that leads nowhere."""
    page = tiny.page("api/odd")
    words = re.sub(r"<[^>]+>", "", page)
    assert "odd_numbers(n: int)" in words.replace("\xa0", " ")
    assert "Raises ValueError for a negative" in words and "Derived in" in words
    assert 'href="../nbs/odd.html#code-odd-odd_numbers-f"' in page.replace(
        "code-odd-odd-numbers-f", "code-odd-odd_numbers-f"
    )


def test_a_page_shows_what_it_is_made_of(tiny):
    """Catches a directive, a film, a panel, a link or a citation that is dropped."""
    page = tiny.page("nbs/odd")
    assert 'data-panel="squares"' in page and "panels/squares.js" in page
    assert 'alt="Four nested corners that fill a square."' in page
    assert 'href="../glossary.html#term-odd-number"' in page
    assert 'href="../bibliography.html#' in page
    assert "#| " not in page and "google.colab" not in page
    assert '<figure class="film"' in tiny.page("nbs/index")
    assert "1 / 1" not in tiny.page("nbs/cubes")  # hidden


def test_an_edit_of_prose_runs_nothing_and_rebuilds_one_page(tiny):
    """Catches a run for a comma, and a build of all pages for one of them."""
    html = tiny.root / "_build" / "html" / "nbs"
    before = {p.name: p.stat().st_mtime_ns for p in html.glob("*.html")}
    tiny.edit("odd", "The question is older than", "This question is older than")
    done = tiny.press("book")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": unchanged") == 3
    after = {p.name: p.stat().st_mtime_ns for p in html.glob("*.html")}
    written = {name for name in after if after[name] != before[name]}
    assert written == {"odd.html", "index.html"}  # and the page with the contents
    assert "This question is older" in tiny.page("nbs/odd")


def refused(tiny, tmp_path, notebook: str, old: str, new: str) -> str:
    """What the press says of a copy of the book with this edit; nothing is shown."""
    copy = Book(tmp_path / "book")
    shutil.copytree(tiny.root, copy.root)
    copy.edit(notebook, old, new)
    done = copy.press("book")
    assert done.returncode == 1 and "Traceback (most recent" not in done.stderr[:200]
    return done.stderr


def test_a_check_that_fails_names_its_cell(tiny, tmp_path):
    """Catches a book that is built over a failed check."""
    said = refused(tiny, tmp_path, "cubes", "sum(run_of(7)) - 7**3", "7 - 7**3")
    assert "cubes.ipynb, cell 7 (id cubes-6)" in said
    assert "the run of 7: off by -336" in said


def test_a_statement_without_a_check_is_named(tiny, tmp_path):
    """Catches a gap in the ledger that nobody sees."""
    said = refused(tiny, tmp_path, "cubes", "% no check: the next one has it", "")
    assert "the proof ledger has gaps" in said
    assert "nbs/cubes: proposition prop-cubes has no check" in said


def test_a_value_without_words_is_named(tiny, tmp_path):
    """Catches a repr that comes on a page as it is."""
    said = refused(tiny, tmp_path, "cubes", "sum(run_of(7)) - 7**3)", "0)\\nrun_of(2)")
    assert "cubes: cell cubes-6" in said and "[3, 5]" in said


def test_a_dead_reference_is_an_error(tiny, tmp_path):
    """Catches a warning of Sphinx that passes."""
    said = refused(tiny, tmp_path, "odd", "{eq}`eq-squares`", "{eq}`eq-cubes`")
    assert "Sphinx does not accept the book" in said and "eq-cubes" in said


# --- in a browser ---------------------------------------------------------------------


def opened(chromium, tiny, name, **options):
    """A page of the book from the disk, without a server, and what went wrong in it."""
    context = chromium.new_context(**options)
    tab, wrong = context.new_page(), []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("requestfailed", lambda request: wrong.append(request.url))
    tab.goto((tiny.root / "_build" / "html" / f"{name}.html").as_uri())
    return tab, wrong


PHONE = {"width": 360, "height": 740}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["nbs/index", "nbs/odd", "nbs/cubes", "ledger"])
def test_each_page_opens_from_the_disk_on_a_phone(chromium, tiny, name, scheme):
    """Catches an error in a script, a file that is missing, a page too wide."""
    tab, wrong = opened(chromium, tiny, name, viewport=PHONE, color_scheme=scheme)
    assert wrong == []
    assert tab.evaluate("document.documentElement.dataset.theme") == scheme
    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]


def test_the_panel_and_the_solution_can_be_touched(chromium, tiny):
    """Catches a panel that is dead, and a solution that is told or does not open."""
    tab, wrong = opened(chromium, tiny, "nbs/odd")
    tab.locator(".panel input").fill("7")
    assert tab.locator(".panel output").text_content() == "49"
    assert tab.get_by_text("By induction").is_visible()  # a short proof stands open
    solution = tab.get_by_text("One more for each")
    assert not solution.is_visible()
    tab.locator(".solution button, .solution summary").first.click()
    assert solution.is_visible() and wrong == []


def test_the_search_knows_names_that_no_heading_says(chromium, tiny):
    """Catches a search that needs a server, or has lost the aliases."""
    tab, _ = opened(chromium, tiny, "search")
    tab.goto(tab.url + "?q=gnomon")
    first = tab.locator("ol.search li a").first
    assert "The sum" in first.text_content()
    assert first.get_attribute("href").endswith("nbs/odd.html#the-sum")


def test_without_scripts_everything_stands_open(chromium, tiny):
    """Catches text that only a script would show."""
    tab, _ = opened(chromium, tiny, "nbs/odd", java_script_enabled=False)
    for text in ("By induction", "One more for each", "Squares"):
        assert tab.get_by_text(text).first.is_visible()


def test_the_students_get_no_solution_and_the_reader_a_pdf(tiny):
    """Catches a release that only this book can make."""
    done = tiny.press("release", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    made = sorted(p.name for p in (tiny.root / "out").iterdir())
    assert made == [
        "sums-1.2.3-notebooks.zip",
        "sums-1.2.3-site.zip",
        "sums-1.2.3.pdf",
        "sums_book-1.2.3-py3-none-any.whl",
    ]
    student = subprocess.run(
        ["unzip", "-p", made[0], "*/odd_student.ipynb"],
        cwd=tiny.root / "out",
        capture_output=True,
        text=True,
    ).stdout
    cells = [c["source"] for c in json.loads(student)["cells"]]
    assert not any("One more for each" in "".join(c) for c in cells)
