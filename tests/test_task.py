from __future__ import annotations

from typing import Literal

import pytest

from harness.data.views import WholePicture
from harness.errors import HarnessError
from harness.layers import resolve_layers
from harness.task import NotApplicable, Protocol, TokenRequest
from harness.task_names import find_task, task_names


class Toy(Protocol):
    name: str = "toy"
    version: str = "1.0"
    k: int = 3
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"


def test_the_hash_tells_every_setting_name_and_version() -> None:
    changes = [{}, {"k": 4}, {"rate": 0.25}, {"kind": "b"}, {"version": "2.0"}, {"name": "t"}]
    assert len({Toy(**change).hash() for change in changes}) == len(changes)  # type: ignore[arg-type]


def test_the_hash_is_that_of_the_settings_and_not_of_how_they_were_given() -> None:
    assert Toy().hash() == Toy(k=3).hash() == Toy().changed({"k": "3"}).hash()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"rat": 1}, "did you mean rate"),
        ({"k": "many"}, "k: .*integer"),
        ({"rate": float("nan")}, "rate: .*finite"),
        ({"kind": "c"}, "kind"),
        ({"name": "other"}, "no setting 'name'"),
        ({"version": "9"}, "no setting 'version'"),
    ],
)
def test_a_bad_setting_is_named(setting: dict[str, object], complaint: str) -> None:
    with pytest.raises(HarnessError, match=complaint):
        Toy().changed(setting)


def test_layers_count_from_either_end() -> None:
    assert resolve_layers(("embedding", 0, -1), 12) == ("embedding", 0, 11)
    assert resolve_layers("last", 12) == (11,)
    assert resolve_layers("last:4", 12) == (8, 9, 10, 11)
    assert resolve_layers("all", 3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, (3, 6, 9, 12)), (24, (5, 12, 18, 24)), (40, (10, 20, 30, 40))],
)
def test_quarters_are_the_published_lin_4_layers(depth: int, blocks: tuple[int, ...]) -> None:
    assert resolve_layers("quarters", depth) == tuple(block - 1 for block in blocks)


def test_quarters_of_fewer_than_four_blocks_are_not_applicable() -> None:
    with pytest.raises(NotApplicable, match="quarters of a model with 3 blocks"):
        resolve_layers("quarters", 3)


def test_minus_zero_is_zero_in_settings_and_hash() -> None:
    assert Toy(rate=-0.0).hash() == Toy(rate=0.0).hash()


def test_a_layer_that_is_not_there_is_not_applicable() -> None:
    with pytest.raises(NotApplicable, match="layer -5 of a model with 4 blocks"):
        resolve_layers((-5,), 4)


def test_a_request_is_either_once_or_a_number_of_steps() -> None:
    view = WholePicture(14, 10)
    with pytest.raises(ValueError, match="steps and step_size"):
        TokenRequest(view, (0,), order="shuffled", steps=3)
    with pytest.raises(ValueError, match="shuffled"):
        TokenRequest(view, (0,), steps=3)


def test_the_norm_is_asked_of_tokens_only() -> None:
    request = TokenRequest(WholePicture(14, 10), (0,), ("token", "key"), norm=True)
    assert {(read.facet, read.norm) for read in request.reads} == {("token", True), ("key", False)}


def test_lost_is_found_by_its_entry_point_and_a_wrong_name_gets_a_suggestion() -> None:
    assert "lost" in task_names()
    assert find_task("lost").name == "lost"
    with pytest.raises(HarnessError, match="did you mean lost"):
        find_task("lots")
