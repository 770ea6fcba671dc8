from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discovered import Named, boxes
from harness.tasks.attention import ATTENTION, against, regions, source_of
from tiny import ARCHITECTURE

from harness import evaluate, load_backbone, plan
from harness.backbone import sources
from harness.backbone.layout import TokenLayout
from harness.backbone.vit import Backbone, Forward
from harness.data.dataset import IGNORED, Dense, Target
from harness.data.fixed_size import FixedSize
from harness.data.generated import GeneratedDataset
from harness.data.views import Geometry, WholePicture
from harness.errors import HarnessError
from harness.nano.scenes import ScenesDataset
from harness.options import Options
from harness.records import read_columns
from harness.task import Batch, Context, Evaluation, NotApplicable, Outcome

MAPS: Any = ATTENTION.protocols["attention"]
SINKS: Any = ATTENTION.protocols["attention-sinks"]
LAST = ARCHITECTURE.depth - 1
BOXED = {"test": GeneratedDataset("g", 2)}


def started(settings: dict[str, object] | None = None, *ids: str) -> Evaluation:
    protocol = MAPS.changed(settings or {})
    return ATTENTION.start(Context(ARCHITECTURE, {"test": Named(*(ids or ("a",)))}, protocol, 0))


def batch(attention: torch.Tensor, target: Target, identity: str = "a") -> Batch:
    """One picture of whole patches; ``attention [heads, 5, H, W]`` in the last layer."""
    rows, columns = attention.shape[-2:]
    size = columns * 14, rows * 14
    return Batch(
        tokens={},
        attention={LAST: attention[None]},
        ids=(identity,),
        targets=(target,),
        sample=(0,),
        geometry=(Geometry(size, size, (0, 0, *size), (0, 0, 0, 0)),),
        crops=(1,),
    )


def spots(*places: tuple[int, int]) -> torch.Tensor:
    """Heads ``[3, 5, 4, 4]`` whose class token looks at one patch each."""
    attention = torch.full((3, 5, 4, 4), 0.001)
    for head, (row, column) in enumerate(places):
        attention[head, 0, row, column] = 0.5
    return attention


LEFT_TOP = boxes((0, 0, 28, 28))


def scored(evaluation: Evaluation, *batches: Batch) -> Outcome:
    for one in batches:
        evaluation.update("test", one)
    return evaluation.finish()


# ------------------------------------------------------------------------------------ what is read


def test_the_mean_of_the_heads_is_scored_and_details_tell_of_each() -> None:
    outcome = scored(started(), batch(spots((0, 0), (1, 1), (3, 3)), LEFT_TOP))
    assert outcome.resolved == {
        "layers": [LAST],
        "layer": LAST,
        "source": "class",
        "head": "mean",
        "objects": "boxes",
    }
    (layer,) = outcome.details["layers"]
    assert [head["pointing_game"] for head in layer["heads"]] == [100, 100, 0]
    assert layer["mean"]["pointing_game"] == 100
    assert layer["mean"]["object_share"] == 25
    mean = spots((0, 0), (1, 1), (3, 3))[:, 0].mean(0)[None, None]
    whole = torch.nn.functional.interpolate(mean, (56, 56), mode="bilinear")[0, 0]
    inside = float(whole[:28, :28].sum() / whole.sum())
    assert float(outcome.columns["inside"][0]) == pytest.approx(inside, rel=1e-4)
    assert float(outcome.columns["to_patches"][0]) == pytest.approx(0.5 + 15 * 0.001)


def test_one_head_alone_is_scored_where_it_is_named() -> None:
    outcome = scored(started({"heads": 2}), batch(spots((0, 0), (1, 1), (3, 3)), LEFT_TOP))
    assert outcome.columns["pointing"].tolist() == [0]
    assert outcome.resolved["head"] == 2


