"""The pages for those who bring a task, a model or data of their own, followed to the end.

Each block of a page is one step: a file that its info string names is written, commands (``sh``)
are run, and lines of ``text`` must be among what the commands before them printed. A block that is
none of these is an error, so that nothing stands on a page that no test has tried.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ("your-own-task", "your-own-model", "your-own-data")
_BLOCK = re.compile(r"^```(\S+)(?: +([^\n]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALL = "python -m pip install ."
# As typed, pip would ask a package index for setuptools and for the harness, which no test may
# need; and it would install into the environment that the tests run in.
INSTALLED_HERE = (
    "python -m pip install --quiet --disable-pip-version-check --no-index --no-deps "
    "--no-build-isolation --target site ."
)


class Block(NamedTuple):
    """``kind`` is the language, ``about`` the rest of the info string: a file's name, or ``fails``
    for commands of which the last is to fail."""

    kind: str
    about: str
    body: str


def blocks(page: str) -> Iterator[Block]:
    for kind, about, body in _BLOCK.findall((DOCS / f"{page}.md").read_text()):
        yield Block(kind, about, body)


def typed(body: str, folder: Path, fails: bool) -> str:
    """What the commands print, both streams together."""
    binaries = Path(sys.executable).parent
    environment = {
        "PATH": f"{binaries}:/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "HARNESS_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(folder / "site"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    done = subprocess.run(
        ["bash", "-e", "-c", body.replace(INSTALL, INSTALLED_HERE)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert done.returncode == (2 if fails else 0), f"{body}\n{said}"
    return said


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_who_follows_the_page_in_an_empty_folder_gets_to_its_end(page: str, tmp_path: Path) -> None:
    said = ""
    for block in blocks(page):
        if block.kind == "sh":
            said = typed(block.body, tmp_path, fails=block.about == "fails")
        elif block.kind == "text":
            for line in filter(None, map(_plain, block.body.splitlines())):
                assert line in _plain(said), line
        else:
            assert block.about, f"{page}: a block of {block.kind} that names no file"
            path = tmp_path / block.about
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_the_page_leads_somewhere(page: str) -> None:
    text = _BLOCK.sub("", (DOCS / f"{page}.md").read_text())
    links = re.findall(r"\]\(([^)#:]+)(?:#([^)]+))?\)", text)
    assert links
    for name, anchor in links:
        target = DOCS / name
        assert target.is_file(), name
        heads = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        if anchor:
            assert anchor in {
                re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads
            }


def _plain(text: str) -> str:
    """Without the spaces that set columns apart."""
    return " ".join(text.split())
