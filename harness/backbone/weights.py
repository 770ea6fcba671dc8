"""Checkpoint files: read without running code, recognised by shape, converted to timm's names."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.backbone.transformers_names import to_official
from harness.errors import HarnessError

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model", "teacher")
_PREFIX = re.compile(r"((module|backbone|model)\.)+")


@dataclass(frozen=True)
class Signature:
    """What a set of weights looks like, whatever its names."""

    blocks: int
    width: int
    patch: int
    registers: int
    class_token: bool

    def __str__(self) -> str:
        return (
            f"{self.blocks} blocks, width {self.width}, patch {self.patch}, "
            f"{self.registers} register{'' if self.registers == 1 else 's'}, "
            f"{'a' if self.class_token else 'no'} class token"
        )


def signature(state: Mapping[str, Tensor]) -> Signature | None:
    """Read the architecture off a state dict in timm's or DINOv2's names; None if it is neither."""
    patch = state.get("patch_embed.proj.weight")
    if patch is None or patch.ndim != 4:
        return None
    # DINOv2's training checkpoints say blocks.<chunk>.<block>.
    pattern = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.")
    blocks = {int(m[1]) for m in map(pattern.match, state) if m}
    registers = state.get("register_tokens", state.get("reg_token"))
    return Signature(
        blocks=max(blocks, default=-1) + 1,
        width=patch.shape[0],
        patch=patch.shape[-1],
        registers=0 if registers is None else registers.shape[1],
        class_token="cls_token" in state,
    )


def read_checkpoint(path: Path) -> State:
    """Tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file. No code in it is run.

    Raises ``HarnessError`` for a file that is missing, damaged, of another kind, or that is a
    pickle which would need more than tensors and plain containers.
    """
    if not path.is_file():
        raise HarnessError(f"{path}: no such checkpoint file")
    loaded: object
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            loaded = safetensors.torch.load_file(path)
        elif path.suffix in {".pth", ".pt", ".bin"}:
            with warnings.catch_warnings():  # torch wonders aloud about pickles it then refuses
                warnings.simplefilter("ignore")
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise HarnessError(f"{path}: a .safetensors, .pth, .pt or .bin file was expected")
    except HarnessError:
        raise
    except pickle.UnpicklingError as error:
        reason = _first_line(error)
        raise HarnessError(
            f"{path}: refused: it is damaged, or holds more than weights, and a pickle can run any "
            f"code when loaded ({reason}). Save its state dict alone, best as .safetensors"
        ) from None
    except Exception as error:  # safetensors and zip readers raise many kinds on damaged files
        raise HarnessError(f"{path}: damaged checkpoint: {_first_line(error)}") from None
    return _unwrap(path, loaded)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


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
    converted = to_timm(state, module)
    own = module.state_dict()
    missing = sorted(own.keys() - converted.keys())
    surplus = sorted(converted.keys() - own.keys())
    unequal = sorted(n for n in own.keys() & converted.keys() if own[n].shape != converted[n].shape)
    if missing or surplus or unequal:
        what = f"it looks like {looks}" if looks else "it is not a ViT in timm's or DINOv2's names"
        lines = [f"{path}: does not fit the entry, which is {expected}: {what}"]
        for label, names in (("missing", missing), ("not in the model", surplus)):
            if names:
                lines.append(f"  {label}: {_some(names)}")
        for name in unequal[:3]:
            lines.append(
                f"  {name}: {list(converted[name].shape)} in the file, "
                f"{list(own[name].shape)} in the model"
            )
        if suggestion := fitting():
            lines.append(f"  {suggestion}")
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


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
