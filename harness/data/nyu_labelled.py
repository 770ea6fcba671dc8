"""NYU Depth v2's labelled pictures (Silberman et al., ECCV 2012): one HDF5 file and ``splits.mat``.

MATLAB wrote the file, so that its arrays come with their axes reversed: pictures are
``[n, 3, width, height]``, depth is ``[n, width, height]`` in metres. Nothing but one picture is in
memory at a time, and the file is opened for each: a handle cannot be shared with worker processes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset import Dataset, Dense, Role, Sample
from harness.data.label_maps import DepthRule
from harness.errors import BadPicture, HarnessError

FILE = "nyu_depth_v2_labeled.mat"
SPLITS = "splits.mat"
_FIELDS: dict[str, str] = {"raw": "rawDepths", "filled": "depths"}
_ROLES: dict[Role, str] = {"train": "trainNdxs", "test": "testNdxs"}
_METRES = DepthRule(scale=1.0)

T = TypeVar("T")
Which = Literal["raw", "filled"]


class LabelledDataset(Dataset):
    """One split. Ids are the official numbers, from 0001; scenes are those of the release."""

    def __init__(
        self, name: str, split: str, path: Path, numbers: list[int], which: Which, facts: _Facts
    ) -> None:
        self.name, self.split = name, split
        self.samples = [
            Sample(f"{number:04d}", facts.size, scene=facts.scenes[number - 1])
            for number in numbers
        ]
        self.has_depth = True
        self._path, self._numbers, self._field = path, numbers, _FIELDS[which]
        self._mark = f"{FILE} {path.stat().st_size} {self._field}"

    def read(self, index: int) -> bytes:
        """Picture ``index`` as PNG, which keeps every pixel."""
        buffer = io.BytesIO()
        Image.fromarray(self.picture(index)).save(buffer, format="PNG")
        return buffer.getvalue()

    def picture(self, index: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._row("images", index).transpose(2, 1, 0))

    def dense(self, index: int) -> Dense:
        stored = self._row(self._field, index).T
        return Dense(depth=np.ascontiguousarray(_METRES.metres(stored, self.where(index))))

    def dense_mark(self, index: int) -> str:
        return self._mark

    def where(self, index: int) -> str:
        return f"{self._path}: picture {self._numbers[index]}"

    def _row(self, name: str, index: int) -> NDArray[Any]:
        try:
            return _opened(
                self._path, lambda file: np.asarray(file[name][self._numbers[index] - 1])
            )
        except HarnessError as error:
            raise BadPicture(f"{self.where(index)}: {error}") from None


class _Facts:
    """What there is to know of all pictures: how many, their size, the scene of each."""

    def __init__(self, file: Any) -> None:
        count, channels, width, height = file["images"].shape
        self.size = (int(width), int(height))
        for name in _FIELDS.values():
            if file[name].shape != (count, width, height) or channels != 3:
                raise ValueError(f"{name} is not of the pictures' size")
        letters = (file[reference][()].ravel() for reference in file["scenes"][0])
        self.scenes = ["".join(map(chr, each)) for each in letters]
        if len(self.scenes) != count:
            raise ValueError(f"{len(self.scenes)} scenes for {count} pictures")


def read_nyu_labelled(name: str, root: Path, which: Which) -> dict[Role, LabelledDataset]:
    """The official splits (795 + 654 pictures). ``which`` depth: ``raw`` as the sensor gave it,
    projected onto the picture, 0 where it saw nothing (what BTS and DINOv2 are judged on), or
    ``filled``. Raises ``HarnessError``, also where h5py is not installed."""
    path = root / FILE
    facts = _opened(path, _Facts)
    count = len(facts.scenes)
    return {
        role: LabelledDataset(name, role, path, numbers, which, facts)
        for role, numbers in _splits(root / SPLITS, count).items()
    }


def _opened(path: Path, read: Callable[[Any], T]) -> T:
    try:
        import h5py
    except ImportError as error:
        raise HarnessError(
            f"{path}: its format is HDF5, which needs h5py ({error}): "
            "pip install 'vit-harness[nyu]'"
        ) from None
    try:
        with h5py.File(path, "r") as file:
            return read(file)
    except Exception as error:  # h5py raises nearly anything on damaged bytes
        raise HarnessError(
            f"{path}: not NYU Depth v2's labelled data set, or damaged: {error}"
        ) from None


def _splits(path: Path, count: int) -> dict[Role, list[int]]:
    import scipy.io

    load: Any = scipy.io.loadmat
    try:
        found = load(path)
        splits = {role: [int(n) for n in found[key].ravel()] for role, key in _ROLES.items()}
    except Exception as error:  # scipy raises nearly anything on damaged bytes
        raise HarnessError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None
    for role, numbers in splits.items():
        wrong = [number for number in numbers if not 1 <= number <= count]
        if wrong or not numbers or len(set(numbers)) != len(numbers):
            raise HarnessError(
                f"{path}: {_ROLES[role]} is not a list of different pictures from 1 to {count}"
            )
    return splits
