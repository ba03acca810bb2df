"""The book, or one chapter of it: run, lay out, build, and say where it is."""

import time

from . import BUILD, ROOT, notebooks, numbers, run, site, stage
from .errors import BookError


def book() -> None:
    """Run every notebook, build the site, say where it is."""
    start = time.perf_counter()
    runs = run.run_all(notebooks.notebooks())
    stage.stage(runs)
    site.build()
    place = (site.HTML / "index.html").relative_to(ROOT)
    print(f"The book is in {place} ({time.perf_counter() - start:.0f} s); see it with")
    print("  make serve")


def chapter(name: str) -> None:
    """Run one notebook, given by its number or its stem, and build its page alone."""
    known = numbers.numbers()
    found = [p for p in notebooks.notebooks() if name in (p.stem, known.get(p.stem))]
    if not found:
        there = ", ".join(f"{n} {stem}" for stem, n in known.items())
        raise BookError(f"there is no chapter {name!r}; there are {there}")
    (done,) = run.run_all(found)
    folder = BUILD / "chapter" / done.path.stem
    source, html = folder / "source", folder / "html"
    stage.stage_one(done, source)
    site.build(strict=False, source=source, html=html)
    print(f"The page is {(html / 'nbs' / f'{done.path.stem}.html').relative_to(ROOT)}")
