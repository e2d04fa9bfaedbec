"""A real browser for the tests that need one: Chromium or Chrome, headless, driven by playwright.

On Debian and Ubuntu: apt-get install chromium. Elsewhere an installed Chrome is found; CHROMIUM=/path names another."""

import contextlib
import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome",
         "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
ERRORS = ("error", "warning")


def executable():
    return os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


@contextlib.contextmanager
def browser():
    """Skips the test, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (it is in the test extra)")
    found = executable()
    if found is None:
        pytest.skip("no Chromium or Chrome found: apt-get install chromium, or set CHROMIUM to the program's path")
    with playwright.sync_playwright() as driver:
        # Chromium refuses to put itself into a sandbox as root, as which containers run.
        window = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield window
        window.close()


class Tab:
    """One page, and all that went wrong on it or left it."""

    def __init__(self, window, **options):
        self.page = window.new_context(**options).new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda said: said.type in ERRORS and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, address):
        self.page.goto(address)
        return self.page
