"""Strict YAML: what is refused, and that every complaint names file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.cli import main
from harness.documents import canonical_json, check_name, name_problem, read_yaml, unknown
from harness.errors import HarnessError

BOMB = "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: [*c, *c, *c, *c]\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        pytest.param("a: 1\nb: 2\na: 3\n", 3, "'a' stands twice (first on line 1)", id="duplicate"),
        pytest.param("a:\n  x: 1\n  x: 2\n", 3, "'x' stands twice", id="nested duplicate"),
        pytest.param(BOMB, 1, "anchors (&name) and aliases", id="alias bomb"),
        pytest.param("a: *nothing\n", 1, "anchors (&name) and aliases", id="alias to nothing"),
        pytest.param("a: &x {b: *x}\n", 1, "anchors (&name) and aliases", id="alias to itself"),
        pytest.param("a: 1\nb: {<<: {c: 1}}\n", 2, "tag:yaml.org,2002:merge", id="merge key"),
        pytest.param("a: !!python/object/apply:os.system [ls]\n", 1, "python", id="python object"),
        pytest.param("a: !!python/name:os.system\n", 1, "python", id="python name"),
        pytest.param("a: !!set {x, y}\n", 1, "the tag", id="a set"),
        pytest.param("a: [1, 2\n", 2, "expected", id="unclosed list"),
        pytest.param("a: 1\nb: 2: 3\n", 2, "mapping values", id="not YAML"),
        pytest.param("a: 1\n---\nb: 1\n", 2, "another document", id="two documents"),
        pytest.param("1: a\n", 1, "must be text", id="number as a key"),
        pytest.param("a: 1\nno: b\n", 2, "must be text (quote it)", id="no is a truth value"),
        pytest.param("? [a, b]\n: c\n", 1, "must be text", id="list as a key"),
        pytest.param("- a\n- b\n", 1, "a mapping of names", id="a list at the top"),
        pytest.param("just text\n", 1, "a mapping of names", id="text at the top"),
    ],
)
def test_a_bad_file_is_refused_with_file_and_line(
    tmp_path: Path, text: str, line: int, says: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(HarnessError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"a: \xff\xfe\n", "cannot be read", id="not UTF-8"),
        pytest.param(b"a: \x00\n", "not valid YAML", id="a control character"),
        pytest.param(b"[" * 5000, "not valid YAML", id="nested too deep"),
        pytest.param(b"a: " + b"9" * 10_000, "cannot be read", id="a number too long"),
        pytest.param(b"# " + b"x" * (4 * 2**20), "larger than 4 MiB", id="too large"),
    ],
)
def test_an_unreadable_file_is_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(HarnessError, match=says) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no such file"):
        read_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(HarnessError, match="cannot be read"):
        read_yaml(tmp_path)


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "# nothing yet\n")).data == {}


def test_every_key_and_item_knows_its_line(tmp_path: Path) -> None:
    document = read_yaml(write(tmp_path, "a:\n  b: 1\n  c:\n    - x\n    - y\nd: 2\n"))
    assert document.data == {"a": {"b": 1, "c": ["x", "y"]}, "d": 2}
    assert [document.line(k) for k in [("a",), ("a", "b"), ("a", "c", 1), ("d",)]] == [1, 2, 5, 6]
    assert document.line(("a", "b", "not there")) == 2


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    registers: int = 0
    size: int | list[int] = 0
    root: str


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "x:\n  root: a\n  registres: 4\n",
            ":3: x.registres: unknown key (did you mean registers?)",
        ),
        ("x:\n  root: a\n  zzz: 4\n", ":3: x.zzz: unknown key"),
        ("x:\n  registers: 4\n", ":1: x.root: Field required"),
        (
            "x:\n  root: a\n  size:\n    - 1\n    - b\n",
            ":3: x.size: Input should be a valid integer",
        ),
    ],
)
def test_a_failed_validation_points_at_the_key_as_the_file_has_it(
    tmp_path: Path, text: str, says: str
) -> None:
    document = read_yaml(write(tmp_path, text))
    with pytest.raises(ValidationError) as caught:
        Entry.model_validate(document.data["x"])
    error = document.validation_error(("x",), caught.value, Entry.model_fields)
    assert says in str(error)


def test_an_unknown_name_gets_a_suggestion_where_there_is_one() -> None:
    error = str(unknown("model", "vitl-reg", ["vitl", "vitl-reg4"], "harness models"))
    assert error.startswith("no model 'vitl-reg': did you mean vitl-reg4")
    assert error.endswith("`harness models` lists all")
    assert "did you mean" not in str(unknown("model", "qqq", ["vitl"], "harness models"))


@pytest.mark.parametrize("name", ["vits", "vitl-reg4", "a.b_c+d", "-x", "0", "V" * 100])
def test_a_plain_name_can_be_part_of_a_file_name(name: str) -> None:
    assert name_problem(name) is None
    assert check_name("model", name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", "a/b", "a\\b", "a b", "a~b", "a,b", "a\n", "a\0", "é", "٣", "V" * 101],
)
def test_a_name_that_could_leave_or_hide_in_a_folder_is_refused(name: str) -> None:
    assert name_problem(name) is not None
    with pytest.raises(HarnessError, match=r"model name .* cannot be used"):
        check_name("model", name)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False).filter(lambda x: abs(x) != float("inf")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("entry", "place"),
    [('one: {like: "\\ud800"}', "one.like"), ('"\\udfff": {like: nano}', r"'\udfff'")],
)
def test_half_a_surrogate_pair_is_refused_with_file_and_line(
    entry: str, place: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"two: {{like: nano}}\n{entry}\n")
    with pytest.raises(HarnessError) as refused:
        read_yaml(file)
    assert str(refused.value) == f"{file}:2: {place}: holds what is no character"
    file.write_text('one: {note: "\\U0001F600 é"}\n')
    assert read_yaml(file).data == {"one": {"note": "\U0001f600 é"}}


@given(st.dictionaries(st.text(), json_values))
def test_canonical_json_does_not_depend_on_the_order_of_keys(facts: dict[str, object]) -> None:
    assert canonical_json(facts) == canonical_json(dict(reversed(facts.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_has_no_nan(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": [value]})


@pytest.mark.parametrize(
    ("option", "entry"),
    [
        ("--datasets", "long: {{format: voc, split: test, root: {0}}}"),
        ("--models", "long: {{like: nano, checkpoint: {0}.pth}}"),
    ],
)
def test_a_path_that_no_disk_takes_is_refused_with_file_and_line(
    option: str, entry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(entry.format("a" * 300))
    asked = ["doctor", "long"] if option == "--datasets" else ["describe", "long"]
    assert main([*asked, option, str(file)]) == 2
    said = capsys.readouterr().err
    assert f"{file}:1: long" in said and "is too long" in said
