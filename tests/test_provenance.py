"""Where a number came from, and that a user's repository is not taken for the harness's own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import provenance
from harness.schema import Provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean checkout of something laid out like the harness."""
    root = tmp_path / "checkout"
    for folder in ("harness", "tasks", "results"):
        (root / folder).mkdir(parents=True)
        (root / folder / "file.py").write_text("x = 1\n")
    (root / "models.yaml").write_text("{}\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    return root


@needs_git
def test_a_clean_checkout_gives_its_commit(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert provenance.git_state(checkout / "harness") == (commit, False)


@needs_git
@pytest.mark.parametrize("name", ["harness/file.py", "tasks/new.py", "models.yaml"])
def test_a_changed_or_new_source_file_makes_it_dirty(checkout: Path, name: str) -> None:
    (checkout / name).write_text("x = 2\n")
    assert provenance.git_state(checkout / "harness")[1] is True


@needs_git
@pytest.mark.parametrize("name", ["results/file.py", "results/new.json", "notes.txt"])
def test_results_written_by_a_run_do_not_make_it_dirty(checkout: Path, name: str) -> None:
    (checkout / name).write_text("x = 2\n")
    assert provenance.git_state(checkout / "harness")[1] is False


@needs_git
def test_a_harness_installed_inside_a_users_repository_reports_no_commit(checkout: Path) -> None:
    installed = checkout / ".venv" / "lib" / "site-packages" / "harness"
    installed.mkdir(parents=True)
    assert provenance.git_state(installed) == (None, None)


@needs_git
def test_a_harness_that_the_checkout_around_it_does_not_hold_reports_no_commit(
    checkout: Path,
) -> None:
    git(checkout, "rm", "-r", "--quiet", "--cached", "harness")
    git(checkout, "commit", "--quiet", "-m", "without")
    assert provenance.git_state(checkout / "harness") == (None, None)


@needs_git
def test_a_repository_without_a_commit_reports_none(tmp_path: Path) -> None:
    (tmp_path / "harness").mkdir()
    git(tmp_path, "init", "--quiet")
    assert provenance.git_state(tmp_path / "harness") == (None, None)


@needs_git
def test_variables_of_a_git_hook_do_not_point_it_elsewhere(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert provenance.git_state(checkout / "harness")[1] is False


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state(provenance.source_folder()) == (None, None)


def test_the_links_of_a_strict_editable_install_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "build" / "provenance.py"
    link.parent.mkdir()
    link.symlink_to(Path(provenance.__file__).resolve())
    monkeypatch.setattr(provenance, "__file__", str(link))
    assert provenance.source_folder().name == "harness"
    assert (provenance.source_folder() / "provenance.py").is_file()


def test_the_versions_of_what_moves_numbers_are_named() -> None:
    found = provenance.versions()
    assert {"torch", "timm", "numpy", "pillow"} <= set(found)
    assert all(found.values())


def test_a_time_is_utc_and_sorts_as_text() -> None:
    first, second = provenance.utc_now(), provenance.utc_now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first)
    assert first <= second


def test_what_is_collected_fits_the_schema() -> None:
    started = provenance.utc_now()
    found = provenance.collect(seed=3, started=started, command=["harness", "run"])
    assert Provenance.model_validate_json(found.model_dump_json()) == found
    assert (found.seed, found.started, found.command) == (3, started, ["harness", "run"])
    assert found.ended >= started


def test_collecting_imports_nothing_heavy() -> None:
    code = (
        "import sys; from harness import provenance; provenance.collect(0, provenance.utc_now());"
        "print(*{'torch', 'timm', 'numpy', 'faiss', 'pyarrow'} & set(sys.modules))"
    )
    root = provenance.source_folder().parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == ""
