"""Judge frozen Vision Transformers, with and without register tokens.

``evaluate`` runs tasks over models and gives their records; ``load_backbone`` gives one frozen
model whose tokens carry their meaning. Both import torch only when they are called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.backbone.vit import Backbone
    from harness.schema import Record

__all__ = ["evaluate", "load_backbone"]

# Python started in a checkout's top folder finds this package there, unbuilt, where the tasks
# stand beside it and not in it. Looking there too lets `python -c "import harness"` work.
_HERE = Path(__file__).parent
if not (_HERE / "tasks").is_dir() and (_HERE.parent / "tasks").is_dir():
    __path__.append(str(_HERE.parent))


def evaluate(
    task: str | Sequence[str],
    model: str | Sequence[str],
    dataset: str | Sequence[str] = (),
    test_on: str | Sequence[str] = (),
    **options: Any,
) -> list[Record]:
    """Run every (model, data set, task, protocol) named and return their records in that order,
    also those that were there already; what is not applicable is left out. On the data sets of
    ``test_on`` the trained heads are judged too; their records follow those of each model.
    ``options`` are the fields of ``harness.options.Options``; paths may be text.

    Raises ``harness.errors.HarnessError`` for wrong use or bad input.
    """
    from harness.errors import HarnessError
    from harness.further import plan_further
    from harness.memory import settle
    from harness.options import Options
    from harness.pictured.choice import notices
    from harness.run import run

    for key in {"out", "data_root"} & options.keys():
        options[key] = options[key] and Path(options[key]).expanduser()
    for key in {"model_files", "dataset_files"} & options.keys():
        options[key] = _files(options[key])
    if "protocols" in options:
        options["protocols"] = _names(options["protocols"])
    wanted = Options(_names(task), _names(model), _names(dataset), **options)
    cells = plan_further(_names(test_on), wanted)
    settle(cells, wanted)
    notices(cells, wanted.save_predictions)  # raises where no task can show any
    for _ in run(cells, wanted):
        pass
    if not any(cell.done for cell in cells):
        raise HarnessError("; ".join(cell.told for cell in cells))
    return [cell.done for cell in cells if cell.done is not None]


def load_backbone(
    name: str,
    models: str | Path | Sequence[str | Path] = (),
    device: str = "auto",
    weights: str = "released",
    seed: int = 0,
    compiled: bool = False,
    allow_code: bool = False,
) -> Backbone:
    """A frozen model of the registry, by name. ``models`` are registry files laid over ours;
    ``allow_code`` runs the functions that they name as ``factory:``.

    Raises ``harness.errors.HarnessError``: an unknown name, weights that cannot be had or do not
    fit, a device that is not there.
    """
    from harness.backbone import sources
    from harness.registry import Registry

    kind: Any = weights
    registry = Registry.load(_files(models), allow_code)
    return sources.load_backbone(registry.entry(name), device, kind, seed, compiled, registry)


def _names(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _files(value: str | Path | Sequence[str | Path]) -> list[Path]:
    files = [value] if isinstance(value, str | Path) else value
    return [Path(file).expanduser() for file in files]
