"""A real browser, driven by the Chrome DevTools Protocol over a pipe."""

import base64
import fcntl
import io
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager

import numpy as np
from PIL import Image

PROGRAM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
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
    "--remote-debugging-pipe",
)


class Page:
    """The one page of a browser, what it asked for, and what its scripts raised."""

    def __init__(self, to, answers):
        self._to, self._answers = to, answers
        self._number = 0
        self._session = {}
        self._events = []
        self.requests = []
        self.errors = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser is gone"
            text += byte
        answer = json.loads(text)
        if answer.get("method") == "Network.requestWillBeSent":
            self.requests.append(answer["params"]["request"]["url"])
        if answer.get("method") == "Runtime.exceptionThrown":
            self.errors.append(answer["params"]["exceptionDetails"])
        self._events.append(answer.get("method"))
        return answer

    def open(self, path, *, width, dark, script=True):
        """Load a file in a window of `width` pixels, with the reader's choice of theme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.scale = 2 if width < 600 else 1  # telephones have small pixels
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=self.scale,
            mobile=width < 600,
        )
        self._events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._next()

    def evaluate(self, expression):
        """The value of a JavaScript expression, as JSON can hold it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self):
        """All of the page as uint8 `[height, width, 3]`, `scale` pixels for one of CSS."""
        taken = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True, optimizeForSpeed=True
        )
        image = Image.open(io.BytesIO(base64.b64decode(taken["data"])))
        return np.asarray(image.convert("RGB"))


@contextmanager
def browser(*flags):
    """A `Page` of a browser of its own, with a fresh profile; `flags` are further ones of it."""
    read_calls, calls = os.pipe()
    answers, write_answers = os.pipe()

    def place():
        # The protocol's pipes are 3 and 4, which may be the numbers of others until then.
        taken = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_calls, write_answers)]
        os.dup2(taken[0], 3)
        os.dup2(taken[1], 4)

    with tempfile.TemporaryDirectory(
        prefix="rnnjit-browser-", ignore_cleanup_errors=True
    ) as profile:
        process = subprocess.Popen(
            [PROGRAM, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_calls)
        os.close(write_answers)
        with os.fdopen(calls, "wb") as to, os.fdopen(answers, "rb") as back:
            try:
                page = Page(to, back)
                yield page
                page.call("Browser.close")
            finally:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
