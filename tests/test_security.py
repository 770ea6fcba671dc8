"""docs/security.md names code and tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_PAGE = (ROOT / "docs" / "security.md").read_text()


@pytest.mark.parametrize(
    "named", sorted(set(re.findall(r"`((?:tests|harness)/[\w./]+(?:::\w+)?)`", _PAGE)))
)
def test_the_page_names_files_and_tests_that_there_are(named: str) -> None:
    file, _, test = named.partition("::")
    assert (ROOT / file).exists()
    if test:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE)
