"""Where the text tower of an entry comes from (its ``text:``). Nothing here imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, StrictStr, model_validator

from harness.documents import canonical_json, has_text
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.registry import ModelEntry, Registry
    from harness.task import Task

LOCAL = "local-dir:"
"""open_clip's prefix for a folder with ``open_clip_config.json``, weights and tokenizer."""
HUB = "hf-hub:"
"""open_clip's prefix for such a folder on the Hugging Face hub."""

EXTRA = "pip install 'vit-harness[openclip]'"
NOT_INSTALLED = f"its text tower is open_clip's, which is not installed: {EXTRA}"

_Name = Annotated[StrictStr, AfterValidator(has_text)]

_VERSION = 1
"""Another number whenever harness code changes the vectors that a tower gives."""


class TextSource(BaseModel):
    """One of: an ``openclip`` model by open_clip's own name, with ``weights`` (its tag) or a local
    ``checkpoint``; ``openclip: local-dir:FOLDER`` or ``hf-hub:NAME``, which bring their weights; a
    ``nano`` tower of ours, one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    openclip: _Name | None = None
    weights: _Name | None = None
    checkpoint: Path | None = None
    nano: Path | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.openclip is None) == (self.nano is None):
            raise ValueError("exactly one of `openclip:` and `nano:` must be given")
        given = [self.weights is not None, self.checkpoint is not None]
        if self.nano is not None:
            if any(given):
                raise ValueError("a `nano:` tower is one file: no `weights:`, no `checkpoint:`")
        elif self.whole:
            if any(given):
                raise ValueError(
                    f"{LOCAL} and {HUB} bring their weights: no `weights:`, no `checkpoint:`"
                )
        elif given.count(True) != 1:
            raise ValueError(
                "beside `openclip:` exactly one of `weights:` (open_clip's tag) and `checkpoint:` "
                "must be given"
            )
        return self

    @property
    def whole(self) -> bool:
        """Whether open_clip's name brings its weights."""
        return (self.openclip or "").startswith((LOCAL, HUB))

    @property
    def folder(self) -> Path | None:
        """The folder of ``local-dir:``."""
        name = self.openclip or ""
        return Path(name.removeprefix(LOCAL)) if name.startswith(LOCAL) else None

    @property
    def name(self) -> str:
        """``open_clip ViT-B-16 laion2b_s34b_b88k``, for tables and errors: no folder of this
        machine."""
        if self.nano is not None:
            return f"nano {self.nano.name}"
        if (folder := self.folder) is not None:
            return f"open_clip {LOCAL}{folder.name}"
        own = self.weights or (self.checkpoint.name if self.checkpoint else "")
        return f"open_clip {self.openclip} {own}".rstrip()

    def placed(self, place: Callable[[Path], Path]) -> TextSource:
        """With every file and folder where ``place`` says."""
        moved: dict[str, Any] = {
            key: place(path)
            for key, path in (("checkpoint", self.checkpoint), ("nano", self.nano))
            if path is not None
        }
        if (folder := self.folder) is not None:
            moved["openclip"] = f"{LOCAL}{place(folder)}"
        return self.model_copy(update=moved)

    def digest(self, weights: str = "released", seed: int = 0) -> str:
        """sha256 of all that decides the tower's vectors, found without loading it: open_clip's
        names, the bytes of local files, and the seed of ``random`` weights.

        Raises ``HarnessError`` for a local file that cannot be read.
        """
        facts: dict[str, Any] = {"version": _VERSION}
        if weights == "random":
            facts["random"] = seed
        if self.nano is not None:
            facts["nano"] = _sha256(self.nano)
        elif (folder := self.folder) is not None:
            facts["folder"] = {p.name: _sha256(p) for p in _files(folder)}
        else:
            facts["openclip"] = self.openclip
            if weights != "random":
                facts["weights"] = self.weights
                if self.checkpoint is not None:
                    facts["weights"] = _sha256(self.checkpoint)
        return hashlib.sha256(canonical_json(facts)).hexdigest()


def text_digest(task: Task[Any], entry: ModelEntry, variant: Mapping[str, Any]) -> str | None:
    """The digest of the tower that a cell of that ``variant`` reads; None where it reads none."""
    if not task.needs_text or entry.text is None:
        return None
    return entry.text.digest(variant.get("weights", "released"), variant.get("seed", 0))


def cannot_read(task: Task[Any], entry: ModelEntry, registry: Registry) -> str | None:
    """Why ``task`` makes no sense for an entry without a text tower; None where it does.

    Raises ``HarnessError`` where open_clip, which has the tower, is not installed: told before the
    pictures are read, and not after."""
    if not task.needs_text:
        return None
    if entry.text is not None:
        if entry.text.openclip is not None and find_spec("open_clip") is None:
            raise HarnessError(f"model {entry.name!r}: {NOT_INSTALLED}")
        return None
    return f"the model has no text tower ({_some(having(registry))} have one)"


def having(registry: Registry) -> list[str]:
    """The names of the models that have a text tower."""
    return [name for name in registry.names() if registry.entry(name).text is not None]


def _some(names: Collection[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise HarnessError(f"{folder}: cannot be read: {error.strerror}") from None


def _sha256(path: Path) -> str:
    try:
        status = path.stat()
        return _sha256_of(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None


@cache
def _sha256_of(path: Path, changed: int, size: int) -> str:
    """A plan asks for it once a cell: the file is read once as long as it stays as it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
