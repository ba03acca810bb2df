"""What a page is made of, read off its HTML: for the previews and for the search.

Each statement, equation, section, term, reference and function of a page is a part. The
previews of a page go to `_static/previews/<page>.js`, a script that is only loaded when
a reader asks for one of them, and so works from a file as well.
"""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bs4 import BeautifulSoup, Tag

LEAVE_OUT = ".headerlink, script, style, button, .exported, summary, .qed"


@dataclass
class Part:
    """A thing with an address: `html` is its preview, `text` what the search reads."""

    id: str
    kind: str
    title: str
    text: str
    html: str


def parts(docname: str, body: str) -> list[Part]:
    """The parts of a page, in its order."""
    soup = BeautifulSoup(body, "html.parser")
    for element in soup.select(LEAVE_OUT):
        element.decompose()
    found = []
    for element in soup.select("section[id], [id].proof, [id].exercise, div.math[id]"):
        found += _part(element)
    for element in soup.select("dt[id], div.citation[id], figure[id], details.fold"):
        found += _part(element)
    return found


def _part(element: Tag) -> Iterator[Part]:
    """A part, once for each of its names."""
    names = (element.name, *element.get("class", []))
    make = next((f for name, f in KINDS.items() if name in names), None)
    part = make(element) if make else None
    if part is None:
        return
    yield part
    for alias in element.find_all("span", id=True, recursive=False):
        if not alias.get_text() and part.kind == "section":
            yield Part(alias["id"], "alias", part.title, "", part.html)


def _section(element: Tag) -> Part | None:
    heading = element.find(re.compile("h[1-6]"), recursive=False)
    if heading is None:
        return None
    opening = element.find("p", recursive=False)
    html = f"<p><strong>{_inside(heading)}</strong></p>" + _shown(opening)
    own = copy.copy(element)
    for inner in own.select("section[id], [id].proof, [id].exercise, dl.py"):
        inner.decompose()
    own.find(re.compile("h[1-6]"), recursive=False).decompose()
    return Part(element["id"], "section", _text(heading), _text(own), html)


def _statement(element: Tag) -> Part:
    title = element.find("p", class_="admonition-title")
    words = _text(title) if title else ""
    kind = "exercise" if "exercise" in element["class"] else "statement"
    body = copy.copy(element)
    if body.find("p", class_="admonition-title"):
        body.find("p", class_="admonition-title").decompose()
    return Part(element["id"], kind, words, _text(body), _shown(element))


def _equation(element: Tag) -> Part:
    return Part(element["id"], "equation", "", "", _shown(element))


def _term(element: Tag) -> Part | None:
    meaning = element.find_next_sibling("dd")
    if "sig" in element.get("class", []):
        return _function(element, meaning)
    if not element["id"].startswith("term-") or meaning is None:
        return None
    html = f"<p><strong>{_inside(element)}</strong></p>" + _inside(_clean(meaning))
    return Part(element["id"], "term", _text(element), _text(meaning), html)


def _function(element: Tag, meaning: Tag | None) -> Part:
    first = meaning.find("p", recursive=False) if meaning else None
    html = f'<p class="sig">{_inside(_clean(element))}</p>' + _shown(first)
    text = _text(meaning) if meaning else ""
    return Part(element["id"], "code", element["id"], text, html)


def _citation(element: Tag) -> Part:
    return Part(element["id"], "reference", "", "", _shown(element))


def _figure(element: Tag) -> Part:
    caption = element.find("figcaption")
    return Part(element["id"], "figure", "", "", _shown(caption) if caption else "")


KINDS = {
    "section": _section,
    "proof": _statement,
    "exercise": _statement,
    "math": _equation,
    "dt": _term,
    "citation": _citation,
    "figure": _figure,
}


def _clean(element: Tag) -> Tag:
    """A copy without links and names, to be shown a second time on some page."""
    made = copy.copy(element)
    for link in made.find_all("a"):
        link.unwrap()
    for named in made.find_all(id=True):
        del named["id"]
    for box in made.find_all(["aside", "img", "details"]):
        box.decompose()
    return made


def _shown(element: Tag | None) -> str:
    if element is None:
        return ""
    made = _clean(element)
    made.attrs = {k: v for k, v in made.attrs.items() if k == "class"}
    return str(made)


def _inside(element: Tag) -> str:
    return element.decode_contents().strip()


def _text(element: Tag) -> str:
    """The words of an element, its code last: an excerpt shows the first find."""
    made = copy.copy(element)
    for printed in made.select(".cell_output pre"):
        printed.decompose()
    code = [block.extract().get_text() for block in made.select("pre")]
    return " ".join(" ".join([_flat(made), *code]).split())


def _flat(element: Tag) -> str:
    """Text with a space where a block ends, and none inside a word."""
    for block in element.find_all(["p", "li", "td", "th", "div", "dd", "dt"]):
        block.append(" ")
    return element.get_text()


def save(docname: str, body: str, static: Path, store: Path) -> None:
    """Write a page's previews for the reader, and its parts for the search."""
    found = parts(docname, body)
    previews = {p.id: p.html for p in found if p.html}
    data = json.dumps(previews, ensure_ascii=False, separators=(",", ":"))
    _write(
        static / "previews" / f"{docname}.js",
        f"(window.pressPreviews??={{}})[{json.dumps(docname)}]={data};\n",
    )
    _write(store / f"{docname}.json", json.dumps([asdict(p) for p in found]))


def load(docname: str, store: Path) -> list[Part]:
    path = store / f"{docname}.json"
    return [Part(**p) for p in json.loads(path.read_text())] if path.exists() else []


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
