"""What one can take away: the site as a zip, the book as a PDF, notebooks, the wheel.

`make release` builds the book and leaves in `dist/`:

    REPO-VERSION-site.zip       opens from disk, the search included
    REPO-VERSION.pdf            the whole book, with links
    REPO-VERSION-notebooks.zip  each chapter as *_student.ipynb, without solutions
    DISTRIBUTION-VERSION-py3-none-any.whl   what pip takes
"""

import copy
import re
import shutil
import threading
import zipfile
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import nbformat
import pikepdf
import yaml
from bs4 import BeautifulSoup, Tag
from nbformat import NotebookNode
from playwright.sync_api import Browser

from . import BUILD, ROOT, browser, build, notebooks, site
from .errors import BookError
from .run import build_wheel
from .settings import read_settings

PRINTED = BUILD / "print"
EPOCH = (2000, 1, 1, 0, 0, 0)  # the same book makes the same zip


def release(folder: Path) -> None:
    """Build the book, then write all that one can take away to `folder`."""
    build.book()
    folder.mkdir(parents=True, exist_ok=True)
    settings = read_settings()
    for old in _ours(folder):
        old.unlink()
    name = f"{settings.repo}-{settings.version}"
    zip_folder(site.HTML, folder / f"{name}-site.zip", f"{name}-site")
    build_wheel(folder)
    with zipfile.ZipFile(folder / f"{name}-notebooks.zip", "w") as archive:
        for path in notebooks.notebooks():
            text = nbformat.writes(student(notebooks.read(path)))
            _add(archive, f"{name}-notebooks/{path.stem}_student.ipynb", text.encode())
    with browser.running() as chromium:
        cut_off = print_pdf(chromium, folder / f"{name}.pdf")
    if cut_off:
        raise BookError("cut off at the margin of the PDF:\n" + "\n".join(cut_off))
    for path in _ours(folder):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    print(f"They are in {folder}")


def _ours(folder: Path) -> list[Path]:
    """What a release has left in `folder`, of this version or of another."""
    settings = read_settings()
    names = {settings.repo, settings.distribution.replace("-", "_")}
    return sorted(path for name in names for path in folder.glob(f"{name}-*"))


def zip_folder(folder: Path, target: Path, name: str) -> None:
    """Pack `folder` as `name/`, in a fixed order and with a fixed date."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            inside = path.relative_to(folder).as_posix()
            _add(archive, f"{name}/{inside}", path.read_bytes())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.external_attr = 0o644 << 16
    archive.writestr(info, data, compress_type=zipfile.ZIP_DEFLATED)


# --- notebooks for a course ----------------------------------------------------------

START, END = "{solution-start}", "{solution-end}"


def student(nb: NotebookNode) -> NotebookNode:
    """A copy without the solutions: an empty cell stands where one was.

    Raises BookError for a solution that begins or ends without its other half.
    """
    nb = copy.deepcopy(nb)
    cells, inside = [], False
    for cell in nb.cells:
        if START in cell.source or END in cell.source:
            text = _outside(cell, inside)
            inside = cell.source.rfind(START) > cell.source.rfind(END)
            if text:
                cell.source = text
                cells.append(cell)
            if inside:
                cells.append(nbformat.v4.new_code_cell("", id=f"{cell.id}-yours"[:64]))
        elif not inside:
            cells.append(cell)
    if inside:
        raise BookError("a solution has no end")
    nb.cells = cells
    return nb


def _outside(cell: NotebookNode, inside: bool) -> str:
    """What a cell says before a solution starts and after one has ended."""
    parts = re.split(r"(`{3,}\{solution-(?:start|end)\}[^`]*`{3,})", cell.source)
    kept = []
    for part in parts:
        if START in part or END in part:
            if (START in part) == inside:
                raise BookError(f"a solution without its other half:\n{cell.source}")
            inside = START in part
        elif not inside:
            kept.append(part.strip())
    return "\n\n".join(part for part in kept if part)


# --- the book on paper ---------------------------------------------------------------


def page_order() -> list[str]:
    """The pages of the site as the table of contents has them, "nbs/index" first."""
    toc = yaml.safe_load((BUILD / "source" / "_toc.yml").read_text())
    chapters = [c for part in toc["parts"] for c in part["chapters"]]
    deep = [f for c in chapters for f in (c, *c.get("sections", []))]
    return [toc["root"], *(f["file"] for f in deep)]


def one_page(pages: list[str], html: Path = site.HTML) -> str:
    """All `pages` of the site in one: identifiers told apart, links led to them."""
    head = BeautifulSoup((html / f"{pages[0]}.html").read_text(), "html.parser").head
    math = [str(s) for s in head.find_all("script") if "MathJax" in str(s)]
    math += ['<script defer src="_static/mathjax/tex-chtml.js"></script>']
    styles = [
        str(link).replace('href="../', 'href="')
        for link in head.find_all("link", rel="stylesheet")
    ]
    articles = [_article(page, pages, html) for page in pages]
    articles = _to_sections("".join(articles))
    title = read_settings().title
    return (
        "<!doctype html><html lang=en data-theme=light data-mode=light><head>"
        f"<meta charset=utf-8><title>{title}</title>{''.join(styles + math)}"
        f"<style>{(ROOT / 'press' / 'static' / 'print.css').read_text()}</style>"
        f"</head><body class=printed>{_contents(pages, html)}"
        f"{articles}</body></html>"
    )


def _to_sections(text: str) -> str:
    """Lead links to code to its section: Chromium makes no goal of an empty mark."""
    section, homes = "", {}
    for found in re.finditer(
        r'<section[^>]* id="([^"]*)"|id="([^"]*--code-[^"]*)"', text
    ):
        section = found[1] or section
        if found[2]:
            homes[found[2]] = section
    return re.sub(
        r'href="#([^"]*)"', lambda m: f'href="#{homes.get(m[1], m[1])}"', text
    )


def _contents(pages: list[str], html: Path) -> str:
    rows = [
        f'<li><a href="#{_anchor(page)}">{_title(page, html)}</a></li>'
        for page in pages[1:]
        if not page.startswith("api/") or page == "api/index"  # it lists the others
    ]
    return f"<nav><h1>{read_settings().title}</h1><ul>{''.join(rows)}</ul></nav>"


def _title(page: str, html: Path) -> str:
    soup = BeautifulSoup((html / f"{page}.html").read_text(), "html.parser")
    return soup.find("article").find("h1").get_text().rstrip("#")


def _anchor(page: str, fragment: str = "") -> str:
    return (
        f"{page}--{fragment}".replace("/", "-") if fragment else page.replace("/", "-")
    )


def _article(page: str, pages: list[str], html: Path) -> str:
    """A page's text with its own identifiers, links and pictures made absolute."""
    soup = BeautifulSoup((html / f"{page}.html").read_text(), "html.parser")
    article = soup.find("article")
    for gone in article.select(
        "script, .panel, .film-sheet, .headerlink, link, template"
    ):
        gone.decompose()
    for tag in article.select("[id]"):
        tag["id"] = _anchor(page, tag["id"])
    for tag in article.select("details"):
        tag["open"] = ""
    for tag in article.select("a[href]"):
        tag["href"] = _led(page, tag["href"], pages)
    for tag in article.select("img[src]"):
        _open_picture(tag, page)
    article["id"] = _anchor(page)
    return str(article)


