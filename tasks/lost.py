"""LOST: one object box a picture from the affinities of a frozen ViT's patches, with no labels.

Siméoni et al., "Localizing Objects with Self-Supervised Transformers and no Labels" (BMVC 2021),
as coded in valeoai/LOST. The patch with the fewest positive affinities is taken for an object (the
seed); the most object-like patches that agree with it vote; the box goes round the component of the
vote that holds the seed. Darcet et al. (section 3.3) add a bias to the affinities before all that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, StrictInt, model_validator
from torch import Tensor

from harness.backbone.architecture import Architecture
from harness.backbone.layout import Facet
from harness.backbone.vit import Precision, Read
from harness.data.dataset import Dataset, Role
from harness.data.views import WholePicture
from harness.discovery import component_box, finds, objects
from harness.errors import HarnessError
from harness.selection import held_out
from harness.task import (
    Batch,
    Context,
    Evaluation,
    MetricSpec,
    NotApplicable,
    Outcome,
    Protocol,
    Task,
    TokenRequest,
    resolve_layers,
)

BiasUnit = Literal["absolute", "mean squared norm"]

_ROWS = 512  # of the affinities compared at a time


class LostProtocol(Protocol):
    """LOST with one setting; the defaults are the official code's."""

    name: str = "lost"
    version: str = "1.0"
    view: Literal["whole picture, zeros right and below"] = "whole picture, zeros right and below"
    facet: Facet = "key"
    layer: StrictInt = -1
    norm: bool = Field(False, description="final norm (facet token only)")
    normalised: bool = Field(False, description="patches scaled to unit length")
    bias: float = Field(0.0, description="added to every affinity")
    bias_unit: BiasUnit = "absolute"
    k: StrictInt = Field(100, ge=1, description="how many of the most object-like patches may vote")
    tie_break: Literal["lowest index"] = "lowest index"
    iou: Literal[0.5] = 0.5
    keep_hard: bool = Field(True, description="difficult and truncated objects count")
    max_patches: StrictInt = Field(16_384, ge=1, le=65_535)
    precision: Precision = "fp32"

    @model_validator(mode="after")
    def _only_tokens_are_normed(self) -> Self:
        if self.norm and self.facet != "token":
            raise ValueError(f"norm: the final norm is for the facet token, not {self.facet}")
        return self


class SweptLostProtocol(Protocol):
    """LOST over layers, facets, unit length or not, and biases: the best setting is reported."""

    name: str
    version: str = "1.0"
    view: Literal["whole picture, zeros right and below"] = "whole picture, zeros right and below"
    layers: tuple[int, ...] = Field((-4, -3, -2, -1), min_length=1)
    facets: tuple[Facet, ...] = Field(("query", "key", "value"), min_length=1)
    normalised: tuple[bool, ...] = Field((True, False), min_length=1)
    # In the picture's mean squared patch norm: with patches of unit length that is 1.
    biases: tuple[float, ...] = Field(
        tuple(round(-1 + step / 20, 2) for step in range(21)), min_length=1
    )
    bias_unit: Literal["mean squared norm"] = "mean squared norm"
    selected_on: Literal["held-out pictures", "test"]
    selection_share: float = Field(0.2, gt=0, lt=1)
    k: StrictInt = Field(100, ge=1)
    tie_break: Literal["lowest index"] = "lowest index"
    iou: Literal[0.5] = 0.5
    keep_hard: bool = True
    max_patches: StrictInt = Field(16_384, ge=1, le=65_535)
    precision: Precision = "fp32"


class Setting(NamedTuple):
    """One point of the grid."""

    layer: int
    facet: Facet
    normalised: bool
    bias: float


class Vote(NamedTuple):
    """What LOST finds at each of S biases: ``seed``, ``tied``, ``degenerate`` ``[S]``, ``mask``
    ``[S, N]`` of the patches voted for."""

    seed: Tensor
    tied: Tensor
    degenerate: Tensor
    mask: Tensor


