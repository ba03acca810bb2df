"""The built book, page by page, in a real browser: what a reader would stumble over."""

import ast
import functools
import itertools
import re
import shutil
import threading
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from fontTools.ttLib import TTFont
from pypdf import PdfReader

from press import audit, notebooks, numbers, screens, site, stage
from press.settings import read_settings

pytestmark = pytest.mark.book

PAGES = audit.pages()
TOOLS = {"genindex.html", "search.html"}
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 360, "height": 740}
LAPTOP = {"width": 1200, "height": 800}
# pages that share what they ask for with all of their kind
EACH_KIND = ["nbs/index.html", "nbs/marginal.html", "api/losses.html", "ledger.html"]
EACH_KIND += ["search.html", "genindex.html", "glossary.html"]

TEXT = """() => {
    const copy = document.querySelector("article").cloneNode(true);
    copy.querySelectorAll("pre, code, script, mjx-container").forEach(e => e.remove());
    return copy.textContent;
}"""
IMAGES = """() => [...document.querySelectorAll("article img")]
    .filter(i => !(i.complete && i.naturalWidth && i.alt.trim()))
    .map(i => i.src.slice(0, 90))"""
WIDTHS = "() => [document.documentElement.scrollWidth, window.innerWidth]"
SETTLED = """async () => {
    if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
    document.querySelectorAll("details").forEach(d => d.open = true);
    document.querySelectorAll(".toggle-hidden")
        .forEach(e => e.classList.remove("toggle-hidden"));
    document.querySelectorAll("img").forEach(i => i.loading = "eager");
    await Promise.all([...document.images].map(i => i.decode().catch(() => {})));
}"""
FRAMES = """async () => {
    const frame = () => new Promise(resolve => requestAnimationFrame(resolve));
    for (let k = 0; k < 6; k++) await frame();
}"""
# On a slow machine a page's patience may end before its formulas are set, and then its
# text moves as it should: so here a patience of seconds becomes one of hours.
PATIENT = """(() => {
    const soon = window.setTimeout;
    const later = ms => ms > 1000 ? 1000 * ms : ms;
    window.setTimeout = (f, ms, ...rest) => soon(f, later(ms), ...rest);
})()"""
SHIFTS = """async () => {
    await MathJax.startup.promise;
    const set = () => !document.documentElement.classList.contains("typesetting");
    while (!set()) await new Promise(requestAnimationFrame);
    return new Promise(resolve => {
        let sum = 0;
        new PerformanceObserver(list => list.getEntries().forEach(e => sum += e.value))
            .observe({ type: "layout-shift", buffered: true });
        setTimeout(() => resolve(sum), 500);
    });
}"""
CUT_OFF = """() => {
    const parts = "mjx-container:not([display]), code, .together";
    return [...document.querySelectorAll("article :is(p, li, dd, h1, h2, h3, summary)")]
        .filter(block => !block.closest("table, pre"))
        .flatMap(block => [...block.querySelectorAll(parts)]
            .filter(e => e.getBoundingClientRect().right
                > block.getBoundingClientRect().right + 1.5)
            .map(e => e.textContent.slice(0, 60)));
}"""
NO_TRANSITIONS = """() => {
    const style = document.createElement("style");
    style.textContent = "* { transition: none !important; animation: none !important }";
    document.head.append(style);
}"""
MOST_SCREENS = 380  # of all chapters together: raise it for a lesson, not for code
SIDEWAYS = """() => [...document.querySelectorAll("article pre")]
    .filter(e => !e.closest(".cell_output") && e.scrollWidth > e.clientWidth)
    .map(e => e.textContent.split("\\n"))
    .map(lines => lines.reduce((a, b) => b.length > a.length ? b : a))"""
AXE = {"resultTypes": ["violations"]}
# Contrast depends on how a text looks and on what it stands: the first text of each
# look stands for all that look alike, and the rest of a page need not be shown. That
# takes axe a second, not a minute.
CONTRAST = ["color-contrast", "link-in-text-block"]
LOOKS = """() => {
    const grounds = new Map([[null, ""]]), seen = new Set();
    const ground = e => {
        if (!grounds.has(e)) {
            const s = getComputedStyle(e), clear = "rgba(0, 0, 0, 0) none 1 none";
            const own = [s.backgroundColor, s.backgroundImage, s.opacity, s.filter];
            const shows = own.join(" ") === clear ? "" : "|" + own.join(" ");
            grounds.set(e, ground(e.parentElement) + shows);
        }
        return grounds.get(e);
    };
    const letters = e => {
        const s = getComputedStyle(e);
        return [s.color, s.fontSize, s.fontWeight, s.textDecorationLine, ground(e)];
    };
    const texts = [...document.querySelectorAll("body *")].filter(e =>
        [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
        && e.checkVisibility({ visibilityProperty: true }));
    for (const e of texts) {
        const link = e.closest("a");
        const look = [letters(e), link ? letters(link.parentElement) : ""].join("|");
        if (!seen.has(look)) e.setAttribute("data-look", "");
        seen.add(look);
    }
    return seen.size;
}"""
ONLY_LOOKS = """() => [...document.querySelectorAll("body *")]
    .filter(e => !e.matches("[data-look]") && !e.querySelector("[data-look]"))
    .forEach(e => e.style.setProperty("display", "none", "important"))"""
