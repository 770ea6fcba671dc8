"""A few pictures through the backbone again, and what is said of them drawn and written.

Nothing here can move a number: the record is written before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.atomic import explained, locked, replace, sweep
from harness.backbone.vit import Backbone
from harness.data.dataset import places_by_id
from harness.errors import HarnessError
from harness.features.extract import Pass, Tally, out_of_memory, stream
from harness.features.loading import processes
from harness.features.order import Steps
from harness.features.outliers import OutlierRule
from harness.options import Options
from harness.pictured.choice import FILE_NAME, Choice, choose
from harness.pictured.contract import PicturedEvaluation, Shown
from harness.pictured.panels import draw
from harness.plan import Cell, Repeat
from harness.progress import Progress
from harness.schema import pictures_folder
from harness.task import Evaluation


def save_predictions(
    backbone: Backbone,
    cell: Cell,
    repeat: Repeat,
    evaluation: Evaluation,
    cutoffs: Mapping[OutlierRule, float],
    options: Options,
    progress: Progress,
) -> None:
    """Pictures of a cell whose record is written, in the folder beside it: the worst, median and
    best of ``evaluation``, the finished one of ``repeat``.

    Those of an earlier run go, whether new ones are wanted or not: they were of another record.
    Raises ``HarnessError`` where pictures cannot be made or written.
    """
    folder = pictures_folder(cell.path)
    clear(folder, options.out)
    if not options.save_predictions or not isinstance(evaluation, PicturedEvaluation):
        return
    standing = evaluation.standing()
    left = {choice.id: choice for choice in choose(standing, options.save_predictions)}
    dataset = cell.dataset.roles["test"]
    places = places_by_id(dataset)
    if strange := left.keys() - places.keys():
        raise HarnessError(f"task {cell.task.name}: {min(strange)!r} is none of its test pictures")
    again = _Again(backbone, cell, repeat, cutoffs, options, progress)
    about = f"{cell.entry.name} · {cell.dataset.name} · {cell.path.stem}"
    if len(cell.repeats) > 1:
        about += f" · seed {repeat.seed}"
    for shown in again.shown(evaluation, sorted(places[name] for name in left)):
        choice = left.pop(shown.id, None)
        if choice is None:
            raise HarnessError(f"task {cell.task.name}: shows {shown.id!r}, which it was not given")
        heading = [_title(choice, len(standing), shown), shown.id, about]
        picture = dataset.picture(places[shown.id])
        try:
            png = draw(picture, shown, dataset.semantic_classes, heading)
        except ValueError as error:
            raise HarnessError(f"task {cell.task.name}: {shown.id}: shows {error}") from None
        _write(folder / choice.file_name, png, options.out)
    if left:
        raise HarnessError(f"task {cell.task.name}: shows nothing of {min(left)!r}")


@dataclass(frozen=True)
class _Again:
    """How the pictures of a repeat are read once more."""

    backbone: Backbone
    cell: Cell
    repeat: Repeat
    cutoffs: Mapping[OutlierRule, float]
    options: Options
    progress: Progress

    def shown(self, evaluation: PicturedEvaluation, order: list[int]) -> Iterator[Shown]:
        """What is said of the pictures at these places of the role test, as its request sees them.

        A picture that was scored is no bad one: one that has become bad since raises."""
        request = self.repeat.requests["test"]
        wanted = Pass(
            view=request.view,
            reads=request.reads,
            attention=frozenset(request.attention),
            pixels=request.pixels,
            precision=request.precision,
            selectors=frozenset(request.select),
            cutoffs=self.cutoffs,
            dense=request.dense,
        )
        tally = Tally(self.options.batch_size)
        names = self.cell.entry.name, self.cell.dataset.name, self.cell.protocol.name
        self.progress.start(f"{' · '.join(names)}, to be saved", len(order))
        batches = stream(
            self.backbone,
            self.cell.dataset.roles["test"],
            wanted,
            order,
            tally,
            self.repeat.seed,
            processes(self.options.workers),
            on_picture=self.progress.advance,
        )
        dealt = Steps(request.step_size)
        try:
            for batch in batches:
                for part in dealt.add(batch):
                    yield from evaluation.shown(part)
                while tally.notices:
                    self.progress.note(tally.notices.pop(0))
            for part in dealt.rest():
                yield from evaluation.shown(part)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise HarnessError(
                f"{self.cell.path}: is written, but not all of its pictures: out of memory on "
                f"{self.backbone.device}; a smaller --batch-size or another --device may help"
            ) from None


def _title(choice: Choice, pictures: int, shown: Shown) -> str:
    rank = f"{choice.place} of {pictures} from the worst"
    return f"{choice.kind} {choice.number}: {shown.score} ({rank})"


def clear(folder: Path, out: Path) -> None:
    """Remove the pictures of an earlier run, and the folder unless something else is in it."""
    if not folder.is_dir():
        return
    with explained(folder), locked(out):
        sweep(folder)
        for path in folder.iterdir():
            if FILE_NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _write(path: Path, data: bytes, out: Path) -> None:
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(out):
            replace({path: data})
