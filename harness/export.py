"""``harness extract``: features in two plain files, for anyone's own analysis.

``features.safetensors`` has a tensor ``[n, D]`` float32 for each kind of token, ``labels [n]``
int64 (-1: none), and for kinds that a picture may lack, ``<token>.there [n]`` bool.
``index.json`` says whose they are: ids and roles row by row, class names, model, weights, view.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from harness import provenance
from harness.atomic import explained, locked, sweep, temporary, write_through
from harness.backbone import checkpoint_files
from harness.backbone.arithmetic import exact_float32
from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone, Precision
from harness.data.catalog import Catalog
from harness.data.dataset import ROLES, Role
from harness.data.views import CentreCrop
from harness.documents import unknown
from harness.errors import HarnessError
from harness.features.cutoffs import resolve
from harness.features.extract import Pass, Tally
from harness.features.keys import RunningModel, Source
from harness.features.loading import processes
from harness.features.outliers import OutlierRule
from harness.features.select import TOKENS, Selector, TokenName, applicable
from harness.features.serve import Reader, batches, stored_features
from harness.features.shared import user_store
from harness.features.store import Store, shard_size
from harness.layers import resolve_layers
from harness.options import Options
from harness.plan import OpenedDataset, open_dataset, weights_from
from harness.progress import Progress, Silent
from harness.registry import Registry
from harness.task import NotApplicable

FEATURES, INDEX = "features.safetensors", "index.json"


@dataclass(frozen=True)
class Extraction:
    """What is extracted, as it is typed; ``resize`` and ``crop`` in pixels. The defaults are those
    of the probes' protocols, so that features are shared with them."""

    tokens: Sequence[str]
    role: Literal["train", "select", "test", "all"] = "test"
    resize: int = 256
    crop: int = 224
    layer: int = -1
    norm: bool = True
    precision: Precision = "fp16"
    outliers: str = "mean+3sd"


