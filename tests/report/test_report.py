"""``harness report``: what stands on the page, and that it says what the records say."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import hits, made
from pages import Node, numbers, read
from PIL import Image

from harness import records
from harness.cli import main
from harness.registry import Registry
from harness.report.contents import contents
from harness.report.page import page as page_of
from harness.schema import pictures_folder
from harness.tables.rows import Chosen, Result, read_results

HOSTILE = (
    '"><script>document.title="ran"</script>',
    "</script><script>document.title='ran'</script>",
    "javascript:document.title='ran'",
    "<img src=x onerror=document.title='ran'>",
    "</bdi></table><h1>ran",
    "{{ 7 * 7 }}{% raw %}",
    "\u202etxet·模型·é\u0000",
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two pairs, a model alone and a floor."""
    folder = tmp_path / "results"
    for model, share in (("vits", 0.30), ("vits-reg4", 0.34), ("vitb", 0.5), ("vitb-reg4", 0.48),
                         ("mae-vitb16", 0.31), ("pixels", 0.2)):  # fmt: skip
        made(folder, model, hits(share))
    return folder


def report(out: Path, *more: object) -> Node:
    page = out.parent / "report.html"
    assert main(["report", "--results", str(out), "--out", str(page), *map(str, more)]) == 0
    return read(page)


def rows(page: Node, kind: str) -> dict[str, list[float | None]]:
    return {
        row.attributes["data-model"] or "": numbers(row)
        for table in page.all("table", class_=kind)
        for row in table.all("tr")
        if "data-model" in row.attributes
    }


def change(path: Path, *keys: str, to: Any) -> None:
    """Of the record at ``path``, as whoever edits the file."""
    record = json.loads(path.read_text())
    place = record
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    path.write_text(json.dumps(record))


def test_the_numbers_in_the_tables_are_those_of_the_records(out: Path) -> None:
    page = report(out)
    shown = rows(page, "standings")
    assert len(shown) == 6
    for path, record in records.find(out):
        metric = record.metrics["corloc"]
        assert shown[record.model.name][1] == metric.value
        (origin,) = [each for each in page.all("details", class_="origin")
                     if each.attributes["data-model"] == record.model.name]  # fmt: skip
        cells = [cell.text for cell in origin.all("td", class_="number")]
        assert [float(each) for each in cells] == [metric.value, metric.low, metric.high]
        assert record.protocol.hash in origin.text and record.model.weights_digest in origin.text
        (link,) = origin.all("a")
        assert (out.parent / (link.attributes["href"] or "")).resolve() == path.resolve()


