from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_datasets import COCOTree, VOCTree, encode, voc_object, voc_xml

from harness.data.catalog import Catalog
from harness.errors import HarnessError

DETECTION = ["voc07", "voc12", "coco20k", "coco-val2017"]
CLASSIFICATION = [
    "imagenet", "imagenet-real", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch",
    "rta-100", "imagenette", "cifar10", "cifar100", "aircraft", "cub", "caltech101", "cars", "dtd",
    "flowers", "food", "pets", "sun397", "places205", "places365", "inat2018", "inat2021",
    "voc07-classes",
]  # fmt: skip
RETRIEVAL = ["roxford5k", "rparis6k"]
DENSE = [
    "ade20k", "voc12-seg", "voc12-aug", "cityscapes", "coco-stuff", "camvid", "nyu", "nyu-labelled",
    "kitti-eigen",
]  # fmt: skip
CAPTIONS = ["coco-karpathy", "coco-captions", "flickr30k"]
FETCHED = [*DETECTION, *CAPTIONS, *CLASSIFICATION, *RETRIEVAL, *DENSE]
PAINTED = ["generated", "scenes", "scenes-demo", "scenes-captions", "scenes-few"]
BUILT_IN = [*FETCHED, *PAINTED]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_DATA", raising=False)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_built_in_data_sets_are_named_and_carry_their_facts() -> None:
    catalog = Catalog.load()
    assert catalog.names() == BUILT_IN
    expected = {"voc07": 5011, "voc12": 11540, "coco20k": 19817, "coco-val2017": 5000}
    for name, pictures in expected.items():
        assert catalog.entry(name).expected == {"test": pictures}
    assert catalog.entry("imagenet").expected == {"train": 1281167, "test": 50000}
    for name in FETCHED:
        assert catalog.entry(name).license
        assert catalog.entry(name).paper
        assert catalog.entry(name).fetch or catalog.entry(name).note


def test_what_a_built_in_data_set_fetches_lands_where_it_is_looked_for(tmp_path: Path) -> None:
    catalog = Catalog.load(data_root=tmp_path)
    for name in catalog.names():
        entry, root = catalog.entry(name), catalog.root(name)
        if not entry.fetch or root is None:
            continue
        given = {catalog.base(name) / each.to / each.target for each in entry.fetch}
        for needed in entry.needs(root):
            assert any(needed.is_relative_to(path) for path in given), needed


def test_a_wrong_name_gets_a_suggestion() -> None:
    with pytest.raises(
        HarnessError, match=r"no data set 'voc7': did you mean voc07.*harness datasets"
    ):
        Catalog.load().entry("voc7")


def test_roots_are_relative_to_the_data_root_the_environment_or_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Catalog.load().root("voc07") == tmp_path / "data/VOCdevkit/VOC2007"
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "env"))
    assert Catalog.load().root("voc07") == tmp_path / "env/VOCdevkit/VOC2007"
    assert Catalog.load((), Path("given")).root("voc07") == tmp_path / "given/VOCdevkit/VOC2007"
    assert Catalog.load().root("generated") is None


def test_a_users_root_is_relative_to_its_file_and_may_be_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "mine: {format: folder, root: pictures}\nfar: {format: folder, root: /far/away}\n"
    write(tmp_path / "sub/sets.yaml", text)
    monkeypatch.chdir(tmp_path)
    catalog = Catalog.load([Path("sub/sets.yaml")], tmp_path / "elsewhere")
    assert catalog.root("mine") == tmp_path / "sub/pictures"
    assert catalog.root("far") == Path("/far/away")
    assert catalog.names() == [*BUILT_IN, "mine", "far"]


def test_a_later_file_replaces_an_entry(tmp_path: Path) -> None:
    first = write(tmp_path / "1.yaml", "voc07: {format: voc, root: a, split: val}\n")
    second = write(tmp_path / "2.yaml", "voc07: {format: voc, root: b, split: val}\n")
    assert Catalog.load([first, second]).root("voc07") == tmp_path / "b"
    assert Catalog.load([second, first]).root("voc07") == tmp_path / "a"


