"""From an entry to a module: devices, factories, entries that cannot be, weights that are away."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import load, make, pictures
from torch import nn

import harness
from harness.backbone import sources
from harness.backbone.vit import Backbone, Read
from harness.errors import HarnessError
from harness.registry import ModelEntry

IMAGE = {"img_size": 70}


# ---------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("name", ["tpu", "", "meta", "mps", "cuda:", "cuda:-1", "cuda:x", "gpu"])
def test_a_device_that_is_none_of_ours_is_an_error_that_lists_them(name: str) -> None:
    with pytest.raises(HarnessError, match=r"one of auto, cpu, cuda, cuda:0"):
        sources.choose_device(name)


@pytest.mark.parametrize(("name", "count"), [("cuda:7", 0), ("cuda", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_an_error_that_counts_those_that_are(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(
        HarnessError, match=rf"--device {name}: this machine has {count} usable GPUs"
    ):
        sources.choose_device(name)


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert sources.choose_device("auto").type == expected


def test_a_device_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_build", lambda *_, **__: pytest.fail("built a model"))
    with pytest.raises(HarnessError, match="tpu"):
        sources.load_backbone(make("vit_small_patch14_dinov2"), "tpu", "random")


def test_only_released_and_random_weights_exist() -> None:
    with pytest.raises(HarnessError, match="'released' or 'random' expected"):
        harness.load_backbone("vits", weights="rnadom")


# -------------------------------------------------------------------------------------- factories


def not_a_module() -> object:
    return {"blocks": []}


def fails() -> nn.Module:
    raise LookupError("the weights are on my other laptop")


def fixed_size() -> nn.Module:
    """timm's own class as a stranger builds it: for one size, and without a registry."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=70, patch_size=14, embed_dim=48, depth=2, num_heads=4, num_classes=0
    )


def fixed_size_rotary() -> nn.Module:
    from timm.models.eva import Eva

    return Eva(img_size=64, embed_dim=48, depth=1, num_heads=4, num_classes=0, use_rot_pos_emb=True)


def other_class() -> nn.Module:
    return nn.Linear(2, 2)


def made(function: str, module: str = __name__, **facts: object) -> Backbone:
    entry = ModelEntry.model_validate({"name": "mine", "factory": f"{module}:{function}", **facts})
    return load(entry)


@pytest.mark.parametrize(
    ("module", "function", "says"),
    [
        (
            "no_such_package.models",
            "build",
            "cannot be imported: No module named 'no_such_package'",
        ),
        ("math", "no_such_function", "cannot be imported: module 'math' has no attribute"),
        ("math", "pi", "failed: TypeError: 'float' object is not callable"),
        (__name__, "not_a_module", "gave no torch module"),
        (__name__, "fails", "failed: LookupError: the weights are on my other laptop"),
        (__name__, "other_class", "Linear is not supported; a timm VisionTransformer or Eva"),
        (__name__, "fixed_size_rotary", "build rotary models with dynamic_img_size=True"),
    ],
)
def test_a_factory_that_gives_no_model_is_an_error_that_names_it(
    module: str, function: str, says: str
) -> None:
    with pytest.raises(HarnessError, match="model 'mine'") as caught:
        made(function, module)
    assert says in str(caught.value)


def test_a_factory_with_arguments_that_it_does_not_take_is_an_error() -> None:
    with pytest.raises(HarnessError, match=r"failed: TypeError: .*'colour'"):
        made("fixed_size", arguments={"colour": "red"})


def test_a_factorys_model_built_for_one_size_runs_at_any() -> None:
    strangers = made("fixed_size")
    arguments = {**IMAGE, "depth": 2, "patch_size": 14}
    dynamic = load(make("vit_small_patch16_224", arguments=arguments))
    dynamic.module.load_state_dict(strangers.module.state_dict())
    read = Read(1, norm=True)
    for size in ((70, 70), (42, 98)):
        ours, theirs = (one(pictures(size), [read]).tokens[read] for one in (strangers, dynamic))
        assert torch.equal(ours.patches, theirs.patches)


# ------------------------------------------------------------------------- entries that cannot be