@pytest.mark.parametrize("heads", ["mean", "best on test"])
def test_of_several_layers_the_last_named_is_reported_and_details_tell_of_all(heads: str) -> None:
    evaluation = started({"layers": [3, 0], "heads": heads})
    one = batch(spots((3, 3), (3, 3), (0, 0)), LEFT_TOP)
    # In layer 0 heads 0 and 1 look at the object, in layer 3 head 2 does.
    first = spots((0, 0), (1, 1), (3, 3))
    outcome = scored(evaluation, replace(one, attention={3: one.attention[3], 0: first[None]}))
    assert outcome.resolved["layers"] == [3, 0] and outcome.resolved["layer"] == 0
    assert outcome.resolved["head"] == ("mean" if heads == "mean" else 1)
    assert outcome.columns["pointing"].tolist() == [1]
    told = outcome.details["layers"]
    assert [layer["layer"] for layer in told] == [3, 0]
    assert [head["pointing_game"] for head in told[0]["heads"]] == [0, 0, 100]


@pytest.mark.parametrize(
    ("source", "hit"), [("class", 0), ("register1", 1), ("register2", 0), ("registers", 1)]
)
def test_the_source_says_whose_rows_are_read(source: str, hit: float) -> None:
    attention = spots((3, 3), (3, 3), (3, 3))
    attention[:, 1, 0, 0] = 0.9  # the first register
    attention[:, 2, 3, 0] = 0.2
    outcome = scored(started({"source": source}), batch(attention, LEFT_TOP))
    assert outcome.columns["pointing"].tolist() == [hit]
    assert outcome.resolved["source"] == source


def test_a_model_without_a_class_token_is_read_by_its_registers() -> None:
    assert source_of(MAPS, TokenLayout(1, 4)) == ("class", slice(0, 1))
    assert source_of(MAPS, TokenLayout(0, 4)) == ("registers", slice(0, 4))
    second = MAPS.changed({"source": "register2"})
    assert source_of(second, TokenLayout(1, 4)) == ("register2", slice(2, 3))
    assert source_of(second, TokenLayout(0, 4)) == ("register2", slice(1, 2))


@pytest.mark.parametrize(
    ("settings", "facts", "reason"),
    [
        ({}, {"layout": TokenLayout(0, 0)}, "neither a class token nor registers"),
        ({"source": "class"}, {"layout": TokenLayout(0, 4)}, "no class token .*source=registers"),
        ({"source": "registers"}, {"layout": TokenLayout(1, 0)}, "no registers"),
        ({"source": "register5"}, {}, "no register 5: they are 4"),
        ({"heads": 3}, {}, "head 3 of a model with 3"),
        ({"heads": -1}, {}, "head -1 of a model with 3"),
        ({"layers": [7]}, {}, "layer 7 of a model with 4"),
        ({"objects": "masks"}, {}, "no masks of objects"),
        ({}, {"attends": False}, "no attention of one softmax"),
    ],
)
def test_what_makes_no_sense_is_not_applicable_with_its_reason(
    settings: dict[str, object], facts: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NotApplicable, match=reason):
        ATTENTION.requests(replace(ARCHITECTURE, **facts), BOXED, MAPS.changed(settings))


def test_the_census_needs_attention_and_a_test_split_and_nothing_else() -> None:
    with pytest.raises(NotApplicable, match="no attention of one softmax"):
        ATTENTION.requests(replace(ARCHITECTURE, attends=False), BOXED, SINKS)
    with pytest.raises(NotApplicable, match="no test split"):
        ATTENTION.requests(ARCHITECTURE, {"train": BOXED["test"]}, SINKS)
    without = replace(ARCHITECTURE, layout=TokenLayout(0, 0))
    request = ATTENTION.requests(without, BOXED, SINKS)["test"]
    assert request.received == (0, 1, 2, 3) and request.attention == ()


@pytest.mark.parametrize(
    "settings", [{"source": "register0"}, {"source": "cls"}, {"mass": 0}, {"heads": "best"}]
)
def test_a_setting_that_means_nothing_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(HarnessError, match="protocol attention: "):
        MAPS.changed(settings)


def test_masks_are_read_where_there_are_some_and_pictures_at_their_size_or_as_squares() -> None:
    scenes = {"test": ScenesDataset("s", "test", 2, (80, 60))}
    request = ATTENTION.requests(ARCHITECTURE, scenes, MAPS)["test"]
    assert request.dense == "pictures" and request.view == WholePicture(14, 16_384)
    boxed = ATTENTION.requests(ARCHITECTURE, BOXED, MAPS.changed({"side": 224}))["test"]
    assert boxed.dense is None and boxed.view == FixedSize(14, (224, 224))
    assert against(MAPS.changed({"objects": "boxes"}), scenes["test"]) == "boxes"