THEME = "theme => document.documentElement.dataset.theme = theme"


@pytest.fixture(scope="module")
def address():
    server = site.server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def tab(chromium):
    tab = chromium.new_page(viewport=WIDE)
    tab.problems = []
    tab.on("console", lambda m: m.type == "error" and tab.problems.append(m.text))
    tab.on("pageerror", lambda e: tab.problems.append(str(e)))
    tab.on("requestfailed", lambda r: tab.problems.append(f"failed: {r.url}"))
    tab.on("request", lambda r: _note_foreign(tab, r.url))
    yield tab
    tab.close()


def _note_foreign(tab, url: str) -> None:
    if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        tab.problems.append(f"a request to another host: {url}")


def test_there_is_a_book():
    """Catches a build that leaves nothing behind, which every test below would pass."""
    assert "nbs/index.html" in PAGES, "run `make book` first"
    assert len(PAGES) > 20


def test_the_front_door_leads_to_the_landing_page(tab, address):
    """Catches a bare address that answers with a list of files."""
    tab.goto(address)
    tab.wait_for_url("**/nbs/index.html")


@pytest.mark.parametrize("page", PAGES)
def test_page_reads_without_a_stumble(tab, address, page):
    """Catches errors, other hosts, raw TeX and directives, no pictures, wide pages.

    And code that one has to scroll to read, pale letters, controls without a name,
    boxes that a keyboard cannot scroll: a page is opened once for all of it.
    """
    tab.goto(address + page)
    tab.evaluate(SETTLED)
    tab.evaluate(NO_TRANSITIONS)
    tab.wait_for_load_state("networkidle")
    assert tab.problems == []
    assert tab.locator("mjx-merror").count() == 0
    if page not in TOOLS:
        _reads(tab)
    assert _barriers(tab) == []


def _reads(tab) -> None:
    text = tab.evaluate(TEXT)
    raw = re.findall(
        r"\$\$|\\(?:frac|begin|sigma|mathbb|partial)\b|\{\w+:?\w*\}`", text
    )
    assert raw == [], "TeX or roles that were not rendered"
    assert "#|" not in tab.inner_text("article"), "a directive shows"
    assert tab.evaluate(IMAGES) == [], "pictures that are missing or have no alt text"
    for size in (WIDE, LAPTOP, PHONE):
        tab.set_viewport_size(size)
        tab.evaluate(FRAMES)
        content, window = tab.evaluate(WIDTHS)
        assert content <= window, f"the page scrolls sideways, {size['width']} px wide"
        if size != PHONE:
            assert tab.evaluate(SIDEWAYS) == [], f"too long for {size['width']} px"
    assert tab.evaluate(CUT_OFF) == [], "cut off at the edge of a paragraph"


def _barriers(tab) -> list[str]:
    """What axe calls serious: in a page wide and narrow, light and dark."""
    found, once = [], {"rules": {rule: {"enabled": False} for rule in CONTRAST}}
    for size in (WIDE, PHONE):
        tab.set_viewport_size(size)
        tab.evaluate(FRAMES)
        found += _grave(tab, **once)
        for theme in ("light", "dark"):
            tab.evaluate(THEME, theme)
            assert tab.evaluate(LOOKS) > 2
    tab.evaluate(ONLY_LOOKS)
    for theme, size in itertools.product(("light", "dark"), (WIDE, PHONE)):
        tab.evaluate(THEME, theme)
        tab.set_viewport_size(size)
        tab.evaluate(FRAMES)
        found += [f"{theme}: {what}" for what in _grave(tab, runOnly=CONTRAST)]
    return found


def _grave(tab, **options) -> list[str]:
    return [
        f"{v['id']}: {n['target']} {n.get('failureSummary', '')[:200]}"
        for v in Axe().run(tab, options={**AXE, **options}).response["violations"]
        if v["impact"] in ("serious", "critical")
        for n in v["nodes"][:5]
    ]


