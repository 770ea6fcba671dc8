"""Further test sets (``--test-on``): what a run trained is judged on other pictures of its classes.

The cell of a further set hangs on its base: the cell of the same model, task, protocol, settings,
seed and limit that trains the head. Where the base is done, only the further pictures are passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from harness import heads, records, schema
from harness.data.catalog import Catalog
from harness.data.dataset import ROLES, Dataset
from harness.errors import BadPicture, HarnessError
from harness.options import Options
from harness.plan import Cell, OpenedDataset, Repeat, look_for_result, open_dataset, plan
from harness.task import HeadTask, NotApplicable
from harness.task_names import find_task, task_names

if TYPE_CHECKING:
    from harness.backbone.architecture import Architecture


def plan_further(names: Sequence[str], *runs: Options) -> list[Cell]:
    """``plan(*runs)``; behind the cells of each model are those of the further sets ``names``.

    Raises ``HarnessError`` as ``plan`` does, and for a task whose heads cannot be judged, a class
    that a head does not know, a head that is needed and was not kept, and two results of one name.
    """
    if not names:
        return plan(*runs)
    from harness.backbone.sources import architecture

    _check_tasks(dict.fromkeys(task for options in runs for task in options.tasks))
    common = runs[0]
    if common.seeds > 1:
        raise HarnessError("--test-on judges one head: not with --seeds (--seed N trains another)")
    catalog = Catalog.load(common.dataset_files, common.data_root)
    for name in names:
        catalog.entry(name)  # an unknown name is said before anything is opened
    bases = plan(*runs)
    tests = [open_dataset(catalog, name, common) for name in dict.fromkeys(names)]
    cells: list[Cell] = []
    for entry, of_model in groupby(bases, key=lambda cell: cell.entry):
        facts, own = architecture(entry), list(of_model)
        further = [_cell(base, test, facts, common) for test in tests for base in own]
        _refuse_one_name(further)
        cells += own + further
    return cells


def trained_on(cell: Cell) -> schema.TrainedOn | None:
    """What the record of a further set says of its head, whose base is done; None of a base and
    where its base has kept none."""
    if cell.base is None:
        return None
    done = cell.base.done
    assert done is not None
    if done.head is None:  # by an older harness
        return None
    return schema.TrainedOn(dataset=done.dataset.name, head_sha256=done.head.sha256)


def selected_on(cell: Cell) -> str | None:
    """On what the head was chosen that judges a further set: ``test`` where that is the very
    pictures that are scored (ImageNet's validation set, of which ReaL is other labels)."""
    assert cell.base is not None
    assert cell.base.done is not None
    chosen, base = cell.base.done.selected_on, cell.base.dataset
    role = next((role for role in ROLES if role == chosen), None)
    if role is None:
        return chosen
    same = role == "test" and _same_pictures(cell.dataset.roles["test"], base.roles["test"])
    return "test" if same else f"{base.name} {role}"


def _same_pictures(ours: Dataset, theirs: Dataset) -> bool:
    """Whether all of ours are theirs, by id and size; and because files of two folders may well
    be numbered alike, the first one by its bytes."""
    places = {(sample.id, sample.size): place for place, sample in enumerate(theirs.samples)}
    if not all((sample.id, sample.size) in places for sample in ours.samples):
        return False
    first = places[ours.samples[0].id, ours.samples[0].size]
    try:
        return ours.read(0) == theirs.read(first)
    except BadPicture:
        return True


def _check_tasks(names: Sequence[str] | dict[str, None]) -> None:
    for name in names:
        if not isinstance(find_task(name), HeadTask):
            able = [each for each in task_names() if isinstance(find_task(each), HeadTask)]
            raise HarnessError(
                f"task {name}: keeps no head that --test-on could judge (of the tasks, "
                f"{', '.join(able)} can)"
            )


def _cell(base: Cell, whole: OpenedDataset, facts: Architecture, options: Options) -> Cell:
    if whole.name == base.dataset.name:
        raise HarnessError(
            f"--test-on {whole.name}: is what the head is trained for: its test pictures are "
            "scored anyway"
        )
    variant = dict(base.variant)
    if "train" in whole.roles:  # where a head of its own would have the plain name
        variant["trained_on"] = base.dataset.name
    names = whole.name, base.task.name, base.entry.name, base.protocol.name
    cell = replace(
        base,
        dataset=_test_alone(whole),
        variant=variant,
        path=records.record_path(options.out, *names, variant),
        repeats=(),
        done=None,
        damaged=False,
        base=base,
    )
    if cell.reason is not None:
        cell.reason = f"nothing is trained on {base.dataset.name}: {cell.reason}"
        return cell
    assert isinstance(cell.task, HeadTask)
    try:
        if "test" not in whole.roles:
            raise NotApplicable("the data set has no test split")
        test = whole.roles["test"]
        seed = base.repeats[0].seed
        facts_of = facts, base.dataset.roles, test, cell.protocol, seed
        cell.repeats = [Repeat(seed, {"test": cell.task.further(*facts_of)})]
    except NotApplicable as error:
        cell.reason = str(error)
        return cell
    look_for_result(cell, options)
    _refuse_other_heads(cell)
    return cell


def _test_alone(whole: OpenedDataset) -> OpenedDataset:
    return replace(
        whole,
        roles={role: each for role, each in whole.roles.items() if role == "test"},
        fingerprints={role: each for role, each in whole.fingerprints.items() if role == "test"},
    )


def _refuse_other_heads(cell: Cell) -> None:
    """A result of a head that is no more is to do again. Raises ``HarnessError`` where the head
    that it takes was not kept."""
    assert cell.base is not None
    base = cell.base.done
    if base is None:
        cell.done = None
    elif cell.done is None or cell.done.trained_on != trained_on(cell):
        cell.done = None
        heads.kept(cell.base.path, base)


def _refuse_one_name(cells: Sequence[Cell]) -> None:
    paths: dict[Path, Cell] = {}
    for cell in cells:
        other = paths.setdefault(cell.path, cell)
        if other is not cell and cell.base is not None and other.base is not None:
            raise HarnessError(
                f"--test-on {cell.dataset.name}: its results with the heads of "
                f"{other.base.dataset.name} and of {cell.base.dataset.name} would have one name "
                f"({cell.path}): run one after the other, each with an --out of its own"
            )
