"""``run`` with results or features, or both, on a URL: what is there before, and what is found."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from faults.place import tree
from faults.s3 import BUCKET, SECRET, Server
from faults.targets import Runs
from faults.truth import Wrong, content, results_differ
from harness.features.shared import shard_of

_RESULTS, _FEATURES = "results", "features"


class UrlRuns(Runs):
    """``url``: results and features are objects of one bucket. ``url-store``: features only, and
    results are files. What there is of both is looked at past the proxy, in a folder of its own
    (``there``); what this machine keeps of it is looked at too."""

    server: Server | None = None

    def arguments(self) -> list[str]:
        out = [f"--out=s3://{BUCKET}/{_RESULTS}"] if self.name == "url" else []
        return [*super().arguments(), *out]

    def statuses(self) -> tuple[int, ...]:
        """How a run may end whose storage is in trouble: 1, where results of it are on this machine
        only, 2, where it does not begin."""
        return (0, 1, 2) if self.name == "url" else (0,)

    def tell(self, what: str) -> None:
        assert self.server is not None
        self.server.tell(what)

    def measure(self) -> None:
        assert self.server is not None
        self.world.place.environment = {
            **self.server.environment,
            "HARNESS_CACHE_LOCAL": str(self.world.place.machine("one")),
        }
        self._before = self.world.root / "before"  # what the bucket has at a case's beginning
        self._fill()
        super().measure()
        self._objects = self.world.root / f"objects-{self.name}"
        shutil.copytree(self._fetched() / _FEATURES, self._objects)

    def prepare(self, draw: random.Random) -> None:
        super().prepare(draw)
        _empty(self.world.place.store)  # nothing of a run goes there
        if self.name == "url":
            shutil.copytree(self.world.place.out, self._before / _RESULTS)
            _empty(self.world.place.out)
        share = draw.choice((0.0, 0.5, 1.0))
        for key in sorted(self._objects.iterdir()):
            if draw.random() < share:
                shutil.copytree(key, self._before / _FEATURES / key.name)
        self._fill()

    def _fill(self) -> None:
        self._before.mkdir(exist_ok=True)
        self.tell("spoil drop 0")
        self.tell(f"fill {self._before}")
        shutil.rmtree(self._before)

    def heal(self) -> None:
        super().heal()
        self.tell("spoil drop 0")

    def left(self) -> list[Wrong]:
        self._fetched()
        return super().left()

    def ended(self) -> list[Wrong]:
        there, wrong = self._fetched(), []
        if (there / _RESULTS / ".probe").exists():
            wrong.append(Wrong("untidy", ".probe: stays in the bucket"))
        for mirror in self.world.place.machine("one").glob("results-*/records"):
            wrong += results_differ(mirror, self.results, complete=True)
        if any(SECRET.encode() in data for data in tree(there).values()):
            wrong.append(Wrong("untidy", "a secret stands in an object"))
        return wrong + super().ended()

    def out(self) -> Path:
        return self._there / _RESULTS if self.name == "url" else super().out()

    def store_wrong(self, complete: bool) -> list[Wrong]:
        return shared_differs(self._there / _FEATURES, self.vectors)

    @property
    def _there(self) -> Path:
        return self.world.place.root / "there"

    def _fetched(self) -> Path:
        shutil.rmtree(self._there, ignore_errors=True)
        self.tell(f"dump {self._there}")
        for part in (_RESULTS, _FEATURES):
            (self._there / part).mkdir(exist_ok=True)
        return self._there


def _empty(folder: Path) -> None:
    """It may be a disk of its own, which cannot be removed."""
    for entry in list(folder.iterdir()):
        shutil.rmtree(entry)


def shared_differs(folder: Path, truth: Mapping[str, Mapping[int, str]]) -> list[Wrong]:
    """Objects of a feature store on a URL that are not whole, or not those of an undisturbed
    run."""
    wrong = []
    for path in sorted(folder.glob("*/*.safetensors")):
        name, key = f"{path.parent.name}/{path.name}", path.parent.name
        shard = shard_of(path.name)
        if shard is None or hashlib.sha256(path.read_bytes()).hexdigest() != shard[1]:
            wrong.append(Wrong("wrong", f"{name}: not what its name says"))
        elif truth.get(key, {}).get(shard[0]) != content(path, key, shard[0]):
            wrong.append(Wrong("wrong", f"{name}: other vectors"))
    return wrong
