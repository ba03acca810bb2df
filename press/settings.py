"""Read settings.ini, the one place for the version, the owner and the requirements.

Standard library only: the workflows use it before anything is installed.
"""

import re
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDER = "set--me"  # GitHub allows no account with two hyphens in a row
OWNER = r"[A-Za-z0-9](?:-?[A-Za-z0-9_])*"  # what a GitHub account is called
REPOSITORY = r"[A-Za-z0-9._-]+"
DISTRIBUTION = r"[a-z0-9]+(?:-[a-z0-9]+)*"
VERSION = r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+|\.post\d+)?"


@dataclass(frozen=True)
class Settings:
    """What of settings.ini the book needs, and the addresses that follow from it."""

    user: str
    repo: str
    version: str
    branch: str
    name: str
    distribution: str
    title: str
    description: str
    author: str
    copyright: str
    license: str
    first_chapter: str
    min_python: str
    requirements: tuple[str, ...]
    dev_requirements: tuple[str, ...]

    def __post_init__(self) -> None:
        # These four end up in commands that strangers run: nothing else may.
        if self.has_owner:
            _require("user", self.user, OWNER, "the name of a GitHub account")
        _require("repo", self.repo, REPOSITORY, "the name of a repository")
        _require("version", self.version, VERSION, "a version such as 0.1.0")
        what = "the name of a distribution"
        _require("distribution", self.distribution, DISTRIBUTION, what)

    @property
    def has_owner(self) -> bool:
        """False as long as nobody has said where this copy of the book is public."""
        return self.user != PLACEHOLDER

    @property
    def tag(self) -> str:
        """The tag of this version's release; notebooks on Colab install exactly it."""
        return f"v{self.version}"

    @property
    def repository_url(self) -> str:
        return f"https://github.com/{self.user}/{self.repo}"

    @property
    def site_url(self) -> str:
        """Where GitHub Pages puts the book."""
        return f"https://{self.user}.github.io/{self.repo}/"

    @property
    def pip_requirement(self) -> str:
        """What a stranger hands to `pip install`."""
        return f"{self.distribution} @ git+{self.repository_url}@{self.tag}"

    @property
    def wheel(self) -> str:
        """The file name of this version's wheel."""
        return f"{self.distribution.replace('-', '_')}-{self.version}-py3-none-any.whl"

    def colab_url(self, notebook: str) -> str:
        """Open this version of a notebook on Colab; `notebook` as in "nbs/a.ipynb"."""
        place = f"{self.user}/{self.repo}/blob/{self.tag}/{notebook}"
        return f"https://colab.research.google.com/github/{place}"


def read_settings(path: Path = ROOT / "settings.ini") -> Settings:
    """Read `path`; raises KeyError for a missing key, ValueError for a bad name."""
    parser = ConfigParser()
    parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    values = parser["DEFAULT"]
    return Settings(
        user=values["user"],
        repo=values["repo"],
        version=values["version"],
        branch=values["branch"],
        name=values["lib_name"],
        distribution=values["distribution"],
        title=values["title"],
        description=values["description"],
        author=values["author"],
        copyright=values["copyright"],
        license=values["license"],
        first_chapter=values["first_chapter"],
        min_python=values["min_python"],
        requirements=tuple(values["requirements"].split()),
        dev_requirements=tuple(values["dev_requirements"].split()),
    )


def _require(key: str, value: str, pattern: str, expected: str) -> None:
    if not re.fullmatch(pattern, value):
        raise ValueError(f"settings.ini: {key} = {value} is not {expected}")
