"""A page in headless Chromium over its debugging pipe: what it asks for, complains about, measures and looks like."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--mute-audio",
         "--disable-component-update", "--disable-extensions", "--remote-debugging-pipe", "--hide-scrollbars")  # fmt: skip
PATIENCE = 60.0


class Browser:
    """One tab. `complaints` are console errors and exceptions, `requests` every address that was asked for."""

    def __init__(self):
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip(f"no browser is installed: none of {', '.join(NAMES)} is on PATH")
        self.profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        # The browser looks for its pipe at 3 and 4, which may be taken here.
        call = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", call, program, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(to_read, to_write), start_new_session=True, **quiet)
        os.close(to_read), os.close(to_write)
        self._rest, self._count, self._events, self._session = b"", 0, [], None
        self.complaints, self.requests = [], []
        tabs = [t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.ask("Target.attachToTarget", targetId=tabs[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read), os.close(self._write)
        shutil.rmtree(self.profile, ignore_errors=True)

    def ask(self, method, **given):
        self._count += 1
        message = {"id": self._count, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        number = self._count
        answer = self._until(lambda m: m.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]

    def _until(self, wanted):
        end = time.monotonic() + PATIENCE
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
                assert ready, "the browser does not answer"
                self._rest += os.read(self._read, 1 << 20)
            line, _, self._rest = self._rest.partition(b"\0")
            message = json.loads(line)
            self._note(message)
            if wanted(message):
                return message

    def _note(self, message):
        method, given = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(given["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.complaints.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not given["request"]["url"].startswith(("data:", "blob:")):
            self.requests.append(given["request"]["url"])

    def open(self, path, *, width=1280, height=900, scheme="light", scripts=True):
        self.complaints.clear(), self.requests.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.ask("Page.navigate", url=Path(path).absolute().as_uri())
        self._until(lambda m: m.get("method") == "Page.loadEventFired")
        time.sleep(0.3)  # what scripts start after loading

    def value(self, expression):
        """Of an expression; a promise is waited for."""
        given = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        found = self.ask("Runtime.evaluate", **given)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path, *, top=0, height=None):
        """A PNG of the page, from `top` on."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {
            "x": 0,
            "y": top,
            "width": size["width"],
            "height": min(height or 1e9, size["height"] - top),
            "scale": 1,
        }
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(found["data"]))
