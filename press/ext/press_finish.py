"""The last touch on each page: previews, the search, the footer, and fewer bytes."""

import json
import re
import subprocess
from pathlib import Path

import press_icons
import press_parts
from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.config import Config

from press import PACKAGE

EARLY = {"typeset.js": 450}  # before MathJax itself
AT_ONCE = {"reading.js"}  # before the page is drawn: not deferred
ONE_PAGE = {"search.js": "search", "ledger.js": "ledger"}
OTHERS = {"index.html", "genindex.html", "search.html"}
REPEATS = {"ledger"}  # the search finds its statements and checks in their chapters

# Scripts that the theme puts on every page and that no page here needs.
UNUSED = re.compile(
    r"<script[^>]*src=[^>]*(?:fontawesome|searchtools|searchindex|language_data"
    r"|sphinx_highlight)\.js[^>]*></script>"
)
# Scripts that only act once the page is there: they need not hold it up.
LATER = re.compile(
    r"<script (src=[^>]*/(?:doctools|clipboard\.min|copybutton|sphinx-book-theme"
    r"|togglebutton)\.js)"
)
TOGGLE = '<summary><span class="toctree-toggle"'
NAMED_TOGGLE = '<summary aria-label="Show its pages"><span class="toctree-toggle"'
COMMIT = re.compile(r'(<span class="commit">)[^<]*(</span>)')
MODULE = re.compile(rf"(?:\A|(?<=<h1>)){PACKAGE.name}\.\w+")  # a title of one word
ROLES = re.compile(r' role="(?:list|doc-biblioentry)"')  # bibtex nests them wrongly
TWICE = re.compile(r'(<p class="admonition-title") id="[^"]*"')


def scripts(app: Sphinx, config: Config) -> None:
    """Load our scripts late, and each only where it has something to do."""
    config.mathjax_path = "mathjax/startup.js"
    config.html_css_files = [n for n in config.html_css_files if n != "print.css"]
    names = [n for n in config.html_js_files if isinstance(n, str)]
    config.html_js_files = [
        (name, {} if name in AT_ONCE else {"defer": "defer"})
        for name in names
        if name not in EARLY and name not in ONE_PAGE
    ]


