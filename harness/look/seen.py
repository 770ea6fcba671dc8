"""What one backbone makes of one picture, as maps over its patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.backbone.arithmetic import exact_float32
from harness.backbone.vit import Backbone, Layer, Read
from harness.data.dataset import Target
from harness.data.views import WholePicture
from harness.discovery import Discovered
from harness.errors import HarnessError
from harness.features.extract import normalise, out_of_memory
from harness.layers import LayerRule, resolve_layers
from harness.look.colours import as_colours
from harness.task import NotApplicable
from harness.task_names import find_task

_MOST_PATCHES = 65_535


class Map(NamedTuple):
    """``values [rows, columns]`` of patches, and what they are of."""

    title: str
    values: NDArray[np.float32]


class Seen(NamedTuple):
    """What a backbone makes of a picture; ``patch`` in pixels, maps ``[rows, columns]``.

    ``norms`` are of patch tokens before the final norm. ``attention`` has the class token's and
    then every register's in the last layer, the mean of its heads, in even shares: 1 is one over
    the number of patches. None stands for a class token that the model has not; ``absent`` says why
    there is no attention at all. ``colours [rows, columns, 3]`` are the first three principal
    components, as RGB.
    """

    model: str
    told: str
    patch: int
    norms: list[Map]
    attention: list[Map | None]
    absent: str | None
    colours: NDArray[np.uint8]
    discovered: Discovered
    patch_norms: NDArray[np.float32]
    """After the last layer, before the final norm; so are the next two."""
    class_norm: float | None
    register_norms: list[float]


def layers_of(rule: str, backbone: Backbone) -> tuple[Layer, ...]:
    """``quarters`` (the embedding, and the layers that end each quarter of the depth; all of fewer
    than four), ``all``, or a list such as ``embedding,5,-1``. Raises ``HarnessError``."""
    depth = backbone.architecture.depth
    if rule in {"quarters", "all"}:
        layers: LayerRule = "quarters" if rule == "quarters" and depth >= 4 else "all"
        return ("embedding", *resolve_layers(layers, depth))
    named: list[Layer] = []
    for text in (part.strip() for part in rule.split(",")):
        try:
            named.append("embedding" if text == "embedding" else int(text))
        except ValueError:
            raise HarnessError(
                f"--layers {rule}: {text!r} is no layer; quarters, all, or a list such as "
                "embedding,5,-1"
            ) from None
    try:
        return tuple(dict.fromkeys(resolve_layers(tuple(named), depth)))
    except NotApplicable as reason:
        raise HarnessError(f"--layers {rule}: {reason} ({backbone.name})") from None


def see(backbone: Backbone, picture: NDArray[np.uint8], layers: Sequence[Layer]) -> Seen:
    """``picture [H, W, 3]`` at its size, zeros right and below to whole patches (LOST's view).

    Raises ``HarnessError`` for tokens that are not finite and where memory is not enough.
    """
    try:
        return _see(backbone, picture, layers)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        height, width = picture.shape[:2]
        raise HarnessError(
            f"model {backbone.name!r}: out of memory on {backbone.device} at {width}x{height} "
            "pixels; a smaller --longest or another --device may help"
        ) from None


def _see(backbone: Backbone, picture: NDArray[np.uint8], layers: Sequence[Layer]) -> Seen:
    facts = backbone.architecture
    last, layout = facts.depth - 1, facts.layout
    height, width = picture.shape[:2]
    count = -(-height // facts.patch) * -(-width // facts.patch)
    if count > _MOST_PATCHES:
        raise HarnessError(
            f"model {backbone.name!r}: {width}x{height} pixels are {count:,} patches of "
            f"{facts.patch}, more than {_MOST_PATCHES:,}; a smaller --longest is needed"
        )
    (crop,) = WholePicture(facts.patch, _MOST_PATCHES)(picture, Target(), 0, 0)
    absent = None
    if not layout.extra:
        absent = "neither a class token nor registers that could attend"
    elif not facts.attends:
        absent = "its attention is not one softmax a head, so it has no rows"
    final, keys, ending = Read(last, "token", True), Read(last, "key"), Read(last)
    shown = {layer: Read(layer) for layer in layers}
    forward = backbone(
        normalise(backbone, [crop]),
        {final, keys, ending, *shown.values()},
        () if absent else (last,),
    )
    tokens = forward.tokens
    norms = [
        Map(_title(layer, last), _norms(tokens[read].patches[0])) for layer, read in shown.items()
    ]
    patches = tokens[final].patches[0]
    if not all(np.isfinite(each.values).all() for each in norms) or not patches.isfinite().all():
        raise HarnessError(f"model {backbone.name!r}: its tokens are not finite (broken weights?)")
    rows, columns = patches.shape[:2]
    attention: list[Map | None] = []
    if absent is None:
        shares = forward.attention[last][0].float().mean(0).cpu().numpy() * (rows * columns)
        if not layout.classes:
            attention.append(None)
        titles = ["class token"] * layout.classes
        titles += [f"register {number}" for number in range(layout.registers)]
        attention += [Map(*each) for each in zip(titles, shares, strict=True)]
    task: Any = find_task("lost")
    with exact_float32():
        discovered = task.look(tokens[keys].patches[0], facts.patch, (width, height))
    end = tokens[ending]
    registers = f"{layout.registers or 'no'} register{'' if layout.registers == 1 else 's'}"
    return Seen(
        model=backbone.name,
        told=f"patch {facts.patch}, {facts.depth} layers, {columns} × {rows} patches, "
        f"{'a' if layout.classes else 'no'} class token, {registers}",
        patch=facts.patch,
        norms=norms,
        attention=attention,
        absent=absent,
        colours=as_colours(patches.double().cpu().numpy()),
        discovered=discovered,
        patch_norms=_norms(end.patches[0]),
        class_norm=None if end.cls is None else float(end.cls.float().norm()),
        register_norms=end.registers[0].float().norm(dim=-1).tolist(),
    )


def _norms(patches: torch.Tensor) -> NDArray[np.float32]:
    norms: NDArray[np.float32] = torch.linalg.vector_norm(patches.float(), dim=-1).cpu().numpy()
    return norms


def _title(layer: Layer, last: int) -> str:
    if layer == "embedding":
        return "patch embedding"
    return f"layer {layer}, the last" if layer == last else f"layer {layer}"
