"""What all tests share: the material beside the repository, which is not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

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
