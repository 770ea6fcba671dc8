"""models.yaml: what it says is true of timm, and what a user's file may and may not say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.documents import name_problem
from harness.errors import HarnessError
from harness.registry import SHIPPED, ModelEntry, Registry

REGISTRY = Registry.load()
NAMES = REGISTRY.names()
# With timm's own weights: nano and nano-reg4 are timm's class with weights that are shipped here.
FROM_TIMM = [
    name
    for name in NAMES
    if REGISTRY.entry(name).timm
    and not REGISTRY.entry(name).checkpoint
    and not REGISTRY.entry(name).interventions
]


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def entry(**facts: Any) -> ModelEntry:
    return ModelEntry.model_validate({"name": "x", "timm": "vit_tiny", **facts})


# ------------------------------------------------------------------------------ the shipped file


def test_the_families_of_the_issue_are_there() -> None:
    expected = {
        *(f"vit{size}{suffix}" for size in "sblg" for suffix in ("", "-reg4")),
        *(f"dino-vit{size}" for size in ("s16", "s8", "b16", "b8")),
        *(f"dinov3-vit{size}16" for size in ("s", "splus", "b", "l", "hplus", "7b")),
        *(f"tipsv2-vit{size}14" for size in ("b", "l", "so400m", "g")),
        *(f"pe-{kind}-vit{size}" for kind in ("core", "spatial") for size in ("b16", "l14", "g14")),
        *(f"deit3-vit{size}16" for size in "sbl"),
        *("openclip-vitb16", "openclip-vitl14", "clip-vitb16", "clip-vitl14"),
        *("siglip2-vitb16", "siglip2-vitl16", "mae-vitb16", "mae-vitl16", "mae-vith14"),
        *("sbb-vitmedium16-reg1", "sbb-vitmedium16-reg4"),
    }
    assert expected <= set(NAMES)


@pytest.mark.parametrize("size", "sblg")
def test_a_dinov2_with_registers_names_the_same_size_without(size: str) -> None:
    registry = Registry.load()
    with_registers, without = registry.entry(f"vit{size}-reg4"), registry.entry(f"vit{size}")
    assert with_registers.baseline == without.name
    assert (with_registers.registers, without.registers) == (4, 0)


def test_dinov2_resamples_positions_as_each_half_was_released() -> None:
    registry = Registry.load()
    for name in ("vits", "vitg", "dino-vitb8"):
        rule = registry.entry(name).position_embedding
        assert rule is not None
        assert (rule.antialias, rule.offset) == (False, 0.1)
    rule = registry.entry("vits-reg4").position_embedding
    assert rule is not None
    assert (rule.antialias, rule.offset) == (True, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_has_a_licence_and_a_usable_name(name: str) -> None:
    assert name_problem(name) is None
    assert REGISTRY.entry(name).license


def test_the_floors_stand_at_the_end() -> None:
    assert NAMES[-2:] == ["pixels", "chance"]


@pytest.mark.parametrize("name", FROM_TIMM)
def test_every_timm_name_has_weights_and_the_layout_that_the_entry_says(name: str) -> None:
    import timm
    import torch

    model_entry = REGISTRY.entry(name)
    assert model_entry.timm is not None
    assert "." in model_entry.timm, "a timm name carries the tag of its weights"
    released = timm.get_pretrained_cfg(model_entry.timm)  # raises for a tag that timm has not
    assert released is not None
    assert released.has_weights
    with torch.device("meta"):
        model = timm.create_model(model_entry.timm, pretrained=False, **model_entry.arguments)
    registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    assert registers == model_entry.registers
    assert (model.pos_embed is not None) == (model_entry.position_embedding is not None)
    patch = re.search(r"vit[a-z]*(?:\d+[mb])?(8|14|16)?(?:-|$)", name)
    assert patch is not None, "<family>-vit<size><patch>"
    assert model.patch_embed.patch_size == (int(patch[1] or 14),) * 2


def test_dinov3_takes_the_class_token_as_upstream_does() -> None:
    registry = Registry.load()
    dinov3 = [registry.entry(name) for name in NAMES if name.startswith("dinov3-")]
    assert [each.arguments for each in dinov3] == [{"global_pool": "token"}] * 6


def test_no_two_shipped_entries_are_the_same_model() -> None:
    digests = [REGISTRY.entry(name).digest() for name in NAMES]
    assert len(set(digests)) == len(digests)


def test_loading_the_registry_imports_nothing_heavy() -> None:
    code = (
        "import sys; from harness.registry import Registry; Registry.load();"
        "print(*{'torch', 'timm', 'numpy', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=SHIPPED.parent.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == ""


# -------------------------------------------------------------------------------- the user's own


def test_a_users_file_adds_entries_and_replaces_those_of_the_same_name(tmp_path: Path) -> None:
    first = write(tmp_path, "vits: {timm: one.tag}\nmine: {timm: two.tag}\n", "first.yaml")
    second = write(tmp_path, "mine: {factory: 'pack.age:make', registers: 2}\n", "second.yaml")
    registry = Registry.load([first, second])
    assert registry.entry("vits").timm == "one.tag"
    assert registry.entry("vits").position_embedding is None, "replaced whole, not merged"
    assert (registry.entry("mine").factory, registry.entry("mine").timm) == ("pack.age:make", None)
    assert registry.entry("mine").registers == 2
    assert registry.entry("vits-reg4").baseline == "vits"


def test_a_checkpoint_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    absolute = tmp_path / "other" / "b.pth"
    text = f"a: {{timm: x, checkpoint: w/a.safetensors}}\nb: {{timm: x, checkpoint: {absolute}}}\n"
    registry = Registry.load([write(folder, text)])
    assert registry.entry("a").checkpoint == folder / "w" / "a.safetensors"
    assert registry.entry("b").checkpoint == absolute


def test_a_baseline_may_stand_in_another_file(tmp_path: Path) -> None:
    registry = Registry.load([write(tmp_path, "mine: {timm: x, registers: 4, baseline: vitl}\n")])
    assert registry.entry("mine").baseline == "vitl"


def test_an_entry_like_another_takes_its_facts_over_and_is_compared_with_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").mkdir()
    base = "base: {timm: x, checkpoint: w.pth, registers: 4, license: MIT, baseline: vitl}\n"
    own = "mine: {like: base, registers: 2, note: n}\nhers: {like: mine, baseline: vits}\n"
    registry = Registry.load([write(tmp_path, own), write(tmp_path / "a", base)])
    mine, hers = registry.entry("mine"), registry.entry("hers")
    assert mine.checkpoint == hers.checkpoint == tmp_path / "a" / "w.pth", "of the base's folder"
    assert (mine.timm, mine.registers, mine.license, mine.note) == ("x", 2, "MIT", "n")
    assert (mine.baseline, hers.baseline, hers.registers) == ("base", "vits", 2)
    same = {k: v for k, v in registry.entry("base").canonical().items() if k != "registers"}
    assert {k: v for k, v in mine.canonical().items() if k != "registers"} == same


def test_files_of_changes_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    text = (
        "a: {like: vitl, test_time_registers: {neurons: n.json}}\n"
        "b: {like: vitl-reg4, replace_registers: {by: mean, states: s.safetensors}}\n"
    )
    registry = Registry.load([write(tmp_path / "deep", text), write(tmp_path, "c: {like: a}\n")])
    for name in ("a", "c"):
        added = registry.entry(name).test_time_registers
        assert added is not None and added.neurons == tmp_path / "deep" / "n.json"
    replaced = registry.entry("b").replace_registers
    assert replaced is not None and replaced.states == tmp_path / "deep" / "s.safetensors"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: {timm: x}\nb: {timm: x}\na: {timm: y}\n", 3, "'a' stands twice (first on line 1)"),
        (
            "a:\n  timm: x\n  registres: 4\n",
            3,
            "a.registres: unknown key (did you mean registers?)",
        ),
        ("a:\n  timm: x\n  input:\n    men: [0]\n", 4, "a.input.men: unknown key"),
        ("a:\n  timm: x\n  name: b\n", 3, "a.name: unknown key"),
        ("\na: {registers: 4}\n", 2, "exactly one of `timm:` and `factory:`"),
        ("a:\n  timm: x\n  factory: m:f\n", 1, "exactly one of `timm:` and `factory:`"),
        ("a: {timm: ' '}\n", 1, "must not be empty"),
        ("a: {factory: nothing}\n", 1, "is not of the form package.module:function"),
        ("a: {factory: 'a.b:c()'}\n", 1, "is not of the form package.module:function"),
        ("a: {factory: '../a:c'}\n", 1, "is not of the form package.module:function"),
        ("a: {timm: x, registers: -1}\n", 1, "a.registers: "),
        ("a: {timm: x, registers: true}\n", 1, "a.registers: "),
        ("a: {timm: x, registers: '4'}\n", 1, "a.registers: "),
        ("a:\n  timm: x\n  arguments: {depth: .nan}\n", 3, "a.arguments: "),
        ("a:\n  timm: x\n  arguments: {day: 2024-01-01}\n", 3, "a.arguments.day: "),
        ("a:\n  timm: x\n  arguments: [1]\n", 3, "a.arguments: "),
        ("a:\n  timm: x\n  position_embedding: {antialias: true}\n", 3, "offset: Field required"),
        ("a:\n  timm: x\n  position_embedding: {antialias: 1, offset: 0}\n", 3, "antialias: "),
        ("a:\n  timm: x\n  position_embedding: {antialias: true, offset: .inf}\n", 3, "offset: "),
        ("a:\n  timm: x\n  input: {mean: [0.5, 0.5]}\n", 3, "a.input.mean"),
        ("a:\n  timm: x\n  input: {std: [0.5, 0.5, 0]}\n", 3, "a.input.std.2: "),
        ("a:\n  timm: x\n  input: {interpolation: cubic}\n", 3, "a.input.interpolation: "),
        ("a: vit_small\n", 1, "an entry is a mapping"),
        ("a:\n", 1, "an entry is a mapping"),
        ("../a: {timm: x}\n", 1, "a name is made of"),
        (".a: {timm: x}\n", 1, "does not begin with a dot"),
        ("a: {timm: x}\nb:\n  timm: x\n  baseline: b\n", 4, "a model is not its own baseline"),
        ("b:\n  timm: x\n  baseline: vitl-re\n", 3, "no model 'vitl-re': did you mean vitl"),
        ("b:\n  like: vitl-re\n", 2, "no model 'vitl-re': did you mean vitl"),
        ("b:\n  like: [vitl]\n", 2, "no model"),
        ("b: {like: b}\n", 1, "b is like itself, in the end"),
        ("b:\n  like: c\nc:\n  like: b\n", 4, "b is like itself, in the end"),
        ("b: {like: vitl, factory: 'm:f'}\n", 1, "exactly one of `timm:` and `factory:`"),
        ("b:\n  like: vitl\n  drop_registers: true\n", 1, "has no registers to drop"),
        ("b:\n  like: vitl\n  replace_registers: zero\n", 1, "has no registers to drop"),
        (
            "b:\n  like: vitl-reg4\n  replace_registers: null\n  drop_registers: 1\n",
            4,
            "b.drop_registers",
        ),
        (
            "b: {like: vitl-reg4, drop_registers: true, replace_registers: zero}\n",
            1,
            "dropped or replaced, not both",
        ),
        ("b:\n  like: vitl-reg4\n  replace_registers: one\n", 3, "b.replace_registers"),
        (
            "b:\n  like: vitl-reg4\n  replace_registers: {by: zero, states: f}\n",
            3,
            "`by: zero` reads no `states:`",
        ),
        (
            "b: {like: vits-reg4, drop_registers: true, test_time_registers: {neurons: auto}}\n",
            1,
            "with `neurons: auto` registers cannot be dropped",
        ),
        ("b:\n  like: vitl\n  test_time_registers: {count: 0}\n", 3, "test_time_registers.count"),
        ("b:\n  like: vitl\n  test_time_registers:\n    cont: 1\n", 4, "unknown key"),
        ("b:\n  like: vitl\n  test_time_registers: {rule: both}\n", 3, "test_time_registers.rule"),
    ],
)
def test_a_wrong_entry_is_refused_with_file_and_line(
    tmp_path: Path, text: str, line: int, says: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(HarnessError) as caught:
        Registry.load([path])
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert says in str(caught.value)


def test_an_alias_bomb_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a: &a {timm: x}\nb: {timm: x, arguments: {c: [*a, *a]}}\n")
    with pytest.raises(HarnessError, match="aliases"):
        Registry.load([path])


def test_a_wrong_name_gets_a_suggestion() -> None:
    with pytest.raises(HarnessError, match=r"no model 'vitl-reg'.*vitl-reg4.*`harness models`"):
        Registry.load().entry("vitl-reg")


# ------------------------------------------------------------------------------------ its digest


def test_what_does_not_decide_what_runs_does_not_move_the_digest() -> None:
    told = entry(license="MIT", paper="p", note="n", baseline="y", name="other")
    assert told.digest() == entry().digest()
    here, there = entry(checkpoint="/a/w.pth"), entry(checkpoint="/b/w.pth")
    assert here.digest() == there.digest()
    assert here.canonical()["checkpoint"] == "w.pth"


@pytest.mark.parametrize(
    "facts",
    [
        {"timm": "vit_small"},
        {"registers": 4},
        {"checkpoint": "w.pth"},
        {"arguments": {"depth": 2}},
        {"position_embedding": {"antialias": True, "offset": 0}},
        {"position_embedding": {"antialias": False, "offset": 0}},
        {"position_embedding": {"antialias": True, "offset": 0.1}},
        {"input": {"interpolation": "bilinear"}},
        {"input": {"mean": [0.5, 0.5, 0.5]}},
        {"test_time_registers": {}},
    ],
)
def test_every_fact_that_decides_what_runs_moves_the_digest(facts: dict[str, Any]) -> None:
    assert entry(**facts).digest() != entry().digest()


def test_every_change_moves_the_digest(tmp_path: Path) -> None:
    one, other = tmp_path / "1", tmp_path / "2"
    one.write_text("1")
    other.write_text("2")
    changes: list[dict[str, Any]] = [
        {},
        {"drop_registers": True},
        {"test_time_registers": {}},
        {"test_time_registers": {"count": 2}},
        {"test_time_registers": {"rule": "per-neuron"}},
        {"test_time_registers": {"neurons": one}},
        {"test_time_registers": {"neurons": other}},
        {"test_time_registers": {"neurons": "auto"}},
        {"replace_registers": "zero"},
        {"replace_registers": "mean"},
        {"replace_registers": {"by": "mean", "states": one}},
        {"replace_registers": {"by": "shuffle", "states": one}},
        {"replace_registers": {"by": "noise", "states": one}},
        {"replace_registers": {"by": "noise", "states": one, "seed": 1}},
        {"replace_registers": {"by": "noise", "states": other}},
    ]
    digests = [entry(registers=4, **each).digest() for each in changes]
    assert len(set(digests)) == len(changes)
    moved = tmp_path / "elsewhere"
    moved.write_text("1")
    again = entry(registers=4, test_time_registers={"neurons": moved})
    assert again.digest() == digests[5], "where a file lies moves nothing"


def test_the_order_of_arguments_does_not_move_the_digest() -> None:
    one, two = {"depth": 2, "embed_dim": 96}, {"embed_dim": 96, "depth": 2}
    assert entry(arguments=one).digest() == entry(arguments=two).digest()


def test_an_entry_cannot_be_changed_after_it_was_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        entry().registers = 4
