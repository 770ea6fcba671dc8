from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.tasks.instance_retrieval import (
    INSTANCE_RETRIEVAL,
    RetrievalEvaluation,
    RetrievalProtocol,
    answers,
)
from landmarks import paint
from PIL import Image
from tiny import ARCHITECTURE

from harness import evaluate
from harness.backbone.layout import TokenLayout
from harness.data.dataset import Dataset, First, Query, Role, Sample, Target
from harness.data.generated import GeneratedDataset
from harness.data.views import Geometry
from harness.data.within_side import WithinSide, WithinSideThrice
from harness.differences import differences
from harness.errors import BadPicture, HarnessError
from harness.features.select import Selected
from harness.options import Options
from harness.plan import plan
from harness.records import read_columns, record_path
from harness.run import run
from harness.schema import Record
from harness.task import Batch, Context, NotApplicable, Outcome

PROTOCOLS = INSTANCE_RETRIEVAL.protocols
PLAIN = PROTOCOLS["retrieval"]
GEOMETRY = Geometry((70, 70), (70, 70), (0, 0, 70, 70), (0, 0, 0, 0))


class Named(Dataset):
    """Ids and queries only: what an evaluation needs to know of a data set."""

    def __init__(self, split: str, queries: list[Query | None]) -> None:
        self.name, self.split = "named", split
        self.samples = [
            Sample(f"{split}/{place}", (70, 70), Target(query=query))
            for place, query in enumerate(queries)
        ]


def asking(easy: list[int], hard: list[int], junk: list[int] | None = None) -> Query:
    return Query(None, tuple(easy), tuple(hard), tuple(junk or []))


