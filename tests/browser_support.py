"""The headless browser of the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from scripts.checks import browser_path

#: a browser that talks to nobody
_ARGUMENTS = (
    "--no-sandbox",  # it runs as root in CI, and loads our own pages only
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def launched(*arguments: str) -> Iterator[Browser]:
    """Chromium, with further arguments."""
    path = browser_path()
    assert path is not None, "no browser found; install chromium or set BROWSER_PATH"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*_ARGUMENTS, *arguments])
        yield browser
        browser.close()
