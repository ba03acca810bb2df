"""What a check refuses, what a rejection refuses, and what both leave on the page."""

import contextlib
import html
import io
import math
import sys
from dataclasses import FrozenInstanceError
from types import ModuleType

import pytest
import torch

from flowbook.checks import MIME, Check, check, max_abs, reject


def shown(verdict, residual, tolerance, claim="u = v"):
    """Run `check` or `reject` outside a notebook and return the line that it prints."""
    jupyter = {
        name: sys.modules.pop(name) for name in ("IPython",) if name in sys.modules
    }
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            verdict("thm-3", claim, residual, tolerance, because="rounding")
    finally:
        sys.modules.update(jupyter)
    return text.getvalue()


@pytest.mark.parametrize(
    "residual, expected",
    [
        (-2.5, 2.5),
        (3, 3.0),
        (torch.tensor([[1.0, -4.0], [0.5, 2.0]]), 4.0),
        (torch.tensor([1, -7]), 7.0),
        ([0.25, -0.5], 0.5),
        (torch.tensor([-math.inf, 1.0]), math.inf),
        (torch.tensor([1.0], requires_grad=True), 1.0),
        (torch.tensor([1.0, 2.0], dtype=torch.float64).numpy(), 2.0),
        (5j, 5.0),
        ([0.5, -5j], 5.0),
        (torch.tensor(5j), 5.0),
        (torch.tensor([1.0, 3 + 4j], dtype=torch.complex128).numpy(), 5.0),
        (torch.tensor(complex(2, 1e-60), dtype=torch.complex128), 2.0),
    ],
)
def test_largest_is_of_absolute_values(residual, expected):
    """Catches a sign kept, so that −4 is small; a minimum or a mean; a part alone."""
    value = max_abs(residual)
    assert type(value) is float and value == expected


def test_largest_is_float64():
    """Catches a residual rounded to float32 on the way, where 1e-60 is zero."""
    assert max_abs(1e-60) == 1e-60
    assert max_abs([1.0, 1 + 2**-52]) == 1 + 2**-52
    assert max_abs([0j, 1 + 2**-52]) == 1 + 2**-52


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_nan_is_the_largest(position):
    """Catches a maximum that passes over NaN, wherever it stands."""
    values = torch.tensor([1.0, 2.0, 3.0])
    values[position] = math.nan
    assert math.isnan(max_abs(values))


@pytest.mark.parametrize("residual", [[], torch.zeros(0, 3)])
def test_nothing_is_no_residual(residual):
    """Catches an empty comparison that passes."""
    with pytest.raises(ValueError, match="empty residual checks nothing"):
        check("thm-3", "u = v", residual, 1.0, because="rounding")


@pytest.mark.parametrize(
    "residual, tolerance, passes",
    [
        (0.0, 0.0, True),
        (1e-12, 1e-12, True),
        (-1e-12, 1e-12, True),
        (math.nextafter(1e-12, 1), 1e-12, False),
        (-2e-12, 1e-12, False),
        (torch.tensor([0.0, 0.0, 2e-12]), 1e-12, False),
        (math.nan, 1.0, False),
        (torch.tensor([0.0, math.nan]), 1.0, False),
        (math.inf, 1.0, False),
        (0.0, math.inf, False),
        (math.inf, math.inf, False),
        (0.0, math.nan, False),
        (0.0, -1e-12, False),
        (0.5, torch.tensor(1.0), True),
    ],
)
def test_check_passes_within_its_tolerance_only(residual, tolerance, passes):
    """Catches < for ≤, `not >`, which NaN passes, a tolerance that allows all."""
    if passes:
        assert shown(check, residual, tolerance)
    else:
        with pytest.raises(
            AssertionError, match=r"thm-3: u = v: residual .* not within"
        ):
            shown(check, residual, tolerance)


