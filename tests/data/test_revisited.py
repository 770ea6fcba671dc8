"""Oxford and Paris revisited: the layout, and annotations that are wrong or dangerous."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import Server, quiet, tar, zipped
from small_datasets import encode

from harness.data.catalog import Catalog
from harness.data.dataset import Query, Target, _canonical
from harness.data.doctor import examine
from harness.data.fetch import fetch
from harness.data.revisited import read_revisited
from harness.errors import HarnessError

GALLERY = ["hall_1", "hall_2", "tower_1", "tower_2"]
QUERIES = ["hall_9", "tower_9"]


def annotations() -> dict[str, Any]:
    """As released: lists or arrays of places, a box of floats."""
    return {
        "imlist": list(GALLERY),
        "qimlist": list(QUERIES),
        "gnd": [
            {"bbx": [1.5, 2.0, 30.0, 28.5], "easy": [0], "hard": [1], "junk": [3]},
            {"bbx": [0.0, 0.0, 40.0, 30.0], "easy": [], "hard": [2, 3], "junk": []},
        ],
    }


def with_arrays() -> dict[str, Any]:
    found = annotations()
    for answer in found["gnd"]:
        for kind in ("easy", "hard", "junk"):
            answer[kind] = np.array(answer[kind], np.int64)
        answer["bbx"] = np.array(answer["bbx"])
    found["gnd"][1]["hard"] = [np.int32(2), np.uint16(3)]
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set with all of its pictures."""
    for name in (*GALLERY, *QUERIES):
        path = tmp_path / "jpg" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode())
    (tmp_path / "gnd.json").write_text(json.dumps(annotations()))
    return tmp_path


def write(root: Path, data: Any, protocol: int = 3) -> None:
    (root / "gnd.pkl").write_bytes(pickle.dumps(data, protocol=protocol))


def test_the_gallery_is_train_and_queries_are_test_with_their_answers(root: Path) -> None:
    opened = read_revisited("mine", root, "gnd.json")
    assert [sample.id for sample in opened["train"].samples] == GALLERY
    assert all(sample.target == Target() for sample in opened["train"].samples)
    assert [sample.id for sample in opened["test"].samples] == QUERIES
    first, second = (sample.target.query for sample in opened["test"].samples)
    assert first == Query((1.5, 2.0, 30.0, 28.5), (0,), (1,), (3,))
    assert second == Query((0.0, 0.0, 40.0, 30.0), (), (2, 3), ())
    for dataset in opened.values():
        assert not dataset.missing()
        assert all(sample.size == (40, 30) for sample in dataset.samples)
        assert dataset.picture(1).shape == (30, 40, 3)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("data", [annotations(), with_arrays()], ids=["lists", "arrays"])
def test_a_pickle_of_any_age_reads_as_the_same_json(root: Path, data: Any, protocol: int) -> None:
    write(root, data, protocol)
    pickled, plain = (read_revisited("mine", root, f"gnd.{kind}") for kind in ("pkl", "json"))
    for role in ("train", "test"):
        assert pickled[role].samples == plain[role].samples
        assert pickled[role].fingerprint() == plain[role].fingerprint()


def test_arrays_of_either_byte_order_and_of_no_rows_are_read(root: Path) -> None:
    data = change("gnd.0.easy", np.array([2, 0], ">i4"))
    data["gnd"][0]["junk"] = np.empty((3, 0), "<i8")
    data["gnd"][0]["bbx"] = np.array([[0.5, 1], [20, 30]], ">f8", order="F").ravel("K")
    write(root, data)
    query = read_revisited("mine", root, "gnd.pkl")["test"].samples[0].target.query
    assert query == Query((0.5, 20.0, 1.0, 30.0), (2, 0), (1,), ())


