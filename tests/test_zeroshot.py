"""Zero-shot classification: against open_clip, from a second prompt set, and with bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from several import squares
from text_towers import SIZE, config, openclip_folder, picture_checkpoint

from harness import cli, evaluate
from harness.aggregates import values
from harness.language import source
from harness.language import texts as texts_module
from harness.language.class_texts import class_texts
from harness.language.zero_shot import ranks, weights_per_class
from harness.records import find, read_columns
from harness.schema import Record
from harness.task_names import find_task

PAINTED = "painted: {format: scenes, count: {train: 12, test: 24}, size: 56}\n"
SMALL = ["--set", "size=56", "--device", "cpu", "--workers", "0"]
WHOLE = SMALL[2:]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.yaml"
    file.write_text(PAINTED)
    return file


def run(
    texted: Path, data: Path, out: Path, *more: str, task: str = "zeroshot", model: str = "tiny"
) -> tuple[Record, dict[str, Any]]:
    """One record and its columns, through the command."""
    shared = ["--models", str(texted), "--datasets", str(data), "--out", str(out), *SMALL]
    named = [] if "--dataset" in more else ["--dataset", "painted"]
    assert cli.main(["run", "--task", task, "--model", model, *named, *shared, *more]) == 0
    ((path, record),) = find(out)
    return record, read_columns(path)


def test_a_second_prompt_set_costs_no_picture_forward_pass(
    texted: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = run(texted, data, tmp_path / "one", "--set", "prompts=plain")
    assert record.cost.forward_passes == record.cost.pictures == 24
    prompts = tmp_path / "mine.yaml"
    prompts.write_text('templates: ["a painting of {}.", "{}"]\n')
    other, _ = run(texted, data, tmp_path / "two", "--set", f"prompts={prompts}")
    assert other.cost.forward_passes == 0
    assert other.protocol.hash != record.protocol.hash
    assert other.counts["texts"] == 2 * record.counts["texts"]
    assert other.protocol.settings["prompts"]["templates"] == ["a painting of {}.", "{}"]
    assert str(tmp_path) not in json.dumps(other.protocol.settings)

    def refuse(*_: Any) -> Any:
        raise AssertionError("the text tower was loaded for texts that are stored")

    monkeypatch.setattr(texts_module, "load_tower", refuse)
    monkeypatch.setattr(texts_module, "_loaded", None)
    again, _ = run(texted, data, tmp_path / "three", "--set", "prompts=plain")
    assert again.cost.forward_passes == 0
    assert again.metrics == record.metrics


def test_a_tower_is_not_loaded_for_a_task_that_reads_no_texts(
    texted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a text tower was loaded")

    monkeypatch.setattr(texts_module, "load_tower", refuse)
    monkeypatch.setattr(texts_module, "_loaded", None)
    (record,) = evaluate(
        "lost", "tiny", "generated", model_files=[texted], out=tmp_path, limit=2, workers=0
    )
    assert record.model.text_tower is None and record.model.text_digest is None


def test_the_record_names_the_tower_and_another_one_is_another_result(
    texted: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, _ = run(texted, data, tmp_path / "out")
    assert record.model.text_tower == "open_clip local-dir:tower"
    other = tmp_path / "other"
    openclip_folder(other / "tower", config(width=48, quick=True))
    entry = texted.read_text().replace("local-dir:tower", f"local-dir:{other / 'tower'}")
    (tmp_path / "other.yaml").write_text(entry)
    arguments = ["--models", str(tmp_path / "other.yaml"), "--datasets", str(data), *SMALL]
    arguments += ["--out", str(tmp_path / "out"), "--task", "zeroshot", "--model", "tiny"]
    assert cli.main(["run", *arguments, "--dataset", "painted"]) == 2
    assert "a result of another text tower" in capsys.readouterr().err


def test_scores_are_what_the_columns_say(texted: Path, data: Path, tmp_path: Path) -> None:
    record, columns = run(texted, data, tmp_path / "out")
    hits = columns["predicted"] == columns["label"]
    assert record.metrics["top1"].value == pytest.approx(100 * hits.mean())
    assert (columns["top5"] | ~columns["top1"]).all()
    by_class = [hits[columns["label"] == each].mean() for each in np.unique(columns["label"])]
    assert record.metrics["mean_per_class"].value == pytest.approx(100 * np.mean(by_class))
    assert record.protocol.resolved["size"] == 56


def test_several_classes_are_ranked_by_cosine(texted: Path, tmp_path: Path) -> None:
    file = squares(tmp_path)
    how = "--dataset", "squares", "--protocol", "zeroshot-multilabel"
    record, columns = run(texted, file, tmp_path / "out", *how)
    expected = values("mean_average_precision_11_point", [columns["scores"], columns["present"]])
    assert record.metrics["map"].value == pytest.approx(100 * expected.mean())
    assert list(record.details["average_precision"]) == ["blue", "green", "red"]


def test_any_of_several_classes_is_right(texted: Path, tmp_path: Path) -> None:
    record, columns = run(texted, squares(tmp_path), tmp_path / "out", "--dataset", "squares")
    assert set(record.metrics) == {"top1"}  # three classes, and no single one to average over
    assert record.counts["pictures_without_class"] + len(columns["image_id"]) == 24


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "prompts=nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--set", "prompts=owm"], "owm: no such file"),
        (["--set", "size=57"], "does not divide the size of 57"),
        (["--set", "fit=wide"], "fit"),
        (["--set", "prompts=7"], "own, plain, or a file of prompts"),
        (["--set", 'prompts={"templates": ["x"]}'], "'x' has not one slot {}"),
        (["--model", "vits"], "has no text tower (openclip-vitb16"),
        (["--dataset", "generated"], "has no labels"),
        (["--protocol", "zeroshot-multilabel"], "have one class"),
    ],
)
def test_wrong_use_is_exit_status_2_and_one_message(
    arguments: list[str],
    said: str,
    texted: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["--task", "zeroshot", "--models", str(texted), "--datasets", str(data)]
    base += ["--out", str(tmp_path / "out"), *(WHOLE if "size=57" in arguments else SMALL)]
    if "--model" not in arguments:
        base += ["--model", "tiny"]
    if "--dataset" not in arguments:
        base += ["--dataset", "painted"]
    assert cli.main(["run", *base, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def on_painted(texted: Path, data: Path, out: Path) -> list[str]:
    arguments = ["--models", str(texted), "--datasets", str(data), "--out", str(out)]
    return [*arguments, "--task", "zeroshot", "--model", "tiny", "--dataset", "painted", *SMALL]


def test_without_open_clip_that_is_said_before_pictures_are_read(
    texted: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    arguments = on_painted(texted, data, tmp_path / "out")
    assert cli.main(["run", *arguments]) == 2
    assert "pip install 'vit-harness[openclip]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('templates: ["a photo"]', "has not one slot {}"),
        ("classes: {bungalow: x}", "has no class 'bungalow'"),
        ("classes: {%s: same, %s: same}", "are both called 'same'"),
    ],
)
def test_prompts_that_cannot_be_are_refused_before_anything_runs(
    text: str,
    said: str,
    texted: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from harness.nano.layouts import CLASSES

    file = tmp_path / "mine.yaml"
    file.write_text(text % CLASSES[:2] if "%s" in text else text)
    arguments = on_painted(texted, data, tmp_path / "out")
    assert cli.main(["run", *arguments, "--set", f"prompts={file}"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_in_other_scripts_and_very_long_ones_are_read(
    texted: Path, data: Path, tmp_path: Path
) -> None:
    from harness.nano.layouts import CLASSES

    file = tmp_path / "mine.yaml"
    names = json.dumps({CLASSES[0]: "犬の写真", CLASSES[1]: "x" * 3000, CLASSES[2]: "دار"})
    file.write_text(f"classes: {names}")
    record, _ = run(texted, data, tmp_path / "out", "--set", f"prompts={file}")
    assert record.counts["texts_cut"] == 1


def test_of_equal_scores_the_lower_class_is_first() -> None:
    scores = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.1, 0.2, 0.3]], np.float32)
    right = np.array([[True, False, False], [False, True, False], [True, True, False]])
    assert ranks(scores, right).tolist() == [0, 1, 1]


def test_every_class_weighs_the_same() -> None:
    labels = np.array([3, 3, 3, 5])
    weights = weights_per_class(labels)
    assert (weights * (labels == 5)).mean() == pytest.approx(0.5)


def test_the_seed_moves_nothing() -> None:
    task = find_task("zeroshot")
    assert not any(task.seeded(protocol) for protocol in task.protocols.values())


@pytest.mark.parametrize("quick", [False, True])
def test_predictions_are_open_clips_own(quick: bool, shared_data: Path, tmp_path: Path) -> None:
    """On imagenette, through the command: picture preparation, both towers, templates averaged."""
    import open_clip
    from PIL import Image

    folder = tmp_path / "tower"
    model = openclip_folder(folder, config(quick=quick))
    name = f"vit_base_patch16_clip_{'quickgelu_' if quick else ''}224"
    sizes = {"img_size": SIZE, "embed_dim": 64, "depth": 3, "num_heads": 2}
    (folder / "models.yaml").write_text(picture_checkpoint(folder, model, name, **sizes))
    data = tmp_path / "data.yaml"
    data.write_text(f"nette: {{format: folder, root: {shared_data / 'imagenette'}}}\n")
    out = tmp_path / "out"
    arguments = ["--models", str(folder / "models.yaml"), "--datasets", str(data)]
    arguments += ["--out", str(out), "--device", "cpu", "--limit", "120", "--dataset", "nette"]
    assert cli.main(["run", "--task", "zeroshot", "--model", "clip-tiny", *arguments]) == 0
    ((path, record),) = find(out)
    columns = read_columns(path)

    transform = open_clip.transform.image_transform(SIZE, is_train=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    ids = columns["image_id"].tolist()
    classes = sorted({each.split("/")[1] for each in all_of(shared_data / "imagenette/val")})
    with torch.no_grad():
        pixels = torch.stack(
            [transform(Image.open(shared_data / "imagenette" / each)) for each in ids]
        )
        pictures = model.encode_image(pixels, normalize=True)
        weights = []
        for texts in class_texts("nette", classes, "own"):
            vectors = model.encode_text(tokenizer(list(texts)), normalize=True)
            mean = vectors.mean(dim=0)
            weights.append(mean / mean.norm())
        logits = pictures @ torch.stack(weights).T
    assert len(set(logits.argmax(1).tolist())) > 1
    assert columns["predicted"].tolist() == logits.argmax(1).tolist()
    assert record.counts["texts"] == 80 * len(classes)


def all_of(folder: Path) -> list[str]:
    return [f"val/{path.name}/" for path in folder.iterdir() if path.is_dir()]