@pytest.mark.parametrize("weights", ["random", "released"])
@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"timm": "vit_smal_patch14_dinov2"}, "did you mean vit_small_patch14_dinov2"),
        ({"timm": "no such thing at all"}, "timm has no model 'no such thing at all'"),
        ({"timm": "resnet18"}, "'resnet18' is not supported"),
        ({"timm": "swin_tiny_patch4_window7_224"}, "SwinTransformer is not supported"),
        ({"timm": "vit_tiny_patch16_224", "registers": 4}, "says `registers: 4`, the model has 0"),
        ({"timm": "vit_small_patch14_reg4_dinov2"}, "says `registers: 0`, the model has 4"),
        ({"timm": "deit_tiny_distilled_patch16_224"}, "2 tokens of VisionTransformerDistilled"),
        ({"timm": "vit_tiny_r_s16_p8_224"}, "patches from a HybridEmbed are unsupported"),
        ({"timm": "vit_relpos_small_patch16_224"}, "is not supported"),
    ],
    ids=lambda value: value["timm"] if isinstance(value, dict) else "",
)
def test_an_entry_that_cannot_be_run_says_why_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], says: str, weights: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HarnessError, match="model 'x'") as caught:
        sources.load_backbone(ModelEntry(name="x", **facts), "cpu", weights)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("timm", "arguments", "block"),
    [
        ("vit_small_patch16_18x2_224", {}, "ParallelThingsBlock"),
        ("vit_base_patch16_rpn_224", {"class_token": True, "global_pool": "token"}, "ResPostBlock"),
        ("vit_base_patch16_xp_224", {}, "ParallelScalingBlock"),
        ("eva02_tiny_patch14_224", {"use_post_norm": True}, "EvaBlockPostNorm"),
    ],
)
def test_blocks_that_norm_elsewhere_are_refused(
    timm: str, arguments: dict[str, Any], block: str
) -> None:
    with pytest.raises(HarnessError, match=f"blocks of type {block} are unsupported"):
        sources.architecture(make(timm, arguments=arguments))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"depht": 2}, "unexpected keyword argument 'depht'"),
        ({"embed_dim": 50}, "dim should be divisible by num_heads"),
        ({"depth": "twelve"}, "cannot build"),
        ({"num_heads": 0}, "cannot build"),
        ({"patch_size": 0}, "cannot build"),
        ({"depth": 0}, "has no blocks"),
        ({"global_pool": "max"}, "global_pool 'max' is unknown"),
        ({"global_pool": "nonsense"}, "cannot build"),
        ({"class_token": False}, "cannot build"),
        ({"patch_size": [8, 16]}, "patches of 8x16 are not square"),
        ({"num_classes": 10}, "`arguments` cannot have num_classes"),
        ({"checkpoint_path": "a.pth"}, "`arguments` cannot have checkpoint_path"),
        ({"pretrained_cfg_overlay": {"file": "a.pth"}}, "cannot have pretrained_cfg_overlay"),
    ],
    ids=str,
)
def test_arguments_that_the_model_cannot_take_are_an_error_that_names_them(
    arguments: dict[str, Any], says: str
) -> None:
    entry = ModelEntry(name="x", timm="vit_tiny_patch16_224", arguments=arguments)
    with pytest.raises(HarnessError, match="model 'x'") as caught:
        sources.load_backbone(entry, "cpu", "random")
    assert says in str(caught.value)
    with pytest.raises(HarnessError):
        sources.architecture(entry)


def test_a_pickle_bomb_cannot_come_in_through_timms_own_loader(tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'mark'}",)

    path = tmp_path / "bomb.pth"
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    entry = make("vit_tiny_patch16_224", arguments={"checkpoint_path": str(path)})
    with pytest.raises(HarnessError, match="checkpoint_path"):
        sources.load_backbone(entry, "cpu", "random")
    assert not (tmp_path / "mark").exists()


# ------------------------------------------------------------------------------- released weights


