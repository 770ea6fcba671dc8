"""A proxy on this machine between a client and an HTTP server, which spoils some requests.

``with flaky("http://127.0.0.1:5000", every=10) as proxy:`` and give the client ``proxy.url``.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Kind = Literal["drop", "busy", "half", "slow"]
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Proxy:
    """``every``-th request is spoiled (0: none), of those whose method is in ``methods``: the
    connection is closed without an answer (``drop``), answered with 503 (``busy``), cut in the
    middle of the body (``half``), or answered ``seconds`` late (``slow``). All may be changed while
    it runs. ``asked`` counts the requests by method."""

    url: str
    every: int = 10
    kind: Kind = "drop"
    methods: frozenset[str] = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})
    seconds: float = 2.0
    spoiled: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    _counted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def turn(self, method: str) -> Kind | None:
        """How this request is to be spoiled, if it is its turn."""
        with self._lock:
            self.asked[method] = self.asked.get(method, 0) + 1
            if not self.every or method not in self.methods:
                return None
            self._counted += 1
            if self._counted % self.every:
                return None
            self.spoiled += 1
            return self.kind


@contextlib.contextmanager
def flaky(upstream: str, every: int = 10, kind: Kind = "drop") -> Iterator[Proxy]:
    """A proxy on 127.0.0.1, on any free port, before the server at ``upstream``."""
    target = urllib.parse.urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self._body()
            spoil = proxy.turn(self.command)
            if spoil == "drop":
                self.close_connection = True
                return
            if spoil == "busy":
                self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            if spoil == "slow":
                time.sleep(proxy.seconds)
            try:
                self._pass_on(body, spoil)
            except OSError:  # the client is gone, or the server is
                self.close_connection = True

        def _pass_on(self, body: bytes, spoil: Kind | None) -> None:
            connection = http.client.HTTPConnection(target, timeout=60)
            try:
                names = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
                names["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body, names)
                answer = connection.getresponse()
                data = answer.read()
            finally:
                connection.close()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, kept, data, length, half=spoil == "half")

        def _answer(
            self,
            status: int,
            names: dict[str, str],
            data: bytes,
            length: str | None = None,
            half: bool = False,
        ) -> None:
            self.send_response_only(status)
            for name, value in names.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if half else data)
            self.close_connection = self.close_connection or half

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_GET(self) -> None:
            self._any()

        def do_HEAD(self) -> None:
            self._any()

        def do_PUT(self) -> None:
            self._any()

        def do_POST(self) -> None:
            self._any()

        def do_DELETE(self) -> None:
            self._any()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        proxy = Proxy(f"http://127.0.0.1:{httpd.server_address[1]}", every, kind)
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield proxy
        finally:
            httpd.shutdown()
            thread.join()
