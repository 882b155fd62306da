"""A real browser without a window, spoken to by the WebDriver protocol."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localprocess import LocalProcess, eventually, free_ports, need

#: Seconds for one command; loading a page is one.
PATIENCE = 90


class Browser:
    """Chromium. `close` ends it; the processes are those of `start`."""

    def __init__(self, start: Callable[..., LocalProcess], folder: Path) -> None:
        driver = need(shutil.which("chromedriver"), "chromedriver", "chromium-driver")
        [port] = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        start(driver, f"--port={port}", env={"HOME": str(folder)}, name="chromedriver")
        eventually(self._is_up, PATIENCE)
        options = {
            "args": [
                *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"),
                # Wide enough for whole names.
                "--window-size=1600,1200",
                # It fetches nothing but what it is asked for.
                *("--disable-gpu", "--disable-background-networking", "--no-first-run"),
                *("--disable-component-update", "--proxy-server=direct://"),
                f"--user-data-dir={folder / 'profile'}",
            ]
        }
        wanted = {"alwaysMatch": {"goog:chromeOptions": options}}
        session = self._ask("POST", "/session", {"capabilities": wanted})
        self._url += f"/session/{session['sessionId']}"

    def text_of(self, url: str) -> str:
        """What a person can read on this page: hidden parts are not in it."""
        self._ask("POST", "/url", {"url": url})
        script = "return document.title + '\\n' + document.body.innerText"
        return str(self._ask("POST", "/execute/sync", {"script": script, "args": []}))

    def click(self, selector: str) -> None:
        """Click what this CSS selector finds, at once: a page may replace its parts."""
        script = "document.querySelector(arguments[0]).click()"
        self._ask("POST", "/execute/sync", {"script": script, "args": [selector]})

    @property
    def url(self) -> str:
        return str(self._ask("GET", "/url"))

    def close(self) -> None:
        self._ask("DELETE", "")

    def _is_up(self) -> bool:
        try:
            return bool(self._ask("GET", "/status")["ready"])
        except OSError:
            return False

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=PATIENCE) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as exc:
            with exc:
                raise AssertionError(exc.read().decode()) from None
