"""``harness pretrain``: what was typed as a recipe, and what came of it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from harness.errors import HarnessError
from harness.nano.pretrain import Recipe, pretrain
from harness.nano.recipe import BATCH_SIZES
from harness.progress import Silent, for_stream, remember_interrupts


def pretrained(options: Namespace, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train what was typed; the model's name, its registry file, and a command that uses both.
    ``settings`` are those of ``--set``."""
    crops = {} if options.local_crops is None else {"local_crops": options.local_crops}
    if options.objective == "clip" and (crops or options.local_crop is not None):
        raise HarnessError(
            "--local-crop, --local-crops: of --objective distillation; clip sees one crop of a "
            "picture, --crop"
        )
    batch_size = options.batch_size
    if batch_size is None:
        batch_size = BATCH_SIZES[options.objective]
    recipe = Recipe(
        data=options.data,
        out=options.out,
        size=options.size,
        registers=options.registers,
        name=options.name,
        steps=options.steps,
        epochs=options.epochs,
        objective=options.objective,
        batch_size=batch_size,
        seed=options.seed,
        precision=options.precision,
        crop=options.crop,
        local_crop=options.local_crop,
        **crops,
        label_weight=options.labels,
        device=options.device,
        workers=options.workers,
        threads=options.threads,
        overwrite=options.overwrite,
        baseline=options.baseline,
        dataset_files=tuple(options.datasets),
        data_root=options.data_root,
        command=tuple(options.typed),
    ).changed(settings)
    remember_interrupts()
    with Silent() if options.json else for_stream() as progress:
        registry = pretrain(recipe, progress)
    task = "zeroshot" if recipe.objective == "clip" else "lost"
    return {
        "model": recipe.model_name,
        "registry": str(registry),
        "use": f"harness run --task {task} --model {recipe.model_name} --models {registry}",
    }
