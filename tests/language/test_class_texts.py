"""What classes are called, and the texts that stand for them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from harness.data.catalog import Catalog
from harness.documents import canonical_json
from harness.errors import HarnessError
from harness.language.class_texts import (
    FOLDER,
    PromptSet,
    class_names,
    class_texts,
    read_prompts,
    shipped,
)


def test_names_are_put_into_templates() -> None:
    prompts = PromptSet.model_validate(
        {"templates": ["a {}.", "the {}"], "classes": {"c1": ["cat", "kitten"], "c2": "dog"}}
    )
    assert class_texts("mine", ["c1", "c2"], prompts) == (
        ("a cat.", "the cat", "a kitten.", "the kitten"),
        ("a dog.", "the dog"),
    )
    assert class_texts("mine", ["cat"], "plain") == (("a photo of a cat.",),)


@pytest.mark.parametrize(
    ("dataset", "word", "name"),
    [
        ("cub", "001.Black_footed_Albatross", "Black footed Albatross"),
        ("sun397", "/b/bow_window/indoor", "bow window indoor"),
        ("places205", "a/abbey", "abbey"),
        ("food", "apple_pie", "apple pie"),
        ("aircraft", "707-320", "707-320"),
        ("inat2021", "00001_Animalia_Annelida_X_Y_Z_Lumbricus_terrestris", "Lumbricus terrestris"),
        ("mine", "犬", "犬"),
        ("mine", "собака_дома", "собака дома"),
        ("voc07-classes", "diningtable", "dining table"),
        ("imagenet", "n01440764", "tench"),
        (
            "imagenette",
            "n02102040",
            "English Springer Spaniel",
        ),  # no file of its own: by WordNet id
    ],
)
def test_a_class_is_called_as_a_person_would_write_it(dataset: str, word: str, name: str) -> None:
    assert class_names(dataset, [word])[0][0] == name


@pytest.mark.parametrize("word", ["Plantae/2229", "17", "n99999999", "/"])
def test_a_class_without_a_name_is_told(word: str) -> None:
    with pytest.raises(HarnessError, match="has no name") as error:
        class_names("mine", ["cat", word])
    assert repr(word) in str(error.value) and "prompts=FILE" in str(error.value)


def test_two_classes_of_one_name_are_told() -> None:
    with pytest.raises(HarnessError, match="'a_b' and 'a b' are both called 'a b'"):
        class_names("mine", ["a_b", "a b"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('templates: ["a photo"]', "'a photo' has not one slot {}"),
        ('templates: ["{} and {}"]', "has not one slot {}"),
        ('templates: ["a {}", "a {}"]', "'a {}' stands twice"),
        ("templates: []", "at least 1 item"),
        ('classes: {cat: ""}', "'cat' has an empty name"),
        ("classes: {cat: [a, a]}", "has the name 'a' twice"),
        ("classes: {cat: []}", "at least 1 item"),
        ('classes: {cat: "\\uD800"}', "holds what is no character"),
        ("classes: {cat: 7}", "valid"),
        ("clases: {}", "did you mean classes"),
        ("- a", "a mapping"),
        ("classes: {a: b", "expected"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(HarnessError, match=r"mine\.yaml:1") as error:
        read_prompts(file)
    assert said in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no such file"):
        read_prompts(tmp_path / "none.yaml")


def test_a_files_class_that_the_data_set_has_not_got_is_told() -> None:
    prompts = PromptSet.model_validate({"classes": {"cta": "cat"}})
    with pytest.raises(HarnessError, match="has no class 'cta'"):
        class_texts("mine", ["cat", "dog"], prompts)


def test_every_shipped_file_is_of_data_sets_of_the_catalog() -> None:
    known = set(Catalog.load().names())
    assert set(shipped()) <= known
    of = [name for path in FOLDER.glob("*.yaml") for name in read_prompts(path).datasets]
    alone = [p.stem for p in FOLDER.glob("*.yaml") if not read_prompts(p).datasets]
    assert sorted(of + alone) == sorted(shipped())  # no data set has two files


def test_imagenets_names_and_templates_are_those_that_were_published() -> None:
    pytest.importorskip("open_clip", reason="needs open_clip (extra openclip)")
    from open_clip import zero_shot_metadata as published

    from harness.data.imagenet import thousand

    found = class_texts("imagenet", thousand(), "own")
    templates = published.OPENAI_IMAGENET_TEMPLATES
    expected: Any = [[t(name) for t in templates] for name in published.IMAGENET_CLASSNAMES]
    assert [list(each) for each in found] == expected
    assert len(found) == 1000 and len(found[0]) == 80


HELD = {
    "aircraft": "4faed0e9",
    "caltech101": "549ba3b1",
    "cars": "dda46783",
    "cifar": "9f845437",
    "cub": "39678466",
    "dtd": "7651c5b9",
    "flowers": "36ba9f34",
    "food": "035b04db",
    "imagenet": "c75c3e4e",
    "inat2021": "840870b5",
    "pets": "8a33081e",
    "places": "dea67f51",
    "voc": "12cda669",
}
"""Another digest is another score: a new version of the protocols that say `prompts: own`."""


@pytest.mark.parametrize("name", HELD)
def test_the_texts_of_the_protocols_version_do_not_change(name: str) -> None:
    facts = read_prompts(FOLDER / f"{name}.yaml").model_dump(mode="json", exclude={"datasets"})
    assert hashlib.sha256(canonical_json(facts)).hexdigest()[:8] == HELD[name]
