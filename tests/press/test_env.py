"""press/env.py: its complaint, when .venv is made, and the rules of lock.txt."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from press import env, lock
from press.settings import ROOT, read_settings

# --- the complaint --------------------------------------------------------------------


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 9, 6), (3, 10, 13)])
def test_an_old_python_is_named_in_one_line(version):
    """Catches versions compared as strings ("3.9" > "3.11"), or nothing said."""
    said = env.complaint(version, "/usr/bin/python3", env.min_python(ROOT))
    assert "\n" not in said
    assert "3.11 or newer" in said
    assert f"/usr/bin/python3 is Python {'.'.join(map(str, version))}" in said


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 13, 0), (4, 0, 0)])
def test_a_new_enough_python_passes(version):
    """Catches > for >=, or a complaint about a newer major version."""
    assert env.complaint(version, "python3", env.min_python(ROOT)) is None


def test_the_command_itself_complains():
    """Catches a complaint that comes too late, on stdout, or with a traceback."""
    script = (
        "import sys, runpy\n"
        "sys.version_info = (3, 9, 6, 'final', 0)\n"
        f"sys.argv = ['env.py', 'book']\n"
        f"runpy.run_path({str(ROOT / 'press' / 'env.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "is Python 3.9.6" in done.stderr


def test_a_python_that_is_not_there_is_named():
    """Catches a traceback for a misspelt PYTHON=."""
    done = subprocess.run(
        [sys.executable, ROOT / "press" / "env.py", "book"],
        capture_output=True,
        text=True,
        env={**os.environ, "FLOWBOOK_PYTHON": "no-such-python"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("cannot run no-such-python")
    assert done.stderr.count("\n") == 1


def test_old_pythons_can_parse_it():
    """Catches syntax at which Python 3.7 would stop before it can say its sentence."""
    ast.parse((ROOT / "press" / "env.py").read_text(), feature_version=(3, 7))


# --- what is done to .venv ----------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a lock and a whole .venv, whose python is the one that runs."""
    (tmp_path / "lock.txt").write_text("numpy==2.4.6\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    env.stamp_of(tmp_path).write_text(env.wanted_stamp(tmp_path))
    return tmp_path


def test_nothing_changed_nothing_done(root):
    """Catches an environment installed again each time."""
    assert env.plan(root) is None


def test_a_changed_lock_is_installed(root):
    """Catches a lock that is read once and never again."""
    (root / "lock.txt").write_text("numpy==2.4.7\n")
    assert env.plan(root) == "install"


def test_no_venv_or_one_without_its_python_is_made(root):
    """Catches a dangling python (it was removed) that is taken for a whole .venv."""
    python = env.python_in(root)
    python.unlink()
    python.symlink_to("/no/such/python")
    assert env.plan(root) == "make"


def test_an_installation_cut_off_is_begun_anew(root):
    """Catches half an installation that is taken for a whole one."""
    env.stamp_of(root).write_text(env.CUT_OFF)
    assert env.plan(root) == "make"


def test_another_python_or_place_is_made_anew(root):
    """Catches a .venv of Python 3.12 that is used by 3.11, or one that was moved."""
    whole = env.wanted_stamp(root)
    env.stamp_of(root).write_text(whole.replace("Python 3.", "Python 9."))
    assert env.plan(root) == "make"
    env.stamp_of(root).write_text(whole.replace(f"in {root}", "in /elsewhere"))
    assert env.plan(root) == "make"


def test_a_venv_made_by_hand_is_filled(root):
    """Catches a .venv without a stamp that is thrown away."""
    env.stamp_of(root).unlink()
    assert env.plan(root) == "install"


@pytest.mark.parametrize(("code", "then"), [(0, None), (1, "install"), (-9, "make")])
def test_the_stamp_is_written_last(root, monkeypatch, code, then):
    """Catches a stamp before or after a failed installation; a killed pip trusted."""
    (root / "lock.txt").write_text("numpy==2.4.7\n")
    during = []

    def pip(*_, **__):
        during.append(env.stamp_of(root).read_text())
        return code

    monkeypatch.setattr(env.subprocess, "call", pip)
    if code:
        with pytest.raises(SystemExit, match=r"pip could not install lock\.txt"):
            env.prepare(root)
    else:
        env.prepare(root)
    assert during == [env.CUT_OFF]
    monkeypatch.undo()
    assert env.plan(root) == then


def test_the_installation_honours_the_lock(root, monkeypatch):
    """Catches free versions in isolated builds; PYTHONPATH's packages counted."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    command, environment = env.pip_install(root, "")
    assert command[-2:] == ["-r", str(root / "lock.txt")]
    assert environment["PIP_CONSTRAINT"] == str(root / "lock.txt")
    assert environment["PIP_BUILD_CONSTRAINT"] == str(root / "lock.txt")
    assert "PYTHONPATH" not in environment


def test_torch_cpu_adds_an_index_and_nothing_else_is_accepted(root):
    """Catches an index that replaces the registry; TORCH=CPU ignored in silence."""
    command, _ = env.pip_install(root, "cpu")
    assert command[-2:] == ["--extra-index-url", env.CPU_INDEX]
    with pytest.raises(SystemExit, match="TORCH=cpu is the one choice"):
        env.pip_install(root, "rocm")


def test_the_exit_code_and_arguments_pass_through():
    """Catches a failed gate that `make` takes for success; arguments lost."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import env\n"
    script += "env.become(sys.executable, ['-c', sys.argv[2]], ['book', 'N=09'])"
    inner = "import sys; print(sys.argv[1:]); sys.exit(7)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "press"), inner],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7
    assert done.stdout == "['book', 'N=09']\n"


# --- lock.txt ----------------------------------------------------------------------


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "lock.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def test_the_lock_has_exact_public_versions_only():
    """Catches a range, a hash, an address, +cpu, or a package named twice."""
    text = (ROOT / "lock.txt").read_text()
    assert len(pins()) == sum(not line.startswith("#") for line in text.splitlines())
    for pin in pins().values():
        (specifier,) = pin.specifier
        assert (specifier.operator, pin.url, pin.extras) == ("==", None, set()), pin
        assert "+" not in specifier.version and "*" not in specifier.version, pin
    assert "--hash" not in text


def test_the_lock_satisfies_settings():
    """Catches a requirement added to settings.ini, or changed, without `make lock`."""
    settings = read_settings()
    for line in settings.requirements + settings.dev_requirements:
        wanted = Requirement(line)
        (pin,) = pins()[canonicalize_name(wanted.name)].specifier
        assert wanted.specifier.contains(pin.version), f"{line}: {pin} in lock.txt"


def test_the_lock_is_what_runs_here():
    """Catches a package needed but not pinned, pinned but not needed, or another."""
    settings = read_settings()
    here, elsewhere = lock.closure(settings.requirements + settings.dev_requirements)
    locked = pins()
    assert set(locked) == set(here) | set(elsewhere)
    for name, version in here.items():
        assert str(locked[name].specifier) == f"=={version}", name


def test_the_closure_follows_markers_and_extras():
    """Catches an extra not followed, macOS forgotten, Windows pinned, +cpu kept."""
    packages = {
        "a": (
            "1.0+cpu",
            ["b[fast]>=1", "w; sys_platform == 'win32'", "dev; extra == 'x'"],
        ),
        "b": ("2.0", ["c; extra == 'fast'", "m>=1; sys_platform == 'darwin'"]),
        "c": ("3.0", ["a"]),
    }
    here, elsewhere = lock.closure(["a"], find=packages.get)
    assert here == {"a": "1.0", "b": "2.0", "c": "3.0"}
    assert elsewhere == {"m": 'sys_platform == "darwin"'}


def test_the_closure_leaves_cuda_to_torch():
    """Catches gates that pass with torch's CPU build and fail with the other."""
    packages = {"torch": ("2.13.0", ["nvidia-nccl-cu13==2.0", "triton==3.0"])}
    assert lock.closure(["torch"], find=packages.get) == ({"torch": "2.13.0"}, {})


def test_the_closure_refuses_what_does_not_fit():
    """Catches a lock written from an environment that settings.ini doesn't allow."""
    with pytest.raises(LookupError, match="a>=2 is required, but 1 is installed"):
        lock.closure(["a>=2"], find={"a": ("1", [])}.get)
    with pytest.raises(LookupError, match="b is required, but not installed"):
        lock.closure(["a"], find={"a": ("1", ["b"])}.get)
