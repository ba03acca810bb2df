"""Write what follows from settings.ini: Colab cells, README, index.md, CITATION.cff.

`make export` calls `stamp_all`; the gates call it with `check=True`.
"""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from textwrap import fill, indent

from press.settings import ROOT, Settings, read_settings

CELL_ID = "colab"
BLOCK = re.compile(
    r"(?P<start><!-- from settings\.ini: (?P<name>[a-z-]+) -->\n)"
    r".*?"
    r"(?P<end><!-- end -->)",
    re.DOTALL,
)

# --- the first code cell of every notebook -------------------------------------------


def colab_cell(settings: Settings) -> str:
    """The source of the cell that installs this package on Colab, and nothing else.

    Elsewhere the cell does nothing. A copy of the book that has no public home yet
    installs nothing anywhere: it says so.
    """
    if settings.has_owner:
        return (
            "import sys\n"
            "\n"
            'if "google.colab" in sys.modules:  # elsewhere it is installed\n'
            f'    %pip install -q "{settings.pip_requirement}"'
        )
    return (
        "import sys\n"
        "\n"
        'if "google.colab" in sys.modules:\n'
        "    print(\n"
        '        "This copy of the book has no public home yet, so '
        f'{settings.name} was not "\n'
        '        "installed: set user in settings.ini, then run make export."\n'
        "    )"
    )


def stamp_notebook(nb: dict, settings: Settings) -> dict:
    """A copy of the notebook whose first code cell is the Colab cell, up to date.

    A page without code gets none. Raises ValueError for a format older than 4.5, in
    which cells have no id.
    """
    version = (nb["nbformat"], nb["nbformat_minor"])
    if version < (4, 5):
        raise ValueError(f"a notebook of format 4.5 is needed, got {version}")
    stamped = copy.deepcopy(nb)
    cells = [cell for cell in stamped["cells"] if cell.get("id") != CELL_ID]
    code = [i for i, cell in enumerate(cells) if cell["cell_type"] == "code"]
    if code:
        cell = {
            "cell_type": "code",
            "execution_count": None,
            "id": CELL_ID,
            "metadata": {"tags": ["remove-cell"]},
            "outputs": [],
            "source": colab_cell(settings).splitlines(keepends=True),
        }
        cells.insert(code[0], cell)
    stamped["cells"] = cells
    return stamped


def notebook_text(nb: dict) -> str:
    """A notebook as nbdev writes it."""
    return json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


# --- README, the landing page and CITATION -------------------------------------------


def badges(settings: Settings) -> str:
    if not settings.has_owner:
        return "*This copy has no public home yet: [set its owner](#your-own-copy).*\n"
    url = settings.repository_url
    colab = "https://colab.research.google.com/assets/colab-badge.svg"
    workflow = f"{url}/actions/workflows/ci.yml"
    return (
        f"[![tests]({workflow}/badge.svg)]({workflow})\n"
        f"[![open in Colab]({colab})]({settings.colab_url(settings.first_chapter)})\n"
        "\n"
        f"**[Read the book]({settings.site_url})** · version {settings.version}\n"
    )


def install(settings: Settings) -> str:
    names = (
        f"For pip its name is `{settings.distribution}`, since on the package index\n"
        f"`{settings.name}` is another project; the import is `{settings.name}`.\n"
    )
    if not settings.has_owner:
        return (
            "This copy of the book has no public home yet, so there is no address to\n"
            f"install from. In a clone of it, `pip install .` does.\n{names}"
        )
    return f'```sh\npip install "{settings.pip_requirement}"\n```\n\n{names}'


def clone(settings: Settings) -> str:
    if not settings.has_owner:
        return f"```sh\ncd {settings.repo}       # your copy of this folder\n```\n"
    url = settings.repository_url
    return f"```sh\ngit clone {url}\ncd {settings.repo}\n```\n"


def release(settings: Settings) -> str:
    tag = settings.tag
    return f"```sh\ngit tag {tag}\ngit push origin {tag}\n```\n"


