"""A real S3 API on this machine (moto's server), and what belongs to "another machine"."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_buckets = itertools.count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of moto's server, which takes seconds to start."""
    pytest.importorskip("s3fs", reason="needs s3fs: pip install 'vit-harness[storage]'")
    server = pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server,s3]'")
    running = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(s3_server: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, with credentials and endpoint in the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import fsspec

    name = f"bucket-{next(_buckets)}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    machine("one")
    return f"s3://{name}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From here on be the machine of that name: nothing local is shared with another."""

    def become(name: str) -> None:
        from harness.storage import mirrors, remote

        monkeypatch.setenv("HARNESS_CACHE_LOCAL", str(tmp_path / "machines" / name))
        mirrors.forget()
        remote.forget()

    return become
