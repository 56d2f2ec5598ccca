"""Debian's Chromium for tests of the page: who visits, what must never happen meanwhile, and pictures for people."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Served

CHROMIUM = shutil.which("chromium")


class Visitor:
    """A person's page, and everything that went wrong on it."""

    def __init__(self, context: Any, served: Served, who: str):
        self.served, self.context, self.page = served, context, context.new_page()
        self.errors: list[str] = []  # scripts that failed, and what the policy refused
        self.outside: list[str] = []  # requests to anywhere else
        self.dialogs: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(f"error: {error}"))
        self.page.on("console", self._heard)
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        context.on("request", self._requested)
        self.page.goto(f"{served.url}/?token={served.tokens[who]}")
        self.page.wait_for_selector("main#main")

    def _heard(self, message: Any) -> None:
        # a status of 4xx or a lost line is written to the console too, and is what some tests are about
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(f"console: {message.text}")

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((self.served.url + "/", "data:", "blob:")):
            self.outside.append(request.url)

    def go(self, view: str) -> None:
        self.page.goto(f"{self.served.url}/#{view}")

    def box(self) -> Any:
        return self.page.locator(".composer textarea")

    def ask(self, text: str) -> None:
        """Write a message and send it by Enter."""
        self.box().fill(text)
        self.box().press("Enter")

    def long_answers(self, max_tokens: int = 1500) -> None:
        """Set how answers are written, as the page keeps it: greedily these models go round in circles for very long."""
        self.page.evaluate(
            "(s) => localStorage.setItem('fledge.sampling', s)", f'{{"max_tokens": {max_tokens}, "temperature": 0}}'
        )
        self.page.reload()
        self.page.wait_for_selector("main#main")

    def snap(self, name: str) -> None:
        """A picture into $FLEDGE_SCREENSHOTS, where that is set."""
        folder = os.environ.get("FLEDGE_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.wait_for_timeout(300)  # bars and panels have settled
            self.page.screenshot(path=f"{folder}/{name}.png")

    def fits(self) -> bool:
        """Nothing is wider than the window."""
        wide = (
            "() => [document.documentElement, document.querySelector('main')].map((e) => e.scrollWidth - e.clientWidth)"
        )
        return max(self.page.evaluate(wide)) <= 0

    def check(self) -> None:
        assert (self.errors, self.outside, self.dialogs) == ([], [], [])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for one module: while it is open, this thread cannot run an event loop of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Visitor]]:
    """visit(who="owner", **context) -> Visitor, signed in; at the end nothing may have gone wrong on any page."""
    visitors: list[Visitor] = []

    def visiting(who: str = "owner", **settings: Any) -> Visitor:
        chosen = {"viewport": {"width": 1280, "height": 820}, "locale": "en-US", **settings}
        context = browser.new_context(**chosen)
        context.set_default_timeout(15000)
        visitors.append(Visitor(context, served, who))
        return visitors[-1]

    yield visiting
    for visitor in visitors:
        visitor.context.close()
    for visitor in visitors:
        visitor.check()
