from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from classified import batch_of
from fake_texts import FakeTexts, KnownTexts, with_text
from harness.tasks.typographic import TYPOGRAPHIC, TypographicEvaluation
from tiny import ARCHITECTURE

from harness import evaluate
from harness.data.dataset import Dataset, Labels, Role, Sample, Target
from harness.data.typographic import WordPainted, wrong_class
from harness.data.views import CentreCrop
from harness.errors import HarnessError
from harness.features.loading import view_seed
from harness.features.select import Selected
from harness.nano.scenes import ScenesDataset
from harness.passes import that_share
from harness.pictured.contract import Shown
from harness.pictured.panels import draw
from harness.records import find, read_columns
from harness.schema import Record
from harness.task import Context, NotApplicable, Outcome

PAINTED = TYPOGRAPHIC.protocols["typographic"].changed({"size": 56, "prompts": "plain"})
WRITTEN = TYPOGRAPHIC.protocols["typographic-written"].changed({"size": 56, "prompts": "plain"})
CLASSES = ("cat", "dog", "cow", "pig")


class Named(Dataset):
    """Targets only: what an evaluation needs to know of a data set."""

    def __init__(self, targets: Sequence[Target], classes: tuple[str, ...] = CLASSES) -> None:
        self.name, self.split, self.classes = "named", "test", classes
        self.samples = [
            Sample(f"picture {place}", (70, 70), each) for place, each in enumerate(targets)
        ]


def texts(seed: int = 0, width: int = 3) -> KnownTexts:
    """Vectors of few whole numbers, so that there are ties."""
    generator = np.random.default_rng(seed)
    return KnownTexts(
        {f"a photo of a {name}.": generator.integers(1, 4, width) for name in CLASSES}
    )


def started(
    dataset: Dataset, text: FakeTexts, protocol: Any = PAINTED, seed: int = 0
) -> TypographicEvaluation:
    roles = TYPOGRAPHIC.pictures({"test": dataset})
    TYPOGRAPHIC.requests(ARCHITECTURE, roles, protocol, seed)
    context: Any = Context(ARCHITECTURE, roles, protocol, seed, text=text)  # type: ignore[arg-type]
    return TYPOGRAPHIC.start(context)  # type: ignore[return-value]


def feed(
    evaluation: TypographicEvaluation, role: Role, values: torch.Tensor, rows: list[int]
) -> None:
    there = torch.ones(len(rows), dtype=torch.bool)
    selected = {evaluation._selectors[0]: Selected(values[rows], there)}
    evaluation.update(role, batch_of([f"picture {row}" for row in rows], selected))


def features(count: int, seed: int = 1) -> dict[Role, torch.Tensor]:
    generator = np.random.default_rng(seed)
    drawn = torch.from_numpy(generator.integers(1, 4, (2, count, 3))).float()
    return {"select": drawn[0], "test": drawn[1]}


def scored(evaluation: TypographicEvaluation, found: dict[Role, torch.Tensor]) -> Outcome:
    for role in evaluation._collectors:
        feed(evaluation, role, found[role], list(range(len(found[role]))))
    return evaluation.finish()


def column(outcome: Outcome, name: str) -> list[Any]:
    values: list[Any] = np.asarray(outcome.columns[name]).tolist()
    return values


def test_every_column_is_that_of_a_plain_loop() -> None:
    labels = [place % 4 for place in range(40)]
    dataset, text, found = Named([Target(label=each) for each in labels]), texts(), features(40)
    outcome = scored(started(dataset, text, seed=5), found)
    vectors = text.encode([f"a photo of a {name}." for name in CLASSES])
    for place, label in enumerate(labels):
        word = wrong_class(CLASSES, [label], view_seed(5, 0), place)
        assert column(outcome, "written")[place] == word != label
        for which, role in ("clean", "select"), ("attacked", "test"):
            unit = torch.nn.functional.normalize(found[role][place], dim=0)  # type: ignore[index]
            cosines = (unit @ vectors.T).tolist()
            said = cosines.index(max(cosines))
            assert column(outcome, f"{which}_predicted")[place] == said
            assert column(outcome, f"{which}_top1")[place] == (said == label)
            assert column(outcome, f"{which}_as_written")[place] == (said == word)
            two = sorted((label, word), key=lambda each: (-cosines[each], each))
            assert column(outcome, f"{which}_of_two")[place] == (two[0] == label)
    clean, attacked = (np.array(column(outcome, f"{w}_top1")) for w in ("clean", "attacked"))
    assert column(outcome, "drop") == (clean.astype(float) - attacked).tolist()
    turned = np.array(column(outcome, "turned"))
    assert np.isnan(turned).tolist() == (~clean).tolist()
    assert (
        turned[clean].tolist() == np.array(column(outcome, "attacked_as_written"))[clean].tolist()
    )
    assert 0 < clean.mean() < 1 and 0 < attacked.mean() < 1
    assert outcome.counts == {"texts": 4, "texts_cut": 0}


