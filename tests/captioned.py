"""A small data set with captions, painted."""

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
