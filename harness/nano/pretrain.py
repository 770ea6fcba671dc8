"""``harness pretrain``: a ViT with or without registers, from pictures to a registry entry."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from harness import atomic
from harness.backbone.sources import choose_device
from harness.data.catalog import Catalog
from harness.data.dataset import Dataset
from harness.data.pictures import PicturesDataset
from harness.documents import unknown
from harness.errors import HarnessError
from harness.nano import training_state
from harness.nano.export import read_baseline
from harness.nano.objective import Losses, Objective
from harness.nano.recipe import Recipe
from harness.nano.schedule import Schedule, schedule
from harness.nano.training_state import CHECKPOINT, Log, State
from harness.progress import Progress

__all__ = ["Recipe", "open_pictures", "pretrain"]


def pretrain(recipe: Recipe, progress: Progress) -> Path:
    """Train, or go on with, what ``recipe`` says, and give the registry file of the result.

    ``recipe.out`` then holds the weights (the teacher's; of clip those of both towers),
    ``models.yaml`` with an entry for them,
    ``log.jsonl``, and ``training.pt``, from which the same recipe goes on after a kill. On one
    machine with one number of threads, a CPU ends with the same bits as if it had not been killed.

    Raises ``HarnessError`` for settings, pictures and folders that cannot be used, for a loss that
    is no longer finite, and for a disk that is full: the last checkpoint is intact then.
    """
    recipe.check()
    device = choose_device(recipe.device)
    dataset = open_pictures(recipe)
    recipe = _settled(recipe, len(dataset.samples), device)
    read_baseline(recipe)
    with atomic.explained(recipe.out):
        recipe.out.mkdir(parents=True, exist_ok=True)
    if recipe.overwrite:
        training_state.start_over(recipe.out)
    with _threads(recipe.threads):
        run = _Run(recipe, dataset, device)
        if run.step < run.steps:
            _train(run, progress)
        else:
            progress.note(f"{recipe.out / CHECKPOINT}: all {run.steps} steps are done already")
        return run.objective.export(recipe)


def _settled(recipe: Recipe, pictures: int, device: torch.device) -> Recipe:
    """``recipe`` with its length in steps and its precision on ``device``: what two recipes are
    compared by."""
    steps = recipe.total_steps(pictures)
    precision = recipe.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return replace(recipe, steps=steps, epochs=None, precision=precision)


def open_pictures(recipe: Recipe) -> Dataset:
    """The pictures of ``recipe.data``: the role train of a data set (test, where it has no other),
    or all in a folder. Raises ``HarnessError``, also where they do not fill a batch."""
    catalog = Catalog.load(recipe.dataset_files, recipe.data_root)
    if recipe.data in catalog.names():
        roles = catalog.open(recipe.data)
        dataset = roles.get("train") or roles["test"]
        if missing := dataset.missing():
            raise HarnessError(
                f"{recipe.data}: {len(missing)} pictures are not there, {missing[0]} for one: "
                f"{catalog.advice(recipe.data)}"
            )
    elif Path(recipe.data).expanduser().is_dir():
        dataset = PicturesDataset(recipe.data, Path(recipe.data).expanduser())
    else:
        raise unknown("data set or folder", recipe.data, catalog.names(), "harness datasets")
    if len(dataset.samples) < recipe.batch_size:
        raise HarnessError(
            f"{recipe.data}: {len(dataset.samples)} pictures do not fill a batch of "
            f"{recipe.batch_size}; take a smaller --batch-size or more pictures"
        )
    return dataset


class _Run:
    """A model and its optimiser after ``step`` of ``steps`` steps."""

    def __init__(self, recipe: Recipe, dataset: Dataset, device: torch.device) -> None:
        """At step 0, or where the checkpoint in ``recipe.out`` left off."""
        assert recipe.steps is not None
        self.recipe, self.steps, self.step = recipe, recipe.steps, 0
        data = dataset.fingerprint()
        self._data, self._settings = data, recipe.decisive()
        self._autocast = torch.bfloat16 if recipe.precision == "bf16" else None
        saved = training_state.load(recipe.out)
        if saved is not None:
            training_state.check_same(recipe.out, saved, self._settings, data)
        self.objective = _objective(recipe, dataset, device)
        self.model = self.objective.model
        self._optimizer = _optimizer(self.objective.trained)
        if saved is not None:
            try:
                self.model.load_state_dict(saved.model)
                self._optimizer.load_state_dict(saved.optimizer)
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise HarnessError(
                    f"{recipe.out / CHECKPOINT}: does not fit its own recipe "
                    f"({str(error).splitlines()[0]}); --overwrite starts again"
                ) from None
            self.step = saved.step

    def advance(self, batch: Any) -> tuple[Losses, Schedule]:
        """One step: its losses, and the settings it was taken with.

        Raises ``HarnessError``, with no weight changed, where the loss is not finite.
        """
        now = schedule(self.recipe, self.step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = now.learning_rate
            group["weight_decay"] = now.weight_decay if group["decays"] else 0.0
        losses = self.objective.losses(batch, now, self._autocast)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.total)
        self.objective.before_update(now)
        norm = nn.utils.clip_grad_norm_(self.objective.trained.parameters(), self.recipe.clip)
        if not torch.isfinite(losses.total.detach() + norm):
            raise HarnessError(
                f"step {self.step + 1}: the loss or its gradient is not finite (loss "
                f"{losses.total.item():.4g}, gradient {norm.item():.4g}); {self._kept()}. "
                "A smaller learning rate, or --precision fp32, may help"
            )
        self._optimizer.step()
        self.objective.after_update(now)
        self.step += 1
        return losses, now

    def save(self) -> None:
        state = State(
            self.step,
            self._settings,
            self._data,
            self.model.state_dict(),
            self._optimizer.state_dict(),
        )
        training_state.save(self.recipe.out, state)

    def _kept(self) -> str:
        path = self.recipe.out / CHECKPOINT
        return (
            f"the last checkpoint, {path}, is intact" if path.exists() else "nothing was saved yet"
        )


def _objective(recipe: Recipe, dataset: Dataset, device: torch.device) -> Objective:
    if recipe.objective == "clip":
        from harness.nano.contrast import Clip

        return Clip(recipe, dataset, device)
    # Here, because it needs lightly, which the other does not.
    from harness.nano.self_distillation import SelfDistillation

    return SelfDistillation(recipe, dataset, device)


def _optimizer(student: nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases, norms and other vectors do not decay (DINO, iBOT, DINOv2)."""
    parameters = [each for each in student.parameters() if each.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [each for each in parameters if each.ndim > 1], "decays": True},
        {"params": [each for each in parameters if each.ndim <= 1], "decays": False},
    ]
    return torch.optim.AdamW(groups, fused=True)