def test_of_several_classes_any_is_right_and_none_of_them_is_painted() -> None:
    targets = [
        Target(labels=Labels((0, 1), (2,))),  # the pig alone is wrong
        Target(labels=Labels(())),
        Target(labels=Labels((3,))),
    ]
    outcome = scored(started(Named(targets), texts()), features(3))
    assert column(outcome, "image_id") == ["picture 0", "picture 2"]
    assert column(outcome, "written")[0] == 3
    assert outcome.counts["pictures_without_class"] == 1


def test_a_picture_that_one_look_could_not_use_is_in_neither() -> None:
    evaluation = started(Named([Target(label=1)] * 2 + [Target(label=0)] * 2), texts())
    found = features(4)
    feed(evaluation, "select", found["select"], [3, 0, 2])
    feed(evaluation, "test", found["test"], [1, 2, 3])
    whole = scored(started(Named([Target(label=1)] * 2 + [Target(label=0)] * 2), texts()), found)
    outcome = evaluation.finish()
    assert column(outcome, "image_id") == ["picture 2", "picture 3"]
    for name in whole.columns.keys() - {"turned"}:
        assert column(outcome, name) == column(whole, name)[2:], name
    left = started(Named([Target(label=1), Target(label=0)]), texts())
    feed(left, "select", found["select"], [0])
    feed(left, "test", found["test"], [1])
    with pytest.raises(HarnessError, match="none of its pictures could be used"):
        left.finish()


def test_photographs_of_notes_are_judged_as_they_are() -> None:
    targets = [Target(label=place % 3, written=3) for place in range(20)]
    dataset = Named(targets)
    requests = TYPOGRAPHIC.requests(ARCHITECTURE, TYPOGRAPHIC.pictures({"test": dataset}), WRITTEN)
    assert list(requests) == ["test"]
    found = features(20)
    outcome = scored(started(dataset, texts(), WRITTEN), found)
    assert set(column(outcome, "written")) == {3}
    assert set(outcome.metrics) == {"attacked_top1", "attack_success", "attacked_of_two"}
    assert not TYPOGRAPHIC.seeded(WRITTEN)
    painted = started(Named([replace(each, written=None) for each in targets]), texts())
    clean = column(scored(painted, {"select": found["test"], "test": found["test"]}), "clean_top1")
    assert column(outcome, "attacked_top1") == clean


def test_what_makes_no_sense_is_told() -> None:
    def ask(dataset: Dataset, protocol: Any) -> Any:
        return TYPOGRAPHIC.requests(ARCHITECTURE, TYPOGRAPHIC.pictures({"test": dataset}), protocol)

    plain, noted = Named([Target(label=0)] * 2), Named([Target(label=0, written=1)] * 2)
    assert isinstance(ask(plain, PAINTED)["test"].view, WordPainted)
    assert ask(plain, PAINTED)["select"].view == ask(noted, WRITTEN)["test"].view
    with pytest.raises(NotApplicable, match="the protocol typographic-written reads them"):
        ask(noted, PAINTED)
    with pytest.raises(NotApplicable, match="the protocol typographic paints words"):
        ask(plain, WRITTEN)
    with pytest.raises(HarnessError, match="nothing is written on picture 1"):
        ask(Named([Target(label=0, written=1), Target(label=0)]), WRITTEN)
    with pytest.raises(HarnessError, match="'猫' cannot be painted"):
        ask(Named([Target(label=0)], ("cat", "猫")), PAINTED)
    with pytest.raises(NotApplicable, match="no labels"):
        ask(Named([Target()]), PAINTED)
    with pytest.raises(NotApplicable, match="no test split"):
        TYPOGRAPHIC.requests(ARCHITECTURE, TYPOGRAPHIC.pictures({"train": plain}), PAINTED)
    for bad in {"letters": 0.0}, {"opacity": 0}, {"place": "left"}, {"ink": "red"}:
        with pytest.raises(HarnessError, match="protocol typographic"):
            PAINTED.changed(bad)


