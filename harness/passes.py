"""One pass over the pictures of a role, for all evaluations that may share it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import heads
from harness.backbone.architecture import Architecture
from harness.backbone.vit import Backbone
from harness.data.dataset import ROLES, Role
from harness.errors import HarnessError
from harness.features.cutoffs import resolve
from harness.features.extract import Pass, Tally, out_of_memory, stream
from harness.features.keys import RunningModel, can_be_keyed
from harness.features.loading import processes
from harness.features.order import Steps, indices
from harness.features.outliers import OutlierRule
from harness.features.select import Selector
from harness.features.serve import Reader, batches, stored_features
from harness.features.store import Feature, Store, shard_size
from harness.language.texts import Texts
from harness.options import Options
from harness.plan import Cell, Repeat
from harness.progress import Progress
from harness.recording import Scored
from harness.task import Batch, Context, Evaluation, HeadTask, TokenRequest

PIECE = 256
"""Pictures, each read once, that run together where no vectors of them are stored: no batch goes
across. So what stands in a batch beside a picture, which can move the last bits of its tokens, is
the same in a run that is cut into pieces for several machines."""


@dataclass
class Running:
    """One repeat of a cell, being scored. ``folds``: it is given what a pass reads, and is not
    there only for its vectors to be stored."""

    cell: Cell
    repeat: Repeat
    evaluation: Evaluation
    context: Context[Any]
    scored: Scored
    folds: bool = True

    @property
    def cutoffs(self) -> Mapping[OutlierRule, float]:
        return self.context.cutoffs


def begin(
    backbone: Backbone,
    cell: Cell,
    scored: Scored,
    number: int,
    options: Options,
    store: Store | None,
) -> Running:
    """A repeat before its first picture. That of a further test set takes over the head of its
    base, the head's cut-offs, and the list of pictures that it was trained without."""
    repeat = cell.repeats[number]
    head = None
    if cell.base is not None:
        base = cell.base.done
        assert base is not None
        head = heads.read(cell.base.path, base, backbone.weights_digest)
        without = base.bad_pictures
        scored.bad += [(f"{base.dataset.name}/{each.id}", each.reason) for each in without]
    if head is None:
        cutoffs, passes = _cutoffs(backbone, cell, repeat, options, store)
    else:
        cutoffs, passes = dict(head.cutoffs), 0
    scored.forward_passes += passes
    facts, device = backbone.architecture, str(backbone.device)
    context = context_of(facts, cell, repeat, cutoffs, device, cell.block)
    if head is None:
        evaluation = cell.task.start(context)
    else:
        assert isinstance(cell.task, HeadTask)
        evaluation = cell.task.judge(context, head)
    return Running(cell, repeat, evaluation, context, scored)


def context_of(
    architecture: Architecture,
    cell: Cell,
    repeat: Repeat,
    cutoffs: Mapping[OutlierRule, float],
    device: str = "cpu",
    block: int | None = None,
) -> Context[Any]:
    """What an evaluation of ``repeat`` may know when it starts."""
    data, text = cell.dataset.roles, None
    if cell.task.needs_text:
        drawn = {"weights": cell.variant.get("weights"), "seed": cell.variant.get("seed")}
        given = {name: value for name, value in drawn.items() if value is not None}
        text = Texts(cell.entry, device, stored=cell.stored, **given)
    how = repeat.seed, cutoffs, device, block
    return Context(architecture, data, cell.protocol, *how, text)


def _cutoffs(
    backbone: Backbone, cell: Cell, repeat: Repeat, options: Options, store: Store | None
) -> tuple[dict[OutlierRule, float], int]:
    """The cut-off of every rule for outliers among what ``cell`` asks for, estimated on its first
    role (train, where there is one), and the forward passes that it took."""
    role = next(role for role in ROLES if role in repeat.requests)
    request = repeat.requests[role]
    return resolve(
        backbone,
        RunningModel.of(backbone, cell.entry, cell.weights_from),
        cell.dataset.roles[role],
        cell.source(role, repeat.seed),
        request.ruled,
        store,
        options.batch_size,
        processes(options.workers),
        options.on_bad_picture == "skip",
    )


def that_share(listeners: list[Running], role: Role) -> list[list[Running]]:
    """Listeners brought together where one pass can serve them: not where one rule for outliers
    came to two cut-offs (of two layers, say)."""
    groups: dict[tuple[object, ...], list[list[Running]]] = {}
    for one in listeners:
        pictures = one.cell.dataset.fingerprints[role]
        alike = groups.setdefault((pictures, *one.repeat.requests[role].sharing), [])
        for group in alike:
            if all(
                one.cutoffs.get(rule, cutoff) == cutoff
                for other in group
                for rule, cutoff in other.cutoffs.items()
            ):
                group.append(one)
                break
        else:
            alike.append([one])
    return [group for alike in groups.values() for group in alike]


