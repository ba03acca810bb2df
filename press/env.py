"""Make the book's environment, then run one of its commands inside it.

    python3 press/env.py book       (what `make book` calls)

The environment is .venv in the project's root, with exactly what lock.txt names. It is
made when it is absent, brought up to date when lock.txt has changed, and made anew when
the Python differs, the folder was moved or an installation was cut off.

    FLOWBOOK_PYTHON=python3.12      the interpreter to use (`make PYTHON=python3.12`)
    TORCH=cpu                       take PyTorch from its CPU index: no CUDA packages

Standard library only, and no syntax newer than Python 3.7, so that an older Python than
settings.ini asks for can say so in a line.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUT_OFF = "installing\n"  # what the stamp says until an installation is complete


def main(arguments: list[str]) -> None:
    chosen = os.environ.pop("FLOWBOOK_PYTHON", "")
    if chosen:
        become(chosen, [os.path.abspath(__file__)], arguments)
    trouble = complaint(sys.version_info, sys.executable, min_python(ROOT))
    if trouble:
        raise SystemExit(trouble)
    if not arguments:
        raise SystemExit("which command? `make help` lists them")
    prepare(ROOT, os.environ.get("TORCH", ""))
    os.chdir(ROOT)
    become(python_in(ROOT), ["-m", "press"], arguments)


def become(python: str | Path, script: list[str], arguments: list[str]) -> None:
    """Go on as `python script arguments`, whose exit code then is ours."""
    try:
        os.execvp(python, [str(python), *script, *arguments])
    except OSError as error:
        fail(f"cannot run {python}: {error.strerror}")


def min_python(root: Path) -> tuple[int, ...]:
    """The oldest Python that will do, from settings.ini, as (3, 11)."""
    for line in read(root / "settings.ini").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "min_python":
            return tuple(int(number) for number in value.strip().split("."))
    raise SystemExit("settings.ini does not say min_python")


def complaint(version: tuple, executable: str, needed: tuple) -> str | None:
    """One line that says why this Python won't do, or None if it does."""
    if tuple(version[:2]) >= needed:
        return None
    return (
        f"Python {dotted(needed)} or newer is needed, but {executable or 'this one'} "
        f"is Python {dotted(version[:3])}; choose another with "
        "`make PYTHON=/path/to/python3`"
    )


def prepare(root: Path, torch: str = "") -> None:
    """Bring .venv to what lock.txt says, and say in a line what is being done."""
    if not plan(root):
        return
    with alone(root):
        todo = plan(root)  # another command may just have done it
        if not todo:
            return
        command, environment = pip_install(root, torch)
        stamp, before = stamp_of(root), ""
        if todo == "make":
            version = dotted(sys.version_info[:2])
            say(f"making .venv with Python {version}; the first time takes minutes")
            make_venv(root / ".venv", stamp)
        else:
            say("bringing .venv up to date with lock.txt")
            before = read(stamp)
        stamp.write_text(CUT_OFF)
        code = subprocess.call(command, env=environment)
        if code:
            if code > 0:  # not killed: pip has put back what it took away
                stamp.write_text(before)
            fail("pip could not install lock.txt; its message is above")
        stamp.write_text(wanted_stamp(root))  # last: from now on .venv is whole


def make_venv(venv: Path, stamp: Path) -> None:
    """Make an empty environment with pip, in place of what is there."""
    # Not sys.executable: that may be the Python of the very .venv that has to go.
    python = sys._base_executable
    if subprocess.call([python, "-m", "venv", "--clear", "--without-pip", str(venv)]):
        fail("no .venv could be made; the message is above")
    stamp.write_text(CUT_OFF)
    if not works(venv / "bin" / "python", "-m", "ensurepip", "--default-pip"):
        fail("this Python has no ensurepip; on Debian: apt install python3-venv")


def plan(root: Path) -> str | None:
    """What has to be done to .venv: "make" (anew, if need be), "install" or None."""
    python = python_in(root)
    if not python.exists():  # no .venv, half of one, or its Python has gone
        return "make"
    found, wanted = read(stamp_of(root)), wanted_stamp(root)
    if found == wanted:
        return None
    if found:
        # Without the lock's line a stamp says where and for which Python .venv is.
        same = found.splitlines()[1:] == wanted.splitlines()[1:]
        return "install" if same else "make"
    # Made by hand, or stopped before the stamp: it will do if its pip and Python do.
    version = tuple(sys.version_info[:2])
    code = f"import pip, sys; sys.exit(sys.version_info[:2] != {version!r})"
    return "install" if works(python, "-c", code) else "make"


def stamp_of(root: Path) -> Path:
    return root / ".venv" / "lock.stamp"


def wanted_stamp(root: Path) -> str:
    """What the stamp says when .venv is as lock.txt wants it."""
    lock = hashlib.sha256(read(root / "lock.txt").encode()).hexdigest()
    python = f"{dotted(sys.version_info[:2])} on {sys.platform} {platform.machine()}"
    return f"lock.txt {lock}\nPython {python}\nin {root}\n"


def pip_install(root: Path, torch: str) -> tuple[list[str], dict[str, str]]:
    """The command that installs lock.txt into .venv, and its environment."""
    lock = str(root / "lock.txt")
    command = [str(python_in(root)), "-m", "pip", "install", "-qq", "-r", lock]
    if torch == "cpu":
        command += ["--extra-index-url", CPU_INDEX]
    elif torch:
        fail(f"TORCH={torch} means nothing here; TORCH=cpu is the one choice")
    environment = {
        **os.environ,
        # A source package is built with locked versions too. Pip read the first of
        # these for that until 25.3, and reads the second since.
        "PIP_CONSTRAINT": lock,
        "PIP_BUILD_CONSTRAINT": lock,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
    }
    environment.pop("PYTHONPATH", None)  # what lies elsewhere is not installed
    return command, environment


def python_in(root: Path) -> Path:
    return root / ".venv" / "bin" / "python"


def dotted(version: tuple) -> str:
    return ".".join(map(str, version))


def read(path: Path) -> str:
    """The text of a file, empty if there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def works(*command: str | Path) -> bool:
    """Whether a command succeeds, in silence."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return not subprocess.call([str(part) for part in command], **quiet)


def say(message: str) -> None:
    print(message, flush=True)


def fail(message: str) -> None:
    raise SystemExit(message)


@contextmanager
def alone(root: Path):
    """Hold a lock on the project's folder, so that two commands don't both install."""
    import fcntl  # there is none on Windows, where the complaint must still work

    folder = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another command that is installing")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
