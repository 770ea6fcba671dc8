"""Checkpoints in shards: the whole is what one file would be, and the index must be true."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from dinov3_tiny import ARGUMENTS, TIMM, published
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.backbone import checkpoint_files
from harness.backbone.sources import load_backbone, locate_weights
from harness.errors import HarnessError
from harness.registry import ModelEntry

State = dict[str, Tensor]
SHARDS = 3


def write(folder: Path, state: State, suffix: str = ".safetensors") -> Path:
    """``state`` in shards as huggingface_hub writes them; the path of the index."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    weight_map: dict[str, str] = {}
    for number in range(SHARDS):
        name = f"{stem}-{number + 1:05}-of-{SHARDS:05}{suffix}"
        part = dict(sorted(state.items())[number::SHARDS])
        weight_map |= dict.fromkeys(part, name)
        if suffix == ".safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def shard(index: Path, number: int) -> Path:
    return sorted(path for path in index.parent.iterdir() if "-of-" in path.name)[number]


def entry(checkpoint: Path) -> ModelEntry:
    return ModelEntry.model_validate(
        {
            "name": "mine",
            "timm": TIMM["plain"],
            "checkpoint": checkpoint,
            "registers": 4,
            "arguments": ARGUMENTS,
        }
    )


def message(checkpoint: Path) -> str:
    with pytest.raises(HarnessError) as caught:
        load_backbone(entry(checkpoint), "cpu")
    assert str(checkpoint.parent) in str(caught.value)
    return str(caught.value)


def placed(index: Path, name: str, file: object) -> Path:
    """The index with ``name`` placed in another file."""
    document = json.loads(index.read_text())
    document["weight_map"][name] = file
    index.write_text(json.dumps(document))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_together_are_the_one_file(tmp_path: Path, suffix: str) -> None:
    save_file(published("plain"), tmp_path / "whole.safetensors")
    index = write(tmp_path, published("plain"), suffix)
    ours = load_backbone(entry(index), "cpu").weights_digest
    assert ours == load_backbone(entry(tmp_path / "whole.safetensors"), "cpu").weights_digest


def test_shards_that_are_links_are_read(tmp_path: Path) -> None:
    """As in the Hugging Face cache, whose snapshots are links to blobs in another folder."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    index = write(tmp_path / "blobs", published("plain"))
    for file in index.parent.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    load_backbone(entry(tmp_path / "snapshot" / index.name), "cpu")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = write(tmp_path, published("plain"))
    assert locate_weights(entry(index)).cached == index
    shard(index, 1).unlink()
    assert locate_weights(entry(index)).cached is None
    text = message(index)
    assert "1 of its 3 shards are not beside it: model-00002-of-00003.safetensors" in text


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    index = write(tmp_path, published("plain"))
    shard(index, 1).write_bytes(shard(index, 1).read_bytes()[:-10])
    assert "model-00002-of-00003.safetensors: damaged checkpoint" in message(index)


def test_an_index_that_misplaces_a_tensor_is_an_error(tmp_path: Path) -> None:
    index = write(tmp_path, published("plain"))
    placed(index, "norm.weight", shard(index, 0).name)
    text = message(index)
    assert "is not true of its shards: model-00001-of-00003.safetensors lacks norm.weight" in text


def test_an_index_that_lists_what_no_shard_holds_is_an_error(tmp_path: Path) -> None:
    index = write(tmp_path, published("plain"))
    placed(index, "head.weight", shard(index, 2).name)
    assert "model-00003-of-00003.safetensors lacks head.weight" in message(index)


def test_a_tensor_that_the_index_does_not_list_is_an_error(tmp_path: Path) -> None:
    index = write(tmp_path, published("plain"))
    save_file(load_file(shard(index, 0)) | {"extra": torch.zeros(1)}, shard(index, 0))
    assert "holds extra, which the index does not list" in message(index)


def test_a_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    index = write(tmp_path, published("plain"))
    twice = next(iter(load_file(shard(index, 1))))
    save_file(load_file(shard(index, 0)) | {twice: torch.zeros(1)}, shard(index, 0))
    text = message(index)
    assert f"holds {twice}, which the index places in model-00002-of-00003.safetensors" in text


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/x.safetensors", "a/b.bin", "..", "", "a\\b", "a" * 300]
)
def test_a_shard_outside_of_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "in").mkdir()
    index = write(tmp_path / "in", published("plain"))
    shutil.copy(shard(index, 0), tmp_path / "x.safetensors")
    assert "refused: the shard" in message(placed(index, "norm.weight", file))


def test_a_shard_of_another_kind_is_not_read(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"norm.weight": index.name}}))
    assert "a .safetensors, .pth, .pt or .bin file was expected" in message(index)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "damaged checkpoint index"),
        ("[" * 100_000, "damaged checkpoint index"),
        ("[]", "has no `weight_map`"),
        ("{}", "has no `weight_map`"),
        ('{"weight_map": {}}', "has no `weight_map`"),
        ('{"weight_map": {"a": 3}}', "names something that is not a file"),
        ('{"weight_map": {"a": "x.bin", "b": "x.bin", "a": "y.bin"}}', "names a twice"),
    ],
)
def test_an_index_that_is_none_is_said_to_be_none(tmp_path: Path, text: str, what: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    assert what in message(index)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    assert "no such checkpoint file" in message(tmp_path / "model.safetensors.index.json")


def test_one_shard_alone_points_to_its_index(tmp_path: Path) -> None:
    index = write(tmp_path, published("plain"))
    assert "one shard of several: name the .index.json beside it" in message(shard(index, 0))


def test_the_digest_of_a_checkpoint_moves_with_any_of_its_shards(tmp_path: Path) -> None:
    index = write(tmp_path, published("plain"))
    before = checkpoint_files.sha256(index)
    assert before == checkpoint_files.sha256(index)
    state = load_file(shard(index, 2))
    name = next(iter(state))
    save_file(state | {name: state[name] + 1}, shard(index, 2))
    assert checkpoint_files.sha256(index) != before
