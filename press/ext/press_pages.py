"""A Sphinx extension: numbers by chapter, names of statements, tooltips of terms.

With the toctree's own numbering, chapter 9's theorem would print as "Theorem 3.1
(Theorem 3)". So that is off, `press_numbers` gives each chapter its own, and here
the n-th statement of chapter 9 becomes 9.n. Statements that have a name and no number
("Theorem 3 (Euclid)") print that name.
"""

import re
from unicodedata import lookup

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx_proof.nodes import NODE_TYPES, unenumerable_node


def number_by_chapter(app: Sphinx, env: BuildEnvironment) -> None:
    """Number figures, equations, exercises and statements 9.1, 9.2, ... in chapter 9.

    All kinds of statement share one counter.
    """
    for docname in env.found_docs:
        prefix = app.config.press_numbers.get(docname.removeprefix("nbs/"))
        kinds = env.toc_fignumbers.get(docname, {})
        shared = {i: n for k in NODE_TYPES for i, n in kinds.get(k, {}).items()}
        order = [i for i in _ids(env, docname) if i in shared]
        for kind, numbers in kinds.items():
            count = sorted(numbers, key=numbers.__getitem__)
            for position, name in enumerate(count, 1):
                if kind in NODE_TYPES:
                    position = order.index(name) + 1
                numbers[name] = (prefix, position) if prefix else (position,)


def _ids(env: BuildEnvironment, docname: str) -> list[str]:
    """The identifiers of a page's statements, in the order of the page."""
    tree = env.get_doctree(docname)
    kinds = tuple(NODE_TYPES.values())
    return [i for n in tree.findall(lambda n: isinstance(n, kinds)) for i in n["ids"]]


