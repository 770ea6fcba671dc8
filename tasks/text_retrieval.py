"""Text retrieval: which captions are a picture's, and which picture is a caption's. No training.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021, the
appendix on image and text retrieval), on the splits of Karpathy and Fei-Fei (CVPR 2015): pictures
and captions are ranked by the cosine of what the two towers make of them, and recall at k is told.
A picture has found its text if any of its captions is among the first k; every caption counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, StrictInt, field_validator

from harness.backbone.architecture import Architecture
from harness.classification import CollectedEvaluation
from harness.data.dataset import Dataset, Role
from harness.errors import HarnessError
from harness.language.pictures import PictureProtocol, request_of, resolved, selector_of
from harness.language.zero_shot import in_common
from harness.probes.caption_ranking import ranks_of_own
from harness.task import Context, MetricSpec, NotApplicable, Outcome, Task, TokenRequest

KS = (1, 5, 10)
_SIDES = ("picture_to_text", "text_to_picture")
_SHOWN = {f"{side}_r1" for side in _SIDES} | {"mean_recall"}


class TextRetrievalProtocol(PictureProtocol):
    """The picture as its release sees it, and its first five captions."""

    name: str = "text-retrieval"
    version: str = "1.0"
    captions_per_picture: Annotated[StrictInt, Field(ge=1)] | Literal["all"] = Field(
        5, description="the first so many of each picture (COCO's have 5 to 7), or all"
    )
    template: str = Field("{}", description="what a caption is put into; CLIP: a photo of {}")
    similarity: Literal["cosine"] = "cosine"
    tie_break: Literal["lowest index"] = "lowest index"

    @field_validator("template")
    @classmethod
    def _has_one_slot(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError("one {} says where the caption goes")
        return template


class TextRetrievalEvaluation(CollectedEvaluation[TextRetrievalProtocol]):
    """Pictures and captions, ranked once all pictures are there."""

    def finish(self) -> Outcome:
        text, dataset = self._context.text, self._context.datasets["test"]
        assert text is not None
        (collector,) = self._collectors["test"]
        places, features = collector.rows()
        if not len(places):
            raise HarnessError(f"data set {dataset.name!r}: none of its pictures could be used")
        said = [_captions(dataset, place, self._context.protocol) for place in places]
        template = self._context.protocol.template
        every = [template.replace("{}", caption) for captions in said for caption in captions]
        lengths = torch.tensor([len(captions) for captions in said])
        past = lengths.cumsum(0)
        own = torch.repeat_interleave(torch.arange(len(said)), lengths)
        captions, device = text.encode(every), self._context.device
        pictures = in_common(text, features, captions)
        found = {
            "picture_to_text": ranks_of_own(
                pictures, captions, past - lengths, past, max(KS), device
            )[:, None],
            "text_to_picture": _by_picture(
                ranks_of_own(captions, pictures, own, own + 1, max(KS), device), lengths
            ),
        }
        counts = {"captions": len(every)}
        if cut := int(text.cut(every).sum()):
            counts["captions_cut"] = cut
        wanted = self._context.protocol.captions_per_picture
        if wanted != "all" and (fewer := int((lengths < wanted).sum())):
            counts["pictures_with_fewer_captions"] = fewer
        ids = [dataset.samples[place].id for place in places]
        ranks = {side: its.numpy() for side, its in found.items()}
        protocol, architecture = self._context.protocol, self._context.architecture
        return _outcome(ids, ranks, counts, resolved(protocol, architecture))


def _captions(dataset: Dataset, place: int, protocol: TextRetrievalProtocol) -> tuple[str, ...]:
    captions = dataset.samples[place].target.captions
    assert captions
    wanted = protocol.captions_per_picture
    return captions if wanted == "all" else captions[:wanted]


def _by_picture(ranks: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Ranks of all captions, picture after picture -> ``[n, most]``, -1 where there are fewer."""
    there = torch.arange(int(lengths.max())) < lengths[:, None]
    table = torch.full(there.shape, -1)
    table[there] = ranks
    return table


def _outcome(
    ids: list[str],
    ranks: Mapping[str, NDArray[np.int64]],
    counts: dict[str, int],
    facts: dict[str, object],
) -> Outcome:
    """Of ranks from 0, ``[n, 1]`` of pictures and ``[n, most]`` of captions. A picture's recall
    from text is the share of its captions that find it."""
    columns: dict[str, Any] = {"image_id": ids}
    metrics: dict[str, MetricSpec] = {}
    for side in _SIDES:
        there = ranks[side] >= 0
        for k in KS:
            hits = there & (ranks[side] < k)
            columns[f"{side}_r{k}"] = hits.sum(1) / there.sum(1)
    recalls = [f"{side}_r{k}" for side in _SIDES for k in KS]
    columns["mean_recall"] = np.mean([columns[name] for name in recalls], axis=0)
    for name in (*recalls, "mean_recall"):
        metrics[name] = MetricSpec(name, "%", True, 100, shown=name in _SHOWN)
    for side in _SIDES:
        column = ranks[side] + 1
        columns[f"{side}_rank"] = column[:, 0] if side == "picture_to_text" else column
        metrics[f"{side}_median_rank"] = MetricSpec(
            f"{side}_rank", "", False, shown=False, aggregate="median_rank"
        )
    return Outcome(columns, metrics, counts, facts)


class TextRetrieval(Task[TextRetrievalProtocol]):
    name: ClassVar[str] = "text-retrieval"
    summary: ClassVar[str] = "captions of a picture and pictures of a caption, by cosine (recall)"
    default_datasets: ClassVar[tuple[str, ...]] = ("coco-karpathy",)
    needs_text: ClassVar[bool] = True
    protocols: Mapping[str, TextRetrievalProtocol] = {
        "text-retrieval": TextRetrievalProtocol(),
        "clip-retrieval": TextRetrievalProtocol(name="clip-retrieval", template="a photo of {}"),
    }
    checked_with: ClassVar[Mapping[str, Mapping[str, object]]] = {
        name: {"size": 112} for name in ("text-retrieval", "clip-retrieval")
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: TextRetrievalProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        if "test" not in datasets:
            raise NotApplicable("the data set has no test split")
        bare = [each for each in datasets["test"].samples if not each.target.captions]
        if len(bare) == len(datasets["test"].samples):
            raise NotApplicable("its pictures have no captions")
        if bare:
            raise HarnessError(
                f"data set {datasets['test'].name!r}: {bare[0].id} has no caption ({len(bare)} of "
                f"{len(datasets['test'].samples)} pictures are so)"
            )
        return {"test": request_of(protocol, architecture)}

    def start(self, context: Context[TextRetrievalProtocol]) -> TextRetrievalEvaluation:
        return TextRetrievalEvaluation(context, [selector_of(context.architecture)], ["test"])

    def seeded(self, protocol: TextRetrievalProtocol) -> bool:
        return False


TEXT_RETRIEVAL = TextRetrieval()
