"""An object store that fails as they do: a folder over HTTP with ranges, or a real server behind it, and a fault now and then."""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

KINDS = ("503", "reset", "truncated", "wrong", "slow", "hangs", "gone")
Faults = Callable[[str, int], str | None]  # path and how often it was asked for -> one of KINDS, or None


class FlakyStorage:
    """Use as a context; `url` is what a client is given.

    Args:
        origin: a folder, or host:port of the server to ask.
        faults: what happens to a request for the content of a file.
        delay: seconds that a slow answer takes, and after which one that hangs is given up.
    """

    def __init__(self, origin: Path | str, *, faults: Faults = lambda path, nth: None, delay: float = 0.05):
        self.origin, self.faults, self.delay = origin, faults, delay
        self.asked: Counter[str] = Counter()  # requests by path
        self.failed: Counter[str] = Counter()  # faults by kind
        self.is_over = threading.Event()
        self._lock = threading.Lock()
        storage = self

        class Handler(_Handler):
            owner = storage

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients that were reset do not stay for the answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FlakyStorage:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()

    def fault(self, path: str) -> str | None:
        with self._lock:
            nth = self.asked[path]
            self.asked[path] += 1
            kind = self.faults(path, nth)
            if kind is not None:
                self.failed[kind] += 1
        return kind


class _Handler(BaseHTTPRequestHandler):
    owner: FlakyStorage
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        is_file = path.endswith((".tar", ".json"))
        kind = self.owner.fault(path) if is_file and self.command == "GET" else None
        if kind == "503":
            self._send(503, b"<Error><Code>SlowDown</Code></Error>", {"Content-Type": "application/xml"})
        elif kind == "gone":
            text = b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"
            self._send(404, text, {"Content-Type": "application/xml"})
        elif kind == "reset":
            self._reset()
        else:
            if kind in ("slow", "hangs"):
                self.owner.is_over.wait(self.owner.delay * (100 if kind == "hangs" else 1))
            status, headers, body = self._answer()
            if kind == "wrong" and body:
                at = len(body) // 2
                body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
            self._send(status, body, headers, cut=kind == "truncated")

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        return self._of_folder() if isinstance(self.owner.origin, Path) else self._of_server()

    def _of_folder(self) -> tuple[int, dict[str, str], bytes]:
        path = self.owner.origin / unquote(self.path.split("?")[0]).strip("/")
        if path.is_dir():
            links = "".join(f'<a href="{entry.name}">{entry.name}</a>\n' for entry in sorted(path.iterdir()))
            return 200, {"Content-Type": "text/html"}, links.encode()
        if not path.is_file():
            return 404, {}, b""
        body = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return 200, {"Content-Length": str(len(body)), "Accept-Ranges": "bytes"}, body
        start, end = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
        headers = {"Content-Range": f"bytes {start}-{end}/{len(body)}", "Content-Length": str(end + 1 - start)}
        return 206, headers, body[start : end + 1]

    def _of_server(self) -> tuple[int, dict[str, str], bytes]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(str(self.owner.origin), timeout=30)
        try:
            connection.request(self.command, self.path, body or None, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            skipped = ("transfer-encoding", "connection", "date", "server")
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in skipped}
            return answer.status, headers, content
        finally:
            connection.close()


def now_and_then(rate: float, kinds: tuple[str, ...], seed: int) -> Faults:
    """A share of the requests fails, in a way that the seed decides; never the same file more than three times in a row."""
    in_row: Counter[str] = Counter()

    def faults(path: str, nth: int) -> str | None:
        draw = random.Random(f"{seed}/{path}/{nth}")
        if draw.random() >= rate or in_row[path] >= 3:
            in_row[path] = 0
            return None
        in_row[path] += 1
        return draw.choice(kinds)

    return faults
