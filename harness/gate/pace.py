"""Whether results were reached as fast as the baseline's."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from harness.tables.rows import Pair, protocol_words


@dataclass(frozen=True)
class Pace:
    """Images a second of a result, held against its baseline's."""

    dataset: str
    task: str
    protocol: str
    model: str
    baseline: float
    candidate: float
    slow: bool

    @property
    def ratio(self) -> float:
        return self.candidate / self.baseline

    def __str__(self) -> str:
        return f"{self.model} · {self.dataset} · {self.task} · {self.protocol}"


def paces(pairs: Collection[Pair], ratio: float, tell: Callable[[str], None]) -> list[Pace]:
    """Images a second of each pair that ran on one device in one precision, and whether they are
    below ``ratio`` of the baseline's; what cannot be held against each other is counted in words.
    A pass that read stored features in place of pictures is no measure of another that did not."""
    found, apart = [], 0
    for pair in pairs:
        ours, theirs = pair.first.record.cost, pair.second.record.cost
        alike = (ours.device, ours.dtype, ours.forward_passes) == (
            theirs.device,
            theirs.dtype,
            theirs.forward_passes,
        )
        if not alike or not ours.images_per_second:
            apart += 1
            continue
        record = pair.second.record
        found.append(
            Pace(
                dataset=record.dataset.name,
                task=record.task,
                protocol=", ".join(protocol_words(record)),
                model=pair.second.model,
                baseline=ours.images_per_second,
                candidate=theirs.images_per_second,
                slow=theirs.images_per_second < ratio * ours.images_per_second,
            )
        )
    if apart:
        tell(
            f"speed: {apart} of {len(pairs)} results are not held against their baseline's: on "
            "another device, in another precision, or with another number of forward passes"
        )
    return found
