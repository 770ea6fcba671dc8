"""Planted register neurons are found, moved, and their outliers are gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from tiny import REFERENCE, entry
from torch import nn

import harness
from harness.backbone.interventions import second_linear
from harness.backbone.vit import Backbone, Read
from harness.cli import main
from harness.errors import HarnessError
from harness.interventions import read_neurons
from harness.options import Options
from harness.records import read as read_record
from harness.register_neurons import Search, _find
from harness.register_pictures import ready

BLOCK, PLANTED = 2, ((2, 150), (2, 31))
"""Where two neurons are planted, the stronger first, in a model of four blocks."""
SKY = ((1, 2), (5, 4))
"""Patches of every picture that are plain blue: background."""
PICTURES = 24


def paint(folder: Path) -> None:
    """Noise, with two plain patches at ``SKY`` of the 7x7 grid."""
    for role, count in (("train", PICTURES), ("val", 4)):
        for kind in "ab":
            (folder / role / kind).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng([index, count]).integers(90, 166, (98, 98, 3), np.uint8)
            for row, column in SKY:
                pixels[14 * row : 14 * (row + 1), 14 * column : 14 * (column + 1)] = (0, 0, 255)
            Image.fromarray(pixels).save(folder / role / "ab"[index % 2] / f"{index:02}.png")


def mlp_inputs(backbone: Backbone, folder: Path) -> tuple[torch.Tensor, torch.Tensor, float]:
    """What the MLP of ``BLOCK`` reads of patches ``[n, D]``, which are sky, and the mean norm."""
    seen: list[torch.Tensor] = []
    blocks: Any = backbone.module.blocks
    handle = blocks[BLOCK].mlp.fc1.register_forward_pre_hook(lambda _, i: seen.append(i[0]))
    facts, read = backbone.architecture, Read(BLOCK)
    pixels = torch.stack(
        [
            torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255
            for path in sorted(folder.glob("train/*/*.png"))
        ]
    )
    mean, std = (torch.tensor(each)[:, None, None] for each in (facts.mean, facts.std))
    tokens = backbone((pixels - mean) / std, [read]).tokens[read]
    handle.remove()
    sky = torch.zeros(len(pixels), 7, 7, dtype=torch.bool)
    for row, column in SKY:
        sky[:, row, column] = True
    return seen[0][:, 1:].flatten(0, 1), sky.flatten(), float(tokens.patches.norm(dim=-1).mean())


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, data.yaml, and models.yaml with the model ``planted``: two neurons of
    the tiny DINOv2 fire on the sky, and make them ten times as long."""
    folder = tmp_path_factory.mktemp("planted")
    paint(folder / "pictures")
    (folder / "data.yaml").write_text("sky: {format: folder, root: pictures}\n")
    models = folder / "models.yaml"
    models.write_text(entry("tiny", 0))
    backbone = harness.load_backbone("tiny", [models], device="cpu")
    inputs, sky, norm = mlp_inputs(backbone, folder / "pictures")
    # The linear map that is 4 on the sky and -4 on others, as far as there is one.
    with_one = torch.cat((inputs, torch.ones(len(inputs), 1)), dim=1).double()
    wanted = torch.where(sky, 4.0, -4.0).double()[:, None]
    weight = torch.linalg.lstsq(with_one, wanted).solution[:, 0].float()
    said = inputs @ weight[:-1] + weight[-1]
    assert float(said[sky].min()) > 2 and float(said[~sky].max()) < 0, "told apart"
    state = safetensors.torch.load_file(REFERENCE / "dinov2_tiny_reg0.safetensors")
    direction = torch.zeros(48)
    direction[7] = 1
    gain = 10 * norm / 4 / float(state[f"blocks.{BLOCK}.ls2.gamma"][7])
    # The stronger has the smaller share, so that moving it alone leaves outliers.
    for (_, neuron), strength, share in zip(PLANTED, (2.0, 1.5), (0.2, 0.8), strict=True):
        state[f"blocks.{BLOCK}.mlp.fc1.weight"][neuron] = strength * weight[:-1]
        state[f"blocks.{BLOCK}.mlp.fc1.bias"][neuron] = strength * weight[-1]
        state[f"blocks.{BLOCK}.mlp.fc2.weight"][:, neuron] = direction * gain * share / strength
    safetensors.torch.save_file(state, folder / "planted.safetensors")
    models.write_text(entry("planted", 0, folder / "planted.safetensors"))
    return folder