def test_a_formula_keeps_its_punctuation(chromium, address):
    """Catches a line that begins with the comma or full stop after a formula."""
    phone = chromium.new_page(viewport=PHONE)
    phone.goto(address + "nbs/change_of_variables.html")
    phone.evaluate(SETTLED)
    broken = """spans => spans.filter(
        span => new Set([...span.getClientRects()].map(box => box.top)).size > 1
    ).map(span => span.textContent)"""
    spans = phone.locator("article p .together")
    assert spans.count() > 50
    assert spans.evaluate_all(broken) == []
    phone.close()


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_moves_while_formulas_are_set(chromium, address, size):
    """Catches text that jumps under a reader's eyes: a shift of 0.1 is felt."""
    tab = chromium.new_page(viewport=size)
    tab.add_init_script(PATIENT)
    tab.goto(address + "nbs/change_of_variables.html")
    assert tab.evaluate(SHIFTS) < 0.1
    tab.close()


class Parsed(HTMLParser):
    """What a page's file says, before a script has run."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.panels = set(), set(), set()
        self.closed, self.within = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        self.panels.add(given.get("data-panel"))
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        self.within |= tag == "article"
        own = {"fold", "code", "checks"} & {*(given.get("class") or "").split()}
        shut = tag == "details" and own and "open" not in given
        if self.within and (shut or "hidden" in given):
            self.closed.append(self.get_starttag_text()[:80])

    def handle_endtag(self, tag):
        self.within &= tag != "article"


@functools.cache
def parsed(page: str) -> Parsed:
    return Parsed((site.HTML / page).read_text())


def test_every_local_link_and_anchor_is_alive(address):
    """Catches a chapter renamed, a label gone, a theorem moved to another page."""
    dead = []
    for page in PAGES:
        for href in parsed(page).links:
            url, anchor = urldefrag(urljoin(address + page, href))
            if not url.startswith(address):
                continue
            target = unquote(url.removeprefix(address)) or "index.html"
            if target not in PAGES and not (site.HTML / target).exists():
                dead.append(f"{page} -> {target}")
            elif target in PAGES and {unquote(anchor)} - {"", *parsed(target).ids}:
                dead.append(f"{page} -> {target}#{anchor}")
    assert dead == []
    assert sum(len(parsed(page).links) for page in PAGES) > 5000


FOUND = {
    "continuity equation": "nbs/continuity.html#",
    "Theorem 1": "nbs/marginal.html#thm-1",
    "Theorem 2": "nbs/losses.html#thm-2",
    "Theorem 3": "nbs/gaussian_path.html#thm-3",
    "loss floor": "nbs/losses.html#the-floor-predicted",
    "Hutchinson": "nbs/likelihood.html#",
    "Gronwall": "nbs/flows.html#lem-gronwall",
    "probability flow": "nbs/conversions.html#thm-probability-flow",
    "midpoint": "nbs/solvers.html#two-evaluations-order-2",
    "dopri5": "nbs/solvers.html#steps-of-the-solver-s-own-choice",
    "EMA": "nbs/training.html#averaging-the-weights",
    "change of variables": "nbs/change_of_variables.html#",
    "score": "nbs/notation.html#term-score",
    "cfm_loss": "api/losses.html#flowbook.losses.cfm_loss",
}


@pytest.mark.parametrize("words", FOUND)
def test_the_search_finds_mathematics_by_name(tab, address, words):
    """Catches an index that does not load, and a list that names a thing before it."""
    tab.goto(address + "search.html?q=" + quote(words))
    tab.wait_for_selector("#search-results li a")
    first = tab.locator("#search-results li a").first.get_attribute("href")
    assert first.startswith(FOUND[words])


def test_the_search_shows_no_raw_tex(tab, address):
    """Catches `\\(p_t\\)` in an excerpt, and a search that finds what is not there."""
    tab.goto(address + "search.html?q=posterior+mean")
    tab.wait_for_selector("#search-results mjx-container")
    tab.wait_for_function("!document.querySelector('.search .math:not(:has(*))')")
    shown = "() => [...document.querySelectorAll('.context')].map(e => e.innerText)"
    assert not any("\\" in text for text in tab.evaluate(shown))
    tab.goto(address + "search.html?q=zyzzyva")
    tab.wait_for_selector(".search-summary")
    assert tab.locator("#search-results li").count() == 0


def test_each_name_that_the_search_adds_has_its_section(tab, address):
    """Catches a heading that was renamed, in aliases.toml only by its old name."""
    for page, names in stage.aliases().items():
        text = (site.HTML / f"{page}.html").read_text()
        assert [n for n in names.values() if f'id="{n}"' not in text] == [], page


NUMBERS = numbers.numbers()
MARGINAL, LOSSES = NUMBERS["marginal"], NUMBERS["losses"]
PREVIEWS = {
    "theorem": ("nbs/losses.html", "prop-posterior-mean", f"Proposition {MARGINAL}."),
    "named theorem": ("nbs/losses.html", "#thm-2", "Theorem 2 (Lipman"),
    "equation": ("nbs/losses.html", "#equation-eq-losses-split", f"{LOSSES}."),
    "reference": ("nbs/flows.html", "bibliography.html#id", "["),
    "term": ("nbs/notation.html", "#term-score", "grows fastest"),
    "function": ("nbs/losses.html", "api/losses.html#flowbook.losses.cfm", "loss"),
}


@pytest.mark.parametrize("kind", PREVIEWS)
def test_a_link_shows_what_it_leads_to(tab, address, kind):
    """Catches a preview that is empty, raw TeX, or that only a mouse can open."""
    page, target, words = PREVIEWS[kind]
    tab.goto(address + page)
    tab.evaluate(SETTLED)
    links = tab.locator(f"article a[href*='{target}']:not(.headerlink)")
    link = next(e for e in links.all() if e.is_visible())
    preview = tab.locator("#preview")
    link.hover()
    preview.wait_for(state="visible")
    tab.wait_for_function("!document.querySelector('#preview .math:not(:has(*))')")
    assert words in preview.inner_text().replace("\u00a0", " ")
    assert "\\" not in preview.inner_text()
    assert preview.get_attribute("role") == "tooltip"
    assert link.get_attribute("aria-describedby") == "preview"
    box = preview.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= WIDE["width"]
    tab.keyboard.press("Escape")
    assert not preview.is_visible()
    assert link.get_attribute("aria-describedby") is None
    assert tab.problems == []


def test_a_preview_opens_by_keyboard_and_not_by_a_finger(chromium, tab, address):
    """Catches a preview that the Tab key cannot reach, and one in a finger's way."""
    tab.goto(address + "nbs/losses.html")
    tab.evaluate(SETTLED)
    link = tab.locator("article a[href='#thm-2']").first
    link.scroll_into_view_if_needed()
    tab.mouse.move(5, 5)
    link.focus()
    tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Tab")
    tab.locator("#preview").wait_for(state="visible")
    tab.keyboard.press("Tab")
    tab.locator("#preview").wait_for(state="hidden")
    phone = chromium.new_page(viewport=PHONE, has_touch=True)
    phone.goto(address + "nbs/losses.html")
    phone.evaluate(SETTLED)
    phone.locator("article a[href='#thm-2']").first.tap()
    phone.wait_for_url("**#thm-2")
    phone.wait_for_timeout(400)
    assert not phone.locator("#preview").is_visible()
    phone.close()


