"""The contract of a task that can show what it says of every pixel, or what the model was shown
(``--save-predictions``)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.task import Batch, Context, Evaluation, P, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Shown:
    """What is said of one picture and what is true, ``[H, W]`` at its stored size.

    ``classes``: places in ``Dataset.semantic_classes``, uint8, ``IGNORED`` where there is none.
    ``depth``: metres; of the truth, 0 or NaN where it is not known or does not count. ``score`` is
    told with it, such as ``mIoU 41.2 %`` or ``RMSE 0.43 m``. ``looks``: nothing is said of pixels;
    both are what the model saw, ``[h, w, 3]`` RGB, the picture as it is and as it was changed (the
    same where it was not).
    """

    id: str
    prediction: NDArray[Any]
    truth: NDArray[Any]
    kind: Literal["classes", "depth", "looks"]
    score: str
    titles: tuple[str, str] = ("seen as it is", "seen changed")
    """Of the looks."""


class PicturedEvaluation(Evaluation):
    """An evaluation that still knows after ``finish`` how it came to its predictions."""

    @abstractmethod
    def standing(self) -> Mapping[str, float]:
        """After ``finish``: how well each scored test picture went, by id; higher is better. NaN
        has no place."""

    @abstractmethod
    def shown(self, batch: Batch) -> Iterator[Shown]:
        """After ``finish``: what is said of the pictures that are complete with this batch.

        Batches are as in ``update("test", …)``, of a few pictures of that role, each once, in the
        data set's order.
        """


class PicturedTask(Task[P]):
    """A task whose evaluations can show what they say of every pixel of a test picture."""

    @abstractmethod
    def start(self, context: Context[P]) -> PicturedEvaluation: ...
