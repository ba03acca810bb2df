"""The page of common slips covers all of them, and runs what can be run."""

import re

from press.notebooks import NBS, read

FORM_ONLY = {4, 9, 15, 41, 42, 43, 44}
NEVER_RUN = {12, 13, 17, 22, 23, 27, 39} | FORM_ONLY  # a definition or a wording


def page():
    cells = read(NBS / "slips.ipynb").cells
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    code = "\n".join(c.source for c in cells if c.cell_type == "code")
    return prose, code


def test_every_slip_has_an_entry():
    """Catches an entry lost in an edit."""
    heads = re.findall(r"\*\*(E\d[^*]*)\*\*", page()[0])
    found = {int(n) for head in heads for n in re.findall(r"E(\d+)", head)}
    assert found == set(range(1, 45))


def test_what_can_run_is_rejected_by_name():
    """Catches a slip that is told and no longer run."""
    run = {int(n) for n in re.findall(r"E(\d+)", page()[1])}
    assert set(range(1, 45)) - run <= NEVER_RUN
