"""A headless Chromium, driven over WebDriver with the standard library alone."""

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
BINARY = shutil.which("chromium") or shutil.which("google-chrome")
MISSING = [
    name
    for name, found in (("chromium", BINARY), ("chromedriver", shutil.which("chromedriver")))
    if found is None
]


class Browser:
    """One session."""

    def __init__(self, port: int, profile: str):
        self._root = f"http://127.0.0.1:{port}"
        wanted = {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {
                "binary": BINARY,
                "args": [*FLAGS, f"--user-data-dir={profile}"],
            },
        }
        answer = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._root += f"/session/{answer['sessionId']}"

    def open(self, page: Path, *, width: int, dark: bool = False, print_: bool = False) -> None:
        """Load a page at a width in CSS pixels."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        media = "print" if print_ else "screen"
        self.command("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._send("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """What a JavaScript function body returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": []})

    def messages(self) -> list[str]:
        """What the console has said since the last call."""
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        options = {"format": "png", "captureBeyondViewport": True}
        shot = self.command("Page.captureScreenshot", **options)
        path.write_bytes(base64.b64decode(shot["data"]))

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        body = {"cmd": name, "params": parameters}
        return self._send("POST", "/goog/cdp/execute", body)

    def close(self) -> None:
        """End the session, and its browser."""
        self._send("DELETE", "")

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, content, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:2_000]) from None


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            browser = Browser(_wait(port), profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
            driver.wait(timeout=30)


def _wait(port: int, seconds: float = 30.0) -> int:
    """The port, once somebody listens there."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return port
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
