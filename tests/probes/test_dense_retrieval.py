"""Segmentation by retrieval against the definition, written out densely."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from harness.probes import dense_retrieval
from harness.probes.dense_retrieval import PatchMemory, chosen_patches, patch_shares

CLASSES = 4


def drawn(pictures: int, seed: int = 0) -> list[tuple[str, Tensor, Tensor]]:
    """Tokens ``[3, 5, 6]`` and labels ``[12, 20]``, a few of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(pictures):
        labels = torch.randint(CLASSES, (6, 10), generator=generator)
        labels = labels.repeat_interleave(2, 0).repeat_interleave(2, 1)
        labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
        found.append((f"p{number}", torch.randn(3, 5, 6, generator=generator), labels))
    return found


def filled(pictures: list[tuple[str, Tensor, Tensor]], most: int | None = None) -> PatchMemory:
    memory = PatchMemory(CLASSES, most)
    for name, tokens, labels in pictures:
        memory.add(name, tokens, patch_shares(labels, (3, 5), CLASSES))
    return memory


def test_a_prediction_is_the_definitions() -> None:
    pictures, (_, query, _) = drawn(6), drawn(1, seed=1)[0]
    # Every patch is 4 x 4 pixels: one-hot labels averaged over the labelled ones.
    keys, values = [], []
    for _, tokens, labels in pictures:
        blocks = labels.view(3, 4, 5, 4).permute(0, 2, 1, 3).flatten(2)
        one_hot = torch.stack([(blocks == each) for each in range(CLASSES)], -1).double()
        total = one_hot.sum((2, 3))
        share = one_hot.sum(2) / total.clamp_min(1)[..., None]
        keys.append(functional.normalize(tokens, dim=2)[total > 0])
        values.append(share[total > 0])
    similarities = functional.normalize(query, dim=2).flatten(0, 1) @ torch.cat(keys).T
    nearest = similarities.topk(30)
    weights = (nearest.values.double() / 0.02).softmax(1)
    expected = (weights[..., None] * torch.cat(values)[nearest.indices]).sum(1)
    retrieval = filled(pictures).retrieval()
    found = retrieval.label_shares(query)
    torch.testing.assert_close(found.double(), expected.view(3, 5, -1), rtol=1e-4, atol=1e-5)
    maps = found.permute(2, 0, 1)[None]
    larger = functional.interpolate(maps, (31, 44), mode="bilinear", align_corners=False)
    assert torch.equal(retrieval.predict(query, (31, 44)), larger[0].argmax(0))


def test_a_picture_that_is_remembered_is_told_as_it_was_labelled() -> None:
    name, tokens, labels = drawn(1)[0]
    retrieval = filled([(name, tokens, labels), *drawn(4, seed=2)[1:]]).retrieval()
    found = retrieval.label_shares(tokens, k=1)
    torch.testing.assert_close(found, patch_shares(labels, (3, 5), CLASSES))
    # Of a length that is no matter:
    torch.testing.assert_close(retrieval.label_shares(7 * tokens, k=1), found)


@settings(deadline=None)
@given(st.permutations(range(5)), st.sampled_from([None, 4]))
def test_the_order_of_pictures_moves_nothing(order: list[int], most: int | None) -> None:
    pictures, query = drawn(5), drawn(1, seed=1)[0][1]
    first = filled(pictures, most).retrieval().label_shares(query, k=7)
    second = filled([pictures[place] for place in order], most).retrieval()
    assert torch.equal(second.label_shares(query, k=7), first)


def test_of_patches_that_are_alike_those_of_the_first_name_are_taken() -> None:
    tokens, whole = torch.ones(3, 5, 6), torch.zeros(12, 20)
    labelled = [("b", tokens, whole + 1), ("c", tokens, whole + 2), ("a", tokens, whole)]
    for order in (labelled, labelled[::-1]):
        found = filled(order).retrieval().label_shares(tokens, k=5)
        assert (found[..., 0] == 1).all()


def test_labels_gathered_at_a_time_move_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    retrieval, query = filled(drawn(4)).retrieval(), drawn(1, seed=1)[0][1]
    together = retrieval.label_shares(query)
    monkeypatch.setattr(dense_retrieval, "_QUERIES", 1)
    torch.testing.assert_close(retrieval.label_shares(query), together)


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(0, 2**32 - 1),
)
def test_shares_are_of_the_area_at_any_size_and_add_up(
    size: tuple[int, int], grid: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES + 1, size, generator=generator)
    labels[labels == CLASSES] = 255
    # Every pixel cut into as many pieces as the grid has patches: then patches hold whole ones.
    pieces = labels.repeat_interleave(grid[0], 0).repeat_interleave(grid[1], 1)
    blocks = pieces.view(grid[0], size[0], grid[1], size[1]).permute(0, 2, 1, 3).flatten(2)
    counts = torch.stack([(blocks == each).sum(2) for each in range(CLASSES)], -1).double()
    expected = (counts / counts.sum(-1, keepdim=True).clamp_min(1)).float()
    found = patch_shares(labels, grid, CLASSES)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    labelled = (blocks != 255).any(2)
    torch.testing.assert_close(found.sum(-1), labelled.float())


def test_a_label_that_is_no_class_is_refused() -> None:
    for wrong in (CLASSES, -1):
        with pytest.raises(ValueError, match=f"label {wrong} is none of 4"):
            patch_shares(torch.tensor([[0, wrong]]), (1, 1), CLASSES)


def test_of_a_bounded_memory_rare_classes_have_the_larger_share() -> None:
    shares = torch.zeros(200, 2)
    shares[:180, 0] = 1
    shares[180:, 1] = 1
    kept = [chosen_patches(shares, 40, 0, f"p{number}") for number in range(50)]
    assert all(len(each) == 40 and each.equal(each.unique()) for each in kept)
    rare = sum(int((each >= 180).sum()) for each in kept) / 50
    assert rare > 15, "drawn evenly, 4 of 40 would be of the rare class"
    assert chosen_patches(shares, 40, 0, "p0").equal(kept[0])
    assert not kept[0].equal(kept[1]) and not chosen_patches(shares, 40, 1, "p0").equal(kept[0])


def test_patches_without_a_label_are_not_remembered() -> None:
    _, tokens, labels = drawn(1)[0]
    labels[:4] = 255  # the first row of patches
    assert len(filled([("one", tokens, labels)])) == 10
    assert len(filled([("one", tokens, labels)], most=3)) == 3
    with pytest.raises(ValueError, match="no labelled patch"):
        filled([("one", tokens, torch.full_like(labels, 255))]).retrieval()


def test_fewer_patches_than_k_are_all_taken() -> None:
    retrieval = filled(drawn(1)).retrieval()
    query = drawn(1, seed=1)[0][1]
    assert torch.equal(retrieval.label_shares(query, k=300), retrieval.label_shares(query, k=15))


def test_a_memory_is_resumed() -> None:
    pictures, query = drawn(5), drawn(1, seed=1)[0][1]
    whole = filled(pictures, 4).retrieval().label_shares(query)
    resumed = PatchMemory(CLASSES, 4)
    resumed.load(filled(pictures[:2], 4).state())
    for name, tokens, labels in pictures[2:]:
        resumed.add(name, tokens, patch_shares(labels, (3, 5), CLASSES))
    assert torch.equal(resumed.retrieval().label_shares(query), whole)
    with pytest.raises(ValueError, match="p0 is remembered already"):
        resumed.add("p0", torch.zeros(1, 1, 6), torch.ones(1, 1, CLASSES))
