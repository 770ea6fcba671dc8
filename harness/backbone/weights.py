"""Checkpoint files: read without running code, recognised by shape, converted to timm's names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.backbone import checkpoint_files, dinov3_names, transformers_config
from harness.backbone.transformers_names import to_official
from harness.errors import HarnessError

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model", "teacher")
_LAYOUTS = "timm's, DINOv2's, DINOv3's or transformers'"
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_PREFIX = re.compile(r"((module|backbone|model)\.)+")


@dataclass(frozen=True)
class Signature:
    """What a set of weights looks like, whatever its names."""

    blocks: int
    width: int
    patch: int
    registers: int
    class_token: bool
    gated: bool = False

    def __str__(self) -> str:
        return (
            f"{self.blocks} blocks, width {self.width}, patch {self.patch}, "
            f"{self.registers} register{'' if self.registers == 1 else 's'}, "
            f"{'a' if self.class_token else 'no'} class token{', gated MLP' if self.gated else ''}"
        )


def signature(state: Mapping[str, Tensor]) -> Signature | None:
    """Read the architecture off a state dict in timm's names or a release's; None if in neither."""
    patch = state.get("patch_embed.proj.weight")
    if patch is None or patch.ndim != 4:
        return None
    # DINOv2's training checkpoints say blocks.<chunk>.<block>.
    pattern = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.")
    blocks = {int(m[1]) for m in map(pattern.match, state) if m}
    names = ("register_tokens", "storage_tokens", "reg_token")
    registers = next((state[name] for name in names if name in state), None)
    return Signature(
        blocks=max(blocks, default=-1) + 1,
        width=patch.shape[0],
        patch=patch.shape[-1],
        registers=0 if registers is None or registers.ndim < 2 else registers.shape[-2],
        class_token="cls_token" in state,
        gated=_is_gated(state),
    )


def _is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the first MLP multiplies by a gate: two matrices lead into it, apart or as one."""
    for name, value in state.items():
        if re.fullmatch(r"blocks\.(\d+\.)+mlp\.(w1|w12|fc1_g)\.weight", name):
            return True
        if re.fullmatch(r"blocks\.(\d+\.)+mlp\.fc1\.weight", name):
            out = state.get(name.replace(".fc1.", ".fc2."))
            return out is not None and len(value) == 2 * out.shape[-1]
    return False


def read_checkpoint(path: Path) -> State:
    """Tensors of a checkpoint, in timm's names or in those of its release. No code in it is run.

    Raises ``HarnessError`` as ``checkpoint_files.read`` does, and for a file without tensors.
    """
    return _unwrap(path, checkpoint_files.read(path))


def _unwrap(path: Path, loaded: object) -> State:
    """Peel ``{"teacher": …}`` and ``backbone.`` off, until patch_embed stands at the top."""
    if isinstance(loaded, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(loaded.get(wrapper), Mapping):
                return _unwrap(path, loaded[wrapper])
    if not isinstance(loaded, Mapping) or not any(isinstance(v, Tensor) for v in loaded.values()):
        raise HarnessError(f"{path}: holds no state dict (a mapping of names to tensors)")
    state = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    for name in state:
        prefix, found, rest = name.partition("patch_embed.proj.weight")
        if found and not rest and _PREFIX.fullmatch(prefix):
            return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    return to_official(state) or state


def to_timm(state: Mapping[str, Tensor], module: nn.Module) -> State:
    """DINOv2's names -> timm's, for a timm module of the same architecture.

    DINOv2 keeps a position for the class token even with registers; timm's register models fold it
    into the class token, because nothing else is ever added there. A mask token takes no part in
    inference and is left out, and so is a classifier: a frozen backbone has none.
    """
    converted: State = {}
    official = any("register_tokens" in n or "mask_token" in n or ".w12." in n for n in state)
    for name, value in state.items():
        if name.startswith(("head.", "mask_token")):
            continue
        if official:
            # Training checkpoints group blocks into chunks: blocks.<chunk>.<block>.attn…
            name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
            name = name.replace("register_tokens", "reg_token")
            name = name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        converted[name] = value
    positions = converted.get("pos_embed")
    folds = getattr(module, "no_embed_class", False) and "cls_token" in converted
    if official and folds and positions is not None:
        converted["cls_token"] = converted["cls_token"] + positions[:, :1]
        converted["pos_embed"] = positions[:, 1:]
    return converted


def load_strictly(module: nn.Module, path: Path, fitting: Callable[[], str]) -> None:
    """Load ``path`` into a timm ``module``: every name and every shape must agree.

    ``fitting`` is called for only on failure, to say which registry entry would take the file.
    """
    state = read_checkpoint(path)
    looks = signature(state)
    expected = signature(module.state_dict())
    problems: list[str] = []
    if dinov3_names.is_own(state, module):
        converted, problems = dinov3_names.to_timm(state, module)
    else:
        converted = to_timm(state, module)
    problems += transformers_config.differences(path, module)
    own = module.state_dict()
    missing = sorted(own.keys() - converted.keys())
    surplus = sorted(converted.keys() - own.keys())
    unequal = sorted(n for n in own.keys() & converted.keys() if own[n].shape != converted[n].shape)
    if missing or surplus or unequal or problems:
        what = f"it looks like {looks}" if looks else f"it is not a ViT in {_LAYOUTS} names"
        lines = [f"{path}: does not fit the entry, which is {expected}: {what}"]
        for label, names in (("missing", missing), ("not in the model", surplus)):
            if names:
                lines.append(f"  {label}: {_some(names)}")
        for name in unequal[:3]:
            lines.append(
                f"  {name}: {list(converted[name].shape)} in the file, "
                f"{list(own[name].shape)} in the model"
            )
        lines += [f"  {problem}" for problem in problems]
        if suggestion := fitting():
            lines.append(f"  {suggestion}")
        if _SHARD.search(path.stem):
            lines.append("  it is one shard of several: name the .index.json beside it")
        raise HarnessError("\n".join(lines))
    module.load_state_dict(converted, strict=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def digest(module: nn.Module) -> str:
    """sha256 of the weights that run: names, shapes, types and bytes of the whole state dict."""
    sha = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
