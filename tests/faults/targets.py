"""The commands that write, what was there before, and what an undisturbed one leaves."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults.command import Ended, Started
from faults.place import Place
from faults.truth import Wrong, files_differ, found, results_differ, store_differs, stored

MODELS = ("nano", "nano-reg4", "pixels")
SETS = "faulted: {format: scenes, size: 48, count: {train: 40, test: 8}}\n"
# Every kind of task: folds that merge, vectors that are stored, patches that are stored.
SUITE = """\
faulted:
  note: one small cell of each kind
  runs:
    - {tasks: [lost, attention], datasets: [faulted]}
    - {tasks: [knn], datasets: [faulted], settings: {resize: 48, crop: 48, k: [5]}}
    - {tasks: [logistic], datasets: [faulted], settings: {resize: 48, crop: 48, c_count: 3}}
    - {tasks: [segmentation], protocols: [knn-seg], datasets: [faulted], settings: {size: 48}}
"""
PRETRAIN = [
    *("--size=mote", "--registers=2", "--steps=24", "--batch-size=4", "--local-crops=0"),
    *("--workers=0", "--threads=1", "--set=head_outputs=64", "--set=head_hidden=32"),
    "--set=checkpoint_every=3",
]
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

    def run(self, models: Sequence[str], *more: str) -> list[str]:
        """The command of a run over the suite."""
        suites, sets = self.root / "suites.yaml", self.root / "sets.yaml"
        files = f"--suites={suites}", f"--datasets={sets}", f"--out={self.place.out}"
        return ["run", "--suite=faulted", f"--model={','.join(models)}", *files, *more]


def make_world(root: Path) -> World:
    """Paint, and run everything once without a fault."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "suites.yaml").write_text(SUITE)
    (root / "sets.yaml").write_text(SETS)
    world = World(root, Place(root / "case"))
    _warm(world)
    ended = Started(world.run(MODELS, "--workers=0"), world.place).end()
    if ended.status:
        raise SystemExit(f"the undisturbed run: status {ended.status}\n{ended.told}")
    for folder in (world.results, world.copy):
        shutil.copytree(world.place.out, folder)
    shutil.copytree(world.place.store, world.store)
    return world


def _warm(world: World) -> None:
    """Make in this process what every command would make again: painted pictures, facts of the
    models; and settings under which little takes long."""
    from PIL import Image

    import harness.features.store
    from harness.backbone.sources import inspect
    from harness.data.catalog import Catalog
    from harness.nano import scenes
    from harness.nano.recipe import SIZES, Size
    from harness.recording import gigaflops_of
    from harness.registry import Registry

    harness.features.store.SHARD = SHARD
    SIZES["mote"] = Size(width=32, depth=2, heads=2, patch=8, crop=32, local_crop=16)
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


@dataclass
class Target:
    """One command that writes to ``place.out``. What it leaves there is compared file by file."""

    name: str
    world: World
    loose: tuple[str, ...] = ()
    """Names of files that tell the time, so that no two of them are one."""
    truth: dict[str, bytes] = field(default_factory=dict)
    events: int = 0
    seconds: float = 0.0
    runs_models = False

    def arguments(self) -> list[str]:
        out, results = self.world.place.out, f"--results={self.world.results}"
        pictures = [str(each) for each in sorted(self.world.pictures.iterdir())[:2]]
        extract = f"--dataset=faulted --datasets={self.world.root / 'sets.yaml'}".split()
        sides = f"--baseline={self.world.results}", f"--candidate={self.world.copy}"
        return {
            "leaderboard": ["leaderboard", results, f"--out={out / 'a' / 'board.md'}"],
            "report": ["report", results, f"--out={out / 'report.html'}"],
            "regress": ["regress", *sides, "--format=junit", f"--out={out / 'gate.xml'}"],
            "merge": ["results", "merge", str(self.world.results), f"--into={out}"],
            "look": ["look", *pictures, "--model=pixels", "--html", f"--out={out}"],
            "extract": ["extract", "--model=pixels", *extract, "--workers=0", f"--out={out}"],
            "pretrain": ["pretrain", f"--data={self.world.pictures}", f"--out={out}", *PRETRAIN],
        }[self.name]

    def measure(self) -> None:
        """Run it once without a fault."""
        self.world.place.clean()
        ended = Started(self.arguments(), self.world.place).end()
        if ended.status:
            raise SystemExit(f"{self.name}, undisturbed: status {ended.status}\n{ended.told}")
        self.events, self.seconds = ended.events, ended.seconds
        self.truth = self._files()

    def prepare(self, draw: random.Random) -> None:
        """What was there before: nothing, or files of an earlier command."""
        self.before: dict[str, bytes] = {}
        for name, data in self.truth.items():
            if self.name in ("leaderboard", "report", "regress") and draw.random() < 0.5:
                self.before[name] = b"an older " + data[:20]
                path = self.world.place.out / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.before[name])

    def left(self) -> list[Wrong]:
        """Findings after the fault."""
        return files_differ(self._files(), self.truth, self.before, complete=False)

    def ended(self) -> list[Wrong]:
        """Findings after the same command has ended."""
        return files_differ(self._files(), self.truth, {}, complete=True)

    def _files(self) -> dict[str, bytes]:
        every = self.world.place.tree()
        return {name: b"" if name in self.loose else data for name, data in every.items()}


