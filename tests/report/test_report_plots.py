"""Axes, scores against outliers, and histograms of norms on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import hits, made
from pages import Node
from test_report import change, report

from harness.report.scales import linear, logarithmic

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@settings(deadline=None)  # the first loads matplotlib
@given(st.lists(FINITE, min_size=1, max_size=20), st.booleans())
def test_every_value_has_its_place_between_ticks_that_are_in_order(
    values: list[float], zero: bool
) -> None:
    scale = linear(values, 6, 144, zero=zero)
    assert scale is not None
    places = [scale.at(each) for each in sorted(values)]
    assert places == sorted(places) and places[0] >= 6 and places[-1] <= 144
    assert scale.low <= min(values) + 1e-90 and max(values) <= scale.high + 1e-90
    assert not zero or scale.low <= 0 <= scale.high
    marks = [mark.at for mark in scale.marks]
    assert 2 <= len(marks) <= 8 and marks == sorted(marks) and len(set(marks)) == len(marks)


def test_an_axis_is_linear_from_end_to_end() -> None:
    scale = linear([0, 100], 44, 244)
    assert scale is not None and (scale.low, scale.high) == (0, 100)
    assert [scale.at(each) for each in (0, 25, 100)] == [44, 94, 244]
    down = linear([0, 100], 200, 12)
    assert down is not None and (down.at(0), down.at(100)) == (200, 12)


def test_what_no_axis_can_show_has_none() -> None:
    assert linear([], 0, 1) is None
    assert linear([-1.7e308, 1.7e308], 0, 1) is None
    assert logarithmic(0, 1, 0, 1) is None and logarithmic(2, 2, 0, 1) is None
    zero = linear([0.0, 0.0], 0, 10)
    assert zero is not None and (zero.low, zero.high) == (0, 1)


@pytest.mark.parametrize(("low", "high"), [(1e-3, 100), (11, 24), (0.9, 1.1), (5, 5e7)])
def test_a_logarithmic_axis_has_a_few_plain_ticks(low: float, high: float) -> None:
    scale = logarithmic(low, high, 0, 300)
    assert scale is not None and 2 <= len(scale.ticks) <= 6
    assert (scale.at(low), scale.at(high)) == (0, 300)
    assert scale.at((low * high) ** 0.5) == pytest.approx(150, abs=0.1)


DIGESTS = {"vits": "a" * 16, "vits-reg4": "b" * 16, "vitb": "c" * 16}


def score(out: Path, model: str, share: float, dataset: str = "voc07") -> Path:
    path = made(out, model, hits(share), dataset=dataset)
    change(path, "model", "weights_digest", to=DIGESTS[model])
    return path


def anatomy(
    out: Path, model: str, share: float, dataset: str = "voc07", count: int = 300, **rules: Any
) -> Path:
    """With a tenth of the patches, those of the norm of 8 and more, called outliers."""
    column = {"outlier_share": np.full(count, share)}
    more = {"counts": {"patches": 100, "outliers": 10}, "task": "anatomy", "dataset": dataset}
    if rules:
        more |= {"settings": rules, "variant": {"set": rules}}
    path = made(out, model, column, "outlier_fraction", protocol="anatomy", **more)
    histogram = {"lowest": 2.0, "bins_per_octave": 1, "counts": [10, 80, 0, 10]}
    layer = {"layer": 3, "histogram": histogram, "quantiles": {"0.5": 5.0}, "mean": 5.0}
    place = {"map": [[0.5]], "patches_on_border": 40.0, "outliers_on_border": 90.0}
    change(path, "details", to={"layers": [layer], "positions": place})
    change(path, "protocol", "resolved", to={"layer": 3, "outlier_cutoff": 16.0})
    change(path, "model", "weights_digest", to=DIGESTS[model])
    return path


def figures(page: Node, section: str) -> list[Node]:
    return [each for part in page.all("section", id=section) for each in part.all("figure")]


def test_scores_stand_against_outliers_of_the_same_weights(tmp_path: Path) -> None:
    out = tmp_path / "results"
    for model, hit, share in (("vits", 0.3, 0.04), ("vits-reg4", 0.4, 0.0)):
        score(out, model, hit)
        anatomy(out, model, share)
    score(out, "vitb", 0.5)
    (figure,) = figures(report(out), "outliers")
    told = [each.text for each in figure.all("li")]
    assert told[0].startswith("vits-reg4: ") and told[0].endswith(", outliers 0.0 %")
    assert told[1].startswith("vits: ") and told[1].endswith(", outliers 4.0 %")
    dots = [(float(each.attributes["cx"] or 0), float(each.attributes["cy"] or 0))
            for each in figure.all("circle")]  # fmt: skip
    (right, low), (left, high) = sorted(dots, reverse=True)
    assert (left, right) == (44, 308) and high < low
    (line,) = [each.attributes["d"] for each in figure.all("path", class_="link")]
    assert line == f"M{right} {low}L{left} {high}"
    assert "Without such a record: vitb." in figure.text


def test_outliers_of_another_data_set_do_where_there_are_none_and_are_named(
    tmp_path: Path,
) -> None:
    out = tmp_path / "results"
    score(out, "vits", 0.3)
    score(out, "vitb", 0.5)
    anatomy(out, "vits", 0.01, "voc12", 100)
    anatomy(out, "vits", 0.02, "coco20k", 300)
    anatomy(out, "vitb", 0.03, "voc12")
    anatomy(out, "vitb", 0.04, "voc07", 100)
    (figure,) = figures(report(out), "outliers")
    told = [each.text for each in figure.all("li")]
    assert [each.partition("outliers ")[2] for each in told] == [
        "4.0 %",
        "2.0 %, outliers on coco20k",
    ]
    assert "counted on another data set: vits (coco20k)." in figure.text


def test_one_plot_mixes_no_rules_of_what_an_outlier_is(tmp_path: Path) -> None:
    out = tmp_path / "results"
    for model in DIGESTS:
        score(out, model, 0.3)
    anatomy(out, "vits", 0.04)
    anatomy(out, "vits-reg4", 0.01)
    anatomy(out, "vitb", 0.5, outliers="quantile0.5")
    (figure,) = figures(report(out, "--all"), "outliers")
    assert len(figure.all("circle")) == 2
    assert "Without such a record: vitb." in figure.text


def test_norms_of_a_pair_are_drawn_together_with_where_outliers_begin(tmp_path: Path) -> None:
    out = tmp_path / "results"
    for model in DIGESTS:
        anatomy(out, model, 0.1)
    pair, alone = figures(report(out), "norms")
    assert [each.attributes["data-model"] for each in (pair, alone)] == ["vits vits-reg4", "vitb"]
    for text in (each.text for each in pair.all("li")):
        assert text.endswith("layer 3, 10 % outliers (norm above 16)")
    first, second = (part.all("path") for part in pair.all("g", class_="curve"))
    # Bins from 2 to 32 over 264 units, 10 and 80 %, a gap, and 10 %.
    steps = first[0].attributes["d"] or ""
    assert steps.count("M") == 2 and steps.startswith("M44 ") and steps.endswith("H308")
    assert first[1].attributes["d"] == "M242.0 12V200" and len(second) == 2


def test_details_that_are_not_anatomys_are_told_and_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = anatomy(tmp_path / "results", "vits", 0.1)
    anatomy(tmp_path / "results", "vitb", 0.1)
    record = json.loads(path.read_text())
    record["details"]["layers"][0]["histogram"]["counts"] = [10**400]
    path.write_text(json.dumps(record))
    assert len(figures(report(tmp_path / "results"), "norms")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no histogram: " in line and "layers.0.histogram.counts" in line
