"""The commands behind `make`: `python -m book <command>`."""

import argparse
import subprocess
import sys
import time

from . import BUILD, ROOT


def book() -> None:
    """Run every notebook, build the site, say where it is."""
    from . import notebooks, run, site, stage

    start = time.perf_counter()
    runs = run.run_all(notebooks.notebooks())
    stage.stage(runs)
    site.build()
    place = (site.HTML / "index.html").relative_to(ROOT)
    print(f"The book is in {place} ({time.perf_counter() - start:.0f} s); see it with")
    print("  make serve")


def chapter(name: str) -> None:
    """Run one notebook, given by its number or its stem, and build its page alone."""
    from . import notebooks, numbers, run, site, stage

    known = numbers.numbers()
    found = [p for p in notebooks.notebooks() if name in (p.stem, known.get(p.stem))]
    if not found:
        there = ", ".join(f"{n} {stem}" for stem, n in known.items())
        raise run.BookError(f"there is no chapter {name!r}; there are {there}")
    (done,) = run.run_all(found)
    folder = BUILD / "chapter" / done.path.stem
    source, html = folder / "source", folder / "html"
    stage.stage_one(done, source)
    site.build(strict=False, source=source, html=html)
    print(f"The page is {(html / 'nbs' / f'{done.path.stem}.html').relative_to(ROOT)}")


def export() -> None:
    """Clean the notebooks, stamp what follows from settings.ini, write the package."""
    from . import notebooks, stamp

    notebooks.clean()
    stamp.stamp_all(check=False)
    notebooks.export()


def clean() -> None:
    """Clean the notebooks: no outputs, no stray metadata."""
    from . import notebooks

    for path in notebooks.clean():
        print(f"cleaned {path.relative_to(ROOT)}")


def lint() -> None:
    """Format and lint the notebooks and the tools; mend what can be mended."""
    for command in (["format"], ["check", "--fix"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "-q", ROOT], check=True)


def dev() -> None:
    """Install the hooks that clean and lint before each commit."""
    subprocess.run([sys.executable, "-m", "pre_commit", "install"], check=True)


def lock() -> None:
    """Write lock.txt anew from what is installed."""
    from . import lock

    lock.main()


def data(source: str | None = None) -> None:
    """Put Fashion-MNIST into data/: from `source`, Debian's package, or a download."""
    from . import data

    data.stage(source)


def bench() -> None:
    """Time the package beside plain torch, alone on this machine."""
    command = [sys.executable, "-m", "benchmarks.speed"]
    subprocess.run(command, cwd=ROOT, check=True)


def serve() -> None:
    """Serve the built book on this machine."""
    from . import site

    site.serve()


def release(folder: str = "dist") -> None:
    """Write what one can take away: site, PDF, students' notebooks, wheel."""
    from . import release

    release.release(ROOT / folder)


def audit(*pages: str) -> None:
    """Run Lighthouse on every page of the built book, or on those named."""
    from . import audit

    audit.main(list(pages))


def screens(*pages: str) -> None:
    """Say how many screens each page of the built book is long, or those named."""
    from . import screens

    screens.main(list(pages))


def check() -> None:
    """The gates for all day: notebooks, export, lint, unit tests."""
    from . import gates

    gates.run(gates.QUICK)


def test() -> None:
    """Every gate: those of `check`, the mutants, the notebooks, the book, a browser."""
    from . import gates

    gates.run(gates.ALL)


COMMANDS = {
    f.__name__: f
    for f in (
        book,
        chapter,
        export,
        clean,
        lint,
        dev,
        lock,
        data,
        bench,
        serve,
        audit,
        screens,
        release,
        check,
        test,
    )
}


def main() -> int:
    from .run import BookError

    parser = argparse.ArgumentParser(prog="python -m book", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    try:
        COMMANDS[given.command](*given.arguments)
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
