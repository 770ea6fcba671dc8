"""``harness extract``: two files that say all, in the data set's order, through the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from harness.cli import main
from harness.data.generated import GeneratedDataset


@pytest.fixture
def extract(tiny_models: Path, tmp_path: Path) -> Any:
    """Run the command; its files' contents, or its exit status where it failed."""

    def command(*more: str, out: str = "features", dataset: str = "generated") -> Any:
        folder = tmp_path / out
        arguments = [
            "extract", "--model", "tiny-reg4", "--dataset", dataset, "--models",
            str(tiny_models), "--out", str(folder), "--device", "cpu", "--workers", "0",
            "--resize", "64", "--crop", "56", *more,
        ]  # fmt: skip
        status = main(arguments)
        if status:
            return status
        index = json.loads((folder / "index.json").read_text())
        return load_file(folder / "features.safetensors"), index

    return command


def test_features_labels_and_an_index_in_the_data_sets_order(extract: Any) -> None:
    tensors, index = extract("--tokens", "global,patch-mean", "--tokens", "cls+patch-mean")
    samples = GeneratedDataset("generated").samples
    assert index["ids"] == [sample.id for sample in samples]
    assert index["model"] == "tiny-reg4" and len(index["weights_digest"]) == 64
    assert index["classes"] == ["diamond", "ellipse", "rectangle"]
    assert index["view"] == {
        "name": "CentreCrop", "resize": 64, "crop": 56, "interpolation": "bicubic",
    }  # fmt: skip
    assert index["fingerprints"] == {"test": GeneratedDataset("generated").fingerprint()}
    assert {name: array.shape for name, array in tensors.items()} == {
        "global": (12, 48),
        "patch-mean": (12, 48),
        "cls+patch-mean": (12, 96),
        "labels": (12,),
    }
    assert tensors["labels"].tolist() == [-1] * 12  # its pictures have no label
    joined = np.concatenate([tensors["global"], tensors["patch-mean"]], axis=1)
    assert np.array_equal(joined, tensors["cls+patch-mean"])


def test_the_same_again_costs_no_pass_and_gives_the_same_file(
    extract: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = extract("--tokens", "global,outlier", "--json")
    assert json.loads(capsys.readouterr().out)["forward_passes"] == 24
    again, _ = extract("--tokens", "global,outlier", "--json", out="again")
    assert json.loads(capsys.readouterr().out)["forward_passes"] == 0
    fresh, _ = extract("--tokens", "global,outlier", "--no-store", out="fresh")
    for name, array in first.items():
        assert np.array_equal(array, again[name]) and np.array_equal(array, fresh[name])
    assert first["outlier.there"].dtype == bool
    assert not first["outlier"][~first["outlier.there"]].any()


def test_all_roles_stand_one_after_the_other(extract: Any, tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("few: {format: scenes, count: {train: 4, test: 3}, size: 64}\n")
    tensors, index = extract("--role", "all", "--datasets", str(file), dataset="few")
    assert index["roles"] == ["train"] * 4 + ["test"] * 3
    assert len(index["ids"]) == len(tensors["global"]) == 7
    assert set(tensors["labels"].tolist()) <= set(range(len(index["classes"])))
    alone, _ = extract("--role", "test", "--datasets", str(file), dataset="few", out="test")
    assert np.array_equal(alone["global"], tensors["global"][4:])


def test_layer_norm_and_limit_are_followed(extract: Any) -> None:
    tensors, index = extract("--layer", "1", "--no-norm", "--limit", "3", "--tokens", "patch-mean")
    assert tensors["patch-mean"].shape == (3, 48) and index["limit"] == 3
    assert index["tokens"]["patch-mean"]["layer"] == 1 and not index["tokens"]["patch-mean"]["norm"]
    normed, _ = extract("--layer", "1", "--limit", "3", "--tokens", "patch-mean", out="normed")
    assert not np.array_equal(normed["patch-mean"], tensors["patch-mean"])


def test_bad_pictures_are_left_out_and_named(extract: Any, tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for number in range(3):
            path = tmp_path / "cats" / split / "cat" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (70, 70), (60 * number, 0, 0)).save(path)
    (tmp_path / "cats" / "val" / "cat" / "1.png").write_bytes(b"no picture")
    file = tmp_path / "data.yaml"
    file.write_text("cats: {format: folder, root: cats}\n")
    given = "--datasets", str(file)
    assert extract(*given, dataset="cats") == 2
    for out in ("one", "from the store"):
        tensors, index = extract(*given, "--on-bad-image", "skip", dataset="cats", out=out)
        assert index["ids"] == ["val/cat/0.png", "val/cat/2.png"] and len(tensors["global"]) == 2
        assert list(index["bad_pictures"]) == ["val/cat/1.png"]
        assert tensors["labels"].tolist() == [0, 0]


def test_what_is_there_is_not_replaced_unless_asked(
    extract: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = extract("--limit", "2")
    assert extract("--limit", "3") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert np.array_equal(
        load_file(tmp_path / "features/features.safetensors")["global"], first["global"]
    )
    assert len(extract("--limit", "3", "--overwrite")[0]["global"]) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tokens", "globel"], "did you mean global"),
        (["--tokens", ","], "--tokens: at least one name"),
        (["--role", "train"], "has no role train"),
        (["--crop", "60"], "no multiple of tiny-reg4's patch of 14 pixels (try --crop 56)"),
        (["--crop", "70"], "at most what --resize 64 leaves"),
        (["--crop", "0"], "at least 1"),
        (["--layer", "9"], "layer 9 of a model with 4 blocks"),
        (["--tokens", "outlier", "--outliers", "many"], "valley was expected"),
        (["--limit", "0"], "--limit 0"),
        (["--model", "tiny", "--tokens", "register"], "the model has no registers"),
    ],
)
def test_wrong_use_is_told_and_nothing_is_written(
    arguments: list[str],
    complaint: str,
    extract: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert extract(*arguments) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "features").exists()


def test_a_command_that_was_killed_before_its_end_begins_again_and_leaves_nothing_of_it(
    extract: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by ``make faults TARGET=extract SEED=0`` and ``SEED=1``."""
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / ".features.safetensors.1.tmp").write_bytes(b"half")
    real, renamed = Path.replace, list[str]()

    def killed(self: Path, target: Path) -> Path:
        renamed.append(target.name)
        if target.name == "features.safetensors":
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        assert extract() == 130
    assert renamed[-2:] == ["index.json", "features.safetensors"]
    tensors, index = extract()
    assert len(tensors["labels"]) == len(index["ids"]) == 12
    names = {path.name for path in folder.iterdir()}
    assert names - {".lock"} == {"features.safetensors", "index.json"}
