"""Write lock.txt: `make lock`, or `make lock UPGRADE=1` to take newer versions.

Installs settings.ini's requirements, then pins what they need, directly or not, at the
versions now in this environment. Other packages that happen to be there are left out.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from press.env import CPU_INDEX
from press.settings import ROOT, Settings, read_settings

LOCK = ROOT / "lock.txt"
HEADER = """\
# What the book and its gates run with; `make` installs it. Written by `make lock`.
# No hashes, no addresses and no +cpu: the same file serves the registry, a mirror and
# PyTorch's CPU index (TORCH=cpu). On Linux torch itself pins its CUDA packages.
"""
# Torch's build with CUDA names these, the one without doesn't: both must fit the lock.
CUDA = ("nvidia-", "cuda-", "triton")
# Where the book is built. A package that only some of these need carries a marker.
PLATFORMS = [
    {
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system],
        "platform_machine": machine,
        "os_name": "posix",
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for system, machine in [
        ("linux", "x86_64"),
        ("linux", "aarch64"),
        ("darwin", "arm64"),
    ]
    for python in ["3.11", "3.12", "3.13"]
]


def installed(name: str) -> tuple[str, list[str]] | None:
    """Version and requirements of a package in this environment, None if absent."""
    try:
        found = distribution(name)
    except ModuleNotFoundError:
        return None
    return found.version, found.requires or []


def newest(name: str) -> str:
    """The version that pip would install today."""
    command = [sys.executable, "-m", "pip", "index", "versions", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return output.split("(")[1].split(")")[0]


def closure(
    requirements: Iterable[str],
    *,
    find: Callable[[str], tuple[str, list[str]] | None] = installed,
) -> tuple[dict[str, str], dict[str, str]]:
    """All packages needed, as {name: version}, and as {name: marker} what only another
    platform needs and is not here."""
    here: dict[str, str] = {}
    elsewhere: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in requirements]
    while waiting:
        requirement, parent_extra = waiting.pop()
        marker = requirement.marker
        if marker and not any(
            marker.evaluate(platform | {"extra": parent_extra})
            for platform in PLATFORMS
        ):
            continue
        name = canonicalize_name(requirement.name)
        if name.startswith(CUDA):
            continue
        found = find(requirement.name)
        if found is None:
            if marker is None or marker.evaluate({"extra": parent_extra}):
                raise LookupError(f"{requirement} is required, but not installed")
            elsewhere[name] = str(marker)
            continue
        version, needs = found
        if not requirement.specifier.contains(version, prereleases=True):
            raise LookupError(f"{requirement} is required, but {version} is installed")
        here[name] = Version(version).public  # without +cpu
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(Requirement(line), extra) for line in needs]
    return here, elsewhere


def lock_text(settings: Settings) -> str:
    """What lock.txt should say, given what is installed here."""
    here, elsewhere = closure(settings.requirements + settings.dev_requirements)
    lines = [f"{name}=={version}" for name, version in here.items()]
    lines += [
        f"{name}=={newest(name)} ; {marker}" for name, marker in elsewhere.items()
    ]
    return HEADER + "".join(line + "\n" for line in sorted(lines))


def write_lock(path: Path = LOCK, *, upgrade: bool = False, cpu: bool = False) -> None:
    """Install what settings.ini asks for, then pin it in `path`."""
    settings = read_settings()
    command = [sys.executable, "-m", "pip", "install", "--quiet"]
    if upgrade:
        command += ["--upgrade", "--upgrade-strategy", "eager"]
    if cpu:
        command += ["--extra-index-url", CPU_INDEX]
    command += settings.requirements + settings.dev_requirements
    subprocess.run(command, check=True)
    path.write_text(lock_text(settings), encoding="utf-8")
    print(f"wrote {path.name}")


def main() -> None:
    """What `make lock` does; UPGRADE=1 and TORCH=cpu come from the environment."""
    upgrade = os.environ.get("UPGRADE", "0") not in {"", "0"}
    write_lock(upgrade=upgrade, cpu=os.environ.get("TORCH") == "cpu")
