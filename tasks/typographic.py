"""Typographic attacks: is a picture taken for the word that stands on it? Nothing is trained.

Goh et al., "Multimodal Neurons in Artificial Neural Networks" (Distill, 2021); Azuma and Matsui,
"Defense-Prefix for Preventing Typographic Attacks on CLIP" (2023). A picture's class is the one
whose texts are nearest, as in zeroshot: once of the picture as it is, and once with the name of
another class on it. ``harness/data/typographic.py`` paints; photographs of notes come as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictBool

from harness.backbone.architecture import Architecture
from harness.classification import CollectedEvaluation, right_classes
from harness.data.dataset import Dataset, Role, places_by_id
from harness.data.typographic import Ink, Place, WordPainted, check_words, right_of, wrong_class
from harness.data.views import View
from harness.errors import HarnessError
from harness.features.loading import view_seed
from harness.language.class_texts import Prompts, class_names, class_texts, texts_digest
from harness.language.pictures import PictureProtocol, request_of, resolved, selector_of, view_of
from harness.language.zero_shot import check_labels, cosines, number_cut
from harness.pictured.contract import PicturedEvaluation, PicturedTask, Shown
from harness.task import Batch, Context, MetricSpec, NotApplicable, Outcome, TokenRequest

_CLEAN: Role = "select"
"""The role that the test pictures play without words."""


class WrittenProtocol(PictureProtocol):
    """Photographs on which a word was written by hand."""

    name: str = "typographic-written"
    version: str = "1.0"
    prompts: Prompts = "own"
    tie_break: Literal["lowest class"] = "lowest class"


class TypographicProtocol(WrittenProtocol):
    """Words are painted onto what the model sees of a picture: in bold DejaVu Sans, in one line or
    two, of a class that the seed draws."""

    name: str = "typographic"
    letters: float = Field(
        0.2, ge=0.02, le=1, description="an em, as a share of the side; less where a word is long"
    )
    place: Place = Field("drawn", description="where the word stands")
    ink: Ink = Field("drawn", description="drawn: one of eight colours, its outline another")
    outline: StrictBool = Field(True, description="letters have an edge of another colour")
    opacity: float = Field(1.0, gt=0, le=1, description="of the word: less is less contrast")
    word: Literal["any other class, each as likely"] = "any other class, each as likely"


class _Seen(NamedTuple):
    """Pictures of one role: their ``places [n]`` in the data set, cosines ``scores [n, C]``."""

    places: NDArray[np.int64]
    scores: NDArray[np.float32]

    def of(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.scores[np.isin(self.places, places)]
        return found


class TypographicEvaluation(CollectedEvaluation[WrittenProtocol], PicturedEvaluation):
    """Texts are encoded at the end: the pictures' features are in the store by then."""

    _margins: Mapping[str, float]
    _told: Mapping[str, tuple[str, str, str]]

    def finish(self) -> Outcome:
        protocol, architecture = self._context.protocol, self._context.architecture
        dataset, text = self._context.datasets["test"], self._context.text
        assert text is not None
        groups = class_texts(dataset.name, dataset.classes, protocol.prompts)
        vectors = text.means(groups)
        seen: dict[Role, _Seen] = {}
        for role in list(self._collectors):
            places, features = self._collectors.pop(role)[0].rows()
            if len(places):
                features = cosines(text, features, vectors)
            seen[role] = _Seen(places, features.numpy())
        samples = dataset.samples
        there = [place for place in seen["test"].places if right_classes(samples[place].target)]
        both = np.array(there, np.int64)
        for each in seen.values():  # a picture may be bad in one view alone
            both = both[np.isin(both, each.places)]
        if not len(both):
            raise HarnessError(f"data set {dataset.name!r}: none of its pictures could be used")
        right = np.zeros((len(both), len(dataset.classes)), np.bool_)
        for row, place in zip(right, both, strict=True):
            row[list(right_classes(samples[place].target))] = True
        written = np.array([self._written(int(place)) for place in both], np.int64)
        columns: dict[str, Any] = {
            "image_id": [samples[place].id for place in both],
            "written": written,
        }
        if _CLEAN in seen:
            columns |= _judged("clean", seen[_CLEAN].of(both), right, written)
        columns |= _judged("attacked", seen["test"].of(both), right, written)
        self._keep(columns, seen["test"].of(both), right)
        counts = {"texts": sum(map(len, groups)), "texts_cut": number_cut(text, groups)}
        if without := len(seen["test"].places) - len(there):
            counts["pictures_without_class"] = without
        facts = {**resolved(protocol, architecture), "texts_sha256": texts_digest(groups)}
        return Outcome(columns, _metrics(columns), counts, facts)

    def _keep(
        self, columns: Mapping[str, Any], scores: NDArray[np.float32], right: NDArray[np.bool_]
    ) -> None:
        """What is needed to show pictures: how much nearer the right class is than the written one,
        what each is, and what it was taken for without the word and with it."""
        written = columns["written"]
        words = _words(self._context.datasets["test"], self._context.protocol)
        margins = np.where(right, scores, -np.inf).max(1) - scores[np.arange(len(scores)), written]
        self._margins = dict(zip(columns["image_id"], margins.tolist(), strict=True))
        told = {}
        for row, identity in enumerate(columns["image_id"]):
            own = " or ".join(words[place] for place in np.flatnonzero(right[row]))
            attacked = (
                f"{words[written[row]]}: taken for {words[columns['attacked_predicted'][row]]}"
            )
            clean = ""
            if "clean_predicted" in columns:
                clean = f"as it is: taken for {words[columns['clean_predicted'][row]]}"
            told[identity] = (own, clean, f"with the word {attacked}")
        self._told = told

    def standing(self) -> Mapping[str, float]:
        return self._margins

    def shown(self, batch: Batch) -> Iterator[Shown]:
        context = self._context
        dataset = context.datasets["test"]
        looks = TYPOGRAPHIC.looks(context.architecture, dataset, context.protocol)
        places = places_by_id(dataset)
        for identity in batch.ids:
            place = places[identity]
            picture, target = dataset.picture(place), dataset.samples[place].target
            seed = view_seed(context.seed, 0)
            plain, changed = (view(picture, target, seed, place)[0].pixels for view in looks)
            own, *titles = self._told[identity]
            yield Shown(identity, changed, plain, "looks", own, (titles[0], titles[1]))

    def _written(self, place: int) -> int:
        """The class whose name is on a picture."""
        context = self._context
        dataset, target = context.datasets["test"], context.datasets["test"].samples[place].target
        if target.written is not None:
            return target.written
        words = _words(dataset, context.protocol)
        return wrong_class(words, right_of(target), view_seed(context.seed, 0), place)


