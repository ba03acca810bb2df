"""Run each notebook once: from the wheel, in an empty folder, as Colab would.

Outputs are kept under `_build/runs` by a key made of the notebook's code and of every
file of the package that this code can reach: prose may change without a new run, an
exported function may not.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

from . import BUILD, PACKAGE, ROOT, WORKERS
from .errors import BookError
from .notebooks import directives, read, visible_modules

RUNS = BUILD / "runs"
# A cell that never ends is stopped. Idle, the slowest takes less than a minute, and ten
# busy processes beside four notebooks make that ten: a limit that only a bug can reach.
CELL_SECONDS = 3600
# How long a notebook that never ran here may take, for the order they start in.
CHARACTERS_A_SECOND = 250
FOLD = re.compile(r"^#\| fold:.*\n", re.MULTILINE)  # says only how a cell is shown
ANSI = re.compile(r"\x1b\[[0-9;]*m")
COLAB = """
import sys, types
from importlib.machinery import ModuleSpec
from IPython import get_ipython
sys.modules.setdefault("google", types.ModuleType("google"))
sys.modules["google.colab"] = types.ModuleType("google.colab")
sys.modules["google.colab"].__spec__ = ModuleSpec("google.colab", None)  # as it has
def pip(line):
    with open("colab-install.txt", "a") as log:
        log.write(line + "\\n")
get_ipython().register_magic_function(pip, "line")
"""

SETUP = """# for a project without a setup.py of its own
from configparser import ConfigParser
from setuptools import setup
ini = ConfigParser()
ini.read("settings.ini")
said = ini["DEFAULT"]
setup(
    name=said["distribution"],
    version=said["version"],
    packages=[said["lib_name"]],
    install_requires=said["requirements"].split(),
)
"""


@dataclass(frozen=True)
class Run:
    """What one notebook printed and drew, and the files that it wrote."""

    path: Path
    nb: NotebookNode
    files: Path
    seconds: float


def _digest(*texts: str) -> str:
    h = hashlib.sha256()
    for text in texts:
        h.update(text.encode() + b"\0")
    return h.hexdigest()[:20]


def package_key() -> str:
    """A hash of everything that the wheel is made of."""
    sources = sorted(PACKAGE.glob("*.py"))
    texts = [p.read_text() for p in (*sources, *_packaging())]
    return _digest(*(p.name for p in sources), *texts)


def key(nb: NotebookNode) -> str:
    """A hash of a notebook's code and of all the code that it can reach."""
    modules = sorted(visible_modules(nb))
    code = [FOLD.sub("", c.source) for c in nb.cells if c.cell_type == "code"]
    seen = [f"{p.name}\n{p.read_text()}" for p in modules]
    lock = [p.read_text() for p in ROOT.glob("lock.txt")]
    return _digest(sys.version, *lock, COLAB, *code, *seen)


def _packaging() -> list[Path]:
    """What a wheel is described by, as far as this project has it."""
    names = ("settings.ini", "setup.py", "pyproject.toml", "README.md")
    return [ROOT / name for name in names if (ROOT / name).exists()]


