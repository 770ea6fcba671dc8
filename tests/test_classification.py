"""What kNN, linear and logistic probes share: the view, the labels, features in order."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from harness import load_backbone
from harness.backbone.architecture import Architecture
from harness.classification import (
    TokenProtocol,
    check_classes,
    request_of,
    selector_of,
    view_of,
)
from harness.collected import Collector
from harness.data.dataset import Dataset, Sample, Target
from harness.data.views import CentreCrop
from harness.errors import HarnessError
from harness.features.select import Selected
from harness.task import Batch, NotApplicable


class Labelled(Dataset):
    """Pictures with labels and without pixels."""

    def __init__(
        self, labels: list[int | None], classes: tuple[str, ...] = ("a", "b", "c")
    ) -> None:
        self.name, self.split, self.classes = "labelled", "train", classes
        self.samples = [
            Sample(f"{place:02d}", (8, 8), Target(label=label))
            for place, label in enumerate(labels)
        ]


def protocol(**changes: object) -> TokenProtocol:
    return TokenProtocol(name="toy", version="1.0").changed(changes)


@pytest.fixture(scope="module")
def nano() -> Architecture:
    return load_backbone("nano-reg4", device="cpu").architecture


# ------------------------------------------------------------------------------------- the view


def test_equal_tokens_are_other_pixels_for_another_patch(nano: Architecture) -> None:
    sizes = {
        patch: view_of(protocol(tokens=1024), replace(nano, patch=patch)) for patch in (14, 16)
    }
    assert sizes == {14: CentreCrop(512, 448), 16: CentreCrop(585, 512)}
    assert view_of(protocol(), nano) == CentreCrop(256, 224)


def test_a_crop_that_the_patch_does_not_divide_is_told_with_one_that_it_does(
    nano: Architecture,
) -> None:
    with pytest.raises(NotApplicable, match=r"patch of 14 .* crop of 225 \(--set crop=224\)"):
        view_of(protocol(crop=225), replace(nano, patch=14))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop": 300}, "crop 300 is more than what resize 256 leaves"),
        ({"tokens": 1000}, "tokens 1000: a square number"),
        ({"outliers": 3}, "outliers: of the tokens outlier and normal, not of global"),
        ({"token": "outlier", "outliers": "many"}, "'many': a norm"),
        ({"token": "clas"}, "token"),
        ({"crop": 0}, "crop"),
    ],
)
def test_settings_that_do_not_fit_together_are_told(changes: dict[str, object], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        protocol(**changes)


def test_a_model_without_the_token_is_not_applicable(nano: Architecture) -> None:
    bare = replace(nano, layout=replace(nano.layout, registers=0))
    classless = replace(
        nano, layout=replace(nano.layout, classes=0), global_feature="mean of patches"
    )
    with pytest.raises(NotApplicable, match="no registers"):
        selector_of(protocol(token="register"), bare)
    with pytest.raises(NotApplicable, match="no class token"):
        selector_of(protocol(token="cls+patch-mean"), classless)
    with pytest.raises(NotApplicable, match="mean of patches, which the last layer alone has"):
        selector_of(protocol(layer=-2), classless)
    assert selector_of(protocol(), classless).layer == 11


def test_a_request_for_tokens_can_be_served_from_the_store(nano: Architecture) -> None:
    request = request_of(protocol(), nano, [selector_of(protocol(token="outlier"), nano)])
    assert request.storable and request.bytes_per_picture == 4 * 128
    assert not replace(request, layers=(3,)).storable
    assert not replace(request, order="shuffled", steps=1, step_size=1).storable


# ----------------------------------------------------------------------------------- the labels


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([0, 1], None, "no test split"),
        ([0, 1], [None, None], "test split has no labels"),
        ([1, 1], [0, 1], "pictures of one class only"),
    ],
)
def test_where_there_is_nothing_to_classify_it_is_not_applicable(
    train: list[int | None], test: list[int | None] | None, said: str
) -> None:
    roles = {"train": Labelled(train)} | ({} if test is None else {"test": Labelled(test)})
    with pytest.raises(NotApplicable, match=said):
        check_classes(roles, ("train", "test"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (Labelled([0, 3]), "the label of 01, 3, is none of the 3 classes"),
        (Labelled([0, -1]), "the label of 01, -1, is none"),
        (Labelled([0, None]), "01 has no label"),
        (Labelled([0], ("a", "b")), r"not those of its train split \(c\)"),
        (Labelled([0], ("a", "c", "b")), r"not those of its train split \(another order\)"),
    ],
)
def test_labels_that_are_wrong_are_errors(test: Dataset, said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        check_classes({"train": Labelled([0, 1]), "test": test}, ("train", "test"))


def test_a_class_that_one_split_lacks_is_no_error() -> None:
    check_classes({"train": Labelled([0, 1]), "test": Labelled([2, 2])}, ("train", "test"))


# ------------------------------------------------------------------------------------- features


def batch(dataset: Dataset, places: list[int], values: torch.Tensor, there: list[bool]) -> Batch:
    selector = selector_of(protocol(), load_backbone("nano", device="cpu").architecture)
    return Batch(
        tokens={},
        attention={},
        ids=tuple(dataset.samples[place].id for place in places),
        targets=tuple(dataset.samples[place].target for place in places),
        sample=tuple(range(len(places))),
        geometry=(),
        selected={selector: Selected(values, torch.tensor(there))},
    )


def test_features_come_in_the_data_sets_order_whatever_order_they_arrived_in() -> None:
    dataset = Labelled([place % 3 for place in range(20)])
    values = torch.randn(20, 4)
    there = [place % 5 != 0 for place in range(20)]
    order = list(range(20))
    random.Random(1).shuffle(order)
    halves = []
    for part in (order[:7], order[7:]):
        given = batch(dataset, part, values[part], [there[place] for place in part])
        collector = Collector(dataset, next(iter(given.selected)))
        collector.add(given)
        halves.append(collector)
    first, second = halves
    restored = Collector(dataset, next(iter(given.selected)))
    restored.load(first.state())
    restored.merge(second)
    examples = restored.examples()
    kept = [place for place in range(20) if there[place]]
    assert examples.ids == tuple(dataset.samples[place].id for place in kept)
    assert torch.equal(examples.features, values[kept])
    assert examples.labels.tolist() == [place % 3 for place in kept]
    assert restored.without == 4


def test_a_feature_that_is_not_finite_names_its_picture() -> None:
    dataset = Labelled([0, 1])
    values = torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])
    given = batch(dataset, [0, 1], values, [True, True])
    collector = Collector(dataset, next(iter(given.selected)))
    with pytest.raises(HarnessError, match=r"the feature of 01 is not finite"):
        collector.add(given)


def test_no_picture_with_the_token_is_an_error() -> None:
    dataset = Labelled([0, 1])
    given = batch(dataset, [0, 1], torch.zeros(2, 2), [False, False])
    collector = Collector(dataset, next(iter(given.selected)))
    collector.add(given)
    with pytest.raises(HarnessError, match="no picture has a token of the kind global"):
        collector.examples()
