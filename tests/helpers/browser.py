"""Drives a headless Chromium by the DevTools protocol over a pipe: https://chromedevtools.github.io/devtools-protocol."""

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
FLAGS = (
    "--headless",
    "--no-sandbox",  # which a container's root has no use of
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class BrowserError(Exception):
    """Chromium refused a command, a script in the page failed, or what was waited for did not come."""


@dataclass(frozen=True)
class Reply:
    """What a request gets instead of the server's answer; status 0 is a connection that is refused."""

    status: int
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class Browser:
    """A Chromium that runs; made by `open_browser`. It reads commands on file descriptor 3 and answers on 4."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._commands, self._answers = process.stdin.fileno(), process.stdout.fileno()
        self._count = 0
        self._unread = b""
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Give a command, and give its result; events that come meanwhile go to the listeners. Raises BrowserError."""
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
        """Give a command without waiting for its result, and give its number."""
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
        self.listeners.append(page.hear)
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
            self.listeners.remove(page.hear)
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            readable, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            if not readable:
                raise BrowserError(f"chromium did not answer within {TIMEOUT_S:.0f} s")
            some = os.read(self._answers, 1 << 20)
            if not some:
                raise BrowserError("chromium ended")
            self._unread += some
        message, self._unread = self._unread.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer


class Page:
    """One tab: what a person does there, what is seen there, and what went wrong there."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []  # of scripts, and breaches of the page's Content-Security-Policy
        self.requests: list[dict[str, Any]] = []  # with "url", "method" and "headers"
        self._replies: list[Reply] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command for this tab. Raises BrowserError."""
        return self._browser.call(method, self._session, **parameters)

    def hear(self, event: dict[str, Any]) -> None:
        """Keep what an event of this tab tells."""
        if event.get("sessionId") != self._session:
            return
        method, told = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error" and told["entry"]["source"] != "network":
            self.errors.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"])
        elif method == "Fetch.requestPaused":
            self._answer(told["requestId"])

    def reply(self, pattern: str, replies: Sequence[Reply]) -> None:
        """Answer the next requests to addresses of a pattern with these; those after them reach the server."""
        self._replies = list(replies)
        self.call("Fetch.enable", patterns=[{"urlPattern": pattern}])

    def _answer(self, request: str) -> None:
        method, more = "continueRequest", dict[str, Any]()
        if self._replies:
            reply = self._replies.pop(0)
            if reply.status:
                body = base64.b64encode(json.dumps(reply.body).encode()).decode()
                headers = [{"name": name, "value": value} for name, value in reply.headers.items()]
                method = "fulfillRequest"
                more = {"responseCode": reply.status, "body": body, "responseHeaders": headers}
            else:
                method, more = "failRequest", {"errorReason": "ConnectionRefused"}
        self._browser.post(f"Fetch.{method}", self._session, requestId=request, **more)

    def run(self, script: str) -> Any:
        """Give the value of an expression in the page; a promise is awaited. Raises BrowserError."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(f"{script}: {result['exceptionDetails']['exception'].get('description')}")
        return result["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression in the page is true. Raises BrowserError with what is seen instead."""
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            with suppress(BrowserError):  # while the page is being exchanged
                if self.run(f"Boolean({script})"):
                    return
            time.sleep(0.02)
        raise BrowserError(f"{script} did not become true; seen: {self.run('document.body?.innerText')}")

    def text(self, selector: str) -> str:
        """Give the text of an element as it is seen; "" of a hidden one."""
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
        """Drag files from outside into the page, and let go."""
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
        """Give the tab a size in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def screenshot(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


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
