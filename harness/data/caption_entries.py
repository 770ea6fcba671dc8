"""What an entry may say of data sets with captions, and how each is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from harness.data.caption_lists import read_caption_list
from harness.data.captions import read_json_lines
from harness.data.coco import read_coco_captions
from harness.data.dataset import Dataset, Role
from harness.data.entry import EntryBase, Relative
from harness.data.karpathy import read_karpathy


class CaptionsEntry(EntryBase):
    """A file of JSON lines, ``{"image": PATH, "captions": [TEXT, …]}``: a lone ``file`` is test,
    ``splits`` name files by role. Pictures are in the folder ``images`` of ``root``."""

    format: Literal["captions"]
    root: str = Field(default=".", min_length=1)
    images: Relative = "."
    file: Relative | None = None
    splits: dict[Role, Relative] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _has_splits(self) -> CaptionsEntry:
        if (self.file is None) == (self.splits is None):
            raise ValueError("give one of file: NAME.jsonl, splits: {train: FILE, test: FILE}")
        return self

    def _roles(self) -> Mapping[Role, str]:
        return {"test": self.file} if self.file is not None else self.splits or {}

    def needs(self, root: Path) -> list[Path]:
        return _needed(root, self.images, *self._roles().values())

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return read_json_lines(name, root, self._roles(), self.images)


class COCOCaptionsEntry(EntryBase):
    """COCO's own file of captions, such as annotations/captions_val2014.json, as test."""

    format: Literal["coco-captions"]
    root: str = Field(min_length=1)
    images: Relative
    annotations: Relative

    def needs(self, root: Path) -> list[Path]:
        return _needed(root, self.images, self.annotations)

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return {"test": read_coco_captions(name, root, self.images, self.annotations)}


class KarpathyEntry(EntryBase):
    """One of Karpathy's files. ``splits`` name its splits by role (``train+restval`` is both)."""

    format: Literal["karpathy"]
    root: str = Field(min_length=1)
    annotations: Relative
    images: Relative = "."
    splits: dict[Role, str] = Field(default={"test": "test"}, min_length=1)

    def needs(self, root: Path) -> list[Path]:
        return _needed(root, self.images, self.annotations)

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return read_karpathy(name, root, self.annotations, self.images, self.splits)


class CaptionListEntry(EntryBase):
    """A caption a line, as Flickr30k is released (.token) or in a CSV file, as test. ``list`` is a
    file of picture names that says which of them."""

    format: Literal["caption-list"]
    root: str = Field(min_length=1)
    file: Relative
    images: Relative
    list_file: Relative | None = Field(default=None, alias="list")

    def needs(self, root: Path) -> list[Path]:
        lists = [] if self.list_file is None else [self.list_file]
        return _needed(root, self.images, self.file, *lists)

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return {"test": read_caption_list(name, root, self.file, self.images, self.list_file)}


def _needed(root: Path, images: str, *files: str) -> list[Path]:
    """The root itself needs no saying."""
    return [root / part for part in (images, *files) if part != "."]


CaptionEntry = CaptionListEntry | CaptionsEntry | COCOCaptionsEntry | KarpathyEntry
CAPTIONS: Mapping[str, type[CaptionEntry]] = {
    "caption-list": CaptionListEntry,
    "captions": CaptionsEntry,
    "coco-captions": COCOCaptionsEntry,
    "karpathy": KarpathyEntry,
}
