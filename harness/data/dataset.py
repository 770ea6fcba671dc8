"""What every reader gives: samples with labels, in a fixed order, and a fingerprint.

Boxes are in pixels of the *stored* picture: the pixel grid as the file holds it. An EXIF rotation
is not applied, because the annotations of VOC and COCO were drawn on the stored grid.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from harness.documents import path_problem
from harness.errors import BadPicture, HarnessError

Role = Literal["train", "select", "test"]
ROLES: tuple[Role, ...] = ("train", "select", "test")

# Only these decoders run on a stranger's bytes: PIL knows some forty more, one of which starts
# Ghostscript. TIFF is left out because PIL turns it by its orientation tag while loading.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm"})
IGNORED = 255
"""In ``Dense.semantic``: a pixel that is of no class and counts for nothing."""
MAX_PIXELS = 2**26
"""A picture of more pixels (67 million: a 201 MB array) is taken for a decompression bomb."""
MOST_PIXELS = 2**31
"""No side of a picture is as long as this, whatever an annotation says."""


@dataclass(frozen=True)
class Boxes:
    """The annotated objects of one picture.

    ``xyxy`` is float64 ``[n, 4]``: x0, y0, x1, y1 in pixels from the top left corner, x1 and y1
    exclusive, as annotated (a box may overhang the picture's edge).
    """

    xyxy: NDArray[np.float64]
    classes: tuple[str, ...]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


@dataclass(frozen=True)
class Query:
    """What a picture asks for in retrieval, and which pictures of the gallery answer it.

    ``region`` is the part that is asked about, x0, y0, x1, y1 in pixels as annotated (None: all of
    the picture). ``easy``, ``hard`` and ``junk`` are places in the gallery, which is the role
    train: junk neither answers nor fails to.
    """

    region: tuple[float, float, float, float] | None
    easy: tuple[int, ...]
    hard: tuple[int, ...]
    junk: tuple[int, ...]


@dataclass(frozen=True)
class Labels:
    """All classes of a picture that has, or may have, several: places in ``Dataset.classes``.

    ``present`` are those that it shows (VOC), or that are right for it (ReaL); there may be none.
    ``unclear`` ones are neither present nor absent (VOC's difficult). Both rise.
    """

    present: tuple[int, ...]
    unclear: tuple[int, ...] = ()


@dataclass(frozen=True)
class Target:
    """All that is known of a picture, at its stored size. What a data set lacks is None."""

    boxes: Boxes | None = None
    label: int | None = None
    query: Query | None = None
    labels: Labels | None = None
    captions: tuple[str, ...] | None = None
    """What people say of the picture, in the data set's order: at least one text."""
    written: int | None = None
    """The class whose name somebody wrote into the picture, to mislead: a place in
    ``Dataset.classes``."""


@dataclass(frozen=True)
class Dense:
    """What is known of every pixel of one picture, at its stored size ``[H, W]``. What a data set
    lacks is None."""

    semantic: NDArray[np.uint8] | None = None
    """The place of the pixel's class in ``Dataset.semantic_classes``, or ``IGNORED``."""
    instances: NDArray[np.uint8] | None = None
    """0 where there is no object; else the number of the object, from 1."""
    depth: NDArray[np.float32] | None = None
    """Metres along the camera's axis; 0 where it is not known."""


@dataclass(frozen=True)
class Sample:
    """One picture: a unique ``id``, its stored ``(width, height)``, its labels.

    The size is what the annotation says, or the picture's header where it says nothing: it serves
    to plan. Where the two disagree, the pixels that ``Dataset.picture`` gives are the truth.
    ``(0, 0)`` is a size that neither tells; reading such a picture raises ``BadPicture``. Pictures
    of one ``scene`` (frames of a video, shots of a room) are not independent of each other.
    """

    id: str
    size: tuple[int, int]
    target: Target = field(default_factory=Target)
    scene: str | None = None


class Dataset:
    """One split of a data set: ``samples`` in a fixed order, and their pictures.

    Subclasses are readers. They are pickled to worker processes, so they hold plain data only.
    ``classes`` are the names that ``Target.label`` indexes, ``semantic_classes`` those of
    ``Dense.semantic``; each is empty where there are none. ``has_depth``: ``Dense.depth`` is there.
    """

    name: str
    split: str
    samples: Sequence[Sample]
    classes: tuple[str, ...] = ()
    semantic_classes: tuple[str, ...] = ()
    has_depth: bool = False

    def read(self, index: int) -> bytes:
        """The encoded bytes of picture ``index``. Raises ``BadPicture``."""
        raise NotImplementedError

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Picture ``index`` as stored, ``[height, width, 3]`` RGB. Raises ``BadPicture``."""
        return decode(self.read(index), self.where(index))

    def dense(self, index: int) -> Dense:
        """What is known of every pixel of picture ``index``; read apart, because it is large.
        Raises ``BadPicture``."""
        return Dense()

    def dense_mark(self, index: int) -> str | None:
        """What the fingerprint holds of ``dense(index)``, told without reading it: the name and
        size in bytes of its file, and how it is read. None where there is none."""
        return None

    def sizes(self) -> set[tuple[int, int]]:
        """The stored sizes that there are among its pictures."""
        return {sample.size for sample in self.samples}

    def where(self, index: int) -> str:
        """What an error about picture ``index`` calls it: its file where it has one."""
        return self.samples[index].id

    def missing(self) -> list[str]:
        """The ids whose pictures were not there when the data set was opened."""
        return []

    def fingerprint(self) -> str:
        """sha256 over ids, sizes and labels in order: two data sets agree if and only if it does.

        Pixels are not read: a picture that was re-encoded keeps its fingerprint, and of masks and
        depth only ``dense_mark`` goes in.
        """
        digest = hashlib.sha256()
        for index, sample in enumerate(self.samples):
            line = [sample.id, *sample.size, _canonical(sample.target)]
            if (mark := self.dense_mark(index)) is not None:
                line.append(mark)
            digest.update(json.dumps(line, ensure_ascii=True).encode() + b"\n")
        return digest.hexdigest()

    @property
    def has_boxes(self) -> bool:
        return any(sample.target.boxes is not None for sample in self.samples)


def places_by_id(dataset: Dataset) -> dict[str, int]:
    """Where each picture stands in the data set's order."""
    return {sample.id: place for place, sample in enumerate(dataset.samples)}


class First(Dataset):
    """The first ``count`` pictures of another data set, in its order (``--limit``)."""

    def __init__(self, whole: Dataset, count: int) -> None:
        self.name = whole.name
        self.split = whole.split
        self.classes = whole.classes
        self.semantic_classes, self.has_depth = whole.semantic_classes, whole.has_depth
        self.samples = whole.samples[:count]
        self._whole = whole

    def read(self, index: int) -> bytes:
        return self._whole.read(index)

    def picture(self, index: int) -> NDArray[np.uint8]:
        return self._whole.picture(index)

    def dense(self, index: int) -> Dense:
        return self._whole.dense(index)

    def dense_mark(self, index: int) -> str | None:
        return self._whole.dense_mark(index)

    def where(self, index: int) -> str:
        return self._whole.where(index)

    def missing(self) -> list[str]:
        kept = {sample.id for sample in self.samples}
        return [identity for identity in self._whole.missing() if identity in kept]


def _canonical(target: Target) -> list[object]:
    # What came later stands behind the rest, so that data sets without it keep their fingerprints.
    later: list[object] = []
    if target.query is not None:
        later.append(list(asdict(target.query).values()))
    if target.labels is not None:
        later.append(asdict(target.labels))
    if target.captions is not None:
        later.append({"captions": list(target.captions)})
    if target.written is not None:
        later.append({"written": target.written})
    boxes = target.boxes
    if boxes is None:
        return [target.label, None, *later]
    rows = [
        [*map(float, xyxy), name, bool(crowd), bool(difficult), bool(truncated)]
        for xyxy, name, crowd, difficult, truncated in zip(
            boxes.xyxy, boxes.classes, boxes.crowd, boxes.difficult, boxes.truncated, strict=True
        )
    ]
    return [target.label, rows, *later]


def decode(data: bytes, name: str) -> NDArray[np.uint8]:
    """Encoded picture -> ``[height, width, 3]`` uint8 RGB, on the stored grid (no EXIF rotation).

    Grey, palette and CMYK pictures are converted as PIL's ``convert("RGB")`` does, which is what
    the field's reference code runs. Raises ``BadPicture`` for anything that is not a whole picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            refuse_bomb(image, name)
            return np.array(image.convert("RGB"))
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture(f"{name}: not a picture (none of {', '.join(FORMATS)})") from None
    except Exception as error:  # PIL's plugins raise nearly anything on damaged bytes
        raise BadPicture(f"{name}: damaged picture: {error}") from None


def header_size(path: Path | BinaryIO) -> tuple[int, int]:
    """``(width, height)`` as the picture's header gives it; no pixel is decoded.

    ``(0, 0)`` where there is no file or no header that can be read: what is wrong with the picture
    is said when it is read, so that one bad file does not keep a data set from opening.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception:  # PIL's plugins raise nearly anything on damaged bytes
        return (0, 0)


def refuse_bomb(image: Image.Image, name: str) -> None:
    """Before anything is allocated. PIL's own check is a process-wide setting, and only warns."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{name}: {width}x{height} pixels; more than {MAX_PIXELS:,} are not read")


def safe_relative(text: str, where: str) -> Path:
    """A path named by an annotation: relative, inside the data set. Raises ``HarnessError``."""
    path = Path(text.replace("\\", "/"))
    if problem := path_problem(text):
        raise HarnessError(f"{where}: the path {text[:100]!r} {problem}; not followed")
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise HarnessError(f"{where}: the path {text!r} leaves the data set's folder; not followed")
    return path
