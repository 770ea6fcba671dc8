"""What an entry of a data-set file may say: one strict model a format, and how each is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.data import official, torchvision_sets
from harness.data.caption_entries import CAPTIONS, CaptionEntry
from harness.data.coco import read_coco
from harness.data.dataset import Dataset, Role
from harness.data.dense_entries import DENSE, DenseEntry
from harness.data.entry import EntryBase, Relative, Sha256, Strict
from harness.data.files import read_lines
from harness.data.folder import read_folder
from harness.data.generated import COUNT, GeneratedDataset
from harness.data.imagenet import read_imagenet
from harness.data.imagenet_tests import read_class_folders, read_real
from harness.data.parquet import read_parquet
from harness.data.pictures import PicturesDataset
from harness.data.revisited import read_revisited
from harness.data.shards import read_webdataset
from harness.data.voc import image_set, read_voc, read_voc_labels
from harness.data.written import read_written
from harness.nano.scenes import MOST, ScenesDataset

_Side = Annotated[int, Field(ge=16, le=2048)]


class VOCEntry(EntryBase):
    """``root`` is the folder of one year: ``…/VOCdevkit/VOC2007``. A lone ``split`` is test. With
    ``labels`` a picture is of every class that it has an object of, for classification."""

    format: Literal["voc"]
    root: str = Field(min_length=1)
    split: Relative | None = None
    splits: dict[Role, Relative] | None = Field(default=None, min_length=1)
    labels: bool = False

    @model_validator(mode="after")
    def _has_splits(self) -> VOCEntry:
        if (self.split is None) == (self.splits is None):
            raise ValueError("give one of split: NAME, splits: {train: NAME, test: NAME}")
        return self

    def _roles(self) -> Mapping[Role, str]:
        return {"test": self.split} if self.split is not None else self.splits or {}

    def needs(self, root: Path) -> list[Path]:
        sets = [image_set(root, split) for split in self._roles().values()]
        return [root / "JPEGImages", root / "Annotations", *sets]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        if self.labels:
            return {**read_voc_labels(name, root, self._roles())}
        return {role: read_voc(name, root, split) for role, split in self._roles().items()}


class COCOSplit(Strict):
    """Paths relative to the entry's ``root``."""

    images: Relative
    annotations: Relative
    list_file: Relative | None = Field(default=None, alias="list")
    list_sha256: Sha256 | None = None


class COCOEntry(EntryBase):
    """Either one split (``images`` and ``annotations``), which is test, or ``splits`` by role."""

    format: Literal["coco"]
    root: str = Field(min_length=1)
    images: Relative | None = None
    annotations: Relative | None = None
    list_file: Relative | None = Field(default=None, alias="list")
    list_sha256: Sha256 | None = None
    splits: dict[Role, COCOSplit] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _has_splits(self) -> COCOEntry:
        lone = (self.images, self.annotations, self.list_file, self.list_sha256)
        if self.splits is not None and any(value is not None for value in lone):
            raise ValueError("splits: stands instead of images, annotations and list, not beside")
        if self.splits is None and (self.images is None or self.annotations is None):
            raise ValueError("give images: FOLDER and annotations: FILE, or splits: by role")
        return self

    def _roles(self) -> Mapping[Role, COCOSplit]:
        if self.splits is not None:
            return self.splits
        assert self.images is not None
        assert self.annotations is not None
        lone: dict[str, Any] = {"list": self.list_file, "list_sha256": self.list_sha256}
        return {"test": COCOSplit(images=self.images, annotations=self.annotations, **lone)}

    def needs(self, root: Path) -> list[Path]:
        paths: dict[Path, None] = {}
        for split in self._roles().values():
            for part in (split.images, split.annotations, split.list_file):
                if part is not None:
                    paths[root / part] = None
        return list(paths)

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return {
            role: read_coco(
                name, root, split.images, split.annotations, split.list_file, split.list_sha256
            )
            for role, split in self._roles().items()
        }


class FolderEntry(EntryBase):
    """``root`` holds ``train/<class>/`` and ``val/<class>/``."""

    format: Literal["folder"]
    root: str = Field(min_length=1)

    def needs(self, root: Path) -> list[Path]:
        return [root]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return {**read_folder(name, root)}


class GeneratedEntry(EntryBase):
    """Painted pictures; no files, so no root."""

    format: Literal["generated"]
    root: None = None
    count: int = Field(default=COUNT, ge=1, le=10_000)

    def needs(self, root: Path) -> list[Path]:
        return []

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return {"test": GeneratedDataset(name, self.count)}


class ScenesEntry(EntryBase):
    """Painted scenes with class, boxes, masks and depth; no files, so no root. ``count`` says how
    many of each role, ``size`` the side of a picture in pixels, or width and height; ``captions``
    that sentences about the picture are labels too."""

    format: Literal["scenes"]
    root: None = None
    count: dict[Role, Annotated[int, Field(ge=1, le=MOST)]] = Field(min_length=1)
    size: _Side | tuple[_Side, _Side] = 128
    captions: bool = False

    def needs(self, root: Path) -> list[Path]:
        return []

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        return {
            role: ScenesDataset(name, role, n, size, self.captions)
            for role, n in self.count.items()
        }


