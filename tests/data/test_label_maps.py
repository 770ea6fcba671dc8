"""Masks and depth maps: what is read of them, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from label_files import SIZE, few_bits, ids, npy, png
from small_datasets import encode

from harness.data.dataset import IGNORED
from harness.data.label_maps import DepthRule, MaskRule, mask_rule
from harness.errors import BadPicture, HarnessError

ABC = ("a", "b", "c")
PLAIN = mask_rule(ABC)
MILLIMETRES = DepthRule(1000.0, (0.0, 65535.0))


def semantic(rule: MaskRule, data: bytes, size: tuple[int, int] = SIZE) -> np.ndarray:
    dense = rule.dense(data, "m.png", size)
    assert dense.semantic is not None and dense.semantic.dtype == np.uint8
    assert dense.depth is None and dense.instances is None
    return dense.semantic


def depth(rule: DepthRule, data: bytes, size: tuple[int, int] = SIZE) -> np.ndarray:
    dense = rule.dense(data, "d.png", size)
    assert dense.depth is not None and dense.depth.dtype == np.float32
    assert dense.semantic is None and dense.instances is None
    return dense.depth


@settings(deadline=None, max_examples=50)
@given(
    arrays.arrays(
        np.uint8,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.sampled_from([0, 1, 2, 255]),
    ).filter(lambda mask: (mask != IGNORED).any()),
    st.sampled_from(["grey", "palette", "16 bits"]),
)
def test_ids_are_read_as_stored_in_whatever_manner(mask: np.ndarray, manner: str) -> None:
    stored = mask.astype(np.uint16) if manner == "16 bits" else mask
    data = png(stored, palette=manner == "palette")
    np.testing.assert_array_equal(semantic(PLAIN, data, mask.shape[::-1]), mask)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_pngs_of_few_bits_hold_ids_not_shades(bits: int) -> None:
    rule = mask_rule([str(each) for each in range(16)])
    mask = ids(*range(2**bits))
    np.testing.assert_array_equal(semantic(rule, few_bits(mask, bits)), mask)


def test_with_zero_label_reduction_class_k_is_stored_as_k_plus_one() -> None:
    rule = mask_rule(ABC, reduce_zero_label=True)
    read = semantic(rule, png(ids(0, 1, 2, 3, 255)))
    np.testing.assert_array_equal(read[0, :5], [255, 0, 1, 2, 255])
    with pytest.raises(BadPicture, match=r"id 4 is of no class: .* 3 classes hold 0 to 3, 255"):
        rule.dense(png(ids(1, 4)), "m.png", SIZE)


def test_ids_may_be_any_and_others_ignored() -> None:
    rule = mask_rule(["road", "sky"], [7, 23], [0, 300])
    read = semantic(rule, png(ids(7, 23, 0, 300, dtype=np.uint16)))
    np.testing.assert_array_equal(read[0, :4], [0, 1, 255, 255])
    for stray in (8, 24, 299, 301, 65535):
        with pytest.raises(BadPicture, match=f"the id {stray} is of no class"):
            rule.dense(png(ids(7, stray, dtype=np.uint16)), "m.png", SIZE)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (((),), "0 classes"),
        ((["x"] * 256,), "256 classes"),
        ((ABC, [0, 1, 1]), "id 1 of the class 'c' is also that of 'b'"),
        ((ABC, None, [2]), "id 2 of the class 'c' is also ignored"),
    ],
)
def test_a_rule_with_two_meanings_of_an_id_is_refused(arguments: tuple, complaint: str) -> None:
    with pytest.raises(HarnessError, match=complaint):
        mask_rule(*arguments)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (png(ids(0, 1, size=(30, 40))), r"30x40 pixels, but its picture has 40x30"),
        (png(np.zeros((30, 40, 3), np.uint8)), r"RGB colours where class ids were expected"),
        (png(np.zeros((30, 40, 4), np.uint8)), r"RGBA colours where class ids"),
        (png(ids(0, 3, 9)), r"the ids 3, 9 are of no class: masks of these 3 classes hold 0 to 2"),
        (png(ids(255)), r"every pixel of the mask is ignored"),
        (encode(SIZE, mode="L"), r"not a mask: PNG or BMP was expected"),
        (png(ids(0))[:-30], r"damaged mask"),
        (b"", r"not a mask"),
    ],
    ids=["size", "colours", "alpha", "id", "ignored", "JPEG", "cut", "empty"],
)
def test_a_bad_mask_is_told_with_its_file(data: bytes, complaint: str) -> None:
    with pytest.raises(BadPicture, match=rf"^m\.png: {complaint}"):
        PLAIN.dense(data, "m.png", SIZE)


def test_the_size_of_a_mask_whose_picture_cannot_be_read_is_believed() -> None:
    assert semantic(PLAIN, png(ids(1, size=(3, 5))), (0, 0)).shape == (5, 3)


@settings(deadline=None, max_examples=50)
@given(
    arrays.arrays(np.uint16, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)).filter(
        lambda stored: ((stored > 0) & (stored < 65535)).any()
    )
)
def test_depth_is_in_metres_and_zero_where_invalid(stored: np.ndarray) -> None:
    read = depth(MILLIMETRES, png(stored), stored.shape[::-1])
    expected = np.where(stored == 65535, 0, stored) / 1000
    np.testing.assert_allclose(read, expected, rtol=1e-6)
    assert ((read == 0) == ((stored == 0) | (stored == 65535))).all()


def test_depth_beyond_the_limits_is_not_known() -> None:
    rule = DepthRule(256.0, (0.0,), (1.0, 80.0))
    read = depth(rule, png(ids(255, 256, 80 * 256, 80 * 256 + 1, dtype=np.uint16)))
    np.testing.assert_array_equal(read[0, :4], [0, 1, 80, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.int32])
def test_arrays_of_numpy_are_depth_too(dtype: type) -> None:
    stored = ids(0, 1500, 2000, dtype=dtype)
    for array in (stored, stored[..., None], np.asfortranarray(stored)):
        read = depth(MILLIMETRES, npy(array))
        np.testing.assert_array_equal(read[0, :3], np.array([0, 1.5, 2], np.float32))


def test_nan_and_infinity_are_unknown_only_where_the_rule_says_so() -> None:
    data = npy(ids(math.nan, math.inf, 2.0, dtype=np.float32))
    read = depth(DepthRule(1.0, (0.0, math.nan, math.inf)), data)
    np.testing.assert_array_equal(read[0, :3], [0, 0, 2])
    for invalid in ((0.0,), (math.nan,), (math.inf,)):
        with pytest.raises(BadPicture, match=r"pixels is NaN or infinite; .*invalid:"):
            DepthRule(1.0, invalid).dense(data, "d.npy", SIZE)


METRES = DepthRule(1.0)
SIXTEEN = png(ids(0, 9, dtype=np.uint16))


@pytest.mark.parametrize(
    ("rule", "data", "complaint"),
    [
        (METRES, png(ids(1, 2, size=(30, 40), dtype=np.uint16)), r"30x40 pixels, but .* 40x30"),
        (METRES, png(ids(1, 2)), r"8-bit depth"),
        (METRES, png(ids(1, 2), palette=True), r"8-bit depth"),
        (METRES, npy(ids(1, 2)), r"8-bit depth"),
        (METRES, png(np.zeros((30, 40, 3), np.uint8)), r"RGB colours where depth"),
        (METRES, png(ids(0, dtype=np.uint16)), r"no pixel has a known depth"),
        (MILLIMETRES, png(ids(0, 65535, dtype=np.uint16)), r"no pixel has a known depth"),
        (DepthRule(1.0, (), (10.0, 20.0)), SIXTEEN, r"no pixel has a known depth"),
        (METRES, npy(ids(math.nan, 1, dtype=np.float32)), r"the depth of 600 pixels is NaN"),
        (METRES, npy(ids(-1, 1, dtype=np.float32)), r"negative depth \(-1\)"),
        (METRES, npy(np.zeros((2, 30, 40), np.float32)), r"float32 of shape \(2, 30, 40\)"),
        (METRES, npy(np.zeros((30, 40), complex)), r"complex128 of shape"),
        (METRES, npy(ids(1, 2, dtype=np.float32))[:-9], r"damaged \.npy file"),
        (METRES, npy(np.array([[{}]], object)), r"damaged \.npy file: Object arrays"),
        (METRES, encode(SIZE), r"not a depth map: PNG was expected"),
        (METRES, SIXTEEN[:-30], r"damaged depth map"),
    ],
)
def test_bad_depth_is_told_with_its_file(rule: DepthRule, data: bytes, complaint: str) -> None:
    with pytest.raises(BadPicture, match=rf"^d: {complaint}"):
        rule.dense(data, "d", SIZE)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([b"", SIXTEEN, png(ids(0, 1)), npy(ids(1, dtype=np.float32)), b"\x93NUMPY"]),
    st.binary(max_size=60),
    st.integers(0, 200),
)
def test_garbage_is_read_or_told_and_never_a_crash(head: bytes, tail: bytes, at: int) -> None:
    for rule in (PLAIN, METRES):
        told = "file: "
        try:
            rule.dense(head[:at] + tail + head[at + len(tail) :], "file", SIZE)
        except BadPicture as error:
            told = str(error)
        assert told.startswith("file: ")


def test_a_rule_that_reads_otherwise_has_another_mark() -> None:
    rules = [
        PLAIN,
        mask_rule(ABC, reduce_zero_label=True),
        mask_rule(("a", "c", "b")),
        mask_rule(ABC, ignored=()),
        METRES,
        MILLIMETRES,
        DepthRule(1.0, (math.nan,)),
        DepthRule(1.0, (0.0,), (1.0, 2.0)),
    ]
    assert len({rule.mark() for rule in rules}) == len(rules)
    assert mask_rule(ABC).mark() == PLAIN.mark()
