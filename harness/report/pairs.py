"""Models beside their baselines, with and without registers: what the page shows of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.scales import Scale, linear
from harness.tables.compare import Comparison
from harness.tables.rows import family, protocol_words
from harness.tables.sheet import measured, probability, span


@dataclass(frozen=True)
class PairRow:
    """``model`` against ``baseline`` in the metric that ranks; numbers are None where the two could
    not be compared. ``places`` are those of both values, ``gain`` of the difference and its
    interval, on the scales of the table."""

    baseline: str
    model: str
    words: list[str]
    family: str
    registers: tuple[int, int]
    values: tuple[float, float] | None
    texts: tuple[str, str]
    difference: float | None
    difference_text: str
    span: str
    p: float | None
    p_text: str
    verdict: str
    reason: str | None
    places: tuple[float, float] | None
    gain: tuple[float, float, float] | None


def differences(
    rows: Sequence[Comparison], told: Sequence[str], width: float, edge: float
) -> tuple[list[PairRow], Scale | None, Scale | None]:
    """The pairs of one table, whose title has ``told`` what all of it shares, the scale of their
    values and that of their differences, both ``width`` wide with room for a mark at each
    ``edge``."""
    values = [v for row in rows for v in (row.first_value, row.second_value) if v is not None]
    gains = [v for row in rows for v in (row.low, row.difference, row.high) if v is not None]
    scale = linear(values, edge, width - edge, ticks=3)
    gain_scale = linear(gains, edge, width - edge, ticks=3, zero=True) if gains else None
    return [_row(row, told, scale, gain_scale) for row in rows], scale, gain_scale


def _row(
    row: Comparison, told: Sequence[str], scale: Scale | None, gain_scale: Scale | None
) -> PairRow:
    first, second = row.first.record, row.second.record
    shared = set(protocol_words(first)) - set(told)
    values = places = gain = None
    texts, difference, interval = ("–", "–"), "–", ""
    if row.first_value is not None and row.second_value is not None:
        values = row.first_value, row.second_value
        texts = measured(values[0], row.unit), measured(values[1], row.unit)
        if scale is not None:
            places = scale.at(values[0]), scale.at(values[1])
    if row.difference is not None and row.low is not None and row.high is not None:
        difference = measured(row.difference, row.unit, signed=True)
        interval = span(row.low, row.high, row.unit, signed=True)
        interval += " ‡" if row.few_pictures else ""
        if gain_scale is not None:
            gain = gain_scale.at(row.low), gain_scale.at(row.difference), gain_scale.at(row.high)
    return PairRow(
        baseline=row.first.model,
        model=row.second.model,
        words=[each for each in protocol_words(second) if each in shared],
        family=family(row.second.model),
        registers=(first.model.registers, second.model.registers),
        values=values,
        texts=texts,
        difference=row.difference,
        difference_text=difference,
        span=interval,
        p=row.p_holm,
        p_text=probability(row.p_holm),
        verdict=row.verdict,
        reason=row.reason,
        places=places,
        gain=gain,
    )
