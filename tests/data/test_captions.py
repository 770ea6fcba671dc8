from __future__ import annotations

from harness.data.dataset import Dataset, Sample, Target


class Described(Dataset):
    """One picture, of which these things are said."""

    def __init__(self, captions: tuple[str, ...] | None) -> None:
        self.name, self.split = "described", "test"
        self.samples = [Sample("a", (4, 4), Target(label=1, captions=captions))]


def test_the_fingerprint_covers_captions_and_their_order_and_is_as_ever_without_them() -> None:
    found = {
        Described(captions).fingerprint()
        for captions in (None, ("a dog",), ("a cat",), ("a dog", "a cat"), ("a cat", "a dog"))
    }
    assert len(found) == 5
    before = "47a9656dd3f06284ff1eaf60cc176b8dec1559787528f8b944047a508a3570c1"
    assert Described(None).fingerprint() == before
