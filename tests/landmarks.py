"""A small retrieval data set, painted: queries that show what pictures of the gallery show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.nano.scenes import ScenesDataset

SIZE = 56
MARGIN = 20


def paint(folder: Path, gallery: int = 24, queries: int = 4) -> Path:
    """A data-set file with ``landmarks`` in ``folder``. Query ``i`` is picture ``i`` of the gallery
    within a margin of noise, and its box is that picture to the pixel: the easy answer. Pictures
    of the same class are hard answers, or junk."""
    root = folder / "landmarks"
    (root / "jpg").mkdir(parents=True)
    scenes = ScenesDataset("scenes", "test", gallery, (SIZE, SIZE))
    labels = [sample.target.label for sample in scenes.samples]
    generator = np.random.default_rng(0)
    gnd = []
    # Queries of which another picture is, so that none lacks hard answers.
    asked = [place for place in range(gallery) if labels.count(labels[place]) > 1][:queries]
    for place in range(gallery):
        pixels = scenes.picture(place)
        Image.fromarray(pixels).save(root / "jpg" / f"scene{place}.png")
        if place in asked:
            side = SIZE + 2 * MARGIN
            noise = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            noise[MARGIN:-MARGIN, MARGIN:-MARGIN] = pixels
            Image.fromarray(noise).save(root / "jpg" / f"query{place}.png")
    for place in asked:
        alike = [o for o in range(gallery) if labels[o] == labels[place] and o != place]
        gnd.append(answers([place], alike[:1], alike[1:2]))
    annotations = {
        "imlist": [f"scene{place}.png" for place in range(gallery)],
        "qimlist": [f"query{place}.png" for place in asked],
        "gnd": gnd,
    }
    (root / "gnd.json").write_text(json.dumps(annotations))
    file = folder / "landmarks.yaml"
    file.write_text("landmarks: {format: revisited, root: landmarks, annotations: gnd.json}\n")
    return file


def answers(easy: list[int], hard: list[int], junk: list[int]) -> dict[str, Any]:
    """One entry of ``gnd``, whose box is the middle of a query."""
    box = [MARGIN, MARGIN, MARGIN + SIZE, MARGIN + SIZE]
    return {"bbx": box, "easy": easy, "hard": hard, "junk": junk}