class ImageNetEntry(EntryBase):
    """``root`` holds ImageNet-1k in any of its layouts: ``harness/data/imagenet.py`` lists them."""

    format: Literal["imagenet"]
    root: str = Field(min_length=1)

    def needs(self, root: Path) -> list[Path]:
        return [root]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return read_imagenet(name, root)


class ImageNetTestEntry(EntryBase):
    """A test set of ImageNet's classes: ``root`` holds a folder a class, called by its WordNet id
    or its number (ImageNet-V2, -A, -R, -Sketch)."""

    format: Literal["imagenet-test"]
    root: str = Field(min_length=1)

    def needs(self, root: Path) -> list[Path]:
        return [root]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return read_class_folders(name, root)


class ImageNetRealEntry(EntryBase):
    """ImageNet's validation pictures with all classes that are right for each. ``root`` is as of
    ``imagenet``; ``labels`` is a ``real.json`` there, if not the one in timm."""

    format: Literal["imagenet-real"]
    root: str = Field(min_length=1)
    labels: Relative | None = None

    def needs(self, root: Path) -> list[Path]:
        return [root] if self.labels is None else [root, root / self.labels]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return read_real(name, root, None if self.labels is None else root / self.labels)


class OfficialEntry(EntryBase):
    """A data set in the layout of its release, which ``format`` names. For those that torchvision
    reads ``root`` is what torchvision calls ``root``."""

    format: Literal[
        "aircraft", "caltech101", "cars", "cifar10", "cifar100", "cub", "dtd", "flowers", "food",
        "inat2018", "inat2021", "pets", "places205", "places365", "sun397",
    ]  # fmt: skip
    root: str = Field(min_length=1)

    def needs(self, root: Path) -> list[Path]:
        return [root / part for part in _RELEASES[self.format].needs]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return _RELEASES[self.format].open(name, root)


class WebdatasetEntry(EntryBase):
    """``splits`` name tar shards by role: ``x-{0000..0012}.tar`` or ``x-*.tar``. ``classes`` is a
    file with a name of a class a line, in the order of the labels."""

    format: Literal["webdataset"]
    root: str = Field(min_length=1)
    splits: dict[Role, Relative] = Field(min_length=1)
    classes: Relative | None = None

    def needs(self, root: Path) -> list[Path]:
        return [root] if self.classes is None else [root, root / self.classes]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        classes = None
        if self.classes is not None:
            classes = tuple(line for _, line in read_lines(root / self.classes))
        return {**read_webdataset(name, root, self.splits, classes)}


class ParquetEntry(EntryBase):
    """``splits`` name parquet files by role; ``image`` and ``label`` are columns of them."""

    format: Literal["parquet"]
    root: str = Field(min_length=1)
    splits: dict[Role, Relative] = Field(min_length=1)
    image: str = "image"
    label: str = "label"

    def needs(self, root: Path) -> list[Path]:
        return [root]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return {**read_parquet(name, root, self.splits, self.image, self.label)}


class PicturesEntry(EntryBase):
    """Every picture in ``root`` and the folders below it, without labels, as test."""

    format: Literal["pictures"]
    root: str = Field(min_length=1)

    def needs(self, root: Path) -> list[Path]:
        return [root]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return {"test": PicturesDataset(name, root, "test")}


class RevisitedEntry(EntryBase):
    """Oxford or Paris revisited, or pictures of your own so annotated: paths are relative to
    ``root``. The gallery is the role train, the queries are test."""

    format: Literal["revisited"]
    root: str = Field(min_length=1)
    annotations: Relative
    images: Relative = "jpg"

    def needs(self, root: Path) -> list[Path]:
        return [root / self.annotations]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return {**read_revisited(name, root, self.annotations, self.images)}


class WrittenEntry(EntryBase):
    """Every picture below ``root``, called ``label=SHOWN_text=WRITTEN`` (RTA-100, PAINT), as
    test."""

    format: Literal["written"]
    root: str = Field(min_length=1)

    def needs(self, root: Path) -> list[Path]:
        return [root]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return read_written(name, root)


_RELEASES: Mapping[str, official.OfficialSet | torchvision_sets.TorchvisionSet] = {
    **official.SETS,
    **torchvision_sets.SETS,
}
Entry = (
    VOCEntry
    | COCOEntry
    | CaptionEntry
    | DenseEntry
    | FolderEntry
    | GeneratedEntry
    | ImageNetEntry
    | ImageNetRealEntry
    | ImageNetTestEntry
    | OfficialEntry
    | ParquetEntry
    | PicturesEntry
    | RevisitedEntry
    | ScenesEntry
    | WebdatasetEntry
    | WrittenEntry
)
FORMATS: Mapping[str, type[Entry]] = {
    "coco": COCOEntry,
    "folder": FolderEntry,
    "generated": GeneratedEntry,
    "imagenet": ImageNetEntry,
    "imagenet-real": ImageNetRealEntry,
    "imagenet-test": ImageNetTestEntry,
    "parquet": ParquetEntry,
    "pictures": PicturesEntry,
    "revisited": RevisitedEntry,
    "scenes": ScenesEntry,
    "voc": VOCEntry,
    "webdataset": WebdatasetEntry,
    "written": WrittenEntry,
    **dict.fromkeys(sorted(_RELEASES), OfficialEntry),
    **CAPTIONS,
    **DENSE,
}
