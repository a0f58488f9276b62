"""A real headless Chromium, driven by the WebDriver protocol: plain HTTP to its own driver."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from tests.servers.ports import free_port, wait_for

__all__ = ["Browser", "is_there", "open_browser"]

_SECONDS = 120


def is_there() -> bool:
    """Whether a Chromium and its driver are installed."""
    return all(map(shutil.which, ("chromium", "chromedriver")))


class Browser:
    """A window of a browser."""

    def __init__(self, address: str) -> None:
        self._http = requests.Session()
        self._http.trust_env = False
        options = {
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            "binary": shutil.which("chromium"),
        }
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        self._base = address
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base = f"{address}/session/{made['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        sent = None if body is None else json.dumps(body)
        answer = self._http.request(method, self._base + path, data=sent, timeout=_SECONDS)
        value = answer.json()["value"]
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{value['error']}: {value['message']}")
        return value

    def open(self, path: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self._ask("POST", "/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page; return what it returns, once that is there."""
        body = {"script": script, "args": list(arguments)}
        return self._ask("POST", "/execute/sync", body)

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int) -> None:
        """Give the page a size in pixels."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def theme(self, name: str) -> None:
        """Prefer a theme: "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is; named as WebDriver has them."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self._ask("POST", "/actions", body)

    def click(self, selector: str) -> None:
        """Click an element, as a mouse does."""
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{next(iter(found.values()))}/click", {})

    def complaints(self) -> list[str]:
        """The messages in the console since the last look."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last look."""
        entries = self._ask("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def close(self) -> None:
        """Close the browser."""
        self._ask("DELETE", "")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser that is closed at the end, with its driver."""
    port = free_port()
    command = [str(shutil.which("chromedriver")), f"--port={port}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        try:
            assert wait_for(port), "chromedriver does not answer"
            browser = Browser(f"http://127.0.0.1:{port}")
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