def test_one_forward_pass_serves_lost_and_attention(tiny_models: Path, tmp_path: Path) -> None:
    options = Options(
        tasks=["lost", "attention"],
        models=["tiny"],
        datasets=["generated"],
        model_files=[tiny_models],
        out=tmp_path,
    )
    keys = {key for cell in plan.plan(options) for key in cell.passes}
    assert len(keys) == 1


# ------------------------------------------------------------------------------ where objects are


def test_the_region_of_boxes_is_clipped_to_the_picture_and_leaves_out_what_does_not_count() -> None:
    target = boxes((-3, 1, 2, 3), (4, 2, 9, 9))
    there, counted = regions("boxes", target, Dense(), (5, 4), True)
    expected = np.zeros((4, 5), bool)
    expected[1:3, :2] = expected[2:, 4:] = True
    np.testing.assert_array_equal(there, expected)
    assert counted.all()
    for left_out in (boxes((0, 0, 2, 2), crowd=True), Target()):
        assert not regions("boxes", left_out, Dense(), (5, 4), True)[0].any()
    hard = boxes((0, 0, 2, 2), difficult=True)
    assert regions("boxes", hard, Dense(), (5, 4), True)[0].sum() == 4
    assert not regions("boxes", hard, Dense(), (5, 4), False)[0].any()


def test_of_masks_what_is_ignored_counts_for_nothing_and_objects_go_before_classes() -> None:
    semantic = np.array([[0, 1, IGNORED], [2, 0, 0]], np.uint8)
    there, counted = regions("masks", Target(), Dense(semantic), (3, 2), True)
    assert there.tolist() == [[False, True, False], [True, False, False]]
    assert counted.tolist() == [[True, True, False], [True, True, True]]
    instances = np.array([[0, 3, 1], [0, 0, 0]], np.uint8)
    there, _ = regions("masks", Target(), Dense(semantic, instances), (3, 2), True)
    assert there.tolist() == [[False, True, False], [False, False, False]]


def test_a_picture_without_objects_is_skipped_and_counted() -> None:
    evaluation = started({}, "a", "b")
    one = batch(spots((0, 0), (0, 0), (0, 0)), LEFT_TOP)
    outcome = scored(evaluation, one, batch(one.attention[LAST][0], Target(), "b"))
    assert outcome.columns["image_id"] == ["a"]
    assert outcome.counts == {"skipped_no_object": 1}
    with pytest.raises(HarnessError, match="no picture with an object"):
        scored(started(), batch(one.attention[LAST][0], Target()))


def test_padding_takes_no_part_in_a_map_over_the_picture() -> None:
    attention = spots((3, 3), (3, 3), (3, 3))
    attention[:, 0, 0, 0] = 0.1
    one = batch(attention, LEFT_TOP)
    # Only the left upper 2×2 patches are the picture.
    geometry = Geometry((28, 28), (28, 28), (0, 0, 28, 28), (0, 0, 28, 28))
    inside = scored(started(), replace(one, geometry=(geometry,)))
    assert inside.columns["inside"].tolist() == pytest.approx([1])
    assert float(inside.columns["objects"][0]) == 1


def test_without_masks_and_boxes_entropy_alone_is_told() -> None:
    dataset = GeneratedDataset("g", 1)
    dataset.samples = [replace(dataset.samples[0], target=Target())]
    name = dataset.samples[0].id
    request = ATTENTION.requests(ARCHITECTURE, {"test": dataset}, MAPS)["test"]
    assert request.dense is None
    evaluation = ATTENTION.start(Context(ARCHITECTURE, {"test": dataset}, MAPS, 0))
    even = torch.full((3, 5, 4, 4), 0.05)
    outcome = scored(evaluation, batch(even, Target(), name))
    assert outcome.metrics.keys() == {"entropy", "to_patches"}
    assert outcome.metrics["entropy"].shown
    assert float(outcome.columns["entropy"][0]) == pytest.approx(1)
    assert float(outcome.columns["to_patches"][0]) == pytest.approx(0.8)
    with pytest.raises(NotApplicable, match="neither masks nor boxes to choose a head by"):
        ATTENTION.requests(ARCHITECTURE, {"test": dataset}, MAPS.changed({"heads": "best on test"}))


