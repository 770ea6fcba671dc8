"""Vectors that are read in blocks are those that would be kept, whatever is asked of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from blocked import stored
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.features.store import Store, shard_name
from harness.features.vectors import SideBySide, read_ahead, to_unit


def values(count: int, width: int = 5, half: bool = False) -> torch.Tensor:
    found = torch.randn(count, width, generator=torch.Generator().manual_seed(count))
    return found.half() if half else found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("vectors"))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 40),
    shard=st.integers(1, 16),
    block=st.integers(1, 50),
    half=st.booleans(),
    data=st.data(),
)
def test_rows_and_blocks_are_those_in_memory_to_the_bit(
    store: Store, count: int, shard: int, block: int, half: bool, data: st.DataObject
) -> None:
    whole = values(count, 5, half)
    fresh = Store(store.folder / f"{count}-{shard}-{half}")
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))), np.int64)
    vectors = stored(fresh, whole, kept, shard)
    expected = whole.float()[torch.from_numpy(kept)]
    asked = np.array(data.draw(st.lists(st.integers(0, len(kept) - 1), max_size=60)), np.int64)
    assert torch.equal(vectors.rows(asked), expected[torch.from_numpy(asked)])
    assert torch.equal(torch.cat(list(vectors.blocks(block))), expected)
    unit = torch.cat(list(vectors.unit().blocks(block)))
    assert torch.equal(unit, to_unit(expected.clone()))
    joined = vectors.and_those_of(vectors.of(asked))
    both = torch.cat([expected, expected[torch.from_numpy(asked)]])
    assert len(joined) == len(both) and torch.equal(torch.cat(list(joined.blocks(block))), both)
    wide = SideBySide([vectors, vectors.unit()]).rows(asked)
    assert torch.equal(wide[:, :5], expected[torch.from_numpy(asked)])


@pytest.mark.parametrize("width", [1, 3, 384, 1024, 1536])
def test_a_unit_vector_does_not_depend_on_the_block_that_it_is_read_in(width: int) -> None:
    whole = values(70, width)
    expected = torch.nn.functional.normalize(whole)
    for size in (1, 2, 7, 64):
        parts = [torch.nn.functional.normalize(part) for part in torch.split(whole, size)]
        assert torch.equal(torch.cat(parts), expected)


def test_a_shard_that_went_or_is_damaged_is_named_and_says_what_to_do(tmp_path: Path) -> None:
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        vectors = stored(Store(folder), values(20))
        (path,) = folder.rglob(shard_name(1))
        damage(path)
        assert len(vectors.rows(np.arange(8))) == 8
        with pytest.raises(HarnessError, match=r"shard 1 of .* run again .* --memory"):
            list(vectors.blocks(3))


def test_what_is_read_ahead_stops_with_its_reader() -> None:
    read: list[int] = []

    def reading(places: np.ndarray) -> torch.Tensor:  # type: ignore[type-arg]
        read.append(int(places[0]))
        return torch.zeros(1)

    for _ in read_ahead(reading, (np.array([part]) for part in range(100))):
        break
    assert len(read) <= 3
