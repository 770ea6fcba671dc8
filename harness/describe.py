"""What can be told of a model without running it, and of a task."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.backbone.sources import architecture, locate_weights, unloaded
from harness.registry import ModelEntry
from harness.task import Protocol, Task


def gigaflops(entry: ModelEntry) -> float:
    """10^9 floating-point operations (a multiply-add is two) of one picture at the default size.

    Counted over the operators of the forward pass on torch's meta device; no arithmetic is done.
    """
    module: Any = unloaded(entry)
    height, width = architecture(entry).default_size
    picture = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.forward_features(picture)
    return float(counter.get_total_flops()) / 1e9


def describe_model(entry: ModelEntry) -> dict[str, Any]:
    """The facts of a registry entry, JSON-able, in the order in which a person wants them."""
    facts = architecture(entry)
    layout, rule, location = facts.layout, facts.position, locate_weights(entry)
    height, width = facts.default_size
    order = ["class"] * layout.classes
    registers, patches = [f"{layout.registers} registers"] * bool(layout.registers), ["patches"]
    prefix = layout.register_position == "prefix"
    order += registers + patches if prefix else patches + registers
    return {
        "name": entry.name,
        "source": entry.timm or entry.factory,
        "arguments": entry.arguments,
        "layout": order,
        "registers": layout.registers,
        "interventions": entry.interventions,
        "baseline": entry.baseline,
        "patch": facts.patch,
        "width": facts.width,
        "depth": facts.depth,
        "heads": facts.heads,
        "parameters": facts.parameters,
        "default_size": [height, width],
        "gigaflops": round(gigaflops(entry), 2),
        "global_feature": facts.global_feature,
        "text_tower": None if entry.text is None else entry.text.name,
        "position_embedding": None
        if rule is None
        else {
            "antialias": rule.antialias,
            "offset": rule.offset,
            "stored": list(facts.stored_grid),
        },
        "input": {
            "mean": list(facts.mean),
            "std": list(facts.std),
            "interpolation": facts.interpolation,
        },
        "weights": location.source,
        "cached": None if location.cached is None else str(location.cached),
        "license": entry.license,
        "paper": entry.paper,
        "note": entry.note,
    }


def describe_protocol(protocol: Protocol) -> dict[str, Any]:
    return {"hash": protocol.hash(), **protocol.settings()}


def describe_task(task: Task[Any]) -> dict[str, Any]:
    return {
        "name": task.name,
        "summary": task.summary,
        "default_datasets": list(task.default_datasets),
        "protocols": {name: describe_protocol(p) for name, p in task.protocols.items()},
    }
