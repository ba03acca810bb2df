"""Whether a tag is the release that the notebooks install: see release.yml.

    python3 -m press.tag v0.1.0 owner/repository

Standard library only.
"""

import sys

from .settings import Settings, read_settings


def check_release(settings: Settings, tag: str, repository: str) -> None:
    """Raise ValueError unless `tag` and "owner/repo" are what the notebooks install."""
    home = f"{settings.user}/{settings.repo}"
    if tag != settings.tag:
        raise ValueError(
            f"the tag is {tag}, but settings.ini has version = {settings.version}: "
            f"expected {settings.tag}"
        )
    if repository.lower() != home.lower():
        raise ValueError(
            f"this repository is {repository}, but settings.ini says {home}: the "
            "notebooks would install code from there"
        )


if __name__ == "__main__":
    try:
        check_release(read_settings(), *sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
