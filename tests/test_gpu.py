"""On a GPU what a CPU gives: every task, in the same precision. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import evaluate, load_backbone
from harness.backbone.vit import Read
from harness.records import read_columns
from harness.schema import Record, record_path

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.slow,
]

# Few pictures and small settings: it is devices that are compared.
_WHOLE = {"resize": 128, "crop": 128, "precision": "fp32"}
_DENSE = {"size": 128, "steps": 50, "precision": "fp32"}
TASKS: dict[str, dict[str, Any]] = {
    "anatomy": {},
    "attention": {},
    "depth": {**_DENSE, "evaluated": "none", "farthest": 25},
    "knn": {"k": [5, 10], **_WHOLE},
    "linear": {"min_steps": 50, **_WHOLE},
    "logistic": _WHOLE,
    "lost": {},
    "segmentation": _DENSE,
    "tokencut": {},
}


def scored(task: str, device: str, out: Path, model: str, **options: Any) -> Record:
    (record,) = evaluate(
        task, model, "scenes-demo", out=out, device=device, limit=64, store=False, **options
    )
    return record


def columns(record: Record, out: Path) -> dict[str, Any]:
    names = record.dataset.name, record.task, record.model.name, record.protocol.name
    return read_columns(record_path(out, *names, record.variant))


@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_gives_the_scores_of_a_cpu(task: str, tmp_path: Path) -> None:
    found = {
        device: scored(task, device, tmp_path / device, "nano-reg4", settings=TASKS[task])
        for device in ("cpu", "cuda")
    }
    assert found["cuda"].cost.device != found["cpu"].cost.device
    for name, metric in found["cpu"].metrics.items():
        ours = found["cuda"].metrics[name].value
        # Sums in another order: a picture or two of 64 may fall on the other side of a threshold.
        assert ours == pytest.approx(metric.value, rel=0.05, abs=3.2), name


@pytest.mark.parametrize("model", ["nano", "nano-reg4", "nano-ttr1"])
def test_tokens_of_a_gpu_are_those_of_a_cpu_at_every_batch_size(model: str) -> None:
    pixels = torch.randn(7, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    layers = load_backbone(model, device="cpu").architecture.depth
    reads = [Read(layers - 1, norm=True), Read(layers - 1, "key")]
    cpu = load_backbone(model, device="cpu")(pixels, reads)
    gpu = load_backbone(model, device="cuda")
    together = gpu(pixels.cuda(), reads)
    alone = [gpu(one[None].cuda(), reads) for one in pixels]
    for read in reads:
        expected = cpu.tokens[read].patches
        torch.testing.assert_close(
            together.tokens[read].patches.cpu(), expected, rtol=1e-3, atol=1e-3
        )
        one_by_one = torch.cat([each.tokens[read].patches for each in alone])
        torch.testing.assert_close(one_by_one, together.tokens[read].patches, rtol=1e-4, atol=1e-4)


def test_a_compiled_model_gives_the_same_tokens() -> None:
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)).cuda()
    read = Read(3, norm=True)
    plain = load_backbone("nano-reg4", device="cuda")(pixels, [read]).tokens[read].patches
    compiled = load_backbone("nano-reg4", device="cuda", compiled=True)(pixels, [read])
    torch.testing.assert_close(compiled.tokens[read].patches, plain, rtol=1e-3, atol=1e-3)


def test_half_precision_moves_knn_by_little(tmp_path: Path) -> None:
    values = {}
    for precision in ("fp16", "fp32"):
        record = scored(
            "knn",
            "cuda",
            tmp_path / precision,
            "nano",
            settings={**_WHOLE, "k": [5], "precision": precision},
        )
        assert record.cost.dtype == precision
        values[precision] = columns(record, tmp_path / precision)["predicted_k5"]
    same = np.mean(values["fp16"] == values["fp32"])
    assert same >= 0.95
