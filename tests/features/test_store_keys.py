"""Change one thing that can move a feature and nothing is reused; change another and all is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from storing import ONE, VIEW, Noise, extract, model, source

from harness.backbone.layout import TokenLayout
from harness.backbone.position import PositionRule
from harness.data.views import CentreCrop, WholePicture
from harness.features import keys
from harness.features.keys import (
    Key,
    RunningModel,
    Source,
    can_be_keyed,
    cutoff_key,
    feature_key,
    told,
)
from harness.features.outliers import OutlierRule
from harness.features.select import TOKENS, Selector
from harness.features.store import Rows, Store

RULE = OutlierRule("mean+sd", 3.0)
GOLDEN = Path(__file__).parent / "golden" / "features.json"
OUTLIER = Selector("outlier", 3, True, RULE, draw=1, seed=2)
PICTURES = Noise(3)


@dataclass(frozen=True)
class Ingredients:
    """All that a key is made of."""

    model: RunningModel
    source: Source
    selector: Selector = OUTLIER
    cutoff: float | None = 5.0
    shard: int = 4

    def key(self) -> Key:
        return feature_key(self.model, self.source, self.shard, self.selector, self.cutoff)


@dataclass(frozen=True)
class Jittered(CentreCrop):
    """A view that draws, and says nothing of it."""

    crops_per_picture: ClassVar[int] = 1
    seeded: ClassVar[bool] = True


def ingredients() -> Ingredients:
    return Ingredients(model(), source(PICTURES))


def entry(**facts: Any) -> Callable[[Ingredients], Ingredients]:
    def change(one: Ingredients) -> Ingredients:
        other = one.model.entry.model_copy(update=facts)
        return replace(one, model=replace(one.model, entry=other))

    return change


def architecture(**facts: Any) -> Callable[[Ingredients], Ingredients]:
    def change(one: Ingredients) -> Ingredients:
        other = replace(one.model.architecture, **facts)
        return replace(one, model=replace(one.model, architecture=other))

    return change


def running(**facts: Any) -> Callable[[Ingredients], Ingredients]:
    return lambda one: replace(one, model=replace(one.model, **facts))


def seen(**facts: Any) -> Callable[[Ingredients], Ingredients]:
    return lambda one: replace(one, source=replace(one.source, **facts))


def selected(**facts: Any) -> Callable[[Ingredients], Ingredients]:
    return lambda one: replace(one, selector=replace(one.selector, **facts))


MOVES: dict[str, Callable[[Ingredients], Ingredients]] = {
    "weights": running(weights_digest="f" * 64),
    "intervention": entry(drop_registers=True),
    "device": running(device="cuda"),
    "compiled": running(compiled=True),
    "timm name (an activation, say)": entry(timm="vit_small_patch14_reg4_dinov2.other"),
    "arguments": entry(arguments={"img_size": 98}),
    "factory": entry(timm=None, factory="package:function"),
    "position rule": architecture(position=PositionRule(False, 0.1)),
    "mean": architecture(mean=(0.5, 0.5, 0.5)),
    "standard deviation": architecture(std=(0.5, 0.5, 0.5)),
    "interpolation": architecture(interpolation="bilinear"),
    "global feature": architecture(global_feature="mean of patches"),
    "layout": architecture(layout=TokenLayout(1, 4, "suffix")),
    "heads": architecture(heads=6),
    "data set": seen(fingerprint="0" * 64),
    "resize": seen(view=replace(VIEW, resize=31)),
    "crop": seen(view=replace(VIEW, crop=14)),
    "interpolation of the view": seen(view=replace(VIEW, interpolation="bilinear")),
    "kind of view": seen(view=WholePicture(14, 100)),
    "precision": seen(precision="bf16"),
    "seed of a view that draws": seen(view=Jittered(30, 28), seed=1),
    "token": selected(token="normal"),
    "layer": selected(layer=2),
    "final norm": selected(norm=False),
    "draw": selected(draw=2),
    "half precision": selected(half=True),
    "facet": selected(facet="value-path"),
    "seed of the draw": selected(seed=3),
    "cut-off": lambda one: replace(one, cutoff=5.0000001),
    "pictures run together": lambda one: replace(one, shard=5),
}

STAYS: dict[str, Callable[[Ingredients], Ingredients]] = {
    "name of the model": entry(name="another"),
    "licence and note": entry(license="MIT", note="good"),
    "baseline": entry(baseline="tiny"),
    "folder of the checkpoint": entry(checkpoint=Path("/elsewhere/other.safetensors")),
    "where the weights are from": running(weights_from="random 3"),
    "name of the data set": seen(name="other", split="val"),
    "seed of a view that does not draw": seen(seed=7),
    "fp16, which is fp32 on a CPU": seen(precision="fp16"),
    "rule that comes to the same cut-off": selected(rule=OutlierRule("norm", 5.0)),
}


def holds(store: Store, one: Ingredients) -> bool:
    return store.feature(one.key(), 3).read(0) is not None


def filled(folder: Path, one: Ingredients) -> Store:
    """A store that has the key of ``one``."""
    store = Store(folder, one.shard)
    rows = Rows(torch.ones(3, 2), torch.ones(3, dtype=torch.bool), torch.zeros(3, 12).int(), {})
    store.feature(one.key(), 3).write(0, rows)
    assert holds(store, one)
    return store


@pytest.mark.parametrize("ingredient", MOVES)
def test_changed_and_nothing_is_reused(ingredient: str, tmp_path: Path) -> None:
    one = ingredients()
    if "view that draws" in ingredient:
        one = seen(view=Jittered(30, 28))(one)
    changed = MOVES[ingredient](one)
    assert changed != one
    assert not holds(filled(tmp_path, one), changed)


@pytest.mark.parametrize("ingredient", STAYS)
def test_changed_and_all_is_reused(ingredient: str, tmp_path: Path) -> None:
    one = ingredients()
    changed = STAYS[ingredient](one)
    assert changed != one
    assert holds(filled(tmp_path, one), changed)


def test_features_move_only_with_the_feature_version() -> None:
    """Whoever changes what a selector gives must change ``FEATURE_VERSION`` too, or old features
    would be taken for new ones. ``HARNESS_WRITE_GOLDEN=1`` writes these anew."""
    rule = OutlierRule("norm", 8.0)
    selectors = [
        Selector(token, layer, norm, rule if token in {"outlier", "normal"} else None)
        for token in TOKENS
        for layer, norm in ((3, True), (1, False))
    ]
    found, _ = extract(None, PICTURES, selectors, cutoffs={rule: rule.value})
    values = {
        f"{told(selector)} of {identity}": vector[:4].tolist()
        for selector, rows in found.items()
        for identity, vector in rows.items()
    }
    if os.environ.get("HARNESS_WRITE_GOLDEN"):
        text = {"version": keys.FEATURE_VERSION, "values": values}
        GOLDEN.write_text(json.dumps(text, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == keys.FEATURE_VERSION, "write the golden features anew"
    assert values.keys() == golden["values"].keys()
    for name, expected in golden["values"].items():
        assert values[name] == pytest.approx(expected, abs=2e-4), name


def test_a_new_feature_version_reuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, ingredients())
    monkeypatch.setattr(keys, "FEATURE_VERSION", keys.FEATURE_VERSION + 1)
    assert not holds(store, ingredients())


@pytest.mark.parametrize("library", ["torch", "torchvision", "timm", "pillow"])
def test_another_version_of_a_library_reuses_nothing(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, ingredients())
    other = {**keys.versions(), library: "99"}
    monkeypatch.setattr(keys, "versions", lambda: other)
    assert not holds(store, ingredients())


def test_a_factorys_changed_code_reuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    monkeypatch.syspath_prepend(code)
    (code / "strange_factory.py").write_text("def build(): return 1")
    one = entry(timm=None, factory="strange_factory:build")(ingredients())
    store = filled(tmp_path / "store", one)
    (code / "strange_factory.py").write_text("def build(): return 2")
    assert not holds(store, one)


def test_other_pictures_other_weights_or_another_view_are_run(tmp_path: Path) -> None:
    store = Store(tmp_path, 4)
    extract(store, PICTURES)
    assert extract(store, PICTURES)[1].forward_passes == 0
    assert extract(store, Noise(2))[1].forward_passes == 2
    assert extract(store, PICTURES, [replace(ONE[0], layer=1)])[1].forward_passes == 3


def test_a_selector_that_draws_nothing_has_no_seed() -> None:
    one = replace(ingredients(), selector=Selector("global", 3), cutoff=None)
    assert one.key().digest == selected(seed=9, draw=9)(one).key().digest


def test_a_rule_without_its_cutoff_has_no_key() -> None:
    with pytest.raises(ValueError, match="resolved cut-off"):
        replace(ingredients(), cutoff=None).key()


def test_a_cutoff_is_of_its_rule_its_layer_and_all_that_moves_norms() -> None:
    one = ingredients()

    def digest(layer: int = 3, rule: OutlierRule = RULE, of: Ingredients = one) -> str:
        return cutoff_key(of.model, of.source, layer, rule).digest

    others = [
        digest(2),
        digest(rule=OutlierRule("mean+sd", 2.0)),
        digest(of=MOVES["weights"](one)),
        digest(of=MOVES["resize"](one)),
        digest(of=MOVES["data set"](one)),
    ]
    assert len({digest(), *others}) == 6


@dataclass(frozen=True)
class Opaque:
    what: object
    crops_per_picture: ClassVar[int] = 1

    def __call__(self, *_: Any) -> list[Any]:
        return []


@dataclass(frozen=True)
class Two(Opaque):
    crops_per_picture: ClassVar[int] = 2


def test_features_of_a_view_that_cannot_be_told_are_not_stored() -> None:
    assert can_be_keyed(VIEW) and can_be_keyed(Opaque("text"))
    assert not can_be_keyed(Opaque(object()))
    assert not can_be_keyed(Two("text"))
