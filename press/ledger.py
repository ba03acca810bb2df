"""The proof ledger: each numbered statement, its hypotheses, and what was measured."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nbformat import NotebookNode

MIME = "application/vnd.proof-ledger.check+json"
BLOCK = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{prf:(?P<kind>\w+)\}(?P<title>[^\n]*)\n"
    r"(?P<body>.*?)^(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
CLAIMS = {"theorem", "lemma", "proposition", "corollary"}


@dataclass(frozen=True)
class Statement:
    """A `prf:` block: what it says, what it supposes, and why it has no check."""

    page: str
    kind: str
    title: str
    label: str
    hypotheses: str
    no_check: str
    proved: bool = False  # a proof follows it, at #proof-<label>


def statements(page: str, markdown: str) -> Iterator[Statement]:
    """Yield the theorems, lemmas, propositions and corollaries in a page's text."""
    blocks = list(BLOCK.finditer(markdown))
    later = [b["kind"] for b in blocks if b["kind"] in {*CLAIMS, "proof"}] + [""]
    for found in blocks:
        if found["kind"] in {*CLAIMS, "proof"}:
            later.pop(0)
        if found["kind"] not in CLAIMS:
            continue
        body = found["body"]
        label = re.search(r"^:label: *(\S+)", body, re.MULTILINE)
        if not label:
            raise ValueError(f"{page}: a {found['kind']} without a label:\n{body}")
        hypotheses = re.search(
            r"\*\*Hypotheses\.?\*\*\.?(.*?)(?:\n\s*\n|\Z)", body, re.S
        )
        reason = re.search(r"^% no check: *(.+)$", body, re.MULTILINE)
        yield Statement(
            page,
            found["kind"],
            found["title"].strip(),
            label[1],
            " ".join(hypotheses[1].split()) if hypotheses else "",
            reason[1] if reason else "",
            later[0] == "proof",
        )


def checks(page: str, nb: NotebookNode) -> Iterator[dict]:
    """Yield what the `check` and `reject` calls of an executed notebook recorded."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            record = output.get("data", {}).get(MIME)
            if record:
                yield {"page": page, **record}


def gaps(found: list[Statement], recorded: list[dict]) -> list[str]:
    """Say which statements lack a check or hypotheses, which checks a statement."""
    labels = {s.label for s in found}
    checked = {c["statement"] for c in recorded if not c["rejected"]}
    lines = [
        f"{s.page}: {s.kind} {s.label} has no check and does not say why"
        for s in found
        if s.label not in checked and not s.no_check
    ]
    lines += [
        f"{s.page}: {s.kind} {s.label} does not state its hypotheses"
        for s in found
        if not s.hypotheses
    ]
    return lines + [
        f"a check names {c['statement']!r}, no numbered statement: {c['claim']}"
        for c in recorded
        if c["statement"] not in labels and not c["statement"].startswith(FREE)
    ]


FREE = ("ch-", "def-", "eq-", "code-", "rem-", "ex-", "alg-", "asm-")


def page(found: list[Statement], recorded: list[dict], titles: dict[str, str]) -> str:
    """The ledger as MyST markdown; `titles` gives each page's, in the book's order."""
    wrong = sum(c["rejected"] for c in recorded)
    lines = [
        "(ledger)=",
        "# Proof ledger",
        "",
        f"Every numbered statement of the book, what it supposes, and what this build "
        f"measured: {len(found)} statements, {len(recorded) - wrong} checks, and "
        f"{wrong} formulas that are wrong on purpose and were rejected. The residuals "
        "come from the run that made these pages. A bar shows the residual against its "
        "tolerance (the line in the middle) in powers of ten: a check has to end left "
        "of the line, a formula that is wrong on purpose right of it.",
        "",
    ]
    labels = {s.label for s in found}
    for page_name, heading in titles.items():
        here = [s for s in found if s.page == page_name]
        others = [
            c
            for c in recorded
            if c["page"] == page_name and c["statement"] not in labels
        ]
        if here or others:
            lines += [f"## {heading}", ""]
        for s in here:
            lines += [
                f"### {s.title or s.kind.capitalize()}",
                "",
                f"{_link(s)} · *Hypotheses.* {s.hypotheses}",
                "",
            ]
            rows = [c for c in recorded if c["statement"] == s.label]
            if s.no_check:
                lines += [f"*No check:* {s.no_check}", ""]
            if rows:
                lines += table(rows, s.page)
        if others:
            lines += ["### Code, definitions and exercises", ""]
            lines += table(others, page_name)
    return "\n".join(lines) + "\n"


def _link(s: Statement) -> str:
    """A link to the statement and its proof; the paper's three print their name."""
    link = f"{{prf:ref}}`{s.label}`"
    if s.label in ("thm-1", "thm-2", "thm-3"):
        link = f"{{prf:ref}}`{s.title} <{s.label}>`"
    if not s.proved:
        return link
    href = f"{s.page}.html#proof-{s.label}"
    return f'{link} (<a class="reference internal" href="{href}">proof</a>)'


def unbroken(said: str) -> str:
    """What a check says, as HTML: no line begins with a sign, %, —, or in 1e-12."""
    said = re.sub(r"\d[\d.]*e-\d+", r'<span class="together">\g<0></span>', said)
    numbers = r"(?<=[≤≥×=≈]) (?=[<\d])|(?<=&gt;) (?=[<\d])"
    return re.sub(rf"{numbers}| (?=[≤≥×=≈±%—−+]|&gt;)", "\u00a0", said)


DECADES = 6  # a bar reaches this many powers of ten to either side of the tolerance


def bar(residual: float, tolerance: float) -> str:
    """The residual against the tolerance, in powers of ten: a bar with words to it."""
    if residual == 0:
        power, words = -DECADES, "no residual at all"
    elif tolerance == 0:
        power, words = DECADES, "above a tolerance of zero"
    else:
        ratio = residual / tolerance
        power = max(-DECADES, min(DECADES, math.log10(ratio)))
        words = f"{ratio:.2g} of the tolerance"
    side = "right" if power > 0 else "left"
    width = f"{50 * abs(power) / DECADES:.1f}%"
    return (
        f'<span class="bar {side}" role="img" aria-label="{words}" title="{words}">'
        f'<span style="width:{width}"></span></span>'
    )


def _elsewhere(check: dict) -> str:
    return f" (in {{ref}}`{check['page'].rpartition('/')[2]}`)"


def table(rows: list[dict], home: str) -> list[str]:
    """Residuals against tolerances, a row a check, as a MyST list table.

    A check that another page than `home` makes of its statement leads there.
    """
    lines = [
        "```{list-table}",
        ":header-rows: 1",
        ":widths: 36 11 11 12 30",
        ":class: ledger",
        "",
        "* - What was compared",
        "  - Residual",
        "  - Tolerance",
        "  - Residual / tolerance",
        "  - Where the tolerance comes from",
    ]
    for c in rows:
        relation = "\\> " if c["rejected"] else "≤ "
        mark = "✗ " if c["rejected"] else "✓ "
        lines += [
            f"* - {mark}{unbroken(c['claim'])}"
            f"{'' if c['page'] == home else _elsewhere(c)}",
            f"  - {c['residual']:.3g}",
            f"  - {relation}{c['tolerance']:.3g}",
            f"  - {bar(c['residual'], c['tolerance'])}",
            f"  - {unbroken(c['because'])}",
        ]
    return [*lines, "```", ""]
