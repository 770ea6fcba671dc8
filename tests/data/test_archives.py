"""Archives that are damaged, hostile, or not what they should be."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from loopback import VOC, Server, archive, catalog_of, left, quiet, tar, zipped

from harness.data.fetch import fetch
from harness.errors import HarnessError


@pytest.mark.parametrize("name", ["/voc.tar", "/voc.zip"])
@pytest.mark.parametrize(
    "member", ["../evil", "/evil", "VOCdevkit/VOC2007/../../../evil", "elsewhere/../../evil"]
)
def test_an_archive_with_a_path_that_leaves_it_is_refused_whole(
    server: Server, tmp_path: Path, name: str, member: str
) -> None:
    pack = zipped if name.endswith("zip") else tar
    server.files[name] = pack({**VOC, member: b"evil"})
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(HarnessError, match="not followed"):
        fetch(catalog_of(data, archive(server, name)), "mine", quiet)
    assert left(data) == []
    assert left(tmp_path) == ["data"]


def test_a_tar_whose_link_points_outside_is_refused(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        link = tarfile.TarInfo("VOCdevkit/VOC2007/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        out.addfile(link)
    server.files["/voc.tar"] = buffer.getvalue()
    with pytest.raises(HarnessError, match="not a sound archive"):
        fetch(catalog_of(tmp_path, archive(server, "/voc.tar")), "mine", quiet)
    assert left(tmp_path) == []


def damaged_zip() -> bytes:
    picture = VOC["VOCdevkit/VOC2007/JPEGImages/a.jpg"]
    data = zipped(VOC)
    return data.replace(picture, picture[:-1] + bytes([picture[-1] ^ 1]))


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("/voc.tar", b"no archive at all", "not a sound archive"),
        ("/voc.zip", b"no archive at all", "not a sound archive"),
        ("/voc.tgz", tar(VOC, "w:gz")[:-200], "not a sound archive"),
        ("/voc.zip", damaged_zip(), "not a sound archive"),
        ("/voc.tar", tar({"other/x": b""}), "has no VOCdevkit/VOC2007 in it"),
        ("/voc.zip", zipped({"other/x": b""}), "has no VOCdevkit/VOC2007 in it"),
    ],
)
def test_an_archive_that_is_damaged_or_another_keeps_nothing(
    server: Server, tmp_path: Path, name: str, data: bytes, what: str
) -> None:
    server.files[name] = data
    with pytest.raises(HarnessError, match=what):
        fetch(catalog_of(tmp_path, archive(server, name)), "mine", quiet)
    assert left(tmp_path) == []