def test_previews_work_from_a_file(chromium):
    """Catches a preview or a search that asks a server: the book is read offline."""
    tab = chromium.new_page(viewport=WIDE)
    tab.goto((site.HTML / "nbs" / "losses.html").as_uri())
    tab.evaluate(SETTLED)
    tab.locator("article a[href='#thm-2']").first.hover()
    tab.locator("#preview").wait_for(state="visible")
    tab.goto((site.HTML / "search.html").as_uri() + "?q=Theorem+2")
    tab.wait_for_selector("#search-results li a")
    tab.close()


def test_proofs_fold_and_open_when_linked_to(tab, address):
    """Catches a long proof that stays shut for the one who asked for it."""
    tab.goto(address + "nbs/losses.html")
    proof = tab.locator("#proof-thm-2")
    assert not proof.evaluate("e => e.open")
    assert tab.locator("#proof-cor-floor").evaluate("e => e.open"), "a short one"
    tab.get_by_role("button", name="Open all proofs").click()
    assert tab.locator("details.fold:not([open])").count() == 0
    tab.get_by_role("button", name="Fold long proofs").click()
    assert not proof.evaluate("e => e.open")
    tab.evaluate("location.hash = 'equation-eq-losses-cross'")  # a formula inside it
    tab.wait_for_function("document.getElementById('proof-thm-2').open")
    tab.evaluate("localStorage.clear()")
    tab.goto(address + "nbs/index.html")
    tab.goto(address + "nbs/losses.html#proof-thm-2")
    tab.evaluate("async () => await MathJax.startup.promise")
    assert tab.locator("#proof-thm-2").evaluate("e => e.open")
    assert 0 <= tab.locator("#proof-thm-2").bounding_box()["y"] < 300