def drawn_queries(gallery: int, count: int, seed: int = 0) -> list[Query]:
    """Some with easy answers, some with hard ones, some with both or none, all with junk."""
    generator = np.random.default_rng(seed)
    queries = []
    for number in range(count):
        places = generator.permutation(gallery)[:9].tolist()
        easy, hard = places[: 3 * (number % 2)], places[3 : 3 + 3 * (number // 2 % 2)]
        queries.append(asking(easy, hard, places[6:]))
    return queries


Features = dict[Role, torch.Tensor]


def features(gallery: int, queries: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return {
        "train": torch.randn(gallery, 8, generator=generator),
        "test": torch.randn(queries, 8, generator=generator),
    }


def started(
    queries: list[Query], gallery: int, protocol: RetrievalProtocol = PLAIN
) -> RetrievalEvaluation:
    datasets: dict[Role, Dataset] = {
        "train": Named("train", [None] * gallery),
        "test": Named("test", list(queries)),
    }
    INSTANCE_RETRIEVAL.requests(ARCHITECTURE, datasets, protocol)
    return INSTANCE_RETRIEVAL.start(Context(ARCHITECTURE, datasets, protocol, 0))


def feed(
    evaluation: RetrievalEvaluation, role: Role, values: torch.Tensor, rows: list[int], size: int
) -> None:
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        evaluation.update(role, batch(evaluation, role, some, values[some]))


def batch(
    evaluation: RetrievalEvaluation, role: Role, pictures: list[int], values: torch.Tensor
) -> Batch:
    """Rows of ``values`` that go round the pictures: more rows are more crops of each."""
    there = torch.ones(len(values), dtype=torch.bool)
    return Batch(
        tokens={},
        attention={},
        ids=tuple(f"{role}/{picture}" for picture in pictures),
        targets=tuple(Target() for _ in pictures),
        sample=tuple(row % len(pictures) for row in range(len(values))),
        geometry=(GEOMETRY,) * len(values),
        selected={evaluation._selectors[0]: Selected(values, there)},
    )


def scored(queries: list[Query], found: Features, protocol: RetrievalProtocol = PLAIN) -> Outcome:
    evaluation = started(queries, len(found["train"]), protocol)
    for role, values in found.items():
        feed(evaluation, role, values, list(range(len(values))), 7)
    return evaluation.finish()


def table(outcome: Outcome) -> dict[str, list[str]]:
    return {name: [str(v) for v in np.asarray(c)] for name, c in outcome.columns.items()}


def official(
    similar: np.ndarray, positive: tuple[int, ...], junk: tuple[int, ...], ks: tuple[int, ...]
) -> list[float]:
    """Average precision and precision at ``ks`` of one query, literally as the benchmark's code
    has them: positions of positives less the junk before them, trapezoids, k or the last."""
    order = sorted(range(len(similar)), key=lambda place: (-similar[place], place))
    positions = [rank for rank, place in enumerate(order) if place in positive]
    junk_at = [rank for rank, place in enumerate(order) if place in junk]
    positions = [rank - sum(at < rank for at in junk_at) for rank in positions]
    area = 0.0
    for number, rank in enumerate(positions):
        before = 1.0 if rank == 0 else number / rank
        area += (before + (number + 1) / (rank + 1)) / 2 / len(positive)
    at_k = []
    for k in ks:
        first = min(max(positions) + 1, k)
        at_k.append(sum(rank + 1 <= first for rank in positions) / first)
    return [area, *at_k]


def test_every_querys_values_are_the_official_codes_in_every_setup() -> None:
    queries, found = drawn_queries(40, 12), features(40, 12)
    outcome = scored(queries, found)
    unit = {role: torch.nn.functional.normalize(each).double() for role, each in found.items()}
    similar = (unit["test"] @ unit["train"].T).numpy()
    kept = [place for place, query in enumerate(queries) if query.easy or query.hard]
    assert len(kept) == 9, "a quarter of the queries has no answer"
    assert list(outcome.columns["image_id"]) == [f"test/{place}" for place in kept]
    assert outcome.counts == {
        "gallery_pictures": 40,
        "queries_without_answer": 3,
        "queries_medium": 9,
        "queries_hard": 6,
        "queries_easy": 6,
    }
    for setup in ("easy", "medium", "hard"):
        names = [f"ap_{setup}", *(f"p{k}_{setup}" for k in PLAIN.precision_at)]
        values = np.stack([np.asarray(outcome.columns[name]) for name in names], axis=1)
        for row, place in zip(values, kept, strict=True):
            positive, ignored = answers(queries[place], setup)
            if not positive:
                assert np.isnan(row).all()
                continue
            expected = official(similar[place], positive, ignored, PLAIN.precision_at)
            assert row == pytest.approx(expected)


def test_setups_differ_in_what_answers_and_what_is_ignored() -> None:
    query = asking([1], [2], [3])
    assert answers(query, "easy") == ((1,), (2, 3))
    assert answers(query, "medium") == ((1, 2), (3,))
    assert answers(query, "hard") == ((2,), (1, 3))
    with pytest.raises(ValueError, match="harder"):
        answers(query, "harder")


def test_a_setup_in_which_no_query_has_an_answer_is_left_out() -> None:
    outcome = scored([asking([3], []), asking([1, 2], [])], features(10, 2))
    assert "map_hard" not in outcome.metrics and "ap_hard" not in outcome.columns
    np.testing.assert_array_equal(outcome.columns["ap_easy"], outcome.columns["ap_medium"])


def test_medium_and_hard_are_shown_and_the_rest_stands_in_the_record() -> None:
    outcome = scored(drawn_queries(40, 12), features(40, 12))
    shown = [name for name, metric in outcome.metrics.items() if metric.shown]
    assert shown == ["map_medium", "map_hard"]
    assert {"map_easy", "mp1_easy", "mp5_medium", "mp10_hard"} < set(outcome.metrics)


def test_neither_the_batch_nor_the_order_of_arrival_shows() -> None:
    queries, found = drawn_queries(60, 10), features(60, 10)
    tables = []
    for size, seed in ((1, 0), (7, 1), (64, 2)):
        evaluation = started(queries, 60)
        generator = torch.Generator().manual_seed(seed)
        for role, values in found.items():
            order = torch.randperm(len(values), generator=generator).tolist()
            feed(evaluation, role, values, order, size)
        tables.append(table(evaluation.finish()))
    assert tables[0] == tables[1] == tables[2]


def test_halves_merged_or_resumed_are_the_whole() -> None:
    queries, found = drawn_queries(30, 8), features(30, 8)
    whole, left, right, resumed = (started(queries, 30) for _ in range(4))
    for role, values in found.items():
        half, rest = list(range(len(values) // 2)), list(range(len(values) // 2, len(values)))
        for evaluation, rows in ((whole, half), (left, half), (whole, rest), (right, rest)):
            feed(evaluation, role, values, rows, 5)
    resumed.load(left.state())
    for role, values in found.items():
        feed(resumed, role, values, list(range(len(values) // 2, len(values))), 5)
    left.merge(right)
    tables = [table(evaluation.finish()) for evaluation in (whole, left, resumed)]
    assert tables[0] == tables[1] == tables[2]


def test_a_picture_of_several_crops_is_their_mean() -> None:
    queries, found = drawn_queries(30, 8), features(30, 8)
    evaluation = started(queries, 30, PROTOCOLS["dino-retrieval-multiscale"])
    for role, values in found.items():
        generator = torch.Generator().manual_seed(5)
        away, other = torch.randn(2, *values.shape, generator=generator)
        for start in range(0, len(values), 4):
            some = list(range(len(values)))[start : start + 4]
            crops = (values + away)[some], (values + other)[some], (values - away - other)[some]
            evaluation.update(role, batch(evaluation, role, some, torch.cat(crops)))
    outcome = evaluation.finish()
    expected = scored(queries, found)
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(outcome.columns[name], column)


def test_of_equally_similar_pictures_the_first_of_the_gallery_comes_first() -> None:
    found: Features = {"train": torch.ones(5, 8), "test": torch.ones(2, 8)}
    outcome = scored([asking([0], []), asking([4], [])], found)
    assert outcome.columns["ap_easy"].tolist() == [1.0, pytest.approx(0.1)]


def test_answers_that_were_not_read_are_left_out_and_counted() -> None:
    """Bad pictures may have been skipped, or the gallery cut by a limit."""
    queries = [asking([0, 7], [8], [9]), asking([], [9])]
    found = features(10, 2)
    evaluation = started(queries, 10)
    feed(evaluation, "train", found["train"], [0, 1, 2, 3, 4, 5, 6, 8], 3)
    feed(evaluation, "test", found["test"], [0, 1], 3)
    outcome = evaluation.finish()
    assert outcome.counts["answers_not_in_gallery"] == 2
    assert outcome.counts["queries_without_answer"] == 1
    shorter = scored(
        [asking([0], [7])],
        {"train": found["train"][[0, 1, 2, 3, 4, 5, 6, 8]], "test": found["test"][:1]},
    )
    for name in ("ap_easy", "ap_medium", "ap_hard"):
        np.testing.assert_array_equal(outcome.columns[name], shorter.columns[name])


def test_a_gallery_without_any_answer_has_no_value() -> None:
    evaluation = started([asking([5], [])], 10)
    found = features(10, 1)
    feed(evaluation, "train", found["train"], [0, 1, 2], 3)
    feed(evaluation, "test", found["test"], [0], 3)
    with pytest.raises(HarnessError, match="no query has an answer in the gallery"):
        evaluation.finish()
    with pytest.raises(HarnessError, match="none of its pictures could be used"):
        started([asking([5], [])], 10).finish()


def test_features_that_are_not_finite_are_refused() -> None:
    found = features(10, 1)
    found["train"][3, 2] = float("nan")
    evaluation = started([asking([5], [])], 10)
    with pytest.raises(HarnessError, match="the feature of train/3 is not finite"):
        feed(evaluation, "train", found["train"], [2, 3], 2)


def test_requests_say_how_pictures_are_seen() -> None:
    datasets: dict[Role, Dataset] = {
        "train": Named("train", [None]),
        "test": Named("test", [asking([0], [])]),
    }

    def view(name: str) -> object:
        requests = INSTANCE_RETRIEVAL.requests(ARCHITECTURE, datasets, PROTOCOLS[name])
        assert requests["train"] == requests["test"]
        return requests["test"].view

    assert view("retrieval") == WithinSide(14, 224, "lanczos", region=True)
    assert view("dino-retrieval") == WithinSide(14, 224, "lanczos", region=False)
    assert view("dino-retrieval-multiscale") == WithinSideThrice(14, 512, "lanczos", region=False)


def test_a_data_set_without_gallery_or_queries_is_not_applicable() -> None:
    gallery, queries = Named("train", [None]), Named("test", [asking([0], [])])
    for datasets, reason in (
        ({"test": queries}, "no gallery"),
        ({"train": gallery}, "no queries"),
        ({"train": gallery, "test": GeneratedDataset("g", 2)}, "no queries"),
    ):
        with pytest.raises(NotApplicable, match=reason):
            INSTANCE_RETRIEVAL.requests(ARCHITECTURE, datasets, PLAIN)
    with pytest.raises(NotApplicable, match="patch of 14 pixels is more than longest 13"):
        INSTANCE_RETRIEVAL.requests(
            ARCHITECTURE, {"train": gallery, "test": queries}, PLAIN.changed({"longest": 13})
        )
    unregistered = PLAIN.changed({"token": "registers-mean"})
    without = replace(ARCHITECTURE, layout=TokenLayout(1, 0))
    with pytest.raises(NotApplicable, match="no registers"):
        INSTANCE_RETRIEVAL.requests(without, {"train": gallery, "test": queries}, unregistered)


@pytest.mark.parametrize(
    "change",
    [{"longest": 0}, {"precision_at": [0]}, {"token": "register"}, {"query": "all"}],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(HarnessError, match=next(iter(change))):
        PLAIN.changed(change)


def run_once(
    models: Path, datasets: Path, out: Path, protocol: str = "retrieval", **more: Any
) -> Record:
    options = {"model_files": [models], "dataset_files": [datasets], "out": out, "workers": 0}
    (record,) = evaluate(
        "instance-retrieval",
        "tiny-reg4",
        "landmarks",
        protocols=[protocol],
        device="cpu",
        **options,
        **more,
    )
    return record


def columns_of(out: Path, record: Record) -> dict[str, list[Any]]:
    names = "landmarks", "instance-retrieval", "tiny-reg4", record.protocol.name
    path = record_path(out, *names, record.variant)
    return {name: column.tolist() for name, column in read_columns(path).items()}


def test_what_the_box_shows_to_the_pixel_is_found_first_whatever_the_batch(
    tiny_models: Path, tmp_path: Path
) -> None:
    datasets = paint(tmp_path)
    tables = []
    for size in (1, 7, 64):
        out = tmp_path / str(size)
        record = run_once(tiny_models, datasets, out, batch_size=size, store=False)
        assert record.metrics["map_easy"].value == 100
        assert record.metrics["mp1_easy"].value == record.metrics["mp1_medium"].value == 100
        assert record.metrics["map_hard"].value < 100, "the case is too easy: it shows little"
        tables.append(columns_of(out, record))
    assert tables[0] == tables[1] == tables[2]
    assert (record.cost.pictures, record.cost.forward_passes) == (28, 28)
    assert record.counts["gallery_pictures"] == 24 and record.counts["queries_easy"] == 4


def test_a_whole_query_is_not_its_box_and_three_scales_cost_three_passes(
    tiny_models: Path, tmp_path: Path
) -> None:
    datasets = paint(tmp_path)
    out = tmp_path / "out"
    boxed = run_once(tiny_models, datasets, out)
    whole = run_once(tiny_models, datasets, out, "dino-retrieval")
    thrice = run_once(tiny_models, datasets, out, "dino-retrieval-multiscale")
    assert columns_of(out, boxed) != columns_of(out, whole) != columns_of(out, thrice)
    assert thrice.cost.forward_passes == 3 * thrice.cost.pictures == 84
    at_three = run_once(tiny_models, datasets, out, settings={"multiscale": True})
    assert at_three.metrics["map_easy"].value == 100


def test_a_second_run_takes_all_from_the_store(tiny_models: Path, tmp_path: Path) -> None:
    datasets = paint(tmp_path)
    first = run_once(tiny_models, datasets, tmp_path / "1")
    second = run_once(tiny_models, datasets, tmp_path / "2", settings={"precision_at": [3]})
    assert (first.cost.forward_passes, second.cost.forward_passes) == (28, 0)
    assert second.metrics["map_hard"] == first.metrics["map_hard"]
    moved = json.loads((tmp_path / "landmarks/gnd.json").read_text())
    moved["gnd"][0]["bbx"][0] += 14
    (tmp_path / "landmarks/gnd.json").write_text(json.dumps(moved))
    third = run_once(tiny_models, datasets, tmp_path / "3")
    assert third.cost.forward_passes == 4, "another box is another query"


def test_pictures_that_are_not_there_stop_a_run_or_are_skipped(
    tiny_models: Path, tmp_path: Path
) -> None:
    datasets = paint(tmp_path)
    answer = json.loads((tmp_path / "landmarks/gnd.json").read_text())["gnd"][0]["easy"][0]
    (tmp_path / f"landmarks/jpg/scene{answer}.png").unlink()
    with pytest.raises(BadPicture, match="1 pictures are missing"):
        run_once(tiny_models, datasets, tmp_path / "out")
    record = run_once(tiny_models, datasets, tmp_path / "out", on_bad_picture="skip")
    assert record.counts["answers_not_in_gallery"] == 1
    assert record.counts["queries_easy"] == 3 and record.counts["queries_hard"] == 4
    table = columns_of(tmp_path / "out", record)
    assert np.isnan(table["ap_easy"]).tolist() == [True, False, False, False]
    assert record.metrics["map_easy"].value == 100


def test_models_are_compared_over_the_queries_that_have_a_value(
    tiny_models: Path, tmp_path: Path
) -> None:
    datasets = paint(tmp_path)
    annotations = json.loads((tmp_path / "landmarks/gnd.json").read_text())
    annotations["gnd"][1]["hard"] = []
    (tmp_path / "landmarks/gnd.json").write_text(json.dumps(annotations))
    wanted = Options(
        ["instance-retrieval"],
        ["tiny-reg4", "tiny"],
        ["landmarks"],
        out=tmp_path / "out",
        model_files=[tiny_models],
        dataset_files=[datasets],
        device="cpu",
        workers=0,
    )
    cells = plan(wanted)
    list(run(cells, wanted))
    found = {each.metric: each for each in differences(cells)}
    assert found["map_medium"].pictures == 4 and found["map_hard"].pictures == 3
    ours, theirs = (cell.done for cell in cells)
    assert ours is not None and theirs is not None
    for metric, each in found.items():
        between = ours.metrics[metric].value - theirs.metrics[metric].value
        assert each.value == pytest.approx(between)


def test_a_limit_cuts_queries_and_gallery_to_their_beginnings() -> None:
    queries, found = drawn_queries(40, 12), features(40, 12)
    datasets: dict[Role, Dataset] = {
        "train": First(Named("train", [None] * 40), 20),
        "test": First(Named("test", list(queries)), 4),
    }
    evaluation = INSTANCE_RETRIEVAL.start(Context(ARCHITECTURE, datasets, PLAIN, 0))
    feed(evaluation, "train", found["train"], list(range(20)), 7)
    feed(evaluation, "test", found["test"], list(range(4)), 7)
    within = [
        Query(
            None,
            *(tuple(p for p in places if p < 20) for places in (each.easy, each.hard, each.junk)),
        )
        for each in queries[:4]
    ]
    expected = scored(within, {"train": found["train"][:20], "test": found["test"][:4]})
    assert table(evaluation.finish()) == table(expected)


@pytest.mark.slow
def test_parts_of_real_pictures_find_the_pictures_they_are_of(
    shared_data: Path, tiny_models: Path, tmp_path: Path
) -> None:
    """Near duplicates: a query is a picture seen through a box of three quarters of its sides."""
    pictures = sorted((shared_data / "raccoon").rglob("*.jpg"))[:40]
    (tmp_path / "landmarks/jpg").mkdir(parents=True)
    gnd, names = [], []
    for place, path in enumerate(pictures):
        with Image.open(path) as image:
            image = image.convert("RGB")
        image.thumbnail((300, 300))
        image.save(tmp_path / f"landmarks/jpg/g{place}.png")
        names.append(f"g{place}.png")
        if place % 4 == 0:
            image.save(tmp_path / f"landmarks/jpg/q{place}.png")
            wide, high = image.size
            box = [wide / 8, high / 8, wide * 7 / 8, high * 7 / 8]
            gnd.append({"bbx": box, "easy": [place], "hard": [], "junk": []})
    annotations = {"imlist": names, "qimlist": [f"q{p}.png" for p in range(0, 40, 4)], "gnd": gnd}
    (tmp_path / "landmarks/gnd.json").write_text(json.dumps(annotations))
    file = tmp_path / "landmarks.yaml"
    file.write_text("landmarks: {format: revisited, root: landmarks, annotations: gnd.json}\n")
    record = run_once(tiny_models, file, tmp_path / "out")
    chance = 100 * np.mean([(1 / (rank + 1) + (rank == 0)) / 2 for rank in range(40)])
    assert record.metrics["map_medium"].value > 5 * chance
    whole = run_once(tiny_models, file, tmp_path / "out", "dino-retrieval")
    assert whole.metrics["map_medium"].value == 100  # the very same pixels
