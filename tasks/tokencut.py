"""TokenCut: one object box a picture from a normalised cut of a frozen ViT's patches, unlabelled.

Wang et al. (CVPR 2022), as coded in YangtaoWANG95/TokenCut (object_discovery.py, main_tokencut.py):
the graph of the patches' cosines is cut in two, and the box goes round the connected component of
the patch that the cut tells apart most (the seed). DINOv3 (Siméoni et al., 2025, section 6.1.4 and
appendix D.4) runs it on output features, with the threshold of the graph swept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, StrictInt, model_validator
from torch import Tensor

from harness.backbone.architecture import Architecture
from harness.backbone.layout import Facet
from harness.backbone.vit import Read
from harness.data.dataset import Dataset, Role
from harness.discovery import (
    DiscoveryEvaluation,
    DiscoveryProtocol,
    Found,
    SweptDiscoveryProtocol,
)
from harness.errors import HarnessError
from harness.layers import resolve_layers
from harness.probes.normalised_cut import Cut, cosines, normalised_cut
from harness.task import Batch, Context, Task, TokenRequest


class NormalisedCutProtocol(DiscoveryProtocol):
    """The graph, its cut and the box, as in the official code; which threshold is left open."""

    layer: StrictInt = -1
    facet: Facet
    norm: bool = Field(description="final norm (facet token only)")
    graph: Literal["1 where the cosine is above tau, else epsilon"] = (
        "1 where the cosine is above tau, else epsilon"
    )
    epsilon: float = Field(1e-5, gt=0, lt=1)
    eigenvector: Literal["second smallest of (D - W) x = lambda D x"] = (
        "second smallest of (D - W) x = lambda D x"
    )
    seed: Literal["largest absolute entry"] = "largest absolute entry"
    foreground: Literal["above the mean, the seed's entry being positive"] = (
        "above the mean, the seed's entry being positive"
    )
    tie_break: Literal["lowest index"] = "lowest index"
    tolerance: float = Field(
        1e-8, ge=0, le=1e-3, description="entries and eigenvalues no farther apart are equal"
    )

    @model_validator(mode="after")
    def _only_tokens_are_normed(self) -> Self:
        if self.norm and self.facet != "token":
            raise ValueError(f"norm: the final norm is for the facet token, not {self.facet}")
        return self


class TokenCutProtocol(NormalisedCutProtocol):
    """TokenCut with one threshold; the defaults are the official code's."""

    name: str = "tokencut"
    facet: Facet = "key"
    norm: bool = Field(False, description="final norm (facet token only)")
    tau: float = Field(0.2, ge=-1, le=1)


class SweptTokenCutProtocol(NormalisedCutProtocol, SweptDiscoveryProtocol):
    """TokenCut on output features over several thresholds: the best one is reported."""

    facet: Facet = "token"
    norm: bool = Field(True, description="final norm (facet token only)")
    taus: tuple[float, ...] = Field(
        tuple(round(step / 20, 2) for step in range(9)), min_length=1, description="0 to 0.4"
    )


class TokenCutEvaluation(DiscoveryEvaluation):
    flags: ClassVar[Mapping[str, str]] = {
        "tied": "tied_seed_fraction",
        "degenerate": "degenerate_fraction",
        "disconnected": "disconnected_fraction",
    }

    def __init__(self, context: Context[Any]) -> None:
        settings: TokenCutProtocol | SweptTokenCutProtocol = context.protocol
        self._settings, self._taus = settings, _taus(settings)
        self._read = _read(settings, context.architecture.depth)
        where = {"layer": self._read.layer, "facet": self._read.facet}
        super().__init__(context, [{**where, "tau": tau} for tau in self._taus])

    def found(self, batch: Batch, row: int) -> Iterator[Found]:
        patches = batch.tokens[self._read].patches[row]
        for cut in cuts_of_picture(patches.flatten(0, 1), self._taus, self._settings):
            told = cut.tied, cut.degenerate, cut.disconnected
            yield Found(cut.seed, cut.foreground.reshape(patches.shape[:2]), told)


def cuts_of_picture(
    patches: Tensor, taus: Sequence[float], protocol: NormalisedCutProtocol
) -> Iterator[Cut]:
    """Patches ``[N, D]`` -> the cut of their graph at each threshold."""
    similarity = cosines(patches)
    if not torch.isfinite(similarity.diagonal()).all():
        raise HarnessError("tokencut: features are not finite (half precision, or broken weights?)")
    for tau in taus:
        yield normalised_cut(similarity, tau, protocol.epsilon, protocol.tolerance)


class TokenCut(Task[Any]):
    name: ClassVar[str] = "tokencut"
    summary: ClassVar[str] = "object discovery by a normalised cut, without labels (CorLoc)"
    default_datasets: ClassVar[tuple[str, ...]] = ("voc07",)
    protocols: Mapping[str, TokenCutProtocol | SweptTokenCutProtocol] = {
        "tokencut": TokenCutProtocol(),
        "dinov3-tokencut": SweptTokenCutProtocol(
            name="dinov3-tokencut", selected_on="held-out pictures"
        ),
        "dinov3-tokencut-on-test": SweptTokenCutProtocol(
            name="dinov3-tokencut-on-test", selected_on="test"
        ),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: TokenCutProtocol | SweptTokenCutProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        read, points = _read(protocol, architecture.depth), len(_taus(protocol))
        return TokenCutEvaluation.requests(architecture, datasets, protocol, [read], points)

    def start(
        self, context: Context[TokenCutProtocol | SweptTokenCutProtocol]
    ) -> TokenCutEvaluation:
        return TokenCutEvaluation(context)

    def seeded(self, protocol: TokenCutProtocol | SweptTokenCutProtocol) -> bool:
        return False


def _taus(protocol: TokenCutProtocol | SweptTokenCutProtocol) -> tuple[float, ...]:
    if isinstance(protocol, TokenCutProtocol):
        return (protocol.tau,)
    return tuple(dict.fromkeys(protocol.taus))  # each once


def _read(protocol: NormalisedCutProtocol, depth: int) -> Read:
    (layer,) = resolve_layers((protocol.layer,), depth)
    return Read(layer, protocol.facet, protocol.norm)


TOKENCUT = TokenCut()
