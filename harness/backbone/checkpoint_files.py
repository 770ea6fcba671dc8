"""Checkpoints as they lie on the disk: one file, or the shards that an index lists.

Nothing here knows a model; ``weights.py`` makes sense of the names.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from harness.documents import MAX_BYTES, path_problem
from harness.errors import HarnessError

_INDEX = ".index.json"


def read(path: Path) -> object:
    """What a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file holds, or all the shards of a
    ``.index.json`` together. No code in it is run.

    Raises ``HarnessError`` for a file that is missing, damaged, of another kind, or that is a
    pickle which would need more than tensors and plain containers; and for an index that is not
    true of its shards.
    """
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    if not path.is_file():
        raise HarnessError(f"{path}: no such checkpoint file")
    return _read_file(path)


def is_here(path: Path) -> bool:
    """Whether the file is there, and where it is an index, all its shards."""
    if not path.name.endswith(_INDEX):
        return path.is_file()
    try:
        return bool(shards(path))
    except HarnessError:
        return False


def sha256(path: Path) -> str:
    """sha256 of a checkpoint: of the file, or of an index and of all its shards."""
    if not path.name.endswith(_INDEX):
        return _file_sha256(path)
    files = {name: _file_sha256(path.parent / name) for name in shards(path)}
    whole = json.dumps([_file_sha256(path), files], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def shards(index: Path) -> dict[str, list[str]]:
    """The shards of an index, all of which are there: file name -> names of its tensors.

    The format is that of transformers and huggingface_hub: ``{"weight_map": {name: file}}``. Raises
    ``HarnessError`` for an index that cannot be read, names a tensor twice or a file outside of its
    own folder, and for shards that are missing.
    """
    found: dict[str, list[str]] = {}
    for name, file in _weight_map(index).items():
        # An index may come from a stranger; it has no business in other folders.
        if file in {"", ".", ".."} or any(character in file for character in "/\\\0"):
            raise HarnessError(f"{index}: refused: the shard {file!r} is not a file of its folder")
        if problem := path_problem(file):
            raise HarnessError(f"{index}: refused: the shard {file[:100]!r} {problem}")
        found.setdefault(file, []).append(name)
    missing = sorted(file for file in found if not (index.parent / file).is_file())
    if missing:
        raise HarnessError(
            f"{index}: {len(missing)} of its {len(found)} shards are not beside it: "
            f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}; fetch what is missing"
        )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        whole = dict(pairs)
        if len(whole) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise HarnessError(f"{index}: names {twice} twice")
        return whole

    if not index.is_file():
        raise HarnessError(f"{index}: no such checkpoint file")
    try:
        if index.stat().st_size > MAX_BYTES:
            raise HarnessError(f"{index}: larger than {MAX_BYTES // 2**20} MiB; not read")
        document = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise HarnessError(f"{index}: damaged checkpoint index: {_first_line(error)}") from None
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise HarnessError(f"{index}: has no `weight_map` of tensor names to shards")
    if not all(isinstance(file, str) for file in weight_map.values()):
        raise HarnessError(f"{index}: its `weight_map` names something that is not a file")
    return weight_map


def _read_shards(index: Path) -> dict[str, Tensor]:
    listed = shards(index)
    place = {name: file for file, names in listed.items() for name in names}
    state: dict[str, Tensor] = {}
    for file, names in listed.items():
        loaded = _read_file(index.parent / file)
        if not isinstance(loaded, Mapping):
            raise HarnessError(f"{index.parent / file}: holds no state dict")
        held = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
        if lacking := sorted(set(names) - held.keys()):
            raise HarnessError(
                f"{index}: is not true of its shards: {file} lacks {lacking[0]}, which the index "
                f"places there ({len(lacking)} in all); fetch index and shards again, together"
            )
        if surplus := sorted(held.keys() - set(names)):
            other = place.get(surplus[0])
            raise HarnessError(
                f"{index}: is not true of its shards: {file} holds {surplus[0]}, which the index "
                f"{'does not list' if other is None else f'places in {other}'} ({len(surplus)} in "
                f"all); fetch index and shards again, together"
            )
        state |= held
    return state


def _read_file(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        if path.suffix in {".pth", ".pt", ".bin"}:
            with warnings.catch_warnings():  # torch wonders aloud about pickles it then refuses
                warnings.simplefilter("ignore")
                loaded: object = torch.load(path, map_location="cpu", weights_only=True)
                return loaded
    except pickle.UnpicklingError as error:
        reason = _first_line(error)
        raise HarnessError(
            f"{path}: refused: it is damaged, or holds more than weights, and a pickle can run any "
            f"code when loaded ({reason}). Save its state dict alone, best as .safetensors"
        ) from None
    except Exception as error:  # safetensors and zip readers raise many kinds on damaged files
        raise HarnessError(f"{path}: damaged checkpoint: {_first_line(error)}") from None
    raise HarnessError(
        f"{path}: a .safetensors, .pth, .pt or .bin file was expected, or the {_INDEX} of shards"
    )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
