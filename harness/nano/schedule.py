"""What changes from step to step of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.nano.recipe import Recipe


def cosine(share: float, start: float, end: float) -> float:
    """From ``start`` at share 0 to ``end`` at share 1, along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2


@dataclass(frozen=True)
class Schedule:
    """What changes from step to step, ``step`` counting from 0 to ``steps`` - 1."""

    learning_rate: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    last_layer_frozen: bool


def schedule(recipe: Recipe, step: int, steps: int) -> Schedule:
    """The schedules of DINO (arXiv:2104.14294, section 3.2 and its code's ``main_dino.py``)."""
    warm = round(recipe.warm_up * steps)
    last = max(steps - 1, 1)
    if step < warm:
        rate = recipe.learning_rate * (step + 1) / warm
    else:
        share = (step - warm) / max(last - warm, 1)
        rate = cosine(share, recipe.learning_rate, recipe.final_learning_rate)
    low, high = recipe.teacher_temperature
    warmed = min(step / max(recipe.teacher_warm_up * steps, 1.0), 1.0)
    return Schedule(
        learning_rate=rate,
        weight_decay=cosine(step / last, *recipe.weight_decay),
        momentum=cosine(step / last, *recipe.momentum),
        teacher_temperature=low + (high - low) * warmed,
        last_layer_frozen=step < round(recipe.frozen_last_layer * steps),
    )
