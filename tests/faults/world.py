"""What all cases share: pictures, results and vectors of a run that nothing disturbed."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from further_sets import paint

from faults.command import Started
from faults.place import Place

MODELS = ("nano", "nano-reg4", "pixels")
SETS = """\
faulted: {format: scenes, size: 48, count: {train: 40, test: 8}}
many: {format: folder, root: many}
"""
# Every kind of task: folds that merge, vectors that are stored, patches that are stored.
SUITE = """\
faulted:
  note: one small cell of each kind
  models: [nano, nano-reg4, pixels]
  runs:
    - {tasks: [lost, attention], datasets: [faulted]}
    - {tasks: [knn], datasets: [faulted], settings: {resize: 48, crop: 48, k: [5]}}
    - {tasks: [logistic], datasets: [faulted], settings: {resize: 48, crop: 48, c_count: 3}}
    - {tasks: [segmentation], protocols: [knn-seg], datasets: [faulted], settings: {size: 48}}
"""
# On Ray: passes that are cut (anatomy's folds merge, knn's train vectors are two shards), and such
# as are not.
SUITE_OF_RAY = """\
faulted:
  note: a few cells for several workers
  models: [pixels]
  runs:
    - {tasks: [lost], datasets: [faulted]}
    - {tasks: [anatomy], protocols: [anatomy], models: [nano], datasets: [many]}
    - {tasks: [knn], datasets: [many], settings: {resize: 32, crop: 32, k: [5]}}
    - {tasks: [logistic], datasets: [faulted], settings: {resize: 48, crop: 48, c_count: 3}}
"""
SHARD = 16  # of the store: several shards for 40 pictures


@dataclass(frozen=True)
class World:
    """What all cases share: ``results``, a ``copy`` of them, and ``store`` are those of the
    undisturbed run, ``pictures`` are a few files."""

    root: Path
    place: Place

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def copy(self) -> Path:
        return self.root / "copy"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    def run(self, *more: str) -> list[str]:
        """The command of a run over the suite."""
        suites, sets = self.root / "suites.yaml", self.root / "sets.yaml"
        files = f"--suites={suites}", f"--datasets={sets}", f"--out={self.place.out}"
        return ["run", "--suite=faulted", *files, *more]


def make_world(root: Path, of_ray: bool = False) -> World:
    """Paint, and run everything once without a fault, on the local engine."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "suites.yaml").write_text(SUITE_OF_RAY if of_ray else SUITE)
    for role, count in (("train", 513), ("val", 130)) if of_ray else ():
        paint(root / "many" / role, "ab", count, count)
    (root / "sets.yaml").write_text(SETS)
    world = World(root, Place(root / "case", None if of_ray else SHARD))
    _warm(world)
    ended = Started(world.run("--workers=0"), world.place).end()
    if ended.status:
        raise SystemExit(f"the undisturbed run: status {ended.status}\n{ended.told}")
    for folder in (world.results, world.copy):
        shutil.copytree(world.place.out, folder)
    shutil.copytree(world.place.store, world.store)
    return world


def _warm(world: World) -> None:
    """Make in this process what every command would make again: painted pictures, facts of the
    models; and a small size to pretrain."""
    from PIL import Image

    from harness.backbone.sources import inspect
    from harness.data.catalog import Catalog
    from harness.nano import scenes
    from harness.nano.recipe import SIZES, Size
    from harness.recording import gigaflops_of
    from harness.registry import Registry

    cast(dict[str, Size], SIZES)["mote"] = Size(
        width=32, depth=2, heads=2, patch=8, crop=32, local_crop=16
    )
    scenes._rendered = functools.lru_cache(maxsize=256)(scenes._rendered.__wrapped__)
    roles = Catalog.load([world.root / "sets.yaml"]).open("faulted")
    world.pictures.mkdir()
    for role, dataset in roles.items():
        for place, sample in enumerate(dataset.samples):
            picture = dataset.picture(place)
            if role == "train" and place < 6:
                Image.fromarray(picture).save(world.pictures / f"{sample.id}.png")
    registry = Registry.load([])
    for name in MODELS:
        inspect(registry.entry(name))
        gigaflops_of(registry.entry(name))