def name_statements(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Print "Theorem 3 (Euclid)", not "Theorem (Theorem 3 (Euclid))"."""
    for node in doctree.findall(unenumerable_node):
        title = node.next_node(nodes.title)
        text = title.astext().strip()
        if text.startswith("(") and text.endswith(")"):
            title.children = [nodes.Text(text[1:-1])]
        node["realtype"] = ""


SYMBOLS = {"le": "≤", "mid": "|", "cdot": "·", "nabla": "∇", "log": "log "}


def plain_math(tex: str) -> str:
    """The glossary's formulas as plain text, for a tooltip."""
    tex = re.sub(r"\\frac\{(.*?)\}\{(.*?)\}", r"\1/\2 ", tex)

    def symbol(command: re.Match) -> str:
        name = command[1]
        try:
            return SYMBOLS.get(name) or lookup(f"GREEK SMALL LETTER {name.upper()}")
        except KeyError:
            return name

    return re.sub(r"\\([a-zA-Z]+) ?", symbol, tex).translate({123: "", 125: ""})


def preview_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Let a link to a term show the glossary's definition under the pointer."""
    links = [
        link
        for link in doctree.findall(nodes.reference)
        if "#term-" in link.get("refuri", "")
        or link.get("refid", "").startswith("term-")
    ]
    if not links:
        return
    meaning = {}
    names = app.env.domains["std"].objects.items()
    for name in {place[0] for (kind, _), place in names if kind == "term"}:
        for term in app.env.get_doctree(name).findall(nodes.term):
            definition = term.parent.next_node(nodes.definition).deepcopy()
            for math in list(definition.findall(nodes.math)):
                math.parent.replace(math, nodes.Text(plain_math(math.astext())))
            meaning |= dict.fromkeys(term["ids"], definition.astext())
    for link in links:
        anchor = link.get("refid") or link["refuri"].partition("#")[2]
        link["reftitle"] = " ".join(meaning[anchor].split())


def link_words(app: Sphinx, doctree: nodes.document) -> None:
    """Let the first of each unmistakable word of a chapter lead to its meaning."""
    words = app.config.press_words
    if not (words and app.env.docname.startswith("nbs/") and _has_glossary(app)):
        return
    any_word = re.compile("|".join(rf"\b{re.escape(w)}\b" for w in words))
    linked: set[str] = set()
    for text in list(doctree.findall(nodes.Text)):
        found = any_word.search(text.replace("’", "'"))
        if not isinstance(text.parent, nodes.paragraph) or not found:
            continue
        if found[0] in linked or text.parent.parent.tagname in ("caption", "entry"):
            continue
        if "sd-card-text" in text.parent["classes"]:  # the card is a link already
            continue
        linked.add(found[0])
        start, end = found.span()
        link = addnodes.pending_xref(
            "",
            nodes.inline(text[start:end], text[start:end]),
            refdoc=app.env.docname,
            refdomain="std",
            reftype="term",
            reftarget=found[0],
            refexplicit=False,
            refwarn=True,
        )
        pieces = [nodes.Text(text[:start]), link, nodes.Text(text[end:])]
        text.parent.replace(text, [p for p in pieces if p.astext()])


def _has_glossary(app: Sphinx) -> bool:
    """A chapter that is built alone has none."""
    return "glossary" in app.env.found_docs


OPENS = re.compile(r"(?:[✗✓]\s|[(\[“‘])+$")
CLOSES = re.compile(r"[.,;:!?)\]”’…]+|[-–]\w+[.,;:!?)\]]*")


def keep_together(app: Sphinx, doctree: nodes.document) -> None:
    """Keep a formula on one line with the punctuation that touches it.

    MathJax makes a box of a formula, and a line may break before and after a box.
    """
    for math in list(doctree.findall(nodes.math)):
        parent, i = math.parent, math.parent.index(math)
        before = parent[i - 1] if i else None
        after = parent[i + 1] if i + 1 < len(parent) else None
        opens = OPENS.search(before) if isinstance(before, nodes.Text) else None
        closes = CLOSES.match(after) if isinstance(after, nodes.Text) else None
        if not (opens or closes):
            continue
        touching = [math]
        if opens:  # by place: `replace` takes the first text that reads the same
            parent[i - 1] = nodes.Text(before[: opens.start()])
            touching.insert(0, nodes.Text(opens[0]))
        if closes:
            parent[i + 1] = nodes.Text(after[closes.end() :])
            touching.append(nodes.Text(closes[0]))
        parent[i] = nodes.inline("", "", *touching, classes=["together"])


GAP = re.compile(
    r"(?<=\d) (?=%|×|(?:s|h|min|MB|GB)\b)|(?<=\d ×) (?=\d)"  # 95 %, 28 × 28, 5 s
    r"|(?<=^\w\w) (?=·)|(?<=^\w\w\w) (?=·)"  # 09 · Gaussian paths
    r"|(?<=Theorem) (?=\d)|(?<=[✓✗]) "
)
VERBATIM = (nodes.math, nodes.FixedTextElement)
SHORT = 24  # characters of code that fit any line


class KeepNumbers(SphinxTransform):
    """Keep a number on one line with what it counts, and short code in one piece."""

    default_priority = 800  # before the titles are taken for links, at 850

    def apply(self) -> None:
        for text in list(self.document.findall(nodes.Text)):
            if isinstance(text.parent, nodes.literal):
                if len(text) <= SHORT:
                    text.parent["classes"].append("together")
            elif not isinstance(text.parent, VERBATIM):
                kept = GAP.sub(lambda gap: gap[0].replace(" ", "\u00a0"), text)
                text.parent.replace(text, nodes.Text(kept))


def keep_references(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Keep the text of a link, "Theorem 3.2" or "Fig. 3.2", on one line."""
    for link in doctree.findall(nodes.reference):
        for text in list(link.findall(nodes.Text)):
            kept = re.sub(r"^([A-Z]\w+\.?) (?=[\d(])", "\\1\u00a0", text)
            text.parent.replace(text, nodes.Text(kept))


LONG = 24  # letters of a formula that may be wider than a phone
STUB = 4  # letters at least that stand on a line by themselves
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\approx", r"\to"}
OPEN, CLOSE = {"{", r"\left", r"\begin"}, {"}", r"\right", r"\end"}


def split_formula(tex: str) -> list[str]:
    """Cut a long inline formula after its outer relations, where TeX would break it.

    MathJax never breaks one: what is wider than a phone would be cut off.
    """
    tokens = re.findall(r"\\[a-zA-Z]+|\\.|.", tex, re.DOTALL)
    left = sum(map(_seen, tokens))
    if left <= LONG or r"\displaystyle" in tokens:
        return [tex]
    pieces, size, depth = [""], 0, 0
    for token in tokens:
        depth += (token in OPEN) - (token in CLOSE)
        pieces[-1] += token
        size, left = size + _seen(token), left - _seen(token)
        if token in RELATIONS and depth == 0 and min(size - 1, left) >= STUB:
            pieces[-1] += "{}"  # which keeps the space after the relation
            pieces.append("")
            size = 0
    return pieces


def _seen(token: str) -> bool:
    return bool(token.strip("{}^_ \n")) and token not in (r"\,", r"\;", r"\!")


def break_formulas(app: Sphinx, doctree: nodes.document) -> None:
    """Let long formulas in the text break after =, ≤ and their like."""
    for math in list(doctree.findall(nodes.math)):
        pieces = split_formula(math.astext())
        if len(pieces) > 1 and not isinstance(math.parent, nodes.title):
            i = math.parent.index(math)
            math.parent[i : i + 1] = [nodes.math(p, p) for p in pieces]


CODE = re.compile(r'(?<!\S)--[a-z][a-z-]*|(?<![\[\w])"[\w-]+(?:\.\w+)*"(?!\w)')


def plain_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code` and *stress*; (B, *D) is no markup.

    A "value" and an --option are code: else they get curly quotes and a dash.
    """
    parts = "\n".join(lines).split("`")
    parts[::2] = [
        re.sub(r"(?<!\w)\*(?!\w+\*)|[|\\]|_\b", r"\\\g<0>", part) for part in parts[::2]
    ]
    parts[::2] = [CODE.sub(r"``\g<0>``", part) for part in parts[::2]]
    lines[:] = "``".join(parts).split("\n")


def no_signature(app, what, name, obj, options, signature, returns) -> tuple | None:
    """A protocol is not called: (*args, **kwargs) would say nothing."""
    return ("", None) if getattr(obj, "_is_protocol", False) else None


def setup(app: Sphinx) -> dict:
    for name in ("press_proofs", "press_folds", "press_finish"):
        app.setup_extension(name)
    app.add_config_value("press_numbers", {}, "env")
    app.add_config_value("press_words", [], "env")
    app.connect("env-check-consistency", number_by_chapter)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("autodoc-process-signature", no_signature)
    app.add_transform(KeepNumbers)
    app.connect("doctree-read", link_words)
    app.connect("doctree-read", break_formulas, priority=550)
    app.connect("doctree-read", keep_together, priority=600)
    app.connect("doctree-resolved", name_statements)
    app.connect("doctree-resolved", preview_terms)
    app.connect("doctree-resolved", keep_references)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
