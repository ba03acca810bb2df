"""The package as a stranger meets it: its names, its wheel, and Colab's versions."""

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from configparser import ConfigParser
from dataclasses import replace
from email import message_from_string
from email.message import Message
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import flowbook
from press import stamp
from press.settings import ROOT, read_settings

HEAVY = ["accelerate", "matplotlib", "scipy", "sklearn", "tqdm", "torch", "numpy"]

# --- the lazy names -----------------------------------------------------------------


def run(code: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", flowbook.__all__)
def test_every_name_resolves(name):
    """Catches a name that its module no longer has, or one that it only imports."""
    value = getattr(flowbook, name)
    module = import_module(f"flowbook.{flowbook._MODULE_OF[name]}")
    assert value is getattr(module, name)
    assert name in module.__all__
    assert value.__module__ == module.__name__


def test_a_type_checker_sees_the_same_names():
    """Catches a name in one of the two lists only; `import x` without `as x`."""
    tree = ast.parse((ROOT / "flowbook" / "__init__.py").read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names:
            assert alias.asname == alias.name
            seen[alias.name] = node.module
    assert seen == flowbook._MODULE_OF
    assert sum(map(len, flowbook._NAMES.values())) == len(seen)  # none named twice


@pytest.mark.parametrize(
    "path", sorted((ROOT / "flowbook").glob("*.py")), ids=lambda path: path.stem
)
def test_every_public_parameter_is_typed(path):
    """Catches a parameter of which neither a reader nor an editor knows what it is."""
    tree = ast.parse(path.read_text())
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        functions += [n for n in node.body if isinstance(n, ast.FunctionDef)]
    for function in functions:
        if function.name.startswith("_") and function.name != "__init__":
            continue
        given = (
            function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        )
        bare = [a.arg for a in given if a.annotation is None]
        assert set(bare) <= {"self", "cls"}, f"{function.name}: {bare}"


def test_names_and_modules_are_distinct():
    """Catches a function that its own module, once imported, would replace."""
    modules = {path.stem for path in (ROOT / "flowbook").glob("*.py")}
    assert not modules & set(flowbook.__all__)


def test_version_comes_first_as_nbdev_writes_it():
    """Catches a version that `make export` would write elsewhere, or differently."""
    first = (ROOT / "flowbook" / "__init__.py").read_text().splitlines()[0]
    assert first == f'__version__ = "{read_settings().version}"'


def test_import_is_light():
    """Catches a heavy import at the top of `__init__`, or of what it imports."""
    code = f"import sys, flowbook; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == "[]"


def test_names_need_only_the_requirements():
    """Catches an exported module that needs what installing flowbook doesn't bring.

    matplotlib, sklearn, scipy and accelerate are for pages, or for who has them.
    """
    code = (
        "import sys, flowbook\n"
        "[getattr(flowbook, name) for name in flowbook.__all__]\n"
        f"print([m for m in {HEAVY[:4]} if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_a_misspelt_name_is_an_error_with_a_suggestion():
    """Catches none, or an error that names neither the module nor the name."""
    with pytest.raises(AttributeError, match="'flowbook' has no attribute 'OTpath'"):
        flowbook.OTpath  # noqa: B018
    done = subprocess.run(
        [sys.executable, "-c", "import flowbook; flowbook.OTpath"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "OTPath" in done.stderr


def test_dir_lists_the_names():
    """Catches names that tab completion doesn't offer."""
    assert set(flowbook.__all__) <= set(dir(flowbook))
    assert "__version__" in dir(flowbook)


# --- the wheel and the source archive -----------------------------------------------


@cache
def built() -> TemporaryDirectory:
    """A folder with the wheel and the source archive, built once, without network."""
    folder = TemporaryDirectory(prefix="flowbook-build-")
    source = Path(folder.name) / "source"
    # Built from a copy, so that no build/ or egg-info is left in the tree.
    for path in _sources():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder.name],
        cwd=source,
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_NO_INDEX": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecated" not in (done.stdout + done.stderr).lower()
    return folder


def _sources() -> list[Path]:
    names = ["setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "README.md"]
    names += ["LICENSE", "CHANGELOG.md", "CITATION.cff", "LICENSE-TEXT.md"]
    folders = ["flowbook", "tests", "press"]
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.is_file()]
    return [ROOT / n for n in names] + [
        p for p in files if "__pycache__" not in p.parts
    ]


def wheel() -> Path:
    (path,) = Path(built().name).glob("*.whl")
    return path


def metadata() -> Message:
    with zipfile.ZipFile(wheel()) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else():
    """Catches tests or tools installed for strangers; a module or py.typed missing."""
    settings = read_settings()
    with zipfile.ZipFile(wheel()) as archive:
        names = set(archive.namelist())
    info = settings.wheel.removesuffix("-py3-none-any.whl") + ".dist-info/"
    modules = {f"flowbook/{path.name}" for path in (ROOT / "flowbook").glob("*.py")}
    assert {n for n in names if not n.startswith(info)} == modules | {
        "flowbook/py.typed"
    }
    assert {n.removeprefix(info) for n in names if n.startswith(info)} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "top_level.txt",
        "licenses/LICENSE",
    }
    assert wheel().name == settings.wheel
    assert settings.wheel == f"flowbook_fm-{settings.version}-py3-none-any.whl"


@pytest.mark.slow
def test_the_source_archive_builds_the_wheel_and_leaves_the_book_out():
    """Catches an archive without settings.ini, from which nothing can be built."""
    (path,) = Path(built().name).glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "LICENSE"} <= names
    assert {n.partition("/")[0] for n in names} & {"tests", "press", "nbs"} == set()


@pytest.mark.slow
def test_the_metadata_is_what_settings_say():
    """Catches a second place for name, version, requirements, author or licence."""
    parser = ConfigParser()
    parser.read_string((ROOT / "settings.ini").read_text())
    ini = parser["DEFAULT"]
    found = metadata()
    expected = {
        "Name": ini["distribution"],
        "Version": ini["version"],
        "Summary": ini["description"],
        "Author": ini["author"],
        "Author-email": ini["author_email"],
        "License-Expression": ini["license"],
        "License-File": "LICENSE",
        "Description-Content-Type": "text/markdown",
    }
    assert {key: found[key] for key in expected} == expected
    assert found["Keywords"].split(",") == ini["keywords"].split()
    assert SpecifierSet(found["Requires-Python"]) == SpecifierSet(
        f">={ini['min_python']}"
    )
    requirements = {Requirement(line) for line in found.get_all("Requires-Dist")}
    assert requirements == {Requirement(line) for line in ini["requirements"].split()}
    assert "Typing :: Typed" in found.get_all("Classifier")
    addresses = "\n".join(found.get_all("Project-URL", []))
    settings = read_settings()
    assert ("github.com" in addresses) == settings.has_owner
    if settings.has_owner:
        assert settings.repository_url in addresses
        assert settings.site_url.rstrip("/") in addresses


def test_nothing_else_disagrees_with_settings():
    """Catches a version or name that was changed in one place only."""
    settings = read_settings()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == settings.version
    assert citation["license"] == settings.license
    assert f"\n## {settings.version}" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert flowbook.__version__ == settings.version
    ruff = f'target-version = "py{settings.min_python.replace(".", "")}"'
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert ruff in pyproject
    assert "[project]" not in pyproject  # it would be a second place
    assert "pkg_resources" not in (ROOT / "setup.py").read_text()


def test_the_workflows_test_the_oldest_python_that_is_promised():
    """Catches min_python raised or lowered, and CI testing what it tested before."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"][0] == read_settings().min_python
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos"}


# --- the name, which on the package index is another project's ----------------------

# "pip install flowbook", "flowbook @ git+...", "flowbook==0.1.0", "flowbook[dev]", but
# not a path, an address, flowbook-fm, flowbook-train or flowbook_fm.
BARE = re.compile(
    r"""pip3?\ install\b[^\n`]*?(?<![\w/.@-])flowbook(?![\w/.@-])
    | (?<![\w/.-])flowbook(\[\w+\])?\ ?(@\ |==\ ?\d|[~>]=)""",
    re.VERBOSE,
)


def texts() -> dict[str, str]:
    """Every file of the repository that somebody may read, and the built pages.

    Not what the search reads: the pages' words, in one line and without their code's
    marks, so that a command runs into the sentence after it.
    """
    kinds = {".md", ".py", ".ipynb", ".toml", ".ini", ".yml", ".cff", ".js", ".html"}
    folders = [
        "nbs",
        "press",
        "panels",
        "flowbook",
        "benchmarks",
        "results",
        ".github",
        "_build",
    ]
    files = [p for p in ROOT.iterdir() if p.is_file()]
    for folder in folders:
        files += [p for p in (ROOT / folder).rglob("*") if p.is_file()]
    files = [
        p for p in files if p.suffix in kinds or p.name in ("Makefile", "lock.txt")
    ]
    found = {str(p.relative_to(ROOT)): p.read_text(errors="replace") for p in files}
    out = ("/site/", "search-data.js")
    return {n: text for n, text in found.items() if not any(o in n for o in out)}


def test_no_text_leads_to_another_project():
    """Catches a page that tells its reader to install what somebody else published."""
    assert {n: m[0] for n, t in texts().items() if (m := BARE.search(t))} == {}


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("pip install flowbook", True),
        ("%pip install -q 'flowbook'", True),
        ("pip install --upgrade flowbook torch", True),
        ("flowbook @ git+https://x", True),
        ("flowbook==0.1.0", True),
        ("flowbook>=0.1", True),
        ("pip install flowbook[dev]", True),
        ("pip install .", False),
        ("pip install flowbook-fm", False),
        ('%pip install -q "flowbook-fm @ git+https://github.com/a/flowbook@v1"', False),
        ("pip install git+https://github.com/a/flowbook@v0.1.0", False),
        ("pip install ./flowbook_fm-0.1.0-py3-none-any.whl", False),
        ("import flowbook", False),
    ],
)
def test_the_test_above_sees_it(text, bare):
    """Catches a pattern that passes over what it seeks, or sees it in a path."""
    assert bool(BARE.search(text)) == bare


@pytest.mark.parametrize("user", ["set--me", "ada-l"])
def test_what_is_stamped_names_the_distribution(user):
    """Catches a Colab cell or a README with the other project's name."""
    settings = replace(read_settings(), user=user)
    assert settings.distribution != settings.name == "flowbook"
    said = stamp.install(settings) + stamp.colab_cell(settings)
    assert not BARE.search(said) and settings.distribution in stamp.install(settings)
    requirement = Requirement(settings.pip_requirement)
    assert requirement.name == settings.distribution


# --- Colab --------------------------------------------------------------------------

# What a Colab machine has, as far as it bears on flowbook: versions and who needs what.
COLAB = {
    "torch": ("2.11.0+cu128", ["numpy", "networkx>=2.5.1"]),
    "numpy": ("2.0.2", []),
    "tqdm": ("4.67.1", []),
    "accelerate": (
        "1.12.0",
        ["numpy<3.0.0,>=1.17", "torch>=2.0.0", "safetensors>=0.4.3"],
    ),
    "safetensors": ("0.7.0", []),
    "pooch": ("1.8.2", []),
    "networkx": ("3.5", []),
    "scipy": ("1.16.3", ["numpy<2.6,>=1.25.2"]),
    "scikit-learn": ("1.6.1", ["numpy>=1.19.5", "scipy>=1.6.0"]),
    "matplotlib": ("3.10.0", ["numpy>=1.23"]),
    "numba": ("0.60.0", ["numpy<2.1,>=1.22"]),
}


def installs(folder: Path, packages: dict[str, tuple[str, list[str]]]) -> list[str]:
    """What pip would install with the wheel where `packages` are, and nothing else is.

    Raises CalledProcessError where they don't do: no index can be reached.
    """
    environment = folder / "colab"
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python*/site-packages")
    for name, (version, requirements) in packages.items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requirements]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
    python = environment / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--isolated", "--python", python, "install"]
    options = ["--dry-run", "--quiet", "--no-index", "--report", "-"]
    done = subprocess.run(
        [*command, *options, wheel()],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PIP_")},
    )
    report = json.loads(done.stdout)
    return sorted(item["metadata"]["name"] for item in report["install"])


@pytest.mark.slow
def test_installing_on_colab_changes_nothing_that_is_there(tmp_path):
    """Catches a requirement that Colab's torch, numpy or tqdm doesn't meet."""
    assert installs(tmp_path, COLAB) == [read_settings().distribution]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "version"), [("torch", "2.3.1"), ("numpy", "1.25.0")])
def test_the_test_above_can_fail(tmp_path, name, version):
    """Catches a dry run that looks at nothing; floors that aren't declared."""
    older = {**COLAB, name: (version, [])}
    with pytest.raises(subprocess.CalledProcessError):
        installs(tmp_path, older)
