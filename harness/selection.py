"""Which pictures choose: the same for every model and in every order, told by their ids alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def by_hash(ids: Sequence[str]) -> list[int]:
    """The places of ``ids [n]`` in the order of the sha256 of the id: a draw without a seed."""
    return sorted(range(len(ids)), key=lambda place: hashlib.sha256(ids[place].encode()).digest())


def held_out(ids: Sequence[str], share: float) -> NDArray[np.bool_]:
    """``[n]``: which pictures choose hyper-parameters: a ``share`` of them (at least one, never
    all), those with the smallest sha256 of their id."""
    count = min(max(1, round(share * len(ids))), len(ids) - 1)
    held = np.zeros(len(ids), bool)
    held[by_hash(ids)[: max(0, count)]] = True
    return held
