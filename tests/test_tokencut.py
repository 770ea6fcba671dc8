from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from discovered import REAL, Named, batch, boxes, halves
from harness.tasks.tokencut import TOKENCUT, SweptTokenCutProtocol, TokenCutProtocol
from tiny import ARCHITECTURE

from harness import evaluate
from harness.backbone.layout import Tokens
from harness.backbone.vit import Read
from harness.data.dataset import Target
from harness.data.generated import GeneratedDataset
from harness.discovery import component_box
from harness.errors import HarnessError
from harness.probes.normalised_cut import cosines, normalised_cut
from harness.records import read_columns, record_path
from harness.task import Context, NotApplicable, Outcome

PLAIN = TOKENCUT.protocols["tokencut"]
SWEPT = TOKENCUT.protocols["dinov3-tokencut"]
ON_TEST = TOKENCUT.protocols["dinov3-tokencut-on-test"]
FLAGS = "tied", "degenerate", "disconnected"


def started(protocol: TokenCutProtocol | SweptTokenCutProtocol, *ids: str):  # type: ignore[no-untyped-def]
    return TOKENCUT.start(Context(ARCHITECTURE, {"test": Named(*ids)}, protocol, 0))


def told(outcome: Outcome) -> dict[str, list[object]]:
    return {name: np.asarray(column).tolist() for name, column in outcome.columns.items()}


