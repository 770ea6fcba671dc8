"""Runs made up by the hundred: how often a gate fails without a reason, and how often with one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.gate.cells import Cell
from harness.gate.judge import adjust, decide, measure
from harness.schema import Metric
from harness.tables.paired import Paired

PICTURES, TOLERANCE = 1000, 0.5
DOCS = Path(__file__).resolve().parents[2] / "docs" / "ci.md"


def cell(
    first: NDArray[np.generic],
    second: NDArray[np.generic],
    tolerance: float = TOLERANCE,
    scenes: NDArray[np.int64] | None = None,
    scale: float = 100.0,
) -> Cell:
    """Columns ``[n]`` of one metric, higher is better; all cells are of the same pictures."""
    metric = Metric(value=0, low=0, high=0, unit="%", higher_is_better=True, scale=scale)
    found = Cell("set", "task", "protocol", "protocol", "model", "score", "%", True)
    found.data = Paired("score", metric, np.arange(len(first)), [first], [second], scenes)
    found.tolerance, found.pictures = tolerance, len(first)
    found.scenes = None if scenes is None else len(np.unique(scenes))
    return found


def flipped(
    generator: np.random.Generator, lost: float, gained: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Hits of each picture, of which a share of all is lost and one gained, at random."""
    draw = generator.random(PICTURES)
    first = generator.random(PICTURES) < 0.5
    first = np.where(draw < lost, True, np.where(draw < lost + gained, False, first))
    return first, np.where(draw < lost + gained, ~first, first)


def failed(runs: list[list[Cell]]) -> float:
    """The share of runs in which a cell regressed."""
    moved = [[each for each in run if each.moved] for run in runs]
    measure([each for run in moved for each in run])
    for run in moved:
        adjust(run)
    decide([each for run in moved for each in run], 0.05)
    return float(np.mean([any(each.state == "regressed" for each in run) for run in moved]))


@pytest.mark.slow
@pytest.mark.parametrize("discordant", [0.01, 0.1, 0.15])
def test_noise_alone_passes_in_95_of_100_runs_of_20_cells(discordant: float) -> None:
    generator = np.random.default_rng(1)
    runs = [
        [cell(*flipped(generator, discordant / 2, discordant / 2)) for _ in range(20)]
        for _ in range(100)
    ]
    share = failed(runs)
    print(f"noise only, {discordant:.0%} discordant: {share:.0%} of 100 runs fail")
    assert share <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("cells", [1, 20, 100])
def test_a_loss_as_large_as_the_tolerance_fails_in_5_of_100_runs_at_most(cells: int) -> None:
    generator = np.random.default_rng(2)
    half, count = 0.05, 400 if cells < 100 else 100
    runs = [
        [cell(*flipped(generator, half + TOLERANCE / 100, half)) for _ in range(cells)]
        for _ in range(count)
    ]
    share = failed(runs)
    print(f"a loss of the tolerance in each of {cells} cells: {share:.1%} of {count} runs fail")
    assert share <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / count)


@pytest.mark.slow
def test_skewed_values_and_scenes_keep_the_level_too() -> None:
    generator = np.random.default_rng(3)
    scenes = np.repeat(np.arange(50), PICTURES // 50)

    def skewed() -> Cell:
        change = generator.exponential(1.0, PICTURES) * (generator.random(PICTURES) < 0.3) - 0.3
        return cell(np.zeros(PICTURES), -change - TOLERANCE, scale=1.0)

    def of_scenes() -> Cell:
        change = np.repeat(generator.normal(size=50), PICTURES // 50)
        change = change + generator.normal(size=PICTURES)
        return cell(np.zeros(PICTURES), change - TOLERANCE, scenes=scenes, scale=1.0)

    for name, make in (("skewed", skewed), ("scenes", of_scenes)):
        share = failed([[make() for _ in range(20)] for _ in range(200)])
        print(f"{name}, a loss of the tolerance in each of 20 cells: {share:.1%} of 200 runs fail")
        assert share <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.slow
@pytest.mark.parametrize("discordant", range(30, 151, 12))
def test_three_points_observed_fail_on_any_pictures(discordant: int) -> None:
    generator = np.random.default_rng(discordant)
    gained = (discordant - 30) // 2
    missed = 0
    for seed in range(10):
        first = np.arange(PICTURES) % 2 == 0
        second = first.copy()
        second[generator.choice(np.flatnonzero(first), gained + 30, replace=False)] = False
        second[generator.choice(np.flatnonzero(~first), gained, replace=False)] = True
        one = cell(first, second)
        one.seed = seed
        missed += failed([[one]]) == 0
    assert missed == 0


def powers() -> dict[tuple[int, int, int], int]:
    """Of discordant pictures (%), points lost and cells, how many of 100 runs find the loss."""
    rows = re.findall(r"^\| (\d+) % \| (\d+) \| (\d+) \| (\d+) \|$", DOCS.read_text(), re.M)
    return {(int(a), int(b), int(c)): int(found) for a, b, c, found in rows}


@pytest.mark.slow
def test_the_power_is_what_the_docs_say() -> None:
    told = powers()
    assert len(told) >= 6
    for (discordant, points, cells), expected in told.items():
        generator = np.random.default_rng(4)
        gained = (discordant - points) / 200
        runs = [
            [cell(*flipped(generator, gained + points / 100, gained))]
            + [cell(*flipped(generator, gained, gained)) for _ in range(cells - 1)]
            for _ in range(400 if cells == 1 else 200)
        ]
        found = 100 * failed(runs)
        print(f"| {discordant} % | {points} | {cells} | {found:.0f} |")
        assert abs(found - expected) <= 1, (discordant, points, cells)
