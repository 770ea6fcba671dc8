"""A trained head as it is kept beside the record of the run that trained it.

``<protocol>.head.safetensors`` holds its tensors, and in its metadata what they mean. The record
names the file's digest, so that the head is of the model, the protocol and the pictures that the
record is of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import records
from harness.errors import HarnessError
from harness.features.outliers import OutlierRule

if TYPE_CHECKING:
    from torch import Tensor

    from harness.schema import Record

_ABOUT = "head"  # one key: safetensors writes several in an order of the moment


@dataclass(frozen=True)
class Head:
    """``classes`` are the names of what it tells apart; ``facts`` (JSON-able) are its task's;
    ``cutoffs`` are the norms above which a patch was an outlier, where it reads such tokens."""

    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    cutoffs: Mapping[OutlierRule, float] = field(default_factory=dict)


def packed(head: Head) -> bytes:
    """The file of a head: equal heads give equal bytes."""
    import safetensors.torch

    about = {
        "classes": list(head.classes),
        "facts": dict(head.facts),
        "cutoffs": [[rule.kind, rule.value, norm] for rule, norm in head.cutoffs.items()],
    }
    tensors = {name: each.detach().cpu().contiguous() for name, each in head.tensors.items()}
    return safetensors.torch.save(tensors, {_ABOUT: json.dumps(about, allow_nan=False)})


def kept(path: Path, record: Record) -> bytes:
    """The file of the head that belongs to the record at ``path``.

    Raises ``HarnessError`` where there is none, and ``DamagedResult`` for one that is another.
    """
    data = records.read_head(path, record)
    if data is None:
        why = "is not there any more"
        if record.head is None:
            why = "was not kept (by an older harness)"
        raise HarnessError(
            f"{path}: its head, which --test-on would judge, {why}; --overwrite trains it anew"
        )
    return data


def read(path: Path, record: Record, weights_digest: str) -> Head:
    """The head of the record at ``path``, to be used on a model of these weights.

    Raises ``HarnessError`` where there is none, it is another, or it was trained on other weights.
    """
    import safetensors.torch

    data = kept(path, record)
    if record.model.weights_digest != weights_digest:
        raise HarnessError(
            f"{path}: its head was trained on other weights of {record.model.name}; --overwrite "
            "trains it anew"
        )
    try:
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_ABOUT])
        return Head(
            safetensors.torch.load(data),
            tuple(about["classes"]),
            about["facts"],
            {OutlierRule(kind, value): norm for kind, value, norm in about["cutoffs"]},
        )
    except (
        safetensors.SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        RecursionError,
    ) as error:
        raise HarnessError(
            f"{path}: its head is of another harness ({type(error).__name__}: {error}); "
            "--overwrite trains it anew"
        ) from None