def test_voc_opens_by_split_and_by_role(voc: VOCTree, tmp_path: Path) -> None:
    voc.add("a", voc_xml(voc_object()), encode())
    voc.open()
    write(voc.root / "ImageSets/Main/test.txt", "a\n")
    text = (
        "lone: {format: voc, root: VOCdevkit/VOC2007, split: trainval}\n"
        "both: {format: voc, root: VOCdevkit/VOC2007, splits: {train: trainval, test: test}}\n"
    )
    catalog = Catalog.load([write(tmp_path / "sets.yaml", text)])
    lone, both = catalog.open("lone"), catalog.open("both")
    assert {role: dataset.split for role, dataset in lone.items()} == {"test": "trainval"}
    assert {role: dataset.split for role, dataset in both.items()} == {
        "train": "trainval",
        "test": "test",
    }
    assert lone["test"].name == "lone"


def test_coco_opens_with_a_list_and_by_role(coco: COCOTree, tmp_path: Path) -> None:
    coco.write()
    write(coco.root / "names.txt", "picture3.jpg\n")
    files = "images: pictures, annotations: instances.json"
    text = (
        f"whole: {{format: coco, root: coco, {files}}}\n"
        f"some: {{format: coco, root: coco, {files}, list: names.txt}}\n"
        f"both: {{format: coco, root: coco, splits: {{train: {{{files}}}, "
        f"test: {{{files}, list: names.txt}}}}}}\n"
    )
    catalog = Catalog.load([write(tmp_path / "sets.yaml", text)])
    assert len(catalog.open("whole")["test"].samples) == 2
    assert [s.id for s in catalog.open("some")["test"].samples] == ["3"]
    assert {r: len(d.samples) for r, d in catalog.open("both").items()} == {"train": 2, "test": 1}


def test_generated_opens_without_files(tmp_path: Path) -> None:
    path = write(tmp_path / "sets.yaml", "few: {format: generated, count: 3}\n")
    catalog = Catalog.load([path])
    assert len(catalog.open("generated")["test"].samples) == 12
    assert len(catalog.open("few")["test"].samples) == 3


def test_an_absent_folder_is_named_with_what_to_do(tmp_path: Path, voc: VOCTree) -> None:
    catalog = Catalog.load(data_root=tmp_path / "nowhere")
    with pytest.raises(HarnessError) as e:
        catalog.open("voc07")
    for part in (
        str(tmp_path / "nowhere/VOCdevkit/VOC2007"),
        f"`harness datasets fetch voc07 --data-root {tmp_path / 'nowhere'}`",
        "`--data-root DIR`",
        f"`harness doctor voc07 --data-root {tmp_path / 'nowhere'}`",
    ):
        assert part in str(e.value)
    voc.add("a", voc_xml(), encode())
    with pytest.raises(HarnessError, match=r"there is no .*ImageSets/Main/trainval\.txt"):
        Catalog.load(data_root=tmp_path).open("voc07")


def test_a_users_absent_folder_points_at_the_users_file(tmp_path: Path) -> None:
    path = write(tmp_path / "sets.yaml", "# mine\nmine: {format: folder, root: gone}\n")
    with pytest.raises(HarnessError, match=r"sets\.yaml:2") as e:
        Catalog.load([path]).open("mine")
    assert "fetch" not in str(e.value)
    assert f"`harness doctor mine --datasets {path}`" in str(e.value)


def test_an_unexpected_count_is_told_and_a_missing_picture_does_not_raise(
    voc: VOCTree, tmp_path: Path
) -> None:
    voc.add("a", voc_xml(), None)
    voc.open()
    catalog = Catalog.load(data_root=tmp_path)
    opened = catalog.open("voc07")
    assert opened["test"].missing() == ["a"]
    (sentence,) = catalog.unexpected("voc07", opened)
    assert "1 pictures for test where 5,011 were expected" in sentence
    text = "one: {format: voc, root: VOCdevkit/VOC2007, split: trainval, pictures: 1}\n"
    path = write(tmp_path / "sets.yaml", text)
    mine = Catalog.load([path])
    assert mine.unexpected("one", mine.open("one")) == []


