"""A headless Chromium, the system's, driven by Playwright; tests that want one are skipped where either is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.patience import PATIENCE

WIDTHS = (1000, 400)
SCHEMES = ("light", "dark")
VIEWS = (
    *("cluster", "keys", "locks", "semaphores", "elections", "queues", "barriers", "services"),
    *("leases", "clients", "load"),
)


class Console:
    """The console's page, open in a browser.

    Attributes:
        page: Playwright's.
        complaints: what the browser has written to its console, and errors of the page's program.
    """

    def __init__(self, page: Any, endpoint: str) -> None:
        self.page = page
        self.endpoint = endpoint
        self.complaints: list[str] = []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, view: str) -> None:
        """Show a view, once it has its heading."""
        self.page.goto(f"http://{self.endpoint}/console#/{view}")
        title = view.partition("?")[0].capitalize()
        self.page.wait_for_selector(f"main h1:text-is('{title}')")

    def text(self) -> str:
        """All that the view shows."""
        return str(self.page.inner_text("main"))

    def wait_for(self, *parts: str) -> None:
        """Wait until the view shows all of these texts."""
        script = "parts => parts.every(part => document.querySelector('main').innerText.includes(part))"
        try:
            self.page.wait_for_function(script, arg=list(parts))
        except Exception as error:
            missing = [part for part in parts if part not in self.text()]
            raise AssertionError(f"not shown: {missing}; shown:\n{self.text()}") from error

    def current_in_sight(self) -> bool:
        """Whether all of the link of the present view is to be seen in the row of views."""
        script = """() => {
          const row = document.getElementById("nav").getBoundingClientRect();
          const link = document.querySelector("#nav [aria-current]").getBoundingClientRect();
          return link.left >= row.left && link.right <= row.right;
        }"""
        return bool(self.page.evaluate(script))

    def overflow(self) -> int:
        """How many pixels wider than the window, or than its frame, the page or the widest table is."""
        script = (
            "Math.max(...[document.documentElement, ...document.querySelectorAll('.sheet, .figures, .alarms')]"
            ".map(each => each.scrollWidth - each.clientWidth))"
        )
        return int(self.page.evaluate(script))


OpenConsole = Callable[..., Console]


@contextmanager
def browser() -> Iterator[OpenConsole]:
    """What opens the console of an endpoint in a window of its own: ``open(endpoint, width=1000, scheme="light")``."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make clients-install")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"], timeout=1000 * PATIENCE
        )

        def open_console(endpoint: str, width: int = 1000, scheme: str = "light", height: int = 760) -> Console:
            window = running.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            return Console(window.new_page(), endpoint)

        try:
            yield open_console
        finally:
            running.close()