def test_attention_that_is_not_finite_is_refused() -> None:
    attention = spots((0, 0), (0, 0), (0, 0))
    attention[1, 0, 2, 2] = float("nan")
    with pytest.raises(HarnessError, match="not finite"):
        scored(started(), batch(attention, LEFT_TOP))


# ------------------------------------------------------------------------------------ the best head


def chosen(rule: str) -> tuple[Outcome, list[str]]:
    """Twenty pictures; head 1 finds the object in all, and head 2 in every other."""
    ids = [f"p{place}" for place in range(20)]
    evaluation = started({"heads": rule}, *ids)
    for place, name in enumerate(ids):
        third = (0, 1) if place % 2 else (3, 3)
        evaluation.update("test", batch(spots((3, 0), (1, 0), third), LEFT_TOP, name))
    return evaluation.finish(), ids


def test_the_best_head_is_chosen_on_a_fifth_and_told_on_the_rest() -> None:
    outcome, _ = chosen("best on held-out pictures")
    assert outcome.selected_on == "held-out pictures"
    assert outcome.resolved["head"] == 1
    assert len(outcome.columns["image_id"]) == 16
    assert outcome.counts["selection_pictures"] == 4
    assert outcome.columns["pointing"].tolist() == [1] * 16


def test_the_best_head_on_test_says_so() -> None:
    outcome, ids = chosen("best on test")
    assert outcome.selected_on == "test"
    assert outcome.columns["image_id"] == ids
    overlaps = [head["iou_at_mass"] for head in outcome.details["layers"][0]["heads"]]
    assert np.argmax(overlaps) == outcome.resolved["head"] == 1


def test_one_picture_is_too_few_to_choose_a_head() -> None:
    with pytest.raises(HarnessError, match="two pictures with objects are needed"):
        scored(
            started({"heads": "best on held-out pictures"}),
            batch(spots((0, 0), (0, 0), (0, 0)), LEFT_TOP),
        )


def test_halves_merged_or_resumed_are_the_whole() -> None:
    ids = [f"p{place}" for place in range(6)]
    generator = torch.Generator().manual_seed(0)
    batches = [batch(torch.rand(3, 5, 4, 4, generator=generator), LEFT_TOP, name) for name in ids]
    whole, left, right, resumed = (started({}, *ids) for _ in range(4))
    expected = scored(whole, *batches)
    for one in batches[:3]:
        left.update("test", one)
    resumed.load(left.state())
    for one in batches[3:]:
        right.update("test", one)
    left.merge(right)
    for found in (left.finish(), scored(resumed, *batches[3:])):
        assert found.details == expected.details
        for name, column in expected.columns.items():
            np.testing.assert_array_equal(found.columns[name], column)


# -------------------------------------------------------------------------------------- end to end


def run(
    folder: Path, models: Path, dataset: str = "generated", model: str = "tiny-reg4", **more: Any
) -> dict[str, dict[str, np.ndarray]]:
    """The columns of both protocols."""
    protocols = list(ATTENTION.protocols)
    data = folder / "data.yaml"
    folder.mkdir(exist_ok=True)
    data.write_text("few: {format: scenes, count: {test: 12}, size: 70}")
    evaluate(
        "attention",
        model,
        dataset,
        protocols=protocols,
        model_files=[models],
        dataset_files=[data],
        out=folder,
        workers=0,
        device="cpu",
        **more,
    )
    stored = folder / dataset / "attention" / model
    return {name: read_columns(next(stored.glob(f"{name}[.~]*json"))) for name in protocols}


