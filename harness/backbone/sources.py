"""A registry entry -> a loaded backbone: timm by name, a Python factory, a local checkpoint."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from harness.backbone import checkpoint_files
from harness.backbone.architecture import Architecture, architecture_of
from harness.backbone.interventions import Intervention, resolve
from harness.backbone.position import PositionRule
from harness.backbone.vit import Backbone
from harness.backbone.weights import Signature, digest, load_strictly, read_checkpoint, signature
from harness.errors import HarnessError
from harness.interventions import check_files
from harness.registry import Weights

if TYPE_CHECKING:
    from harness.registry import ModelEntry, Registry

_HUB = "hf-hub:"  # timm's own prefix for a repository of the Hugging Face hub
_RESERVED = {
    "cache_dir",
    "checkpoint_path",
    "dynamic_img_size",
    "features_only",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}


def choose_device(name: str) -> torch.device:
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:n`` -> a device that exists."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise HarnessError(f"--device {name}: one of auto, cpu, cuda, cuda:0 … expected") from None
    if device.type not in {"cpu", "cuda"}:
        raise HarnessError(f"--device {name}: one of auto, cpu, cuda, cuda:0 … expected")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise HarnessError(f"--device {name}: this machine has {count} usable GPUs")
    return device


def architecture(entry: ModelEntry) -> Architecture:
    """The facts of an entry without its weights, its changes counted in: built on torch's meta
    device, in milliseconds."""
    return _changed(entry, _facts(entry, unloaded(entry)))


def inspect(entry: ModelEntry) -> tuple[Architecture, str | None]:
    """The facts of an entry, and the digest of its weights where only building it can tell: for a
    factory that brings its own, which may have changed since the last run. Raises ``HarnessError``
    also for an entry that lacks a file which its changes need."""
    check_files(entry)
    if entry.factory is None or entry.checkpoint is not None:
        return architecture(entry), None
    module = _build(entry, pretrained=False)
    facts, weights = _facts(entry, module), digest(module)
    change = resolve(entry, module, facts.layout)
    return _changed(entry, facts), weights if change is None else change.digest(weights)


def unloaded(entry: ModelEntry) -> nn.Module:
    """The module of an entry on torch's meta device: shapes, no weights, no memory.

    A factory's module is built as it is and then moved there: its code may not know the device.
    """
    if entry.factory is not None:
        return _build(entry, pretrained=False).eval().requires_grad_(False).to("meta")
    with torch.device("meta"):
        return _build(entry, pretrained=False).eval().requires_grad_(False)


def load_backbone(
    entry: ModelEntry,
    device: str = "auto",
    weights: Weights = "released",
    seed: int = 0,
    compiled: bool = False,
    registry: Registry | None = None,
) -> Backbone:
    """Build an entry with its weights, frozen, on ``device``, and change what it says.

    ``released`` means the entry's checkpoint if it names one, else what timm's loader fetches (from
    its cache where it is there). ``random`` draws weights from ``seed``, for smoke runs. With a
    ``registry``, a checkpoint that does not fit is matched against its entries for the error.
    """
    if weights not in get_args(Weights):
        raise HarnessError(f"weights {weights!r}: 'released' or 'random' expected")
    place = choose_device(device)
    check_files(entry)
    if weights == "random" and entry.factory is not None and entry.checkpoint is None:
        raise HarnessError(
            f"model {entry.name!r}: its factory brings its own weights; run it without "
            f"--weights random"
        )
    local = weights == "released" and entry.checkpoint is not None
    released = weights == "released" and not local
    if released and entry.timm is not None:
        architecture(entry)  # says what is wrong with an entry before anything is fetched for it
    # A factory brings its own weights, unless the entry names a file.
    with _local_random_state(seed):
        module = _build(entry, pretrained=released)
    facts = _facts(entry, module)
    if local and entry.checkpoint is not None:
        load_strictly(module, entry.checkpoint, lambda: _fitting(entry, registry))
    change = resolve(entry, module, facts.layout)
    return Backbone(entry.name, module, facts, place, compiled, change)


class _local_random_state:  # noqa: N801 (used as a context manager, like torch.no_grad)
    """Seeded initialisation that leaves the caller's random state as it was."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        # Models are built on the CPU: GPU generators, which manual_seed would reset, are left out.
        self._before = torch.get_rng_state()
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._before)


def _build(entry: ModelEntry, pretrained: bool) -> nn.Module:
    if entry.factory is not None:
        return _from_factory(entry, entry.factory)
    import timm

    name = entry.timm or ""
    on_hub = name.startswith(_HUB)
    if not on_hub and not timm.is_model(name):
        known = timm.list_models() + timm.list_pretrained()
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise HarnessError(f"model {entry.name!r}: timm has no model {name!r}{hint}")
    if reserved := sorted(_RESERVED & entry.arguments.keys()):
        raise HarnessError(
            f"model {entry.name!r}: `arguments` cannot have {', '.join(reserved)}, which the "
            f"harness decides; weights are named by `timm:` or `checkpoint:`"
        )
    if pretrained and not on_hub and not timm.is_model_pretrained(name):
        raise HarnessError(
            f"model {entry.name!r}: timm has no weights for {name!r}; name a `checkpoint:` in the "
            f"entry, or try the machinery with `--weights random`"
        )
    try:
        # num_classes 0: a frozen backbone has no classifier. Sizes change from call to call.
        module: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=0, dynamic_img_size=True, **entry.arguments
        )
    except Exception as error:  # constructors and downloads raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "dynamic_img_size" in reason:
            raise HarnessError(
                f"model {entry.name!r}: {name!r} is not supported: it takes no pictures of other "
                f"sizes; a timm VisionTransformer or Eva was expected"
            ) from None
        if not pretrained and not on_hub:
            raise HarnessError(
                f"model {entry.name!r}: timm cannot build {name!r} with {entry.arguments}: {reason}"
            ) from None
        if "state_dict" in reason:
            raise HarnessError(
                f"model {entry.name!r}: the weights of {name!r} do not fit {entry.arguments}: "
                f"{reason}"
            ) from None
        raise HarnessError(
            f"model {entry.name!r}: the weights of {name!r} are not on this machine and could not "
            f"be fetched ({reason[:200]}). Fetch them where there is a network (`harness describe "
            f"{entry.name}` says where they are kept), or name a file as `checkpoint:` in a "
            f"--models FILE, or try the machinery with `--weights random`"
        ) from None
    return module


