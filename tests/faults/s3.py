"""A bucket on this machine behind a proxy that spoils requests, in a process of its own:
``python -m faults.s3``.

Its standard input says what to do: ``spoil KIND EVERY`` spoils each so-manieth request from now on
(0: none), ``fill FOLDER`` makes the bucket what is in the folder, ``dump FOLDER`` writes what is in
the bucket there, past the proxy. The end of the input is its end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults.child import Child, running

BUCKET = "faults"
SECRET = "kept-to-itself-4711"
"""Nothing that a command says or writes may have it in it."""
_SLOW_SECONDS = 0.5


class Server:
    """The process. ``environment`` is what commands find it by."""

    def __init__(self, child: Child) -> None:
        self.tell = child.tell
        self.environment = {
            "AWS_ENDPOINT_URL": child.said,
            "AWS_ACCESS_KEY_ID": f"id-{SECRET}",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "HARNESS_CACHE": f"s3://{BUCKET}/features",
        }


@contextlib.contextmanager
def started() -> Iterator[Server]:
    tests = Path(__file__).resolve().parent.parent
    path = os.pathsep.join([str(tests), str(tests / "storage"), os.environ.get("PYTHONPATH", "")])
    lacking = "no S3 server here: pip install 'moto[server,s3]' s3fs"
    with running("s3", {"PYTHONPATH": path}, lacking) as child:
        yield Server(child)


def main() -> None:
    import boto3
    from flaky_proxy import flaky
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "faults", "aws_secret_access_key": "faults"}
    client: Any = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=BUCKET)
    with flaky(address, every=0) as proxy:
        proxy.seconds = _SLOW_SECONDS
        print(f"s3: {proxy.url}", flush=True)
        for line in sys.stdin:
            what, *rest = line.split()
            if what == "spoil":
                proxy.kind, proxy.every = rest[0], int(rest[1])  # type: ignore[assignment]
            elif what == "fill":
                _fill(client, Path(rest[0]))
            else:
                _dump(client, Path(rest[0]))
            print("s3: done", flush=True)
    server.stop()


def _objects(client: Any) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return [each["Key"] for page in pages for each in page.get("Contents", [])]


def _fill(client: Any, folder: Path) -> None:
    for name in _objects(client):
        client.delete_object(Bucket=BUCKET, Key=name)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            client.put_object(Bucket=BUCKET, Key=name, Body=path.read_bytes())


def _dump(client: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _objects(client):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client.get_object(Bucket=BUCKET, Key=name)["Body"].read())


if __name__ == "__main__":
    main()