def _train(run: _Run, progress: Progress) -> None:
    recipe = run.recipe
    log = Log(recipe.out, run.step)
    if run.step:
        progress.note(f"{recipe.model_name}: goes on after step {run.step}")
    progress.start(f"{recipe.model_name} · pretrain", (run.steps - run.step) * recipe.batch_size)
    began, lately = time.monotonic(), []
    with _interrupts_wait() as interrupted:
        for batch in run.objective.batches(range(run.step, run.steps)):
            losses, now = run.advance(batch)
            lately.append(_facts(losses))
            last = run.step == run.steps
            if last or run.step % recipe.log_every == 0:
                rate = len(lately) * recipe.batch_size / (time.monotonic() - began)
                means = {name: fmean(facts[name] for facts in lately) for name in lately[0]}
                followed = {name: getattr(now, name) for name in run.objective.scheduled}
                log.add({"step": run.step, **means, **followed, "pictures/s": rate})
                progress.note(
                    f"step {run.step}/{run.steps}, loss {means['loss']:.3f} "
                    f"({run.objective.told(means)}), {rate:.1f} pictures/s, "
                    f"{(run.steps - run.step) * recipe.batch_size / rate:.0f} s left"
                )
                began, lately = time.monotonic(), []
            if last or interrupted.is_set() or run.step % recipe.checkpoint_every == 0:
                run.save()
            if interrupted.is_set():
                progress.note(f"{recipe.out / CHECKPOINT}: step {run.step} is kept")
                raise KeyboardInterrupt
            progress.advance(recipe.batch_size)


def _facts(losses: Losses) -> dict[str, float]:
    """What the log has of a step; a line of it has the mean of the steps since the line before."""
    values = torch.stack([value.detach() for value in losses.facts.values()]).tolist()
    return dict(zip(losses.facts, values, strict=True))


@contextmanager
def _interrupts_wait() -> Iterator[threading.Event]:
    """Ctrl-C sets the event and does not tear a step apart; a second one does."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may change what a signal does
        return

    def interrupt(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
