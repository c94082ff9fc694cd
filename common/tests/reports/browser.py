"""Chromium without a window, driven through two pipes, as its DevTools protocol says; no driver is installed for it.

python -m common.tests.reports.browser PAGE.html FOLDER     screenshots at each width, light and dark
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTHS, SCHEMES = (400, 800, 1280), ("light", "dark")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions")
PATIENCE = 60  # seconds for an answer

CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = "no chromium on PATH: apt-get install -y chromium (Debian)"


class Browser:
    """One page at a time."""

    def __init__(self, send: int, receive: int):
        self._send, self._receive, self._rest = send, receive, b""
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.requests: list[str] = []  # addresses that the page asked for, since it was opened
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network"):
            self._call(f"{domain}.enable")
        # The page must not run scripts of its own; what a test asks must run.
        self._call("Page.setBypassCSP", enabled=True)

    def open(self, path: Path) -> None:
        """Load a file, with its pictures."""
        self.requests = []
        self._call("Page.navigate", url=path.resolve().as_uri())
        self.ask("Promise.all([...document.images].map(image => image.decode().catch(() => null)))")

    def show(self, width: int, scheme: str) -> None:
        """Lay the page out for a screen of this many pixels, "light" or "dark"."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def ask(self, script: str) -> Any:
        """The value of an expression in JavaScript, or of its promise."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message(method)
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _next_message(self, method: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receive], [], [], max(0, end - time.monotonic()))
            data = os.read(self._receive, 1 << 20) if ready else b""
            assert data, f"chromium did not answer {method}"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and end it."""
    assert CHROMIUM, MISSING
    # Chromium reads descriptor 3 and writes descriptor 4; ours stay above, so that neither closes the other.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for pipe in (os.pipe(), os.pipe()) for end in pipe]
    its_input, ours_out, ours_in, its_output = ends
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{its_input} 4>&{its_output}', "bash", *command],
            pass_fds=(its_input, its_output),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_input)
        os.close(its_output)
        try:
            yield Browser(ours_out, ours_in)
        finally:
            os.close(ours_out)  # which ends it
            os.close(ours_in)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main(page: Path, folder: Path) -> None:
    """Write FOLDER/NAME-WIDTH-SCHEME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        chromium.open(page)
        for width, scheme in itertools.product(WIDTHS, SCHEMES):
            chromium.show(width, scheme)
            target = folder / f"{page.stem}-{width}-{scheme}.png"
            target.write_bytes(chromium.screenshot())
            print(target)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
