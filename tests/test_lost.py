from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from discovered import REAL, Named, batch, boxes, halves
from harness.tasks.lost import (
    LOST,
    LostProtocol,
    Setting,
    SweptLostProtocol,
    _grid,
    vote,
    votes_of_picture,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from tiny import ARCHITECTURE, REFERENCE

from harness import evaluate, load_backbone
from harness.backbone.layout import Tokens
from harness.backbone.vit import Read
from harness.data.dataset import Target
from harness.data.generated import GeneratedDataset
from harness.discovery import component_box
from harness.errors import HarnessError
from harness.records import read_columns, record_path
from harness.task import Context, NotApplicable


def plainly(affinities: np.ndarray, k: int) -> tuple[int, np.ndarray]:
    """LOST's seed and mask [N] written out patch by patch, ties to the lowest index."""
    count = len(affinities)
    degree = [sum(affinities[p, q] > 0 for q in range(count) if q != p) for p in range(count)]
    order = sorted(range(count), key=lambda p: (degree[p], p))
    voters = [p for p in order[:k] if affinities[order[0], p] > 0]
    votes = sum((affinities[p] for p in voters), np.zeros(count))
    return order[0], votes > 0


@pytest.mark.parametrize("case", range(16))
def test_seed_and_box_are_those_of_the_official_code(case: int) -> None:
    with np.load(REFERENCE / "lost_reference.npz") as stored:
        given_case = {
            name[3:]: stored[name] for name in stored.files if name.startswith(f"{case:02d}_")
        }
    rows, columns = (int(n) for n in given_case["grid"])
    height, width = (int(n) for n in given_case["image_size"])
    features = torch.from_numpy(given_case["features"])
    (found,) = votes_of_picture(features, [False], [0.0], "absolute", int(given_case["k"]))
    box = component_box(
        found.mask[0].reshape(rows, columns).numpy(),
        int(found.seed[0]),
        int(given_case["patch"]),
        (width, height),
    )
    assert int(found.seed[0]) == int(given_case["seed"])
    assert box == tuple(given_case["box_xyxy"])


symmetric = hnp.arrays(
    np.int64, st.tuples(st.integers(1, 14), st.integers(1, 4)), elements=st.integers(-3, 3)
)


@settings(max_examples=150)
@given(symmetric, st.integers(1, 20), st.integers(-6, 6))
def test_a_vote_is_what_the_definition_says_with_ties_and_biases(
    features: np.ndarray, k: int, bias: int
) -> None:
    gram = features @ features.T  # whole numbers: exact in float32
    seed, mask = plainly(gram + bias, k)
    found = vote(torch.from_numpy(gram).float(), [float(bias)], k)
    assert int(found.seed[0]) == seed
    np.testing.assert_array_equal(found.mask[0].numpy(), mask)


def test_several_biases_in_one_call_are_the_same_as_one_by_one() -> None:
    gram = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    gram = gram @ gram.T
    biases = [-1.0, -0.3, 0.0, 0.4]
    together = vote(gram, biases, 10)
    for index, bias in enumerate(biases):
        alone = vote(gram, [bias], 10)
        assert all(torch.equal(a[0], b[index]) for a, b in zip(alone, together, strict=True))


def test_a_gram_divided_by_norms_votes_like_patches_of_unit_length() -> None:
    features = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    (derived,) = votes_of_picture(features, [True], [-0.1, 0.0], "absolute", 10)
    unit = torch.nn.functional.normalize(features)
    (direct,) = votes_of_picture(unit, [False], [-0.1, 0.0], "absolute", 10)
    assert torch.equal(derived.seed, direct.seed)
    assert torch.equal(derived.mask, direct.mask)


def test_a_bias_in_mean_squared_norms_scales_with_the_features() -> None:
    features = torch.randn(50, 16, generator=torch.Generator().manual_seed(2))
    one = votes_of_picture(features, [False], [-0.5], "mean squared norm", 10)[0]
    scaled = votes_of_picture(features * 8, [False], [-0.5], "mean squared norm", 10)[0]
    absolute = votes_of_picture(features * 8, [False], [-0.5], "absolute", 10)[0]
    assert torch.equal(one.mask, scaled.mask)
    assert not torch.equal(one.mask, absolute.mask)


def test_all_positive_affinities_are_degenerate_and_seed_the_first_patch() -> None:
    found = vote(torch.ones(12, 12), [0.0], 5)
    assert (int(found.seed[0]), bool(found.tied[0]), bool(found.degenerate[0])) == (0, True, True)
    assert found.mask.all()


def test_one_patch_is_neither_tied_nor_degenerate() -> None:
    found = vote(torch.ones(1, 1), [0.0], 100)
    assert not found.tied[0] and not found.degenerate[0]


def test_a_strong_negative_bias_gives_the_seeds_own_patch() -> None:
    gram = torch.eye(9)
    found = vote(gram, [-2.0], 5)
    assert not found.mask.any()
    box = component_box(found.mask[0].reshape(3, 3).numpy(), int(found.seed[0]), 10, (30, 30))
    assert box == (0, 0, 10, 10)


def started(protocol: LostProtocol | SweptLostProtocol, *ids: str):  # type: ignore[no-untyped-def]
    return LOST.start(Context(ARCHITECTURE, {"test": Named(*ids)}, protocol, 0))


def test_permuting_registers_moves_no_box() -> None:
    generator = torch.Generator().manual_seed(3)
    patches = torch.randn(1, 5, 5, 8, generator=generator)
    registers = torch.randn(1, 4, 8, generator=generator) * 100
    tables = []
    for values in (registers, registers.flip(1), -registers):
        evaluation = started(LOST.protocols["lost"], "a")
        evaluation.update("test", batch(patches, values, boxes((0, 0, 70, 70))))
        tables.append({k: np.asarray(v).tolist() for k, v in evaluation.finish().columns.items()})
    assert tables[0] == tables[1] == tables[2]


def test_pictures_without_an_object_are_skipped_and_counted() -> None:
    patches, registers = torch.randn(1, 5, 5, 8), torch.zeros(1, 4, 8)
    evaluation = started(LOST.protocols["lost"], "a", "b", "c", "d")
    evaluation.update("test", batch(patches, registers, boxes((0, 0, 70, 70)), "a"))
    evaluation.update("test", batch(patches, registers, boxes(), "b"))
    evaluation.update("test", batch(patches, registers, Target(), "c"))
    evaluation.update("test", batch(patches, registers, boxes((0, 0, 9, 9), crowd=True), "d"))
    outcome = evaluation.finish()
    assert list(outcome.columns["image_id"]) == ["a"]
    assert outcome.counts == {"skipped_no_box": 3}


def test_difficult_objects_can_be_left_out() -> None:
    hard = boxes((0, 0, 70, 70), difficult=True)
    evaluation = started(LostProtocol(keep_hard=False), "a")
    evaluation.update("test", batch(torch.randn(1, 5, 5, 8), torch.zeros(1, 4, 8), hard))
    with pytest.raises(HarnessError, match="no picture with a box"):
        evaluation.finish()


def test_columns_come_in_the_data_sets_order_whatever_the_order_of_batches() -> None:
    evaluation = started(LOST.protocols["lost"], "z", "a", "m")
    for identity in ("m", "z", "a"):
        evaluation.update(
            "test",
            batch(torch.randn(1, 5, 5, 8), torch.zeros(1, 4, 8), boxes((0, 0, 9, 9)), identity),
        )
    assert list(evaluation.finish().columns["image_id"]) == ["z", "a", "m"]


def test_halves_merged_or_resumed_are_the_whole() -> None:
    tables = halves(lambda *ids: started(LOST.protocols["lost"], *ids))
    assert tables[0] == tables[1] == tables[2]


SWEPT = LOST.protocols["lost-swept"]
ON_TEST = LOST.protocols["lost-swept-on-test"]


def test_the_grid_is_the_published_one() -> None:
    assert isinstance(SWEPT, SweptLostProtocol)
    grid = _grid(SWEPT, 24)
    assert len(grid) == 4 * 3 * 2 * 21
    assert grid[0] == Setting(20, "query", True, -1.0)
    assert grid[-1] == Setting(23, "value", False, 0.0)
    assert sorted({setting.bias for setting in grid}) == [
        round(-1 + step * 0.05, 2) for step in range(21)
    ]


def sweep(protocol: SweptLostProtocol, pictures: int):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(5)
    ids = [f"picture {i}" for i in range(pictures)]
    evaluation = started(protocol, *ids)
    reads = frozenset(
        Read(layer, facet) for layer in range(4) for facet in ("query", "key", "value")
    )
    for identity in ids:
        tokens = {
            read: Tokens(None, torch.zeros(1, 4, 8), torch.randn(1, 4, 4, 8, generator=generator))
            for read in sorted(reads)
        }
        one = batch(torch.zeros(1, 4, 4, 8), torch.zeros(1, 4, 8), boxes((0, 0, 30, 30)), identity)
        evaluation.update("test", replace(one, tokens=tokens))
    return evaluation.finish(), ids


def test_the_setting_is_chosen_on_the_fifth_with_the_smallest_hashes_and_told_on_the_rest() -> None:
    assert isinstance(SWEPT, SweptLostProtocol)
    outcome, ids = sweep(SWEPT, 20)
    by_hash = sorted(ids, key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    assert list(outcome.columns["image_id"]) == [i for i in ids if i not in by_hash[:4]]
    assert outcome.counts["selection_pictures"] == 4
    assert outcome.selected_on == "held-out pictures"


def test_the_first_of_equals_in_grid_order_is_chosen() -> None:
    assert isinstance(SWEPT, SweptLostProtocol)
    outcome, _ = sweep(SWEPT, 6)
    scores = [point["corloc_on_selection"] for point in outcome.details["sweep"]]
    assert scores.count(max(scores)) > 1, "the case has no tie: it shows nothing"
    assert outcome.details["chosen"] == outcome.details["sweep"][scores.index(max(scores))]


def test_choosing_on_test_reports_the_grids_best_on_all_pictures() -> None:
    assert isinstance(ON_TEST, SweptLostProtocol)
    outcome, ids = sweep(ON_TEST, 20)
    assert list(outcome.columns["image_id"]) == ids
    best = max(point["corloc_on_selection"] for point in outcome.details["sweep"])
    assert 100 * np.mean(outcome.columns["hit"]) == pytest.approx(best)
    assert outcome.selected_on == "test"


def test_features_that_are_not_finite_are_refused() -> None:
    features = torch.zeros(4, 4)
    features[1, 2] = float("nan")
    with pytest.raises(HarnessError, match="not finite"):
        votes_of_picture(features, [False], [0.0], "absolute", 2)


def test_the_final_norm_of_a_key_is_refused() -> None:
    with pytest.raises(
        HarnessError, match=r"^protocol lost: norm: the final norm is for the facet token"
    ):
        LOST.protocols["lost"].changed({"norm": True})
    assert LOST.protocols["lost"].changed({"norm": True, "facet": "token"})


def test_a_grid_has_each_setting_once_and_at_least_one() -> None:
    assert isinstance(SWEPT, SweptLostProtocol)
    twice = SWEPT.changed({"layers": [-1, 3], "biases": [0.0, -0.0], "normalised": [True, True]})
    assert _grid(twice, 4) == [Setting(3, f, True, 0.0) for f in ("query", "key", "value")]
    with pytest.raises(HarnessError, match="biases"):
        SWEPT.changed({"biases": []})


def test_a_sweep_over_one_picture_is_refused() -> None:
    assert isinstance(SWEPT, SweptLostProtocol)
    with pytest.raises(HarnessError, match="two pictures"):
        sweep(SWEPT, 1)


def test_a_data_set_without_boxes_is_not_applicable() -> None:
    dataset = GeneratedDataset("g", 2)
    dataset.samples = [replace(sample, target=Target(label=0)) for sample in dataset.samples]
    with pytest.raises(NotApplicable, match="no boxes"):
        LOST.requests(ARCHITECTURE, {"test": dataset}, LOST.protocols["lost"])


def test_lost_is_one_point_of_the_sweep(tiny_models: Path, tmp_path: Path) -> None:
    """The sweep narrowed to the official setting gives the official protocol's boxes."""
    options = {"model_files": [tiny_models], "out": tmp_path, "workers": 0}
    evaluate("lost", "tiny-reg4", "generated", **options)
    narrow = {"layers": [-1], "facets": ["key"], "normalised": [False], "biases": [0.0]}
    (swept,) = evaluate(
        "lost",
        "tiny-reg4",
        "generated",
        protocols=["lost-swept-on-test"],
        settings=narrow,
        **options,
    )
    names = "generated", "lost", "tiny-reg4"
    plain = read_columns(record_path(tmp_path, *names, "lost"))
    point = read_columns(record_path(tmp_path, *names, "lost-swept-on-test", swept.variant))
    assert plain.keys() == point.keys()
    for name in plain:
        np.testing.assert_array_equal(plain[name], point[name])


@pytest.mark.parametrize("model", ["tiny", "tiny-reg4"])
def test_boxes_do_not_depend_on_the_batch_or_the_workers(
    model: str, tiny_models: Path, tmp_path: Path
) -> None:
    tables = []
    for size, workers in ((1, 0), (7, 2), (64, 1)):
        out = tmp_path / str(size)
        evaluate(
            "lost",
            model,
            "generated",
            model_files=[tiny_models],
            out=out,
            batch_size=size,
            workers=workers,
        )
        tables.append(read_columns(record_path(out, "generated", "lost", model, "lost")))
    for name in tables[0]:
        np.testing.assert_array_equal(tables[0][name], tables[1][name])
        np.testing.assert_array_equal(tables[0][name], tables[2][name])


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["raccoon", "coco256"])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("facet", ["key", "value"])
def test_on_real_pictures_every_box_is_the_official_pipelines(
    dataset: str,
    registers: int,
    facet: str,
    shared_data: Path,
    shared_reference: Path,
    tiny_models: Path,
    tmp_path: Path,
) -> None:
    stored = shared_reference / f"lost_e2e_reg{registers}_{facet}_{dataset}.json"
    expected = json.loads(stored.read_text())
    datasets = tmp_path / "real.yaml"
    datasets.write_text(REAL.format(shared_data))
    model = "tiny-reg4" if registers else "tiny"
    (record,) = evaluate(
        "lost",
        model,
        dataset,
        model_files=[tiny_models],
        dataset_files=[datasets],
        settings={"facet": facet},
        out=tmp_path,
    )
    path = record_path(tmp_path, dataset, "lost", model, "lost", record.variant)
    table = read_columns(path)
    assert set(table["image_id"]) == set(expected["per_image"])
    corners = np.stack([table[name] for name in ("x0", "y0", "x1", "y1")], axis=1)
    for image, box, seed, hit in zip(
        table["image_id"], corners, table["seed"], table["hit"], strict=True
    ):
        official = expected["per_image"][image]
        assert (box.tolist(), seed, hit) == (official["box"], official["seed"], official["hit"])
    assert record.metrics["corloc"].value == pytest.approx(expected["corloc"])


@pytest.mark.slow
def test_on_real_pictures_corloc_is_the_same_at_batch_1_7_and_64(
    shared_data: Path, tiny_models: Path, tmp_path: Path
) -> None:
    datasets = tmp_path / "real.yaml"
    datasets.write_text(REAL.format(shared_data))
    scores = [
        evaluate(
            "lost",
            "tiny-reg4",
            "raccoon",
            model_files=[tiny_models],
            dataset_files=[datasets],
            out=tmp_path / str(size),
            batch_size=size,
        )[0].metrics["corloc"]
        for size in (1, 7, 64)
    ]
    assert scores[0] == scores[1] == scores[2]


def test_the_gram_matrix_that_bench_times_gives_the_protocols_box(tiny_models: Path) -> None:
    backbone = load_backbone("tiny-reg4", [tiny_models], "cpu")
    pixels = torch.randn(1, 3, 98, 126, generator=torch.Generator().manual_seed(6))
    keys = backbone(pixels, [Read(3, "key")]).tokens[Read(3, "key")].patches[0]
    seed, mask = plainly((keys.flatten(0, 1) @ keys.flatten(0, 1).T).double().numpy(), 100)
    labels, _ = ndimage.label(mask.reshape(7, 9))
    rows, columns = np.nonzero(labels == labels.flat[seed])
    expected = (
        columns.min() * 14,
        rows.min() * 14,
        (columns.max() + 1) * 14,
        (rows.max() + 1) * 14,
    )
    assert LOST.look(keys, 14, (126, 98)).box == expected
