"""What a stored feature is of: everything that can move it, as JSON, and the hash of that.

A key that leaves something out gives wrong numbers in silence; one that says too much costs a
forward pass. Where in doubt this says too much: the versions of the libraries that decode, resize
and multiply are in it, and so is the kind of device (a CPU's autocast and a GPU's keep different
operations in half precision).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from harness.backbone.architecture import Architecture
from harness.backbone.vit import Backbone, Precision, runs_as
from harness.data.views import View
from harness.documents import canonical_json
from harness.features.outliers import ESTIMATED_ON, OutlierRule
from harness.features.select import Selector
from harness.provenance import versions
from harness.registry import ModelEntry

FEATURE_VERSION = 1
"""Another number whenever harness code changes what a selector gives of the same pixels."""

_SOFTWARE = ("torch", "torchvision", "timm", "open_clip", "pillow", "numpy")


@dataclass(frozen=True)
class Key:
    """``facts`` decide the values; ``about`` is for people, and for guessing what a run will find
    before any weights are loaded."""

    facts: Mapping[str, Any]
    about: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json(self.facts)).hexdigest()


@dataclass(frozen=True)
class RunningModel:
    """A backbone as it runs: its weights, and what moves its tokens without being a weight.

    The entry's own words are in it (a timm name decides an activation, arguments a dropped head),
    and so is what became of them (position rule, mean and std, global feature, layout). Of a
    factory, whose code may change while its weights stay, the source file is hashed too.
    The weights' digest stands for what was changed in the frozen backbone, too. ``weights_from`` is
    for people and plans: ``released``, ``random 0``, or a checkpoint's sha256.
    """

    entry: ModelEntry
    architecture: Architecture
    weights_digest: str
    device: str
    compiled: bool = False
    weights_from: str = "released"

    @classmethod
    def of(cls, backbone: Backbone, entry: ModelEntry, weights_from: str = "released") -> Self:
        return cls(
            entry,
            backbone.architecture,
            backbone.weights_digest,
            backbone.device.type,
            backbone.compiled,
            weights_from=weights_from,
        )

    def facts(self) -> dict[str, Any]:
        # Where the checkpoint lies moves nothing that the digest of its weights does not tell.
        entry = {k: v for k, v in self.entry.canonical().items() if k != "checkpoint"}
        factory = self.entry.factory
        return {
            "weights": self.weights_digest,
            "entry": entry,
            "code": _code_digest(None if factory is None else factory.partition(":")[0]),
            "architecture": asdict(self.architecture),
            "device": self.device,
            "compiled": self.compiled,
            "intervention": self.entry.interventions or None,
        }


@dataclass(frozen=True)
class Source:
    """The pictures of one role as a backbone sees them. The seed counts for a view that draws."""

    name: str
    split: str
    fingerprint: str
    view: View
    precision: Precision
    seed: int

    def facts(self, running: RunningModel) -> dict[str, Any]:
        seeded = getattr(self.view, "seeded", True)  # a stranger's that says nothing may draw
        return {
            "version": FEATURE_VERSION,
            "software": software(),
            "model": running.facts(),
            "dataset": self.fingerprint,
            "view": _view_facts(self.view),
            "precision": runs_as(self.precision, running.device),
            "seed": self.seed if seeded else None,
        }

    def about(self, running: RunningModel) -> dict[str, Any]:
        return {
            "model": running.entry.name,
            "entry_digest": running.entry.digest(),
            "weights_from": running.weights_from,
            "dataset": self.name,
            "split": self.split,
        }


def software() -> dict[str, str]:
    """The versions of the libraries that can move a feature."""
    return {name: version for name, version in versions().items() if name in _SOFTWARE}


def feature_key(
    running: RunningModel, source: Source, shard: int, selector: Selector, cutoff: float | None
) -> Key:
    """The key of one selector's vectors in shards of that many pictures, which run together;
    ``cutoff`` is its rule's, resolved, where it has one."""
    if (cutoff is None) != (selector.rule is None):
        raise ValueError(f"{selector}: a resolved cut-off belongs to a rule, and to nothing else")
    chosen = selector.facts()
    chosen.pop("rule")  # two rules that come to the same cut-off choose the same patches
    facts = {**source.facts(running), "selector": chosen, "cutoff": cutoff, "shard": shard}
    return Key(facts, {**source.about(running), "token": told(selector)})


def cutoff_key(running: RunningModel, source: Source, layer: int, rule: OutlierRule) -> Key:
    """The key of the cut-off that a rule comes to on (at most) ``ESTIMATED_ON`` pictures."""
    facts = {**source.facts(running), "layer": layer, "rule": asdict(rule), "most": ESTIMATED_ON}
    return Key({**facts, "patches": "without padding"}, source.about(running))


def told(selector: Selector) -> str:
    """``patch-mean of layer 11, normed``, for a table."""
    facet = "" if selector.facet == "token" else f", {selector.facet}"
    normed = ", normed" if selector.norm else ""
    return f"{selector.token} of layer {selector.layer}{facet}{normed}"


def can_be_keyed(view: View) -> bool:
    """Whether all that a view does is told by its fields: one crop a picture, fields that JSON can
    hold. Features of other views are never stored."""
    if view.crops_per_picture != 1:
        return False
    try:
        canonical_json(_view_facts(view))
    except (TypeError, ValueError):
        return False
    return True


def _view_facts(view: Any) -> dict[str, Any]:
    """Class and fields; of a stranger's class also its code. Raises ``TypeError`` where it is no
    dataclass."""
    kind = type(view)
    own = kind.__module__.startswith("harness.")  # FEATURE_VERSION stands for ours
    return {
        "name": f"{kind.__module__}.{kind.__qualname__}",
        "code": None if own else _code_digest(kind.__module__),
        **asdict(view),
    }


def _code_digest(module: str | None) -> str | None:
    """sha256 of the file that a module's code stands in."""
    found = None if module is None else importlib.util.find_spec(module)
    if found is None or found.origin is None or not Path(found.origin).is_file():
        return None
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
