"""A web server on this machine, and small archives for it to serve."""

from __future__ import annotations

import contextlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from small_datasets import encode, voc_object, voc_xml

from harness.data.catalog import Catalog


@dataclass
class Server:
    """What it answers, by path; a path that is not there is a 404."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    """Paths whose answer breaks off half-way."""
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A server on 127.0.0.1, on any free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            if self.path in state.redirects:
                self.send_response(302)
                self.send_header("Location", state.redirects[self.path])
                self.end_headers()
            elif self.path in state.files:
                data = state.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if self.path in state.cut else data)
            else:
                self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state = Server(f"http://127.0.0.1:{httpd.server_address[1]}")
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


VOC = {
    "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt": b"a\n",
    "VOCdevkit/VOC2007/Annotations/a.xml": voc_xml(voc_object()).encode(),
    "VOCdevkit/VOC2007/JPEGImages/a.jpg": encode(),
    "VOCdevkit/readme": b"hello",
}


def catalog_of(folder: Path, *downloads: str) -> Catalog:
    path = folder / "sets.yaml"
    path.write_text(
        "mine:\n  format: voc\n  root: VOCdevkit/VOC2007\n  split: trainval\n  fetch:\n"
        + "".join(f"    - {{{download}}}\n" for download in downloads)
    )
    return Catalog.load([path])


def one(server: Server, name: str, **more: str) -> str:
    fields = {"url": f"{server.url}{name}", **more}
    return ", ".join(f"{key}: '{value}'" for key, value in fields.items())


def archive(server: Server, name: str, gives: str = "VOCdevkit/VOC2007", **more: str) -> str:
    return one(server, name, gives=gives, **more) + ", extract: true"


def quiet(what: str, done: int, total: int | None) -> None:
    pass


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "sets.yaml")
