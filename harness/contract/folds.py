"""What an evaluation must not care about, and what it must be able to do: a fold over batches."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from harness.backbone.layout import TokenLayout, Tokens
from harness.contract.declared import merges
from harness.contract.findings import Failed, Skipped
from harness.contract.painted import Changed
from harness.contract.same import must_agree
from harness.contract.subject import BATCH, Stages, Subject, whole_pictures
from harness.data.dataset import ROLES, Dataset, Role
from harness.errors import HarnessError
from harness.features.select import select
from harness.task import Batch

SIZES = (1, 7, 64)
OF_REGISTERS = frozenset({"register", "registers-mean"})


def repeats(subject: Subject) -> None:
    first = subject.compared()
    must_agree(first, subject.play(subject.stages), "when run again", exact=True)
    if not subject.task.seeded(subject.protocol):
        again = subject.play(subject.stages, subject.start(seed=subject.seed + 1))
        must_agree(first, again, "with another seed, and it says that none moves it", exact=True)


def shared(subject: Subject) -> None:
    subject.compared()
    before = {role: _digest(batches) for role, batches in subject.stages.items()}
    subject.play(subject.stages)
    for role, batches in subject.stages.items():
        if _digest(batches) != before[role]:
            raise Failed(f"batches of {role} as they came", "changed numbers")


def forward_batch(subject: Subject) -> None:
    first = subject.compared()
    for size in SIZES:
        other = subject.play(subject.read(size))
        must_agree(first, other, f"with a forward batch of {size}, not {BATCH}", exact=False)


def arrival(subject: Subject) -> None:
    first, requests = subject.compared(), subject.requests
    if all(each.order != "once" or each.step_size for each in requests.values()):
        raise Skipped("every role is fed in an order that the seed fixes")
    stages = {
        role: batches
        if requests[role].order != "once" or requests[role].step_size
        else [batch for group in whole_pictures(batches)[::-1] for batch in group]
        for role, batches in subject.stages.items()
    }
    must_agree(first, subject.play(stages), "when pictures come the other way round", exact=False)


def registers(subject: Subject) -> None:
    first = subject.compared()
    if not subject.architecture.layout.registers:
        raise Skipped(f"{subject.backbone.name} has no registers")
    selectors = [each for request in subject.requests.values() for each in request.select]
    if any(each.token in OF_REGISTERS for each in selectors):
        raise Skipped("it asks for registers")

    def other(role: Role, batch: Batch) -> Batch:
        tokens = {read: _other_registers(each) for read, each in batch.tokens.items()}
        ids = [batch.ids[picture] for picture in batch.sample]
        chosen = {each: select(each, tokens, ids, subject.cutoffs) for each in batch.selected}
        return replace(batch, tokens=tokens, selected=chosen)

    must_agree(
        first, subject.play(subject.stages, change=other), "with other register values", exact=True
    )


def _other_registers(tokens: Tokens) -> Tokens:
    """In another order, and three times as long: a sum over all of them is another too."""
    return replace(tokens, registers=3 * tokens.registers.roll(1, dims=1) + 1)


def layout(subject: Subject) -> None:
    first, facts = subject.compared(), subject.architecture
    if not facts.layout.registers:
        raise Skipped(f"{subject.backbone.name} has no registers")
    turned: Literal["prefix", "suffix"]
    turned = "prefix" if facts.layout.register_position == "suffix" else "suffix"
    there = TokenLayout(facts.layout.classes, facts.layout.registers, turned)
    other = replace(facts, layout=there)
    if subject.ask(architecture=other) != subject.requests:
        raise Failed("the same requests", f"others where registers are a {turned}")
    outcome = subject.play(subject.stages, subject.start(other))
    must_agree(first, outcome, f"where registers are a {turned} of the sequence", exact=True)


def state(subject: Subject) -> None:
    """Left in the middle of the first role, and of the last, and taken up by another."""
    first = subject.compared()
    roles = list(subject.stages)
    for role in dict.fromkeys((roles[0], roles[-1])):
        began, goes_on = subject.start(), subject.start()
        middle = len(subject.stages[role]) // 2
        for earlier in ROLES[: ROLES.index(role)]:
            if earlier in subject.stages:
                subject.feed(began, earlier, subject.stages[earlier])
                began.end(earlier)
        subject.feed(began, role, subject.stages[role][:middle])
        try:
            goes_on.load(pickle.loads(pickle.dumps(began.state())))
        except NotImplementedError:
            raise Skipped("it offers no state: a killed run begins such a cell again") from None
        rest = {role: subject.stages[role][middle:]}
        rest |= {
            r: subject.stages[r] for r in ROLES[ROLES.index(role) + 1 :] if r in subject.stages
        }
        outcome = subject.play(rest, goes_on)
        must_agree(first, outcome, f"when taken up in the middle of {role}", exact=True)


def merge(subject: Subject) -> None:
    """Two workers, half of the pictures of every role each; the last role ends where both are."""
    first = subject.compared()
    merges(subject)
    left, right = subject.start(), subject.start()
    roles = list(subject.stages)
    for role in roles:
        groups = whole_pictures(subject.stages[role])
        halves = groups[::2], groups[1::2]
        for worker, half in zip((left, right), halves, strict=True):
            subject.feed(worker, role, [batch for group in half for batch in group])
            if role != roles[-1]:
                worker.end(role)
    left.merge(right)
    left.end(roles[-1])
    must_agree(
        first,
        left.finish(),
        "when two halves are merged, and it does not say mergeable = False",
        False,
    )


def bad_picture(subject: Subject) -> None:
    first = subject.compared()
    ids = [str(each) for each in first.columns["image_id"]]
    role = "test" if "test" in subject.stages else list(subject.stages)[-1]
    known = [sample.id for sample in subject.roles[role].samples]
    spoilt: dict[Role, Dataset] = dict(subject.roles)
    for each in subject.stages:
        place = known.index(ids[0]) if each == role else 0
        spoilt[each] = Changed(subject.roles[each], bad=place)
    outcome = subject.play(subject.read(roles=spoilt), subject.start(roles=spoilt))
    if ids[0] in {str(each) for each in outcome.columns["image_id"]}:
        raise Failed("no row of a picture that did not come", f"one of {ids[0]}")


def empty(subject: Subject) -> None:
    subject.compared()
    last = list(subject.stages)[-1]
    stages: Stages = {**subject.stages, last: []}
    try:
        outcome = subject.play(stages)
    except HarnessError:
        return
    raise Failed(
        f"a HarnessError where no picture of {last} could be used",
        f"an outcome of {len(outcome.columns['image_id'])} pictures",
    )


def _digest(batches: Sequence[Batch]) -> str:
    """Of every number that a batch brings."""
    digest = hashlib.sha256()
    for batch in batches:
        for value in (
            batch.tokens,
            batch.attention,
            batch.received,
            batch.selected,
            batch.pixels,
            batch.dense,
            batch.dense_crops,
        ):
            _add(digest, value)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for each in value.values():
            _add(digest, each)
    elif isinstance(value, tuple | list):
        for each in value:
            _add(digest, each)
    elif hasattr(value, "tobytes"):
        digest.update(value.tobytes())
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            _add(digest, getattr(value, name))
