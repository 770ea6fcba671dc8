"""Garbage in an annotation raises a ``HarnessError`` and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_datasets import COCOTree, VOCTree

from harness.data.coco import read_coco
from harness.data.voc import read_voc
from harness.errors import HarnessError

pieces = st.sampled_from(
    ["<annotation>", "</annotation>", "<size>", "</size>", "<object>", "</object>", "<name>cat",
     "</name>", "<bndbox>", "</bndbox>", "<xmin>1</xmin>", "<xmax>1e999</xmax>", "<width>9",
     "</width>", "<!DOCTYPE a [", "]>", '<!ENTITY a "b">', "&a;", "\x00", "<?xml ", "é", "9"]
)  # fmt: skip
garbage = st.one_of(st.binary(max_size=200), st.lists(pieces, max_size=30).map("".join))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=garbage, wrap=st.booleans())
def test_garbage_for_an_annotation_raises_nothing_but_harness_errors(
    voc: VOCTree, content: str | bytes, wrap: bool
) -> None:
    voc.lines = []
    if wrap and isinstance(content, str):
        content = f"<annotation><object>{content}</object></annotation>"
    voc.add("a", content, None)
    said = str(voc.root)
    try:
        voc.open()
    except HarnessError as error:
        said = str(error)
    assert str(voc.root) in said


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60))
def test_garbage_for_an_image_set_raises_nothing_but_harness_errors(
    voc: VOCTree, content: bytes
) -> None:
    path = voc.root / "ImageSets" / "Main" / "trainval.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(HarnessError):
        read_voc("x", voc.root, "trainval")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80) | st.text(alphabet='{}[]":,0123456789einfNa ', max_size=80))
def test_garbage_raises_nothing_but_harness_errors(coco: COCOTree, content: bytes | str) -> None:
    coco.write(content)
    with pytest.raises(HarnessError):
        read_coco("tree", coco.root, "pictures", "instances.json")
