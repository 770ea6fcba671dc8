"""``harness look``: read the pictures, look through the models, write the pages, print."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.atomic import explained, locked, replace, sweep
from harness.errors import HarnessError
from harness.options import Options
from harness.printable import json_text

if TYPE_CHECKING:
    from harness.backbone.vit import Backbone
    from harness.look.given import Given
    from harness.look.seen import Seen
    from harness.progress import Progress


def look(options: argparse.Namespace, models: Sequence[str], files: Mapping[str, Any]) -> None:
    """Do what was typed and print what came of it. ``files`` are the fields of ``Options`` that
    name registries and data sets. Raises ``HarnessError``; what was written before stays."""
    if options.anatomy:
        if options.pictures or models or options.dataset:
            raise HarnessError("harness look --anatomy: draws records, without pictures or models")
        from harness.look.anatomy_figures import figures

        written = figures(options.anatomy)
        _write(options.out, written)
        _tell(options, [{"file": str(options.out / name)} for name in written])
        return
    if not models:
        raise HarnessError("harness look: name a --model, or records with --anatomy")
    if not options.pictures and not options.dataset:
        raise HarnessError("harness look: name a PICTURE, a folder of them, or a --dataset")
    if options.longest < 1:
        raise HarnessError(f"--longest {options.longest}: at least 1")
    wanted = Options(
        tasks=["look"],
        models=models,
        limit=options.limit,
        weights=options.weights,
        device=options.device,
        **files,
    )
    from harness.progress import Silent, for_stream, remember_interrupts

    remember_interrupts()
    with Silent() if options.json else for_stream() as progress:
        facts = _look(options, wanted, progress)
    _tell(options, facts)


def _look(options: argparse.Namespace, wanted: Options, progress: Progress) -> list[dict[str, Any]]:
    from harness.backbone.sources import load_backbone
    from harness.look.given import file_names
    from harness.look.html import page
    from harness.look.seen import layers_of
    from harness.registry import Registry

    registry = Registry.load(wanted.model_files, wanted.allow_code)
    entries = [registry.entry(name) for name in wanted.models]
    pictures = _pictures(options, wanted)
    _write(options.out, {})  # before anything is computed: can it be?
    backbones = [
        load_backbone(entry, wanted.device, wanted.weights, wanted.seed, registry=registry)
        for entry in entries
    ]
    layers = [layers_of(options.layers, backbone) for backbone in backbones]
    names = ", ".join(wanted.models)
    progress.start(f"look: {names}", len(pictures))
    facts: list[dict[str, Any]] = []
    shown = []
    for picture, file_name in zip(pictures, file_names(pictures), strict=True):
        fact, png = _one(picture, backbones, layers, options.longest)
        path = options.out / file_name
        _write(options.out, {file_name: png})
        facts.append({"picture": picture.name, "file": str(path), **fact})
        if options.html:
            shown.append((facts[-1], png))
        progress.advance(1)
    if options.html:
        _write(options.out, {"look.html": page(names, shown).encode()})
        progress.note(f"{options.out / 'look.html'}: all of them on one page")
    return facts


def _pictures(options: argparse.Namespace, wanted: Options) -> list[Given]:
    from harness.look.given import from_dataset, from_paths

    if options.dataset:
        from harness.data.catalog import Catalog

        roles = Catalog.load(wanted.dataset_files, wanted.data_root).open(options.dataset)
        found = from_dataset(options.dataset, roles, options.pictures)
    else:
        found = from_paths(options.pictures)
    return found[: wanted.limit]


def _one(
    picture: Given, backbones: Sequence[Backbone], layers: Sequence[Any], longest: int
) -> tuple[dict[str, Any], bytes]:
    """What is to be told of one picture, and its page."""
    from harness.look.given import fitted
    from harness.look.page import draw
    from harness.look.seen import see

    whole = picture.read()
    pixels = fitted(whole, longest)
    seen = [see(each, pixels, own) for each, own in zip(backbones, layers, strict=True)]
    (height, width), (full, across) = pixels.shape[:2], whole.shape[:2]
    size = f"{width} × {height} pixels"
    if pixels is not whole:
        size += f", reduced from {across} × {full}"
    png = draw(pixels, [picture.name, size], seen)
    return {"size": [width, height], "models": [_facts(each) for each in seen]}, png


def _facts(seen: Seen) -> dict[str, Any]:
    found = seen.discovered
    columns = found.mask.shape[1]
    return {
        "model": seen.model,
        "grid": list(found.mask.shape),
        "layers": [
            {
                "title": each.title,
                "median": float(np.median(each.values)),
                "largest": float(each.values.max()),
            }
            for each in seen.norms
        ],
        "patch_norm": {
            "median": float(np.median(seen.patch_norms)),
            "largest": float(seen.patch_norms.max()),
        },
        "class_norm": seen.class_norm,
        "register_norms": seen.register_norms,
        "no_attention": seen.absent,
        "lost": {
            "seed": list(divmod(found.seed, columns)),
            "tied": found.tied,
            "box": list(found.box),
        },
    }


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            sweep(out)
            replace({out / name: data for name, data in files.items()})


def _tell(options: argparse.Namespace, facts: Sequence[Mapping[str, Any]]) -> None:
    if options.json:
        print(json_text(facts))
        return
    from harness.console import standard_output

    console = standard_output()
    for each in facts:
        console.print(str(each["file"]), markup=False, soft_wrap=True)
