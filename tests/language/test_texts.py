"""Text vectors are computed once, and the tower is loaded for nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.features.store import Store
from harness.features.upkeep import kept, prune, verify
from harness.language import texts as module
from harness.language.source import TextSource
from harness.language.texts import Texts
from harness.registry import ModelEntry

WIDTH, EMBEDDED = 5, 3


class Counted:
    """A tower that counts what it is asked for."""

    name, digest, width, scale, bias = "counted", "", EMBEDDED, 14.3, -2.5

    def __init__(self, projects: bool = True) -> None:
        self.encoded: list[str] = []
        self.matrix = torch.arange(15.0).reshape(WIDTH, EMBEDDED) if projects else None

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        self.encoded += texts
        rows = [[len(text), text.count("a") + 1.0, hash_of(text)] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(rows), dim=1)

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens if self.matrix is None else tokens @ self.matrix + 0.5

    def cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        return np.array([len(text) > 77 for text in texts])


def hash_of(text: str) -> float:
    return float(sum(text.encode()) % 97)


@pytest.fixture
def tower(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    counted.loaded = 0  # type: ignore[attr-defined]

    def load(*_: Any) -> Counted:
        counted.loaded += 1  # type: ignore[attr-defined]
        return counted

    monkeypatch.setattr(module, "load_tower", load)
    monkeypatch.setattr(module, "_loaded", None)
    return counted


def made(tmp_path: Path, content: bytes = b"weights", **how: Any) -> Texts:
    file = tmp_path / "tower.safetensors"
    file.write_bytes(content)
    entry = ModelEntry(name="some", timm="vit_tiny_patch16_224", text=TextSource(nano=file))
    module._loaded = None  # as a new process begins
    return Texts(entry, **how)


def test_the_same_texts_are_encoded_once(tower: Any, tmp_path: Path) -> None:
    asked = ["a cat", "犬", "a cat", "b" * 3000]
    first = made(tmp_path).encode(asked)
    again = made(tmp_path).encode(asked)
    assert tower.loaded == 1 and tower.encoded == asked
    assert torch.equal(first, again)
    torch.testing.assert_close(first, Counted().encode(asked))
    made(tmp_path).encode(asked[:2])
    assert tower.loaded == 2  # another list


def test_means_are_of_unit_vectors_and_of_unit_length(tower: Any, tmp_path: Path) -> None:
    groups = [["a", "ab", "abc"], ["xyz"], ["ab", "zz"]] * 50  # more than a piece
    found = made(tmp_path).means(groups)
    vectors = {text: Counted().encode([text])[0] for group in groups for text in group}
    for row, group in zip(found, groups, strict=True):
        mean = torch.stack([vectors[text] for text in group]).mean(0)
        torch.testing.assert_close(row, mean / mean.norm())
    assert torch.equal(made(tmp_path).means(groups), found)
    assert tower.loaded == 1


def test_a_thousand_classes_are_kept_in_several_shards(tower: Any, tmp_path: Path) -> None:
    asked = [f"class {number}" for number in range(2100)]
    first = made(tmp_path).encode(asked)
    assert torch.equal(made(tmp_path).encode(asked), first) and tower.loaded == 1
    (key,) = kept(Store().folder)
    assert key.facts()["pictures"] == 2100 and key.facts()["dataset"] == "(texts)"
    assert not verify(Store().folder)


def test_the_projection_and_the_scale_are_kept_too(tower: Any, tmp_path: Path) -> None:
    tokens = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        text = made(tmp_path)
        torch.testing.assert_close(text.project(tokens), Counted().project(tokens))
        assert (text.scale, text.bias) == (pytest.approx(14.3), -2.5)
    assert tower.loaded == 1


def test_a_tower_without_a_projection_leaves_tokens_as_they_are(tower: Any, tmp_path: Path) -> None:
    tower.matrix = None
    tokens = torch.randn(4, EMBEDDED)
    for _ in range(2):
        assert torch.equal(made(tmp_path).project(tokens), tokens)


@pytest.mark.parametrize("change", ["weights", "random", "seed"])
def test_what_decides_the_vectors_moves_the_key(change: str, tower: Any, tmp_path: Path) -> None:
    made(tmp_path, weights="random").encode(["a"])
    if change == "weights":
        other = made(tmp_path, b"others", weights="random")
    elif change == "random":
        other = made(tmp_path)
    else:
        other = made(tmp_path, weights="random", seed=1)
    other.encode(["a"])
    assert tower.loaded == 2


def test_where_the_file_lies_does_not(tower: Any, tmp_path: Path) -> None:
    made(tmp_path).encode(["a"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made(elsewhere).encode(["a"])
    assert tower.loaded == 1


def test_without_a_store_nothing_is_kept(tower: Any, tmp_path: Path) -> None:
    for _ in range(2):
        made(tmp_path, stored=False).encode(["a"])
    assert tower.loaded == 2 and not Store().folder.exists()


def test_a_killed_run_goes_on_with_the_classes_it_was_at(
    tower: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [[f"class {number}", f"a class {number}"] for number in range(200)]

    class Killed(Exception): ...

    def killed(texts: Sequence[str]) -> torch.Tensor:
        if "class 130" in texts:
            raise Killed
        return Counted().encode(texts)

    with monkeypatch.context() as patch:
        patch.setattr(tower, "encode", killed)
        with pytest.raises(Killed):
            made(tmp_path).means(groups)
    found = made(tmp_path).means(groups)
    assert "class 127" not in tower.encoded and "class 128" in tower.encoded
    torch.testing.assert_close(found, made(tmp_path, stored=False).means(groups))


def test_a_damaged_or_pruned_store_is_filled_again(tower: Any, tmp_path: Path) -> None:
    first = made(tmp_path).encode(["a", "b"])
    (shard,) = Store().folder.glob("*/*.safetensors")
    shard.write_bytes(b"no tensors")
    assert torch.equal(made(tmp_path).encode(["a", "b"]), first)
    prune(Store().folder, 0)
    assert torch.equal(made(tmp_path).encode(["a", "b"]), first)
    assert tower.loaded == 3


def test_a_store_that_cannot_be_written_costs_no_run(
    tower: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    assert made(tmp_path).encode(["a"]).shape == (1, EMBEDDED)


def test_it_travels_to_a_worker_without_what_it_loaded(tower: Any, tmp_path: Path) -> None:
    text = made(tmp_path)
    expected = text.project(torch.eye(WIDTH))
    other = pickle.loads(pickle.dumps(text))
    assert other.digest == text.digest and other._head is None
    assert torch.equal(other.project(torch.eye(WIDTH)), expected)


def test_no_texts_are_no_vectors(tower: Any, tmp_path: Path) -> None:
    assert made(tmp_path).encode([]).shape == (0, EMBEDDED)


def test_which_texts_are_cut_is_kept(tower: Any, tmp_path: Path) -> None:
    for _ in range(2):
        assert made(tmp_path).cut(["short", "l" * 78]).tolist() == [False, True]
    assert tower.loaded == 1


@pytest.mark.parametrize("text", ["\ud800", 7, None])
def test_what_is_no_text_is_refused(text: Any, tower: Any, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"no text|no character"):
        made(tmp_path).encode(["fine", text])


def test_a_model_without_a_text_tower_has_no_texts(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="'some' has no text tower"):
        Texts(replace_text(made(tmp_path).entry))


def replace_text(entry: ModelEntry) -> ModelEntry:
    return entry.model_copy(update={"text": None})


def test_the_name_says_where_weights_are_drawn(tmp_path: Path) -> None:
    text = made(tmp_path)
    assert text.name == "nano tower.safetensors"
    assert replace(text, weights="random").name.endswith("random weights")
