"""What all tests share: the material beside the repository, which is not part of the project."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def pytest_configure() -> None:
    """One thread a process, before torch is loaded: `make test` starts a process a core, and by
    hand the numbers are the same. No test is judged by how long hypothesis waits for it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings.register_profile("shared machine", deadline=None)
    settings.load_profile("shared machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs {path}, which is not there")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pictures with labels (``../shared/data``)."""
    return _folder("data")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """What others' code computed (``../shared/reference``)."""
    return _folder("reference")


@pytest.fixture(scope="session", autouse=True)
def _painted_once() -> Iterator[None]:
    """Painting is most of what a small run takes, and the same pictures are asked for in test after
    test: each is painted once a session. At most 270 MB, with scenes of 128 x 128."""
    from harness.data.generated import GeneratedDataset
    from harness.nano import scenes

    rendered = lru_cache(maxsize=2048)(scenes._rendered.__wrapped__)
    original = GeneratedDataset.read
    encoded = lru_cache(maxsize=256)(lambda index: original(GeneratedDataset("", 0), index))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "_rendered", rendered)
        patch.setattr(GeneratedDataset, "read", lambda self, index: encoded(index))
        yield


@pytest.fixture(autouse=True)
def _own_feature_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test reads or fills the user's feature store, or another test's."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache") / "features"))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry file with the tiny DINOv2s ``tiny`` and ``tiny-reg4``, weights and all."""
    from tiny import models_file  # loads torch

    return models_file(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def texted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry file with ``tiny`` and ``tiny-reg4`` that have a small text tower of open_clip."""
    from text_towers import texted_models  # loads torch

    return texted_models(tmp_path_factory.mktemp("texted"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures in each forward pass that is run."""
    from harness.backbone.vit import Backbone  # loads torch

    seen: list[int] = []
    original = Backbone.__call__

    def counted(self: Backbone, pixels: Any, *rest: Any) -> Any:
        seen.append(len(pixels))
        return original(self, pixels, *rest)

    monkeypatch.setattr(Backbone, "__call__", counted)
    return seen
