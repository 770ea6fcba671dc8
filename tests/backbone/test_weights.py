"""Checkpoint files: what fits is loaded exactly, what does not is named, no code in one runs."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_models import load, make, pictures
from tiny import REFERENCE, entry, models_file
from torch import Tensor, nn

import harness
from harness.backbone import sources, weights
from harness.backbone.vit import Backbone, Read
from harness.backbone.weights import Signature, digest, read_checkpoint, signature
from harness.errors import HarnessError
from harness.registry import Registry

State = dict[str, Tensor]
FILES = {n: REFERENCE / f"dinov2_tiny_reg{n}.safetensors" for n in (0, 4)}


@pytest.fixture
def official() -> State:
    """The tiny model without registers, as dinov2 publishes weights."""
    return load_file(FILES[0])


@pytest.fixture
def official_registers() -> State:
    return load_file(FILES[4])


def load_tiny(folder: Path, checkpoint: Path, registers: int = 0) -> Backbone:
    """``checkpoint`` under an entry ``mine``, beside ``tiny`` and ``tiny-reg4``."""
    file = folder / "mine.yaml"
    file.write_text(entry("mine", registers, checkpoint))
    return harness.load_backbone("mine", [models_file(folder), file], device="cpu")


def message(folder: Path, checkpoint: Path, registers: int = 0) -> str:
    with pytest.raises(HarnessError) as caught:
        load_tiny(folder, checkpoint, registers)
    assert str(checkpoint) in str(caught.value)
    return str(caught.value)


def saved(path: Path, state: object) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(state, dict)
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


# ----------------------------------------------------------------------- what does not fit is named


def test_register_weights_under_an_entry_without_registers_fail_and_name_the_entry_that_fits(
    tmp_path: Path,
) -> None:
    text = message(tmp_path, FILES[4], registers=0)
    assert "it looks like 4 blocks, width 48, patch 14, 4 registers, a class token" in text
    assert "does not fit the entry, which is 4 blocks, width 48, patch 14, 0 registers" in text
    assert "not in the model: reg_token" in text
    assert "it would fit: tiny-reg4" in text


def test_weights_without_registers_under_a_register_entry_fail_and_name_the_entries_that_fit(
    tmp_path: Path,
) -> None:
    text = message(tmp_path, FILES[0], registers=4)
    assert "it looks like 4 blocks, width 48, patch 14, 0 registers, a class token" in text
    assert "missing: reg_token" in text
    assert "it would fit: tiny" in text
    assert "tiny-reg4" not in text.splitlines()[-1]


def test_a_shipped_entry_is_suggested_too(tmp_path: Path) -> None:
    # dinov2 #505 itself: weights of ViT-S with registers; only shapes matter for the signature.
    module = sources.unloaded(Registry.load().entry("vits-reg4"))
    state = {
        name: torch.zeros(1).expand(value.shape) for name, value in module.state_dict().items()
    }
    path = saved(tmp_path / "vits_reg4.pth", state)
    text = message(tmp_path, path)
    assert "12 blocks, width 384, patch 14, 4 registers" in text
    assert "it would fit: vits-reg4" in text


def test_a_shape_that_no_entry_has_is_said_to_fit_none(tmp_path: Path, official: State) -> None:
    shallow = {name: value for name, value in official.items() if not name.startswith("blocks.3.")}
    text = message(tmp_path, saved(tmp_path / "three.safetensors", shallow))
    assert "it looks like 3 blocks" in text
    assert "missing: blocks.3." in text
    assert "no entry of the registry has this shape" in text


@pytest.mark.parametrize("name", ["norm.weight", "blocks.2.attn.qkv.bias", "pos_embed"])
def test_a_missing_weight_is_named(tmp_path: Path, official: State, name: str) -> None:
    del official[name]
    text = message(tmp_path, saved(tmp_path / "less.safetensors", official))
    assert f"missing: {name}" in text
    assert "would fit" not in text, "another entry would not help"


def test_a_surplus_weight_is_named(tmp_path: Path, official: State) -> None:
    official["blocks.1.attn.surprise"] = torch.zeros(3)
    text = message(tmp_path, saved(tmp_path / "more.safetensors", official))
    assert "not in the model: blocks.1.attn.surprise" in text
    assert "would fit" not in text


def test_many_missing_weights_are_counted(tmp_path: Path, official: State) -> None:
    names = sorted(name for name in official if "mlp" in name)
    for name in names:
        del official[name]
    text = message(tmp_path, saved(tmp_path / "less.safetensors", official))
    assert f"and {len(names) - 3} more" in text


def test_a_weight_of_another_shape_is_named_with_both_shapes(
    tmp_path: Path, official: State
) -> None:
    official["pos_embed"] = torch.zeros(1, 1 + 6 * 6, 48)
    text = message(tmp_path, saved(tmp_path / "other.safetensors", official))
    assert "pos_embed: [1, 37, 48] in the file, [1, 50, 48] in the model" in text


def test_a_file_that_is_no_vit_is_said_to_be_none(tmp_path: Path) -> None:
    path = saved(tmp_path / "linear.safetensors", nn.Linear(2, 2).state_dict())
    assert "it is not a ViT in timm's, DINOv2's, DINOv3's or transformers' names" in message(
        tmp_path, path
    )


def test_nothing_is_loaded_where_one_weight_does_not_fit(tmp_path: Path, official: State) -> None:
    module = load(make("vit_small_patch14_dinov2", arguments={"img_size": 98})).module
    before = digest(module)
    with pytest.raises(HarnessError):
        weights.load_strictly(module, FILES[0], lambda: "")
    assert digest(module) == before


# --------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_a_truncated_file_is_damaged(
    tmp_path: Path, official: State, suffix: str, share: float
) -> None:
    path = saved(tmp_path / f"cut{suffix}", official)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    text = message(tmp_path, path)
    assert "damaged" in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_a_text_file_is_no_checkpoint_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"notes{suffix}"
    path.write_text("These are my notes on the checkpoint.\n" * 50)
    assert "damaged" in message(tmp_path, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such checkpoint file" in message(tmp_path, tmp_path / "nowhere.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "no such checkpoint file" in message(tmp_path, tmp_path / "folder.pth")


def test_a_file_of_another_kind_says_which_kinds_there_are(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.zeros(3))
    assert "a .safetensors, .pth, .pt or .bin file was expected" in message(tmp_path, path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, 7, {"model": {"a": "b"}}, None])
def test_a_file_without_tensors_holds_no_state_dict(tmp_path: Path, content: object) -> None:
    path = saved(tmp_path / "empty.pth", content)
    assert "holds no state dict" in message(tmp_path, path)


# --------------------------------------------------------------------------------- pickle bombs


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def bare(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb, protocol=2))


def beside_tensors(path: Path, bomb: Bomb) -> None:
    torch.save({**load_file(FILES[0]), "epoch": bomb}, path)


def beside_tensors_in_the_old_format(path: Path, bomb: Bomb) -> None:
    state = {**load_file(FILES[0]), "epoch": bomb}
    torch.save(state, path, _use_new_zipfile_serialization=False)


def inside_a_torch_zip(path: Path, bomb: Bomb) -> None:
    """A real checkpoint whose ``data.pkl`` is exchanged for the bomb."""
    buffer = io.BytesIO()
    torch.save(load_file(FILES[0]), buffer)
    with zipfile.ZipFile(buffer) as real, zipfile.ZipFile(path, "w") as forged:
        for item in real.infolist():
            is_pickle = item.filename.endswith("data.pkl")
            content = pickle.dumps(bomb, protocol=2) if is_pickle else real.read(item)
            forged.writestr(item, content)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize(
    "pack", [bare, beside_tensors, beside_tensors_in_the_old_format, inside_a_torch_zip]
)
def test_a_pickle_bomb_is_refused_and_does_not_go_off(
    tmp_path: Path, pack: Callable[[Path, Bomb], None], suffix: str
) -> None:
    mark, path = tmp_path / "mark", tmp_path / f"bomb{suffix}"
    pack(path, Bomb(mark))
    text = message(tmp_path, path)
    assert "refused" in text
    assert "run any code" in text
    assert not mark.exists()
    # It is a live one: what refuses it is the harness, not a dud.
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert mark.exists()


def test_a_bomb_named_safetensors_is_not_unpickled(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "bomb.safetensors"
    bare(path, Bomb(mark))
    assert "damaged" in message(tmp_path, path)
    assert not mark.exists()


# ---------------------------------------------------------------------------- wrappers and names


def same_as_the_plain_file(folder: Path, state: object, registers: int = 0) -> None:
    wrapped = load_tiny(folder, saved(folder / "wrapped.pth", state), registers)
    plain = load_tiny(folder, FILES[registers], registers)
    assert wrapped.weights_digest == plain.weights_digest


def prefixed(state: State, prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 7, "arguments": {"lr": 0.1}},
        lambda state: {"state_dict": state},
        lambda state: {"teacher": prefixed(state, "backbone.")},
        lambda state: {"teacher": prefixed(state, "module.backbone.")},
        lambda state: {"model": {"state_dict": prefixed(state, "module.")}},
        lambda state: prefixed(state, "module."),
        lambda state: prefixed(state, "module.model."),
        lambda state: {
            "teacher": {**prefixed(state, "backbone."), "dino_head.mlp.weight": torch.zeros(2)}
        },
    ],
    ids=[
        "plain",
        "model",
        "state_dict",
        "teacher backbone.",
        "teacher module.backbone.",
        "model state_dict module.",
        "module.",
        "module.model.",
        "teacher with a head",
    ],
)
def test_wrappers_and_prefixes_are_peeled_off(
    tmp_path: Path, official: State, wrap: Callable[[State], dict[str, Any]]
) -> None:
    same_as_the_plain_file(tmp_path, wrap(official))


def chunked(state: State, size: int) -> State:
    """DINOv2's training layout: blocks in chunks, each padded in front with identities, so that a
    block keeps its number (dinov2, BlockChunk)."""

    def name(old: str) -> str:
        if not old.startswith("blocks."):
            return old
        block = int(old.split(".")[1])
        return f"blocks.{block // size}.{old.removeprefix('blocks.')}"

    return {name(old): value for old, value in state.items()}


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2s_training_checkpoint_is_the_same_model(tmp_path: Path, registers: int) -> None:
    state = chunked(load_file(FILES[registers]), size=2)
    assert "blocks.1.3.attn.qkv.weight" in state
    same_as_the_plain_file(tmp_path, {"teacher": prefixed(state, "backbone.")}, registers)


def test_blocks_in_chunks_are_counted_right(
    tmp_path: Path, official: State, official_registers: State
) -> None:
    for size in (1, 2, 4):
        looks = signature(chunked(official, size))
        assert looks == signature(official) == Signature(4, 48, 14, 0, True)
    path = saved(tmp_path / "chunks.pth", chunked(official_registers, 4))
    text = message(tmp_path, path)
    assert "it looks like 4 blocks, width 48, patch 14, 4 registers" in text
    assert "it would fit: tiny-reg4" in text


def test_the_class_tokens_position_is_folded_into_it_in_a_register_model(
    tmp_path: Path, official_registers: State
) -> None:
    module: Any = load_tiny(tmp_path, FILES[4], registers=4).module
    positions = official_registers["pos_embed"]
    assert torch.equal(module.cls_token, official_registers["cls_token"] + positions[:, :1])
    assert torch.equal(module.pos_embed, positions[:, 1:])
    assert torch.equal(module.reg_token, official_registers["register_tokens"])


def test_a_classifier_head_is_left_out(tmp_path: Path, official: State) -> None:
    official |= {"head.weight": torch.zeros(10, 48), "head.bias": torch.zeros(10)}
    same_as_the_plain_file(tmp_path, official)


GIANT = {"img_size": 70}  # vit_giant_patch14_dinov2 is the one with a gated MLP


def giant(folder: Path, checkpoint: Path) -> Backbone:
    found = make("vit_giant_patch14_dinov2", arguments=GIANT)
    return sources.load_backbone(found.model_copy(update={"checkpoint": checkpoint}), "cpu")


def test_the_gated_mlp_of_the_official_giant_keeps_its_names_meaning(tmp_path: Path) -> None:
    own = load(make("vit_giant_patch14_dinov2", arguments=GIANT)).module.state_dict()
    names = {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."}
    state: State = {"mask_token": torch.zeros(1, 48)}
    for old, value in own.items():
        new = old
        for timm, dinov2 in names.items():
            new = new.replace(timm, dinov2)
        state[new] = value
    assert "blocks.0.mlp.w12.weight" in state
    path = saved(tmp_path / "giant.pth", chunked(state, 3))
    backbone = giant(tmp_path, path)
    mlp: Any = backbone.module.blocks[1].mlp  # type: ignore[index,union-attr]
    inputs = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    # dinov2/layers/swiglu_ffn.py: w3(silu(x1) * x2), x1 and x2 the halves of w12(x)
    x1, x2 = F.linear(
        inputs, state["blocks.1.mlp.w12.weight"], state["blocks.1.mlp.w12.bias"]
    ).chunk(2, dim=-1)
    by_hand = F.linear(
        F.silu(x1) * x2, state["blocks.1.mlp.w3.weight"], state["blocks.1.mlp.w3.bias"]
    )
    torch.testing.assert_close(mlp(inputs), by_hand)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("timm", "registers"),
    [
        ("vit_small_patch14_reg4_dinov2", 4),
        ("vit_giant_patch14_dinov2", 0),
        ("vit_so150m_patch16_reg4_gap_256", 4),
        ("vit_base_patch16_siglip_256", 0),
        ("vit_small_patch16_dinov3_qkvb", 4),
        ("eva02_base_patch14_224", 0),
    ],
)
def test_a_module_saved_in_timms_names_comes_back_the_same(
    tmp_path: Path, timm: str, registers: int, suffix: str
) -> None:
    found = make(timm, registers, arguments={"img_size": 7 * 16 if "16" in timm else 98})
    backbone = load(found)
    state = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    path = saved(tmp_path / f"own{suffix}", state)
    again = sources.load_backbone(found.model_copy(update={"checkpoint": path}), "cpu")
    assert again.weights_digest == backbone.weights_digest
    size = [side * again.architecture.patch for side in (3, 5)]
    read = Read(2, norm=True)
    ours, theirs = (one(pictures(size), [read]).tokens[read] for one in (again, backbone))
    assert torch.equal(ours.patches, theirs.patches)


def test_half_precision_weights_are_loaded_into_float32(tmp_path: Path, official: State) -> None:
    halves = {name: value.half() for name, value in official.items()}
    module = load_tiny(tmp_path, saved(tmp_path / "half.safetensors", halves)).module
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
    assert torch.equal(module.state_dict()["norm.weight"], halves["norm.weight"].float())


def test_a_checkpoint_for_a_model_of_a_factory_is_loaded_and_checked_too(
    tmp_path: Path, official: State
) -> None:
    file = tmp_path / "factory.yaml"
    good = saved(tmp_path / "good.safetensors", official)
    text = (
        "made: {{factory: 'timm.models.vision_transformer:VisionTransformer', checkpoint: {0}, "
        "arguments: {{img_size: 98, patch_size: 14, embed_dim: 48, depth: 4, num_heads: 3, "
        "num_classes: 0, init_values: 1.0}}, "
        "position_embedding: {{antialias: false, offset: 0.1}}}}"
    )
    file.write_text(text.format(good))
    made = harness.load_backbone("made", [file], device="cpu", allow_code=True)
    assert made.weights_digest == load_tiny(tmp_path, FILES[0]).weights_digest
    del official["norm.bias"]
    saved(good, official)
    with pytest.raises(HarnessError, match=r"missing: norm\.bias"):
        harness.load_backbone("made", [file], device="cpu", allow_code=True)


# ------------------------------------------------------------------------------------- signature


def test_a_signature_reads_both_layouts_alike(tmp_path: Path, official_registers: State) -> None:
    theirs = signature(official_registers)
    ours = signature(load_tiny(tmp_path, FILES[4], registers=4).module.state_dict())
    assert theirs == ours == Signature(4, 48, 14, 4, True)
    assert str(theirs) == "4 blocks, width 48, patch 14, 4 registers, a class token"
    assert "1 register, no class token" in str(Signature(1, 2, 3, 1, False))


def test_what_is_no_vit_has_no_signature() -> None:
    assert signature({}) is None
    assert signature(nn.Linear(2, 2).state_dict()) is None


# ---------------------------------------------------------------------------------- random weights


def random_digest(seed: int) -> str:
    entry_ = make("vit_small_patch14_reg4_dinov2", 4, arguments={"img_size": 70})
    return sources.load_backbone(entry_, "cpu", "random", seed).weights_digest


def test_random_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = random_digest(0)
    torch.manual_seed(2)
    assert random_digest(0) == first
    assert random_digest(1) != first


def test_drawing_random_weights_leaves_torchs_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    random_digest(3)
    assert torch.equal(torch.rand(4), expected)


def test_the_random_state_is_put_back_when_building_fails() -> None:
    before = torch.get_rng_state()
    with pytest.raises(HarnessError):
        sources.load_backbone(
            make("vit_small_patch16_224", arguments={"depth": 0}), "cpu", "random"
        )
    assert torch.equal(torch.get_rng_state(), before)


def test_random_weights_are_not_the_checkpoints(tmp_path: Path) -> None:
    file = models_file(tmp_path)
    released = harness.load_backbone("tiny", [file], device="cpu")
    random = harness.load_backbone("tiny", [file], device="cpu", weights="random")
    assert released.weights_digest != random.weights_digest


def test_reading_gives_exactly_what_was_written(tmp_path: Path, official: State) -> None:
    for suffix in (".safetensors", ".pth"):
        read = read_checkpoint(saved(tmp_path / f"same{suffix}", official))
        assert read.keys() == official.keys()
        assert all(torch.equal(read[name], official[name]) for name in official)
