"""How far a depth map is from the truth, picture by picture.

Eigen et al., "Depth Map Prediction from a Single Image" (2014, section 4), as the code of AdaBins
and BTS has them. A score is the mean over pictures of each picture's value: a root of squares
pooled over all pixels is another number, and not the literature's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Crop = Literal["none", "nyu-eigen", "kitti-eigen", "kitti-garg"]
Alignment = Literal["none", "scale-and-shift", "median"]

_FRACTIONS: dict[str, tuple[float, float, float, float]] = {
    "kitti-eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "kitti-garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


class DepthErrors(NamedTuple):
    """Of one picture. ``rmse``, ``mae`` and ``sq_rel`` in metres, ``silog`` times 100 (the spread
    of the log ratio), ``delta1`` to ``delta3`` shares of pixels within a factor of 1.25, 1.25^2
    and 1.25^3; the others as they are. ``log10`` is of common, ``rmse_log`` of natural
    logarithms."""

    rmse: float
    abs_rel: float
    log10: float
    rmse_log: float
    silog: float
    sq_rel: float
    delta1: float
    delta2: float
    delta3: float
    mae: float


def valid_depth(truth: Tensor, low: float, high: float, crop: Crop = "none") -> Tensor:
    """Where ``truth [H, W]`` counts: between ``low`` and ``high`` metres (neither included, NaN
    never), within the crop: ``[H, W]`` bool."""
    return (truth > low) & (truth < high) & crop_mask(crop, *truth.shape).to(truth.device)


def crop_mask(crop: Crop, height: int, width: int) -> Tensor:
    """``[height, width]`` bool: the part of a picture that is judged.

    ``nyu-eigen``: rows 45 to 470, columns 41 to 600 of 480 x 640, beyond which the Kinect saw
    nothing. ``kitti-eigen`` and ``kitti-garg`` (Garg et al., 2016): shares of the height and the
    width. Raises ``ValueError`` for NYU's of another size.
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    if crop == "none":
        rows, columns = slice(None), slice(None)
    elif crop == "nyu-eigen":
        if (height, width) != (480, 640):
            raise ValueError(f"the crop nyu-eigen is of 480 x 640, not {height} x {width}")
        rows, columns = slice(45, 471), slice(41, 601)
    else:
        top, bottom, left, right = _FRACTIONS[crop]
        rows = slice(int(top * height), int(bottom * height))
        columns = slice(int(left * width), int(right * width))
    mask[rows, columns] = True
    return mask


def depth_errors(predicted: Tensor, truth: Tensor, valid: Tensor) -> DepthErrors | None:
    """Of ``predicted`` and ``truth [H, W]`` metres where ``valid``, in float64; None where nothing
    is valid.

    Raises ``ValueError`` where a depth that counts is not above 0 or not finite: it has no
    logarithm.
    """
    _same_size(predicted, truth, valid)
    said, true = predicted[valid].double(), truth[valid].double()
    if not said.numel():
        return None
    for what, values in (("prediction", said), ("true depth", true)):
        if not bool(((values > 0) & values.isfinite()).all()):
            raise ValueError(f"a {what} that counts is not above 0 and finite; clamp it")
    off, ratio = said - true, said.log() - true.log()
    apart = torch.maximum(said / true, true / said)
    found = torch.stack(
        [
            off.square().mean().sqrt(),
            (off.abs() / true).mean(),
            (said.log10() - true.log10()).abs().mean(),
            ratio.square().mean().sqrt(),
            # Not below 0 for rounding: one pixel, or a prediction that is off by one factor.
            100 * (ratio.square().mean() - ratio.mean().square()).clamp_min(0).sqrt(),
            (off.square() / true).mean(),
            *((apart < 1.25**power).double().mean() for power in (1, 2, 3)),
            off.abs().mean(),
        ]
    )
    return DepthErrors(*found.tolist())


def aligned(
    predicted: Tensor, truth: Tensor, valid: Tensor, how: Alignment, low: float, high: float
) -> Tensor:
    """``predicted [H, W]`` in the truth's scale as far as ``how`` says, then within ``low`` and
    ``high`` metres: what is left to judge is its shape.

    ``scale-and-shift``: those with the least squared error where ``valid`` (a flat prediction
    gets a scale of 0, and with it the mean depth). ``median``: times the ratio of the medians
    (Zhou et al., 2017); of an even number the median is the mean of the middle two. A picture
    without valid pixels is only clamped.
    """
    _same_size(predicted, truth, valid)
    found = predicted.double()
    said, true = found[valid], truth[valid].double()
    if how == "scale-and-shift" and said.numel():
        centred = said - said.mean()
        spread = centred.square().mean()
        flat = spread <= 1e-12 * said.square().mean()
        covered = (centred * (true - true.mean())).mean()
        scale = torch.where(flat, 0.0, covered / torch.where(flat, 1.0, spread))
        found = scale * (found - said.mean()) + true.mean()
    elif how == "median" and said.numel():
        found = found * (_median(true) / _median(said))
    return found.clamp(low, high).to(predicted.dtype)


def _median(values: Tensor) -> Tensor:
    ordered = values.sort().values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _same_size(predicted: Tensor, truth: Tensor, valid: Tensor) -> None:
    if not predicted.shape == truth.shape == valid.shape:
        shapes = ", ".join(str(list(each.shape)) for each in (predicted, truth, valid))
        raise ValueError(f"prediction, truth and mask of different sizes: {shapes}")
