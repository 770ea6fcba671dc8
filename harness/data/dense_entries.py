"""What an entry may say of data sets with masks or depth, and how each is opened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from harness.data.dataset import IGNORED, Dataset, Role
from harness.data.depth_lists import read_depth_list
from harness.data.entry import EntryBase, Relative, Strict
from harness.data.files import read_lines
from harness.data.label_maps import DepthRule, MaskRule, mask_rule
from harness.data.nyu_labelled import FILE, SPLITS, read_nyu_labelled
from harness.data.pairs import Layout
from harness.data.segmentation import SETS, open_layouts
from harness.errors import HarnessError

_Id = Annotated[int, Field(ge=0, le=65535)]
_LabelSuffix = Annotated[str, Field(pattern=r"\.[0-9A-Za-z]+$")]
_Splits = Annotated[dict[Role, Relative], Field(min_length=1)]


class SegmentationEntry(EntryBase):
    """A data set in the layout of its release, which ``format`` names. ``splits`` are the official
    ones if not given; ``images`` and ``masks`` are other folders, with ``{split}`` in them."""

    format: Literal["ade20k", "camvid", "cityscapes", "coco-stuff", "voc-segmentation"]
    root: str = Field(min_length=1)
    splits: _Splits | None = None
    images: Relative | None = None
    masks: Relative | None = None

    def _layouts(self) -> dict[Role, tuple[str, Layout]]:
        official = SETS[self.format]
        return {
            role: (split, official.layout_of(split, self.images, self.masks))
            for role, split in (self.splits or official.splits).items()
        }

    def needs(self, root: Path) -> list[Path]:
        return _needs(root, self._layouts())

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return open_layouts(name, root, self._layouts(), SETS[self.format].rule)


class _PairsEntry(EntryBase):
    """Pictures and label files of the same name: ``images/ID`` and a suffix, ``labels/ID`` and
    another. ``{split}`` in a folder or in ``list`` stands for the split's name; ``list`` is a file
    with an ID a line. An empty ``image_suffix`` is any of a picture's."""

    root: str = Field(min_length=1)
    splits: _Splits
    image_suffix: str = ""
    list_file: Relative | None = Field(default=None, alias="list")

    def _layout(self) -> Layout:
        raise NotImplementedError

    def _layouts(self) -> dict[Role, tuple[str, Layout]]:
        return {role: (split, self._layout()) for role, split in self.splits.items()}

    def needs(self, root: Path) -> list[Path]:
        return _needs(root, self._layouts())

    @model_validator(mode="after")
    def _tells_its_files_apart(self) -> _PairsEntry:
        layout = self._layout()
        if len(self.splits) > 1 and "{split}" not in (layout.listed or layout.images):
            raise ValueError(
                "splits: would all be the same pictures: write {split} in images: or in list:"
            )
        if layout.images == layout.labels and not (
            layout.image_suffix
            and layout.label_suffix
            and not layout.image_suffix.endswith(layout.label_suffix)
            and not layout.label_suffix.endswith(layout.image_suffix)
        ):
            raise ValueError(
                "pictures and labels of one folder need an image_suffix: and another suffix for "
                "the labels"
            )
        return self


class MasksEntry(_PairsEntry):
    """Pictures and masks of class ids. ``classes`` are names in the order of their ids, or each
    name with its id, or a file with a name a line; ``ignore`` are ids that count for nothing."""

    format: Literal["masks"]
    images: Relative = "images/{split}"
    masks: Relative = "masks/{split}"
    mask_suffix: _LabelSuffix = ".png"
    classes: tuple[str, ...] | dict[str, _Id] | Relative
    ignore: tuple[_Id, ...] = (IGNORED,)
    reduce_zero_label: bool = False

    def _layout(self) -> Layout:
        return Layout(self.images, self.masks, self.image_suffix, self.mask_suffix, self.list_file)

    @model_validator(mode="after")
    def _has_one_id_a_class(self) -> MasksEntry:
        if isinstance(self.classes, dict) and self.reduce_zero_label:
            raise ValueError("classes: with ids and reduce_zero_label: give one of them")
        if not isinstance(self.classes, str):
            try:
                self._rule(Path())
            except HarnessError as error:
                raise ValueError(str(error)) from None
        return self

    def _rule(self, root: Path) -> MaskRule:
        ids = None
        if isinstance(self.classes, str):
            names = [line for _, line in read_lines(root / self.classes)]
        else:
            names = list(self.classes)
            ids = list(self.classes.values()) if isinstance(self.classes, dict) else None
        return mask_rule(names, ids, self.ignore, reduce_zero_label=self.reduce_zero_label)

    def needs(self, root: Path) -> list[Path]:
        lists = [root / self.classes] if isinstance(self.classes, str) else []
        return [*super().needs(root), *lists]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        try:
            rule = self._rule(root)
        except HarnessError as error:
            raise HarnessError(f"{name}: classes: {error}") from None
        return open_layouts(name, root, self._layouts(), rule)


