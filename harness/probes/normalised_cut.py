"""The normalised cut of a picture's patches in two, as TokenCut makes it.

Wang et al., "TokenCut: Segmenting Objects in Images and Videos with Self-Supervised Transformer and
Normalized Cut" (CVPR 2022, sections 3.1 and 3.2), after Shi and Malik (2000). Patches are the nodes
of a complete graph: an edge weighs 1 where the cosine of two patches is above tau, else epsilon.
With W the weights and D the diagonal of their row sums, the cut is read from the eigenvector of
(D - W) x = lambda D x with the second smallest eigenvalue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

_DENSE = 64
"""Patches up to which all of the matrix is decomposed: below, Lanczos has nothing to save."""
_RESTARTS = 30
"""Of Lanczos, ten products each: a spectrum that needs more is decomposed whole as fast."""
_ROUGHLY, _EXACTLY = (1e-2, 8), (1e-9, 20)
"""By how much an eigenvalue may be wrong, as a share of it, and the vectors of the Krylov basis."""


class Cut(NamedTuple):
    """``foreground [N]`` are the patches on the seed's side; ``seed`` is a patch's index.

    ``tied``: other patches lie as far out as the seed. ``degenerate``: there is no one cut, the
    foreground is all patches. ``disconnected``: edges of weight 1 do not hold the graph together.
    """

    seed: int
    foreground: NDArray[np.bool_]
    tied: bool
    degenerate: bool
    disconnected: bool


def cosines(patches: Tensor) -> Tensor:
    """Patches ``[N, D]`` -> ``[N, N]`` in float32; a patch of zeros is at 0 to all, itself too."""
    unit = torch.nn.functional.normalize(patches.float(), dim=1)
    return unit @ unit.T


def normalised_cut(similarity: Tensor, tau: float, epsilon: float, tolerance: float) -> Cut:
    """Cosines ``[N, N]`` -> the cut. The products with ``[N, N]`` are made where the cosines lie.

    The seed is the patch whose entry of the eigenvector is the largest in absolute value, and the
    foreground are the entries above the mean, the sign being such that the seed's is positive.
    What differs by at most ``tolerance`` (of entries as a share of the largest) is taken as equal:
    ties go to the lowest index, and an eigenvalue that is equal to the next, or affinities between
    patches that are all on one side of tau, make the cut degenerate.
    """
    count = len(similarity)
    linked = similarity > tau
    linked = linked | linked.T  # a product of matrices may round its two halves differently
    edges = int(linked.sum() - linked.diagonal().sum())
    disconnected = not _connected(linked)
    everything = np.ones(count, bool)
    if edges in (0, count * (count - 1)):  # so are one patch, and two
        return Cut(0, everything, count > 1, True, disconnected)
    vector = _second_eigenvector(linked, epsilon, tolerance)
    if vector is None:
        return Cut(0, everything, True, True, disconnected)
    vector /= np.abs(vector).max()
    farthest = np.abs(vector) >= 1 - tolerance
    seed = int(farthest.argmax())
    vector *= np.sign(vector[seed])
    return Cut(
        seed, vector > vector.mean() + tolerance, bool(farthest.sum() > 1), False, disconnected
    )


def _connected(linked: Tensor) -> bool:
    """Whether a walk from patch 0 reaches all of ``linked [N, N]``."""
    reached = torch.zeros(len(linked), dtype=torch.bool, device=linked.device)
    new = reached.clone()
    new[0] = True
    while new.any():
        reached |= new
        new = linked[new].any(0) & ~reached
    return bool(reached.all())


def _second_eigenvector(
    linked: Tensor, epsilon: float, tolerance: float
) -> NDArray[np.float64] | None:
    """``[N]``, of the generalised problem; None where the second eigenvalue equals the third.

    Solved is the equal one of the normalised affinity D^-1/2 W D^-1/2, whose eigenvalues are
    1 - lambda: the largest is 1, with the roots of the degrees. What is found is moved to -2, below
    all others, so that the next is always the largest. One is sought at a time, because a single
    Lanczos run can miss the second of two equal ones.
    """
    weights = torch.full_like(linked, epsilon, dtype=torch.float64).masked_fill_(linked, 1.0)
    degrees = weights.sum(1)
    roots = degrees.sqrt()
    if len(linked) <= _DENSE:
        return _densely(weights, roots, tolerance)
    place = linked.device
    found = (roots / roots.norm())[:, None]
    values = torch.ones(1, dtype=torch.float64, device=place)
    start = np.random.default_rng(0).standard_normal(len(linked))

    def product(column: NDArray[np.float64]) -> NDArray[np.float64]:
        x = torch.as_tensor(column, device=place).flatten()
        y = (weights @ (x / roots)) / roots - found @ ((values + 2) * (found.T @ x))
        array: NDArray[np.float64] = y.cpu().numpy()
        return array

    operator = LinearOperator(linked.shape, matvec=product, dtype=np.float64)

    def next_largest(exactness: float, basis: int = 20) -> tuple[Tensor, Tensor]:
        value, vector = eigsh(
            operator, 1, which="LA", v0=start, tol=exactness, ncv=basis, maxiter=_RESTARTS
        )
        return torch.as_tensor(value, device=place), torch.as_tensor(vector, device=place)

    try:
        with _one_thread():
            second, vector = next_largest(0.0)  # as exactly as float64 allows
            # The squares of all eigenvalues add up to those of all entries. Often the first two
            # leave too little for a third that equals the second; else it is looked for.
            inverse = 1 / degrees
            squares = (1 + epsilon) * (inverse @ weights @ inverse) - epsilon * inverse.sum() ** 2
            most = (squares - 1 - second**2).clamp_min(0).sqrt()
            found, values = torch.cat((found, vector), 1), torch.cat((values, second))
            for exactness, basis in (_ROUGHLY, _EXACTLY):
                if most < second - tolerance:
                    break
                third, _ = next_largest(exactness, basis)
                most = third + exactness * third.abs()
    except ArpackError:
        return _densely(weights, roots, tolerance)
    return (vector[:, 0] / roots).cpu().numpy() if most < second - tolerance else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """A product with one column is bound by memory and over before threads have found together:
    one is as fast, much faster on a busy machine, and rounds the same whatever their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _densely(weights: Tensor, roots: Tensor, tolerance: float) -> NDArray[np.float64] | None:
    """The same from a decomposition of the whole matrix."""
    count = len(weights)
    matrix = (weights / roots / roots[:, None]).cpu().numpy()
    (third, second), vectors = eigh(
        matrix, subset_by_index=[count - 3, count - 2], overwrite_a=True
    )
    if second - third <= tolerance:
        return None
    vector: NDArray[np.float64] = vectors[:, 1] / roots.cpu().numpy()
    return vector