def installed_wheel() -> Path:
    """Build the wheel and install it, alone, in a folder of its own; return that."""
    site = BUILD / "wheel" / package_key()
    if not site.exists():
        site.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=site.parent) as aside:
            wheel = build_wheel(Path(aside, "dist"))
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
            target = ["--no-index", "--target", Path(aside, "site"), wheel]
            subprocess.run([*pip, *target], check=True)
            Path(aside, "site").rename(site)  # whole, or not there
    return site


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, so that the tree stays as it is."""
    with tempfile.TemporaryDirectory() as copy:
        Path(copy, "setup.py").write_text(SETUP)
        for path in (*_packaging(), *ROOT.glob("LICENSE*")):
            shutil.copy(path, copy)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, Path(copy) / PACKAGE.name, ignore=ignore)
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
        done = subprocess.run(
            [*command, "--outdir", folder, copy], capture_output=True, text=True
        )
    if done.returncode:
        raise BookError(f"the wheel does not build:\n{done.stdout}{done.stderr}")
    return next(folder.glob("*.whl"))


def cached(path: Path) -> Run | None:
    """The kept run of a notebook, if neither its code nor the package has changed."""
    nb = read(path)
    folder = RUNS / path.stem / key(nb)
    record = folder / "outputs.json"
    if not record.exists():
        return None
    kept = json.loads(record.read_text())
    return _with_outputs(path, nb, folder, kept)


def _with_outputs(path: Path, nb: NotebookNode, folder: Path, kept: dict) -> Run:
    code = [c for c in nb.cells if c.cell_type == "code"]
    for cell, outputs in zip(code, kept["outputs"], strict=True):
        cell.outputs = [nbformat.from_dict(o) for o in outputs]
    return Run(path, nb, folder / "files", kept["seconds"])


def execute(path: Path, site: Path, threads: int) -> Run:
    """Run a notebook and keep its outputs. Raises BookError, naming cell and error."""
    source = read(path)
    folder = RUNS / path.stem / key(source)
    shutil.rmtree(folder.parent, ignore_errors=True)
    nb = read(path)
    for cell in nb.cells:
        if cell.cell_type == "code" and not directives(cell.source).runs:
            cell.source = ""
    with tempfile.TemporaryDirectory() as home:
        work, startup = Path(home, "empty"), Path(home, "ipython/profile_default")
        work.mkdir()
        (startup / "startup").mkdir(parents=True)
        (startup / "startup" / "00-colab.py").write_text(COLAB)
        environment = {
            **os.environ,
            "PYTHONPATH": str(site),
            "IPYTHONDIR": str(Path(home, "ipython")),
            "OMP_NUM_THREADS": str(threads),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        client = NotebookClient(
            nb,
            timeout=CELL_SECONDS,
            startup_timeout=CELL_SECONDS,  # 60 s otherwise
            iopub_timeout=CELL_SECONDS,  # 4 s otherwise, and then outputs are lost
            raise_on_iopub_timeout=True,
            kernel_name="python3",
            resources={"metadata": {"path": str(work)}},
            extra_arguments=["--log-level=ERROR"],
        )
        start = time.perf_counter()
        try:
            client.execute(env=environment)
        except (CellExecutionError, CellTimeoutError) as error:
            raise BookError(_explain(path, nb, error)) from None
        seconds = time.perf_counter() - start
        _refuse_warnings(path, nb)
        files = folder / "files"
        shutil.copytree(work, files)
    outputs = [c.outputs for c in nb.cells if c.cell_type == "code"]
    record = {"seconds": seconds, "outputs": outputs}
    (folder / "outputs.json").write_text(json.dumps(record))
    return _with_outputs(path, source, folder, record)


def _explain(path: Path, nb: NotebookNode, error: Exception) -> str:
    """Say which notebook, which cell, and what went wrong."""
    for number, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                trace = ANSI.sub("", "\n".join(output.traceback))
                return (
                    f"{path.name}, cell {number} (id {cell.id}): "
                    f"{output.ename}: {output.evalue}\n{cell.source}\n{trace}"
                )
    return f"{path.name}: {error}"


def _refuse_warnings(path: Path, nb: NotebookNode) -> None:
    """A page hides its error stream, so nothing that matters may be said there."""
    for number, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []):
            text = output.get("text", "") if output.get("name") == "stderr" else ""
            text = text.replace("TqdmWarning: IProgress not found", "")
            if "Warning:" in text:
                raise BookError(f"{path.name}, cell {number}, warns:\n{text}")


def run_all(paths: list[Path]) -> list[Run]:
    """Run what has changed, a line a notebook; raise BookError if one fails.

    The longest start first, so that no core waits at the end for one of them.
    """
    threads = max(1, (os.cpu_count() or 1) // WORKERS)
    site = installed_wheel()
    done, failures = 0, []

    def one(path: Path) -> Run | None:
        nonlocal done
        run, how = cached(path), "unchanged"
        if run is None:
            try:
                run, how = execute(path, site, threads), ""
            except BookError as failure:
                failures.append(str(failure))
                how = "FAILED"
        done += 1
        seconds = how or f"{run.seconds:.0f} s"
        print(f"[{done:2}/{len(paths)}] {path.name}: {seconds}", flush=True)
        return run

    first = sorted(paths, key=expected_seconds, reverse=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        runs = dict(zip(first, pool.map(one, first), strict=True))
    if failures:
        raise BookError("\n\n".join(failures))
    return [runs[path] for path in paths]


def expected_seconds(path: Path) -> float:
    """What the last run took, whatever has changed since; else by the code it runs."""
    kept = [
        json.loads(p.read_text()) for p in (RUNS / path.stem).glob("*/outputs.json")
    ]
    if kept:
        return kept[0]["seconds"]
    found = [directives(c.source) for c in read(path).cells if c.cell_type == "code"]
    running = sum(len(d.code) for d in found if d.runs and not d.exported)
    return running / CHARACTERS_A_SECOND
