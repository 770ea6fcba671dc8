"""A trained teacher as an ordinary entry of a registry file: weights and ``models.yaml``."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from harness.errors import HarnessError
from harness.nano.recipe import ARCHITECTURE, MEAN, STD, Recipe
from harness.nano.training_state import differences, write
from harness.registry import ModelEntry, Registry

REGISTRY = "models.yaml"


def weights_path(recipe: Recipe) -> Path:
    return recipe.out / f"{recipe.model_name}.safetensors"


def text_path(recipe: Recipe) -> Path:
    return recipe.out / f"{recipe.model_name}.text.safetensors"


def export(recipe: Recipe, backbone: Mapping[str, Tensor], text: bytes | None = None) -> Path:
    """Write the backbone's weights in fp16 and the registry file that names them; give the latter.

    ``backbone`` is a timm state dict: no head, no mask token; ``text`` the file of its text tower.
    Raises ``HarnessError``.
    """
    import safetensors.torch

    half = {name: value.detach().cpu().half().contiguous() for name, value in backbone.items()}
    # One key: safetensors writes several in an order of the moment, and equal runs shall be equal.
    metadata = {"recipe": json.dumps(recipe.decisive())}
    write(weights_path(recipe), safetensors.torch.save(half, metadata))
    if text is not None:
        write(text_path(recipe), text)
    path = recipe.out / REGISTRY
    write(path, _registry(recipe, text is not None).encode())
    return path


def _registry(recipe: Recipe, has_text: bool) -> str:
    entry: dict[str, Any] = {
        "timm": ARCHITECTURE,
        "checkpoint": weights_path(recipe).name,
        "arguments": recipe.arguments,
        "registers": recipe.registers,
        "position_embedding": {"antialias": True, "offset": 0.0},
        "input": {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic"},
        "note": f"trained by harness pretrain: {recipe.steps} steps of {recipe.batch_size} "
        f"pictures of {recipe.data}",
    }
    if has_text:
        entry["text"] = {"nano": text_path(recipe).name}
    entries = {recipe.model_name: entry}
    baseline = read_baseline(recipe)
    if baseline is not None:
        entry["baseline"] = baseline.name
        facts = baseline.model_dump(mode="json", exclude_none=True, exclude={"name", "checkpoint"})
        assert baseline.checkpoint is not None
        # Relative, so that the two folders can be moved together.
        checkpoint = os.path.relpath(baseline.checkpoint.absolute(), recipe.out.absolute())
        facts["checkpoint"] = checkpoint
        if has_text:
            tower = os.path.relpath(Path(facts["text"]["nano"]).absolute(), recipe.out.absolute())
            facts["text"] = {"nano": tower}
        entries = {baseline.name: facts, **entries}
    command = " ".join(map(shlex.quote, recipe.command)) or "harness.nano.pretrain (from Python)"
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=100)
    return f"# {' '.join(command.split())}\n{text}"


def read_baseline(recipe: Recipe) -> ModelEntry | None:
    """The entry of the run without registers; None where the recipe names none.

    Raises ``HarnessError`` where the two would differ in more than their registers: a comparison
    would then say nothing of registers.
    """
    if recipe.baseline is None:
        return None
    path = recipe.baseline / REGISTRY
    registry = Registry.load([path])
    own = [registry.entry(name) for name in registry.names()]
    found = [
        entry
        for entry in own
        if entry.checkpoint is not None
        and entry.checkpoint.absolute().parent == recipe.baseline.absolute()
    ]
    if not found:
        raise HarnessError(f"{path}: has no entry with weights beside it")
    entry = found[0]
    if entry.name == recipe.model_name:
        raise HarnessError(f"{path}: is called {entry.name} too; give this one another --name")
    assert entry.checkpoint is not None
    trained = _trained_recipe(entry.checkpoint)
    ours = recipe.decisive()
    for key in ("name", "registers"):
        trained[key] = ours[key]
    if differing := differences(trained, ours):
        raise HarnessError(
            f"{entry.checkpoint}: is no baseline: the two differ in more than registers "
            f"({differing})"
        )
    return entry


def _trained_recipe(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            recipe: dict[str, Any] = json.loads((file.metadata() or {})["recipe"])
            return recipe
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError):
        raise HarnessError(f"{path}: not weights that harness pretrain wrote") from None