def command(folder: Path, out: Path, *more: str, action: str = "find") -> list[str]:
    return [
        "registers", action, "planted", "--data", "sky", "--out", str(out), "--workers", "0",
        "--models", str(folder / "models.yaml"), "--datasets", str(folder / "data.yaml"),
        "--data-root", str(folder), "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def found(planted: Path) -> Path:
    path = planted / "planted.neurons.json"
    assert main(command(planted, path)) == 0
    return path


def norms(backbone: Backbone, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of patches ``[n, 7, 7]`` and registers ``[n, R]`` after ``BLOCK``, on test pictures."""
    facts, read = backbone.architecture, Read(BLOCK)
    mean, std = (torch.tensor(each)[:, None, None] for each in (facts.mean, facts.std))
    pixels = [
        torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255
        for path in sorted((folder / "pictures").glob("val/*/*.png"))
    ]
    tokens = backbone((torch.stack(pixels) - mean) / std, [read]).tokens[read]
    return tokens.patches.norm(dim=-1), tokens.registers.norm(dim=-1)


def test_the_planted_neurons_are_found_first_at_their_layer(found: Path) -> None:
    file = read_neurons(found)
    assert file.neurons == list(PLANTED)
    assert file.settings["detect_layer"] == file.settings["top_layer"] == BLOCK
    assert file.scores == sorted(file.scores, reverse=True)
    assert file.pictures["pictures"] == PICTURES and file.pictures["split"] == "train"


def test_the_curve_tells_how_outliers_vanish(found: Path) -> None:
    without, one, two = read_neurons(found).curve
    assert [point.neurons for point in (without, one, two)] == [0, 1, 2]
    assert without.outlier_fraction == pytest.approx(len(SKY) / 49)
    assert without.register_norm is None
    assert two.outlier_fraction == 0
    assert two.largest_norm < one.largest_norm < without.largest_norm
    assert two.register_norm is not None
    assert two.register_norm > 2 * two.largest_norm


@pytest.mark.parametrize("rule", ["shared-scalar", "per-neuron"])
def test_with_a_test_time_register_the_outliers_are_gone_and_the_register_has_the_norm(
    planted: Path, found: Path, tmp_path: Path, rule: str
) -> None:
    file = tmp_path / "models.yaml"
    changes = f"test_time_registers: {{rule: {rule}, neurons: {found}}}"
    file.write_text((planted / "models.yaml").read_text() + f"ttr:\n  like: planted\n  {changes}\n")
    plain, changed = (
        norms(harness.load_backbone(name, [file], device="cpu"), planted)
        for name in ("planted", "ttr")
    )
    threshold: Any = read_neurons(found).settings["threshold_norm"]
    assert int((plain[0] > threshold).sum()) == 4 * len(SKY)
    for row, column in SKY:
        assert float(plain[0][:, row, column].min()) > 6 * float(plain[0].median())
    assert float(changed[0].max()) < threshold / 2
    assert float(changed[1].min()) > threshold


def test_the_neuron_file_belongs_to_its_weights(
    found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "models.yaml"
    changes = f"test_time_registers: {{neurons: {found}}}"
    file.write_text(entry("tiny", 0) + f"other:\n  like: tiny\n  {changes}\n")
    run = ["run", "--task", "lost", "--model", "other", "--dataset", "generated"]
    assert main([*run, "--models", str(file), "--out", str(tmp_path)]) == 2
    assert "belongs to other weights" in capsys.readouterr().err


def test_the_batch_moves_nothing(planted: Path, found: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    assert main(command(planted, again, "--batch-size", "5")) == 0
    one, other = (json.loads(path.read_text()) for path in (found, again))
    for facts in (one, other):
        facts["scores"] = pytest.approx(facts["scores"], rel=1e-5)
        facts["settings"]["threshold_norm"] = round(facts["settings"]["threshold_norm"], 3)
        for point in facts["curve"]:
            point |= {k: round(point[k] or 0, 3) for k in ("largest_norm", "register_norm")}
    one["scores"] = other["scores"] = None
    assert one == other


def test_a_neuron_that_fires_everywhere_is_left_out_by_the_sparsity_filter(
    planted: Path, found: Path, tmp_path: Path
) -> None:
    state = safetensors.torch.load_file(planted / "planted.safetensors")
    state[f"blocks.{BLOCK}.mlp.fc1.bias"][90] = 50  # stronger than any, and at all tokens alike
    safetensors.torch.save_file(state, tmp_path / "loud.safetensors")
    models = tmp_path / "models.yaml"
    models.write_text(entry("planted", 0, tmp_path / "loud.safetensors"))

    def first(*more: str) -> tuple[int, int]:
        out = tmp_path / f"{len(more)}.json"
        typed = command(planted, out, "--top-layer", "2", "--top-k", "2", *more)
        assert main([*typed, "--models", str(models)]) == 0
        return read_neurons(out).neurons[0]

    assert first() == (2, 90)
    assert first("--sparse") == PLANTED[0]


class Negative(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -(-x).relu()


def test_a_neuron_that_writes_outliers_with_negative_values_is_found_too(
    planted: Path, tmp_path: Path
) -> None:
    options = Options(
        tasks=["registers"],
        models=["planted"],
        datasets=["sky"],
        model_files=[planted / "models.yaml"],
        dataset_files=[planted / "data.yaml"],
        data_root=planted,
        device="cpu",
        workers=0,
    )
    backbone, seen = ready(PICTURES, None, options, tmp_path / "n.json", None)
    blocks: Any = backbone.module.blocks
    mlp = blocks[BLOCK].mlp
    mlp.act = Negative()
    for _, neuron in PLANTED:
        for weight in (mlp.fc1.weight[neuron], mlp.fc1.bias[neuron], mlp.fc2.weight[:, neuron]):
            weight.neg_()
    assert _find(Search(top_k=2), backbone, seen).neurons == list(PLANTED)


def test_what_is_asked_for_is_taken(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "n.json"
    more = "--top-k", "7", "--top-layer", "1", "--detect-layer", "-1", "--pictures", "3"
    assert main(command(planted, out, *more, "--threshold", "quantile0.9", "--size", "56")) == 0
    file = read_neurons(out)
    assert len(file.neurons) == 7 and max(layer for layer, _ in file.neurons) <= 1
    assert [point.neurons for point in file.curve] == [0, 7]
    assert (file.settings["detect_layer"], file.settings["size"]) == (3, 56)
    assert file.pictures["pictures"] == 3


def test_json_is_the_file_and_the_table_tells_the_curve(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(planted, tmp_path / "a.json", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.pop("file") == str(tmp_path / "a.json")
    assert facts == json.loads((tmp_path / "a.json").read_text())
    assert main(command(planted, tmp_path / "b.json")) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "neurons moved outliers largest patch norm largest register norm" in told
    assert "the strongest first: 2:150, 2:31" in told


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--threshold", "1e9"], "no patch of 24 pictures has a norm above 1e+09 after layer 2"),
        (["--threshold", "high"], "--threshold 'high'"),
        (["--detect-layer", "4"], "--detect-layer 4: model 'planted' has 4 layers"),
        (["--top-layer", "-5"], "--top-layer -5: model 'planted' has 4 layers"),
        (["--top-k", "0"], "--top-k 0: at least 1"),
        (["--top-k", "999"], "--top-k 999: layers to 2 have 576 neurons"),
        (["--pictures", "0"], "--pictures 0: at least 1"),
        (["--size", "50"], "--size 50: no multiple of the patch of 14"),
        (["--compile"], "not with --compile"),
        (["--models", "gone.yaml"], "gone.yaml: no such file"),
    ],
)
def test_wrong_use_is_exit_status_2_and_one_message(
    more: list[str], says: str, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(planted, tmp_path / "n.json", *more)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "n.json").exists()


def test_a_file_that_is_there_is_kept(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "n.json"
    out.write_text("mine")
    assert main(command(planted, out)) == 2
    assert "--overwrite" in capsys.readouterr().err and out.read_text() == "mine"
    assert main(command(planted, out, "--overwrite")) == 0


def test_states_are_the_mean_and_spread_of_what_registers_hold(
    tiny_models: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.safetensors"
    typed = command(planted, out, "--pictures", "10", "--batch-size", "3", action="states")
    assert main(typed) == 2
    assert "has no trained registers" in capsys.readouterr().err
    typed[2] = "tiny-reg4"
    assert main([*typed, "--models", str(tiny_models)]) == 0
    tensors = safetensors.torch.load_file(out)
    assert tensors["examples"].shape == (10, 4, 4, 48)
    mean, sd = tensors["examples"].mean(0), tensors["examples"].std(0, correction=0)
    torch.testing.assert_close(tensors["mean"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tensors["sd"], sd, rtol=1e-2, atol=1e-4)


# ------------------------------------------------------------------------------------ in a run


def test_nano_with_a_test_time_register_runs_and_its_record_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "--task", "lost", "--model", "nano-ttr1,nano", "--dataset", "scenes-demo"]
    typed = [*run, "--limit", "3", "--out", str(tmp_path), "--workers", "0", "--device", "cpu"]
    assert main(typed) == 0
    changed, plain = (
        read_record(next((tmp_path / "scenes-demo" / "lost" / name).glob("lost~*.json")))
        for name in ("nano-ttr1", "nano")
    )
    assert changed.model.interventions == ["1 test-time register (shared-scalar)"]
    assert (changed.model.registers, plain.model.registers) == (1, 0)
    assert changed.model.weights_digest != plain.model.weights_digest
    assert changed.model.checkpoint_sha256 == plain.model.checkpoint_sha256
    added: Any = changed.model.entry["test_time_registers"]
    assert (added["count"], added["rule"]) == (1, "shared-scalar") and len(added["neurons"]) == 64
    assert changed.model.entry_digest != plain.model.entry_digest


@pytest.mark.slow
def test_the_shipped_neurons_are_found_again(tmp_path: Path) -> None:
    """On fewer pictures than there were, the strongest are the same."""
    out = tmp_path / "n.json"
    typed = ["registers", "find", "nano", "--data", "scenes-demo", "--top-k", "10", "--out"]
    more = ["--pictures", "60", "--workers", "0", "--device", "cpu", "--batch-size", "30"]
    assert main([*typed, str(out), *more]) == 0
    shipped = Path(harness.__file__).parent / "nano" / "weights" / "nano.neurons.json"
    ours, theirs = (read_neurons(path) for path in (out, shipped))
    assert ours.weights_digest == theirs.weights_digest
    assert len(set(ours.neurons) & set(theirs.neurons)) >= 7


@pytest.mark.parametrize("name", ["vitl-ttr1", "openclip-vitb16-ttr1"])
@pytest.mark.parametrize("how", [["--dry-run"], ["--weights", "random"], []])
def test_an_entry_without_a_neuron_file_is_exit_status_2_and_the_command(
    name: str, how: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = ["run", "--task", "lost", "--model", name, "--dataset", "generated", *how]
    assert main([*run, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"harness registers find {name} --data DATASET --out {name}.neurons.json" in told
    assert f"{name}: {{like: {name.removesuffix('-ttr1')}, test_time_registers: " in told


def test_another_neuron_file_of_the_same_name_is_another_model(
    planted: Path, found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    neurons, models = tmp_path / "n.json", tmp_path / "models.yaml"
    models.write_text(
        (planted / "models.yaml").read_text()
        + "ttr: {like: planted, test_time_registers: {neurons: n.json}}\n"
    )
    run = ["run", "--task", "lost", "--model", "ttr", "--dataset", "generated", "--limit", "2"]
    typed = [*run, "--models", str(models), "--out", str(tmp_path / "out"), "--workers", "0"]
    neurons.write_text(found.read_text())
    assert main(typed) == 0
    facts = json.loads(found.read_text())
    neurons.write_text(json.dumps({**facts, "neurons": [[2, 31], [1, 3]]}))
    assert main(typed) == 2
    assert "another model entry" in capsys.readouterr().err


def auto(folder: Path, planted: Path) -> Path:
    models = folder / "auto.yaml"
    models.write_text(
        (planted / "models.yaml").read_text()
        + "auto: {like: planted, test_time_registers: {neurons: auto}}\n"
    )
    return models


def test_neurons_auto_are_found_on_the_train_pictures_of_the_run_and_recorded(
    planted: Path, found: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file.yaml"
    changes = f"test_time_registers: {{neurons: {found}}}"
    file.write_text((planted / "models.yaml").read_text() + f"ttr:\n  like: planted\n  {changes}\n")
    records = [
        harness.evaluate(
            "knn",
            name,
            "sky",
            model_files=[models],
            dataset_files=[planted / "data.yaml"],
            data_root=planted,
            out=tmp_path / "out",
            settings={"resize": 98, "crop": 98, "k": [1]},
            device="cpu",
            workers=0,
            batch_size=24,
        )[0]
        for name, models in (("auto", auto(tmp_path, planted)), ("ttr", file))
    ]
    ours, theirs = records
    assert ours.protocol.resolved["register_neurons"] == [list(pair) for pair in PLANTED]
    assert ours.model.interventions == ["1 test-time register (shared-scalar, neurons: auto)"]
    assert ours.model.weights_digest == theirs.model.weights_digest
    assert {k: m.value for k, m in ours.metrics.items()} == {
        k: m.value for k, m in theirs.metrics.items()
    }
    searched = 2 * PICTURES + 2 * PICTURES  # norms, scores, and two numbers of neurons
    assert ours.cost.forward_passes == theirs.cost.forward_passes + searched


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--dataset", "generated"], "its register neurons are found on a role train"),
        (["--dataset", "scenes-demo", "--compile"], "`neurons: auto` is not with --compile"),
    ],
)
def test_neurons_auto_need_train_pictures_and_blocks_as_they_are(
    more: list[str], says: str, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = str(auto(tmp_path, planted))
    typed = ["run", "--task", "lost", "--model", "auto", "--models", models, *more]
    assert main([*typed, "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    with pytest.raises(HarnessError, match="only a run has a data set to find them"):
        harness.load_backbone("auto", [models], device="cpu")


def test_every_neuron_of_a_small_model_can_be_searched(planted: Path, tmp_path: Path) -> None:
    backbone = harness.load_backbone("planted", [planted / "models.yaml"], device="cpu")
    blocks: Any = backbone.module.blocks
    count = sum(second_linear("x", block).in_features for block in blocks)
    out = tmp_path / "n.json"
    assert main(command(planted, out, "--top-layer", "-1", "--top-k", str(count))) == 0
    assert len(read_neurons(out).neurons) == count
