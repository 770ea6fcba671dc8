from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.cli import main
from harness.look import page


def pictures(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, size in (("tall.png", (30, 50)), ("wide.jpg", (61, 33))):
        pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != ".lock"
    }


def test_every_picture_has_its_page_and_the_same_command_the_same_bytes(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "in")
    before = contents(folder)
    command = ["look", str(folder), "--model", "tiny,tiny-reg4", "--model", "pixels", "--html"]
    command += ["--models", str(tiny_models), "--device", "cpu", "--longest", "40"]
    # Into the folder of the pictures: they stay as they are.
    assert main([*command, "--out", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [Path(each["file"]).name for each in facts] == ["tall.look.png", "wide.look.png"]
    assert [each["size"] for each in facts] == [[24, 40], [40, 22]]
    assert [each["model"] for each in facts[0]["models"]] == ["tiny", "tiny-reg4", "pixels"]
    assert [len(each["register_norms"]) for each in facts[0]["models"]] == [0, 4, 0]
    assert facts[1]["models"][0]["grid"] == [2, 3] and facts[1]["models"][2]["grid"] == [3, 5]
    x0, y0, x1, y1 = facts[1]["models"][0]["lost"]["box"]
    assert 0 <= x0 < x1 <= 40 and 0 <= y0 < y1 <= 22
    after = contents(folder)
    assert after.keys() == before.keys() | {"tall.look.png", "wide.look.png", "look.html"}
    assert {name: after[name] for name in before} == before
    assert main([*command, "--out", str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "again") == {
        name: digest for name, digest in after.items() if name not in before
    }
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "again/tall.look.png")


@pytest.mark.slow
def test_pictures_of_a_data_set_are_named_by_id_and_a_limit_counts_them(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["look", "--dataset", "generated", "--model", "tiny", "--models", str(tiny_models)]
    command += ["--out", str(tmp_path), "--longest", "28", "--json", "--device", "cpu"]
    assert main([*command, "--limit", "2", "--layers=-1"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert [each["title"] for each in first["models"][0]["layers"]] == ["layer 3, the last"]
    assert main([*command, second["picture"]]) == 0
    (again,) = json.loads(capsys.readouterr().out)
    assert again["picture"] == second["picture"]
    assert again["models"][0]["lost"] == second["models"][0]["lost"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["PICTURES"], "name a --model"),
        (["--model", "tiny"], "name a PICTURE"),
        (["PICTURES", "--model", "tinny"], "did you mean tiny"),
        (["PICTURES", "--model", ","], "at least one name"),
        (["PICTURES/gone.jpg", "--model", "tiny"], "no such picture or folder"),
        (["PICTURES/text.jpg", "--model", "tiny"], "text.jpg: not a picture"),
        (["PICTURES", "--model", "tiny", "--layers", "9"], "layer 9 of a model with 4 blocks"),
        (["PICTURES", "--model", "tiny", "--longest", "0"], "--longest 0"),
        (["PICTURES", "--model", "tiny", "--limit", "0"], "--limit 0"),
        (["PICTURES", "--model", "tiny", "--device", "abacus"], "--device abacus"),
        (["PICTURES", "--model", "tiny", "--dataset", "nowhere"], "'nowhere'"),
        (["gone", "--model", "tiny", "--dataset", "generated"], "no picture with the id 'gone'"),
        (["PICTURES", "--model", "tiny", "--out", "PICTURES/tall.png"], "cannot be written"),
        (["PICTURES", "--model", "tiny", "--out", "PICTURES/tall.png/in"], "cannot be written"),
        (["--model", "tiny", "--anatomy", "a.json"], "without pictures or models"),
        (["--anatomy", "PICTURES/gone.json"], "gone.json: no such result"),
        (["--anatomy", "PICTURES/text.jpg"], "not strict JSON"),
    ],
)
def test_wrong_use_is_status_2_with_what_is_wrong_and_writes_nothing(
    arguments: list[str],
    what: str,
    tiny_models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = pictures(tmp_path / "in")
    (folder / "text.jpg").write_text("no picture")
    before = contents(folder)
    typed = [each.replace("PICTURES", str(folder)) for each in arguments]
    if typed[:1] == [str(folder)]:
        typed[0] = str(folder / "wide.jpg")
    files = ["--models", str(tiny_models), "--out", str(tmp_path / "out")]
    assert main(["look", *files, *typed]) == 2
    error = capsys.readouterr().err
    assert what in error and "Traceback" not in error
    assert contents(folder) == before
    assert not [path for path in tmp_path.rglob("*.png") if path.parent != folder]


def test_an_interrupted_look_keeps_whole_pages_and_no_litter(
    tiny_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, drawn = page.draw, []

    def draw(*given: Any) -> bytes:
        if drawn:
            raise KeyboardInterrupt
        drawn.append(plain(*given))
        return drawn[0]

    monkeypatch.setattr(page, "draw", draw)
    command = ["look", str(pictures(tmp_path / "in")), "--model", "tiny", "--html"]
    command += ["--models", str(tiny_models), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(contents(tmp_path / "out")) == ["tall.look.png"]
    assert (tmp_path / "out/tall.look.png").read_bytes() == drawn[0]
