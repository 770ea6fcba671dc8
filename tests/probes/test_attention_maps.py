"""Maps against objects, by plain loops and on maps whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from harness.probes.attention_maps import entropy, localisation

levels = st.integers(0, 4)  # few, so that many pixels tie


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], list[bool]]:
    """Two maps of the same pixels, none of them empty, and where the objects are."""
    count = draw(st.integers(2, 12))
    maps = draw(
        st.lists(
            st.lists(levels, min_size=count, max_size=count).filter(any), min_size=2, max_size=2
        )
    )
    objects = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    return maps, objects


def by_loops(values: list[int], objects: list[bool], mass: float) -> dict[str, float]:
    pixels = range(len(values))
    area, total = sum(objects), sum(values)

    def overlap(threshold: float) -> float:
        kept = [p for p in pixels if values[p] >= threshold]
        both = sum(objects[p] for p in kept)
        return both / (len(kept) + area - both)

    enough = max(
        t for t in set(values) if sum(v for v in values if v >= t) >= mass * total - 1e-12 * total
    )
    mean = total / len(values)
    low, high = min(values), max(values)
    scaled = [(v - low) / (high - low) if high > low else 0.0 for v in values]
    said = [v > mean for v in values] if high > low else [False] * len(values)
    truth = np.array([*objects, *(not each for each in objects)])
    scores = np.array([*scaled, *(1 - each for each in scaled)])
    return {
        "pointing": objects[values.index(max(values))],
        "inside": sum(v for v, there in zip(values, objects, strict=True) if there) / total,
        "best_iou": max(overlap(t) for t in set(values)),
        "mass_iou": overlap(enough),
        "precision": average_precision_score(truth, scores),
        "rest_right": sum(not s and not o for s, o in zip(said, objects, strict=True)),
        "objects_right": sum(s and o for s, o in zip(said, objects, strict=True)),
        "objects_said": sum(said),
    }


@settings(deadline=None)
@given(cases(), st.sampled_from([0.3, 0.6, 1.0]))
def test_every_number_is_that_of_plain_loops(
    case: tuple[list[list[int]], list[bool]], mass: float
) -> None:
    maps, objects = case
    found = localisation(torch.tensor(maps).float(), torch.tensor(objects), mass)
    for row, values in enumerate(maps):
        expected = by_loops(values, objects, mass)
        for name in ("pointing", "inside", "best_iou", "mass_iou", "precision"):
            value = float(getattr(found, name)[row])
            assert value == pytest.approx(float(expected[name])), name
        right, said = found.intersection[row].tolist(), found.predicted[row].tolist()
        assert right == [expected["rest_right"], expected["objects_right"]]
        assert said == [len(values) - expected["objects_said"], expected["objects_said"]]


def test_a_map_that_is_the_mask_finds_all_and_its_negative_nothing() -> None:
    mask = torch.tensor([0, 0, 1, 1, 0, 1], dtype=torch.bool)
    found = localisation(torch.stack((mask.float(), (~mask).float())), mask, 0.6)
    for name in ("pointing", "inside", "best_iou", "mass_iou", "precision"):
        assert float(getattr(found, name)[0]) == pytest.approx(1), name
    assert found.intersection[0].tolist() == found.predicted[0].tolist() == [3, 3]
    assert not found.pointing[1]
    assert float(found.inside[1]) == float(found.mass_iou[1]) == 0
    assert float(found.best_iou[1]) == pytest.approx(0.5)  # everything
    assert found.intersection[1].tolist() == [0, 0]


def test_sixty_percent_of_the_mass_are_the_fewest_highest_pixels_that_hold_it() -> None:
    # 5 alone is half of all; with one of 2 it is 0.7.
    values = torch.tensor([[5.0, 2, 1, 1, 1]])
    first_two = torch.tensor([True, True, False, False, False])
    assert float(localisation(values, first_two, 0.6).mass_iou) == pytest.approx(1)
    assert float(localisation(values, first_two, 0.5).mass_iou) == pytest.approx(0.5)
    # All ones equal the lowest that is needed for 0.75.
    assert float(localisation(values, first_two, 0.75).mass_iou) == pytest.approx(2 / 5)


def test_of_equal_highest_values_the_first_is_pointed_at() -> None:
    values, first = torch.tensor([[1.0, 3, 3, 0]]), torch.tensor([False, True, False, False])
    assert localisation(values, first, 0.6).pointing.tolist() == [True]
    assert localisation(values, first.roll(1), 0.6).pointing.tolist() == [False]


@settings(deadline=None)
@given(st.integers(-20, 20), cases())
def test_scale_moves_no_number(power: int, case: tuple[list[list[int]], list[bool]]) -> None:
    maps, objects, scale = torch.tensor(case[0]).double(), torch.tensor(case[1]), 2.0**power
    for ours, theirs in zip(
        localisation(maps * scale, objects, 0.6), localisation(maps, objects, 0.6), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_a_constant_map_takes_nothing_for_an_object() -> None:
    mask = torch.tensor([True, False, False])
    found = localisation(torch.full((1, 3), 0.1), mask, 0.6)
    assert found.predicted.tolist() == [[3, 0]]
    assert found.intersection.tolist() == [[2, 0]]
    assert float(found.best_iou) == float(found.mass_iou) == pytest.approx(1 / 3)


def test_entropy_is_one_for_equal_attention_and_zero_for_one_patch() -> None:
    even, one = torch.full((2, 3), 0.01), torch.zeros(2, 3)
    one[1, 2] = 0.7
    half = torch.tensor([[0.2, 0.2, 0], [0, 0, 0]])
    assert entropy(torch.stack((even, one, half))).tolist() == pytest.approx(
        [1, 0, math.log(2) / math.log(6)]
    )
    assert entropy(torch.ones(1, 1)).item() == 0
