"""From the bytes of a mask or a depth map to ``Dense``, and what can be wrong with them.

A rule is plain data: it travels to worker processes, and its mark goes into the fingerprint.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from harness.data.dataset import IGNORED, Dense, refuse_bomb
from harness.errors import BadPicture, HarnessError

MOST_CLASSES = 255
"""Places in ``Dense.semantic`` are bytes, of which one is ``IGNORED``."""
_MASKS = ("PNG", "BMP")  # PIL stretches grey PPM and GIF, and JPEG changes ids
_NPY = b"\x93NUMPY"
_PNG = b"\x89PNG\r\n\x1a\n"
_NO_CLASS = -1
_SHOWN = 5

Size = tuple[int, int]


@dataclass(frozen=True)
class MaskRule:
    """How the ids that a mask stores become places in ``classes``.

    ``places[id]`` is the place, ``IGNORED``, or -1 for an id that must not occur; so must none
    from ``len(places)`` on.
    """

    classes: tuple[str, ...]
    places: tuple[int, ...]

    def dense(self, data: bytes, where: str, size: Size) -> Dense:
        """The mask in ``data``, of a picture of ``size`` (width, height; (0, 0): not known).

        Raises ``BadPicture``, which calls it ``where``: colours instead of ids, another size, an
        id of no class, no pixel of a class.
        """
        ids = _single_channel(data, where)
        _check_size(ids, where, size)
        table = np.full(max(len(self.places), int(ids.max()) + 1), _NO_CLASS, np.int16)
        table[: len(self.places)] = self.places
        places = table[ids]
        if (places == _NO_CLASS).any():
            raise BadPicture(f"{where}: {self._unknown(np.unique(ids[places == _NO_CLASS]))}")
        if (places == IGNORED).all():
            raise BadPicture(f"{where}: every pixel of the mask is ignored: it tells nothing")
        return Dense(semantic=places.astype(np.uint8))

    def _unknown(self, ids: NDArray[Any]) -> str:
        known = [each for each, place in enumerate(self.places) if place != _NO_CLASS]
        one = len(ids) == 1
        return (
            f"the id{'' if one else 's'} {_some(ids)} {'is' if one else 'are'} of no class: masks "
            f"of these {len(self.classes)} classes hold {_ranges(known)}, ignored ids included"
        )

    def mark(self) -> str:
        return _digest(self)


def mask_rule(
    classes: Sequence[str],
    ids: Sequence[int] | None = None,
    ignored: Iterable[int] = (IGNORED,),
    *,
    reduce_zero_label: bool = False,
) -> MaskRule:
    """``ids`` are those that a mask stores for ``classes``, in their order: by default 0, 1, 2 …,
    with ``reduce_zero_label`` 1, 2, 3 … and 0 ignored (as ADE20K has it). ``ignored`` are the
    stored ids that count for nothing. Raises ``HarnessError``."""
    if not 0 < len(classes) <= MOST_CLASSES:
        raise HarnessError(f"{len(classes)} classes of pixels: 1 to {MOST_CLASSES} can be had")
    if ids is None:
        first = int(reduce_zero_label)
        ids = range(first, first + len(classes))
    ignored = {*ignored, 0} if reduce_zero_label else set(ignored)
    places = [_NO_CLASS] * (max(*ids, *ignored, 0) + 1)
    for each in ignored:
        places[each] = IGNORED
    for place, (each, name) in enumerate(zip(ids, classes, strict=True)):
        if places[each] != _NO_CLASS:
            other = "ignored" if places[each] == IGNORED else f"that of {classes[places[each]]!r}"
            raise HarnessError(f"the id {each} of the class {name!r} is also {other}")
        places[each] = place
    return MaskRule(tuple(classes), tuple(places))


@dataclass(frozen=True)
class DepthRule:
    """How a stored depth map becomes metres: ``scale`` stored units are a metre (1000 for
    millimetres). ``invalid`` are stored values that mean "not known"; so is what lies outside of
    ``limits``, in metres, where there are any."""

    scale: float
    invalid: tuple[float, ...] = (0.0,)
    limits: tuple[float, float] | None = None

    def dense(self, data: bytes, where: str, size: Size) -> Dense:
        """The depth map in ``data``: a 16-bit PNG or a .npy file, of a picture of ``size``.

        Raises ``BadPicture``, which calls it ``where``: 8 bits, colours, another size, NaN or
        negative values that are not among ``invalid``, no pixel of known depth.
        """
        stored = _npy(data, where) if data.startswith(_NPY) else _png_depth(data, where)
        _check_size(stored, where, size)
        return Dense(depth=self.metres(stored, where))

    def metres(self, stored: NDArray[Any], where: str) -> NDArray[np.float32]:
        """``[H, W]`` in stored units -> float32 metres, 0 where not known. Raises ``BadPicture``
        as ``dense`` does."""
        known = np.ones(stored.shape, np.bool_)
        for value in self.invalid:
            known &= ~np.isnan(stored) if math.isnan(value) else stored != value
        wrong = known & ~np.isfinite(stored)
        if wrong.any():
            raise BadPicture(
                f"{where}: the depth of {np.count_nonzero(wrong):,} pixels is NaN or infinite; "
                "where that means 'not known', the entry's invalid: has to list it (.nan, .inf)"
            )
        if (stored[known] < 0).any():
            raise BadPicture(f"{where}: negative depth ({stored[known].min():g})")
        metres = np.where(known, stored, 0).astype(np.float32) / np.float32(self.scale)
        if self.limits is not None:
            low, high = self.limits
            metres[(metres < low) | (metres > high)] = 0
        if not metres.any():
            raise BadPicture(
                f"{where}: no pixel has a known depth: all are 0, invalid, or outside of the limits"
            )
        return metres

    def mark(self) -> str:
        return _digest(self)


def _single_channel(data: bytes, where: str) -> NDArray[Any]:
    """The ids of a mask ``[H, W]``, as they are stored: of a palette picture the indices."""

    def read(image: Image.Image) -> NDArray[Any]:
        if image.mode not in ("1", "L", "P", "I", "I;16"):
            raise BadPicture(
                f"{where}: {image.mode} colours where class ids were expected: a mask is a grey or "
                "palette picture whose values are the ids"
            )
        values = np.array(image)
        if image.mode == "1":
            return values.astype(np.uint8)
        step = _grey_step(data)
        return values if step == 1 else values // step

    return _decoded(data, where, _MASKS, "mask", read)


def _png_depth(data: bytes, where: str) -> NDArray[Any]:
    def read(image: Image.Image) -> NDArray[Any]:
        if image.mode in ("1", "L", "P"):
            raise BadPicture(
                f"{where}: 8-bit depth, which has 256 steps at most: a 16-bit PNG or a .npy file "
                "was expected (is it a picture for looking at?)"
            )
        if image.mode not in ("I;16", "I"):
            raise BadPicture(f"{where}: {image.mode} colours where depth was expected")
        return np.array(image)

    return _decoded(data, where, ("PNG",), "depth map", read)


def _decoded(
    data: bytes,
    where: str,
    formats: tuple[str, ...],
    what: str,
    read: Callable[[Image.Image], NDArray[Any]],
) -> NDArray[Any]:
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            refuse_bomb(image, where)
            return read(image)
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture(f"{where}: not a {what}: {' or '.join(formats)} was expected") from None
    except Exception as error:  # PIL's plugins raise nearly anything on damaged bytes
        raise BadPicture(f"{where}: damaged {what}: {error}") from None


def _grey_step(data: bytes) -> int:
    """By how much neighbouring values of a grey PNG of 2 or 4 bits differ after PIL has stretched
    them to 0 … 255. Bit depth and colour type are bytes 24 and 25 (PNG, 11.2.2)."""
    if data.startswith(_PNG) and data[25] == 0:
        return {2: 85, 4: 17}.get(data[24], 1)
    return 1


def _npy(data: bytes, where: str) -> NDArray[Any]:
    try:
        stored = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # its header is Python source, which can be wrong in many ways
        raise BadPicture(f"{where}: damaged .npy file: {error}") from None
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.size == 0 or stored.dtype.kind not in "fiu":
        raise BadPicture(
            f"{where}: {stored.dtype} of shape {stored.shape}: numbers of [H, W] were expected"
        )
    if stored.dtype.itemsize < 2:
        raise BadPicture(f"{where}: 8-bit depth, which has 256 steps at most")
    return np.asarray(stored)


def _check_size(array: NDArray[Any], where: str, size: Size) -> None:
    height, width = array.shape
    if size not in ((0, 0), (width, height)):
        raise BadPicture(
            f"{where}: {width}x{height} pixels, but its picture has {size[0]}x{size[1]}"
        )


def _digest(rule: MaskRule | DepthRule) -> str:
    return hashlib.sha256(json.dumps(asdict(rule)).encode()).hexdigest()[:16]


def _some(ids: NDArray[Any]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(str(each) for each in ids[:_SHOWN]) + more


def _ranges(ids: Sequence[int]) -> str:
    """0 to 10, 255."""
    runs: list[list[int]] = []
    for each in ids:
        if runs and each == runs[-1][-1] + 1:
            runs[-1][1:] = [each]
        else:
            runs.append([each])
    return ", ".join(" to ".join(str(end) for end in run) for run in runs)