def test_the_box_is_that_of_the_cut_of_the_keys_at_the_published_threshold() -> None:
    patches = torch.randn(1, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    evaluation = started(PLAIN, "a")
    evaluation.update("test", batch(patches, torch.zeros(1, 4, 8), boxes((0, 0, 70, 70))))
    cut = normalised_cut(cosines(patches[0].flatten(0, 1)), 0.2, 1e-5, 1e-8)
    box = component_box(cut.foreground.reshape(9, 8), cut.seed, 14, (112, 126))
    outcome = evaluation.finish()
    assert tuple(outcome.columns[name][0] for name in ("x0", "y0", "x1", "y1")) == box
    assert outcome.columns["seed"][0] == cut.seed
    assert outcome.resolved == {"layer": 3, "facet": "key", "tau": 0.2}


def test_registers_never_enter() -> None:
    generator = torch.Generator().manual_seed(3)
    patches = torch.randn(1, 9, 9, 8, generator=generator)
    registers = torch.rand(1, 4, 8, generator=generator)
    tables = []
    for values in (registers, registers.flip(1), -registers):
        evaluation = started(PLAIN, "a")
        evaluation.update("test", batch(patches, values, boxes((0, 0, 70, 70))))
        tables.append(told(evaluation.finish()))
    assert tables[0] == tables[1] == tables[2]
    assert tables[0]["degenerate"] == [False]


def test_pictures_that_cannot_be_cut_have_the_whole_as_their_box_and_are_counted() -> None:
    noise = torch.randn(1, 5, 5, 8, generator=torch.Generator().manual_seed(1))
    apart = torch.zeros(1, 5, 5, 8)
    apart[..., :2, 0], apart[..., 2:, 1] = 1, 1
    evaluation = started(PLAIN, "alike", "apart", "noise")
    for identity, patches in ("noise", noise), ("alike", torch.ones_like(noise)), ("apart", apart):
        one = batch(patches, torch.zeros(1, 4, 8), boxes((0, 0, 70, 70)), identity)
        evaluation.update("test", one)
    outcome = evaluation.finish()
    assert [outcome.columns[name][0] for name in ("x0", "y0", "x1", "y1")] == [0, 0, 70, 70]
    assert outcome.columns["degenerate"].tolist() == [True, False, False]
    assert outcome.columns["disconnected"].tolist() == [False, True, False]
    assert outcome.columns["x1"][1] == 28
    counted = {f"{flag}_fraction".replace("tied", "tied_seed") for flag in FLAGS}
    assert outcome.metrics.keys() == {"corloc"} | counted


def test_halves_merged_or_resumed_are_the_whole() -> None:
    tables = halves(lambda *ids: started(PLAIN, *ids))
    assert tables[0] == tables[1] == tables[2]


def sweep(protocol: TokenCutProtocol | SweptTokenCutProtocol, count: int) -> Outcome:
    """A sweep over pictures with an object that stands out more in some than in others."""
    generator = torch.Generator().manual_seed(5)
    evaluation = started(protocol, *(f"p{i}" for i in range(count)))
    read = Read(3, "token", True)
    for index in range(count):
        patches = torch.randn(1, 6, 6, 8, generator=generator) * (0.2 + index / count)
        patches[:, 1:4, 1:4, 0] += 2
        patches[..., 1] += 1
        one = batch(patches, torch.zeros(1, 4, 8), boxes((14, 14, 56, 56)), f"p{index}")
        tokens = {read: Tokens(None, torch.zeros(1, 4, 8), patches)}
        evaluation.update("test", replace(one, tokens=tokens))
    return evaluation.finish()


def test_tau_is_chosen_on_the_fifth_with_the_smallest_hashes_and_told_on_the_rest() -> None:
    outcome = sweep(SWEPT, 20)
    ids = [f"p{i}" for i in range(20)]
    by_hash = sorted(ids, key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    assert list(outcome.columns["image_id"]) == [i for i in ids if i not in by_hash[:4]]
    assert outcome.counts["selection_pictures"] == 4
    assert outcome.selected_on == "held-out pictures"
    assert [point["tau"] for point in outcome.details["sweep"]] == [
        pytest.approx(0.05 * step) for step in range(9)
    ]


def test_choosing_on_test_reports_the_best_tau_on_all_pictures() -> None:
    outcome = sweep(ON_TEST, 20)
    assert len(outcome.columns["image_id"]) == 20 and outcome.selected_on == "test"
    scores = [point["corloc_on_selection"] for point in outcome.details["sweep"]]
    assert len(set(scores)) > 1, "every tau scores alike: the case shows nothing"
    assert 100 * np.mean(outcome.columns["hit"]) == pytest.approx(max(scores))
    assert outcome.details["chosen"] == outcome.details["sweep"][scores.index(max(scores))]


def test_the_sweep_reads_the_normed_output_and_the_plain_one_keys() -> None:
    dataset = {"test": GeneratedDataset("g", 2)}
    plain, swept = (TOKENCUT.requests(ARCHITECTURE, dataset, p)["test"] for p in (PLAIN, SWEPT))
    assert plain.reads == {Read(3, "key")}
    assert swept.reads == {Read(3, "token", True)}
    assert plain.sharing == swept.sharing  # one forward pass for both


def test_features_that_are_not_finite_are_refused() -> None:
    patches = torch.ones(1, 3, 3, 4)
    patches[0, 1, 2] = float("inf")
    with pytest.raises(HarnessError, match="not finite"):
        started(PLAIN, "a").update(
            "test", batch(patches, torch.zeros(1, 4, 4), boxes((0, 0, 9, 9)))
        )


def test_the_final_norm_of_a_key_is_refused() -> None:
    with pytest.raises(
        HarnessError, match=r"^protocol tokencut: norm: the final norm is for the facet token"
    ):
        PLAIN.changed({"norm": True})
    assert PLAIN.changed({"norm": True, "facet": "token"})


def test_a_grid_has_each_tau_once_and_at_least_one() -> None:
    twice = SWEPT.changed({"taus": [0.1, 0.2, 0.1]})
    context = Context(ARCHITECTURE, {"test": Named("a")}, twice, 0)
    assert [point["tau"] for point in TOKENCUT.start(context)._points] == [0.1, 0.2]
    with pytest.raises(HarnessError, match="taus"):
        SWEPT.changed({"taus": []})


def test_a_sweep_over_one_picture_is_refused() -> None:
    with pytest.raises(HarnessError, match="dinov3-tokencut: two pictures"):
        sweep(SWEPT, 1)


def test_a_data_set_without_boxes_is_not_applicable() -> None:
    dataset = GeneratedDataset("g", 2)
    dataset.samples = [replace(sample, target=Target(label=0)) for sample in dataset.samples]
    with pytest.raises(NotApplicable, match="no boxes"):
        TOKENCUT.requests(ARCHITECTURE, {"test": dataset}, PLAIN)


@pytest.mark.parametrize("model", ["tiny", "tiny-reg4"])
def test_boxes_do_not_depend_on_the_batch(model: str, tiny_models: Path, tmp_path: Path) -> None:
    protocols = ["tokencut", "dinov3-tokencut-on-test"]
    tables: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in protocols}
    for size in (1, 7, 64):
        out = tmp_path / str(size)
        evaluate(
            "tokencut",
            model,
            "generated",
            protocols=protocols,
            model_files=[tiny_models],
            out=out,
            batch_size=size,
            workers=0,
        )
        for name in protocols:
            path = record_path(out, "generated", "tokencut", model, name)
            tables[name].append(read_columns(path))
    for first, *others in tables.values():
        for other in others:
            for name in first:
                np.testing.assert_array_equal(first[name], other[name])


@pytest.mark.slow
def test_on_real_pictures_every_box_is_the_same_at_batch_1_7_and_64(
    shared_data: Path, tiny_models: Path, tmp_path: Path
) -> None:
    datasets = tmp_path / "real.yaml"
    datasets.write_text(REAL.format(shared_data))
    tables = []
    for size in (1, 7, 64):
        out = tmp_path / str(size)
        evaluate(
            "tokencut",
            "tiny-reg4",
            "raccoon",
            model_files=[tiny_models],
            dataset_files=[datasets],
            out=out,
            batch_size=size,
            limit=60,
        )
        (path,) = out.rglob("tokencut~*.json")
        tables.append(read_columns(path))
    for name in tables[0]:
        np.testing.assert_array_equal(tables[0][name], tables[1][name])
        np.testing.assert_array_equal(tables[0][name], tables[2][name])
