"""How long the pages of the built book are, in screens: `python -m press screens`.

A reader's load: the height of a page's text at 1400 x 900 pixels, as it opens and with
all its code shown, and how much of it is code.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from . import browser, notebooks, site
from .errors import BookError

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIZE = {"width": 1400, "height": 900}
MEASURE = """async height => {
    if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
    const article = document.querySelector("article");
    document.querySelectorAll("img").forEach(i => i.loading = "eager");
    await Promise.all([...document.images].map(i => i.decode().catch(() => {})));
    const high = e => e.getBoundingClientRect().height / height;
    const code = () => [...article.querySelectorAll(".cell_input")]
        .filter(e => e.checkVisibility()).reduce((sum, e) => sum + high(e), 0);
    const opens = [high(article), code()];
    article.querySelectorAll("details:is(.code, .checks)").forEach(d => d.open = true);
    return [...opens, high(article), code()];
}"""


@dataclass(frozen=True)
class Screens:
    """A page's length in screens, and how many of these are code."""

    page: str
    essential: float
    code: float
    all: float
    all_code: float


def measured(tab: "Page", address: str, page: str) -> Screens:
    """The length of one page, in a tab of any size, by its address on a server."""
    tab.set_viewport_size(SIZE)
    tab.goto(f"{address}{page}")
    return Screens(page, *tab.evaluate(MEASURE, SIZE["height"]))


def chapters() -> list[str]:
    """The pages that are chapters or appendices, in the book's order."""
    return [f"nbs/{path.stem}.html" for path in notebooks.notebooks()]


def table(rows: Iterable[Screens]) -> Iterator[str]:
    """Lines of text: page by page, and the sum."""
    yield f"{'page':32} {'opens at':>9} {'code':>6} {'with all':>9} {'code':>6}  folded"
    total = [0.0] * 4
    for row in rows:
        found = [row.essential, row.code, row.all, row.all_code]
        total = [a + b for a, b in zip(total, found, strict=True)]
        yield _line(row.page, found)
    yield _line("together", total)


def _line(name: str, found: list[float]) -> str:
    essential, code, everything, all_code = found
    share = 1 - essential / everything if everything else 0
    return (
        f"{name:32} {essential:9.1f} {code:6.1f} {everything:9.1f} {all_code:6.1f}"
        f" {share:6.0%}"
    )


@contextmanager
def opened(html: Path = site.HTML) -> Iterator[tuple["Page", str]]:
    """A tab, and the address of the site that it can ask for pages."""
    server = site.server(html=html)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with browser.running() as chromium:
            yield chromium.new_page(), f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def main(pages: list[str], html: Path = site.HTML) -> None:
    """Print the table for `pages`, or for all chapters and appendices."""
    wanted = pages or chapters()
    missing = [page for page in wanted if not (html / page).exists()]
    if missing:
        raise BookError(f"not in the built book: {', '.join(missing)}")
    with opened(html) as (tab, address):
        for line in table(measured(tab, address, page) for page in wanted):
            print(line, flush=True)
