"""What is shipped works where nothing of the repository is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy of what git would give, so that no build folder is in the way."""
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    kept = [name for name in files if name and not name.startswith("tests/")]
    archive = subprocess.run(["tar", "-c", *kept], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=source, input=archive, check=True)
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(out), str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("the build backend cannot be had: no package index")
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_registry_and_the_catalog_and_no_package_named_tasks(
    wheel: Path,
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "harness/models.yaml",
        "harness/suites.yaml",
        "harness/gate/gate.yaml",
        "harness/data/catalog.yaml",
        "harness/report/templates/page.html",
        "harness/py.typed",
    } <= names
    assert "harness/tasks/lost.py" in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"harness"}


@pytest.mark.slow
def test_a_wheel_installed_in_an_empty_folder_runs(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(site),
         str(wheel)],
        check=True, capture_output=True,
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def harness(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, str(site / "bin" / "harness"), *arguments],
            cwd=empty, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import harness; print(harness.__file__)"],
        cwd=empty, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(site)
    assert "vits-reg4" in harness("models")
    harness(
        "run", "--task", "lost", "--model", "vits-reg4", "--dataset", "generated", "--weights",
        "random", "--limit", "2",
    )  # fmt: skip
    assert list((empty / "results" / "generated" / "lost" / "vits-reg4").glob("lost~*.json"))
