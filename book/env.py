# ruff: noqa: UP032
"""Make the book's environment, then run one of its commands inside it.

    python3 book/env.py book        (what `make book` calls)

The environment is .venv in the project's root, with exactly what lock.txt names. It is
made when it is absent, brought up to date when lock.txt has changed, and made anew when
the Python differs, the folder was moved or an installation was cut off.

    FLOWBOOK_PYTHON=python3.12      the interpreter to use (`make PYTHON=python3.12`)
    TORCH=cpu                       take PyTorch from its CPU index: no CUDA packages

Standard library only. This file must stay readable for every Python that somebody may
still have, 2.7 included, so that an old one can say in a line that it is too old.
"""

import hashlib
import os
import platform
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUT_OFF = "installing\n"  # what the stamp says until an installation is complete


def main(arguments):
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
    become(python_in(ROOT), ["-m", "book"], arguments)


def become(python, script, arguments):
    """Go on as `python script arguments`, whose exit code then is ours."""
    command = [python]
    command.extend(script)
    command.extend(arguments)
    try:
        os.execvp(python, command)
    except OSError as error:
        fail("cannot run {}: {}", python, error.strerror)


def min_python(root):
    """The oldest Python that will do, from settings.ini, as (3, 11)."""
    for line in read(os.path.join(root, "settings.ini")).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "min_python":
            return tuple(int(number) for number in value.strip().split("."))
    raise SystemExit("settings.ini does not say min_python")


def complaint(version, executable, needed):
    """One line that says why this Python won't do, or None if it does."""
    if tuple(version[:2]) >= needed:
        return None
    return (
        "flowbook needs Python {} or newer, but {} is Python {}; "
        "choose another with `make PYTHON=/path/to/python3`"
    ).format(dotted(needed), executable or "this one", dotted(version[:3]))


def prepare(root, torch=""):
    """Bring .venv to what lock.txt says, and say in a line what is being done."""
    if not plan(root):
        return
    with Alone(root):
        todo = plan(root)  # another command may just have done it
        if not todo:
            return
        command, environment = pip_install(root, torch)
        stamp = os.path.join(root, ".venv", "flowbook.stamp")
        if todo == "make":
            version = dotted(sys.version_info[:2])
            say("making .venv with Python {}; the first time takes minutes", version)
            make_venv(os.path.join(root, ".venv"), stamp)
            before = ""
        else:
            say("bringing .venv up to date with lock.txt")
            before = read(stamp)
        write(stamp, CUT_OFF)
        code = run(command, environment)
        if code:
            if code > 0:  # not killed: pip has put back what it took away
                write(stamp, before)
            fail("pip could not install lock.txt; its message is above")
        write(stamp, wanted_stamp(root))  # last: from now on the environment is whole


def make_venv(venv, stamp):
    """Make an empty environment with pip, in place of what is there."""
    # Not sys.executable: that may be the Python of the very .venv that has to go.
    command = [sys._base_executable, "-m", "venv", "--clear", "--without-pip", venv]
    if run(command):
        fail("no .venv could be made; the message is above")
    write(stamp, CUT_OFF)
    command = [os.path.join(venv, "bin", "python"), "-m", "ensurepip", "--default-pip"]
    if run(command, output=False):
        fail("this Python has no ensurepip; on Debian: apt install python3-venv")


def plan(root):
    """What has to be done to .venv: "make" (anew, if need be), "install" or None."""
    python = python_in(root)
    if not os.path.exists(python):  # no .venv, half of one, or its Python has gone
        return "make"
    found = read(os.path.join(root, ".venv", "flowbook.stamp"))
    wanted = wanted_stamp(root)
    if found == wanted:
        return None
    if found:
        # Without the lock's line a stamp says where and for which Python .venv is.
        same = found.splitlines()[1:] == wanted.splitlines()[1:]
        return "install" if same else "make"
    # Made by hand, or stopped before the stamp: it will do if its pip and Python do.
    code = "import pip, sys; sys.exit(sys.version_info[:2] != {!r})"
    code = code.format(tuple(sys.version_info[:2]))
    return "make" if run([python, "-c", code], output=False) else "install"


def wanted_stamp(root):
    """What the stamp says when .venv is as lock.txt wants it."""
    lock = hashlib.sha256(read(os.path.join(root, "lock.txt")).encode("utf-8"))
    return "lock.txt {}\nPython {} on {} {}\nin {}\n".format(
        lock.hexdigest(),
        dotted(sys.version_info[:2]),
        sys.platform,
        platform.machine(),
        root,
    )


def pip_install(root, torch):
    """The command that installs lock.txt into .venv, and its environment."""
    lock = os.path.join(root, "lock.txt")
    command = [python_in(root), "-m", "pip", "install", "-qq", "-r", lock]
    if torch == "cpu":
        command += ["--extra-index-url", CPU_INDEX]
    elif torch:
        fail("TORCH={} means nothing here; TORCH=cpu is the one choice", torch)
    environment = dict(os.environ)
    # A source package is built with locked versions too. Pip read the first of these
    # for that until 25.3, and reads the second since.
    environment["PIP_CONSTRAINT"] = lock
    environment["PIP_BUILD_CONSTRAINT"] = lock
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    environment["PIP_REQUIRE_VIRTUALENV"] = "0"
    environment.pop("PYTHONPATH", None)  # what lies elsewhere is not installed
    return command, environment


def python_in(root):
    return os.path.join(root, ".venv", "bin", "python")


def dotted(version):
    return ".".join(str(number) for number in version)


def read(path):
    """The text of a file, empty if there is none."""
    if not os.path.exists(path):
        return ""
    with open(path, "rb") as file:
        return file.read().decode("utf-8")


def write(path, text):
    with open(path, "wb") as file:
        file.write(text.encode("utf-8"))


def run(command, environment=None, output=True):
    """The exit code of a command."""
    quiet = None if output else subprocess.DEVNULL
    return subprocess.call(command, env=environment, stdout=quiet, stderr=quiet)


def say(message, *values):
    print("flowbook: " + message.format(*values))
    sys.stdout.flush()


def fail(message, *values):
    raise SystemExit("flowbook: " + message.format(*values))


class Alone:
    """Holds a lock on the project's folder, so that two commands don't both install."""

    def __init__(self, root):
        self.folder = os.open(root, os.O_RDONLY)

    def __enter__(self):
        import fcntl  # there is none on Windows, where the complaint must still work

        try:
            fcntl.flock(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another command that is installing")
            fcntl.flock(self.folder, fcntl.LOCK_EX)

    def __exit__(self, *_):
        os.close(self.folder)


if __name__ == "__main__":
    main(sys.argv[1:])
