"""Small data sets with captions, and with notes on what is shown, painted."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from harness.nano.scenes import ScenesDataset

SIZE = 56


def captioned(folder: Path, pictures: int = 12) -> Path:
    """A data-set file with ``captioned`` in ``folder``: of the pictures one has one caption, one
    has six, and one caption is of 3,000 characters."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = ScenesDataset("scenes", "test", pictures, (SIZE, SIZE))
    lines = []
    for place in range(pictures):
        Image.fromarray(scenes.picture(place)).save(folder / f"scene{place:02d}.png")
        said = [f"picture {place}, said {n} times" for n in range({0: 1, 1: 6}.get(place, 5))]
        if place == 2:
            said[1] = "дом " * 750
        lines.append(json.dumps({"image": f"scene{place:02d}.png", "captions": said}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    file = folder / "captioned.yaml"
    file.write_text("captioned: {format: captions, file: captions.jsonl}\n")
    return file


def notes(folder: Path, pictures: int = 12) -> Path:
    """A data-set file with ``notes`` in ``folder``: each is said to show one scene, and that a word
    for the next one stands on it."""
    root = folder / "photographs"
    root.mkdir(parents=True)
    scenes = ScenesDataset("scenes", "test", pictures, (SIZE, SIZE))
    names = scenes.classes
    for place in range(pictures):
        shown, written = names[place], names[(place + 1) % len(names)]
        Image.fromarray(scenes.picture(place)).save(root / f"label={shown}_text={written}.png")
    file = folder / "notes.yaml"
    file.write_text("notes: {format: written, root: photographs}\n")
    return file