@pytest.mark.parametrize(
    "residual, tolerance, passes",
    [
        (2e-12, 1e-12, True),
        (-2e-12, 1e-12, True),
        (torch.tensor([0.0, 2e-12]), 1e-12, True),
        (math.inf, 1e-12, True),
        (1.0, 0.0, True),
        (0.0, 0.0, False),
        (1e-12, 1e-12, False),
        (math.nan, 1.0, False),
        (math.inf, math.inf, False),
        (1.0, math.nan, False),
        (1.0, -1.0, False),
    ],
)
def test_reject_wants_the_check_to_fail(residual, tolerance, passes):
    """Catches ≥ for >, a NaN that counts as refused, a tolerance that nothing
    passes.
    """
    if passes:
        assert shown(reject, residual, tolerance)
    else:
        with pytest.raises(AssertionError, match="wrong on purpose, and not rejected"):
            shown(reject, residual, tolerance)


@pytest.mark.parametrize("tolerance", [0.0, 1e-12, 1.0])
@pytest.mark.parametrize("residual", [0.0, 1e-12, 1e-3, 1.0, 5.0])
def test_one_residual_is_checked_or_rejected_never_both(residual, tolerance):
    """Catches two thresholds that differ."""
    passed = []
    for verdict in (check, reject):
        with contextlib.suppress(AssertionError):
            passed.append(shown(verdict, residual, tolerance))
    assert len(passed) == 1


def test_a_refusal_names_what_was_compared():
    """Catches a message without the numbers or the reason."""
    message = r"thm-3: u = v: residual 0.125 is not within the tolerance 0.001 \(roundi"
    with pytest.raises(AssertionError, match=message):
        shown(check, 0.125, 1e-3)
    message = "not rejected: residual 0.001 is not above 0.125"
    with pytest.raises(AssertionError, match=message):
        shown(reject, 1e-3, 0.125)


def test_the_line_on_the_page():
    """Catches a relation turned round, numbers swapped, one mark for both."""
    line = "✓ checked: u = v — residual 1.23e-13 ≤ 1e-12 (rounding)\n"
    assert shown(check, 1.23e-13, 1e-12) == line
    line = "✗ rejected, as it must be: u = v — residual 0.5 > 1e-12 (rounding)\n"
    assert shown(reject, 0.5, 1e-12) == line


def test_the_record_for_the_ledger():
    """Catches a field lost or in another's place, a claim that breaks the HTML."""
    result = Check("thm-3", "a < b & c", 0.5, 1.0, "rounding", rejected=True)
    bundle = result._repr_mimebundle_()
    assert bundle[MIME] == {
        "statement": "thm-3",
        "claim": "a < b & c",
        "residual": 0.5,
        "tolerance": 1.0,
        "because": "rounding",
        "rejected": True,
    }
    inner = html.escape(bundle["text/plain"])
    assert "&lt; b &amp; c" in inner
    assert bundle["text/html"] == f'<p class="check rejected">{inner}</p>'
    passed = Check("thm-3", "u = v", 0.5, 1.0, "rounding")._repr_mimebundle_()
    assert '<p class="check passed">' in passed["text/html"]
    assert passed[MIME]["rejected"] is False
    with pytest.raises(FrozenInstanceError):
        result.residual = 0.0


@pytest.mark.parametrize("verdict, residual", [(check, -0.5), (reject, 2.0)])
def test_a_notebook_gets_the_record(verdict, residual):
    """Catches a check that a notebook shows as text only, and the ledger never sees."""
    names = ("IPython", "IPython.display")
    real = {name: sys.modules.get(name) for name in names}
    records = []
    stand_in = ModuleType("IPython.display")
    stand_in.display = records.append
    try:
        sys.modules.update(zip(names, (ModuleType("IPython"), stand_in), strict=True))
        verdict("thm-3", "u = v", residual, 1.0, because="rounding")
    finally:
        for name, module in real.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    rejected = verdict is reject
    size = abs(residual)
    assert records == [Check("thm-3", "u = v", size, 1.0, "rounding", rejected)]
