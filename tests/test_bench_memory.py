"""``harness bench memory`` holds vectors in blocks against the same ones in memory."""

from __future__ import annotations

from harness.bench.streamed import memory


def test_both_ways_find_the_same() -> None:
    facts = memory("cpu", banks=(3_000, 6_000), width=16, queries=8, block_mib=1)
    assert facts["banks"] == [3_000, 6_000] and facts["bank_mib"] == [0.2, 0.4]
    assert facts["knn_apart_at_most"] == [0.0, 0.0], "places of neighbours"
    assert max(facts["logistic_apart_at_most"]) < 1e-6, "weights"
    assert 0.5 < facts["ivf_recall"] <= 1 and facts["ivf_lists"] == 55
    assert facts["read_mib_per_second"] > 0
    for way in ("streamed", "kept"):
        assert len(facts[f"knn_{way}_seconds"]) == len(facts[f"logistic_{way}_extra_mib"]) == 2