def test_one_pass_is_not_shared_by_two_splits_that_play_one_role() -> None:
    def listener(fingerprint: str) -> Any:
        request = SimpleNamespace(sharing=("view", "fp32"))
        return SimpleNamespace(
            cell=SimpleNamespace(dataset=SimpleNamespace(fingerprints={"select": fingerprint})),
            repeat=SimpleNamespace(requests={"select": request}),
            cutoffs={},
        )

    first, second, third = listener("a"), listener("b"), listener("a")
    assert that_share([first, second, third], "select") == [[first, third], [second]]


def run(
    folder: Path,
    models: Path,
    task: str,
    name: str,
    seeds: int = 1,
    save_predictions: int = 0,
    **settings: Any,
) -> tuple[Record, dict[str, Any]]:
    data = folder / "data.yaml"
    data.write_text("scenes-few: {format: scenes, count: {test: 12}, size: 56}\n")
    evaluate(
        task,
        "tiny-reg4",
        "scenes-few",
        settings={"size": 56, "precision": "fp32", "prompts": "plain", **settings},
        model_files=[models],
        dataset_files=[data],
        out=folder / name,
        workers=0,
        device="cpu",
        seeds=seeds,
        save_predictions=save_predictions,
    )
    ((path, record),) = find(folder / name)
    return record, dict(read_columns(path))


@pytest.mark.slow
def test_clean_and_attacked_pictures_are_stored_each_once(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.passes.Texts", FakeTexts)
    models = with_text(tiny_models, tmp_path)
    first, columns = run(tmp_path, models, "typographic", "first")
    assert first.cost.forward_passes == 24
    assert set(first.dataset.fingerprints) == {"select", "test"}
    assert len(set(first.dataset.fingerprints.values())) == 1
    again, same = run(tmp_path, models, "typographic", "again")
    assert again.cost.forward_passes == 0
    assert {name: each.tolist() for name, each in columns.items() if name != "turned"} == {
        name: each.tolist() for name, each in same.items() if name != "turned"
    }
    larger, changed = run(tmp_path, models, "typographic", "larger", letters=0.4)
    assert larger.cost.forward_passes == 12
    np.testing.assert_array_equal(changed["clean_predicted"], columns["clean_predicted"])
    assert changed["attacked_predicted"].tolist() != columns["attacked_predicted"].tolist()
    several, _ = run(tmp_path, models, "typographic", "several", seeds=3)
    assert several.cost.forward_passes == 24  # of two more seeds, the attacked pictures alone
    assert several.metrics["attacked_top1"].sd is not None
    assert several.metrics["clean_top1"].sd == 0


def test_pictures_that_are_saved_are_what_the_model_saw(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.passes.Texts", FakeTexts)
    kept: list[Shown] = []

    def keep(_: object, shown: Shown, *rest: object) -> bytes:
        kept.append(shown)
        return draw(np.zeros((1, 1, 3), np.uint8), shown, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("harness.pictured.saving.draw", keep)
    models = with_text(tiny_models, tmp_path)
    _, columns = run(tmp_path, models, "typographic", "saved", save_predictions=1)
    assert len(list((tmp_path / "saved").rglob("*.png"))) == len(kept) == 3
    scenes = ScenesDataset("scenes-few", "test", 12, (56, 56))
    for shown in kept:
        place = [sample.id for sample in scenes.samples].index(shown.id)
        np.testing.assert_array_equal(shown.truth, scenes.picture(place))
        word = scenes.classes[columns["written"][place]]
        alone = WordPainted(CentreCrop(56, 56), tuple(scenes.classes))
        seen = alone(scenes.picture(place), scenes.samples[place].target, view_seed(0, 0), place)
        np.testing.assert_array_equal(shown.prediction, seen[0].pixels)
        assert shown.titles[0].startswith("as it is: taken for ")
        assert shown.titles[1].startswith(f"with the word {word}: taken for ")


def test_its_clean_pictures_are_those_of_zeroshot(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.passes.Texts", FakeTexts)
    monkeypatch.setattr("harness.tasks.zeroshot.Texts", FakeTexts)
    models = with_text(tiny_models, tmp_path)
    attacked, columns = run(tmp_path, models, "typographic", "attacked")
    plain, zeroshot = run(tmp_path, models, "zeroshot", "plain")
    assert (attacked.cost.forward_passes, plain.cost.forward_passes) == (24, 0)
    np.testing.assert_array_equal(columns["clean_predicted"], zeroshot["predicted"])
    assert plain.metrics["top1"].value == attacked.metrics["clean_top1"].value
