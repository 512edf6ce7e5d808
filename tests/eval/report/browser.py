"""A real browser for tests of pages: Chromium without a window, driven over a pipe by its own
protocol, so that nothing has to be installed beside it.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab. ``asked``: the addresses that it has asked for; ``complaints``: of its console."""

    def __init__(self, pipe_in: int, pipe_out: int) -> None:
        self._in, self._out = pipe_in, os.fdopen(pipe_out, "rb")
        self._number, self._session = 0, ""
        self._events: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, path: Path, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Load a file at this width, as a person with this preference sees it."""
        phone = width < 600
        metrics = dict(width=width, height=height, deviceScaleFactor=2 if phone else 1)
        self.call("Emulation.setDeviceMetricsOverride", mobile=phone, **metrics)
        scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._next()

    def value(self, expression: str) -> Any:
        """What the page's own JavaScript makes of ``expression``."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, whole: bool = False) -> bytes:
        """PNG of what is seen, or of the whole page."""
        return base64.b64decode(
            self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        )

    def _next(self) -> dict[str, Any]:
        text = b""
        while not text.endswith(b"\0"):
            if not (one := self._out.read(1)):
                raise RuntimeError("the browser is gone")
            text += one
        message = json.loads(text[:-1])
        self._events.append(message)
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"]))
        return message


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium; it ends with the block. Its pipes are its file descriptors 3 and 4."""
    assert PROGRAM is not None
    (to_it, write), (read, from_it) = os.pipe(), os.pipe()
    # The shell moves the ends to where they are expected; both are above 4 or stay where they are.
    move = f'exec 3<&{to_it} 4>&{from_it}; exec "$@"'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [PROGRAM, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        words += ["--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        words += ["--disable-background-networking", "--disable-dev-shm-usage"]
        process = subprocess.Popen(
            ["bash", "-c", move, "bash", *words],
            pass_fds=(to_it, from_it),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_it)
        os.close(from_it)
        tab = None
        try:
            tab = Browser(write, read)
            yield tab
        finally:
            process.terminate()
            process.wait(30)
            os.close(write)
            if tab is not None:
                tab._out.close()
