"""A bank of vectors that is larger than what a process may have goes through in blocks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from blocked import stored

from harness.features.store import Store

COUNT, WIDTH, ALLOWED = 120_000, 384, 120  # the last in MiB: the bank has 176

CHILD = """
import resource, sys
from pathlib import Path
import faiss, numpy as np, torch
from harness.features.keys import Key
from harness.features.store import Store
from harness.features.vectors import StoredVectors
from harness.probes.blocked_neighbours import BlockedIndex
from harness.probes.neighbours import NeighbourIndex

folder, way, count, width, allowed = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(1), faiss.omp_set_num_threads(1)

def search(count):
    feature = Store(folder).feature(Key({"shard": 1024, "n": total}, {}), total)
    vectors = StoredVectors(feature, np.arange(count), width)
    queries = torch.from_numpy(np.load(folder / "queries.npy"))
    if way == "kept":
        whole = vectors.rows(np.arange(count))
        found = NeighbourIndex(whole).search(queries, 5).places
    else:
        found = BlockedIndex(vectors, 4096).search(queries, 5).places
    return found

total = count
search(4096)  # threads and libraries set themselves up
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + allowed * 2**20,) * 2)
np.save(folder / f"{way}.npy", search(count).numpy())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and /proc are Linux's")
def test_a_bank_larger_than_the_memory_allowed_is_searched(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(COUNT, WIDTH, generator=generator))
    stored(Store(tmp_path), values, shard=1024)
    queries = values[::5000] + 0.001
    np.save(tmp_path / "queries.npy", queries.numpy())

    def child(way: str, allowed: int) -> subprocess.CompletedProcess[str]:
        given = [str(tmp_path), way, str(COUNT), str(WIDTH), str(allowed)]
        command = [sys.executable, "-c", CHILD, *given]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    refused = child("kept", ALLOWED)
    assert refused.returncode and "memory" in refused.stderr.lower(), refused.stderr
    for way, allowed in (("streamed", ALLOWED), ("kept", 2_000)):
        done = child(way, allowed)
        assert done.returncode == 0, done.stderr
    found = [np.load(tmp_path / f"{way}.npy") for way in ("streamed", "kept")]
    np.testing.assert_array_equal(*found)
    assert found[0][:, 0].tolist() == list(range(0, COUNT, 5000))
