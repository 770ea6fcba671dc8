"""The task ``anatomy``: what it says of models and pictures whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discovered import Named, boxes
from harness.tasks.anatomy import ANATOMY, LOCAL, LocalInformationProtocol
from PIL import Image
from tiny import ARCHITECTURE, REFERENCE

from harness import evaluate, load_backbone
from harness.anatomy import AnatomyProtocol, layers_of
from harness.backbone.layout import Tokens
from harness.backbone.vit import Read
from harness.cli import main
from harness.data.dataset import Target
from harness.data.generated import GeneratedDataset
from harness.data.views import Geometry
from harness.errors import HarnessError
from harness.features.outliers import NO_OUTLIERS, OutlierRule
from harness.probes.patch_anatomy import COLUMNS
from harness.records import read_columns, record_path
from harness.schema import Record
from harness.selection import held_out
from harness.task import Batch, Context, NotApplicable

# ------------------------------------------------------------------------- the official sequence


@pytest.mark.parametrize("size", ["98x98", "126x98", "70x154", "224x224"])
@pytest.mark.parametrize("registers", [0, 4])
def test_norms_are_those_of_the_official_sequence_before_the_final_norm(
    registers: int, size: str, tiny_models: Path
) -> None:
    name = "tiny-reg4" if registers else "tiny"
    backbone = load_backbone(name, [tiny_models], device="cpu")
    with np.load(REFERENCE / f"dinov2_tiny_reg{registers}_reference.npz") as arrays:
        pixels, sequence = (
            torch.from_numpy(arrays[f"{size}/{each}"]) for each in ("input", "prenorm")
        )
    reads = [Read("embedding"), *(Read(layer) for layer in range(4))]
    tokens = backbone(pixels, reads).tokens
    fold = ANATOMY.fold(4, NO_OUTLIERS)
    rows = fold.add([tokens[read] for read in reads[1:]], tokens[reads[0]].patches).rows
    norms = sequence.double().norm(dim=-1)
    patches = norms[:, 1 + registers :]
    by_name = dict(zip(COLUMNS, rows.T, strict=True))
    np.testing.assert_allclose(by_name["largest_norm"], patches.amax(1), atol=1e-4)
    np.testing.assert_allclose(by_name["median_norm"], patches.median(1).values, atol=1e-4)
    pictures = len(norms)
    assert float(fold.sums["norm"][3]) == pytest.approx(float(patches.sum()), rel=1e-6)
    assert float(fold.sums["class_norm"][3]) / pictures == pytest.approx(
        float(norms[:, 0].mean()), abs=1e-4
    )
    if registers:
        own = norms[:, 1:5].mean(0)
        np.testing.assert_allclose(fold.sums["register_norm"][3] / pictures, own, atol=1e-4)


# ---------------------------------------------------------------------------- a planted artifact

PATCH, SIDE, PLANTED_AT = 8, 8, 2
_PLANTED = """
planted:
  timm: vit_tiny_patch16_224
  checkpoint: planted.safetensors
  arguments: {img_size: 64, patch_size: 8, embed_dim: 16, depth: 4, num_heads: 2}
  position_embedding: {antialias: true, offset: 0.0}
  input: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], interpolation: bicubic}
