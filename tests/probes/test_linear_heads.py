from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.probes import linear
from harness.probes.linear import Descent, Head, LinearHeads

WIDTH, CLASSES, STEPS = 12, 7, 30
COLUMNS = ((6, 9), (6, 12), (0, 9), (0, 12))
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
GRID = [
    Head(f"{start}:{stop} at {rate}", start, stop, rate * 4)
    for start, stop in COLUMNS
    for rate in RATES
]


def batches(
    count: int = STEPS, rows: int = 20, seed: int = 0, classes: int = CLASSES
) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(rows, WIDTH, generator=generator),
            torch.randint(classes, (rows,), generator=generator),
        )
        for _ in range(count)
    ]


def trained(heads: LinearHeads, steps: list[tuple[Tensor, Tensor]]) -> LinearHeads:
    for features, labels in steps:
        heads.step(features, labels)
    return heads


def by_torch(
    head: Head, start: tuple[Tensor, Tensor], descent: Descent, steps: list[tuple[Tensor, Tensor]]
) -> torch.nn.Linear:
    """One head as DINOv2's code trains it (dinov2/eval/linear.py)."""
    model = torch.nn.Linear(head.stop - head.start, len(start[1]))
    with torch.no_grad():
        model.weight.copy_(start[0])
        model.bias.copy_(start[1])
    optimiser = torch.optim.SGD(
        model.parameters(),
        head.learning_rate,
        momentum=descent.momentum,
        weight_decay=descent.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, descent.steps, eta_min=0)
    for features, labels in steps:
        loss = torch.nn.functional.cross_entropy(model(features[:, head.start : head.stop]), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


@pytest.mark.parametrize(
    ("logits", "weight_decay", "classes"),
    [
        (2**24, 0.0, 7),
        (2 * 20 * 7, 0.0, 7),
        (1, 0.01, 7),
        (2**24, 0.01, 20),
        (3 * 20 * 20, 0.0, 20),
    ],
)
def test_the_grid_is_52_heads_that_torch_trains_one_by_one(
    logits: int, weight_decay: float, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, some at a time, and one at a time; of few classes and of more."""
    monkeypatch.setattr(linear, "_LOGITS", logits)
    assert len(GRID) == 52
    descent, steps = Descent(STEPS, weight_decay=weight_decay), batches(classes=classes)
    heads = LinearHeads(GRID, classes, descent)
    starts = [tuple(each.clone() for each in heads.weights(place)) for place in range(52)]
    trained(heads, steps)
    moved = 0.0
    for place, head in enumerate(GRID):
        first = starts[place]
        expected = by_torch(head, (first[0], first[1]), descent, steps)
        weight, bias = heads.weights(place)
        torch.testing.assert_close(weight, expected.weight.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bias, expected.bias.detach(), rtol=1e-4, atol=1e-6)
        moved = max(moved, float((weight - first[0]).abs().max()))
    assert moved > 0.1, "nothing was trained: it shows nothing"


def test_heads_begin_as_published_and_each_with_its_own_weights() -> None:
    head, other = Head("one", 0, 400, 0.1), Head("other", 0, 400, 0.1)
    heads = LinearHeads([head, other], 500, Descent(1))
    weight, bias = heads.weights(0)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-4)
    assert float(weight.std()) == pytest.approx(0.01, rel=0.01)
    assert not bias.any()
    assert not torch.equal(weight, heads.weights(1)[0])


def test_a_head_begins_the_same_whatever_else_is_in_the_grid_and_by_the_seed() -> None:
    whole = LinearHeads(GRID, CLASSES, Descent(1), seed=3)
    alone = LinearHeads(GRID[17:18], CLASSES, Descent(1), seed=3)
    other = LinearHeads(GRID[17:18], CLASSES, Descent(1), seed=4)
    assert torch.equal(whole.weights(17)[0], alone.weights(0)[0])
    assert not torch.equal(alone.weights(0)[0], other.weights(0)[0])


def test_the_learning_rate_ends_at_nothing() -> None:
    descent = Descent(10)
    shares = [descent.share(step) for step in range(11)]
    assert shares[0] == 1 and shares[5] == pytest.approx(0.5) and shares[10] == 0
    assert shares == sorted(shares, reverse=True)


def test_training_taken_up_again_is_training_gone_through() -> None:
    steps = batches()
    whole = trained(LinearHeads(GRID, CLASSES, Descent(STEPS)), steps)
    first = trained(LinearHeads(GRID, CLASSES, Descent(STEPS)), steps[:11])
    resumed = LinearHeads(GRID, CLASSES, Descent(STEPS), seed=9)
    resumed.load(pickle.loads(pickle.dumps(first.state())))
    trained(resumed, steps[11:])
    for place in range(len(GRID)):
        assert torch.equal(whole.weights(place)[0], resumed.weights(place)[0])
        assert torch.equal(whole.weights(place)[1], resumed.weights(place)[1])


def test_a_state_does_not_change_when_training_goes_on() -> None:
    heads = LinearHeads(GRID, CLASSES, Descent(STEPS))
    state = heads.state()
    before = pickle.dumps(state)
    trained(heads, batches(3))
    assert pickle.dumps(state) == before


def test_batches_of_another_size_are_taken_in_any_order() -> None:
    sizes = (3, 20, 1, 7)
    steps = [batches(1, rows, seed=rows)[0] for rows in sizes]
    heads = LinearHeads(GRID[-1:], CLASSES, Descent(len(steps)))
    start = tuple(each.clone() for each in heads.weights(0))
    expected = by_torch(GRID[-1], (start[0], start[1]), Descent(len(steps)), steps)
    trained(heads, steps)
    torch.testing.assert_close(heads.weights(0)[0], expected.weight.detach(), rtol=1e-4, atol=1e-6)


def with_logits(values: Tensor) -> tuple[LinearHeads, Tensor]:
    """One head whose logits of row i are ``values[i]``."""
    rows, classes = values.shape
    heads = LinearHeads([Head("one", 0, rows, 0.1)], classes, Descent(1))
    heads.weights(0)[0].copy_(values.T)
    return heads, torch.eye(rows)


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=8))
def test_the_rank_of_the_right_class_is_its_place_in_a_stable_sort(rows: list[list[int]]) -> None:
    heads, features = with_logits(torch.tensor(rows, dtype=torch.float32))
    for label in range(6):
        judged = heads.judge(features, torch.full((len(rows),), label))
        for row, values in enumerate(rows):
            order = sorted(range(6), key=lambda c: (-values[c], c))
            assert int(judged.rank[row, 0]) == order.index(label)
            assert int(judged.predicted[row, 0]) == order[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_head_that_diverged_is_never_right(bad: float) -> None:
    heads = LinearHeads(GRID[:2], CLASSES, Descent(1))
    heads.weights(1)[0][2, 0] = bad
    features, labels = torch.ones(4, WIDTH), torch.full((4,), 2)
    assert heads.finite() == (True, False)
    assert heads.judge(features, labels).rank[:, 1].tolist() == [CLASSES] * 4


def test_judging_in_turns_is_judging_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = trained(LinearHeads(GRID, CLASSES, Descent(STEPS)), batches())
    features, labels = batches(1, 50, seed=5)[0]
    at_once = heads.judge(features, labels)
    monkeypatch.setattr(linear, "_LOGITS", 3 * 50 * CLASSES)
    in_turns = heads.judge(features, labels)
    assert torch.equal(at_once.rank, in_turns.rank)
    assert torch.equal(at_once.predicted, in_turns.predicted)
    assert len(at_once.rank.unique()) > 1


def test_two_heads_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        LinearHeads([GRID[0], GRID[0]], CLASSES, Descent(1))
