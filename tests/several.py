"""Pictures that show several classes: squares of colour on grey, in VOC's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 56
SIDE = 20
COLOURS = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30)}
_OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x}</xmin>"
    "<ymin>{y}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
)


def squares(folder: Path, train: int = 40, test: int = 24) -> Path:
    """A data-set file with ``squares`` in ``folder``: each colour is in about a third of the
    pictures, and of one in eight squares hardly anything is seen: it is difficult."""
    root = folder / "squares"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("trainval", train), ("test", test)):
        names = [f"{split}{place}" for place in range(count)]
        for name in names:
            pixels = generator.integers(96, 160, (SIZE, SIZE, 3))
            objects = ""
            for colour, rgb in COLOURS.items():
                if generator.random() > 0.4:
                    continue
                x, y = (int(each) for each in generator.integers(0, SIZE - SIDE, 2))
                difficult = generator.random() < 1 / 8
                seen = pixels[y : y + SIDE, x : x + SIDE]
                seen[:] = 0.95 * seen + 0.05 * np.array(rgb) if difficult else rgb
                box = {"x": x + 1, "y": y + 1, "right": x + SIDE, "bottom": y + SIDE}
                objects += _OBJECT.format(name=colour, difficult=int(difficult), **box)
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"JPEGImages/{name}.png")
            size = f"<size><width>{SIZE}</width><height>{SIZE}</height></size>"
            annotation = f"<annotation>{size}{objects}</annotation>"
            (root / f"Annotations/{name}.xml").write_text(annotation)
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
    file = folder / "squares.yaml"
    entry = "format: voc, root: squares, splits: {train: trainval, test: test}, labels: true"
    file.write_text(f"squares: {{{entry}}}\n")
    return file
