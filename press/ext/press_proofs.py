"""Proofs that fold: `<details>`, named after the statement they prove.

Each stands open in the page, so that it reads without a script and in print;
`reading.js` folds the long ones before they are drawn.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html import HTML5Translator
from sphinx_proof.nodes import NODE_TYPES, proof_node, unenumerable_node

LONG = 900  # characters: more than a phone's screen
STATEMENTS = (*NODE_TYPES.values(), unenumerable_node)
CLAIMS = {"theorem", "lemma", "proposition", "corollary"}


def name_proofs(app: Sphinx, doctree: nodes.document) -> None:
    """Give a proof the name of the claim above it: `proof-thm-2` for `thm-2`."""
    claim, taken = "", set()
    for node in doctree.findall(lambda n: isinstance(n, (*STATEMENTS, proof_node))):
        if not isinstance(node, proof_node):
            if CLAIMS & set(node["classes"]):
                claim = node["label"]
            continue
        name = f"proof-{claim}" if claim else "proof"
        while name in taken:
            name += "-more"
        taken.add(name)
        node["ids"] = [name]
        node["long"] = len(node.astext()) > LONG
        _strip_first_word(node)
        inner = node.children[0]
        node.children = inner.children
        for child in node.children:
            child.parent = node


def _strip_first_word(node: proof_node) -> None:
    """Take out the word that sphinx-proof puts first; the summary says it."""
    text = next(t for t in node.findall(nodes.Text))
    text.parent.replace(text, nodes.Text(text.removeprefix("Proof. ")))


def visit_proof(self: HTML5Translator, node: proof_node) -> None:
    kind = "fold long" if node.get("long") else "fold"
    self.body.append(f'<details class="{kind}" id="{node["ids"][0]}" open>')
    self.body.append("<summary>Proof</summary>")


def depart_proof(self: HTML5Translator, node: proof_node) -> None:
    self.body.append('<p class="qed" aria-hidden="true">∎</p></details>')


def setup(app: Sphinx) -> dict:
    app.setup_extension("sphinx_proof")
    app.add_node(proof_node, override=True, html=(visit_proof, depart_proof))
    app.connect("doctree-read", name_proofs)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