def _led(page: str, href: str, pages: list[str]) -> str:
    """Where a link leads in the one page: elsewhere in it, or to the web as before."""
    url, fragment = urldefrag(urljoin(f"{page}.html", href))
    if re.match(r"[a-z]+:", url):
        return href
    target = url.removesuffix(".html")
    return f"#{_anchor(target, fragment)}" if target in pages else "#nbs-index"


def _open_picture(tag: Tag, page: str) -> None:
    tag["loading"] = "eager"
    if not re.match(r"[a-z]+:", tag["src"]):
        tag["src"] = urljoin(f"{page}.html", tag["src"])


READY = """async () => {
    await MathJax.startup.promise;
    await Promise.all([...document.images].map(i => i.decode().catch(() => {})));
}"""
CUT_OFF = """() => [...document.querySelectorAll("pre, .math, table, img, figure")]
    .filter(e => e.getBoundingClientRect().right > document.body.clientWidth + 1
                 || e.scrollWidth > e.clientWidth + 1 && e.matches("pre, div.math"))
    .map(e => (e.closest("article")?.id || "") + ": " + e.textContent.slice(0, 60))"""
PAPER = {"format": "A4", "scale": 0.8, "print_background": True}
PAPER |= {"outline": True, "tagged": True}
PAPER |= {"margin": dict.fromkeys(("top", "bottom", "left", "right"), "18mm")}
PAPER |= {"display_header_footer": True, "header_template": "<span></span>"}
PAPER["footer_template"] = (
    '<div style="width: 100%; text-align: center; font-size: 8px">'
    '<span class="pageNumber"></span></div>'
)
WIDTH = round((210 - 36) / 25.4 * 96 / 0.8)  # pixels of a line on that paper


def print_pdf(
    chromium: Browser, target: Path, pages: list[str] | None = None
) -> list[str]:
    """Print `pages` (the whole book) to a PDF; return what would have been cut off."""
    shutil.rmtree(PRINTED, ignore_errors=True)
    shutil.copytree(site.HTML, PRINTED)
    (PRINTED / "print.html").write_text(one_page(pages or page_order()))
    server = site.server(html=PRINTED)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tab = chromium.new_page(viewport={"width": WIDTH, "height": 1200})
    try:
        tab.emulate_media(media="print")
        tab.goto(f"http://127.0.0.1:{server.server_port}/print.html")
        tab.evaluate(READY)
        cut_off = tab.evaluate(CUT_OFF)
        tab.pdf(path=target, **PAPER)
    finally:
        tab.close()
        server.shutdown()
        server.server_close()
    with pikepdf.open(target, allow_overwriting_input=True) as pdf:
        pdf.save(target, object_stream_mode=pikepdf.ObjectStreamMode.generate)  # half
    return cut_off
