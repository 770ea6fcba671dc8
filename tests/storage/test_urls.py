"""What is a URL, what may stand in one, and where this machine keeps its copy. No server."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from harness.cli import main
from harness.errors import HarnessError
from harness.storage import mirrors, remote
from harness.storage.cells import belongs, cell_of
from harness.storage.urls import checked, is_url, local_folder, was_url


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE_LOCAL", str(tmp_path / "machine"))
    mirrors.forget()
    remote.forget()


def test_a_folder_is_no_url_and_stays_the_path_it_was() -> None:
    for text in ("results", "/abs/results", "./s3:/x", "C:/x", "a:b"):
        assert not is_url(text)
        assert mirrors.results_folder(text) == Path(text)


@pytest.mark.parametrize(
    "bad", ["s3://k:secret@b/x", "s3://b/x?token=secret", "s3://b/#secret", "s3://", "s3://b/../c"]
)
def test_a_url_with_a_secret_or_without_a_place_is_refused(bad: str) -> None:
    with pytest.raises(HarnessError) as told:
        checked(bad)
    assert "secret@" not in str(told.value) and "=secret" not in str(told.value)


def test_a_slash_at_the_end_is_nothing_and_every_other_letter_is_another_place() -> None:
    assert checked("S3://bucket/x/") == "s3://bucket/x"
    folders = {local_folder("results", url) for url in ("s3://b/x-y", "s3://b/x/y", "gs://b/x/y")}
    assert len(folders) == 3


def test_a_url_where_a_file_is_needed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert was_url(Path("s3://bucket/models.yaml"))
    run = ["run", "--task", "lost", "--model", "chance", "--dataset", "scenes-demo"]
    assert main([*run, "--models", "s3://bucket/models.yaml"]) == 2
    assert "--models s3:/bucket/models.yaml: a URL" in capsys.readouterr().err


def test_a_driver_that_is_not_installed_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.import_module("fsspec.registry")._registry

    for module, scheme in (("s3fs", "s3"), ("gcsfs", "gs")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(known, scheme, raising=False)
    for url, install in {"s3://b/x": "'vit-harness[storage]'", "gs://b/x": "gcsfs"}.items():
        assert main(["leaderboard", "--results", url]) == 2
        assert f"pip install {install}" in capsys.readouterr().err
        monkeypatch.setenv("HARNESS_CACHE", url)
        assert main(["store", "list"]) == 2
        assert f"pip install {install}" in capsys.readouterr().err


def test_what_a_driver_says_is_told_without_the_secrets_of_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "PAUSES", ())
    there = remote.at("memory://bucket/x")

    def fails() -> None:
        raise RuntimeError(
            'no answer of "http://me:secret@host/b?X-Amz-Signature=secret"\nand a second line'
        )

    with pytest.raises(remote.StorageTrouble) as told:
        there._tried("name", fails)
    assert str(told.value).endswith('no answer of "http://…@host/b?…"')


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("voc/lost/vits/lost.json", True),
        ("baseline/voc/lost/vits/lost.parquet", True),
        ("voc/linear/vits/linear.head.safetensors", True),
        ("voc/depth/vits/depth.pictures/worst-1-a.png", True),
        ("lost.json", False),
        ("voc/lost/../lost.json", False),
        ("voc/lost/.vits/lost.json", False),
        ("voc/lost//lost.json", False),
        ("voc/lost/vi\\ts/lost.json", False),
        ("voc/lost/vits/lost.json/", False),
        ("voc/lost/vits/weights.safetensors", False),
        ("voc/lost/vits/notes.txt", False),
    ],
)
def test_only_files_of_results_are_taken(name: str, there: bool) -> None:
    assert belongs(name) is there


def test_every_file_knows_its_record() -> None:
    record = "voc/lost/vits/lost~12345678.json"
    stem = record.removesuffix(".json")
    for end in (".json", ".parquet", ".head.safetensors", ".pictures/best-1-a.png"):
        assert cell_of(stem + end) == record


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_run_and_its_features_on_any_file_system(
    scheme: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = f"file://{tmp_path}/far" if scheme == "file" else f"memory://{tmp_path.name}/far"
    monkeypatch.setenv("HARNESS_CACHE", f"{url}/features")
    run = [
        *("run", "--task", "knn", "--model", "pixels", "--dataset", "scenes-demo", "--json"),
        *("--set", "k=3", "--limit", "9", "--workers", "0", "--out"),
    ]
    passes = []
    for out in ("one", "one", "two"):
        assert main([*run, f"{url}/{out}"]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        passes.append(record["cost"]["forward_passes"])
        mirrors.forget()
    assert passes[0] == passes[1] > 0  # the second was not run
    assert passes[2] == 0  # and the third found its features
    monkeypatch.setenv("HARNESS_CACHE_LOCAL", str(tmp_path / "another machine"))
    assert main(["leaderboard", "--all", "--results", f"{url}/one", "--format", "json"]) == 0
    (row, *_) = json.loads(capsys.readouterr().out)
    assert row["record"].startswith(f"{url}/one/scenes-demo/knn/pixels/")
    assert str(tmp_path / "another") not in row["record"]
