from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned import captioned
from classified import batch_of
from fake_texts import FakeTexts, KnownTexts, with_text
from harness.tasks.text_retrieval import TEXT_RETRIEVAL, TextRetrievalEvaluation
from tiny import ARCHITECTURE

from harness import aggregates, evaluate
from harness.cli import main
from harness.data.dataset import Dataset, Sample, Target
from harness.errors import HarnessError
from harness.features.select import Selected
from harness.records import read_columns
from harness.schema import Record
from harness.task import Context, NotApplicable, Outcome

PLAIN = TEXT_RETRIEVAL.protocols["text-retrieval"]
SMALL = PLAIN.changed({"size": 56})


class Named(Dataset):
    """Ids and captions only: what an evaluation needs to know of a data set."""

    def __init__(self, captions: list[tuple[str, ...] | None]) -> None:
        self.name, self.split = "named", "test"
        self.samples = [
            Sample(f"picture {place}", (70, 70), Target(captions=each))
            for place, each in enumerate(captions)
        ]


def drawn(counts: list[int], seed: int = 0) -> tuple[Named, torch.Tensor, KnownTexts]:
    """Pictures with so many captions each, their features, and a tower that knows the captions;
    of few whole numbers, so that there are ties."""
    generator = np.random.default_rng(seed)
    said = [tuple(f"{place}.{n}" for n in range(count)) for place, count in enumerate(counts)]
    features = torch.from_numpy(generator.integers(1, 5, (len(counts), 3))).float()
    known = {caption: generator.integers(1, 5, 3) for captions in said for caption in captions}
    return Named(list(said)), features, KnownTexts(known)


def started(dataset: Named, text: FakeTexts, protocol: object = SMALL) -> TextRetrievalEvaluation:
    TEXT_RETRIEVAL.requests(ARCHITECTURE, {"test": dataset}, protocol)  # type: ignore[arg-type]
    context = Context(ARCHITECTURE, {"test": dataset}, protocol, 0, text=text)  # type: ignore
    return TEXT_RETRIEVAL.start(context)  # type: ignore[arg-type]


def feed(evaluation: TextRetrievalEvaluation, values: torch.Tensor, rows: list[int]) -> None:
    there = torch.ones(len(rows), dtype=torch.bool)
    selected = {evaluation._selectors[0]: Selected(values[rows], there)}
    evaluation.update("test", batch_of([f"picture {row}" for row in rows], selected))


def scored(dataset: Named, features: torch.Tensor, text: FakeTexts, **settings: object) -> Outcome:
    evaluation = started(dataset, text, SMALL.changed(settings))
    feed(evaluation, features, list(range(len(features))))
    return evaluation.finish()


def brute(dataset: Named, features: torch.Tensor, text: FakeTexts, most: int) -> dict[str, float]:
    """Recalls by sorting every list, in percent, and the median ranks."""
    said = [(sample.target.captions or ())[:most] for sample in dataset.samples]
    owner = [place for place, captions in enumerate(said) for _ in captions]
    texts = text.encode([caption for captions in said for caption in captions])
    unit = torch.nn.functional.normalize(features)
    similar = (unit.double() @ texts.double().T).float().numpy()
    ranks: dict[str, list[int]] = {"picture_to_text": [], "text_to_picture": []}
    for place, row in enumerate(similar):
        order = np.argsort(-row, kind="stable")
        ranks["picture_to_text"].append([owner[each] for each in order].index(place))
    for caption, row in enumerate(similar.T):
        ranks["text_to_picture"].append(
            np.argsort(-row, kind="stable").tolist().index(owner[caption])
        )
    found = {}
    for side, its in ranks.items():
        for k in (1, 5, 10):
            hits = np.array(its) < k
            if side == "text_to_picture":  # over pictures, of the share of each one's captions
                hits = np.array([hits[np.array(owner) == p].mean() for p in range(len(said))])
            found[f"{side}_r{k}"] = 100 * float(hits.mean())
        found[f"{side}_median_rank"] = float(np.median(its)) + 1
    return found


