"""Pictures for a look into a backbone: what is found of it belongs to its weights, in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.atomic import explained, replace
from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone
from harness.data.catalog import Catalog
from harness.data.dataset import ROLES, Dataset
from harness.data.views import CentreCrop
from harness.errors import BadPicture, HarnessError
from harness.features.extract import normalise
from harness.features.loading import load, processes
from harness.options import Options
from harness.plan import OpenedDataset, open_dataset
from harness.progress import Progress, Silent
from harness.registry import ModelEntry, Registry
from harness.selection import by_hash


class Pictures:
    """Pictures of the first role of a data set (train, where there is one), those with the smallest
    sha256 of their id, as a backbone sees them: the middle, at one size."""

    def __init__(
        self,
        backbone: Backbone,
        opened: OpenedDataset,
        options: Options,
        count: int,
        size: int | None,
        progress: Progress,
    ) -> None:
        role = next(role for role in ROLES if role in opened.roles)
        self._dataset: Dataset = opened.roles[role]
        self._backbone, self._progress = backbone, progress
        self.passes = 0
        self._batch, self._workers = options.batch_size, processes(options.workers)
        facts = backbone.architecture
        side = facts.default_size[0] if size is None else size
        if side < 1 or side % facts.patch:
            raise HarnessError(f"--size {side}: no multiple of the patch of {facts.patch} pixels")
        self._view = CentreCrop(side, side, facts.interpolation)
        self.order = by_hash([sample.id for sample in self._dataset.samples])[:count]
        self.facts: dict[str, Any] = {
            "dataset": self._dataset.name,
            "split": self._dataset.split,
            "fingerprint": opened.fingerprints[role],
            "pictures": len(self.order),
            "size": side,
        }

    def batches(self, what: str, places: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        """Places in ``order`` and their normalised pixels ``[B, 3, H, W]``."""
        indices = [self.order[place] for place in places]
        self._progress.start(f"{self._backbone.name} · {self._dataset.name} · {what}", len(indices))
        waiting = []
        for place, loaded in zip(
            places, load(self._dataset, self._view, indices, 0, self._workers), strict=True
        ):
            if loaded.bad is not None:
                raise BadPicture(loaded.bad)
            waiting.append((place, loaded.crops[0]))
            if len(waiting) == self._batch or place == places[-1]:
                yield (
                    [each for each, _ in waiting],
                    normalise(self._backbone, [crop for _, crop in waiting]),
                )
                self._progress.advance(len(waiting))
                self.passes += len(waiting)
                waiting = []


def ready(
    count: int, size: int | None, options: Options, out: Path, progress: Progress | None
) -> tuple[Backbone, Pictures]:
    """The first model of ``options`` as it was trained, and pictures of its first data set.

    Raises ``HarnessError`` for an unknown name, a size that the patch does not divide, and where
    ``out`` is there (unless ``overwrite``).
    """
    if count < 1:
        raise HarnessError(f"--pictures {count}: at least 1")
    if out.exists() and not options.overwrite:
        raise HarnessError(f"{out}: is there already; --overwrite replaces it")
    registry = Registry.load(options.model_files, options.allow_code)
    entry = unchanged(registry.entry(options.models[0]))
    backbone = load_backbone(
        entry, options.device, options.weights, options.seed, registry=registry
    )
    catalog = Catalog.load(options.dataset_files, options.data_root)
    opened = open_dataset(catalog, options.datasets[0], options)
    return backbone, Pictures(backbone, opened, options, count, size, progress or Silent())


def unchanged(entry: ModelEntry) -> ModelEntry:
    """The entry as it was trained: what its changes need is what is looked for."""
    changes: Mapping[str, Any] = {
        "test_time_registers": None,
        "drop_registers": False,
        "replace_registers": None,
    }
    return entry.model_copy(update=changes)


def write(path: Path, data: bytes) -> None:
    """Write ``path`` whole or not at all."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace({path: data})
