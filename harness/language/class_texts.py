"""Classes of a data set -> the texts that stand for each: its names, put into templates.

``prompts/<name>.yaml`` has what a data set's classes are called and which templates are its own;
a user's file of the same form takes its place (``--set prompts=FILE``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
)

from harness.documents import canonical_json, has_text, read_yaml
from harness.errors import HarnessError

FOLDER = Path(__file__).with_name("prompts")
SLOT = "{}"
PLAIN = ("a photo of a {}.",)
"""CLIP's default prompt (arXiv:2103.00020, section 3.1.4)."""


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _names(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _listed(each) for key, each in value.items()}
    return value


class PromptSet(BaseModel):
    """What a file of prompts says.

    ``classes``: the data set's own word for a class -> its name, or several that mean the same;
    classes that are not there are called by the data set's word, cleaned. ``last_words``: of a
    cleaned word only so many at its end are the name. ``same_names``: two classes may be called
    alike (the first of them then takes the pictures of both). ``datasets``: which data sets of the
    catalog the file is of, where not of the one that it is called by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    templates: Annotated[tuple[StrictStr, ...], BeforeValidator(_listed), Field(min_length=1)] = (
        PLAIN
    )
    classes: Annotated[
        dict[StrictStr, Annotated[tuple[StrictStr, ...], Field(min_length=1)]],
        BeforeValidator(_names),
    ] = Field(default_factory=dict)
    last_words: StrictInt | None = Field(None, ge=1)
    same_names: StrictBool = False
    datasets: tuple[StrictStr, ...] = ()

    @field_validator("templates")
    @classmethod
    def _have_a_slot(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for place, template in enumerate(templates):
            if template.count(SLOT) != 1:
                raise ValueError(f"the template {template!r} has not one slot {SLOT} for the name")
            has_text(template)
            if template in templates[:place]:
                raise ValueError(f"the template {template!r} stands twice")
        return templates

    @field_validator("classes")
    @classmethod
    def _have_names(cls, classes: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for word, names in classes.items():
            for place, name in enumerate(names):
                if not name.strip():
                    raise ValueError(f"the class {word!r} has an empty name")
                has_text(name)
                if name in names[:place]:
                    raise ValueError(f"the class {word!r} has the name {name!r} twice")
        return classes


def _chosen(value: object) -> object:
    if isinstance(value, str) and value not in {"own", "plain"}:
        if not Path(value).exists():
            raise HarnessError(f"prompts {value}: no such file (or one of: own, plain)")
        return read_prompts(Path(value)).model_dump(exclude={"datasets"})
    return value


Prompts = Annotated[
    Literal["own", "plain"] | PromptSet,
    BeforeValidator(_chosen),
    Field(
        description="own: the data set's templates; plain: `a photo of a {}.`; or a FILE, which "
        "stands whole in the record"
    ),
]
"""A protocol's field: which texts stand for a class."""


def read_prompts(path: Path) -> PromptSet:
    """Raises ``HarnessError`` with file and line."""
    document = read_yaml(path)
    try:
        return PromptSet.model_validate(document.data)
    except ValidationError as error:
        raise document.validation_error((), error, PromptSet.model_fields) from None


@cache
def shipped() -> Mapping[str, PromptSet]:
    """By data set, what is shipped."""
    found: dict[str, PromptSet] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        prompts = read_prompts(path)
        for name in prompts.datasets or (path.stem,):
            found[name] = prompts
    return found


def class_texts(
    dataset: str, classes: Sequence[str], prompts: Literal["own", "plain"] | PromptSet
) -> tuple[tuple[str, ...], ...]:
    """For each class of the data set the texts whose vectors' mean stands for it.

    Raises ``HarnessError`` for a class without a name, and for two of one name.
    """
    given = prompts if isinstance(prompts, PromptSet) else _of(dataset, classes)
    templates = PLAIN if prompts == "plain" else given.templates
    return tuple(
        tuple(template.replace(SLOT, name) for name in names for template in templates)
        for names in class_names(dataset, classes, prompts)
    )


def texts_digest(texts: Sequence[Sequence[str]]) -> str:
    """sha256 of all texts of all classes."""
    return hashlib.sha256(canonical_json([list(each) for each in texts])).hexdigest()


def class_names(
    dataset: str, classes: Sequence[str], prompts: Literal["own", "plain"] | PromptSet = "own"
) -> tuple[tuple[str, ...], ...]:
    """What each class is called: one name, or several. Raises as ``class_texts`` does."""
    given = prompts if isinstance(prompts, PromptSet) else _of(dataset, classes)
    strange = [word for word in given.classes if word not in set(classes)]
    if strange and isinstance(prompts, PromptSet):
        more = f" (and {len(strange) - 1} more of the file's)" if len(strange) > 1 else ""
        raise HarnessError(f"prompts: data set {dataset!r} has no class {strange[0]!r}{more}")
    found = tuple(given.classes.get(word) or (_cleaned(dataset, word, given),) for word in classes)
    owner: dict[str, str] = {}
    for word, names in zip(classes, found, strict=True):
        for name in names:
            other = owner.setdefault(name, word)
            if other != word and not given.same_names:
                raise HarnessError(
                    f"data set {dataset!r}: the classes {other!r} and {word!r} are both called "
                    f"{name!r}: no text can tell them apart; {_NAME_THEM}"
                )
    return found


_NAME_THEM = (
    "name them under `classes:` in a file of prompts (--set prompts=FILE; docs/language.md)"
)


def _of(dataset: str, classes: Sequence[str]) -> PromptSet:
    """The data set's own prompts, ImageNet's for classes that are WordNet ids, or none."""
    own = shipped().get(dataset)
    if own is None and classes and set(classes) <= shipped()["imagenet"].classes.keys():
        own = shipped()["imagenet"]
    return own or PromptSet.model_validate({})


def _cleaned(dataset: str, word: str, prompts: PromptSet) -> str:
    """``001.Black_footed_Albatross``, ``/b/bow_window/indoor`` -> a name a person would write."""
    parts = [part for part in word.split("/") if part]
    if len(parts) > 1 and len(parts[0]) == 1:  # SUN and Places file classes by their first letter
        parts = parts[1:]
    if not parts or parts[-1].isdecimal() or re.fullmatch("n[0-9]{8}", parts[-1]):
        raise HarnessError(
            f"data set {dataset!r}: its class {word!r} has no name that a text could hold; "
            f"{_NAME_THEM}"
        )
    parts[0] = re.sub(r"^[0-9]+[._](?=\D)", "", parts[0])
    words = " ".join(parts).replace("_", " ").split()
    if prompts.last_words is not None:
        words = words[-prompts.last_words :]
    return " ".join(words)