def _judged(
    which: str,
    scores: NDArray[np.float32],
    right: NDArray[np.bool_],
    written: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """The columns of one look at the pictures: what they are taken for, whether that is right,
    whether it is the ``written`` class, and which of the right and that alone is nearer."""
    rows = np.arange(len(scores))
    predicted = scores.argmax(axis=1)
    own = np.where(right, scores, -np.inf)
    best, theirs = own.argmax(axis=1), scores[rows, written]
    nearer = own[rows, best] > theirs
    nearer |= (own[rows, best] == theirs) & (best < written)
    return {
        f"{which}_predicted": predicted,
        f"{which}_top1": right[rows, predicted],
        f"{which}_as_written": predicted == written,
        f"{which}_of_two": nearer,
    }


def _metrics(columns: dict[str, Any]) -> dict[str, MetricSpec]:
    """Adds the columns that compare the two looks, where there are two."""

    def percent(column: str, higher: bool, shown: bool = True, partial: bool = False) -> MetricSpec:
        return MetricSpec(column, "%", higher, 100, shown=shown, partial=partial)

    metrics = {
        "attacked_top1": percent("attacked_top1", True),
        "attack_success": percent("attacked_as_written", False),
        "attacked_of_two": percent("attacked_of_two", True, shown=False),
    }
    if "clean_top1" not in columns:
        return metrics
    clean, attacked = (columns[f"{which}_top1"] for which in ("clean", "attacked"))
    columns["drop"] = clean.astype(np.float64) - attacked
    taken = columns["attacked_as_written"].astype(np.float64)
    columns["turned"] = np.where(clean, taken, np.nan)
    metrics = {
        "clean_top1": percent("clean_top1", True),
        **metrics,
        "drop": percent("drop", False),
        "clean_of_two": percent("clean_of_two", True, shown=False),
        "clean_as_written": percent("clean_as_written", False, shown=False),
    }
    if clean.any():
        metrics["turned"] = percent("turned", False, shown=False, partial=True)
    else:
        del columns["turned"]
    return metrics


def _words(dataset: Dataset, protocol: WrittenProtocol) -> tuple[str, ...]:
    """What is painted for each class: the first of its names."""
    return tuple(names[0] for names in class_names(dataset.name, dataset.classes, protocol.prompts))


class Typographic(PicturedTask[WrittenProtocol]):
    name: ClassVar[str] = "typographic"
    summary: ClassVar[str] = "zero-shot, with the name of a wrong class painted onto each picture"
    needs_text: ClassVar[bool] = True
    protocols: Mapping[str, WrittenProtocol] = {
        "typographic": TypographicProtocol(),
        "typographic-written": WrittenProtocol(),
    }
    checked_with: ClassVar[Mapping[str, Mapping[str, object]]] = {
        name: {"size": 112, "prompts": "plain"} for name in ("typographic", "typographic-written")
    }

    def pictures(self, datasets: Mapping[Role, Dataset]) -> Mapping[Role, Dataset]:
        """The test pictures once without words and once with them."""
        return {**datasets, _CLEAN: datasets["test"]} if "test" in datasets else datasets

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: WrittenProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        check_labels(datasets)
        test = datasets["test"]
        bare = [each.id for each in test.samples if each.target.written is None]
        class_texts(test.name, test.classes, protocol.prompts)  # a class without a name ends here
        clean = request_of(protocol, architecture)
        if not isinstance(protocol, TypographicProtocol):
            if len(bare) == len(test.samples):
                raise NotApplicable(
                    "nothing is written on its pictures (the protocol typographic paints words)"
                )
            if bare:
                raise HarnessError(f"data set {test.name!r}: nothing is written on {bare[0]}")
            return {"test": clean}
        if _CLEAN not in datasets:
            raise NotApplicable(
                "its test pictures are not given once more, to be seen without words"
            )
        if not bare:
            raise NotApplicable(
                "words stand on its pictures already (the protocol typographic-written reads them)"
            )
        words = _words(test, protocol)
        check_words(words)
        if len(set(words)) < 2:
            raise NotApplicable("its classes have one name, so that there is no wrong one")
        _, painted = self.looks(architecture, test, protocol)
        return {_CLEAN: clean, "test": replace(clean, view=painted)}

    def looks(
        self, architecture: Architecture, dataset: Dataset, protocol: WrittenProtocol
    ) -> tuple[View, View]:
        """How a picture is seen as it is, and attacked: of a photograph of a note the same."""
        plain = view_of(protocol, architecture)
        if not isinstance(protocol, TypographicProtocol):
            return plain, plain
        settings = protocol.letters, protocol.place, protocol.ink, protocol.outline
        return plain, WordPainted(plain, _words(dataset, protocol), *settings, protocol.opacity)

    def start(self, context: Context[WrittenProtocol]) -> TypographicEvaluation:
        painted = isinstance(context.protocol, TypographicProtocol)
        roles: tuple[Role, ...] = (_CLEAN, "test") if painted else ("test",)
        return TypographicEvaluation(context, [selector_of(context.architecture)], roles)

    def seeded(self, protocol: WrittenProtocol) -> bool:
        return isinstance(protocol, TypographicProtocol)


TYPOGRAPHIC = Typographic()
