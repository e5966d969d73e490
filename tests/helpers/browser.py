"""Control of a headless Chromium by the DevTools protocol over a pipe: https://chromedevtools.github.io/devtools-protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
TIMEOUT_S = 20.0
CODES = {  # Windows virtual key codes by DOM names; of letters and digits it is that of the capital
    **{"Backspace": 8, "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "Delete": 46, "?": 191, "[": 219},
    **{"PageUp": 33, "PageDown": 34, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40},
}
FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium's sandbox does not start as root in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class BrowserError(Exception):
    """A command of Chromium's, a script in the page or a wait failed."""


@dataclass(frozen=True)
class FakeResponse:
    """A response in place of the server's; status 0 is a connection that is refused."""

    status: int
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class Browser:
    """A running Chromium, made by `open_browser`. It reads commands on file descriptor 3 and writes results on 4."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._commands, self._results = process.stdin.fileno(), process.stdout.fileno()
        self._count = 0
        self._unread = b""
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result; listeners get the events before it. Raises BrowserError."""
        number = self.post(method, session, **parameters)
        until = time.monotonic() + TIMEOUT_S
        while (message := self._read(until)).get("id") != number:
            if "error" in message:
                raise BrowserError(f"a command of a listener: {message['error']['message']}")
            for listener in self.listeners if "method" in message else ():
                listener(message)
        if "error" in message:
            raise BrowserError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result

    def post(self, method: str, session: str = "", **parameters: Any) -> int:
        """Send a command without waiting for its result, and return its number."""
        self._count += 1
        command: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        message = json.dumps(command | ({"sessionId": session} if session else {})).encode() + b"\0"
        while message:
            message = message[os.write(self._commands, message) :]
        return self._count

    @contextmanager
    def page(self, url: str, language: str = "en", width: int = 1200, height: int = 900) -> Iterator[Page]:
        """Open an address in a profile of its own, in a browser of that language, and wait until it is loaded."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        self.listeners.append(page.on_event)
        try:
            for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
                page.call(f"{domain}.enable")
            agent = self.call("Browser.getVersion")["userAgent"]
            page.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
            page.resize(width, height)
            page.call("Page.navigate", url=url)
            page.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")
            yield page
        finally:
            self.listeners.remove(page.on_event)
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            readable, _, _ = select.select([self._results], [], [], max(0.0, until - time.monotonic()))
            if not readable:
                raise BrowserError(f"chromium did not respond within {TIMEOUT_S:.0f} s")
            some = os.read(self._results, 1 << 20)
            if not some:
                raise BrowserError("chromium ended")
            self._unread += some
        message, self._unread = self._unread.split(b"\0", 1)
        result: dict[str, Any] = json.loads(message)
        return result


class Page:
    """One tab: input, what is shown, errors and requests."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []  # of scripts and of the page's Content-Security-Policy
        self.requests: list[dict[str, Any]] = []  # with "url", "method" and "headers"
        self._responses: list[FakeResponse] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command for this tab, and return its result. Raises BrowserError."""
        return self._browser.call(method, self._session, **parameters)

    def on_event(self, event: dict[str, Any]) -> None:
        """Record an event of this tab."""
        if event.get("sessionId") != self._session:
            return
        method, values = event["method"], event["params"]
        entry = values.get("entry", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(values["exceptionDetails"]))
        elif method == "Log.entryAdded" and entry["level"] == "error" and entry["source"] != "network":
            self.errors.append(entry["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(values["request"])
        elif method == "Fetch.requestPaused":
            self._respond(values["requestId"])

    def fake(self, pattern: str, responses: Sequence[FakeResponse]) -> None:
        """Send these responses to the next requests that match a pattern; later requests reach the server."""
        self._responses = list(responses)
        self.call("Fetch.enable", patterns=[{"urlPattern": pattern}])
        self.run("new Promise((done) => setTimeout(done, 100))")  # on a busy machine a request at once is let through

    def _respond(self, request: str) -> None:
        method, more = "continueRequest", dict[str, Any]()
        if self._responses:
            response = self._responses.pop(0)
            if response.status:
                body = base64.b64encode(json.dumps(response.body).encode()).decode()
                headers = [{"name": name, "value": value} for name, value in response.headers.items()]
                method = "fulfillRequest"
                more = {"responseCode": response.status, "body": body, "responseHeaders": headers}
            else:
                method, more = "failRequest", {"errorReason": "ConnectionRefused"}
        self._browser.post(f"Fetch.{method}", self._session, requestId=request, **more)

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page; a promise is awaited. Raises BrowserError."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(f"{script}: {result['exceptionDetails']['exception'].get('description')}")
        return result["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression in the page is true. Raises BrowserError with the page's text."""
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            with suppress(BrowserError):  # while the page is being exchanged
                if self.run(f"Boolean({script})"):
                    return
            time.sleep(0.02)
        raise BrowserError(f"{script} did not become true; the page shows: {self.run('document.body?.innerText')}")

    def text(self, selector: str) -> str:
        """Return the text of an element as it is shown; "" of a hidden one."""
        element = f"document.querySelector({json.dumps(selector)})"
        return str(self.run(f"{element}.checkVisibility() ? {element}.innerText : ''"))

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element."""
        where = self.run(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element.scrollIntoView({{block: "center"}});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1, buttons=1
            )

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Move the mouse, with its button down, or press or release it: mouseMoved, mousePressed, mouseReleased."""
        with_button = {"button": "left", "buttons": 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **{**with_button, **more})

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """Put fingers down, move or lift them: touchStart, touchMove, touchEnd."""
        fingers = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    def press(self, key: str, code: int, **more: Any) -> None:
        """Press and release a key: its DOM name and its Windows virtual key code."""
        down = "keyDown" if "text" in more else "rawKeyDown"
        for kind in (down, "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop(self, files: Sequence[Path], x: int = 100, y: int = 400) -> None:
        """Drag files into the page and drop them."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def paste(self, png: bytes) -> None:
        """Copy an image, as another program would, and press Ctrl+V."""
        self._browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        image = base64.b64encode(png).decode()
        self.run(
            f"""navigator.clipboard.write([new ClipboardItem({{"image/png": new Blob(
                [Uint8Array.from(atob("{image}"), (letter) => letter.charCodeAt(0))], {{type: "image/png"}})}})])"""
        )
        self.press("v", 86, modifiers=2, commands=["paste"])

    def resize(self, width: int, height: int) -> None:
        """Set the size of the tab in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def screenshot(self, path: Path) -> None:
        """Write what is shown as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def press(page: Page, *keys: str, **more: Any) -> None:
    """Press keys, each by its DOM name."""
    for key in keys:
        printed = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        page.press(key, CODES.get(key, ord(key[0].upper())), **printed, **more)


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start Chromium with an empty profile in a folder, and end it."""
    # The shell turns the descriptors that subprocess can give, 0 and 1, into those that Chromium wants.
    command = ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh", CHROMIUM, *FLAGS]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={folder}", "about:blank"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    try:
        browser = Browser(process)
        yield browser
        browser.call("Browser.close")
    finally:
        process.terminate()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
