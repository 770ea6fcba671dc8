"""All that stands on the page, made of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.registry import Registry
from harness.report import norms, outliers
from harness.report.origins import Origin, origins
from harness.report.pictures import Group, groups
from harness.report.standings import Table, tables
from harness.tables.compare import Comparison, compare
from harness.tables.leaderboard import Board, boards
from harness.tables.rows import Pair, Result, pairs_of


@dataclass(frozen=True)
class Contents:
    """``verdicts`` count the pairs of all tables; ``newest`` is when the last run ended;
    ``more_scatters``, ``more_norms`` count plots that were left out."""

    tables: list[Table]
    origins: list[Origin]
    scatters: list[outliers.Plot]
    more_scatters: int
    norms: list[norms.Plot]
    more_norms: int
    pictures: list[Group]
    verdicts: list[tuple[str, int]]
    newest: str

    @property
    def datasets(self) -> list[str]:
        return sorted({each.dataset for each in self.tables})

    @property
    def tasks(self) -> list[str]:
        return sorted({each.task for each in self.tables})

    @property
    def models(self) -> list[str]:
        return sorted({model for each in self.tables for model in each.models})

    @property
    def families(self) -> list[str]:
        return sorted({row.family for each in self.tables for row in each.rows})

    @property
    def left_out(self) -> int:
        """Pictures that there was no room for."""
        return sum(group.left_out for group in self.pictures)


def contents(
    results: Sequence[Result],
    registry: Registry,
    start: Path,
    everything: bool,
    picture_bytes: int,
    tell: Callable[[str], None],
) -> Contents:
    """Links to records and pictures start from the folder ``start``. Raises ``HarnessError`` where
    no result may stand in a table."""
    found = boards(results, registry, everything, tell=tell)
    shown = [each.result for board in found for each in board.standings]
    places = {each.path: number for number, each in enumerate(shown, 1)}
    rows = _compared(found, tell)
    made = tables(found, places, {(row.second.path, row.metric): row for row in rows})
    words = [each.words for each in made]
    scatters, more_scatters = outliers.plots(found, words, shown, places)
    couples = pairs_of(registry, {each.model for each in shown})
    histograms, more_norms = norms.plots(shown, couples, places, tell)
    return Contents(
        tables=made,
        origins=origins(shown, start),
        scatters=scatters,
        more_scatters=more_scatters,
        norms=histograms,
        more_norms=more_norms,
        pictures=groups(found, words, start, picture_bytes, tell),
        verdicts=Counter(row.verdict for table in made for row in table.pairs).most_common(),
        newest=max(each.record.provenance.ended for each in shown)[:10],
    )


def _compared(found: Sequence[Board], tell: Callable[[str], None]) -> list[Comparison]:
    """Every model with its baseline, in the metric that ranks them."""
    pairs = [
        Pair(each.base, each.result, [])
        for board in found
        for each in board.standings
        if each.base is not None
    ]
    return compare(pairs, str, {next(iter(board.metrics)) for board in found}, tell)