def vote(gram: Tensor, biases: Sequence[float], k: int) -> Vote:
    """Affinities ``[N, N]`` -> seeds and masks, with each bias added to the affinities in turn.

    Degree: how many *other* patches have a positive affinity. The first ``k`` patches by rising
    degree (ties: lowest index) may vote; those with a positive affinity to the seed do, with their
    raw, signed affinities. Nothing here waits for a GPU.
    """
    added = torch.tensor(biases, dtype=gram.dtype, device=gram.device)[:, None]
    # a + b > 0 and a > -b are the same in IEEE arithmetic, and the latter needs no copy; nor does
    # counting some rows at a time need all N x N truths.
    rows = gram.split(max(1, _ROWS // len(biases)))
    counts = [(row > -added[..., None]).sum(-1, dtype=torch.int32) for row in rows]
    degree = torch.cat(counts, dim=1) - (gram.diagonal() > -added).int()
    first = torch.argsort(degree, dim=1, stable=True)[:, :k]
    affinities = gram[first].add_(added[..., None])  # [S, k, N]
    agree = affinities[:, 0].gather(1, first) > 0
    mask = affinities.mul_(agree[..., None]).sum(1) > 0
    lowest = degree == degree.gather(1, first[:, :1])
    tied = lowest.sum(1) > 1
    return Vote(first[:, 0], tied, lowest.all(1) & tied, mask)


def votes_of_picture(
    features: Tensor, normalised: Sequence[bool], biases: Sequence[float], unit: BiasUnit, k: int
) -> list[Vote]:
    """Patches ``[N, D]`` -> one ``Vote`` over all biases for each entry of ``normalised``.

    One Gram matrix serves them all: dividing it by the norms is what normalising first would give.
    """
    features = features.float()
    gram = features @ features.T
    squared = gram.diagonal().clone()
    if not torch.isfinite(squared).all():
        raise HarnessError("lost: features are not finite (half precision, or broken weights?)")
    result = []
    for unit_length in normalised:
        affinities, scale = gram, 1.0
        if unit_length:
            norms = squared.sqrt().clamp_min(1e-12)
            affinities = gram / norms / norms[:, None]
        elif unit == "mean squared norm":
            scale = float(squared.mean())
        result.append(vote(affinities, [bias * scale for bias in biases], k))
    return result


class LostEvaluation(Evaluation):
    """Boxes at every point of a grid (of one point, for plain LOST), and their CorLoc.

    What is kept of a picture is 32 bytes a point and its id: with the sweep's 504 points, 16 KB.
    """

    def __init__(self, context: Context[Any], grid: list[Setting]) -> None:
        self._protocol = context.protocol
        self._patch = context.architecture.patch
        self._grid = grid
        self._order = {s.id: i for i, s in enumerate(context.datasets["test"].samples)}
        self._rows: dict[str, NDArray[np.int32]] = {}
        self._skipped = 0

    def update(self, role: Role, batch: Batch) -> None:
        for row, index in enumerate(batch.sample):
            targets = objects(batch.targets[index].boxes, self._protocol.keep_hard)
            if not len(targets):
                self._skipped += 1
                continue
            self._rows[batch.ids[index]] = self._picture(batch, row, targets)

    def _picture(self, batch: Batch, row: int, targets: NDArray[np.int64]) -> NDArray[np.int32]:
        """``[points, 8]``: x0, y0, x1, y1, seed, hit, tied, degenerate, in grid order."""
        protocol, picture = self._protocol, batch.geometry[row].stored
        norm = getattr(protocol, "norm", False)
        rows: list[tuple[int, ...]] = []
        sources = dict.fromkeys((s.layer, s.facet) for s in self._grid)
        normalised = tuple(dict.fromkeys(s.normalised for s in self._grid))
        biases = tuple(dict.fromkeys(s.bias for s in self._grid))
        for layer, facet in sources:
            patches = batch.tokens[Read(layer, facet, norm)].patches[row]
            shape = patches.shape[:2]
            votes = votes_of_picture(
                patches.flatten(0, 1), normalised, biases, protocol.bias_unit, protocol.k
            )
            for seeds, tied, degenerate, masks in votes:
                facts = torch.stack((seeds, tied.long(), degenerate.long()), 1).tolist()
                grids = masks.reshape(-1, *shape).cpu().numpy()
                for (seed, is_tied, is_degenerate), mask in zip(facts, grids, strict=True):
                    box = component_box(mask, seed, self._patch, picture)
                    rows.append((*box, seed, finds(box, targets), is_tied, is_degenerate))
        return np.array(rows, np.int32)

    def finish(self) -> Outcome:
        ids = sorted(self._rows, key=self._order.__getitem__)
        if not ids:
            raise HarnessError("lost: no picture with a box was scored; CorLoc has no value")
        counts = {"skipped_no_box": self._skipped}
        if isinstance(self._protocol, LostProtocol):
            return self._outcome(ids, 0, counts)
        held = _held_out(ids, self._protocol)
        choosing = [image for image, keep in zip(ids, held, strict=True) if keep]
        hits = np.mean([self._rows[image][:, 5] for image in choosing], axis=0)
        best = int(np.argmax(hits))  # the first of equals, in grid order
        reported = np.ones(len(ids), bool) if self._protocol.selected_on == "test" else ~held
        counts |= {"selection_pictures": int(held.sum())}
        scored = [image for image, keep in zip(ids, reported, strict=True) if keep]
        outcome = self._outcome(scored, best, counts)
        sweep = [
            {**setting._asdict(), "corloc_on_selection": round(100 * float(hit), 4)}
            for setting, hit in zip(self._grid, hits, strict=True)
        ]
        return Outcome(
            outcome.columns,
            outcome.metrics,
            counts,
            outcome.resolved,
            self._protocol.selected_on,
            {"chosen": sweep[best], "sweep": sweep},
        )

    def _outcome(self, ids: list[str], point: int, counts: Mapping[str, int]) -> Outcome:
        """The outcome of these pictures at one point of the grid."""
        table = np.stack([self._rows[image][point] for image in ids])
        names = ("x0", "y0", "x1", "y1", "seed")
        columns: dict[str, Any] = {"image_id": ids}
        columns |= {name: table[:, column] for column, name in enumerate(names)}
        columns |= {
            name: table[:, 5 + column].astype(bool)
            for column, name in enumerate(("hit", "tied", "degenerate"))
        }
        metrics = {
            "corloc": MetricSpec("hit", "%", True, 100),
            "tied_seed_fraction": MetricSpec("tied", "%", False, 100),
            "degenerate_fraction": MetricSpec("degenerate", "%", False, 100),
        }
        return Outcome(columns, metrics, counts, resolved=self._grid[point]._asdict())

    def state(self) -> object:
        return self._rows, self._skipped

    def load(self, state: Any) -> None:
        self._rows, self._skipped = dict(state[0]), state[1]

    def merge(self, other: Self) -> None:
        self._rows |= other._rows
        self._skipped += other._skipped


def _held_out(ids: Sequence[str], protocol: SweptLostProtocol) -> NDArray[np.bool_]:
    """Which pictures choose the setting: all of them, or a share."""
    if protocol.selected_on == "test":
        return np.ones(len(ids), bool)
    if len(ids) < 2:
        raise HarnessError(f"{protocol.name}: two pictures with boxes are needed, {len(ids)} given")
    return held_out(ids, protocol.selection_share)


class Lost(Task[Any]):
    name: ClassVar[str] = "lost"
    summary: ClassVar[str] = "object discovery: one box a picture, without labels (CorLoc)"
    default_datasets: ClassVar[tuple[str, ...]] = ("voc07",)
    protocols: Mapping[str, LostProtocol | SweptLostProtocol] = {
        "lost": LostProtocol(),
        "lost-swept": SweptLostProtocol(name="lost-swept", selected_on="held-out pictures"),
        "lost-swept-on-test": SweptLostProtocol(name="lost-swept-on-test", selected_on="test"),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: LostProtocol | SweptLostProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        if "test" not in datasets or not datasets["test"].has_boxes:
            raise NotApplicable("the data set has no boxes")
        grid = _grid(protocol, architecture.depth)
        request = TokenRequest(
            view=WholePicture(architecture.patch, protocol.max_patches),
            layers=tuple(dict.fromkeys(setting.layer for setting in grid)),
            facets=tuple(dict.fromkeys(setting.facet for setting in grid)),
            norm=getattr(protocol, "norm", False),
            precision=protocol.precision,
            bytes_per_picture=32 * len(grid),
        )
        return {"test": request}

    def box(
        self, patches: Tensor, patch: int, picture: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """The default protocol's box of one picture, from its keys ``[rows, columns, D]``."""
        plain = LostProtocol()
        (result,) = votes_of_picture(
            patches.flatten(0, 1), [plain.normalised], [plain.bias], plain.bias_unit, plain.k
        )
        mask = result.mask[0].reshape(patches.shape[:2]).cpu().numpy()
        return component_box(mask, int(result.seed[0]), patch, picture)

    def start(self, context: Context[LostProtocol | SweptLostProtocol]) -> LostEvaluation:
        return LostEvaluation(context, _grid(context.protocol, context.architecture.depth))

    def seeded(self, protocol: LostProtocol | SweptLostProtocol) -> bool:
        return False


def _grid(protocol: LostProtocol | SweptLostProtocol, depth: int) -> list[Setting]:
    """All settings of a protocol, layers outermost and biases innermost."""
    if isinstance(protocol, LostProtocol):
        (layer,) = resolve_layers((protocol.layer,), depth)
        assert isinstance(layer, int)
        return [Setting(layer, protocol.facet, protocol.normalised, protocol.bias)]
    layers = [i for i in resolve_layers(protocol.layers, depth) if isinstance(i, int)]
    every = product(layers, protocol.facets, protocol.normalised, protocol.biases)
    return list(dict.fromkeys(Setting(*setting) for setting in every))  # each once


LOST = Lost()