FOLDING = "nbs/marginal.html"
CODE = "article details:is(.code, .checks)"
FOLDED = "naive_velocity(x[None], 0.5, pair)"  # in the code of a check on that page


def test_code_folds_and_one_switch_opens_all_and_remembers(tab, address):
    """Catches a lesson drowned in code, a switch that forgets, a state left unsaid."""
    tab.goto(address + FOLDING)
    every, shut = tab.locator(CODE).count(), tab.locator(f"{CODE}:not([open])")
    assert every > 10 and shut.count() == every
    switch = tab.get_by_role("group", name="Code")
    essential, everything = (
        switch.get_by_role("button", name=name, exact=True)
        for name in ("essential", "all")
    )
    assert essential.get_attribute("aria-pressed") == "true"
    everything.click()
    assert shut.count() == 0
    assert everything.get_attribute("aria-pressed") == "true"
    assert essential.get_attribute("aria-pressed") == "false"
    assert not tab.locator("#proof-thm-1").evaluate("e => e.open"), "code, not proofs"
    tab.reload()
    assert shut.count() == 0 and everything.get_attribute("aria-pressed") == "true"
    essential.focus()
    tab.keyboard.press("Enter")
    assert shut.count() == every
    tab.reload()
    assert shut.count() == every
    assert tab.problems == []


def test_what_folds_opens_by_keyboard(tab, address):
    """Catches a fold that only a mouse can open, and a line that names nothing."""
    tab.goto(address + FOLDING)
    for kind, says in (("code", "lines"), ("checks", "✓ 3 checks, ✗ 1 wrong formula")):
        fold = tab.locator(f"article details.{kind}").first
        summary = fold.locator("summary")
        assert says in summary.inner_text()
        summary.focus()
        tab.keyboard.press("Enter")
        assert fold.evaluate("e => e.open")
        assert fold.locator("pre, p.check").first.is_visible()


def test_a_link_to_exported_code_opens_it(tab, address):
    """Catches a derivation that the API leads to and that stays shut."""
    target = "code-marginal-mixturemarginal-c"
    below = f"#{target} + .cell details.code"
    tab.goto(f"{address}{FOLDING}#{target}")
    tab.wait_for_selector(f"{below}[open]")
    assert tab.locator(f"{below}:not([open])").count() == 0
    assert tab.locator(f"{CODE}:not([open])").count() > 10, "the others stay shut"
    tab.goto(address + FOLDING)
    assert tab.locator(f"{below}[open]").count() == 0
    tab.evaluate("id => { location.hash = id }", target)
    tab.wait_for_selector(f"{below}[open]")
    assert tab.locator(f"{below}:not([open])").count() == 0
    near = "e => -5 < e.getBoundingClientRect().y && e.getBoundingClientRect().y < 300"
    tab.wait_for_function(near, arg=tab.locator(f"#{target}").element_handle())


def test_find_in_page_opens_what_folds(tab, address):
    """Catches code that the browser's own search passes over while it is folded."""
    tab.goto(f"{address}{FOLDING}#:~:text={quote(FOLDED)}")
    home = tab.locator("article details.code", has_text=FOLDED)
    tab.wait_for_function("e => e.open", arg=home.element_handle())
    assert tab.locator(f"{CODE}:not([open])").count() > 10


def test_paper_shows_all_and_the_page_folds_again(tab, address, tmp_path):
    """Catches a printed page without its code, and one that stays open after it."""
    tab.goto(address + FOLDING)
    before = tab.locator(f"{CODE}:not([open])").count()
    tab.pdf(path=tmp_path / "page.pdf")
    text = "".join(p.extract_text() for p in PdfReader(tmp_path / "page.pdf").pages)
    assert FOLDED in text and "imports · " not in text and "essential" not in text
    assert tab.locator(f"{CODE}:not([open])").count() == before


def test_the_formula_sheet_is_two_pages_of_paper(tab, address, tmp_path):
    """Catches a third page for one line more: the landing page promises two."""
    tab.goto(address + "sheet.html")
    tab.evaluate(SETTLED)
    sheet = tmp_path / "sheet.pdf"
    edges = dict.fromkeys(("top", "right", "bottom", "left"), "1cm")
    tab.pdf(path=sheet, format="A4", margin=edges)
    pages = [page.extract_text() for page in PdfReader(sheet).pages]
    assert len(pages) == 2 and "Theorems" in "".join(pages)