def test_a_model_of_which_timm_has_no_weights_says_so() -> None:
    entry = ModelEntry(name="x", timm="vit_base_patch16_reg4_gap_256", registers=4)
    with pytest.raises(HarnessError, match=r"timm has no weights for .*--weights random"):
        sources.load_backbone(entry, "cpu")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError("no route to host"), "could not be fetched (no route to host)"),
        (ValueError("bad header"), "could not be fetched (bad header)"),
        (RuntimeError("Error(s) in loading state_dict for X:\n  more"), "do not fit {'depth': 2}"),
    ],
)
def test_weights_that_cannot_be_had_are_told_apart_from_weights_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    import timm

    create = timm.create_model

    def without_weights(name: str, pretrained: bool, **arguments: Any) -> nn.Module:
        if pretrained:
            raise error
        return create(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", without_weights)
    entry = ModelEntry(name="x", timm="vit_small_patch14_dinov2.lvd142m", arguments={"depth": 2})
    with pytest.raises(HarnessError) as caught:
        sources.load_backbone(entry, "cpu")
    assert says in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vits", "openclip-vitb16"])
def test_without_a_network_and_a_cache_a_released_model_is_an_error_with_advice(
    tmp_path: Path, name: str
) -> None:
    program = textwrap.dedent(
        f"""
        import harness
        from harness.errors import HarnessError
        try:
            harness.load_backbone({name!r}, device="cpu")
        except HarnessError as error:
            assert error.__suppress_context__
            print(error)
        """
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment |= {"TORCH_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert f"model '{name}': the weights of" in done.stdout
    for advice in ("could not be fetched", f"harness describe {name}", "checkpoint:", "--weights"):
        assert advice in done.stdout


# ---------------------------------------------------------------------------------- without weights


def test_the_facts_of_a_model_take_no_memory_and_are_those_of_the_loaded_model() -> None:
    entry = make("vit_small_patch14_reg4_dinov2", 4, arguments=IMAGE)
    unloaded = sources.unloaded(entry)
    assert all(value.is_meta for value in unloaded.state_dict().values())
    assert sources.architecture(entry) == load(entry).architecture


def test_the_input_statistics_are_the_entrys_where_it_has_them_else_timms() -> None:
    clip = "vit_base_patch16_clip_224.openai"
    plain = sources.architecture(ModelEntry(name="x", timm=clip))
    assert plain.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    own = {"mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    other = sources.architecture(
        ModelEntry.model_validate({"name": "x", "timm": clip, "input": own})
    )
    assert other.mean == (0.1, 0.2, 0.3)
    assert other.std == plain.std
    assert (plain.interpolation, other.interpolation) == ("bicubic", "bilinear")


def test_where_weights_are_kept_is_known_without_a_network(tmp_path: Path) -> None:
    here = tmp_path / "mine.safetensors"
    entry = ModelEntry(name="x", timm="vit_small_patch14_dinov2.lvd142m", checkpoint=here)
    assert sources.locate_weights(entry) == sources.WeightsLocation(str(here), None)
    here.touch()
    assert sources.locate_weights(entry).cached == here
    hub = sources.locate_weights(entry.model_copy(update={"checkpoint": None}))
    assert hub.source == "hf-hub:timm/vit_small_patch14_dinov2.lvd142m"
    factory = ModelEntry(name="x", factory="a:b")
    assert sources.locate_weights(factory).source == "built by a:b"


def test_random_weights_for_a_factory_that_brings_its_own_are_refused() -> None:
    entry = ModelEntry(name="own", factory="small_models:make")
    with pytest.raises(HarnessError, match="brings its own weights"):
        sources.load_backbone(entry, "cpu", "random")


@pytest.mark.slow
def test_a_repository_of_the_hub_is_loaded_from_its_cache_without_a_network(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import json, sys, timm, torch
        from pathlib import Path
        from safetensors.torch import save_file
        from harness.backbone.sources import load_backbone, locate_weights
        from harness.registry import ModelEntry

        repository = Path(sys.argv[1]) / "hub" / "models--somebody--tiny"
        snapshot = repository / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123")
        arguments = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
        save_file(model.state_dict(), snapshot / "model.safetensors")
        (snapshot / "config.json").write_text(json.dumps({
            "architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": arguments,
            "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 0},
        }))
        entry = ModelEntry(name="hub", timm="hf-hub:somebody/tiny")
        backbone = load_backbone(entry, "cpu")
        assert backbone.architecture.depth == 2
        assert torch.equal(backbone.module.cls_token, model.cls_token)
        print(locate_weights(entry).cached)
        """
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("snapshots/0123/model.safetensors")


@pytest.mark.slow
def test_a_repository_that_is_not_in_the_cache_is_an_error_with_advice(tmp_path: Path) -> None:
    code = (
        "from harness.cli import main; import sys; sys.exit(main(['run', '--task', 'lost', "
        "'--model', 'hub', '--dataset', 'generated', '--models', sys.argv[1]]))"
    )
    file = tmp_path / "models.yaml"
    file.write_text("hub: {timm: 'hf-hub:somebody/other'}\n")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "hf-hub:somebody/other" in done.stderr
    assert "Traceback" not in done.stderr