def test_pairs_have_the_differences_and_intervals_that_compare_tells(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = report(out)
    capsys.readouterr()
    assert main(["compare", "--pairs", "--results", str(out), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)["comparisons"]
    shown = rows(page, "pairs")
    assert len(told) == len(shown) == 2
    for each in told:
        row = shown[f"{each['first']} {each['second']}"]
        assert row == pytest.approx(
            [each["first_value"], each["second_value"], each["difference"], each["p_holm"]]
        )
        assert rows(page, "standings")[each["second"]][2] == row[2]


def test_a_published_number_stands_beside_the_measured_one_and_in_a_list(tmp_path: Path) -> None:
    made(tmp_path / "results", "dino-vits16", hits(0.6))
    page = report(tmp_path / "results")
    (beside,) = page.all("span", class_="beside")
    assert beside.text.startswith("61.9, target: ")
    assert "DINOv2 ViT-L + reg" in page.text
    assert page.all("path", class_="published")


def test_the_same_records_give_the_same_bytes(out: Path) -> None:
    report(out)
    first = (out.parent / "report.html").read_bytes()
    code = f"from harness.cli import main; main(['report', '--results', {str(out)!r}, '--out', {str(out.parent / 'report.html')!r}])"  # noqa: E501
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert (out.parent / "report.html").read_bytes() == first


def test_the_page_needs_nothing_else_and_runs_only_its_own_script(out: Path) -> None:
    page = report(out)
    (policy,) = [each.attributes["content"] or "" for each in page.all("meta")
                 if each.attributes.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for tag in ("script", "style"):
        (node,) = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(node.text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    text = (out.parent / "report.html").read_text()
    assert not re.search(r"https?://|\sstyle=|\son\w+=|url\(|@import", text)
    assert all((each.attributes["href"] or "").startswith(("#", "./")) for each in page.all("a"))


def hostile(out: Path, page: Path, names: Sequence[str]) -> None:
    """A page of the records in ``out``, in which each of ``names`` stands for a model, a data set,
    a task, a protocol, a metric and whatever else is text.

    Put there after the records are read, which refuses some of them: the page must not rely on
    that."""
    results = []
    for result in read_results([out], Chosen(), lambda _: None):
        for name in names:
            old = result.record
            metric = old.metrics["corloc"]
            facts = {name: [name, {name: name}]}
            record = old.model_copy(
                update={
                    "task": name,
                    "model": old.model.model_copy(
                        update={"name": name, "entry": facts, "interventions": [name]}
                    ),
                    "dataset": old.dataset.model_copy(update={"name": name, "split": name}),
                    "protocol": old.protocol.model_copy(
                        update={"name": name, "version": name, "settings": facts, "resolved": facts}
                    ),
                    "metrics": {name: metric.model_copy(update={"unit": name}), "other": metric},
                    "counts": {name: 1},
                    "variant": {"set": {name: name}, name: name},
                    "provenance": old.provenance.model_copy(update={"command": [name, name]}),
                }
            )
            results.append(Result(result.path.with_name(f"{len(results)}.json"), record))
    made_of = contents(results, Registry.load(), page.parent, True, 2**20, lambda _: None)
    page.write_bytes(page_of(made_of))


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_records_are_text_wherever_they_stand(name: str, tmp_path: Path) -> None:
    made(tmp_path / "results", "vits", hits(0.3))
    plain, page = tmp_path / "plain.html", tmp_path / "page.html"
    hostile(tmp_path / "results", plain, ["harmless"])
    hostile(tmp_path / "results", page, [name])
    found, expected = read(page), read(plain)
    counts = [[len(each.all(tag)) for tag in ("script", "img", "h1", "td", "dd", "bdi", "a")]
              for each in (found, expected)]  # fmt: skip
    assert counts[0] == counts[1] and counts[0][3] > 5
    shown = name.replace("\0", "\ufffd")
    told = found.all("main")[0].text.replace("\0", "\ufffd")
    assert told.count(shown) == expected.all("main")[0].text.count("harmless") > 10
    assert all((each.attributes["href"] or "").startswith(("#", "./")) for each in found.all("a"))


@pytest.mark.parametrize("name", HOSTILE)
def test_what_may_stand_in_a_file_is_text_on_the_page(name: str, out: Path) -> None:
    path = out / "voc07/lost/vits/lost.json"
    change(path, "model", "entry", to={name: name})
    change(path, "protocol", "resolved", to={"classes": [name]})
    change(path, "provenance", "command", to=["harness", name])
    (origin,) = [each for each in report(out).all("details", class_="origin")
                 if each.attributes["data-model"] == "vits"]  # fmt: skip
    assert name.replace("\0", "\ufffd") in origin.text.replace("\0", "\ufffd")


def test_a_folder_whose_name_is_a_script_is_linked_as_a_folder(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(out.parent)
    out.rename("javascript:alert(1)")
    assert main(["report", "--results", "javascript:alert(1)"]) == 0
    links = {each.attributes["href"] or "" for each in read(Path("report.html")).all("a")}
    assert any(each.startswith("./javascript%3Aalert%281%29/voc07/") for each in links)
    assert not any(each.startswith("javascript") for each in links)


def test_floors_ranks_and_random_weights_stand_as_in_the_leaderboard(out: Path) -> None:
    made(out, "vitl", hits(0.9), variant={"weights": "random"})
    page = report(out)
    assert "vitl" not in rows(page, "standings")
    assert page.all("tr", class_="floor")[0].attributes["data-model"] == "pixels"
    everything = report(out, "--all")
    assert "vitl" in rows(everything, "standings")
    assert "random weights: a smoke run" in everything.text


def test_task_data_set_model_and_family_choose(out: Path) -> None:
    made(out, "vits", hits(0.4), dataset="voc12")
    assert len(report(out).all("section", class_="board")) == 2
    assert len(report(out, "--dataset", "voc12").all("section", class_="board")) == 1
    assert rows(report(out, "--model", "vits,vitb"), "standings").keys() == {"vits", "vitb"}
    assert rows(report(out, "--family", "mae"), "standings").keys() == {"mae-vitb16"}


def save_picture(
    record: Path, name: str, colour: int = 90, size: tuple[int, int] = (64, 40)
) -> Path:
    path = pictures_folder(record) / name
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(colour).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_pictures_of_a_pair_stand_side_by_side_those_of_both_first(out: Path) -> None:
    cells = [out / f"voc07/lost/{model}/lost.json" for model in ("vits", "vits-reg4")]
    save_picture(cells[0], "worst-1-a.png", 1)
    save_picture(cells[0], "best-1-b.png", 2)
    save_picture(cells[1], "worst-1-c.png", 3)
    save_picture(cells[1], "median-1-b.png", 4)
    save_picture(cells[1], "notes.png", 4)
    page = report(out)
    shown = [[each.text for each in row.all("figcaption")] for row in page.all("div", class_="row")]
    assert shown == [
        ["vits best 1, b", "vits-reg4 median 1, b"],
        ["vits worst 1, a", "vits-reg4 worst 1, c"],
    ]
    for link in page.all("a", class_="picture"):
        assert (out.parent / (link.attributes["href"] or "")).is_file()
    for image in page.all("img"):
        assert (image.attributes["src"] or "").startswith("data:image/webp;base64,")
        assert "input, truth, prediction" in (image.attributes["alt"] or "")


def test_pictures_keep_within_their_share_of_bytes_and_the_rest_is_counted(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 5):
        for model in ("vits", "vits-reg4", "vitb"):
            cell = out / f"voc07/lost/{model}/lost.json"
            save_picture(cell, f"worst-{number}-{number}.png", number, (300, 200))
    page = report(out, "--pictures", "0.25")
    sources = [image.attributes["src"] or "" for image in page.all("img")]
    assert 3 <= len(sources) < 12 and sum(map(len, sources)) <= 2**18
    assert f"{12 - len(sources)} saved pictures had no room" in capsys.readouterr().err
    models = [each.text.split()[0] for each in page.all("figcaption")]
    assert set(models) == {"vits", "vits-reg4", "vitb"}
    assert not report(out, "--pictures", "0").all("img")


def test_a_broken_picture_is_told_and_left_out(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = out / "voc07/lost/vits/lost.json"
    save_picture(cell, "worst-1-a.png")
    save_picture(cell, "worst-2-b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert len(report(out).all("img")) == 1
    assert "worst-2-b.png: no picture that can be read" in capsys.readouterr().err


def test_a_damaged_record_is_told_and_left_out(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = out / "voc07/lost/vits/lost.json"
    path.write_text(path.read_text()[:400])
    assert "vits" not in rows(report(out), "standings")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("harness: left out: ") and "vits/lost.json" in line


def test_json_tells_where_how_large_and_of_how_many(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = out.parent / "new folder" / "page.html"
    assert main(["report", "--results", str(out), "--out", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"out": str(page), "bytes": page.stat().st_size, "records": 6}


def complaint(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    assert main(["report", *map(str, command)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("harness: ")
    return line


def test_wrong_use_is_exit_status_2_and_leaves_the_old_page(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "old.html"
    page.write_text("old")
    empty = tmp_path / "empty"
    empty.mkdir()
    for results, says in ((empty, "no result in"), (tmp_path / "none", "no such folder")):
        assert says in complaint(capsys, "--results", results, "--out", page)
    common = "--results", out, "--out", page
    assert "no result of nano in" in complaint(capsys, *common, "--model", "vits,nano")
    assert "what was asked for" in complaint(capsys, *common, "--task", "depth")
    assert "0 or more" in complaint(capsys, *common, "--pictures", "-1")
    assert "0 or more" in complaint(capsys, *common, "--pictures", "nan")
    assert page.read_text() == "old"
    assert "cannot be written" in complaint(capsys, "--results", out, "--out", empty)
    told = complaint(capsys, "--results", out, "--out", page / "report.html")
    assert "a file stands where a folder is needed" in told
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "a device or a pipe" in complaint(capsys, "--results", out, "--out", pipe)
    assert pipe.is_fifo()
    assert page.read_text() == "old" and not list(tmp_path.glob(".*.tmp"))


def test_it_imports_no_torch(out: Path) -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"main(['report', '--results', {str(out)!r}, '--out', {str(out.parent / 'r.html')!r}])\n"
        "print(sorted({'torch', 'timm', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
