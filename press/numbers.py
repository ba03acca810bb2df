"""The chapters' numbers: counted along `_toc.yml`, and put wherever a page names one.

Sources know no number: a chapter's file, its label and its module share one stem. So
a chapter that is inserted renames nothing.
"""

import re
from string import ascii_uppercase

import yaml

from . import NBS, ROOT

REFERENCE = re.compile(
    r"\{ref\}`(?:(?P<text>[^`<]*?)\s*<(?P<named>\w+)>|(?P<bare>\w+))`"
)
BEGINS = re.compile(r"(?:^|[.!?]\**|\n\s*\n|\n[ \t]*[-*] |\n\|)[ \t(]*\**$")


def numbers() -> dict[str, str]:
    """Stem to number: chapters from "0" on, those of a part "Append…" from "A" on."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    counted: dict[bool, list[str]] = {False: [], True: []}
    for part in toc["parts"]:
        stems = [c["file"].removeprefix("nbs/") for c in part["chapters"]]
        lettered = part["caption"].startswith("Append")
        counted[lettered] += [s for s in stems if (NBS / f"{s}.ipynb").exists()]
    whole = {stem: str(n) for n, stem in enumerate(counted[False])}
    return whole | dict(zip(counted[True], ascii_uppercase, strict=False))


def headed(text: str, number: str) -> str:
    """The cell with a chapter's title, "# Flows", as "# 3 · Flows"."""
    return re.sub(r"^# ", f"# {number} · ", text, count=1, flags=re.MULTILINE)


def filled(text: str, known: dict[str, str]) -> str:
    """Say "chapter 3" for {ref}`flows`, and fill `{}` in {ref}`part {} <flows>`.

    Other references, and those with a text of their own, stay as they are. The word is
    "appendix" before a letter, and has a capital where a sentence begins.
    """

    def said(found: re.Match) -> str:
        label = found["named"] or found["bare"]
        if label not in known:
            return found[0]
        number = known[label]
        word = "appendix" if number.isalpha() else "chapter"
        if BEGINS.search(text[: found.start()]):
            word = word.capitalize()
        shown = f"{word} {number}" if found["text"] is None else found["text"]
        return f"{{ref}}`{shown.replace('{}', number)} <{label}>`"

    return REFERENCE.sub(said, text)
