"""Data sets that torchvision knows: its classes say which pictures are of which split and class.

Their ``root`` here is what torchvision calls ``root``, and nothing is ever downloaded: torchvision
is asked with ``download=False``. It is loaded when such a data set is opened, not before.

Where a release has a split for validation beside train, both are train here, as Kornblith et al.
(2019, arXiv 1805.08974, Table 1) count them: hyper-parameters are chosen on a part of train that
is the same for every model. DTD is its split 1.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset import Dataset, Role, Sample, Target
from harness.data.listed import Annotations, Listed, Row, open_listed
from harness.errors import HarnessError


class ArrayDataset(Dataset):
    """Pictures that lie in one array, uint8 ``[n, height, width, 3]`` RGB (CIFAR's binary files).

    Ids are ``train/00000``, the place in the official order."""

    def __init__(
        self,
        name: str,
        split: str,
        pictures: NDArray[np.uint8],
        labels: Sequence[int],
        classes: tuple[str, ...],
    ) -> None:
        height, width = pictures.shape[1:3]
        self.name, self.split, self.classes = name, split, classes
        self.samples = [
            Sample(f"{split}/{place:05d}", (width, height), Target(label=label))
            for place, label in enumerate(labels)
        ]
        self._pictures = pictures

    def read(self, index: int) -> bytes:
        """Picture ``index`` as PNG, which keeps every pixel."""
        buffer = io.BytesIO()
        Image.fromarray(self._pictures[index]).save(buffer, format="PNG")
        return buffer.getvalue()

    def picture(self, index: int) -> NDArray[np.uint8]:
        copy: NDArray[np.uint8] = self._pictures[index].copy()
        return copy


@dataclass(frozen=True)
class TorchvisionSet:
    """A class of ``torchvision.datasets``: what each role passes to it, and what of it holds the
    files and labels (kept private there, under the same names since 0.13)."""

    constructor: str
    roles: Mapping[Role, tuple[Mapping[str, Any], ...]]
    needs: tuple[str, ...]
    files: Callable[[Any], tuple[Sequence[Any], Sequence[int]]] | None = None
    """None: the pictures are not files but an array."""

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        """Raises ``HarnessError`` where torchvision cannot make sense of what is there."""
        opened = {
            role: [self._construct(root, options) for options in parts]
            for role, parts in self.roles.items()
        }
        classes = tuple(str(each) for each in opened["test"][0].classes)
        for part in (part for parts in opened.values() for part in parts):
            if tuple(str(each) for each in part.classes) != classes:
                raise HarnessError(
                    f"{root}: the splits of {self.constructor} are not of the same classes "
                    f"({len(part.classes)} and {len(classes)}); a list is incomplete"
                )
        if self.files is None:
            return {
                role: ArrayDataset(name, role, part.data, _whole(part.targets), classes)
                for role, (part,) in opened.items()
            }
        listed = {role: self._listed(root, role, parts) for role, parts in opened.items()}
        return {**open_listed(name, root, Annotations(classes, listed))}

    def _construct(self, root: Path, options: Mapping[str, Any]) -> Any:
        from torchvision import datasets

        constructor = getattr(datasets, self.constructor)
        if self.files is None:
            _check_md5s(constructor, root)
        try:
            return constructor(str(root), **options, download=False)
        except Exception as error:  # what torchvision's readers raise on a damaged list is open
            what = str(error).partition(" You can use download=True")[0]
            raise HarnessError(
                f"{root}: torchvision cannot read it as {self.constructor} "
                f"({_say(options)}): {type(error).__name__}: {what}"
            ) from None

    def _listed(self, root: Path, role: Role, parts: Sequence[Any]) -> Listed:
        assert self.files is not None
        rows: list[Row] = []
        for part in parts:
            try:
                files, labels = self.files(part)
            except AttributeError as error:
                raise HarnessError(
                    f"torchvision's {self.constructor} has changed: {error}; "
                    "another version of torchvision may fit"
                ) from None
            for file, label in zip(files, _whole(labels), strict=True):
                # A path that leads out of the root stays as it is: open_listed refuses it.
                path = Path(file)
                inside = path.relative_to(root) if path.is_relative_to(root) else path
                rows.append(Row(inside.as_posix(), label))
        return Listed("+".join(_say(options) for options in self.roles[role]), root, rows)


def _say(options: Mapping[str, Any]) -> str:
    if "train" in options:
        return "train" if options["train"] else "test"
    return str(options["split"])


def _whole(labels: Sequence[Any]) -> list[int]:
    """Labels as Python's own numbers: a .mat file gives numpy's, which JSON does not take."""
    return [int(label) for label in labels]


def _check_md5s(constructor: Any, root: Path) -> None:
    """CIFAR's files are pickles: only those whose bytes are the official ones are loaded."""
    from torchvision.datasets.utils import check_integrity

    meta = (constructor.meta["filename"], constructor.meta["md5"])
    for file, md5 in [*constructor.train_list, *constructor.test_list, meta]:
        path = root / constructor.base_folder / file
        if not check_integrity(str(path), md5):
            state = "its md5 is not the official one" if path.is_file() else "no such file"
            raise HarnessError(
                f"{path}: {state} ({md5}), so it is not unpickled: remove "
                f"{path.parent} and fetch the data set again"
            )


def _split(*names: str) -> tuple[Mapping[str, Any], ...]:
    return tuple({"split": name} for name in names)


def _image_files(part: Any) -> tuple[Sequence[Any], Sequence[int]]:
    return part._image_files, part._labels


_CIFAR_ROLES: Mapping[Role, tuple[Mapping[str, Any], ...]] = {
    "train": ({"train": True},),
    "test": ({"train": False},),
}
_CIFAR10 = [f"data_batch_{number}" for number in range(1, 6)]

SETS: Mapping[str, TorchvisionSet] = {
    "aircraft": TorchvisionSet(
        "FGVCAircraft",
        {"train": _split("trainval"), "test": _split("test")},
        tuple(
            f"fgvc-aircraft-2013b/data/{each}"
            for each in ("variants.txt", "images_variant_trainval.txt", "images_variant_test.txt")
        ),
        _image_files,
    ),
    "cars": TorchvisionSet(
        "StanfordCars",
        {"train": _split("train"), "test": _split("test")},
        tuple(
            f"stanford_cars/{each}"
            for each in (
                "devkit/cars_meta.mat",
                "devkit/cars_train_annos.mat",
                "cars_test_annos_withlabels.mat",
                "cars_train",
                "cars_test",
            )
        ),
        lambda part: ([file for file, _ in part._samples], [label for _, label in part._samples]),
    ),
    "cifar10": TorchvisionSet(
        "CIFAR10",
        _CIFAR_ROLES,
        tuple(f"cifar-10-batches-py/{each}" for each in (*_CIFAR10, "test_batch", "batches.meta")),
    ),
    "cifar100": TorchvisionSet(
        "CIFAR100",
        _CIFAR_ROLES,
        tuple(f"cifar-100-python/{each}" for each in ("train", "test", "meta")),
    ),
    "dtd": TorchvisionSet(
        "DTD",
        {"train": _split("train", "val"), "test": _split("test")},
        tuple(f"dtd/dtd/labels/{each}1.txt" for each in ("train", "val", "test")),
        _image_files,
    ),
    "flowers": TorchvisionSet(
        "Flowers102",
        {"train": _split("train", "val"), "test": _split("test")},
        tuple(f"flowers-102/{each}" for each in ("jpg", "imagelabels.mat", "setid.mat")),
        _image_files,
    ),
    "food": TorchvisionSet(
        "Food101",
        {"train": _split("train"), "test": _split("test")},
        ("food-101/images", "food-101/meta/train.json", "food-101/meta/test.json"),
        _image_files,
    ),
    "pets": TorchvisionSet(
        "OxfordIIITPet",
        {"train": _split("trainval"), "test": _split("test")},
        tuple(
            f"oxford-iiit-pet/{each}"
            for each in ("images", "annotations/trainval.txt", "annotations/test.txt")
        ),
        lambda part: (part._images, part._labels),
    ),
}
