"""Headless Chromium, driven through its DevTools pipe: no port, no driver program, no package."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .requirements import lacking

_WAIT_S = 30.0


def chromium() -> str:
    """The browser, or the test is skipped."""
    found = shutil.which("chromium")
    if found is None:
        lacking("chromium", "no `chromium` on the path (Debian's package)")
    return found


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Callable[[str], Page]]:
    """A running browser; calling what is given opens a page at an address."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # The browser reads commands from descriptor 3 and writes to 4.
    command = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
    arguments = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
        *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--force-color-profile=srgb"),
        *(f"--user-data-dir={profile}", "--hide-scrollbars", "about:blank"),
    ]
    process = subprocess.Popen(
        ["/bin/bash", "-c", command, chromium(), *arguments],
        pass_fds=(to_browser[0], from_browser[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    pipe = _Pipe(from_browser[0], to_browser[1])
    try:
        yield lambda url: Page(pipe, url)
    finally:
        with contextlib.suppress(OSError):
            pipe.post("Browser.close", {}, None)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        pipe.close()


class _Pipe:
    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._number = 0
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def post(self, method: str, parameters: dict[str, Any], session: str | None) -> int:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        return self._number

    def call(self, method: str, parameters: dict[str, Any], session: str | None = None) -> Any:
        number = self.post(method, parameters, session)
        until = time.monotonic() + _WAIT_S
        while time.monotonic() < until:
            message = self._next(until)
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            if "method" in message:
                self.events.append(message)
        raise AssertionError(f"Chromium did not answer {method}")

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = max(0.0, until - time.monotonic())
            assert select.select([self._reading], [], [], left)[0], "Chromium is silent"
            more = os.read(self._reading, 1 << 16)
            assert more, "Chromium has gone"
            self._buffer += more
        whole, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(whole)
        return message

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


class Page:
    """One page. `log` holds what it wrote to the console and what the browser refused."""

    def __init__(self, pipe: _Pipe, url: str) -> None:
        self._pipe = pipe
        target = pipe.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = pipe.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.send(f"{domain}.enable")
        self.resize(1280, 900)
        self.send("Page.navigate", url=url)

    def send(self, method: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._pipe.call(method, parameters, self._session)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def dark(self, yes: bool) -> None:
        """Prefer a dark scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if yes else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression."""
        options = {"returnByValue": True, "awaitPromise": True}
        found = self.send("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = _WAIT_S) -> Any:
        """Wait until an expression is true; its value."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            value = self.run(f"document.body && ({expression})")
            if value:
                return value
            time.sleep(0.05)
        shown = self.run("document.body.innerText")
        raise AssertionError(f"never true: {expression}; the page shows: {shown}")

    def text(self, selector: str) -> str:
        """What an element shows."""
        shown: str = self.run(f"document.querySelector({json.dumps(selector)}).innerText")
        return shown

    def click(self, selector: str) -> None:
        """Click an element."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def choose_file(self, selector: str, path: Path) -> None:
        """Do what the file dialogue does."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def key(self, key: str, text: str = "") -> None:
        """Press a key where the focus is."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        facts = {"key": key, "windowsVirtualKeyCode": codes.get(key, 0)}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **facts)
        self.send("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        """Type text where the focus is."""
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> Path:
        """Write what the window shows as PNG."""
        path.write_bytes(
            base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        )
        return path

    @property
    def log(self) -> list[str]:
        """Console lines, exceptions, and refusals such as those of the content policy."""
        self.run("0")  # collects what has come in
        lines = []
        for event in self._pipe.events:
            given = event["params"]
            if event.get("sessionId") != self._session:
                continue
            if event["method"] == "Log.entryAdded":
                lines.append(given["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                lines.append(str(given["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                lines.append(str(given["args"]))
        return lines

    @property
    def requests(self) -> list[str]:
        """Addresses that the page has asked for."""
        self.run("0")
        return [
            event["params"]["request"]["url"]
            for event in self._pipe.events
            if event["method"] == "Network.requestWillBeSent"
            and event.get("sessionId") == self._session
        ]
