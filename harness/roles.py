"""Which pictures play which role for a task: it may look at one split twice, in two views."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.plan import OpenedDataset
    from harness.task import Task


def played(dataset: OpenedDataset, task: Task[Any]) -> OpenedDataset:
    """``dataset`` with the roles that the task gives its splits, each with what is known of it."""
    roles = task.pictures(dataset.roles)
    if roles is dataset.roles:
        return dataset
    origin = {
        role: next(own for own, split in dataset.roles.items() if split is each)
        for role, each in roles.items()
    }
    return replace(
        dataset,
        roles=roles,
        fingerprints={role: dataset.fingerprints[own] for role, own in origin.items()},
        whole={role: dataset.whole[own] for role, own in origin.items()},
    )