def run_pass(
    backbone: Backbone,
    role: Role,
    listeners: list[Running],
    options: Options,
    progress: Progress,
    store: Store | None,
    places: range | None = None,
) -> None:
    """One pass over the pictures of a role, for all ``listeners``; of those in ``places`` alone,
    where the pass is run in pieces (``pieces.py`` says where it may be cut)."""
    requests: list[TokenRequest] = [one.repeat.requests[role] for one in listeners]
    dataset = listeners[0].cell.dataset.roles[role]
    first = requests[0]
    wanted = Pass(
        view=first.view,
        reads=frozenset().union(*(request.reads for request in requests)),
        attention=frozenset().union(*(request.attention for request in requests)),
        received=frozenset().union(*(request.received for request in requests)),
        pixels=any(request.pixels for request in requests),
        precision=first.precision,
        selectors=frozenset(selector for request in requests for selector in request.select),
        cutoffs={rule: cutoff for one in listeners for rule, cutoff in one.cutoffs.items()},
        dense=first.dense,
    )
    tally = Tally(options.batch_size)
    steps = [Steps(request.step_size) for request in requests]
    names = ", ".join(dict.fromkeys(one.cell.protocol.name for one in listeners))
    total = first.pictures or len(dataset.samples if places is None else places)
    progress.start(f"{backbone.name} · {listeners[0].cell.dataset.name} · {names}", total)
    began = time.perf_counter()

    def tell() -> None:
        for notices in (tally.notices, [] if store is None else store.notices):
            while notices:
                progress.note(notices.pop(0))

    try:
        read = _batches(backbone, role, listeners, wanted, tally, options, progress, store, places)
        folding = [(one, dealt) for one, dealt in zip(listeners, steps, strict=True) if one.folds]
        for batch in read:
            for one, dealt in folding:
                for part in dealt.add(batch):
                    one.evaluation.update(role, part)
            tell()
        for one, dealt in folding:
            for part in dealt.rest():
                one.evaluation.update(role, part)
        tell()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise HarnessError(
            f"out of memory on {backbone.device} while {names} scored a picture: a smaller "
            f"--batch-size, another --device, or a smaller max_patches with --on-bad-image skip"
        ) from None
    seconds = time.perf_counter() - began
    for one in listeners:
        one.scored.pictures += tally.pictures
        one.scored.forward_passes += tally.forward_passes
        one.scored.seconds += seconds
        one.scored.bad += tally.bad
        one.scored.dtype = backbone.precision(first.precision)


def _batches(
    backbone: Backbone,
    role: Role,
    listeners: list[Running],
    wanted: Pass,
    tally: Tally,
    options: Options,
    progress: Progress,
    store: Store | None,
    places: range | None,
) -> Iterator[Batch]:
    """What a pass reads: of pictures read once, vectors that the store has are not computed."""
    # Those of one round have one seed.
    cell, (seed, requests) = listeners[0].cell, listeners[0].repeat
    dataset, first = cell.dataset.roles[role], requests[role]
    how = seed, processes(options.workers), options.on_bad_picture == "skip"
    if first.order != "once" or not wanted.selectors:
        order = indices(first, len(dataset.samples), seed) if places is None else places
        cut = PIECE if first.order == "once" else None
        yield from stream(backbone, dataset, wanted, order, tally, *how, progress.advance, cut)
        return
    features: dict[Selector, Feature] = {}
    if store is not None and can_be_keyed(first.view):
        running = RunningModel.of(backbone, cell.entry, cell.weights_from)
        source = cell.source(role, seed)
        features = stored_features(store, running, source, wanted, len(dataset.samples))
    shard = shard_size(store, wanted.selectors, backbone.architecture, first.view)
    reader = Reader(backbone, dataset, wanted, tally, *how, shard, progress.advance)
    alone = all(one.repeat.requests[role].storable for one in listeners)
    yield from batches(reader, features, alone, places)


@dataclass(frozen=True)
class Seen:
    """What a piece of a pass gave one cell. ``state`` is its fold's, or None where only vectors
    were wanted: those are in the feature store. ``cutoff_passes`` is what the cell's cut-offs for
    outliers took there, ``cost`` what the rest has cost."""

    state: object | None
    cutoff_passes: int
    cost: Scored


Elsewhere = Mapping[tuple[int, Role, int], Sequence[Seen]]
"""By repeat, role and the cell's place in its group: its pieces, in the pictures' order."""


def take(one: Running, role: Role, pieces: Sequence[Seen]) -> bool:
    """Take over what pieces of a pass saw elsewhere; True where nothing is left to be read."""
    if not pieces:
        return False
    scored = one.scored
    for number, piece in enumerate(pieces):
        scored.seconds += piece.cost.seconds
        scored.forward_passes += piece.cost.forward_passes
        scored.dtype = piece.cost.dtype
        if piece.state is None:
            continue
        scored.pictures += piece.cost.pictures
        scored.bad += piece.cost.bad
        if number == 0:
            one.evaluation.load(piece.state)
        else:
            other = one.cell.task.start(one.context)
            other.load(piece.state)
            one.evaluation.merge(other)
    scored.forward_passes += max(piece.cutoff_passes for piece in pieces)
    return pieces[0].state is not None