"""


def planted_model(folder: Path) -> Path:
    """A ViT whose blocks do nothing, but for one neuron of block ``PLANTED_AT``: where a patch is
    white, it makes the token about ten times as long."""
    from safetensors.torch import save_file
    from timm.models.vision_transformer import VisionTransformer

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model: Any = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=0
    )
    weights = model.state_dict()
    for name, values in weights.items():
        if "attn.proj" in name or "mlp.fc2" in name or name == "pos_embed":
            values.zero_()
    filters = torch.randn(16, 3, 8, 8, generator=generator) / 30
    filters -= filters.mean((1, 2, 3), keepdim=True)  # of a flat patch they see nothing
    filters[0] = 1 / filters[0].numel()  # the first sees how bright the patch is
    weights["patch_embed.proj.weight"].copy_(filters)
    weights["patch_embed.proj.bias"].fill_(0.2)
    # A white patch is all in the first channel: normalised, that is nearly 4 (sqrt of 16 channels).
    up, down = (f"blocks.{PLANTED_AT}.mlp.fc{n}" for n in (1, 2))
    weights[f"{up}.weight"][0] = torch.eye(16)[0] * 50
    weights[f"{up}.bias"][0] = -50 * 3.5
    weights[f"{down}.weight"][5, 0] = 0.6
    save_file(weights, folder / "planted.safetensors")
    path = folder / "planted.yaml"
    path.write_text(_PLANTED)
    return path


def planted_pictures(folder: Path, count: int) -> np.ndarray:
    """Grey noise with none to three white patches each; where they are, ``[count, 8, 8]``."""
    folder.mkdir()
    places = np.zeros((count, SIDE, SIDE), bool)
    for index in range(count):
        draw = np.random.default_rng(index)
        picture = draw.integers(20, 130, (64, 64, 3), dtype=np.uint8)
        for place in draw.choice(64, index % 4, replace=False):
            row, column = divmod(int(place), SIDE)
            places[index, row, column] = True
            picture[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 255
        Image.fromarray(picture).save(folder / f"{index:03d}.png")
    return places


def test_a_planted_artifact_is_found_with_its_layer_its_places_and_its_share(
    tmp_path: Path,
) -> None:
    models = planted_model(tmp_path)
    places = planted_pictures(tmp_path / "pictures", 100)
    data = tmp_path / "data.yaml"
    data.write_text("mine: {format: pictures, root: pictures}")
    options = {"model_files": [models], "dataset_files": [data], "out": tmp_path, "workers": 0}
    (record,) = evaluate("anatomy", "planted", "mine", **options)
    assert record.counts == {"patches": 6400, "outliers": int(places.sum())}
    assert record.metrics["outlier_fraction"].value == pytest.approx(100 * places.mean())
    details: Any = record.details
    assert details["positions"]["outliers_by_patch"] == places.sum(0).tolist()
    assert details["summary"]["separates_at_layer"] == PLANTED_AT
    told = [layer["outlier_times_normal"] for layer in details["layers"]]
    assert max(told[:PLANTED_AT]) < 2 and min(told[PLANTED_AT:]) > 8
    shares = [layer["outlier_share"] for layer in details["layers"]]
    assert shares[PLANTED_AT:] == [pytest.approx(100 * places.mean())] * 2
    table = read_columns(record_path(tmp_path, "mine", "anatomy", "planted", "anatomy"))
    np.testing.assert_allclose(table["outlier_share"], places.mean((1, 2)))
    edge = np.ones((8, 8), bool)
    edge[1:-1, 1:-1] = False
    with np.errstate(invalid="ignore"):
        expected = (places & edge).sum((1, 2)) / places.sum((1, 2))
    np.testing.assert_allclose(table["border_share"], expected)


def test_where_norms_have_one_mode_there_are_no_outliers_and_that_is_said(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--task", "anatomy", "--model", "tiny", "--dataset", "generated"]
    where = ["--models", str(tiny_models), "--out", str(tmp_path), "--workers", "0"]
    assert main([*command, *where]) == 0
    assert "tiny · anatomy: no patch is an outlier" in capsys.readouterr().out
    path = record_path(tmp_path, "generated", "anatomy", "tiny", "anatomy")
    record = json.loads(path.read_text())
    assert record["protocol"]["resolved"]["outlier_cutoff"] is None
    assert "one mode" in record["protocol"]["resolved"]["outliers"]
    assert record["details"]["summary"]["verdict"] == "none"
    assert "outlier_redundancy" not in record["metrics"]
    assert record["metrics"]["normal_redundancy"]["value"] > 0


# --------------------------------------------------------------------- batches, halves, registers


def ran(out: Path, models: Path, dataset: str = "generated", **options: Any) -> tuple[Record, dict]:  # type: ignore[type-arg]
    (record,) = evaluate(
        "anatomy", "tiny-reg4", dataset, model_files=[models], out=out, workers=0, **options
    )
    path = record_path(out, dataset, "anatomy", "tiny-reg4", record.protocol.name, record.variant)
    return record, read_columns(path)


@pytest.mark.parametrize(
    ("protocol", "view"),
    [
        ("anatomy", "middle"),
        pytest.param("anatomy", "whole, zeros right and below", marks=pytest.mark.slow),
        pytest.param("local-information", "middle", marks=pytest.mark.slow),
    ],
)
def test_the_forward_batch_moves_nothing(
    protocol: str, view: str, tiny_models: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"outliers": "quantile0.9", "view": view}
    if protocol == "local-information":
        settings["held_out"] = 0.5
    tables, layers = [], []
    for size in (1, 7, 64):
        record, table = ran(
            tmp_path / str(size), tiny_models, batch_size=size, protocols=[protocol],
            settings=settings, store=False,
        )  # fmt: skip
        details: Any = record.details
        tables.append(table)
        layers.append(details["layers"])
    for table, others in zip(tables[1:], layers[1:], strict=True):
        for name, column in tables[0].items():
            if name == "image_id":
                np.testing.assert_array_equal(table[name], column)
            else:
                np.testing.assert_allclose(table[name], column, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(layers[0], others, strict=True):
            assert theirs["mean"] == pytest.approx(ours["mean"], rel=1e-5)
            assert theirs["register_norms"] == pytest.approx(ours["register_norms"], rel=1e-5)


def batch(ids: Sequence[str], registers: Sequence[int] = (0, 1, 2, 3)) -> Batch:
    """Pictures of 5 x 5 patches that depend on their ids alone; the first patch of each is long."""
    parts = [torch.Generator().manual_seed(sum(map(ord, each))) for each in ids]
    reads = {}
    for read in (Read("embedding"), *(Read(layer) for layer in range(4)), Read(3, "token", True)):
        patches = torch.stack([torch.randn(5, 5, 8, generator=each) for each in parts])
        if read == Read(3):
            patches[:, 0, 0] *= 50
        own = torch.stack([torch.randn(4, 8, generator=each) for each in parts])
        reads[read] = Tokens(patches.mean((1, 2)), own[:, list(registers)], patches)
    pixels = torch.stack([torch.randn(3, 70, 70, generator=each) for each in parts])
    where = Geometry((70, 70), (70, 70), (0, 0, 70, 70), (0, 0, 0, 0))
    return Batch(
        reads, {}, tuple(ids), (Target(),) * len(ids), tuple(range(len(ids))), (where,) * len(ids),
        pixels,
    )  # fmt: skip


IDS = [f"p{index}" for index in range(8)]
FACTS = replace(ARCHITECTURE, stored_grid=(5, 5))


def started(protocol: AnatomyProtocol, train: Sequence[str] = ()):  # type: ignore[no-untyped-def]
    roles: dict[Any, Any] = {"test": Named(*IDS)}
    if train:
        roles["train"] = Named(*train)
    rule = OutlierRule.parse(protocol.outliers)
    return ANATOMY.start(Context(FACTS, roles, protocol, 0, {rule: 20.0}))


def columns_of(evaluation: Any) -> dict[str, Any]:
    return {name: np.asarray(each) for name, each in evaluation.finish().columns.items()}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, column in one.items():
        if name == "image_id":
            np.testing.assert_array_equal(other[name], column)
        else:
            np.testing.assert_allclose(other[name], column, atol=1e-6)


KEPT = LocalInformationProtocol(held_out=0.375)


@pytest.mark.parametrize(
    "protocol",
    [AnatomyProtocol(), KEPT, KEPT.changed({"fitted_on": "each kind by itself"})],
    ids=["anatomy", "all", "each kind"],
)
def test_halves_merged_or_resumed_are_the_whole_whatever_the_order(
    protocol: AnatomyProtocol,
) -> None:
    whole, left, right, resumed = (started(protocol) for _ in range(4))
    whole.update("test", batch(IDS))
    right.update("test", batch(IDS[5:][::-1]))
    left.update("test", batch(IDS[:5]))
    resumed.load(right.state())
    resumed.update("test", batch(IDS[:5]))
    left.merge(right)
    for each in (whole, left, resumed):
        each.end("test")
    expected = columns_of(whole)
    assert expected["outlier_share"] == pytest.approx(1 / 25)
    for each in (left, resumed):
        assert_same(expected, columns_of(each))


@pytest.mark.parametrize("protocol", [AnatomyProtocol(), KEPT])
def test_permuting_registers_moves_no_column(protocol: AnatomyProtocol) -> None:
    tables = []
    for order in ((0, 1, 2, 3), (2, 3, 1, 0)):
        evaluation = started(protocol)
        evaluation.update("test", batch(IDS, order))
        evaluation.end("test")
        tables.append(columns_of(evaluation))
    assert_same(*tables)


# ------------------------------------------------------------------------------ local information


def coded(ids: Sequence[str], lost: bool) -> Batch:
    """Tokens that hold their row and column; the long first patch has ``lost`` it."""
    plain = batch(ids)
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
    code = torch.stack([rows, columns], -1).expand(len(ids), 5, 5, 2).clone()
    if lost:
        code[:, 0, 0] = 2
    patches = plain.tokens[Read(3, "token", True)].patches
    patches = torch.cat([code, patches[..., 2:] * 0.01], -1)
    tokens = Tokens(None, torch.zeros(len(ids), 0, 8), patches)
    return replace(plain, tokens={**plain.tokens, Read(3, "token", True): tokens})


@pytest.mark.parametrize(("with_train", "lost"), [(True, False), (True, True), (False, False)])
def test_positions_are_read_of_normal_tokens_and_of_outliers_apart(
    with_train: bool, lost: bool
) -> None:
    train = [f"t{index}" for index in range(30)]
    evaluation = started(KEPT, train if with_train else ())
    if with_train:
        evaluation.update("train", coded(train, lost=False))
        evaluation.end("train")
    evaluation.update("test", coded(IDS, lost))
    evaluation.end("test")
    outcome = evaluation.finish()
    columns = {name: np.asarray(each) for name, each in outcome.columns.items()}
    scored = ~np.isnan(columns["normal_position_top1"])
    assert scored.sum() == outcome.counts["pictures_scored"] == (8 if with_train else 3)
    assert outcome.counts["fitted_on_all"] == (30 if with_train else 5) * 25
    if not with_train:
        np.testing.assert_array_equal(scored, held_out(IDS, 0.375))
    assert (columns["normal_position_top1"][scored] == 1).all()
    assert (columns["outlier_position_top1"][scored] == (0 if lost else 1)).all()
    off = columns["outlier_position_distance"][scored]
    assert off == pytest.approx(np.sqrt(8) if lost else 0)
    says = outcome.details["summary"]["evidence"]["position"]["says"]
    assert says == ("artifact" if lost else "neither")


def test_the_pixels_that_are_told_do_not_depend_on_the_models_mean_and_spread() -> None:
    far = []
    for mean, std in (((0.5,) * 3, (0.5,) * 3), ((0.4, 0.2, 0.1), (0.3, 0.2, 0.5))):
        context = Context(
            replace(FACTS, mean=mean, std=std),
            {"test": Named(*IDS)},
            KEPT,
            0,
            {OutlierRule("valley", 0.0): 20.0},
        )
        evaluation = ANATOMY.start(context)
        plain = batch(IDS)
        assert plain.pixels is not None
        own, spread = (torch.tensor(each)[:, None, None] for each in (mean, std))
        evaluation.update("test", replace(plain, pixels=(plain.pixels * 0.2 + 0.5 - own) / spread))
        evaluation.end("test")
        far.append(columns_of(evaluation)["normal_pixel_l2"])
    np.testing.assert_allclose(far[0], far[1], rtol=1e-5)
    # 588 numbers of spread 0.2 in pixels from 0 to 1, and of 0.2 / 0.226 as ImageNet has them.
    assert np.nanmean(far[0]) > np.sqrt(588) * 0.2 / 0.226 * 0.9


def test_the_picture_s_class_is_read_where_there_is_one(tmp_path: Path, tiny_models: Path) -> None:
    data = tmp_path / "data.yaml"
    data.write_text("painted: {format: scenes, count: {train: 8, test: 6}, size: 98}")
    record, table = ran(
        tmp_path, tiny_models, "painted", dataset_files=[data], protocols=["local-information"],
        settings={"outliers": "quantile0.9"}, store=False,
    )  # fmt: skip
    assert {
        "normal_class",
        "outlier_class",
        "normal_pixels",
        "outlier_distance",
    } <= record.metrics.keys()
    assert record.counts["fitted_on_all"] == 8 * 49 and len(table["image_id"]) == 6
    # Masks are there: what outliers are on is known of every picture that has one.
    has = table["outlier_share"] > 0
    assert has.any() and not np.isnan(table["outliers_on_objects"][has]).any()
    assert set(LOCAL) <= table.keys()


def test_one_picture_alone_cannot_be_scored_beside_what_is_fitted() -> None:
    evaluation = started(KEPT)
    (held,) = [each for each in IDS if each in evaluation._held][:1]
    evaluation.update("test", batch([held]))
    evaluation.end("test")
    with pytest.raises(HarnessError, match="no picture was left to fit"):
        evaluation.finish()


# -------------------------------------------------------------------------- views and wrong use


def test_the_whole_picture_is_seen_without_its_padding(tiny_models: Path, tmp_path: Path) -> None:
    record, table = ran(
        tmp_path, tiny_models, settings={"view": "whole, zeros right and below", "outliers": 1}
    )
    sizes = [sample.size for sample in GeneratedDataset("g").samples]
    inside = [(width // 14) * (height // 14) for width, height in sizes]
    assert record.counts["patches"] == sum(inside)
    assert record.metrics["outlier_fraction"].value == 100
    assert not np.isnan(table["outliers_on_objects"]).any()


def test_a_picture_smaller_than_a_patch_has_no_value_and_alone_is_refused(
    tiny_models: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    data = tmp_path / "data.yaml"
    data.write_text("mine: {format: pictures, root: pictures}")
    settings = {"view": "whole, zeros right and below", "outliers": 1}
    options: dict[str, Any] = {"dataset_files": [data], "settings": settings}
    Image.new("RGB", (9, 40), (200, 10, 10)).save(tmp_path / "pictures" / "small.png")
    with pytest.raises(HarnessError, match="no picture has a patch without padding"):
        ran(tmp_path, tiny_models, "mine", **options)
    Image.new("RGB", (30, 40), (200, 10, 10)).save(tmp_path / "pictures" / "large.png")
    record, table = ran(tmp_path, tiny_models, "mine", **options)
    assert record.counts["patches"] == 4
    np.testing.assert_array_equal(table["outlier_share"], [1, np.nan])
    np.testing.assert_array_equal(np.isnan(table["largest_norm"]), [False, True])


def test_the_highest_norms_of_nano_are_on_objects_and_no_artifacts(tmp_path: Path) -> None:
    data = tmp_path / "data.yaml"
    data.write_text("painted: {format: scenes, count: {test: 40}, size: 80}")
    settings = {"outliers": "quantile0.98"}
    (record,) = evaluate(
        "anatomy", "nano", "painted", dataset_files=[data], settings=settings, out=tmp_path,
        workers=0, store=False,
    )  # fmt: skip
    details: Any = record.details
    assert details["summary"]["verdict"] == "salient tokens"
    objects = (record.metrics[f"{kind}_on_objects"].value for kind in ("outliers", "patches"))
    assert next(objects) > 1.2 * next(objects)


@pytest.mark.slow
def test_a_cutoff_is_estimated_once_and_on_patches_without_padding(
    tiny_models: Path, tmp_path: Path
) -> None:
    settings = {"view": "whole, zeros right and below", "outliers": "quantile0.9"}
    record, table = ran(tmp_path, tiny_models, settings=settings)
    patches = record.counts["patches"]
    assert record.counts["outliers"] == patches - (int(0.9 * (patches - 1)) + 1)
    assert record.cost.forward_passes == 24
    again, other = ran(tmp_path, tiny_models, settings=settings, overwrite=True)
    assert again.cost.forward_passes == 12
    np.testing.assert_array_equal(table["outlier_share"], other["outlier_share"])


def test_a_layer_that_tells_outliers_is_in_the_tables() -> None:
    protocol = AnatomyProtocol(layer=-2, layers=(0, -1))
    assert layers_of(protocol, 12) == ((0, 10, 11), 10)
    assert layers_of(AnatomyProtocol(), 3) == ((0, 1, 2), 2)


def requested(protocol: AnatomyProtocol, **roles: Any) -> Any:
    return ANATOMY.requests(ARCHITECTURE, roles, protocol)


def test_what_makes_no_sense_is_told_with_what_would() -> None:
    test = GeneratedDataset("g", 2)
    with pytest.raises(NotApplicable, match=r"does not divide the size of 100 .*size=98"):
        requested(AnatomyProtocol(size=100), test=test)
    with pytest.raises(NotApplicable, match="layer 7 of a model with 4 blocks"):
        requested(AnatomyProtocol(layer=7), test=test)
    with pytest.raises(NotApplicable, match="no test split"):
        requested(AnatomyProtocol(), train=test)
    with pytest.raises(HarnessError, match="positions are told on one grid"):
        KEPT.changed({"view": "whole, zeros right and below"})
    with pytest.raises(HarnessError, match="mean\\+3sd or valley was expected"):
        AnatomyProtocol().changed({"outliers": "many"})
    with pytest.raises(HarnessError, match="no picture was seen"):
        started(AnatomyProtocol()).finish()


def test_only_what_is_needed_is_asked_for() -> None:
    test = GeneratedDataset("g", 2)
    one = requested(AnatomyProtocol(), test=test)
    assert list(one) == ["test"] and not one["test"].pixels and one["test"].dense is None
    assert one["test"].reads == {Read("embedding"), *map(Read, range(4))}
    two = requested(KEPT, train=test, test=test)
    assert two["train"].reads == {Read(3), Read(3, "token", True)}
    assert two["train"].bytes_per_picture == 0 < two["test"].bytes_per_picture
    alone = requested(KEPT, test=test)["test"]
    assert alone.bytes_per_picture > 0.375 * 49 * 4 * (48 + 588)
    assert not alone.storable


def test_tokens_that_are_not_finite_are_told_with_a_picture() -> None:
    evaluation = started(AnatomyProtocol())
    broken = batch(IDS[:2])
    broken.tokens[Read(1)].patches[0, 0, 0, 0] = float("inf")
    with pytest.raises(HarnessError, match="not finite, of p0"):
        evaluation.update("test", broken)


def test_a_picture_without_boxes_beside_others_is_not_known() -> None:
    evaluation = started(AnatomyProtocol())
    with_boxes = Named("x").samples[0].target
    both = replace(batch(IDS[:3]), targets=(Target(), with_boxes, boxes((0, 0, 70, 60))))
    evaluation.update("test", both)
    columns = columns_of(evaluation)
    # Of the third picture's last patches 4 of 14 rows are in the box: less than half.
    np.testing.assert_allclose(columns["patches_on_objects"], [np.nan, 1, 0.8])


def test_its_protocols_can_be_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "local-information"]) == 0
    assert "held out" in capsys.readouterr().out
