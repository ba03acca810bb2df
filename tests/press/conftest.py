"""What several tests of the press are given."""

import pytest

from press import browser

QUIET = ["--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def chromium():
    """A browser that asks for nothing by itself."""
    with browser.running(*QUIET) as running:
        yield running