class _Depth(Strict):
    """``scale`` stored units are a metre; ``invalid`` are stored values that mean "not known";
    ``range`` is in metres, and what lies outside is not known either."""

    scale: PositiveFloat = Field(default=1000.0, allow_inf_nan=False)
    invalid: tuple[float, ...] = (0.0,)
    range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _has_a_range(self) -> _Depth:
        if self.range is not None and not 0 <= self.range[0] < self.range[1] < math.inf:
            raise ValueError("range: two distances in metres, the nearer one first")
        return self

    def _rule(self) -> DepthRule:
        return DepthRule(self.scale, self.invalid, self.range)


class RGBDEntry(_PairsEntry, _Depth):
    """Pictures and depth maps: 16-bit PNG or .npy. With ``scenes`` the pictures of one folder are
    of one scene."""

    format: Literal["rgbd"]
    images: Relative = "images/{split}"
    depth: Relative = "depth/{split}"
    depth_suffix: _LabelSuffix = ".png"
    scenes: bool = False

    def _layout(self) -> Layout:
        return Layout(
            self.images,
            self.depth,
            self.image_suffix,
            self.depth_suffix,
            self.list_file,
            self.scenes,
        )

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return open_layouts(name, root, self._layouts(), self._rule())


class DepthListSplit(Strict):
    """A list of pictures and depth maps, and the folders that its paths are relative to."""

    list_file: Relative = Field(alias="list")
    images: Relative = "."
    depth: Relative = "."
    scenes: bool = False


class DepthListEntry(EntryBase, _Depth):
    """Lists in the manner of BTS, a line a picture: picture, depth map, focal length."""

    format: Literal["depth-list"]
    root: str = Field(min_length=1)
    splits: dict[Role, DepthListSplit] = Field(min_length=1)

    def needs(self, root: Path) -> list[Path]:
        parts = [(each.list_file, each.images, each.depth) for each in self.splits.values()]
        return _distinct(root / part for each in parts for part in each)

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return {
            role: read_depth_list(
                name, root, each.list_file, each.images, each.depth, self._rule(),
                scenes=each.scenes,
            )
            for role, each in self.splits.items()
        }  # fmt: skip


class NYULabelledEntry(EntryBase):
    """NYU Depth v2's labelled pictures as released: ``root`` holds the .mat file and splits.mat.
    ``depth`` is raw as the sensor gave it, or filled."""

    format: Literal["nyu-labelled"]
    root: str = Field(min_length=1)
    depth: Literal["raw", "filled"] = "raw"

    def needs(self, root: Path) -> list[Path]:
        return [root / FILE, root / SPLITS]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        return {**read_nyu_labelled(name, root, self.depth)}


def _needs(root: Path, layouts: Mapping[Role, tuple[str, Layout]]) -> list[Path]:
    return _distinct(
        path for split, layout in layouts.values() for path in layout.needs(root, split)
    )


def _distinct(paths: Any) -> list[Path]:
    return list(dict.fromkeys(paths))


DenseEntry = DepthListEntry | MasksEntry | NYULabelledEntry | RGBDEntry | SegmentationEntry
DENSE: Mapping[str, type[DenseEntry]] = {
    "depth-list": DepthListEntry,
    "masks": MasksEntry,
    "nyu-labelled": NYULabelledEntry,
    "rgbd": RGBDEntry,
    **dict.fromkeys(sorted(SETS), SegmentationEntry),
}