def take(settings: Settings) -> str:
    """What one can take along, and from where."""
    made = (
        "In a copy of the repository `make release` writes the site as a zip that\n"
        "opens from disk, the whole book as a PDF, every notebook without its\n"
        "solutions, and the wheel for pip.\n"
    )
    if not settings.has_owner:
        return made
    url, first = settings.repository_url, settings.colab_url(settings.first_chapter)
    return (
        f"The [repository]({url}) has the notebooks; [open the first]({first}) on\n"
        f"Colab. Its [releases]({url}/releases) have the site and the wheel.\n"
        f"{made}"
    )


def cite(settings: Settings) -> str:
    """How to cite the book, as BibTeX: what CITATION.cff says, and the year."""
    rows = {
        "author": f"{{{settings.author}}}",
        "title": f"{settings.title}: {settings.description}",
        "year": settings.copyright.partition(",")[0],
        "version": settings.version,
    }
    if settings.has_owner:
        rows["url"] = settings.site_url
    lines = [f"{key} = {{{value}}}," for key, value in rows.items()]
    told = "\n".join(fill(line, 72, subsequent_indent="  ") for line in lines)
    return f"```bibtex\n@software{{{settings.name},\n{indent(told, '  ')}\n}}\n```\n"


README_BLOCKS = {"badges": badges, "clone": clone, "install": install}
README_BLOCKS |= {"release": release}
INDEX_BLOCKS = {"take": take, "install": install, "cite": cite}


def stamp_blocks(
    settings: Settings, text: str, blocks: dict[str, Callable], name: str
) -> str:
    """`text` of the file `name` with its marked `blocks` written from the settings.

    Raises ValueError for a block that is unknown or missing.
    """
    found = [match["name"] for match in BLOCK.finditer(text)]
    if sorted(found) != sorted(blocks):
        raise ValueError(f"{name}: blocks {found}, expected {list(blocks)}")
    return BLOCK.sub(
        lambda match: match["start"] + blocks[match["name"]](settings) + match["end"],
        text,
    )


def stamp_readme(settings: Settings, text: str | None = None) -> str:
    """README.md with what follows from the settings."""
    if text is None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
    return stamp_blocks(settings, text, README_BLOCKS, "README.md")


def stamp_index(settings: Settings, text: str | None = None) -> str:
    """The landing page, nbs/index.md, with what follows from the settings."""
    if text is None:
        text = (ROOT / "nbs" / "index.md").read_text(encoding="utf-8")
    return stamp_blocks(settings, text, INDEX_BLOCKS, "nbs/index.md")


def citation(settings: Settings, text: str | None = None) -> str:
    """CITATION.cff: what it cites, from `references:` on, stays as `text` has it."""
    if text is None:
        text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    address = ""
    if settings.has_owner:
        address = (
            f"repository-code: {settings.repository_url}\nurl: {settings.site_url}\n"
        )
    cited = text[text.find("references:") :] if "references:" in text else ""
    return f"""\
cff-version: 1.2.0
message: If the book or its code helped your work, cite it; cite the paper as well.
title: "{settings.title}: {settings.description}"
type: software
authors:
  - name: {settings.author}
version: {settings.version}
license: {settings.license}
{address}{cited}"""


# --- everything ---------------------------------------------------------------------


def stamped(settings: Settings, root: Path = ROOT) -> dict[Path, str]:
    """What every file that follows from the settings should say."""
    front = {
        "README.md": stamp_readme,
        "nbs/index.md": stamp_index,
        "CITATION.cff": citation,
    }
    files = {}
    for name, stamp in front.items():
        path = root / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if BLOCK.search(text) or (text and stamp is citation):
            files[path] = stamp(settings, text)
    for path in sorted((root / "nbs").glob("*.ipynb")):
        nb = json.loads(path.read_text(encoding="utf-8"))
        files[path] = notebook_text(stamp_notebook(nb, settings))
    return files


def stamp_all(check: bool = False, root: Path = ROOT) -> list[Path]:
    """Bring every file up to date; return those that were not, relative to `root`.

    With `check` nothing is written.
    """
    stale = []
    for path, text in stamped(read_settings(root / "settings.ini"), root).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(root))
            if not check:
                path.write_text(text, encoding="utf-8")
    return stale
