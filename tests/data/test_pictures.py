"""Good and bad pictures: what ``decode`` gives, and what it refuses."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_datasets import VOCTree, encode, voc_object, voc_xml

from harness.data.dataset import First, Sample, decode, header_size, safe_relative
from harness.data.files import FileDataset
from harness.errors import BadPicture, HarnessError


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a picture of this size and has next to nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def test_a_truncated_jpeg_is_bad() -> None:
    whole = encode((64, 64))
    for share in (0.3, 0.6, 0.95):
        with pytest.raises(BadPicture, match=r"x\.jpg: damaged picture"):
            decode(whole[: int(len(whole) * share)], "x.jpg")


@pytest.mark.parametrize("data", [b"", b"this is not a picture\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_bad(data: bytes) -> None:
    with pytest.raises(BadPicture, match=r"x\.jpg: not a picture"):
        decode(data, "x.jpg")


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_become_what_pil_makes_of_them(mode: str) -> None:
    data = encode((40, 30), mode)
    picture = decode(data, "x.jpg")
    assert picture.shape == (30, 40, 3)
    assert picture.dtype == np.uint8
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
        assert np.array_equal(picture, np.asarray(image.convert("RGB")))


def test_grey_has_three_equal_channels() -> None:
    picture = decode(encode((40, 30), "L"), "x.jpg")
    assert (picture[..., 0] == picture[..., 1]).all()
    assert (picture[..., 0] == picture[..., 2]).all()
    assert picture.std() > 0


def test_a_picture_of_one_pixel_is_a_picture() -> None:
    assert decode(encode((1, 1)), "x.jpg").shape == (1, 1, 3)


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP"])
def test_an_exif_rotation_is_not_applied_and_boxes_stay_in_stored_pixels(
    voc: VOCTree, picture_format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    data = encode((40, 30), exif=exif, format=picture_format)
    voc.add("a", voc_xml(voc_object((1, 1, 40, 30)), size=None), data)
    dataset = voc.open()
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[0x0112] == 6
    boxes = dataset.samples[0].target.boxes
    assert dataset.samples[0].size == (40, 30)
    assert dataset.picture(0).shape == (30, 40, 3)
    assert boxes is not None
    assert boxes.xyxy.tolist() == [[0, 0, 40, 30]]
    plain = encode((40, 30), format=picture_format)
    assert np.array_equal(dataset.picture(0), decode(plain, "plain"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_193, 12_000, 60_000])
def test_a_decompression_bomb_is_bad_before_it_is_unpacked(side: int) -> None:
    with pytest.raises(BadPicture, match=r"x\.png: .*pixels"):
        decode(png_header(side, side), "x.png")


def test_a_large_photograph_is_no_bomb() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (6000, 4000)).save(buffer, format="PNG", compress_level=1)
    assert decode(buffer.getvalue(), "x.png").shape == (4000, 6000, 3)


def test_a_format_that_would_start_a_program_or_turn_the_picture_is_no_picture() -> None:
    for picture_format in ("TIFF", "EPS"):
        with pytest.raises(BadPicture, match="not a picture"):
            decode(encode(format=picture_format), "x")


@given(st.binary(max_size=200), st.sampled_from([b"", encode()[:40], png_header(9, 9)[:40]]))
def test_any_bytes_raise_nothing_but_bad_picture(data: bytes, beginning: bytes) -> None:
    with pytest.raises(BadPicture):
        decode(beginning + data, "x.jpg")


def test_an_error_names_the_file(voc: VOCTree) -> None:
    voc.add("a", voc_xml(), b"text")
    with pytest.raises(BadPicture) as e:
        voc.open().picture(0)
    assert str(e.value).startswith(str(voc.root / "JPEGImages" / "a.jpg"))


def test_the_size_of_what_has_no_header_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    assert header_size(path) == (0, 0)
    path.write_bytes(b"text")
    assert header_size(path) == (0, 0)
    path.write_bytes(encode((40, 30)))
    assert header_size(path) == (40, 30)


def test_a_folder_or_a_pipe_in_a_pictures_place_is_bad(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    names = ["folder.jpg", "pipe.jpg"]
    samples = [Sample(name, (0, 0)) for name in names]
    dataset = FileDataset("x", "test", samples, (), tmp_path, names)
    for index in range(2):
        with pytest.raises(BadPicture, match="not a file"):
            dataset.read(index)


def test_the_first_pictures_are_a_data_set_of_their_own(voc: VOCTree) -> None:
    for identity in "abc":
        voc.add(identity, voc_xml(), None if identity != "b" else encode())
    whole = voc.open()
    few = First(whole, 2)
    assert [s.id for s in few.samples] == ["a", "b"]
    assert few.missing() == ["a"]
    assert few.fingerprint() != whole.fingerprint()
    assert few.fingerprint() != First(whole, 1).fingerprint()
    assert First(whole, 9).fingerprint() == whole.fingerprint()
    assert few.picture(1).shape == (30, 40, 3)
    assert few.where(1).endswith("b.jpg")


@pytest.mark.parametrize("text", ["", ".", "/", "..", "a/../b", "/a", "\\\\a", "a\\..\\b", "a\0"])
def test_a_path_that_is_none_or_leaves_the_folder_is_refused(text: str) -> None:
    with pytest.raises(HarnessError, match="not followed"):
        safe_relative(text, "here")


@pytest.mark.parametrize("text", ["a", "a/b.jpg", "..a", "a..b/c", "a b"])
def test_a_path_inside_the_folder_is_taken(text: str) -> None:
    assert safe_relative(text, "here").as_posix() == text
