"""Where a number came from: the harness's own commit, the versions of what it ran on, the time.

Nothing heavy is imported: versions are read from the installed distributions' metadata.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from harness.schema import Provenance

# What can move a number: the network, its arithmetic, decoding and resizing, the search.
_RECORDED = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "timm": ("timm",),
    "open_clip": ("open_clip_torch",),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "scikit-learn": ("scikit-learn",),
    "pillow": ("pillow",),
    "pyarrow": ("pyarrow",),
    "faiss": ("faiss-gpu", "faiss-cpu"),
}
# What of a checkout is the harness. Results are written during a run and must not call it dirty.
_SOURCE = ("harness", "tasks", "models.yaml", "pyproject.toml")
_GIT_SECONDS = 20


def collect(
    seed: int, started: str, ended: str | None = None, command: Sequence[str] | None = None
) -> Provenance:
    """The provenance of a run. ``started`` and ``ended`` as ``utc_now`` gives; ended is now."""
    commit, dirty = git_state(source_folder())
    return Provenance(
        harness_version=_version("vit-harness") or "not installed",
        git_commit=commit,
        git_dirty=dirty,
        python=platform.python_version(),
        versions=versions(),
        seed=seed,
        command=None if command is None else list(command),
        started=started,
        ended=ended or utc_now(),
    )


def utc_now() -> str:
    """The time, ISO 8601 in UTC with milliseconds: ``2025-01-31T13:37:00.250Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def versions() -> dict[str, str]:
    """The installed version of each package that can move a number; absent ones are left out."""
    found: dict[str, str] = {}
    for name, distributions in _RECORDED.items():
        for distribution in distributions:
            version = _version(distribution)
            if version is not None:
                found.setdefault(name, version)
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def source_folder() -> Path:
    """The folder that holds this very file's source.

    A strict editable install runs from links under build/__editable__.*; the links are followed.
    """
    return Path(__file__).resolve().parent


def git_state(source: Path) -> tuple[str | None, bool | None]:
    """Commit and dirty flag of the checkout whose top folder holds ``source``.

    (None, None) where there is no git, no commit, or the checkout found is somebody else's: a
    harness installed into a virtual environment inside a user's repository must not report the
    user's commit as its own. Dirty means that files of the harness differ from the commit or are
    not in it; results and other files beside them do not count.
    """
    root = source.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return None, None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    own = _git(root, "ls-files", "--", source.name)
    if not commit or not own:
        return None, None
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *_SOURCE)
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, stripped; None where it is absent, slow or fails."""
    # Inside a git hook these variables point at another repository than the folder's own.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="surrogateescape").strip()
