"""LOST: one object box a picture from the affinities of a frozen ViT's patches, with no labels.

Siméoni et al., "Localizing Objects with Self-Supervised Transformers and no Labels" (BMVC 2021),
as coded in valeoai/LOST. The patch with the fewest positive affinities is taken for an object (the
seed); the most object-like patches that agree with it vote; the box goes round the component of the
vote that holds the seed. Darcet et al. (section 3.3) add a bias to the affinities before all that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, StrictInt, model_validator
from torch import Tensor

from harness.backbone.architecture import Architecture
from harness.backbone.layout import Facet
from harness.backbone.vit import Read
from harness.data.dataset import Dataset, Role
from harness.discovery import (
    Discovered,
    DiscoveryEvaluation,
    DiscoveryProtocol,
    Found,
    SweptDiscoveryProtocol,
    component_box,
)
from harness.errors import HarnessError
from harness.layers import resolve_layers
from harness.task import Batch, Context, Task, TokenRequest

BiasUnit = Literal["absolute", "mean squared norm"]

_ROWS = 512  # of the affinities compared at a time


class LostProtocol(DiscoveryProtocol):
    """LOST with one setting; the defaults are the official code's."""

    name: str = "lost"
    facet: Facet = "key"
    layer: StrictInt = -1
    norm: bool = Field(False, description="final norm (facet token only)")
    normalised: bool = Field(False, description="patches scaled to unit length")
    bias: float = Field(0.0, description="added to every affinity")
    bias_unit: BiasUnit = "absolute"
    k: StrictInt = Field(100, ge=1, description="how many of the most object-like patches may vote")
    tie_break: Literal["lowest index"] = "lowest index"

    @model_validator(mode="after")
    def _only_tokens_are_normed(self) -> Self:
        if self.norm and self.facet != "token":
            raise ValueError(f"norm: the final norm is for the facet token, not {self.facet}")
        return self


class SweptLostProtocol(SweptDiscoveryProtocol):
    """LOST over layers, facets, unit length or not, and biases: the best setting is reported."""

    layers: tuple[int, ...] = Field((-4, -3, -2, -1), min_length=1)
    facets: tuple[Facet, ...] = Field(("query", "key", "value"), min_length=1)
    normalised: tuple[bool, ...] = Field((True, False), min_length=1)
    # In the picture's mean squared patch norm: with patches of unit length that is 1.
    biases: tuple[float, ...] = Field(
        tuple(round(-1 + step / 20, 2) for step in range(21)), min_length=1
    )
    bias_unit: Literal["mean squared norm"] = "mean squared norm"
    k: StrictInt = Field(100, ge=1)
    tie_break: Literal["lowest index"] = "lowest index"


class Setting(NamedTuple):
    """One point of the grid."""

    layer: int
    facet: Facet
    normalised: bool
    bias: float


class Vote(NamedTuple):
    """What LOST finds at each of S biases: ``seed``, ``tied``, ``degenerate`` ``[S]``, ``mask``
    ``[S, N]`` of the patches voted for, ``degree`` ``[S, N]``."""

    seed: Tensor
    tied: Tensor
    degenerate: Tensor
    mask: Tensor
    degree: Tensor


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
    return Vote(first[:, 0], tied, lowest.all(1) & tied, mask, degree)


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


class LostEvaluation(DiscoveryEvaluation):
    flags: ClassVar[Mapping[str, str]] = {
        "tied": "tied_seed_fraction",
        "degenerate": "degenerate_fraction",
    }

    def __init__(self, context: Context[Any], grid: list[Setting]) -> None:
        super().__init__(context, [setting._asdict() for setting in grid])
        self._settings: LostProtocol | SweptLostProtocol = context.protocol
        self._reads = _reads(context.protocol, grid)
        self._normalised = tuple(dict.fromkeys(s.normalised for s in grid))
        self._biases = tuple(dict.fromkeys(s.bias for s in grid))

    def found(self, batch: Batch, row: int) -> Iterator[Found]:
        unit, k = self._settings.bias_unit, self._settings.k
        for read in self._reads:
            patches = batch.tokens[read].patches[row]
            shape = patches.shape[:2]
            votes = votes_of_picture(patches.flatten(0, 1), self._normalised, self._biases, unit, k)
            for seeds, tied, degenerate, masks, _ in votes:
                facts = torch.stack((seeds, tied.long(), degenerate.long()), 1).tolist()
                grids = masks.reshape(-1, *shape).cpu().numpy()
                for (seed, *told), mask in zip(facts, grids, strict=True):
                    yield Found(seed, mask, tuple(told))


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
        grid = _grid(protocol, architecture.depth)
        reads = _reads(protocol, grid)
        return LostEvaluation.requests(architecture, datasets, protocol, reads, len(grid))

    def look(self, patches: Tensor, patch: int, picture: tuple[int, int]) -> Discovered:
        """What the default protocol sees in one picture, from its keys ``[rows, columns, D]``.

        ``patch`` in pixels, ``picture`` (width, height) as in ``component_box``."""
        plain = LostProtocol()
        (result,) = votes_of_picture(
            patches.flatten(0, 1), [plain.normalised], [plain.bias], plain.bias_unit, plain.k
        )
        seed, shape = int(result.seed[0]), patches.shape[:2]
        mask, degree = (
            each[0].reshape(shape).cpu().numpy() for each in (result.mask, result.degree)
        )
        box = component_box(mask, seed, patch, picture)
        return Discovered(seed, degree, mask, box, bool(result.tied[0]))

    def start(self, context: Context[LostProtocol | SweptLostProtocol]) -> LostEvaluation:
        return LostEvaluation(context, _grid(context.protocol, context.architecture.depth))

    def seeded(self, protocol: LostProtocol | SweptLostProtocol) -> bool:
        return False


def _reads(protocol: LostProtocol | SweptLostProtocol, grid: Sequence[Setting]) -> list[Read]:
    """What the grid is made of, each once, in its order."""
    norm = isinstance(protocol, LostProtocol) and protocol.norm
    return list(dict.fromkeys(Read(setting.layer, setting.facet, norm) for setting in grid))


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
