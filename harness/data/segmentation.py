"""Data sets with a class for every pixel, in the layouts of their releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.data.dataset import Dataset, Role
from harness.data.label_maps import DepthRule, MaskRule, mask_rule
from harness.data.pairs import Layout, open_pairs
from harness.data.semantic_classes import (
    ADE20K,
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_LABELS,
    COCO_STUFF,
    COCO_STUFF_IDS,
    VOC,
)


@dataclass(frozen=True)
class SegmentationSet:
    """``splits`` are the official ones by role; ``labels_of`` names another folder for the masks
    of some splits than the layout's."""

    layout: Layout
    rule: MaskRule
    splits: Mapping[Role, str]
    labels_of: Mapping[str, str] = field(default_factory=dict)

    def layout_of(self, split: str, images: str | None, masks: str | None) -> Layout:
        """The layout of ``split``, with other folders where they are given."""
        labels = masks or self.labels_of.get(split, self.layout.labels)
        return replace(self.layout, images=images or self.layout.images, labels=labels)


def open_layouts(
    name: str, root: Path, layouts: Mapping[Role, tuple[str, Layout]], rule: MaskRule | DepthRule
) -> dict[Role, Dataset]:
    """One data set a role, each of a split and its layout. Raises ``HarnessError``."""
    return {
        role: open_pairs(
            name,
            split,
            root,
            layout.pairs(root, split),
            rule,
            layout.needs(root, split)[-1 if layout.listed else 0],
        )
        for role, (split, layout) in layouts.items()
    }


_VOC = Layout(
    "JPEGImages", "SegmentationClass", ".jpg", listed="ImageSets/Segmentation/{split}.txt"
)
_LEFT_OUT = tuple(
    each for each in range(CITYSCAPES_LABELS) if each not in CITYSCAPES.values()
)  # the official table's trainId 255

SETS: Mapping[str, SegmentationSet] = {
    # Zhou et al., CVPR 2017: masks hold class k as k + 1, and 0 where there is none of the 150.
    "ade20k": SegmentationSet(
        Layout("images/{split}", "annotations/{split}"),
        mask_rule(ADE20K, reduce_zero_label=True),
        {"train": "training", "test": "validation"},
    ),
    # Brostow et al., 2009, as Badrinarayanan et al. (SegNet) give it out.
    "camvid": SegmentationSet(
        Layout("{split}", "{split}annot"),
        mask_rule(CAMVID, ignored=(len(CAMVID),)),
        {"train": "train", "select": "val", "test": "test"},
    ),
    # Cordts et al., CVPR 2016; the city is part of the id.
    "cityscapes": SegmentationSet(
        Layout(
            "leftImg8bit/{split}",
            "gtFine/{split}",
            "_leftImg8bit.png",
            "_gtFine_labelIds.png",
        ),
        mask_rule(list(CITYSCAPES), list(CITYSCAPES.values()), _LEFT_OUT),
        {"train": "train", "test": "val"},
    ),
    # Caesar et al., CVPR 2018.
    "coco-stuff": SegmentationSet(
        Layout("{split}", "stuffthingmaps/{split}"),
        mask_rule(COCO_STUFF, COCO_STUFF_IDS),
        {"train": "train2017", "test": "val2017"},
    ),
    # Everingham et al., 2012; the augmented masks: Hariharan et al., ICCV 2011.
    "voc-segmentation": SegmentationSet(
        _VOC,
        mask_rule(VOC),
        {"train": "train", "test": "val"},
        {"trainaug": "SegmentationClassAug"},
    ),
}
