"""Depth data sets by lists in the manner of BTS (Lee et al., arXiv 1907.10326): NYU, KITTI Eigen.

A line is a picture, its depth map and a focal length; more columns (a right camera's) are not
read. A picture whose depth is written ``None`` has none, and is left out as the field does.
"""

from __future__ import annotations

from pathlib import Path

from harness.data.dataset import safe_relative
from harness.data.files import read_lines
from harness.data.label_maps import DepthRule
from harness.data.pairs import Pair, PairedDataset, open_pairs, within
from harness.errors import HarnessError


def read_depth_list(
    name: str, root: Path, listed: str, images: str, depth: str, rule: DepthRule, *, scenes: bool
) -> PairedDataset:
    """The pictures of the list ``listed``, whose paths are below the folders ``images`` and
    ``depth`` of ``root``, in its order. Ids are a picture's path in the list; with ``scenes``
    those of one folder are of one scene. Raises ``HarnessError``."""
    path, pairs = root / listed, []
    for number, line in read_lines(path):
        where, columns = f"{path}:{number}", line.split()
        if len(columns) < 2:
            raise HarnessError(f"{where}: {line!r}: a picture and its depth map were expected")
        if columns[1] == "None":
            continue
        # NYU's lists begin their paths with a slash that does not mean the root of the disk.
        picture, label = (
            safe_relative(column.lstrip("/"), where).as_posix() for column in columns[:2]
        )
        scene = picture.rpartition("/")[0] if scenes else None
        pairs.append(Pair(picture, within(images, picture), within(depth, label), scene))
    return open_pairs(name, Path(listed).stem, root, pairs, rule, path)
