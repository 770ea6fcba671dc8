"""``make fuzz`` itself: every reader stands some cases, and what is planted is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.campaign import fuzz
from fuzz.targets import TARGETS, run_case


@pytest.mark.parametrize("target", TARGETS)
def test_every_reader_reads_or_refuses_damaged_files(target: str, tmp_path: Path) -> None:
    for seed in range(5):
        run_case(target, seed, tmp_path / "case")


def test_a_case_is_drawn_from_its_seed_alone(tmp_path: Path) -> None:
    files = []
    for folder in ("a", "b"):
        run_case("coco", 12, tmp_path / folder)
        files.append((tmp_path / folder / "a.json").read_bytes())
    assert files[0] == files[1]


def test_what_is_neither_read_nor_refused_is_raised(tmp_path: Path) -> None:
    def cases() -> None:
        for seed in range(100):
            run_case("planted-error", seed, tmp_path / "case")

    with pytest.raises(KeyError, match="planted"):
        cases()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("planted-error", "KeyError"),
        ("planted-hang", "still running after 5 s"),
        ("planted-death", "the process died"),
        ("planted-memory", "MemoryError"),
    ],
)
def test_what_is_planted_is_found_with_its_seed(target: str, said: str, tmp_path: Path) -> None:
    cases, found = fuzz(target, 15, 0, tmp_path / "case")
    assert cases > 0
    assert any(said in each.what for each in found)