def values(outcome: Outcome) -> dict[str, float]:
    return {
        name: spec.scale
        * float(aggregates.values(spec.aggregate, [np.asarray(outcome.columns[spec.column])])[0])
        for name, spec in outcome.metrics.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_recalls_and_median_ranks_are_those_of_a_full_sort(seed: int) -> None:
    dataset, features, text = drawn([5, 1, 6, 5, 3, 7, 5, 5, 2, 5, 5, 6, 5, 5], seed)
    for wanted, most in (5, 5), (2, 2), ("all", 99):
        found = values(scored(dataset, features, text, captions_per_picture=wanted))
        expected = brute(dataset, features, text, most)
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        recalls = [value for name, value in expected.items() if "_r" in name and "rank" not in name]
        assert found["mean_recall"] == pytest.approx(np.mean(recalls))
        assert 0 < found["text_to_picture_r1"] < found["text_to_picture_r10"] <= 100


def test_counts_tell_captions_those_that_are_cut_and_pictures_with_fewer() -> None:
    dataset = Named([("short", "x" * 3000), ("y" * 301,) * 5])
    outcome = scored(dataset, torch.randn(2, 48), FakeTexts())
    assert outcome.counts == {
        "captions": 7, "captions_cut": 6, "pictures_with_fewer_captions": 1,
    }  # fmt: skip
    assert outcome.resolved == {
        "layer": 3, "size": 56, "fit": "crop", "interpolation": "bicubic",
    }  # fmt: skip


def test_a_template_is_put_round_every_caption_and_needs_its_slot() -> None:
    text = FakeTexts()
    scored(Named([("a {b}", "c")]), torch.randn(1, 48), text, template="a photo of {}!")
    assert text.encoded == ["a photo of a {b}!", "a photo of c!"]
    for bad in ("a photo", "{} {}"):
        with pytest.raises(HarnessError, match=r"one \{\} says where the caption goes"):
            PLAIN.changed({"template": bad})


def test_neither_batch_nor_order_nor_merging_nor_resuming_shows() -> None:
    dataset, features, text = drawn([5] * 12)
    whole = scored(dataset, features, text)
    left, right, resumed = (started(dataset, text) for _ in range(3))
    for row in (7, 3, 11):
        feed(left, features, [row])
    feed(right, features, [0, 1, 2, 4, 5, 6, 8, 9, 10])
    resumed.load(left.state())
    resumed.merge(right)
    left.merge(right)
    for other in (left.finish(), resumed.finish()):
        for name, column in whole.columns.items():
            np.testing.assert_array_equal(other.columns[name], column)


def test_pictures_without_captions_are_no_case_and_one_among_others_is_an_error() -> None:
    with pytest.raises(NotApplicable, match="no captions"):
        TEXT_RETRIEVAL.requests(ARCHITECTURE, {"test": Named([None, None])}, SMALL)
    with pytest.raises(NotApplicable, match="no test split"):
        TEXT_RETRIEVAL.requests(ARCHITECTURE, {"train": Named([("a",)])}, SMALL)
    with pytest.raises(HarnessError, match=r"picture 1 has no caption \(1 of 2"):
        TEXT_RETRIEVAL.requests(ARCHITECTURE, {"test": Named([("a",), None])}, SMALL)


def test_a_run_with_another_template_reads_no_picture_again(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.passes.Texts", FakeTexts)
    file = captioned(tmp_path / "painted")

    def record(**settings: object) -> Record:
        evaluate(
            "text-retrieval",
            "tiny-reg4",
            "captioned",
            settings={"size": 56, "precision": "fp32", **settings},
            model_files=[with_text(tiny_models, tmp_path)],
            dataset_files=[file],
            out=tmp_path / "results",
            workers=0,
            device="cpu",
        )
        (path,) = (
            path
            for path in (tmp_path / "results").rglob("*.json")
            if json.loads(path.read_text())["protocol"]["settings"]["template"]
            == settings.get("template", "{}")
        )
        assert "text_to_picture_rank" in read_columns(path)
        return Record.model_validate_json(path.read_text())

    first, second = record(), record(template="this is {}")
    assert (first.cost.forward_passes, second.cost.forward_passes) == (12, 0)
    assert first.counts == {
        "captions": 56, "captions_cut": 1, "pictures_with_fewer_captions": 1,
    }  # fmt: skip
    assert first.metrics["mean_recall"].value != second.metrics["mean_recall"].value


def test_a_model_without_a_text_tower_is_told_which_have_one(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = captioned(tmp_path / "painted")
    given = ["--models", str(tiny_models), "--datasets", str(file), "--out", str(tmp_path / "out")]
    arguments = ["run", "--task", "text-retrieval", "--model", "tiny", "--dataset", "captioned"]
    assert main([*arguments, *given]) == 2
    told = capsys.readouterr().err
    assert "the model has no text tower (" in told
    assert "openclip-vitb16" in told
