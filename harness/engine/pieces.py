"""Where a pass may be cut into pieces that other processes run, and one such piece.

A cell can be cut in two ways. Where all that it asks of a role are vectors that the feature store
holds, pieces fill the store, and the cell reads them there. Where its fold merges and it reads one
role, each once, pieces give its state for some of the pictures. What can be neither (a stream in
an order, a fold that cannot merge) is read by the one process that finishes the cell.

Cuts stand where batches end in any run (``serve.py``, ``passes.PIECE``), so that pieces give the
bits that an uncut run gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.backbone.arithmetic import exact_float32
from harness.backbone.sources import inspect
from harness.backbone.vit import Backbone
from harness.data.dataset import ROLES, Role
from harness.features.keys import can_be_keyed
from harness.features.shared import user_store
from harness.features.store import shard_size
from harness.options import Options
from harness.passes import PIECE, Seen, begin, context_of, run_pass, that_share
from harness.plan import Cell
from harness.progress import Silent
from harness.recording import Scored
from harness.task import TokenRequest

_PIECES_PER_WORKER = 4
"""Enough that no worker waits long for the last piece, and few enough to cost nothing."""


@dataclass(frozen=True)
class Piece:
    """Pictures ``places`` of a role, for some cells of a group (by their place in it), of which
    those in ``folding`` are to give their state."""

    repeat: int
    role: Role
    cells: tuple[int, ...]
    folding: frozenset[int]
    places: range


def cut(group: Sequence[Cell], options: Options, workers: int) -> list[Piece]:
    """The pieces of all passes of cells that run side by side; none where nothing is gained."""
    added = group[0].entry.test_time_registers
    if workers < 2 or (added is not None and added.searched):
        return []  # which neurons to move is only known where the whole model runs
    found: list[Piece] = []
    for number in range(max(len(cell.repeats) for cell in group)):
        reading = [place for place, cell in enumerate(group) if number < len(cell.repeats)]
        for role in ROLES:
            asked = {
                place: group[place].repeats[number].requests[role]
                for place in reading
                if role in group[place].repeats[number].requests
            }
            for sharing in _that_may_share(group, role, asked):
                found += _pieces(
                    group, number, role, {p: asked[p] for p in sharing}, options, workers
                )
    return found


def _that_may_share(
    group: Sequence[Cell], role: Role, asked: dict[int, TokenRequest]
) -> list[list[int]]:
    """Places of cells whose requests one pass serves; two cut-offs of one rule are told apart when
    the piece runs."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, request in asked.items():
        pictures = group[place].dataset.fingerprints[role]
        groups.setdefault((pictures, *request.sharing), []).append(place)
    return list(groups.values())


def _pieces(
    group: Sequence[Cell],
    number: int,
    role: Role,
    asked: dict[int, TokenRequest],
    options: Options,
    workers: int,
) -> list[Piece]:
    """Of the cells that one pass serves."""
    stored = {p for p, each in asked.items() if _stored(group[p], number, each, options)}
    folding = {
        p for p, each in asked.items() if p not in stored and _folds(group[p], each, options)
    }
    cells = tuple(sorted(stored | folding))
    if not cells:
        return []
    # An uncut run cuts batches by what all ask for together, the finishing process by what it
    # reads: where they would not be cut alike, the pass stays whole.
    left = asked.keys() - folding
    sizes = {_between_cuts(group, asked, some, options) for some in (cells, asked, left) if some}
    if len(sizes) > 1:
        return []
    (size,) = sizes
    pictures = len(group[cells[0]].dataset.roles[role].samples)
    parts = -(-pictures // size)
    each = max(1, parts // (_PIECES_PER_WORKER * workers)) * size
    if pictures <= each:
        return []
    return [
        Piece(number, role, cells, frozenset(folding), range(start, min(start + each, pictures)))
        for start in range(0, pictures, each)
    ]


def _between_cuts(
    group: Sequence[Cell], asked: dict[int, TokenRequest], some: Iterable[int], options: Options
) -> int:
    """Pictures between two cuts of a pass for ``some`` of the cells."""
    places = sorted(some)
    selectors = frozenset(selector for place in places for selector in asked[place].select)
    if not selectors:
        return PIECE
    store = user_store() if options.store else None
    architecture = inspect(group[places[0]].entry)[0]
    return shard_size(store, selectors, architecture, asked[places[0]].view)


def _stored(cell: Cell, number: int, request: TokenRequest, options: Options) -> bool:
    """Whether a pass for this alone leaves all it reads in the feature store. What no seed moves
    is there after the first repeat."""
    fresh = number == 0 or request.seeded
    return options.store and request.storable and fresh and can_be_keyed(request.view)


def _folds(cell: Cell, request: TokenRequest, options: Options) -> bool:
    alone = len(cell.requests) == 1 and cell.base is None and request.order == "once"
    if not alone or (request.ruled and not options.store):  # each piece would estimate cut-offs
        return False
    cutoffs = {rule: 0.0 for _, rule in request.ruled}
    context = context_of(inspect(cell.entry)[0], cell, cell.repeats[0], cutoffs)
    return cell.task.start(context).mergeable


def units(cells: Sequence[Cell], parts: Sequence[Piece]) -> list[list[int]]:
    """Which cells one process has to finish together: those that share a pass which was not cut.
    The others go alone."""
    cut_up = {(part.repeat, part.role, place) for part in parts for place in part.cells}
    units: list[list[int]] = []
    passes: list[set[Any]] = []
    added = cells[0].entry.test_time_registers
    if added is not None and added.searched:
        return [list(range(len(cells)))]
    for place, cell in enumerate(cells):
        number = {seed: number for number, (seed, _) in enumerate(cell.repeats)}
        spared = {
            read.key for read in cell.reads() if (number[read.seed], read.role, place) in cut_up
        }
        keys = {read.key for read in cell.reads()} - spared
        joined = [at for at, theirs in enumerate(passes) if keys & theirs]
        unit = sorted([place, *(each for at in joined for each in units[at])])
        keys |= {key for at in joined for key in passes[at]}
        units = [each for at, each in enumerate(units) if at not in joined] + [unit]
        passes = [each for at, each in enumerate(passes) if at not in joined] + [keys]
    return units


def run_piece(
    backbone: Backbone, piece: Piece, group: Sequence[Cell], options: Options
) -> dict[int, Seen]:
    """Read the pictures of a piece; what each of its cells got of them."""
    store = user_store() if options.store else None
    with exact_float32():
        running = {}
        cutoff_passes = {}
        for place in piece.cells:
            one = begin(backbone, group[place], Scored(), piece.repeat, options, store)
            cutoff_passes[place], one.scored.forward_passes = one.scored.forward_passes, 0
            one.folds = place in piece.folding
            running[place] = one
        for sharing in that_share(list(running.values()), piece.role):
            run_pass(backbone, piece.role, sharing, options, Silent(), store, piece.places)
        return {
            place: Seen(
                one.evaluation.state() if one.folds else None, cutoff_passes[place], one.scored
            )
            for place, one in running.items()
        }