class Runs(Target):
    """``harness run``: results, and the feature store."""

    runs_models = True
    more: tuple[str, ...] = ("--workers=0",)

    def arguments(self) -> list[str]:
        return self.world.run(MODELS, *self.more)

    def measure(self) -> None:
        super().measure()
        self.results = found(self.world.results)
        self.vectors = stored(self.world.store)

    def prepare(self, draw: random.Random) -> None:
        """Some results are there already, and some keys of the store."""
        place, source = self.world.place, self.world.results
        share = draw.choice((0.0, 0.3, 0.7))
        for path in sorted(source.glob("*/*/*/*.json")):
            if draw.random() < share:
                for file in path.parent.glob(f"{path.stem}.*"):
                    target = place.out / file.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
        share = draw.choice((0.0, 0.5, 1.0))
        for key in sorted(self.world.store.iterdir()):
            if key.is_dir() and draw.random() < share:
                shutil.copytree(key, place.store / key.name)
        self.before = place.tree()

    def left(self) -> list[Wrong]:
        here = self.world.place.tree()
        gone = [name for name, data in self.before.items() if here.get(name) != data]
        wrong = [Wrong("lost", f"{name}: was there, and is gone or another") for name in gone]
        wrong += results_differ(self.world.place.out, self.results, complete=False)
        self.before = {name: data for name, data in here.items() if self._finished(name, here)}
        return wrong + store_differs(self.world.place.store, self.vectors)

    def _finished(self, name: str, here: Mapping[str, bytes]) -> bool:
        """Whether a file belongs to a finished result: one that has its JSON."""
        path = Path(name)
        return str(path.with_name(path.name.partition(".")[0] + ".json")) in here

    def ended(self) -> list[Wrong]:
        place, here = self.world.place, self.world.place.tree()
        again = [name for name, data in self.before.items() if here.get(name) != data]
        wrong = [Wrong("untidy", f"{name}: was finished, and was run again") for name in again]
        wrong += results_differ(place.out, self.results, complete=True)
        return wrong + store_differs(place.store, self.vectors)


class Prunes(Runs):
    """``harness store prune`` while nothing runs: what stays is whole, and a run fills it again."""

    def arguments(self) -> list[str]:
        return ["store", "prune", "--max-size=40kB"]

    def measure(self) -> None:
        self.world.place.clean()
        shutil.copytree(self.world.store, self.world.place.store, dirs_exist_ok=True)
        ended = Started(self.arguments(), self.world.place).end()
        if ended.status or not ended.events:
            raise SystemExit(f"{self.name}, undisturbed: status {ended.status}\n{ended.told}")
        self.events, self.seconds = ended.events, ended.seconds
        self.results, self.vectors = {}, stored(self.world.store)

    def prepare(self, draw: random.Random) -> None:
        shutil.copytree(self.world.store, self.world.place.store, dirs_exist_ok=True)
        self.before = {}

    def ended(self) -> list[Wrong]:
        left = sum(each.stat().st_size for each in self.world.place.store.glob("*/*"))
        wrong = [Wrong("wrong", f"{left} bytes stay of 40,000")] if left > 40_000 else []
        return wrong + super().ended()


def make(name: str, world: World) -> Target:
    """The target of that name."""
    if name == "run":
        return Runs(name, world)
    if name == "prune":
        return Prunes(name, world)
    loose = {
        "extract": ("index.json",),
        "pretrain": ("training.pt", "log.jsonl", "models.yaml"),
    }.get(name, ())
    return Target(name, world, loose)


TARGETS = (
    "run",
    "leaderboard",
    "report",
    "regress",
    "merge",
    "look",
    "extract",
    "pretrain",
    "prune",
)


def promised(status: int, allowed: Sequence[int], ended: Ended) -> list[Wrong]:
    """Findings about how a command has ended."""
    wrong = []
    if status not in allowed:
        last = ended.told.strip().splitlines()[-1:] or ["nothing told"]
        wrong.append(Wrong("untidy", f"status {status}, not {allowed}: {last[0][:150]}"))
    if "Traceback (most recent call last)" in ended.told:
        wrong.append(Wrong("traceback", ended.told.strip().splitlines()[-1][:150]))
    return wrong