def page(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Describe a page to search engines, sign it, and take stock of its parts."""
    for name, priority in EARLY.items():
        app.add_js_file(name, priority=priority, defer="defer")
    for name, only in ONE_PAGE.items():
        if pagename == only:
            app.add_js_file(name, defer="defer")
    if pagename == "search":
        app.add_js_file("search-data.js", priority=490, defer="defer")
        macros = json.dumps(app.config.mathjax3_config)
        app.add_js_file(None, body=f"window.MathJax = {macros}", priority=440)
        app.add_js_file(app.config.mathjax_path, defer="defer")
    body = context.get("body", "")
    if pagename.startswith("api/"):
        body = break_module(body)
        for way in [w for w in ("prev", "next") if context.get(w)]:
            context[way] |= {"title": break_module(context[way]["title"])}
    body = ROLES.sub("", TWICE.sub(r"\1", body.replace(' id="proof-content"', "")))
    if "body" in context:
        context["body"] = body
    about = description(body) or app.config.press_about
    context["metatags"] = (
        context.get("metatags", "") + f'\n<meta name="description" content="{about}" />'
    )
    context["theme_extra_footer"] = colophon(app, pagename)
    if doctree is not None:
        static = Path(app.outdir) / "_static"
        press_parts.save(pagename, body, static, _store(app))


def break_module(text: str) -> str:
    """A title that is a module's name, with places where a phone may break it."""
    return MODULE.sub(lambda title: re.sub(r"[._]", r"\g<0><wbr>", title[0]), text)


def _store(app: Sphinx) -> Path:
    return Path(app.doctreedir) / "parts"


def description(body: str) -> str:
    """The first words of a page, for a list of search results elsewhere."""
    soup = BeautifulSoup(body[:20_000], "html.parser")
    heading = soup.find("h1")
    first = heading.find_next("p") if heading else None
    if first is None:
        return ""
    words = " ".join(re.sub(r"\\[()]|[\\{}$]", "", first.get_text()).split())
    words = words if len(words) <= 200 else words[:200].rsplit(" ", 1)[0] + " …"
    return words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def colophon(app: Sphinx, pagename: str) -> str:
    """Version, commit, what it last ran with; where to mend it, if it is public."""
    said = f"{app.config.press_colophon} · commit <span class='commit'></span>"
    said = said.replace("'", '"')
    links = ""
    if app.config.press_repository:
        source = f"{pagename}{Path(app.env.doc2path(pagename)).suffix}"
        branch, url = app.config.press_branch, app.config.press_repository
        if pagename.startswith("nbs/"):
            links += f' · <a href="{url}/edit/{branch}/{source}">Edit this page</a>'
        issue = f"{url}/issues/new?title={pagename}"
        links += f' · <a href="{issue}">Report a mistake</a>'
    return f'<p class="colophon">{said}{links}</p>'


# --- when all pages are written -------------------------------------------------------


def finish(app: Sphinx, error: Exception | None) -> None:
    """Leave out pages that are no more and bytes that nobody needs; index the rest."""
    if error:
        return
    out = Path(app.outdir)
    kept = {app.builder.get_target_uri(n): n for n in app.env.found_docs}
    commit = _commit()
    texts = [p.read_text() for p in (out / "_static").rglob("*.js") if _theme(p)]
    for path in [p for p in out.rglob("*.html") if "_static" not in p.parts]:
        name = path.relative_to(out).as_posix()
        if name not in kept and name not in OTHERS:
            path.unlink()
            continue
        text = path.read_text()
        lighter = COMMIT.sub(rf"\g<1>{commit}\2", UNUSED.sub("", text))
        lighter = LATER.sub(r"<script defer \1", lighter.replace(TOGGLE, NAMED_TOGGLE))
        if lighter != text:
            path.write_text(lighter)
        texts.append(lighter)
    search_data(app)
    press_icons.lighten(out / "_static", texts)
    for unused in (out / "_static" / "scripts").glob("fontawesome.js*"):
        unused.unlink()


def _theme(script: Path) -> bool:
    """Whether a script may name icons: the icons' own and MathJax do not count."""
    return "mathjax" not in script.parts and "fontawesome" not in script.name


def search_data(app: Sphinx) -> None:
    """Write what the search page reads: every part of the book that has a name."""
    rows, pages = [], {}
    extra = app.config.press_aliases
    for doc in sorted(app.env.found_docs):
        pages[doc] = re.sub(r"[`*]", "", app.env.titles[doc].astext())
        also: dict[str, list[str]] = {}
        for name, anchor in extra.get(doc, {}).items():
            also.setdefault(anchor, []).append(name)
        for part in press_parts.load(doc, _store(app)):
            if not part.title or part.kind == "alias":
                continue
            names = also.pop(part.id, [])
            text = "" if doc in REPEATS else part.text
            rows.append([doc, part.id, part.kind, part.title, names, text])
        for anchor, names in also.items():  # a heading that was renamed: see the tests
            rows.append([doc, anchor, "section", pages[doc], names, ""])
    data = json.dumps([pages, rows], ensure_ascii=False, separators=(",", ":"))
    path = Path(app.outdir) / "_static" / "search-data.js"
    path.write_text(f"window.pressSearch={data};\n", encoding="utf-8")


def _commit() -> str:
    """What Git calls this state of the book; an archive without Git has no name."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", root, "describe", "--always", "--exclude=*"]
    command += ["--dirty=, and later changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def setup(app: Sphinx) -> dict:
    for name in ("colophon", "repository", "branch", "about"):
        app.add_config_value(f"press_{name}", "", "html")
    app.add_config_value("press_aliases", {}, "html")
    app.connect("config-inited", scripts, priority=400)
    app.connect("html-page-context", page, priority=900)
    app.connect("build-finished", finish, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