def test_a_cell_in_pieces_is_copied_whole(tab, address):
    """Catches half a class in the clipboard, and the words of a fold among its code."""
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto(address + FOLDING)
    cell = tab.locator(".cell.divided", has_text="class EmpiricalMarginal")
    cell.locator(".highlight").first.hover()
    cell.locator("button.copybtn").first.click()
    tab.wait_for_selector(".copybtn.success")
    copied = tab.evaluate("navigator.clipboard.readText()")
    (made,) = ast.parse(copied).body
    assert made.name == "EmpiricalMarginal" and len(made.body) > 2


@pytest.mark.parametrize(
    ("page", "theme", "size"),
    [("nbs/marginal.html", "light", PHONE), ("nbs/comparison.html", "dark", WIDE)],
)
def test_a_folded_page_is_accessible(tab, address, page, theme, size):
    """Catches a fold's line, a switch, or a count that is too pale or has no name.

    Here axe looks at each text, not at the first that looks like it.
    """
    tab.set_viewport_size(size)
    tab.goto(address + page)
    tab.evaluate("async () => await MathJax.startup.promise")
    tab.evaluate(NO_TRANSITIONS)
    tab.evaluate(THEME, theme)
    tab.evaluate(FRAMES)
    assert _grave(tab) == []


def test_a_pale_word_is_found_among_its_likes(tab, address):
    """Catches looks that are told apart by too little: a word, a link, a ground.

    And a control without a name.
    """
    tab.goto(address + "glossary.html")
    tab.evaluate(NO_TRANSITIONS)
    tab.evaluate("""() => document.querySelector("article section").insertAdjacentHTML(
        "beforeend", `<p>Words that are like all others, and nothing is wrong.</p>
        <p>Words and <span style="color: #ccc">pale</span> ones,
        <b style="background: #ccc; color: #fff">ground</b>,
        <span style="opacity: .3">thin</span>.</p>
        <p>Many words are in this line, and among all of them is
        <a href="#x" style="color: #245; text-decoration: none">a link</a>.</p>
        <button></button>`)""")
    found = "\n".join(_barriers(tab))
    assert "button-name" in found
    assert len(re.findall("light: color-contrast", found)) == 2 * 3
    assert len(re.findall("light: link-in-text-block", found)) == 2


LESSONS = [
    f"nbs/{stem}.html" for stem, number in numbers.numbers().items() if number.isdigit()
]


def test_the_lesson_is_what_one_sees(address, chromium):
    """Catches chapters that grow by code: about a third of them folds (32.8 %)."""
    tab = chromium.new_page()
    rows = [screens.measured(tab, address, page) for page in LESSONS]
    tab.close()
    told = "\n".join(screens.table(rows))
    assert len(rows) > 20
    essential, every = sum(r.essential for r in rows), sum(r.all for r in rows)
    assert essential <= 0.68 * every, told
    assert essential <= MOST_SCREENS, told


def test_every_page_is_written_open():
    """Catches text that only a script shows: folded proofs, an empty table, a hole."""
    closed = {page: parsed(page).closed for page in PAGES if page not in TOOLS}
    assert {page: found for page, found in closed.items() if found} == {}


def test_a_page_reads_without_scripts(chromium, address):
    """Catches what a style sheet hides until a script comes, and a dead switch."""
    context = chromium.new_context(java_script_enabled=False, viewport=PHONE)
    tab = context.new_page()
    for page in ("nbs/marginal.html", "ledger.html"):
        tab.goto(address + page)
        assert tab.locator("article").is_visible()
        text = tab.locator("article :is(p, pre, tr)")
        hidden = "all => all.filter(e => e.innerHTML && !e.checkVisibility())"
        assert text.count() > 100 and text.evaluate_all(hidden) == []
        assert tab.locator(".switches > *").count() == 0, "a switch that does nothing"
    context.close()


def test_each_function_and_its_derivation_lead_to_each_other(tab, address):
    """Catches an API page that does not say where its function comes from."""
    tab.goto(address + "api/losses.html")
    entry = tab.locator("dl.py:has(> dt[id='flowbook.losses.cfm_loss'])")
    entry.get_by_role("link", name="The smallest example").first.click()
    tab.wait_for_url("**/nbs/losses.html#code-losses-*")
    mark = tab.locator(".exported a[href$='#flowbook.losses.cfm_loss']")
    cell = mark.locator("xpath=ancestor::div[contains(@class,'exported')][1]")
    below = "e => e.nextElementSibling?.textContent ?? ''"
    assert "def cfm_loss(" in cell.evaluate(below)
    mark.click()
    tab.wait_for_url("**/api/losses.html#flowbook.losses.cfm_loss")
    missing = []
    for page in [p for p in PAGES if p.startswith("api/") and "index" not in p]:
        text = (site.HTML / page).read_text()
        functions = re.findall(
            r'<dt class="sig[^"]*"\s+id="(flowbook\.\w+\.\w+)"', text
        )
        assert functions, page
        missing += [page] * (len(functions) - text.count("<p>Derived in "))
    assert missing == []