def extract(
    wanted: Extraction, options: Options, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Features of the first model and data set of ``options``, through the feature store, into
    ``out``; rows in the data set's order, roles one after the other. Gives a summary.

    Raises ``HarnessError`` for an unknown name, a token that the model does not have, a crop that
    its patch does not divide, and a folder that holds features already (unless ``overwrite``).
    """
    progress = progress or Silent()
    if (out / FEATURES).exists() and not options.overwrite:
        raise HarnessError(f"{out / FEATURES}: is there already; --overwrite replaces it")
    registry = Registry.load(options.model_files, options.allow_code)
    entry = registry.entry(options.models[0])
    catalog = Catalog.load(options.dataset_files, options.data_root)
    dataset = open_dataset(catalog, options.datasets[0], options)
    roles = _roles(dataset, wanted)
    names = _tokens(wanted.tokens)
    backbone = load_backbone(
        entry, options.device, options.weights, options.seed, options.compiled, registry
    )
    view = _view(wanted, backbone)
    selectors = [_selector(name, wanted, backbone, options.seed) for name in names]
    store = user_store() if options.store else None
    local = entry.checkpoint if options.weights == "released" else None
    origin = weights_from(None if local is None else checkpoint_files.sha256(local), options)
    job = _Job(backbone, RunningModel.of(backbone, entry, origin), store, options, progress)
    sources = {
        role: Source(
            dataset.name,
            dataset.roles[role].split,
            dataset.fingerprints[role],
            view,
            wanted.precision,
            options.seed,
        )
        for role in roles
    }
    with exact_float32():
        cutoffs, passes = job.cutoffs(dataset, sources, selectors)
        found = [job.role(dataset, role, sources[role], selectors, cutoffs) for role in roles]
    rows = [row for part in found for row in part.rows]
    tensors = _tensors(found, selectors)
    index = {
        "format": 1,
        "model": entry.name,
        "entry": entry.canonical(),
        "weights": origin,
        "weights_digest": backbone.weights_digest,
        "dataset": dataset.name,
        "fingerprints": {role: dataset.fingerprints[role] for role in roles},
        "splits": {role: dataset.roles[role].split for role in roles},
        "limit": options.limit,
        "classes": list(dataset.roles[roles[0]].classes),
        "view": {"name": type(view).__name__, **asdict(view)},
        "precision": backbone.precision(wanted.precision),
        "device": backbone.device.type,
        "tokens": {each.token: each.facts() for each in selectors},
        "cutoffs": {each.token: cutoffs[each.rule] for each in selectors if each.rule},
        "bad_pictures": {name: why for part in found for name, why in part.bad},
        "versions": provenance.versions(),
        "ids": [identity for identity, _ in rows],
        "roles": [role for role, part in zip(roles, found, strict=True) for _ in part.rows],
    }
    _write(out, tensors, index)
    return {
        "features": str(out / FEATURES),
        "index": str(out / INDEX),
        "pictures": len(rows),
        "bad_pictures": sum(len(part.bad) for part in found),
        "forward_passes": passes + sum(part.forward_passes for part in found),
        "tokens": {name: list(tensors[name].shape) for name in names},
    }


@dataclass(frozen=True)
class _Part:
    """One role: (id, label) and the vectors of each selector, in the data set's order."""

    rows: list[tuple[str, int]]
    values: dict[Selector, torch.Tensor]
    there: dict[Selector, torch.Tensor]
    bad: list[tuple[str, str]]
    forward_passes: int


@dataclass(frozen=True)
class _Job:
    backbone: Backbone
    running: RunningModel
    store: Store | None
    options: Options
    progress: Progress

    @property
    def _skip(self) -> bool:
        return self.options.on_bad_picture == "skip"

    def cutoffs(
        self,
        dataset: OpenedDataset,
        sources: dict[Role, Source],
        selectors: Sequence[Selector],
    ) -> tuple[dict[OutlierRule, float], int]:
        """Estimated on the first role that is extracted."""
        role = next(iter(sources))
        return resolve(
            self.backbone,
            self.running,
            dataset.roles[role],
            sources[role],
            {(each.layer, each.rule) for each in selectors if each.rule is not None},
            self.store,
            self.options.batch_size,
            processes(self.options.workers),
            self._skip,
        )

    def role(
        self,
        opened: OpenedDataset,
        role: Role,
        source: Source,
        selectors: Sequence[Selector],
        cutoffs: dict[OutlierRule, float],
    ) -> _Part:
        dataset, store = opened.roles[role], self.store
        total = len(dataset.samples)
        wanted = Pass(
            source.view,
            frozenset().union(*(each.reads for each in selectors)),
            precision=source.precision,
            selectors=frozenset(selectors),
            cutoffs=cutoffs,
        )
        features = {}
        if store is not None:
            features = stored_features(store, self.running, source, wanted, total)
        tally = Tally(self.options.batch_size)
        reader = Reader(
            self.backbone,
            dataset,
            wanted,
            tally,
            self.options.seed,
            processes(self.options.workers),
            self._skip,
            shard_size(store, selectors, self.backbone.architecture, source.view),
            self.progress.advance,
        )
        self.progress.start(f"{self.backbone.name} · {opened.name} · {role}", total)
        parts: list[tuple[list[str], list[int], dict[Selector, tuple[torch.Tensor, ...]]]] = []
        for batch in batches(reader, features, from_store=True):
            labels = [-1 if each.label is None else each.label for each in batch.targets]
            vectors = {
                each: tuple(tensor.cpu() for tensor in batch.selected[each]) for each in selectors
            }
            _check_finite(batch.ids, vectors)
            parts.append((list(batch.ids), labels, vectors))
            for notices in (tally.notices, [] if store is None else store.notices):
                while notices:
                    self.progress.note(notices.pop(0))
        if not parts:
            raise HarnessError(f"data set {opened.name!r}: no picture of its role {role} is usable")
        rows = [row for ids, labels, _ in parts for row in zip(ids, labels, strict=True)]
        return _Part(
            rows,
            {each: torch.cat([vectors[each][0] for _, _, vectors in parts]) for each in selectors},
            {each: torch.cat([vectors[each][1] for _, _, vectors in parts]) for each in selectors},
            list(tally.bad),
            tally.forward_passes,
        )


def _check_finite(ids: Sequence[str], vectors: dict[Selector, tuple[torch.Tensor, ...]]) -> None:
    for selector, (values, _) in vectors.items():
        finite = torch.isfinite(values).all(1)
        if not finite.all():
            raise HarnessError(
                f"the {selector.token} of {ids[int((~finite).nonzero()[0])]} is not finite (half "
                "precision, or broken weights?); --precision fp32 may help"
            )


def _tensors(parts: Sequence[_Part], selectors: Sequence[Selector]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {
        each.token: torch.cat([part.values[each] for part in parts]).contiguous()
        for each in selectors
    }
    for each in selectors:
        if each.rule is not None:
            tensors[f"{each.token}.there"] = torch.cat([part.there[each] for part in parts])
    tensors["labels"] = torch.tensor([label for part in parts for _, label in part.rows])
    return tensors


def _roles(dataset: OpenedDataset, wanted: Extraction) -> list[Role]:
    here = [role for role in ROLES if role in dataset.roles]
    roles = [role for role in here if wanted.role in (role, "all")]
    if not roles:
        raise HarnessError(
            f"data set {dataset.name!r} has no role {wanted.role}: it has {', '.join(here)}"
        )
    return roles


def _tokens(names: Sequence[str]) -> list[TokenName]:
    for name in names:
        if name not in TOKENS:
            raise unknown("token", name, TOKENS, "harness extract --help")
    return [token for name in names for token in TOKENS if token == name]


def _view(wanted: Extraction, backbone: Backbone) -> CentreCrop:
    patch = backbone.architecture.patch
    if min(wanted.crop, wanted.resize) < 1 or wanted.crop > wanted.resize:
        raise HarnessError(
            f"--crop {wanted.crop}: at least 1 and at most what --resize {wanted.resize} leaves"
        )
    if wanted.crop % patch:
        lower = wanted.crop // patch * patch
        raise HarnessError(
            f"--crop {wanted.crop}: no multiple of {backbone.name}'s patch of {patch} pixels (try "
            f"--crop {lower or patch})"
        )
    return CentreCrop(wanted.resize, wanted.crop)


def _selector(token: TokenName, wanted: Extraction, backbone: Backbone, seed: int) -> Selector:
    facts, rule = backbone.architecture, None
    if token in {"outlier", "normal"}:
        try:
            rule = OutlierRule.parse(wanted.outliers)
        except ValueError as error:
            raise HarnessError(f"--outliers {error}") from None
    try:
        (layer,) = resolve_layers((wanted.layer,), facts.depth)
        assert isinstance(layer, int)
        selector = Selector(token, layer, wanted.norm, rule, seed=seed)
        applicable(selector, facts)
    except NotApplicable as reason:
        raise HarnessError(f"--tokens {token} of {backbone.name}: {reason}") from None
    return selector


def _write(out: Path, tensors: dict[str, torch.Tensor], index: dict[str, Any]) -> None:
    """Both under temporary names, the features first: they can be large, and are not copied. They
    have their name last, so that where they are all is there, and a killed command begins again."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    text = json.dumps(index, indent=1, ensure_ascii=False, allow_nan=False)
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            sweep(out)
            features, about = temporary(out / FEATURES), temporary(out / INDEX)
            try:
                save_file(tensors, features)
                write_through(about, text.encode())
                (out / FEATURES).unlink(missing_ok=True)  # never beside another's index
                about.replace(out / INDEX)
                features.replace(out / FEATURES)
            except SafetensorError as error:  # what it makes of a full disk
                raise HarnessError(f"{out / FEATURES}: cannot be written: {error}") from None
            finally:
                for left in (features, about):
                    with contextlib.suppress(OSError):
                        left.unlink(missing_ok=True)
