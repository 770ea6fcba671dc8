"""What every entry of a data-set file may say, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from harness.data.dataset import Role, safe_relative
from harness.errors import HarnessError


def _relative(text: str) -> str:
    try:
        return safe_relative(text, "path").as_posix() if text != "." else text
    except HarnessError:
        raise ValueError(f"{text!r} must be a relative path without '..'") from None


def _web(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ValueError(f"{url!r} must begin with https:// or http://")
    return url


Relative = Annotated[str, AfterValidator(_relative)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Md5 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Download(Strict):
    """One file to fetch, and the one thing that it gives.

    ``to`` is the folder it is for, relative to the folder that the entry's ``root`` is relative to.
    ``gives`` is relative to ``to``: with ``extract``, the file or folder that is taken out of the
    archive (nothing else of it is kept); without, the name of the file (by default the URL's).
    With ``flat`` it is a folder into which all files of the archive are put, without the archive's
    own folders. One thing, so that it can appear in one rename: what is there is whole.
    """

    url: Annotated[str, AfterValidator(_web)]
    sha256: Sha256 | None = None
    md5: Md5 | None = None
    to: Relative = "."
    extract: bool = False
    flat: bool = False
    gives: Relative | None = None

    @model_validator(mode="after")
    def _names_what_it_gives(self) -> Download:
        if self.gives is None and (self.extract or not self._url_name()):
            raise ValueError("gives: what the archive holds (a path in it) must be named")
        if self.flat and not self.extract:
            raise ValueError("flat: of an archive that is to be extracted (extract: true)")
        return self

    def _url_name(self) -> str:
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def target(self) -> str:
        """What appears, relative to ``to``."""
        return self.gives or self._url_name()


class EntryBase(Strict):
    license: str | None = None
    paper: str | None = None
    note: str | None = None
    pictures: PositiveInt | dict[Role, PositiveInt] | None = None
    """How many there should be: by role, or of the role test."""
    fetch: tuple[Download, ...] = ()

    @property
    def expected(self) -> Mapping[Role, int]:
        if isinstance(self.pictures, int):
            return {"test": self.pictures}
        return self.pictures or {}
