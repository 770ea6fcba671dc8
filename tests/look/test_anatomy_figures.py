from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from result_examples import facts

from harness.cli import main
from harness.errors import HarnessError
from harness.look import anatomy_plots
from harness.look.anatomy_figures import figures

NAMES = [f"anatomy.{name}.{kind}" for name in ("histograms", "norms", "positions")
         for kind in ("png", "csv")]  # fmt: skip


def layer(number: int, scale: float, registers: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "layer": number,
        "histogram": {"lowest": scale, "bins_per_octave": 2, "counts": [10, 80, 0, 10]},
        "quantiles": {share: scale * float(share) + 1 for share in ("0.05", "0.5", "0.999")},
        "mean": 1.5 * scale,
        "cutoff": None,
        "class_norm": 2 * scale,
        "more": "that figures do not need",
    }
    return entry | ({"register_norms": [3 * scale] * registers} if registers else {})


def details(depth: int = 8, registers: int = 0) -> dict[str, Any]:
    return {
        "layers": [layer(number, 1.0 + number, registers) for number in range(depth)],
        "positions": {
            "map": [[0.5, None, 0.25], [None, None, None], [0.0, None, 1.0]],
            "patches_on_border": 40.0,
            "outliers_on_border": 90.0,
        },
    }


def record(folder: Path, name: str, cutoff: float | None = 9.0, **changes: Any) -> Path:
    whole = facts(task="anatomy", counts={"patches": 100, "outliers": 10}, details=details())
    whole["model"]["name"] = name
    resolved = {"layer": 7, "layers": list(range(8)), "outlier_cutoff": cutoff}
    whole["protocol"] |= {"name": "anatomy", "resolved": resolved}
    path = folder / name / "anatomy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole | changes))
    return path


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_the_numbers_beside_the_figures_are_those_of_the_records(tmp_path: Path) -> None:
    paths = [
        record(tmp_path, "vits"),
        record(tmp_path, "vits-reg4", details=details(registers=4)),
    ]
    made = figures([*paths, paths[0]])
    assert list(made) == NAMES and made == figures(paths)
    bins = rows(made["anatomy.histograms.csv"])
    assert [row["record"] for row in bins[:: 4 * 8]] == ["vits", "vits-reg4"]
    third = [row for row in bins if (row["record"], row["layer"]) == ("vits", "3")]
    assert [int(row["patches"]) for row in third] == [10, 80, 0, 10]
    assert [float(row["percent"]) for row in third] == [10, 80, 0, 10]
    np.testing.assert_allclose([float(row["norm_to"]) for row in third], 4 * 2 ** (np.r_[1:5] / 2))
    norms = rows(made["anatomy.norms.csv"])
    (found,) = (row["norm"] for row in norms if row["record"] == "vits-reg4"
                and (row["layer"], row["tokens"]) == ("5", "register 3"))  # fmt: skip
    assert float(found) == 18
    places = rows(made["anatomy.positions.csv"])
    assert [row["outlier_percent"] for row in places[:9]] == [
        *("50.0", "", "25.0", "", "", "", "0.0", "", "100.0")
    ]
    for name in NAMES[::2]:
        with Image.open(io.BytesIO(made[name])) as image:
            assert image.format == "PNG" and image.width > 500


def headings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    plain = anatomy_plots.Sheet.text

    def text(self: Any, x: int, y: int, words: str, *rest: Any, **more: Any) -> None:
        said.append(words)
        plain(self, x, y, words, *rest, **more)

    monkeypatch.setattr(anatomy_plots.Sheet, "text", text)
    return said


def test_records_of_other_pictures_or_settings_are_said_not_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = headings(monkeypatch)
    same = [record(tmp_path, "a"), record(tmp_path, "b", cutoff=None)]
    figures(same)
    assert not [each for each in said if "do not compare" in each]
    assert "no patch is an outlier" in said and "10 % of patches are outliers" in said
    other = json.loads(same[1].read_text())
    other["dataset"]["name"] = "other"
    other["dataset"]["fingerprint"] = "f" * 64
    same[1].write_text(json.dumps(other))
    figures(same)
    assert len([each for each in said if "do not compare" in each]) == 3
    assert "a · voc07" in said and "b · other" in said


def test_records_that_would_be_called_alike_are_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = headings(monkeypatch)
    figures([record(tmp_path / "one", "a"), record(tmp_path / "two", "a")])
    assert "a (1)" in said and "a (2)" in said


def test_models_of_other_depths_stand_in_one_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = headings(monkeypatch)
    short = record(tmp_path, "short", details=details(depth=1))
    figures([record(tmp_path, "a"), short])
    assert "layers 0, 3" in said


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"task": "lost"}, "a record of the task lost"),
        ({"details": {}}, "not what anatomy writes: layers"),
        ({"details": details() | {"layers": []}}, "not what anatomy writes: layers"),
        ({"details": details() | {"positions": {"map": [[1.0], []], "patches_on_border": 1.0,
          "outliers_on_border": None}}}, "rows of one length"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_drawn_is_named(
    tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    with pytest.raises(HarnessError, match=what) as error:
        figures([record(tmp_path, "a", **change)])
    assert "anatomy.json" in str(error.value)


@pytest.mark.slow
def test_figures_of_a_real_record_lie_in_the_folder(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness import evaluate

    evaluate(
        "anatomy", "tiny-reg4", "generated", model_files=[tiny_models], out=tmp_path / "results",
        workers=0, limit=3, settings={"outliers": "quantile0.9"}, store=False,
    )  # fmt: skip
    (path,) = (tmp_path / "results").glob("*/*/*/*.json")
    assert main(["look", "--anatomy", str(path), "--out", str(tmp_path / "figures")]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == NAMES
    places = rows((tmp_path / "figures/anatomy.positions.csv").read_bytes())
    told = json.loads(path.read_text())["details"]["positions"]["map"]
    flat = [value for row in told for value in row]
    assert [row["outlier_percent"] for row in places] == [
        "" if value is None else str(100 * value) for value in flat
    ]
