from __future__ import annotations

from pathlib import Path

import pytest
from gated import Folders


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)
