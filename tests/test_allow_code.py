"""A registry file from elsewhere runs no code that it names, unless it is allowed to."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

import harness
from harness.backbone import sources
from harness.cli import main
from harness.errors import HarnessError
from harness.registry import Registry

_TRAP = """
from pathlib import Path

Path({marker!r}).touch()

from harness.nano.floors import pixels as build
"""
_ENTRIES = """
strange:
  factory: trap_on_import:build
  arguments: {patch: 14}
like-it: {like: strange, baseline: null}
pixels: {factory: 'trap_on_import:build', arguments: {patch: 14}}
over: {like: pixels, baseline: null}
"""
_NAMES = ("strange", "like-it", "pixels", "over")


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once ``trap_on_import`` has been imported."""
    path = tmp_path / "imported"
    (tmp_path / "trap_on_import.py").write_text(_TRAP.format(marker=str(path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trap_on_import", raising=False)
    monkeypatch.delenv("HARNESS_ALLOW_CODE", raising=False)
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(_ENTRIES)
    return path


@pytest.mark.parametrize("name", _NAMES)
def test_a_factory_of_a_users_file_is_refused_with_file_line_and_what_would_run(
    name: str, models: Path, marker: Path
) -> None:
    with pytest.raises(HarnessError) as caught:
        harness.load_backbone(name, models, device="cpu")
    line = 6 if name in {"pixels", "over"} else 3
    # Entries that are like another point at the entry whose factory it is.
    owner = {"like-it": "strange", "over": "pixels"}.get(name, name)
    assert f"{models}:{line}: {owner}: refused" in str(caught.value)
    assert "trap_on_import:build" in str(caught.value) and "--allow-code" in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "command",
    [
        "run --task lost --model strange --dataset generated --limit 2",
        "run --task lost --model strange --dataset generated --limit 2 --dry-run",
        "run --suite demo --model strange --limit 2",
        "extract --model strange --dataset generated --out OUT",
        "describe strange",
        "look PICTURE --model strange --out OUT",
        "registers find strange --data generated --pictures 2 --out OUT",
        "bench extract --model strange --dataset generated --limit 2",
        "bench stored --model strange --dataset scenes-demo --limit 2",
        "bench anatomy --model strange --limit 2",
        "tasks check lost --model strange",
    ],
)
def test_no_command_runs_it(
    command: str,
    models: Path,
    marker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    words = command.replace("PICTURE", "picture.png").replace("OUT", "out").split()
    assert main([*words, "--models", str(models)]) == 2
    assert "--allow-code" in capsys.readouterr().err
    assert not marker.exists()


def test_listing_runs_nothing_and_asks_for_nothing(
    models: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--models", str(models)]) == 0
    assert "trap_on_import:build" in capsys.readouterr().out
    assert not marker.exists()


def test_the_option_runs_it(models: Path, marker: Path) -> None:
    assert main(["describe", "like-it", "--models", str(models), "--allow-code"]) == 0
    assert marker.exists()


def test_the_variable_runs_it_and_only_1_does(
    models: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_ALLOW_CODE", "0")
    assert main(["describe", "strange", "--models", str(models)]) == 2
    monkeypatch.setenv("HARNESS_ALLOW_CODE", "1")
    assert main(["describe", "strange", "--models", str(models)]) == 0
    assert marker.exists()


def test_python_says_allow_code(models: Path, marker: Path, tmp_path: Path) -> None:
    wanted = {"model_files": models, "limit": 2, "workers": 0, "out": tmp_path / "out"}
    with pytest.raises(HarnessError, match="allow_code=True"):
        harness.evaluate("lost", "strange", "generated", **wanted)
    assert not marker.exists()
    assert harness.evaluate("lost", "strange", "generated", allow_code=True, **wanted)
    harness.load_backbone("strange", models, device="cpu", allow_code=True)


def test_what_is_shipped_needs_no_permission_also_where_a_users_file_is_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HARNESS_ALLOW_CODE", raising=False)
    file = tmp_path / "models.yaml"
    file.write_text("mine: {like: pixels, baseline: null, arguments: {patch: 14}}\n")
    assert sources.architecture(Registry.load([file]).entry("mine")).patch == 14
    assert Registry.load().entry("chance").code_not_allowed is None


def test_a_worker_process_is_told_what_is_not_allowed(models: Path, marker: Path) -> None:
    entry = Registry.load([models]).entry("strange")
    sent = pickle.loads(pickle.dumps(entry.model_copy(update={"note": "x"})))
    with pytest.raises(HarnessError, match="--allow-code"):
        sources.unloaded(sent)
    assert not marker.exists()
