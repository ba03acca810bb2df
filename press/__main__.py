"""The commands behind `make`: `python -m press <command>`."""

import argparse
import subprocess
import sys

from . import ROOT
from .errors import BookError


def book() -> None:
    """Run every notebook, build the site, say where it is."""
    from . import build

    build.book()


def chapter(name: str) -> None:
    """Run one notebook, given by its number or its stem, and build its page alone."""
    from . import build

    build.chapter(name)


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


def module(name: str, *arguments: str) -> None:
    """Run a module of this project, `python -m NAME`, in the book's environment."""
    subprocess.run([sys.executable, "-m", name, *arguments], cwd=ROOT, check=True)


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


def timings() -> None:
    """Say what each gate took when it ran last."""
    from . import gates

    print(gates.timings(), end="")


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
        module,
        serve,
        audit,
        screens,
        release,
        check,
        test,
        timings,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m press", description=__doc__)
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
