"""The built book, page by page, in a real browser: what a reader would stumble over."""

import re
import threading
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from playwright.sync_api import sync_playwright

from book import browser, site

pytestmark = pytest.mark.book

PAGES = sorted(
    str(p.relative_to(site.HTML))
    for p in site.HTML.rglob("*.html")
    if "_static" not in p.parts and p != site.HTML / "index.html"
)
TOOLS = {"genindex.html", "search.html"}
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 360, "height": 740}
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-sync"]

TEXT = """() => {
    const copy = document.querySelector("article").cloneNode(true);
    copy.querySelectorAll("pre, code, script, mjx-container").forEach(e => e.remove());
    return copy.textContent;
}"""
IMAGES = """() => [...document.querySelectorAll("article img")]
    .filter(i => !(i.complete && i.naturalWidth && i.alt.trim()))
    .map(i => i.src.slice(0, 90))"""
LINKS = "() => [...document.querySelectorAll('a[href]')].map(a => a.href)"
WIDTHS = "() => [document.documentElement.scrollWidth, window.innerWidth]"
SETTLED = """async () => {
    if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
    document.querySelectorAll("details").forEach(d => d.open = true);
    document.querySelectorAll("img").forEach(i => i.loading = "eager");
    await Promise.all([...document.images].map(i => i.decode().catch(() => {})));
}"""


@pytest.fixture(scope="module")
def address():
    server = site.server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=str(browser.find()), args=QUIET
        )
        yield running
        running.close()


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
    """Catches errors, other hosts, raw TeX and directives, no pictures, wide pages."""
    tab.goto(address + page)
    tab.evaluate(SETTLED)
    tab.wait_for_load_state("networkidle")
    assert tab.problems == []
    assert tab.locator("mjx-merror").count() == 0
    if page in TOOLS or tab.locator("article").count() == 0:
        return
    text = tab.evaluate(TEXT)
    raw = re.findall(
        r"\$\$|\\(?:frac|begin|sigma|mathbb|partial)\b|\{\w+:?\w*\}`", text
    )
    assert raw == [], "TeX or roles that were not rendered"
    assert "#|" not in tab.inner_text("article"), "a directive shows"
    assert tab.evaluate(IMAGES) == [], "pictures that are missing or have no alt text"
    tab.set_viewport_size(PHONE)
    tab.wait_for_timeout(100)
    content, window = tab.evaluate(WIDTHS)
    assert content <= window, "the page scrolls sideways on a phone"


def test_every_local_link_and_anchor_is_alive(tab, address):
    """Catches a chapter renamed, a label gone, a theorem moved to another page."""
    ids, links = {}, {}
    for page in PAGES:
        tab.goto(address + page, wait_until="domcontentloaded")
        ids[page] = set(
            tab.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
        )
        links[page] = tab.evaluate(LINKS)
    dead = []
    for page, hrefs in links.items():
        for href in set(hrefs):
            url, anchor = urldefrag(urljoin(address + page, href))
            if not url.startswith(address):
                continue
            target = unquote(url.removeprefix(address)) or "index.html"
            if target not in ids and not (site.HTML / target).exists():
                dead.append(f"{page} -> {target}")
            elif anchor and target in ids and unquote(anchor) not in ids[target]:
                dead.append(f"{page} -> {target}#{anchor}")
    assert dead == []


def test_search_finds_theorem_3(tab, address):
    """Catches a search index that does not load or does not know the theorems."""
    tab.goto(address + "search.html?q=Theorem+3")
    tab.wait_for_selector("#search-results li a")
    first = tab.locator("#search-results li a").first.inner_text()
    assert "Theorem 3" in first


def test_a_term_shows_its_definition(tab, address):
    """Catches a symbols' table without its glossary, and TeX in a tooltip."""
    tab.goto(address + "nbs/01_notation.html")
    links = tab.locator("a.reference[href*='#term-']").all()
    tips = [link.get_attribute("title") or "" for link in links]
    assert len(tips) > 5 and all(len(tip) > 20 for tip in tips)
    assert not any(set(tip) & set("\\${}") for tip in tips)


def test_pages_and_what_they_share_are_light(tab, address):
    """Catches a page over 1.5 MB, or scripts, styles and fonts over 2.5 MB."""
    sizes = {}
    tab.on("response", lambda r: sizes.__setitem__(r.url, len(r.body())))
    for page in PAGES:
        tab.goto(address + page)
        tab.wait_for_load_state("networkidle")
    local = {url.removeprefix(address): size for url, size in sizes.items()}
    shared = {
        name: size
        for name, size in local.items()
        if re.search(r"\.(js|css|woff2?|svg)(\?|$)", name)
    }
    assert sum(shared.values()) < 2_500_000
    heavy = {}
    for page in PAGES:
        text = (site.HTML / page).read_text()
        pictures = set(re.findall(r'src="[^"]*(_images/[^"]+)"', text))
        heavy[page] = len(text) + sum((site.HTML / p).stat().st_size for p in pictures)
    assert {p: size for p, size in heavy.items() if size > 1_500_000} == {}


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
