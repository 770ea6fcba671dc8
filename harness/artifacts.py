"""Whether outliers are artifacts: a high norm alone does not say so.

Darcet et al., "Vision Transformers Need Registers" (2023, section 2.1) call tokens artifacts whose
patch is redundant, that lie in the background, that lost what they knew of their own place and
pixels, and that know the picture instead. In small models tokens of high norm were the objects
(docs/nano.md). So each of these is asked, and only what agrees in all is called an artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Says = Literal["artifact", "salient", "neither", "not measured"]
Verdict = Literal["artifacts", "salient tokens", "mixed", "undecided", "none"]


@dataclass(frozen=True)
class Evidence:
    """One question: the figure of outliers, that of normal patches, and what they speak for."""

    question: str
    outlier: float | None
    normal: float | None
    says: Says


def weigh(
    question: str,
    outlier: float | None,
    normal: float | None,
    artifacts_have: Literal["more", "less"],
    margin: float,
    *,
    relative: bool = False,
) -> Evidence:
    """What two figures speak for. Artifacts and salient tokens are apart from normal patches in
    opposite directions, each by at least ``margin`` (a share of the normal figure if
    ``relative``)."""
    if outlier is None or normal is None:
        return Evidence(question, outlier, normal, "not measured")
    apart = outlier - normal if artifacts_have == "more" else normal - outlier
    least = margin * abs(normal) if relative else margin
    says: Says = "neither"
    if apart and abs(apart) >= least:
        says = "artifact" if apart > 0 else "salient"
    return Evidence(question, outlier, normal, says)


NEEDED = ("redundancy", "position", "pixels")
"""What has to be measured before anything is called an artifact."""


def verdict(evidence: Mapping[str, Evidence]) -> Verdict:
    """``artifacts`` where all that is known says so and all of ``NEEDED`` is known; ``salient
    tokens`` where all that speaks says so; ``undecided`` where nothing speaks against artifacts
    and something needed is missing; else ``mixed``."""
    said = [each.says for each in evidence.values() if each.says != "not measured"]
    if "artifact" not in said:
        return "salient tokens" if "salient" in said else "mixed" if said else "undecided"
    if any(each != "artifact" for each in said):
        return "mixed"
    known = all(evidence[name].says != "not measured" for name in NEEDED)
    return "artifacts" if known else "undecided"


def summary(
    evidence: Mapping[str, Evidence], share: float, separates_at: int | None
) -> dict[str, Any]:
    """As JSON, with a sentence ``told``. ``share`` of all patches are outliers, 0 to 1, which
    stand apart in norm from layer ``separates_at`` on."""
    found: Verdict = verdict(evidence) if share else "none"
    missing = [name for name in NEEDED if evidence[name].says == "not measured"]
    facts = {
        "verdict": found,
        "evidence": {name: asdict(each) for name, each in evidence.items()},
        "separates_at_layer": separates_at,
    }
    if not share:
        return {**facts, "told": "no patch is an outlier"}
    where = "" if separates_at is None else f", from layer {separates_at} on"
    parts = [f"{100 * share:.2g} % of patches are outliers{where}: {found}"]
    for name, each in evidence.items():
        if each.outlier is not None and each.normal is not None:
            parts.append(f"{name} {each.outlier:.3g} against {each.normal:.3g} ({each.says})")
    if found == "undecided" and missing:
        parts.append(f"not measured: {', '.join(missing)}")
    return {**facts, "told": "; ".join(parts)}