def test_every_name_of_the_api_leads_to_its_entry():
    """Catches a constant whose entry has another name than the reference to it."""
    text = (site.HTML / "api/index.html").read_text()
    assert text.count('<code class="xref py py-obj') > 100
    assert not re.search(r'<li><p><code class="xref py py-obj.*', text)


def test_the_footer_says_what_this_copy_is(tab, address):
    """Catches a page that does not say of which version it is, or where it ran."""
    tab.goto(address + "nbs/losses.html")
    said = tab.locator(".colophon").inner_text()
    assert re.search(r"flowbook \d+\.\d+\.\d+ · last run with torch \d", said)
    assert re.search(r"commit [0-9a-f]{7,}|commit unknown", said)


def test_an_owner_gets_links_to_the_repository(tmp_path):
    """Catches buttons that are configured and never built, and links to a stranger."""
    someone = replace(read_settings(), user="someone", repo="mine", version="1.2.3")
    source = tmp_path / "source"
    shutil.copytree(stage.SOURCE, source, ignore=shutil.ignore_patterns("*.webp"))
    toc = {"format": "jb-book", "root": "nbs/networks", "chapters": []}
    toc["chapters"] = [{"file": "bibliography"}]
    (source / "_toc.yml").write_text(yaml.safe_dump(toc))
    (source / "_config.yml").write_text(stage.config(someone))
    site.build(strict=False, source=source, html=tmp_path / "html")
    text = (tmp_path / "html" / "nbs" / "networks.html").read_text()
    links = set(re.findall(r'href="(https://[^"]+)"', text))
    home = "https://github.com/someone/mine"
    colab = "https://colab.research.google.com/github/someone/mine"
    assert home in links
    assert f"{colab}/blob/v1.2.3/nbs/networks.ipynb" in links
    assert f"{home}/edit/main/nbs/networks.ipynb" in links
    assert any(link.startswith(f"{home}/issues/new") for link in links)
    assert "set--me" not in text
    bare = (tmp_path / "html" / "bibliography.html").read_text()
    assert "/edit/" not in bare, "a page that the build writes has no source to edit"


def test_without_an_owner_no_page_leads_to_the_placeholder():
    """Catches a button to an account that cannot exist."""
    if not read_settings().has_owner:
        for page in PAGES:
            text = (site.HTML / page).read_text()
            assert "github.com/set--me" not in text, page


def test_code_can_be_copied(tab, address, chromium):
    """Catches a copy button without its script, and one that copies line numbers."""
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto(address + "nbs/losses.html")
    cell = tab.locator(".highlight:has-text('def cfm_loss(')").first
    cell.hover()
    cell.locator("button.copybtn").click()
    copied = "navigator.clipboard.readText().then(t => t.includes('def cfm_loss('))"
    tab.wait_for_function(f"async () => await {copied}")


def test_the_ledger_can_be_filtered(tab, address):
    """Catches a filter that hides nothing, hides all, or forgets the statements."""
    tab.goto(address + "ledger.html")
    rows = tab.locator("table.ledger tbody tr")
    shown = tab.locator("table.ledger tbody tr:not([hidden])")
    every = rows.count()
    assert shown.count() == every > 300
    tab.get_by_label("Show", exact=True).select_option(
        label="wrong on purpose, rejected"
    )
    wrong = tab.locator("table.ledger tbody tr:visible").count()
    assert 100 < wrong < every
    assert all(t.startswith("✗") for t in shown.all_inner_texts()[:20])
    tab.get_by_label("Chapter", exact=True).select_option(index=3)
    tab.get_by_label("Words", exact=True).fill("push-forward")
    assert tab.locator("table.ledger tbody tr:visible").count() < wrong
    tab.get_by_label("Words", exact=True).fill("zyzzyva")
    assert tab.locator("table.ledger tbody tr:visible").count() == 0
    assert "0 statements, 0 rows" in tab.get_by_role("status").inner_text()