VOC = "format: voc, root: r, split: s"
COCO = "format: coco, root: r"
SPLIT = "{images: i, annotations: a}"
FETCH = "format: folder, root: r, fetch"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: {format: folder, root: r}\nb: 1\n", r":2: b: a mapping"),
        ("a: {root: r}\n", r":1: a.format: None is no format; there are coco, folder"),
        ("a:\n  root: r\n  format: vocc\n", r":3: a.format: 'vocc' is no format"),
        ("a:\n  format: voc\n  root: r\n  splt: s\n", r":4: a.splt: unknown key"),
        ("a: {format: voc, root: r}\n", r":1: a: give one of split"),
        (f"a: {{{VOC}, splits: {{test: s}}}}\n", r"give one of split"),
        ("a: {format: voc, root: r, split: ../s}\n", r"a.split: '../s' must be a relative path"),
        ("a: {format: voc, root: r, splits: {tset: s}}\n", r"a.splits"),
        ("a: {format: voc, split: s}\n", r"a.root"),
        ("a: {format: folder, root: ''}\n", r"a.root"),
        (f"a: {{{COCO}}}\n", r"give images"),
        (f"a: {{{COCO}, images: i}}\n", r"give images"),
        (f"a: {{{COCO}, images: /i, annotations: a}}\n", r"a.images: '/i' must be a relative"),
        (f"a: {{{COCO}, images: i, annotations: a, list_file: x}}\n", r"unknown key"),
        (f"a: {{{COCO}, images: i, annotations: a, list_sha256: abc}}\n", r"a.list_sha256"),
        (f"a: {{{COCO}, images: i, splits: {{test: {SPLIT}}}}}\n", r"not beside"),
        ("a: {format: generated, count: 0}\n", r"a.count"),
        ("a: {format: generated, root: r}\n", r"a.root"),
        (f"a: {{{FETCH}: [{{url: 'file:///etc/passwd'}}]}}\n", r"must begin with https"),
        (f"a: {{{FETCH}: [{{url: 'http:x'}}]}}\n", r"must begin with https"),
        (f"a: {{{FETCH}: [{{url: 'http://x/y', to: ../z}}]}}\n", r"must be a relative path"),
        (f"a: {{{FETCH}: [{{url: 'http://x/y.tar', extract: true}}]}}\n", r"gives"),
        (f"a: {{{FETCH}: [{{url: 'http://x/'}}]}}\n", r"gives"),
        ("a: {format: folder, root: r}\na: {format: folder, root: q}\n", r":2: 'a' stands twice"),
        ("../x: {format: folder, root: r}\n", r":1: \.\./x: a name"),
        ("a: &x {format: folder, root: r}\nb: *x\n", "not allowed"),
        ("- a\n", "a mapping of names"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused_with_file_and_line(tmp_path: Path, text: str, what: str) -> None:
    path = write(tmp_path / "sets.yaml", text)
    with pytest.raises(HarnessError, match=what) as e:
        Catalog.load([path])
    assert str(path) in str(e.value)


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path = write(tmp_path / "bomb.yaml", "\n".join(lines))
    with pytest.raises(HarnessError, match=r"bomb\.yaml:\d+: .*not allowed"):
        Catalog.load([path])


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"none\.yaml: no such file"):
        Catalog.load([tmp_path / "none.yaml"])


def test_nothing_of_the_data_package_imports_torch() -> None:
    modules = (
        "catalog coco dataset dense_entries depth_lists devkit doctor entries entry fetch files "
        "folder generated imagenet label_maps label_tally listed nyu_labelled official pairs "
        "parquet segmentation semantic_classes shards sizes tars torchvision_sets voc"
    )
    code = (
        "import sys\n"
        + "".join(f"import harness.data.{module}\n" for module in modules.split())
        + "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
