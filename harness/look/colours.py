"""Patch tokens as colours: their first three principal components as red, green and blue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

_CLIPPED = 0.01  # of all patches, on either side of a component
_NOTHING = 1e-9  # of the first component's variance: what arithmetic leaves of none


def as_colours(patches: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Tokens ``[rows, columns, D]`` of one picture -> ``[rows, columns, 3]``.

    Tokens are brought to unit length first, and each component is clipped at its 1st and 99th
    percentile: a few tokens, however long, decide no colour. A component has the sign with which
    the longer tail is bright (its third moment is positive), so two models that part a picture
    alike have the same colours, whatever their own axes. A component without variance is grey.
    """
    flat = patches.reshape(-1, patches.shape[-1])
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    values = _components(flat - flat.mean(0), 3)
    colours = np.full((len(flat), 3), 0.5)
    for channel, component in enumerate(values.T):
        skewed = (component**3).sum()
        if skewed < 0:
            component = -component
        low, high = np.quantile(component, (_CLIPPED, 1 - _CLIPPED))
        if high > low:
            colours[:, channel] = ((component - low) / (high - low)).clip(0, 1)
    return (colours * 255).round().astype(np.uint8).reshape(*patches.shape[:2], 3)


def _components(centred: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """``[N, D]`` -> the coordinates ``[N, k]`` on the first ``k <= count`` principal axes, those
    with variance. The smaller of the two Gram matrices has the same spectrum."""
    number, width = centred.shape
    by_token = number < width
    gram = centred @ centred.T if by_token else centred.T @ centred
    first = max(0, len(gram) - count)
    spectrum, vectors = linalg.eigh(gram, subset_by_index=(first, len(gram) - 1))
    spectrum, vectors = spectrum[::-1], vectors[:, ::-1]
    there = spectrum > max(_NOTHING * spectrum[0], 1e-18 * number)
    if by_token:
        found: NDArray[np.float64] = vectors[:, there] * np.sqrt(spectrum[there])
    else:
        found = centred @ vectors[:, there]
    return found
