"""One-sided tests against a margin: is a loss larger than what is tolerated?

The null hypothesis of each is that the true loss is no larger than the margin, so that a score that
merely moved has a large p. Losses are positive where the candidate is worse.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, ndtr, stdtr, xlogy

_LIKELY = 0.2
"""From here on the normal approximation of a p is near enough: it decides nothing."""


def of_hits(lost: int, gained: int, pictures: int, margin: float) -> float:
    """p of hits and misses: of ``pictures`` that are independent, ``lost`` were hits and are not,
    ``gained`` the other way round. ``margin`` is a share, 0 to 1.

    The score statistic of Tango ("Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", Statistics in Medicine, 1998), whose variance is the
    one under the null hypothesis. A normal p of it is too small far out, where few pictures move
    and many cells are adjusted for: so a small p is counted out, as how likely a statistic as large
    is where the margin is the truth and as many pictures move as is then the likeliest (Lloyd,
    "Exact p-values for discrete models obtained by estimation and maximization", 2008: the E step).
    """
    if margin >= 1:
        return 1.0
    observed = float(_score(lost, gained, pictures, margin))
    p = float(ndtr(-observed))
    if p > _LIKELY or lost + gained == 0:
        return p
    gain = float(_likeliest_gain(lost, gained, pictures, margin))
    loss = gain + margin
    losses = np.arange(*_reach(pictures, loss))[:, None]
    gains = np.arange(*_reach(pictures, gain))[None]
    rest = pictures - losses - gains
    far = (rest >= 0) & (_score(losses, gains, pictures, margin) >= observed - 1e-9)
    counts = [np.broadcast_to(each, far.shape)[far] for each in (losses, gains, rest)]
    shares = [loss, gain, max(0.0, 1 - loss - gain)]
    ways = gammaln(pictures + 1) - sum(gammaln(each + 1) for each in counts)
    chances = np.exp(ways + sum(map(xlogy, counts, shares)))
    return float(min(1.0, chances.sum()))


def _score(lost: ArrayLike, gained: ArrayLike, pictures: int, margin: float) -> NDArray[np.float64]:
    """Of any shape. Where nothing can vary: infinite beyond the margin, else 0."""
    worse, better = np.asarray(lost, np.float64), np.asarray(gained, np.float64)
    excess = worse - better - pictures * margin
    gain = _likeliest_gain(worse, better, pictures, margin)
    spread = np.sqrt(pictures * np.maximum(0, 2 * gain + margin * (1 - margin)))
    beyond = np.where(excess > 0, np.inf, 0.0)
    found: NDArray[np.float64] = np.divide(excess, spread, out=beyond, where=spread > 0)
    return found


def _likeliest_gain(
    lost: ArrayLike, gained: ArrayLike, pictures: int, margin: float
) -> NDArray[np.float64]:
    """The share of pictures gained that is likeliest where the loss is the margin (Tango's
    equation, a quadratic one)."""
    worse, better = np.asarray(lost, np.float64), np.asarray(gained, np.float64)
    half = -worse - better + (2 * pictures - worse + better) * margin
    root = np.sqrt(np.maximum(0, half**2 + 8 * pictures * better * margin * (1 - margin)))
    found: NDArray[np.float64] = np.clip((root - half) / (4 * pictures), 0, (1 - margin) / 2)
    return found


def _reach(pictures: int, share: float) -> tuple[int, int]:
    """All counts but those too unlikely to matter: 1e-15 and less."""
    mean, spread = pictures * share, np.sqrt(pictures * share * (1 - share))
    return max(0, int(mean - 9 * spread)), min(pictures, int(mean + 9 * spread + 30)) + 1


def of_mean(losses: ArrayLike, margin: float, clusters: ArrayLike | None = None) -> float:
    """p of a mean over pictures: Student's t of ``losses [n]``.

    Where ``clusters [n]`` names the scene of every picture, scenes are the units: the mean over
    pictures is a ratio of two sums over scenes, and its standard error follows from how far each
    scene's sum is from what its pictures let expect (Cochran, Sampling Techniques, 1977, 6.11).
    1 for a single unit, of which nothing follows.
    """
    values = np.asarray(losses, np.float64)
    units = np.arange(len(values))
    if clusters is not None:
        units = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, sizes = np.bincount(units, values), np.bincount(units)
    count, mean = len(sums), values.mean()
    if count < 2:
        return 1.0
    error = np.sqrt(count / (count - 1) * ((sums - mean * sizes) ** 2).sum()) / len(values)
    return of_error(float(mean), float(error), margin, count)


def of_error(loss: float, error: float, margin: float, units: int) -> float:
    """p of a loss with its standard error, over so many units: Student's t."""
    excess = loss - margin
    if units < 2 or np.isnan(excess) or np.isnan(error):
        return 1.0
    # Rounding is no spread: what moved by the same everywhere did so for certain.
    if error <= 1e-12 * max(abs(loss), margin):
        return 0.0 if excess > 1e-9 * max(abs(loss), margin) else 1.0
    return float(stdtr(units - 1, -excess / error))
