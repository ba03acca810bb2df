"""The theme's icons: the two dozen that the book shows, not the two thousand it has."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

logging.getLogger("fontTools").setLevel(logging.WARNING)

RULE = re.compile(r'((?:\.fa-[a-z0-9-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}')
CODE = re.compile(r"\\([ef][0-9a-f]{3})\b|([\ue000-\uf8ff])")  # escaped, or itself
SOURCE = re.compile(
    r"url\(\.\./vendor/fontawesome/webfonts/([a-z0-9-]+)\.woff2\) format\(\"woff2\"\),"
    r"url\([^)]*\) format\(\"truetype\"\)"
)


def lighten(static: Path, texts: Iterable[str]) -> None:
    """Keep the icons whose names stand in `texts`, or whose codes stand in a sheet."""
    sheet = static / "styles" / "pydata-sphinx-theme.css"
    if not sheet.exists():
        return
    names = set(re.findall(r"\bfa-[a-z0-9-]+", "".join(texts)))
    codes: set[str] = set()

    def keep(rule: re.Match) -> str:
        wanted = [s for s in rule[1].split(",") if s[1:].split(":")[0] in names]
        if wanted:
            codes.add(rule[2])
        return rule[0] if wanted else ""

    css = RULE.sub(keep, sheet.read_text())
    others = [p.read_text() for p in static.rglob("*.css") if p != sheet]
    codes.update(*(codes_in(text) for text in [css, *others]))
    css = re.sub(r"/\*# sourceMappingURL=[^*]*\*/", "", css)
    sheet.write_text(SOURCE.sub(_woff, css))
    for font in (static / "vendor" / "fontawesome" / "webfonts").glob("*.ttf"):
        _subset(font, {int(code, 16) for code in codes})
    for unused in [*static.rglob("*.map"), *static.rglob("fa-*.ttf")]:
        unused.unlink()
    for unused in static.rglob("fa-*.woff2"):
        unused.unlink()


def codes_in(css: str) -> set[str]:
    """The icons that a style sheet shows by their code: a bell, an arrow."""
    return {code or f"{ord(icon):x}" for code, icon in CODE.findall(css)}


def _woff(face: re.Match) -> str:
    return f'url(../vendor/fontawesome/webfonts/{face[1]}.woff) format("woff")'


def _subset(path: Path, codes: set[int]) -> None:
    """Write the glyphs of `codes` beside `path`, as WOFF: WOFF2 needs brotli."""
    font = TTFont(path)
    font.recalcTimestamp = False
    options = Options()
    options.notdef_outline = True
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=codes)
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(path.with_suffix(".woff"))