def _from_factory(entry: ModelEntry, factory: str) -> nn.Module:
    if entry.code_not_allowed is not None:
        raise HarnessError(
            f"{entry.code_not_allowed}: refused: its factory would import {factory} and run it; if "
            f"you trust that code, `--allow-code` runs it (HARNESS_ALLOW_CODE=1; from Python, "
            f"allow_code=True)"
        )
    module_name, _, function_name = factory.partition(":")
    try:
        function: Any = importlib.import_module(module_name)
        for part in function_name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise HarnessError(
            f"model {entry.name!r}: factory {factory!r} cannot be imported: {error}"
        ) from None
    try:
        module = function(**entry.arguments)
    except Exception as error:  # a stranger's code may raise anything
        raise HarnessError(
            f"model {entry.name!r}: factory {factory!r} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise HarnessError(f"model {entry.name!r}: factory {factory!r} gave no torch module")
    return module


def _facts(entry: ModelEntry, module: nn.Module) -> Architecture:
    rule = entry.position_embedding
    position = None if rule is None else PositionRule(rule.antialias, rule.offset)
    facts = architecture_of(entry.name, module, position, _input_statistics(entry, module))
    if facts.layout.registers != entry.registers:
        raise HarnessError(
            f"model {entry.name!r}: the entry says `registers: {entry.registers}`, the model has "
            f"{facts.layout.registers}"
        )
    return facts


def _changed(entry: ModelEntry, facts: Architecture) -> Architecture:
    added = entry.test_time_registers
    change = Intervention(0 if added is None else added.count, dropped=entry.drop_registers)
    return replace(facts, layout=change.layout(facts.layout))


def _input_statistics(
    entry: ModelEntry, module: nn.Module
) -> tuple[tuple[float, float, float], tuple[float, float, float], str]:
    """Mean, standard deviation and interpolation: the entry's where it says so, else timm's."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(module)
    own = entry.input
    mean = config["mean"] if own is None or own.mean is None else own.mean
    std = config["std"] if own is None or own.std is None else own.std
    named = config["interpolation"] if own is None else own.interpolation
    return _triple(mean), _triple(std), named or config["interpolation"]


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _fitting(entry: ModelEntry, registry: Registry | None) -> str:
    """Which other entries a checkpoint's signature fits, in words."""
    looks = signature(read_checkpoint(entry.checkpoint)) if entry.checkpoint else None
    if looks is None or registry is None or _entry_signature(entry) == looks:
        return ""  # an entry of that shape already: another would not help
    others = [registry.entry(name) for name in registry.names()]
    names = [each.name for each in others if not each.interventions and _fits(each, looks)]
    if not names:
        return "no entry of the registry has this shape"
    return f"it would fit: {', '.join(names)}"


def _fits(entry: ModelEntry, looks: Signature) -> bool:
    """Whether an entry is of this shape. To build all of them takes long, so that the first block
    of one that may be is looked at before the whole."""
    if entry.registers != looks.registers:
        return False
    begun = entry.model_copy(update={"arguments": {**entry.arguments, "depth": 1}})
    if _entry_signature(begun) not in {None, replace(looks, blocks=1)}:
        return False
    return _entry_signature(entry) == looks


def _entry_signature(entry: ModelEntry) -> Signature | None:
    if entry.factory is not None:
        return None  # a factory may load gigabytes; not for an error message
    try:
        module = unloaded(entry)
        _facts(entry, module)
    except HarnessError:
        return None
    return signature(module.state_dict())


@dataclass(frozen=True)
class WeightsLocation:
    """Where an entry's weights come from, and the local file if it is on this machine."""

    source: str
    cached: Path | None


def locate_weights(entry: ModelEntry) -> WeightsLocation:
    """Where the weights are or would be fetched from. Touches no network."""
    if entry.checkpoint is not None:
        whole = checkpoint_files.is_here(entry.checkpoint)
        return WeightsLocation(str(entry.checkpoint), entry.checkpoint if whole else None)
    if entry.factory is not None:
        return WeightsLocation(f"built by {entry.factory}", None)
    import timm

    name = entry.timm or ""
    config = None if name.startswith(_HUB) else timm.get_pretrained_cfg(name)
    hub = name.removeprefix(_HUB) if config is None else config.hf_hub_id
    if hub:
        from huggingface_hub import try_to_load_from_cache

        identity, _, revision = hub.partition("@")
        own = None if config is None else config.hf_hub_filename
        for file in filter(None, (own, "model.safetensors", "pytorch_model.bin")):
            found = try_to_load_from_cache(identity, file, revision=revision or None)
            if isinstance(found, str):
                return WeightsLocation(f"hf-hub:{hub}", Path(found))
        return WeightsLocation(f"hf-hub:{hub}", None)
    url = "" if config is None else config.url or ""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    return WeightsLocation(url or "none", cached if url and cached.is_file() else None)
