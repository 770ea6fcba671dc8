"""One row for each bad input: what a user meets is one clear message, exit status 2, no traceback,
and nothing lost. Good but odd input stands here too, with exit status 0."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import REFERENCE, entry, models_file

from harness.cli import main
from harness.records import find, read_columns

OBJECT = (
    "<object><name>thing</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>{x}</xmax><ymax>{y}</ymax>"
    "</bndbox></object>"
)
SIZE = "<size><width>{x}</width><height>{y}</height><depth>3</depth></size>"


@dataclass
class World:
    """A small VOC-like data set, the tiny models, and a results folder: all fine until spoilt."""

    root: Path
    model: str = "tiny"
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.voc = self.root / "VOC2007"
        self.out = self.root / "out"
        self.models = models_file(self.root)
        self.datasets = self.root / "data.yaml"
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (self.voc / folder).mkdir(parents=True)
        self.ids: list[str] = []
        for name in ("good1", "good2"):
            self.add(name)
        self.datasets.write_text("odd: {format: voc, root: VOC2007, split: trainval}\n")

    def picture(self, name: str) -> Path:
        return self.voc / "JPEGImages" / f"{name}.jpg"

    def annotation(self, name: str) -> Path:
        return self.voc / "Annotations" / f"{name}.xml"

    def add(self, name: str, size: tuple[int, int] = (60, 44), mode: str = "RGB") -> None:
        """A picture of noise with one object."""
        bands = {"RGB": (3,), "CMYK": (4,), "L": ()}[mode]
        noise = np.random.default_rng(len(self.ids))
        pixels = noise.integers(0, 256, (size[1], size[0], *bands), np.uint8)
        Image.fromarray(pixels, mode).save(self.picture(name), quality=90)
        x, y = size
        text = SIZE.format(x=x, y=y) + OBJECT.format(x=max(2, x - 1), y=max(2, y - 1))
        if min(size) < 2:
            text = text.replace("min>2<", "min>1<").replace("max>2<", "max>1<")
        self.annotation(name).write_text(f"<annotation>{text}</annotation>")
        self.list(name)

    def list(self, name: str) -> None:
        self.ids.append(name)
        (self.voc / "ImageSets/Main/trainval.txt").write_text("\n".join(self.ids) + "\n")

    def command(self, *more: str) -> list[str]:
        return [
            "run",
            "--task",
            "lost",
            "--model",
            self.model,
            "--dataset",
            "odd",
            "--models",
            str(self.models),
            "--datasets",
            str(self.datasets),
            "--out",
            str(self.out),
            "--workers",
            "0",
            "--device",
            "cpu",
            *self.extra,
            *more,
        ]


def truncated_jpeg(world: World) -> None:
    world.add("cut")
    data = world.picture("cut").read_bytes()
    world.picture("cut").write_bytes(data[: len(data) // 2])


def text_named_jpg(world: World) -> None:
    world.add("prose")
    world.picture("prose").write_text("This is not a picture.")


def huge_picture(world: World) -> None:
    world.add("huge", (6000, 4000))


def missing_picture(world: World) -> None:
    world.add("gone")
    world.picture("gone").unlink()


def missing_annotation(world: World) -> None:
    world.add("bare")
    world.annotation("bare").unlink()


def box_outside(world: World) -> None:
    world.add("far")
    text = world.annotation("far").read_text()
    text = text.replace("min>2<", "min>500<").replace("xmax>59", "xmax>600")
    world.annotation("far").write_text(text.replace("ymax>43", "ymax>600"))


def entity_bomb(world: World) -> None:
    world.add("bomb")
    entities = '<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    text = f"<!DOCTYPE x [{entities}]><annotation><filename>&i;</filename></annotation>"
    world.annotation("bomb").write_text(text)


def half_an_annotation(world: World) -> None:
    world.add("half")
    text = world.annotation("half").read_text()
    world.annotation("half").write_text(text[: len(text) // 2])


def path_outside(world: World) -> None:
    world.list("../../secret")


def duplicate_ids(world: World) -> None:
    world.list("good1")


def missing_folder(world: World) -> None:
    shutil.rmtree(world.voc)


def wrong_model(world: World) -> None:
    world.model = "tiny-reg"


def wrong_task(world: World) -> None:
    world.extra = ("--task", "lots")


def wrong_protocol(world: World) -> None:
    world.extra = ("--protocol", "lost-sweep")


def wrong_setting(world: World) -> None:
    world.extra = ("--set", "facets=key")


def impossible_setting(world: World) -> None:
    world.extra = ("--set", "facet=output")


def reg4_weights_without_registers(world: World) -> None:
    file = REFERENCE / "dinov2_tiny_reg4.safetensors"
    world.models.write_text(entry("tiny", 0, file) + entry("tiny-reg4", 4))


def weights_without_registers_for_reg4(world: World) -> None:
    file = REFERENCE / "dinov2_tiny_reg0.safetensors"
    world.models.write_text(entry("tiny-reg4", 4, file) + entry("plain", 0))
    world.model = "tiny-reg4"


def registers_that_are_not_there(world: World) -> None:
    world.models.write_text(entry("tiny", 0).replace("registers: 0", "registers: 4"))


class Explosive:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {os.environ['SENTINEL']}",)


def pickle_bomb(world: World) -> None:
    file = world.root / "weights.pth"
    os.environ["SENTINEL"] = str(world.root / "it-ran")
    file.write_bytes(pickle.dumps({"state_dict": Explosive()}))
    world.models.write_text(entry("tiny", 0, file))


def pickle_bomb_in_torchs_zip(world: World) -> None:
    file = world.root / "weights.pth"
    os.environ["SENTINEL"] = str(world.root / "it-ran")
    torch.save({"state_dict": Explosive()}, file)
    world.models.write_text(entry("tiny", 0, file))


def truncated_weights(world: World) -> None:
    file = world.root / "weights.safetensors"
    file.write_bytes((REFERENCE / "dinov2_tiny_reg0.safetensors").read_bytes()[:5000])
    world.models.write_text(entry("tiny", 0, file))


def missing_weights(world: World) -> None:
    world.models.write_text(entry("tiny", 0, world.root / "nowhere.pth"))


def yaml_bomb(world: World) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    world.models.write_text("\n".join(lines) + "\n")


def yaml_with_a_key_twice(world: World) -> None:
    world.models.write_text(entry("tiny", 0) + entry("tiny", 4))


def yaml_with_an_unknown_key(world: World) -> None:
    world.models.write_text(entry("tiny", 0) + "  registerz: 4\n")


def a_file_where_results_should_go(world: World) -> None:
    world.out.write_text("not a folder")


def nothing_but_pictures_without_boxes(world: World) -> None:
    for name in world.ids:
        world.annotation(name).write_text(f"<annotation>{SIZE.format(x=60, y=44)}</annotation>")


def grey_picture(world: World) -> None:
    world.add("grey", mode="L")


def cmyk_picture(world: World) -> None:
    world.add("cmyk", mode="CMYK")


def one_pixel(world: World) -> None:
    world.add("dot", (1, 1))


def turned_by_exif(world: World) -> None:
    world.add("turned", (80, 30))
    with Image.open(world.picture("turned")) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # orientation: turn by 90 degrees
        image.save(world.picture("turned"), exif=exif)


def annotation_without_size(world: World) -> None:
    world.add("sizeless")
    text = world.annotation("sizeless").read_text()
    world.annotation("sizeless").write_text(text.replace(SIZE.format(x=60, y=44), ""))


def annotation_without_object(world: World) -> None:
    world.add("empty")
    world.annotation("empty").write_text(f"<annotation>{SIZE.format(x=60, y=44)}</annotation>")


def nothing(world: World) -> None:
    return None


Row = tuple[Callable[[World], None], int, str]
ROWS: list[Row] = [
    (truncated_jpeg, 2, r"cut\.jpg: damaged picture.*--on-bad-image skip"),
    (text_named_jpg, 2, r"prose\.jpg: not a picture"),
    (huge_picture, 2, r"huge.*6000x4000.*max_patches"),
    (missing_picture, 2, r"1 pictures are missing \(gone\).*--on-bad-image skip"),
    (missing_annotation, 2, r"bare\.xml"),
    (box_outside, 2, r"far\.xml.*outside"),
    (entity_bomb, 2, r"bomb\.xml"),
    (half_an_annotation, 2, r"half\.xml"),
    (path_outside, 2, r"trainval\.txt.*\.\./\.\./secret"),
    (duplicate_ids, 2, r"trainval\.txt.*good1.*twice"),
    (missing_folder, 2, r"VOC2007.*harness doctor odd"),
    (wrong_model, 2, r"no model 'tiny-reg': did you mean tiny-reg4"),
    (wrong_task, 2, r"no task 'lots': did you mean lost"),
    (wrong_protocol, 2, r"no protocol 'lost-sweep': did you mean lost-swept"),
    (wrong_setting, 2, r"no setting 'facets': did you mean facet"),
    (impossible_setting, 2, r"facet: .*'key'.*given: 'output'"),
    (
        reg4_weights_without_registers,
        2,
        r"4 blocks, width 48, patch 14, 4 registers.*it would fit: tiny-reg4",
    ),
    (
        weights_without_registers_for_reg4,
        2,
        r"4 blocks, width 48, patch 14, 0 registers.*it would fit: plain",
    ),
    (registers_that_are_not_there, 2, r"registers: 4.*the model has 0"),
    (pickle_bomb, 2, r"weights\.pth: refused"),
    (pickle_bomb_in_torchs_zip, 2, r"weights\.pth: refused"),
    (truncated_weights, 2, r"weights\.safetensors: damaged"),
    (missing_weights, 2, r"nowhere\.pth"),
    (yaml_bomb, 2, r"tiny\.yaml:\d+: .*(alias|anchor)"),
    (yaml_with_a_key_twice, 2, r"tiny\.yaml:\d+: 'tiny' stands twice"),
    (yaml_with_an_unknown_key, 2, r"tiny\.yaml:\d+: .*registerz.*unknown key"),
    (a_file_where_results_should_go, 2, r"out: .*a file stands where a folder is needed"),
    (nothing_but_pictures_without_boxes, 2, r"no picture with a box"),
    (grey_picture, 0, ""),
    (cmyk_picture, 0, ""),
    (one_pixel, 0, ""),
    (turned_by_exif, 0, ""),
    (annotation_without_size, 0, ""),
    (annotation_without_object, 0, ""),
    (nothing, 0, ""),
]


@pytest.mark.parametrize(
    ("spoil", "status", "message"), ROWS, ids=[row[0].__name__ for row in ROWS]
)
def test_bad_input_is_one_clear_message(
    spoil: Callable[[World], None],
    status: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    world = World(tmp_path)
    spoil(world)
    assert main(world.command()) == status
    shown = capsys.readouterr()
    complaints = [line for line in shown.err.split("harness: ")[1:] if line]
    if status:
        assert len(complaints) == 1, shown.err
        assert re.search(message, complaints[0], re.DOTALL), complaints[0]
        assert "Traceback" not in shown.err + shown.out
        assert not list(world.root.glob("out/**/*.json"))
    else:
        assert not complaints, shown.err
    assert not (world.root / "it-ran").exists()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncated_jpeg, "damaged picture"),
        (text_named_jpg, "not a picture"),
        (huge_picture, "max_patches"),
        (missing_picture, "gone.jpg"),
    ],
)
def test_a_bad_picture_can_be_skipped_and_is_named_in_the_record(
    spoil: Callable[[World], None], reason: str, tmp_path: Path
) -> None:
    world = World(tmp_path)
    spoil(world)
    assert main(world.command("--on-bad-image", "skip")) == 0
    ((path, record),) = find(world.out)
    assert [bad.id for bad in record.bad_pictures] == [world.ids[-1]]
    assert reason in record.bad_pictures[0].reason
    assert list(read_columns(path)["image_id"]) == ["good1", "good2"]


def test_boxes_of_a_turned_picture_are_on_its_stored_pixels(tmp_path: Path) -> None:
    """The same pixels with and without an EXIF orientation give the same box."""
    world = World(tmp_path)
    pixels = np.random.default_rng(9).integers(0, 256, (30, 80, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    for name, tags in (("plain", None), ("turned", exif)):
        world.add(name, (80, 30))
        Image.fromarray(pixels).save(world.picture(name), exif=tags or b"")
    assert main(world.command()) == 0
    ((path, _),) = find(world.out)
    table = read_columns(path)
    corners = np.stack([table[corner] for corner in ("x0", "y0", "x1", "y1", "seed")], axis=1)
    rows = {name: corners[table["image_id"] == name].tolist() for name in ("plain", "turned")}
    assert rows["plain"] == rows["turned"] != []


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as handle:
        while True:
            handle.write(b"\0" * 1024)


@pytest.mark.parametrize("when", ["before the run", "during the run"])
def test_a_full_disk_is_an_error_that_leaves_earlier_results_whole(
    when: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from harness import records

    world = World(tmp_path)
    with mounted(world.out, "size=96k"):
        assert main(world.command()) == 0
        ((path, _),) = find(world.out)
        before = path.read_bytes()
        filler = world.out / "filler"
        fill(filler)
        capsys.readouterr()
        if when == "during the run":
            monkeypatch.setattr(records, "check_writable", lambda out: None)
        assert main(world.command("--overwrite")) == 2
        shown = capsys.readouterr().err
        assert "No space left" in shown and "free some space" in shown
        assert ("Not stored: tiny: corloc" in shown) == (when == "during the run")
        assert path.read_bytes() == before
        assert [found for found, _ in find(world.out)] == [path]
        assert not list(world.out.glob("**/.*.tmp"))


def test_a_read_only_results_folder_is_found_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.backbone.vit import Backbone

    world = World(tmp_path)
    monkeypatch.setattr(Backbone, "__call__", lambda *_: pytest.fail("a forward pass was run"))
    with mounted(world.out, "size=96k,ro"):
        assert main(world.command()) == 2
    assert "choose a folder that you may write to" in capsys.readouterr().err
