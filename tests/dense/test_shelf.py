"""Rows that are taken again and again: from memory, or from a file that nobody else sees."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.dense.shelf import Shelf
from harness.errors import HarnessError

PATCHES = torch.arange(5 * 2 * 3, dtype=torch.float16).view(5, 2, 3)
LABELS = torch.arange(5 * 4, dtype=torch.uint8).view(5, 4)


def filled(in_memory: int) -> Shelf:
    shelf = Shelf(7, in_memory)
    shelf.add([4, 0], [PATCHES[:2], LABELS[:2]])
    shelf.add([6, 1, 2], [PATCHES[2:], LABELS[2:]])
    return shelf


@pytest.mark.parametrize("in_memory", [2**20, 1])
def test_rows_come_back_by_their_places(in_memory: int, tmp_path: Path) -> None:
    shelf = filled(in_memory)
    assert shelf.places().tolist() == [0, 1, 2, 4, 6]
    patches, labels = shelf.rows(torch.tensor([6, 0, 6]))
    assert torch.equal(patches, PATCHES[[2, 1, 2]]) and patches.dtype == torch.float16
    assert torch.equal(labels, LABELS[[2, 1, 2]]) and labels.dtype == torch.uint8


@given(st.lists(st.permutations(range(5)), min_size=1, max_size=3))
def test_the_order_of_arrival_does_not_show(orders: list[list[int]]) -> None:
    for order in orders:
        shelf = Shelf(5)
        for place in order:
            shelf.add([place], [PATCHES[place : place + 1], LABELS[place : place + 1]])
        assert torch.equal(shelf.rows(torch.arange(5))[0], PATCHES)


def test_a_state_goes_on_in_another_shelf() -> None:
    first, second = filled(1), Shelf(7)
    second.load(first.state())
    assert second.places().tolist() == first.places().tolist()
    for ours, theirs in zip(
        *(each.rows(torch.tensor([4, 6])) for each in (first, second)), strict=True
    ):
        assert torch.equal(ours, theirs)
    second.load(Shelf(7).state())
    assert not len(second.places())


def test_the_file_has_no_name_that_could_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    shelf = filled(1)
    assert list((tmp_path / "cache").iterdir()) == []
    assert torch.equal(shelf.rows(torch.tensor([4]))[1][0], LABELS[0])


def test_a_disk_without_room_is_told_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(HarnessError, match=r"No space left.*HARNESS_CACHE"):
        filled(1)


def test_a_folder_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(HarnessError, match="file"):
        filled(1)