def same(ours: dict[str, dict[str, np.ndarray]], theirs: dict[str, dict[str, np.ndarray]]) -> None:
    for name, columns in ours.items():
        for column, numbers in columns.items():
            if column == "image_id":
                assert numbers.tolist() == theirs[name][column].tolist()
            else:
                np.testing.assert_allclose(numbers, theirs[name][column], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dataset", "limit"), [("generated", 4), ("few", 12)])
def test_scores_do_not_depend_on_the_batch(
    dataset: str, limit: int, tiny_models: Path, tmp_path: Path
) -> None:
    first, *others = (
        run(tmp_path / str(size), tiny_models, dataset, batch_size=size, limit=limit)
        for size in (1, 7, 64)
    )
    for other in others:
        same(first, other)


def test_a_batch_that_is_halved_for_lack_of_memory_scores_the_same(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(tmp_path / "whole", tiny_models, "few")
    forward = Backbone.__call__

    def small(self: Backbone, pixels: torch.Tensor, *rest: Any) -> Forward:
        if len(pixels) > 3:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return forward(self, pixels, *rest)

    monkeypatch.setattr(Backbone, "__call__", small)
    same(run(tmp_path / "halved", tiny_models, "few", batch_size=12), expected)


def test_of_registers_in_another_order_no_score_of_the_class_token_moves(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, load = run(tmp_path / "before", tiny_models, "few"), sources.load_backbone

    def permuted(*arguments: Any, **more: Any) -> Backbone:
        backbone = load(*arguments, **more)
        module: Any = backbone.module
        with torch.no_grad():
            module.reg_token.copy_(module.reg_token.flip(1))
        return backbone

    monkeypatch.setattr("harness.run.load_backbone", permuted)
    same(run(tmp_path / "after", tiny_models, "few"), expected)


def test_a_sink_planted_in_a_register_token_is_counted_in_its_layer_alone(
    tiny_models: Path, tmp_path: Path
) -> None:
    backbone = load_backbone("tiny-reg4", device="cpu", models=tiny_models)
    module: Any = backbone.module
    dataset = ScenesDataset("s", "test", 3, (70, 70))
    with torch.no_grad():
        # Block 0 sees register 2 as it is: all its heads look there, and its value is nothing.
        block = module.blocks[0]
        token = block.norm1(module.reg_token)[0, 2]
        query, key, value = block.attn.qkv.weight.chunk(3)
        along, towards = token / token.square().sum(), torch.randn(48).sign() * 6
        query.mul_(0.1)
        block.attn.qkv.bias[:96] = torch.cat((towards, torch.zeros(48)))
        key.sub_(torch.outer(key @ token - towards, along))
        value.sub_(torch.outer(value @ token + block.attn.qkv.bias[96:], along))
    evaluation = ATTENTION.start(Context(backbone.architecture, {"test": dataset}, SINKS, 0))
    pixels = torch.randn(3, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    evaluation.update(
        "test",
        Batch(
            tokens={},
            attention={},
            ids=tuple(sample.id for sample in dataset.samples),
            targets=tuple(sample.target for sample in dataset.samples),
            sample=(0, 1, 2),
            geometry=(Geometry((70, 70), (70, 70), (0, 0, 70, 70), (0, 0, 0, 0)),) * 3,
            received=backbone(pixels, (), received=range(4)).received,
        ),
    )
    outcome = evaluation.finish()
    heads = outcome.details["heads"]
    assert heads["register"][0] == heads["null-like"][0] == [1, 1, 1]
    assert np.sum(heads["register"][1:]) == np.sum(heads["patch"]) == 0
    assert outcome.columns["register"].tolist() == outcome.columns["null"].tolist() == [0.25] * 3
    assert heads["broadcast-like"] == heads["class"] == [[0, 0, 0]] * 4
    assert max(outcome.columns["norm"]) < 1e-3


@pytest.mark.parametrize("model", ["pixels", "chance"])
def test_the_floors_have_no_attention_and_the_plan_says_so(model: str, tmp_path: Path) -> None:
    options = Options(
        tasks=["attention"],
        protocols=list(ATTENTION.protocols),
        models=[model],
        datasets=["scenes-demo"],
        out=tmp_path,
    )
    reasons = {cell.reason for cell in plan.plan(options)}
    assert reasons == {"its blocks have no attention of one softmax a head"}


@pytest.mark.slow
def test_both_nanos_look_at_objects_far_more_than_a_map_without_any_idea_of_them(
    tmp_path: Path,
) -> None:
    records = {
        model: evaluate("attention", model, "scenes-demo", out=tmp_path, limit=60, workers=0)[0]
        for model in ("nano", "nano-reg4")
    }
    for model, record in records.items():
        chance = record.metrics["object_share"].value
        assert record.metrics["pointing_game"].low > 2 * chance, model
        assert record.metrics["attention_inside"].low > 1.2 * chance, model
        assert 0 < record.metrics["entropy"].value < 100