def test_a_pickle_of_numpy_1_and_of_python_2_is_read(root: Path) -> None:
    write(root, with_arrays(), 2)
    data = (root / "gnd.pkl").read_bytes()
    assert b"numpy._core.multiarray" in data
    (root / "gnd.pkl").write_bytes(
        data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    )
    assert read_revisited("mine", root, "gnd.pkl")["test"].samples[0].target.query is not None
    # Python 2 wrote array bytes as a string: (S'\x01\x00…')
    shape = "(I0\n(I1\ntcnumpy\ndtype\n(S'i8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    array = (
        "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        + shape
        + r"S'\x02\x00\x00\x00\x00\x00\x00\x00'"
        + "\ntb"
    )
    body = (
        f"(dS'imlist'\n(lS'a'\naS'b'\naS'c'\nasS'qimlist'\n(lS'd'\nasS'gnd'\n(l(dS'easy'\n{array}"
    )
    body += "sS'hard'\n(lsS'junk'\n(lsS'bbx'\n(lF0\naF0\naF9\naF9\nasas."
    (root / "gnd.pkl").write_text(body)
    query = read_revisited("mine", root, "gnd.pkl")["test"].samples[0].target.query
    assert query == Query((0, 0, 9, 9), (2,), (), ())


class _Runs:
    """Pickled, it would make a folder when loaded."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def test_a_pickle_with_code_is_refused_and_nothing_runs(root: Path) -> None:
    trap = root / "trap"
    write(root, {**annotations(), "more": _Runs(str(trap))})
    with pytest.raises(HarnessError, match=r"gnd\.pkl: refused: it names \w+\.mkdir.*\.json"):
        read_revisited("mine", root, "gnd.pkl")
    assert not trap.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([{"a": 1}], object),
        np.zeros(2, [("x", "i4")]),
        np.array(["text"]),
        np.datetime64("2020-01-01"),
        {1, 2},
        Path("somewhere"),
        len,
    ],
    ids=repr,
)
def test_a_pickle_of_anything_but_plain_values_is_refused(root: Path, value: Any) -> None:
    data = annotations()
    data["gnd"][0]["easy"] = value
    write(root, data)
    with pytest.raises(HarnessError, match=r"gnd\.pkl: refused: it names .* run any code"):
        read_revisited("mine", root, "gnd.pkl")


def test_a_pickle_that_breaks_off_anywhere_is_told(root: Path) -> None:
    write(root, with_arrays())
    data = (root / "gnd.pkl").read_bytes()
    for length in range(0, len(data), 7):
        (root / "gnd.pkl").write_bytes(data[:length])
        with pytest.raises(HarnessError, match=r"gnd\.pkl: damaged, not a pickle"):
            read_revisited("mine", root, "gnd.pkl")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_pickle_is_read_or_told_and_never_a_crash(
    root: Path, data: st.DataObject
) -> None:
    whole = bytearray(pickle.dumps(with_arrays(), protocol=3))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (root / "gnd.pkl").write_bytes(whole)
    try:
        opened = read_revisited("mine", root, "gnd.pkl")
    except HarnessError:
        return
    assert len(opened["test"].samples) == len(opened["test"].files) > 0


def change(path: str, value: Any) -> dict[str, Any]:
    """The annotations with one thing set: ``gnd.0.easy``."""
    found = annotations()
    *above, last = path.split(".")
    at: Any = found
    for part in above:
        at = at[int(part) if part.isdecimal() else part]
    at[int(last) if last.isdecimal() else last] = value
    return found


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ([], r"gnd\.json: a mapping with imlist"),
        (change("imlist", []), "imlist: a list of names"),
        (change("imlist", "hall"), "imlist: a list of names"),
        (change("imlist.1", 7), "imlist: 7 is no name"),
        (change("imlist.1", "a/b"), "imlist: 'a/b' is no name"),
        (change("imlist.1", "../b"), "leaves the data set's folder"),
        (change("imlist.1", "hall_1"), "imlist: 'hall_1' stands twice"),
        (change("qimlist.0", "hall_1"), "'hall_1' stands in imlist and in qimlist"),
        (change("gnd", [{}]), "gnd: a list of 2 was expected"),
        (change("gnd.1", 3), r"gnd\[1\]: a mapping with bbx"),
        (change("gnd.1", {}), r"gnd\[1\]\.easy: a list of places"),
        (change("gnd.0.easy", [4]), r"gnd\[0\]\.easy: 4 is no place in imlist \(0 to 3, whole\)"),
        (change("gnd.0.hard", [-1]), r"gnd\[0\]\.hard: -1 is no place"),
        (change("gnd.0.junk", [0.5]), r"gnd\[0\]\.junk: 0.5 is no place"),
        (change("gnd.0.junk", [True]), r"gnd\[0\]\.junk: True is no place"),
        (change("gnd.0.junk", ["0"]), r"gnd\[0\]\.junk: '0' is no place"),
        (change("gnd.0.junk", [0]), r"gnd\[0\]: a picture stands twice among easy, hard, junk"),
        (change("gnd.0.hard", [1, 1]), r"gnd\[0\]: a picture stands twice"),
        (change("gnd.0.bbx", [0, 0, 9]), r"gnd\[0\]\.bbx: x0, y0, x1, y1"),
        (change("gnd.0.bbx", [0, 0, 9, "9"]), r"gnd\[0\]\.bbx: '9' is no number"),
        (change("gnd.0.bbx", [0, 0, 9, float("inf")]), r"gnd\[0\]\.bbx: inf is no number"),
        (change("gnd.0.bbx", [9, 0, 9, 5]), r"gnd\[0\]\.bbx: the box is empty: 9, 0, 9, 5"),
    ],
)
def test_annotations_that_are_wrong_are_told_with_their_place(
    root: Path, data: Any, complaint: str
) -> None:
    (root / "gnd.json").write_text(json.dumps(data))
    with pytest.raises(HarnessError, match=complaint):
        read_revisited("mine", root, "gnd.json")


def test_annotations_of_another_format_are_told(root: Path) -> None:
    with pytest.raises(HarnessError, match=r"gnd\.mat: annotations are a \.pkl or a \.json file"):
        read_revisited("mine", root, "gnd.mat")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_told(root: Path, text: str) -> None:
    (root / "gnd.json").write_text(text)
    with pytest.raises(HarnessError, match=r"gnd\.json: not JSON"):
        read_revisited("mine", root, "gnd.json")


def test_whole_numbers_written_as_floats_are_places_and_a_box_may_be_missing(root: Path) -> None:
    data = change("gnd.0.easy", [0.0])
    del data["gnd"][0]["bbx"]
    (root / "gnd.json").write_text(json.dumps(data))
    query = read_revisited("mine", root, "gnd.json")["test"].samples[0].target.query
    assert query == Query(None, (0,), (1,), (3,))


def test_pictures_may_lie_in_folders_as_the_archives_have_them(root: Path) -> None:
    before = read_revisited("mine", root, "gnd.json")["train"]
    assert before.picture(1).shape == (30, 40, 3)
    (root / "jpg/paris/hall").mkdir(parents=True)
    (root / "jpg/hall_2.jpg").rename(root / "jpg/paris/hall/hall_2.jpg")
    after = read_revisited("mine", root, "gnd.json")["train"]
    assert not after.missing()
    assert after.fingerprint() == before.fingerprint()
    assert after.picture(1).shape == (30, 40, 3)
    (root / "jpg/hall_2.jpg").write_bytes(encode())
    with pytest.raises(HarnessError, match=r"there are both .*hall_2\.jpg and .*hall_2\.jpg"):
        read_revisited("mine", root, "gnd.json")


def test_missing_pictures_are_told_and_the_doctor_says_which(root: Path) -> None:
    (root / "jpg/tower_1.jpg").unlink()
    (root / "jpg/hall_9.jpg").unlink()
    opened = read_revisited("mine", root, "gnd.json")
    assert opened["train"].missing() == ["tower_1"]
    assert opened["test"].missing() == ["hall_9"]
    entry = root / "mine.yaml"
    entry.write_text("mine: {format: revisited, root: ., annotations: gnd.json}\n")
    report = examine(Catalog.load([entry]), "mine")
    assert [f.what for f in report.findings if f.level == "error"] == [
        "train (gallery): 1 pictures are missing: tower_1",
        "test (queries): 1 pictures are missing: hall_9",
    ]
    entry.write_text("mine: {format: revisited, root: ., annotations: other.pkl}\n")
    with pytest.raises(HarnessError, match=r"there is no .*other\.pkl"):
        Catalog.load([entry]).open("mine")


def test_all_that_is_known_of_a_query_is_in_the_fingerprint(root: Path) -> None:
    prints = set()
    for path, value in (
        ("gnd.0.easy", [0]),
        ("gnd.0.easy", [2]),
        ("gnd.0.easy", []),
        ("gnd.0.junk", []),
        ("gnd.0.hard", [2]),
        ("gnd.0.bbx", [1.5, 2.0, 30.0, 28.0]),
        ("gnd.0.bbx", None),
    ):
        (root / "gnd.json").write_text(json.dumps(change(path, value)))
        prints.add(read_revisited("mine", root, "gnd.json")["test"].fingerprint())
    assert len(prints) == 7


def test_a_picture_without_a_query_has_the_fingerprint_it_always_had() -> None:
    assert _canonical(Target(label=3)) == [3, None]


PLACES = {"x/hall/hall_1.jpg": encode(), "x/tower/tower_1.jpg": encode(), "x/hall/a.txt": b"a"}


@pytest.mark.parametrize("name", ["/a.tar", "/a.zip"])
def test_archives_are_flattened_each_into_its_own_folder(
    server: Server, tmp_path: Path, name: str
) -> None:
    server.files[name] = zipped(PLACES) if name == "/a.zip" else tar(PLACES)
    server.files["/b.tar"] = tar({"hall_2.jpg": encode(), "tower_2.jpg": encode()})
    server.files["/c.tar"] = tar({f"{query}.jpg": encode() for query in QUERIES})
    server.files["/gnd.pkl"] = pickle.dumps(annotations())
    lines = [f"    - {{url: '{server.url}/gnd.pkl', to: r}}\n"]
    for number, archive in enumerate((name, "/b.tar", "/c.tar")):
        fields = f"url: '{server.url}{archive}', to: r, extract: true, flat: true"
        lines.append(f"    - {{{fields}, gives: jpg/{number}}}\n")
    entry = tmp_path / "sets.yaml"
    entry.write_text(
        "mine:\n  format: revisited\n  root: r\n  annotations: gnd.pkl\n"
        "  pictures: {train: 4, test: 2}\n  fetch:\n" + "".join(lines)
    )
    catalog = Catalog.load([entry])
    fetch(catalog, "mine", quiet)
    assert sorted(path.name for path in (tmp_path / "r/jpg/0").iterdir()) == [
        "a.txt",
        "hall_1.jpg",
        "tower_1.jpg",
    ]
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["gnd.pkl", "jpg"]
    assert examine(catalog, "mine", decode=True).healthy


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"a/x.jpg": b"1", "b/x.jpg": b"2"}, r"has two files called x\.jpg"),
        ({}, "has no file in it"),
        ({"a/x.jpg": b"1", "../y.jpg": b"2"}, "leaves the data set's folder"),
    ],
)
def test_an_archive_that_cannot_be_flattened_keeps_nothing(
    server: Server, tmp_path: Path, members: dict[str, bytes], complaint: str
) -> None:
    server.files["/a.tar"] = tar(members)
    entry = tmp_path / "sets.yaml"
    entry.write_text(
        "mine:\n  format: revisited\n  root: r\n  annotations: gnd.pkl\n  fetch:\n"
        f"    - {{url: '{server.url}/a.tar', to: r, extract: true, flat: true, gives: jpg}}\n"
    )
    with pytest.raises(HarnessError, match=complaint):
        fetch(Catalog.load([entry]), "mine", quiet)
    assert list((tmp_path / "r").iterdir()) == []


def test_flat_belongs_to_an_archive(tmp_path: Path) -> None:
    entry = tmp_path / "sets.yaml"
    entry.write_text(
        "mine:\n  format: revisited\n  root: r\n  annotations: gnd.pkl\n  fetch:\n"
        "    - {url: 'https://here/a.pkl', flat: true}\n"
    )
    with pytest.raises(HarnessError, match="flat: of an archive"):
        Catalog.load([entry])
