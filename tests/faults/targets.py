"""The commands that write, what was there before, and what an undisturbed one leaves."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults import s3
from faults.cluster import Cluster
from faults.command import MARK, Ended, Started
from faults.place import mend, tree
from faults.truth import Wrong, files_differ, found, results_differ, store_differs, stored
from faults.world import World

PRETRAIN = [
    *("--size=mote", "--registers=2", "--steps=24", "--batch-size=4", "--local-crops=0"),
    *("--workers=0", "--threads=1", "--set=head_outputs=64", "--set=head_hidden=32"),
    "--set=checkpoint_every=3",
]


@dataclass
class Target:
    """One command that writes to ``place.out``. What it leaves there is compared file by file."""

    name: str
    world: World
    loose: tuple[str, ...] = ()
    """Names of files that tell the time, so that no two of them are one."""
    refusal: str | None = None
    """What the command says where it finds all done, if it does not replace that."""
    truth: dict[str, bytes] = field(default_factory=dict)
    events: int = 0
    seconds: float = 0.0
    runs_models = False

    def arguments(self) -> list[str]:
        out, results = self.world.place.out, f"--results={self.world.results}"
        pictures = [str(each) for each in sorted(self.world.pictures.glob("*.png"))[:2]]
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

    def heal(self) -> None:
        """Take back what lasts of a fault, before the command runs again."""
        if self.world.place.mounts:
            mend(self.world.place)

    def litter(self) -> list[str]:
        """Temporary files and folders that stay."""
        return self.world.place.litter()

    def _files(self) -> dict[str, bytes]:
        every = self.world.place.tree()
        return {name: b"" if name in self.loose else data for name, data in every.items()}


class Runs(Target):
    """``harness run``: results, and the feature store."""

    runs_models = True
    more: tuple[str, ...] = ("--workers=0",)

    def arguments(self) -> list[str]:
        return self.world.run(*self.more)

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

    def out(self) -> Path:
        """The folder where its results are to be looked at."""
        return self.world.place.out

    def store_wrong(self, complete: bool) -> list[Wrong]:
        return store_differs(self.world.place.store, self.vectors, complete)

    def left(self) -> list[Wrong]:
        here = tree(self.out())
        gone = [name for name, data in self.before.items() if here.get(name) != data]
        wrong = [Wrong("lost", f"{name}: was there, and is gone or another") for name in gone]
        wrong += results_differ(self.out(), self.results, complete=False)
        self.before = {name: data for name, data in here.items() if self._finished(name, here)}
        return wrong + self.store_wrong(complete=False)

    def _finished(self, name: str, here: Mapping[str, bytes]) -> bool:
        """Whether a file belongs to a finished result: one that has its JSON."""
        path = Path(name)
        return str(path.with_name(path.name.partition(".")[0] + ".json")) in here

    def ended(self) -> list[Wrong]:
        here = tree(self.out())
        again = [name for name, data in self.before.items() if here.get(name) != data]
        wrong = [Wrong("untidy", f"{name}: was finished, and was run again") for name in again]
        wrong += results_differ(self.out(), self.results, complete=True)
        return wrong + self.store_wrong(complete=True)


class RayRuns(Runs):
    """``harness run --engine ray`` on a cluster that is there (``address``), or on its own."""

    cluster: Cluster | None = None

    def arguments(self) -> list[str]:
        where = [] if self.cluster is None else [f"--address={self.cluster.address}"]
        return self.world.run("--workers=0", "--engine=ray", *where)

    def mark(self) -> str:
        """What stands in the environment of the processes of its Ray."""
        return f"{MARK}={self.world.place.root}" if self.cluster is None else self.cluster.mark

    def litter(self) -> list[str]:
        there = [] if self.cluster is None else self.cluster.temporary.glob("harness-*")
        return super().litter() + [f"of a node: {each.name}" for each in there]

    def locally(self) -> list[str]:
        """The same run on the local engine."""
        return self.world.run("--workers=0")


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
    if name in OF_RAY:
        return RayRuns(name, world)
    if name in OF_URL:
        from faults.urls import UrlRuns

        return UrlRuns(name, world)
    if name == "prune":
        return Prunes(name, world)
    loose = {
        "extract": ("index.json",),
        "pretrain": ("training.pt", "log.jsonl", "models.yaml"),
    }.get(name, ())
    return Target(name, world, loose, "is there already" if name == "extract" else None)


OF_RAY = ("ray", "ray-own")
OF_URL = ("url", "url-store")
TARGETS = (
    *("run", "leaderboard", "report", "regress", "merge", "look", "extract", "pretrain", "prune"),
    *OF_URL,
    *OF_RAY,
)


def promised(status: int, allowed: Sequence[int], ended: Ended) -> list[Wrong]:
    """Findings about how a command has ended."""
    wrong = []
    if s3.SECRET in ended.told:
        wrong.append(Wrong("untidy", "a secret is shown"))
    if status not in allowed:
        last = ended.told.strip().splitlines()[-1:] or ["nothing told"]
        wrong.append(Wrong("untidy", f"status {status}, not {allowed}: {last[0][:150]}"))
    if "Traceback (most recent call last)" in ended.told:
        wrong.append(Wrong("traceback", ended.told.strip().splitlines()[-1][:150]))
    return wrong
