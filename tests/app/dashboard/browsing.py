"""A headless Chromium, a service for it to visit, and a visit that notes whatever goes wrong."""

import os
import re
import shutil
from contextlib import contextmanager

import pytest

from app.db import get_database
from app.main import create_app
from tests.app.conftest import serving

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
)
_NOTE_VIOLATIONS = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (e) => console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`));
"""


@contextmanager
def chromium():
    """A browser; where there is none, the test is skipped, but in CI it fails."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no Chromium on this machine")
    # Imported here: while it runs, the library keeps an event loop that other tests should not meet.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def serving_dashboard(settings):
    """The service on a free port, without a dispatcher: jobs stand still unless a test moves them."""
    with serving(create_app(settings, dispatch=False)) as url:
        yield url
    get_database(settings.resolved_database_url).dispose()


class Visit:
    """One browser window.

    Args:
        browser: A started browser.
        origin: Where the service is.
        expected: Pattern of console messages that are no complaints.
        blocked: Pattern of addresses that cannot be reached.
        options: Of the window: size, colour scheme, scripts on or off.

    Attributes:
        complaints: Errors and warnings of the console, uncaught exceptions, violations of the policy.
        requests: Addresses that were asked for.
    """

    def __init__(self, browser, origin, *, expected="(?!)", blocked=None, **options):
        self.complaints = []
        self.requests = []
        self._origin = origin
        self._expected = re.compile(expected)
        self._context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        self._context.set_default_timeout(15_000)
        self.page = self._context.new_page()
        self.page.add_init_script(_NOTE_VIOLATIONS)
        if blocked is not None:
            self.page.route(blocked, lambda route: route.abort())
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._ask)

    def open(self, path):
        """The page at a path of the service, or at a full address."""
        self.page.goto(self._origin + path if path.startswith("/") else path)
        return self.page

    def close(self):
        self._context.close()

    def _note(self, message):
        if message.type in ("error", "warning", "assert", "trace") and not self._expected.search(
            message.text
        ):
            self.complaints.append(f"{message.type}: {message.text}")

    def _ask(self, request):
        if not request.url.startswith(("data:", "blob:")):
            self.requests.append(request.url)
