from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import main

COMMANDS = (
    *("run", "registers", "look", "models", "tasks", "suites", "datasets", "doctor", "describe"),
    *("bench", "compare", "leaderboard", "report", "results"),
)
MAIN = [sys.executable, "-c", "import sys; from harness.cli import main; sys.exit(main())"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'timm', 'numpy', 'scipy', 'pydantic', 'rich', 'yaml', 'PIL', 'pyarrow', "
        "'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example: harness {command}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "arguments", [["models"], ["tasks"], ["suites"], ["datasets"], ["describe", "vits-reg4"],
                  ["describe", "lost"], ["describe", "demo"], ["doctor", "generated"]],
)  # fmt: skip
def test_what_a_program_reads_is_strict_json(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(capsys.readouterr().out, parse_constant=refuse)


def test_describe_tells_layout_size_cost_and_where_the_weights_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["describe", "vits-reg4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layout"] == ["class", "4 registers", "patches"]
    assert (facts["patch"], facts["width"], facts["depth"]) == (14, 384, 12)
    assert facts["parameters"] == 22_057_344
    # Twice the multiply-adds: 12 blocks of 12 D^2 N + 2 N^2 D, and the patch embedding.
    tokens, width = 37 * 37 + 5, 384
    blocks = 2 * 12 * (12 * width**2 * tokens + 2 * tokens**2 * width)
    embedding = 2 * 37 * 37 * 3 * 14 * 14 * width
    assert facts["gigaflops"] == pytest.approx((blocks + embedding) / 1e9, rel=1e-3)
    assert facts["position_embedding"] == {"antialias": True, "offset": 0.0, "stored": [37, 37]}
    assert facts["weights"].startswith("hf-hub:timm/vit_small_patch14_reg4_dinov2")
    assert facts["license"] == "Apache-2.0"


def test_describing_a_wrong_name_suggests_a_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "vits-reg"]) == 2
    assert "did you mean vits-reg4" in capsys.readouterr().err


def test_describe_prefers_a_protocol_and_can_tell_a_task(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["describe", "lost-swept", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["selected_on"] == "held-out pictures"


def test_names_are_comma_lists_or_repeats(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def models(*arguments: str) -> list[str]:
        command = ["run", "--task", "lost", "--dataset", "generated", "--dry-run", "--json"]
        files = ["--models", str(tiny_models), "--out", str(tmp_path)]
        assert main([*command, *files, *arguments]) == 0
        return [cell["model"] for cell in json.loads(capsys.readouterr().out)]

    assert models("--model", "tiny,tiny-reg4") == ["tiny", "tiny-reg4"]
    assert models("--model", "tiny", "--model", "tiny-reg4, tiny") == ["tiny", "tiny-reg4"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "facet"], "--set facet: of the form setting=value"),
        (["--set", "k=1", "--set", "k=2"], "--set k: given twice"),
        (["--set", "k=[1"], "is no value"),
        (["--limit", "0"], "--limit 0: at least 1"),
        (["--batch-size", "0"], "--batch-size 0: at least 1"),
        (["--workers", "-1"], "--workers -1: at least 0"),
        (["--seed", "-1"], "--seed -1: at least 0"),
        (["--device", "tpu"], "--device tpu: one of auto, cpu, cuda"),
        (["--models", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (["--datasets", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (["--dataset", "voc07", "--data-root", "/nowhere"], "harness datasets fetch voc07"),
        (["--dataset", "voc7"], "did you mean voc07"),
        (["--model", ","], "--model: at least one name"),
        (["--dataset", ""], "--dataset: at least one name"),
        (["--set", "k=true"], "k: Input should be a valid integer"),
    ],
)
def test_wrong_use_is_exit_status_2_and_one_message(
    arguments: list[str],
    complaint: str,
    tiny_models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = ["run", "--task", "lost", "--models", str(tiny_models), "--out", str(tmp_path / "out")]
    model = [] if "--model" in arguments else ["--model", "tiny"]
    dataset = [] if "--dataset" in arguments else ["--dataset", "generated"]
    assert main([*start, *model, *dataset, "--workers", "0", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_a_task_that_makes_no_sense_alone_is_exit_status_2(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for split in ("train", "val"):
        (tmp_path / "cats" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "cats" / split / "cat" / "a.png")
    file = tmp_path / "folder.yaml"
    file.write_text("cats: {format: folder, root: cats}\n")
    command = ["run", "--task", "lost", "--model", "tiny", "--dataset", "cats"]
    files = ["--models", str(tiny_models), "--datasets", str(file), "--out", str(tmp_path / "out")]
    assert main([*command, *files]) == 2
    assert "the data set has no boxes" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [*MAIN, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == ""


def test_a_run_prints_a_table_and_marks_random_weights(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "run", "--task", "lost", "--model", "tiny", "--dataset", "generated", "--models",
        str(tiny_models), "--out", str(tmp_path), "--weights", "random", "--workers", "0",
    ]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "tiny *" in shown.out and "random weights: a smoke run, not a result" in shown.out
    assert "12/12" in shown.err and "images/s" in shown.err


@pytest.mark.slow
def test_missing_weights_say_what_to_do_and_touch_no_network(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    command = ["run", "--task", "lost", "--model", "vits", "--dataset", "generated"]
    done = subprocess.run(
        [*MAIN, *command, "--out", str(tmp_path / "out")],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "`--weights random`" in done.stderr
