"""Build flowbook from settings.ini, the one place for its name, version and needs."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
PLACEHOLDER = "set--me"  # settings.ini's user until somebody publishes the book
STATUS = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}


def read_settings() -> dict[str, str]:
    parser = ConfigParser()
    parser.read_string((ROOT / "settings.ini").read_text(encoding="utf-8"))
    return dict(parser["DEFAULT"])


def urls(settings: dict[str, str]) -> dict[str, str]:
    """Where the project lives; nothing as long as it has no public home."""
    if settings["user"] == PLACEHOLDER:
        return {}
    source = settings["git_url"]
    return {
        "Homepage": settings["doc_host"] + settings["doc_baseurl"],
        "Source": source,
        "Changelog": f"{source}/blob/{settings['branch']}/CHANGELOG.md",
    }


settings = read_settings()

setup(
    name=settings["distribution"],
    version=settings["version"],
    description=settings["description"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license_expression=settings["license"],
    license_files=["LICENSE"],
    keywords=settings["keywords"].split(),
    project_urls=urls(settings),
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    packages=[settings["lib_name"]],
    entry_points={"console_scripts": ["flowbook-train = flowbook.cli:main"]},
    package_data={settings["lib_name"]: ["py.typed"]},
    include_package_data=False,
    zip_safe=False,
    classifiers=[
        f"Development Status :: {STATUS[settings['status']]}",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        f"Natural Language :: {settings['language']}",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Mathematics",
        "Typing :: Typed",
    ],
)
