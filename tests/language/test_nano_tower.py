"""The small text tower: its words, its file, and every way in which the file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from harness.errors import HarnessError
from harness.language.nano_tower import NanoTower, TowerFacts, Towers, load_nano_tower, tower_bytes
from harness.language.nano_words import PADDING, START, UNKNOWN, Words, vocabulary_of, words_of

KEY = "nano text tower"
FACTS = TowerFacts(
    **{"width": 16, "depth": 2, "heads": 2, "context": 8, "shared": 12, "picture": 20},
    vocabulary=("a", "camp", "forest", "of", "picture"),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "tower.safetensors"
    path.write_bytes(tower_bytes(FACTS, Towers(FACTS)))
    return path


def tower(path: Path, **options: Any) -> NanoTower:
    return load_nano_tower(path, "digest", **options)


# ------------------------------------------------------------------------------------------- words


def test_words_are_letters_and_digits_in_lower_case() -> None:
    assert words_of("A dining_room, with 2 Émile's!") == [
        *("a", "dining", "room", "with", "2", "émile", "s"),
    ]
    assert words_of("  ...__ ") == []


def test_a_vocabulary_keeps_the_commonest_words_in_alphabetical_order() -> None:
    assert vocabulary_of(["b a a", "c b a", "d"], 3) == ("a", "b", "c")


def test_rows_hold_a_start_the_words_and_padding() -> None:
    words = Words(("a", "forest"), 5)
    assert words.rows(["A forest?", "forest xyz", ""]).tolist() == [
        [START, 3, 4, PADDING, PADDING],
        [START, 4, UNKNOWN, PADDING, PADDING],
        [START, *[PADDING] * 4],
    ]
    assert words.rows([]).shape == (0, 5)


def test_a_text_that_is_too_long_is_cut_and_told() -> None:
    words = Words(("a",), 5)
    texts = ["a a a a", "a a a a a", "a " * 3000]
    assert words.cut(texts).tolist() == [False, True, True]
    assert torch.equal(words.rows(texts)[0], words.rows(texts)[2])


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_a_row(text: str) -> None:
    row = Words(("a",), 6).rows([text])[0]
    assert row[0] == START and row.max() <= 3 and row.min() >= 0


# ------------------------------------------------------------------------------------------- tower


def test_vectors_have_unit_length_and_do_not_depend_on_their_neighbours(file: Path) -> None:
    loaded = tower(file)
    texts = ["a picture of a forest", "camp", "", "неизвестно"]
    together = loaded.encode(texts)
    assert together.shape == (4, 12) and together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    for text, vector in zip(texts, together, strict=True):
        torch.testing.assert_close(loaded.encode([text])[0], vector)
    assert loaded.encode([]).shape == (0, 12)
    many = loaded.encode(texts * 70)  # more than one batch
    torch.testing.assert_close(many[-4:], together)


def test_padding_is_not_read(file: Path) -> None:
    """A tower of twice the context with the same weights says the same."""
    state = safetensors.torch.load_file(file)
    longer = FACTS.model_copy(update={"context": 16})
    towers = Towers(longer)
    places = torch.cat([state["places"].float(), torch.randn(8, 16)])
    towers.load_state_dict(
        {**{name: value.float() for name, value in state.items()}, "places": places}
    )
    other = NanoTower("longer", "", longer, towers)
    texts = ["a forest", "a picture of a camp"]
    torch.testing.assert_close(other.encode(texts), tower(file).encode(texts))


def test_a_caption_is_read_in_order(file: Path) -> None:
    one, other = tower(file).encode(["a forest of camp", "a camp of forest"])
    assert not torch.allclose(one, other, atol=1e-4)


def test_project_is_the_projection_and_keeps_the_shape(file: Path) -> None:
    loaded = tower(file)
    weight = safetensors.torch.load_file(file)["picture_projection.weight"].float()
    tokens = torch.randn(2, 3, 20)
    torch.testing.assert_close(loaded.project(tokens), tokens @ weight.T)
    torch.testing.assert_close(loaded.project(tokens.half()), tokens.half().float() @ weight.T)
    with pytest.raises(HarnessError, match="width 20, not of 21"):
        loaded.project(torch.randn(2, 21))


def test_facts_of_the_file_come_back(file: Path) -> None:
    loaded = tower(file)
    assert (loaded.width, loaded.digest, loaded.name) == (12, "digest", "nano tower.safetensors")
    assert loaded.scale == pytest.approx(1 / 0.07) and loaded.bias == 0
    assert loaded.cut(["a " * 7, "a " * 8]).tolist() == [False, True]


def test_random_weights_follow_from_the_seed_and_leave_the_callers_random_state(file: Path) -> None:
    state = torch.get_rng_state()
    texts = ["a forest", "a camp"]
    one, same, other = (
        tower(file, weights="random", seed=seed).encode(texts) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_towers_are_equal_files() -> None:
    torch.manual_seed(3)
    towers = Towers(FACTS)
    assert tower_bytes(FACTS, towers) == tower_bytes(FACTS, towers)


# --------------------------------------------------------------------------------------- bad files


def rewritten(file: Path, state: dict[str, Any] | None = None, **facts: Any) -> Path:
    with safe_open(file, framework="pt") as opened:
        told = json.loads(opened.metadata()[KEY])
    whole = {**safetensors.torch.load_file(file), **(state or {})}
    whole = {name: value for name, value in whole.items() if value is not None}
    file.write_bytes(safetensors.torch.save(whole, {KEY: json.dumps({**told, **facts})}))
    return file


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"format": 2}, "format"),
        ({"width": 0}, "width"),
        ({"width": 10**9}, "width"),
        ({"heads": 3}, "do not divide"),
        ({"depth": "2"}, "depth"),
        ({"depth": 3}, "missing"),
        ({"depth": 1}, "not known"),
        ({"context": 9}, r"places is \[8, 16\] where its sizes say \[9, 16\]"),
        ({"vocabulary": []}, "vocabulary"),
        ({"vocabulary": ["a", "a"]}, "twice"),
        ({"vocabulary": ["Two words"]}, "not one word"),
        ({"vocabulary": ["a"]}, "words.weight is"),
        ({"more": 1}, "more"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    file: Path, facts: dict[str, Any], why: str
) -> None:
    with pytest.raises(HarnessError, match=why) as caught:
        tower(rewritten(file, **facts))
    assert str(file) in str(caught.value)


def test_weights_that_are_missing_or_not_finite_are_refused(file: Path) -> None:
    with pytest.raises(HarnessError, match="places holds what is not finite"):
        tower(rewritten(file, {"places": torch.full((8, 16), torch.nan)}))
    with pytest.raises(HarnessError, match="log_scale is missing"):
        tower(rewritten(file, {"places": torch.zeros(8, 16), "log_scale": None}))


def test_sizes_that_are_claimed_are_not_allocated(file: Path) -> None:
    """Of this one the weights would take 50 GB."""
    claimed = {"width": 4096, "depth": 64, "heads": 64}
    with pytest.raises(HarnessError, match=r"where its sizes say|is missing"):
        tower(rewritten(file, **claimed))


def test_weights_that_are_no_fractions_are_refused(file: Path) -> None:
    with pytest.raises(HarnessError, match=r"places is of torch\.int64"):
        tower(rewritten(file, {"places": torch.zeros(8, 16, dtype=torch.int64)}))


def test_files_of_another_kind_are_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for name, data, why in (
        ("empty", b"", "not a text tower"),
        ("cut", whole[: len(whole) // 2], "not a text tower"),
        ("text", b"hello" * 100, "not a text tower"),
        ("other", safetensors.torch.save({"a": torch.zeros(1)}), "its metadata has no"),
        ("words", safetensors.torch.save({"a": torch.zeros(1)}, {KEY: "{"}), "not a text tower"),
        ("list", safetensors.torch.save({"a": torch.zeros(1)}, {KEY: "[]"}), "not a text tower"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(HarnessError, match=why):
            tower(path)
    with pytest.raises(HarnessError, match="no such text tower"):
        tower(tmp_path / "nowhere")
    with pytest.raises(HarnessError, match="no such text tower"):
        tower(tmp_path)