def test_the_ledger_draws_each_residual(tab, address):
    """Catches a row without its bar, and a check whose bar ends beyond the line."""
    tab.goto(address + "ledger.html")
    rows = tab.locator("table.ledger tbody tr")
    assert tab.locator("table.ledger .bar[aria-label]").count() == rows.count()
    held = tab.locator("table.ledger tr:has-text('✓') .bar.right")
    assert held.count() == 0
    assert tab.locator("table.ledger tr:has-text('✗') .bar.left").count() == 0


def test_a_word_of_the_glossary_is_linked_where_it_first_stands(tab, address):
    """Catches a glossary that nothing leads to."""
    for page in ("nbs/continuity.html", "nbs/likelihood.html"):
        tab.goto(address + page)
        assert tab.locator("article a[href*='glossary.html#term-']").count() > 0


def test_every_chapter_is_on_a_route():
    """Catches a chapter that the syllabus has forgotten."""
    text = (notebooks.NBS / "how_to_read.md").read_text()
    chapters = [s for s, n in numbers.numbers().items() if n.isdigit()]
    assert len(chapters) > 20
    assert [s for s in chapters if f"`{s}`" not in text and f"<{s}>" not in text] == []


def test_every_reference_has_a_link(tab, address):
    """Catches an entry of the bibliography that one cannot follow."""
    tab.goto(address + "bibliography.html")
    entries = tab.locator("div.citation")
    assert entries.count() > 15
    assert entries.count() == tab.locator("div.citation:has(a.external)").count()


def test_pages_and_what_they_share_are_light(tab, address):
    """Catches a page over 1.5 MB, or scripts, styles and fonts over 2.5 MB."""
    asked = set()
    tab.on("request", lambda r: asked.add(urlsplit(r.url).path.lstrip("/")))
    panels = [page for page in PAGES if parsed(page).panels - {None}]
    assert len(panels) > 4
    for page in {*panels, *EACH_KIND}:
        tab.goto(address + page)
        tab.wait_for_load_state("networkidle")
    shared = [
        (site.HTML / name).stat().st_size
        for name in asked
        if re.search(r"\.(js|css|woff2?|svg)$", name) and "search-data" not in name
    ]
    assert len(shared) > 20
    assert sum(shared) < 2_500_000
    heavy = {}
    for page in PAGES:
        text = (site.HTML / page).read_text()
        pictures = set(re.findall(r'src="[^"]*(_images/[^"]+)"', text))
        data = "search-data.js" if page == "search.html" else f"previews/{page[:-5]}.js"
        own = [site.HTML / "_static" / data, *(site.HTML / p for p in pictures)]
        heavy[page] = len(text) + sum(p.stat().st_size for p in own if p.exists())
    assert {p: size for p, size in heavy.items() if size > 1_500_000} == {}


def test_no_icon_is_an_empty_box():
    """Catches an icon that the theme shows and that its fonts were cut without."""
    static = site.HTML / "_static"
    sheet = (static / "styles" / "pydata-sphinx-theme.css").read_text()
    shown = {ord(icon) for icon in re.findall("[\ue000-\uf8ff]", sheet)}
    fonts = [TTFont(path).getBestCmap() for path in static.rglob("fa-*.woff")]
    assert shown and shown <= {code for cmap in fonts for code in cmap or {}}


def test_there_is_one_search_field(tab, address):
    """Catches the second search bar that a newer base theme brings along."""
    tab.goto(address + "nbs/index.html")
    shown = [
        e
        for e in tab.locator("input[type=search], .search-button-field").all()
        if e.is_visible()
    ]
    assert len(shown) == 1


def test_dark_mode_switches(tab, address):
    """Catches a theme switch without its script, and figures that stay white."""
    tab.goto(address + "nbs/index.html")
    colour = "() => getComputedStyle(document.body).backgroundColor"
    seen = {tab.evaluate(colour)}
    for _ in range(3):
        tab.locator("button.theme-switch-button").first.click()
        seen.add(tab.evaluate(colour))
    assert len(seen) == 2


def test_dark_mode_turns_no_picture_over(chromium, address):
    """Catches digits black on white at night, curves that stay white, pale letters."""
    tab = chromium.new_page(color_scheme="dark")
    tab.goto(address + "nbs/unet.html")
    looks = """() => [...document.querySelectorAll("figure img")].map(i => [
        i.classList.contains("as-is"), getComputedStyle(i).filter != "none",
        getComputedStyle(i).backgroundColor])"""
    clear, black = "rgba(0, 0, 0, 0)", "rgb(0, 0, 0)"
    assert sorted(tab.evaluate(looks)) == [[False, True, clear], [True, False, black]]
    tab.close()
