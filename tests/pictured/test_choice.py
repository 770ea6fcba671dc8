from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from harness.pictured.choice import FILE_NAME, Choice, choose

NAMES = st.text(max_size=300)


def kinds(standing: dict[str, float], count: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"worst": [], "median": [], "best": []}
    for choice in choose(standing, count):
        found[choice.kind].append(choice.id)
        assert choice.number == len(found[choice.kind])
    return found


def test_the_worst_come_from_the_bottom_the_best_from_the_top_the_median_from_the_middle() -> None:
    standing = {f"p{place:02}": float(place) for place in range(21)}
    assert kinds(standing, 2) == {
        "worst": ["p00", "p01"],
        "median": ["p09", "p10"],
        "best": ["p20", "p19"],
    }
    assert [c.place for c in choose(standing, 1)] == [1, 11, 21]


def test_few_pictures_are_shared_out() -> None:
    expected = [
        ([], [], []),
        (["a"], [], []),
        (["a"], [], ["b"]),
        (["a"], ["b"], ["c"]),
        (["a", "b"], ["c"], ["d"]),
        (["a", "b"], ["c"], ["e", "d"]),
    ]
    for pictures, (worst, median, best) in enumerate(expected):
        standing = {name: float(place) for place, name in enumerate("abcdef"[:pictures])}
        assert kinds(standing, 5) == {"worst": worst, "median": median, "best": best}


def test_equal_ones_are_ranked_by_id_and_nan_has_no_place() -> None:
    assert kinds({"c": 1, "a": 1, "b": 1, "x": float("nan")}, 1) == {
        "worst": ["a"],
        "median": ["b"],
        "best": ["c"],
    }


@given(st.dictionaries(NAMES, st.integers(0, 3), max_size=30), st.integers(1, 12))
def test_no_picture_is_chosen_twice_and_none_of_another_kind_is_between(
    ranks: dict[str, int], count: int
) -> None:
    standing = {name: float(rank) for name, rank in ranks.items()}
    choices = choose(standing, count)
    assert len({choice.id for choice in choices}) == len(choices) == min(len(ranks), 3 * count)
    assert choices == choose(dict(reversed(standing.items())), count)
    found = kinds(standing, count)
    rows = [*found["worst"], *found["median"], *reversed(found["best"])]
    assert rows == sorted(rows, key=lambda name: (standing[name], name))
    others = [standing[name] for name in standing.keys() - set(rows)]
    for value in others:
        assert standing[found["worst"][-1]] <= value <= standing[found["best"][-1]]


@given(NAMES)
def test_a_file_name_is_one_plain_name_whatever_the_id(name: str) -> None:
    file_name = Choice("worst", 3, 7, name).file_name
    assert FILE_NAME.fullmatch(file_name) and file_name.startswith("worst-3-")
    assert Path(file_name).name == file_name and len(file_name) < 120
    file_name.encode("ascii")


def test_file_names_say_which_picture_it_is() -> None:
    assert Choice("best", 1, 9, "seq-01/frame-000123").file_name == "best-1-seq-01_frame-000123.png"
    assert Choice("best", 1, 9, "../../etc/passwd").file_name == "best-1-.._.._etc_passwd.png"
    assert Choice("best", 1, 9, "x" * 300 + "7").file_name.endswith("xx7.png")


def test_what_can_be_shown_is_told_without_torch_or_matplotlib() -> None:
    code = (
        "import sys, harness.pictured.choice, harness.pictured.contract, harness.plan;"
        "print(sorted(set(sys.modules) & {'torch', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
