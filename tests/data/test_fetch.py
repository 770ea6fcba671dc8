"""Fetching, from a server on this machine only."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import VOC, Server, archive, catalog_of, left, one, quiet, tar, zipped

from harness.data.catalog import Catalog
from harness.data.doctor import examine
from harness.data.fetch import fetch
from harness.errors import HarnessError


@pytest.mark.parametrize("name", ["/voc.tar", "/voc.tgz", "/voc.zip"])
def test_a_fetched_archive_opens_and_gives_one_thing_only(
    server: Server, tmp_path: Path, name: str
) -> None:
    modes = {"/voc.tar": "w", "/voc.tgz": "w:gz"}
    data = zipped(VOC) if name == "/voc.zip" else tar(VOC, modes[name])
    server.files[name] = data
    catalog = catalog_of(tmp_path, archive(server, name, md5=hashlib.md5(data).hexdigest()))
    heard: list[tuple[str, int, int | None]] = []
    (fetched,) = fetch(catalog, "mine", lambda *call: heard.append(call))
    assert not fetched.already
    assert fetched.sha256 == hashlib.sha256(data).hexdigest()
    assert fetched.path == tmp_path / "VOCdevkit/VOC2007"
    assert (f"downloading {server.url}{name}", len(data), len(data)) in heard
    assert any(what.startswith("unpacking") for what, _, _ in heard)
    assert left(tmp_path) == ["VOCdevkit"]
    assert left(tmp_path / "VOCdevkit") == ["VOC2007"]
    assert examine(catalog, "mine", decode=True).healthy


def test_what_is_there_is_reported_and_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.files["/voc.tar"] = tar(VOC)
    catalog = catalog_of(tmp_path, archive(server, "/voc.tar"))
    fetch(catalog, "mine", quiet)
    kept = tmp_path / "VOCdevkit/VOC2007/JPEGImages/a.jpg"
    kept.write_bytes(b"mine")
    (again,) = fetch(catalog, "mine", quiet)
    assert again.already
    assert again.sha256 is None
    assert kept.read_bytes() == b"mine"
    assert server.asked == ["/voc.tar"]


def test_a_second_fetch_brings_what_the_first_did_not(server: Server, tmp_path: Path) -> None:
    server.files["/list.txt"] = b"names\n"
    catalog = catalog_of(
        tmp_path, one(server, "/list.txt", to="lists"), archive(server, "/voc.tar")
    )
    with pytest.raises(HarnessError, match=r"voc\.tar: 404"):
        fetch(catalog, "mine", quiet)
    assert left(tmp_path) == ["lists"]
    server.files["/voc.tar"] = tar(VOC)
    assert [fetched.already for fetched in fetch(catalog, "mine", quiet)] == [True, False]
    assert (tmp_path / "lists/list.txt").read_bytes() == b"names\n"
    assert server.asked == ["/list.txt", "/voc.tar", "/voc.tar"]


def test_a_second_year_joins_the_first_in_its_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit/VOC2012").mkdir(parents=True)
    server.files["/voc.tar"] = tar(VOC)
    fetch(catalog_of(tmp_path, archive(server, "/voc.tar")), "mine", quiet)
    assert left(tmp_path / "VOCdevkit") == ["VOC2007", "VOC2012"]


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_digest_keeps_nothing(server: Server, tmp_path: Path, algorithm: str) -> None:
    server.files["/voc.tar"] = tar(VOC)
    wrong = hashlib.new(algorithm, b"else").hexdigest()
    catalog = catalog_of(tmp_path, archive(server, "/voc.tar", **{algorithm: wrong}))
    with pytest.raises(HarnessError, match=f"its {algorithm} is .*, not {wrong}"):
        fetch(catalog, "mine", quiet)
    assert left(tmp_path) == []


def test_a_file_that_is_there_with_another_digest_is_told_and_kept(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_bytes(b"old")
    digest = hashlib.sha256(b"new").hexdigest()
    catalog = catalog_of(tmp_path, one(server, "/list.txt", sha256=digest))
    with pytest.raises(HarnessError, match=r"list\.txt: is there, but its sha256"):
        fetch(catalog, "mine", quiet)
    assert (tmp_path / "list.txt").read_bytes() == b"old"


def test_an_answer_that_breaks_off_keeps_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/voc.tar"] = tar(VOC)
    server.cut.add("/voc.tar")
    with pytest.raises(HarnessError, match=r"voc\.tar: broke off"):
        fetch(catalog_of(tmp_path, archive(server, "/voc.tar")), "mine", quiet)
    assert left(tmp_path) == []


def test_a_server_that_is_not_there_is_told(server: Server, tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, one(server, "/x").replace(server.url, "http://127.0.0.1:1"))
    with pytest.raises(HarnessError, match=r"http://127\.0\.0\.1:1/x: .*; try again"):
        fetch(catalog, "mine", quiet)


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_a_redirect_to_anything_but_the_web_is_not_followed(
    server: Server, tmp_path: Path, target: str
) -> None:
    server.redirects["/x"] = target
    with pytest.raises(HarnessError, match=r"not followed|not allowed"):
        fetch(catalog_of(tmp_path, one(server, "/x")), "mine", quiet)
    assert left(tmp_path) == []


def test_a_redirect_on_the_web_is_followed(server: Server, tmp_path: Path) -> None:
    server.redirects["/x"] = f"{server.url}/y"
    server.files["/y"] = b"found"
    (fetched,) = fetch(catalog_of(tmp_path, one(server, "/x")), "mine", quiet)
    assert fetched.path == tmp_path / "x"
    assert fetched.path.read_bytes() == b"found"


@pytest.mark.parametrize("moment", ["downloading", "unpacking"])
def test_an_interrupted_fetch_keeps_nothing(server: Server, tmp_path: Path, moment: str) -> None:
    server.files["/voc.tar"] = tar(VOC)

    def interrupt(what: str, done: int, total: int | None) -> None:
        if what.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(catalog_of(tmp_path, archive(server, "/voc.tar")), "mine", interrupt)
    assert left(tmp_path) == []


@pytest.mark.parametrize("moment", ["downloading", "unpacking"])
def test_a_killed_fetch_leaves_nothing_that_looks_whole_and_the_next_one_works(
    server: Server, tmp_path: Path, moment: str
) -> None:
    server.files["/voc.tar"] = tar(VOC)
    catalog = catalog_of(tmp_path, archive(server, "/voc.tar"))
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from harness.data.catalog import Catalog\n"
        "from harness.data.fetch import fetch\n"
        "def kill(what, done, total):\n"
        f"    if what.startswith({moment!r}): os.kill(os.getpid(), signal.SIGKILL)\n"
        "fetch(Catalog.load([Path(sys.argv[1])]), 'mine', kill)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "sets.yaml")],
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == -9
    assert all(name.startswith(".fetch-") for name in left(tmp_path))
    (fetched,) = fetch(catalog, "mine", quiet)
    assert not fetched.already
    report = examine(catalog, "mine")
    assert report.healthy
    assert any(".fetch-" in finding.what for finding in report.findings)


def test_a_folder_that_cannot_be_written_is_told(server: Server, tmp_path: Path) -> None:
    server.files["/x"] = b"data"
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HarnessError, match="cannot be written"):
        fetch(catalog_of(tmp_path, one(server, "/x", to="file")), "mine", quiet)


def test_what_has_no_source_or_needs_none_says_so(tmp_path: Path) -> None:
    catalog = Catalog.load(data_root=tmp_path)
    with pytest.raises(HarnessError, match=r"imagenet: cannot be fetched.*image-net\.org"):
        fetch(catalog, "imagenet", quiet)
    with pytest.raises(HarnessError, match="needs no files"):
        fetch(catalog, "generated", quiet)
