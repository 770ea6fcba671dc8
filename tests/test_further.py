"""Heads judged on further test sets (``--test-on``), from pictures to records."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from further_sets import CLASSES, World, paint_all, save

from harness import evaluate, heads, records
from harness.cli import main
from harness.data import imagenet_tests
from harness.data.imagenet import thousand
from harness.documents import canonical_json
from harness.errors import HarnessError
from harness.features.outliers import OutlierRule
from harness.further import plan_further
from harness.judged import JudgedEvaluation
from harness.options import Options
from harness.probes.linear import LinearHeads
from harness.records import DamagedResult, read_columns
from harness.run import run
from harness.schema import TrainedOn


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("painted")
    paint_all(root)
    return root


@pytest.fixture
def world(painted: Path, tmp_path: Path, tiny_models: Path) -> World:
    shutil.copytree(painted, tmp_path / "world")
    return World(tmp_path / "world", tiny_models)


@pytest.mark.parametrize("protocol", ["linear", "dinov2-linear"])
def test_on_the_bases_own_test_pictures_it_gives_the_bases_own_predictions(
    protocol: str, world: World
) -> None:
    found = world.run("same", model=["tiny", "tiny-reg4"], protocol=protocol)
    assert [(each.model.name, each.dataset.name) for each in found] == [
        (model, dataset) for model in ("tiny", "tiny-reg4") for dataset in ("base", "same")
    ]
    for base, further in (found[:2], found[2:]):
        assert world.columns(further) == world.columns(base)
        assert further.metrics == base.metrics
        assert 0 < base.metrics["top1"].value < 100, "all right or all wrong shows nothing"
        assert further.protocol == base.protocol
        assert further.dataset.fingerprints == base.dataset.fingerprints
        assert base.head is not None and further.head is None
        assert further.trained_on == TrainedOn(dataset="base", head_sha256=base.head.sha256)
        assert base.trained_on is None
        assert (further.cost.pictures, further.cost.forward_passes) == (21, 21)
        # The pictures that are scored are those that chose, whatever they are called.
        chosen = {"linear": "held-out pictures", "dinov2-linear": "test"}[protocol]
        assert (base.selected_on, further.selected_on) == (chosen, chosen)


def test_a_done_base_is_not_trained_again_and_only_test_pictures_are_passed(
    world: World, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (base,) = world.run(protocol="dinov2-linear")
    assert sum(passes) == 8 * 16 + 21
    before = {path: path.read_bytes() for path in world.out.rglob("base/**/*.*")}
    passes.clear()
    monkeypatch.setattr(LinearHeads, "step", None)
    again, more, some = world.run("more", "some", protocol="dinov2-linear")
    assert again == base
    assert {path: path.read_bytes() for path in world.out.rglob("base/**/*.*")} == before
    assert sum(passes) == 14 + 6
    assert (more.cost.forward_passes, some.cost.forward_passes) == (14, 6)
    assert more.selected_on == "base test"
    assert more.dataset.fingerprints["train"] == base.dataset.fingerprints["train"]
    assert more.dataset.fingerprints["test"] == more.dataset.fingerprint
    assert more.dataset.fingerprint != base.dataset.fingerprint
    passes.clear()
    assert world.run("more", "some", protocol="dinov2-linear") == [base, more, some]
    assert passes == []


def test_protocols_and_models_share_the_passes_over_a_further_set(
    world: World, passes: list[int]
) -> None:
    settings = {"crop": 28, "resize": 32, "batch_size": 16, "learning_rates": 0.1, "token": "cls"}
    cells = plan_further(
        ["more", "same"],
        Options(
            ["linear"],
            ["tiny", "tiny-reg4"],
            ["base"],
            **world.options(protocols=["linear"], settings={**settings, "min_steps": 4}),
        ),
        Options(
            ["linear"],
            ["tiny", "tiny-reg4"],
            ["base"],
            **world.options(protocols=["dinov2-linear"], settings={**settings, "steps": 4}),
        ),
    )
    assert len(list(run(cells, Options(["linear"], ["tiny"], **world.options())))) == 12
    # A model: train twice (stored, streamed), and each test set once for both protocols.
    assert sum(passes) == 2 * (35 + 4 * 16 + 21 + 14 + 21)


def test_a_base_that_is_to_be_run_takes_its_further_sets_with_it(world: World) -> None:
    first = world.run("more")
    second = world.run("more", overwrite=True)
    assert [each.provenance.started for each in first] != [
        each.provenance.started for each in second
    ]
    world.path(second[0]).unlink()
    third = world.run("more")
    assert third[1].provenance.started != second[1].provenance.started
    assert world.columns(third[1]) == world.columns(first[1])


def test_a_result_of_a_head_that_is_no_more_is_done_again(world: World) -> None:
    base, more = world.run("more")
    path = world.path(base)
    head = heads.read(path, base, base.model.weights_digest)
    other = replace(head, tensors={**head.tensors, "biases": head.tensors["biases"] + 9})
    written = records.write(path, base, read_columns(path), heads.packed(other))
    again, anew = world.run("more")
    assert again == written and again.head != base.head
    assert anew.trained_on is not None and again.head is not None
    assert anew.trained_on.head_sha256 == again.head.sha256
    assert anew.trained_on != more.trained_on


def test_a_head_that_is_missing_or_was_never_kept_is_an_error_that_says_what_to_do(
    world: World,
) -> None:
    base, more = world.run("more")
    path = world.path(base)
    head = path.with_suffix(".head.safetensors")
    kept, further = head.read_bytes(), world.path(more).read_text()
    head.unlink()
    assert world.run("more") == [base, more], "records are whole without the head"
    world.path(more).unlink()
    wanted = Options(["linear"], ["tiny"], ["base"], **world.options())
    with pytest.raises(HarnessError, match=r"head.*is not there any more; --overwrite trains it"):
        plan_further(["more"], wanted)
    head.write_bytes(kept)
    facts = json.loads(path.read_text())
    del facts["head"], facts["trained_on"]
    path.write_text(json.dumps(facts))
    assert records.read(path).head is None
    for _ in range(2):
        with pytest.raises(
            HarnessError, match=r"was not kept \(by an older harness\); --overwrite"
        ):
            world.run("more")
        world.path(more).with_suffix(".json").write_text(further)
    assert len(world.run("more", overwrite=True)) == 2


def test_a_damaged_head_is_a_damaged_result_and_trained_again(world: World) -> None:
    base, more = world.run("more")
    head = world.path(base).with_suffix(".head.safetensors")
    whole = head.read_bytes()
    for damaged in (whole[:-1], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        head.write_bytes(damaged)
        with pytest.raises(DamagedResult, match="not the head that"):
            records.finished(world.path(base))
    again, anew = world.run("more")
    assert head.read_bytes() == whole and again.head == base.head
    assert world.columns(anew) == world.columns(more)


def test_killed_between_base_and_further_set_only_the_further_one_is_left_to_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(JudgedEvaluation, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            world.run("more")
    monkeypatch.setattr(LinearHeads, "step", None)
    base, more = world.run("more")
    assert base.head and more.trained_on


def test_weights_that_changed_under_the_head_are_refused(world: World) -> None:
    (base,) = world.run()
    path = world.path(base)
    with pytest.raises(HarnessError, match="was trained on other weights of tiny"):
        heads.read(path, base, "ab" * 32)


def test_only_the_classes_of_the_further_set_are_asked_for(world: World) -> None:
    base, some = world.run("some")
    columns = world.columns(some)
    assert set(columns["predicted"]) <= {0, 1, 2} and columns["label"] == [0, 0, 1, 1, 2, 2]
    head = heads.read(world.path(base), base, base.model.weights_digest)
    assert head.classes == CLASSES
    assert some.metrics["top5"].value == 100


def test_a_class_that_the_head_does_not_know_is_refused_before_anything_runs(
    world: World, passes: list[int]
) -> None:
    with pytest.raises(HarnessError, match=r"1 of its 8 classes are none of the 7.*\(cat\)"):
        world.run("strange")
    assert passes == []


def test_a_task_that_keeps_no_head_says_which_do(world: World) -> None:
    with pytest.raises(HarnessError, match=r"task knn: keeps no head.*linear"):
        evaluate("knn", "tiny", "base", "more", **{**world.options(), "protocols": ["dinov2-knn"]})


def test_the_data_set_itself_and_unknown_ones_are_refused(world: World) -> None:
    with pytest.raises(HarnessError, match="base: is what the head is trained for"):
        world.run("base")
    with pytest.raises(HarnessError, match="no data set 'moer': did you mean more"):
        world.run("moer")


def test_a_further_set_with_a_train_split_does_not_take_the_name_of_its_own_head(
    world: World,
) -> None:
    base, crossed = world.run("own")
    assert crossed.variant["trained_on"] == "base" and "trained_on" not in base.variant
    (own,) = evaluate("linear", "tiny", "own", **world.options())
    assert own.trained_on is None and world.path(own) != world.path(crossed)
    assert world.run("own") == [base, crossed]


def test_two_heads_for_one_name_are_refused(world: World) -> None:
    with pytest.raises(HarnessError, match=r"heads of base and of own would have one name"):
        evaluate("linear", "tiny", ["base", "own"], "more", **world.options())
    world.run("more")
    with pytest.raises(HarnessError, match="holds a result of another data set"):
        evaluate("linear", "tiny", "own", "more", **world.options())


def test_where_nothing_is_trained_nothing_is_judged(world: World) -> None:
    with pytest.raises(HarnessError, match=r"linear on some.*nothing is trained on more"):
        evaluate("linear", "tiny", "more", "some", **world.options())


def test_a_limit_and_random_weights_make_variants_of_both(world: World) -> None:
    base, more = world.run("more", limit=20, weights="random")
    assert base.variant == more.variant
    assert {key: more.variant[key] for key in ("limit", "weights")} == {
        "limit": 20,
        "weights": "random",
    }
    assert more.dataset.pictures == 14 and more.limit == 20
    assert more.counts["test_pictures_of_classes_not_in_train"] == 6  # 20 are of four classes


def test_pictures_that_the_head_was_trained_without_stand_in_the_further_record(
    world: World,
) -> None:
    (world.root / "base/train/a/1.png").write_bytes(b"no picture")
    base, more = world.run("more", on_bad_picture="skip")
    assert [each.id for each in base.bad_pictures] == ["train/a/1.png"]
    assert [each.id for each in more.bad_pictures] == ["base/train/a/1.png"]
    assert more.variant["skipped"] == ["base/train/a/1.png"]
    assert world.run("more", on_bad_picture="skip") == [base, more]


def test_scores_do_not_depend_on_the_batch_or_the_store(world: World) -> None:
    world.run()
    tables = []
    for size, store in ((1, False), (7, True), (64, True)):
        _, more, some = world.run("more", "some", batch_size=size, store=store)
        tables.append((world.columns(more), world.columns(some)))
        assert (more.cost.forward_passes, some.cost.forward_passes) == (
            (0, 0) if size == 64 else (14, 6)
        )
        for record in (more, some):
            world.path(record).unlink()
    assert tables[0] == tables[1] == tables[2]


def test_outliers_are_those_of_the_cut_off_that_the_head_was_trained_with(
    world: World, passes: list[int]
) -> None:
    settings = {
        **world.options()["settings"],
        "token": "outlier",
        "outliers": "quantile0.5",
        "n_last_blocks": 1,
        "avgpool": False,
    }
    (base,) = world.run(settings=settings)
    passes.clear()
    _, more = world.run("more", settings=settings)
    assert sum(passes) == more.cost.forward_passes == 14
    cutoff = base.protocol.resolved["outlier_cutoff"]
    assert more.protocol.resolved["outlier_cutoff"] == cutoff
    head = heads.read(world.path(base), base, base.model.weights_digest)
    assert head.cutoffs == {OutlierRule("quantile", 0.5): cutoff}


def test_the_plan_tells_what_a_further_set_costs_and_the_table_what_was_trained_on(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--task", "linear", "--model", "tiny,tiny-reg4", "--dataset", "base"]
    arguments += ["--test-on", "more,some", "--out", str(world.out), "--device", "cpu"]
    arguments += ["--models", str(world.models), "--datasets", str(world.root / "sets.yaml")]
    arguments += ["--workers", "0", "--set", "min_steps=3", "--set", "learning_rates=0.1"]
    arguments += ["--set", "crop=28", "--set", "resize=32", "--set", "batch_size=16"]
    assert main([*arguments, "--dry-run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [
        (row["dataset"], row["trained_on"], row["forward_passes"], row["state"]) for row in rows
    ] == [
        ("base", None, 56, "to do"),
        ("more", "base", 14, "to do"),
        ("some", "base", 6, "to do"),
    ] * 2
    assert main([*arguments, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "head of base" in text and "6 of 6 to do: 152 forward passes" in text
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "linear on more" in text and "head of base" in text and "tiny-reg4 − tiny" in text
    assert main([*arguments, "--dry-run", "--json"]) == 0
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} == {"done"}


def test_imagenets_head_is_judged_on_v2_and_on_real(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if ImageNet had six classes."""
    wnids = thousand()[:6]
    monkeypatch.setattr(imagenet_tests, "thousand", lambda: wnids)
    for number, wnid in enumerate(wnids):
        for file in ("train/{0}/{0}_1.JPEG", "train/{0}/{0}_2.JPEG", "val/{0}/ILSVRC2012_val_{1}"):
            save(world.root / "imagenet" / file.format(wnid, f"{number + 1:08d}.JPEG"), number)
    for number in (5, 0, 2):
        save(world.root / f"v2/{number}/a.jpeg", number)
    real = [[0], [], [3, 2], [1], [4, 5], [2]]
    (world.root / "imagenet/real.json").write_text(json.dumps(real))
    (world.root / "sets.yaml").write_text(
        "base: {format: imagenet, root: imagenet}\n"
        "v2: {format: imagenet-test, root: v2}\n"
        "real: {format: imagenet-real, root: imagenet, labels: real.json}\n"
    )
    base, v2, relabelled = world.run("v2", "real", protocol="dinov2-linear")
    assert v2.selected_on == "base test"
    assert world.columns(v2)["image_id"] == ["0/a.jpeg", "2/a.jpeg", "5/a.jpeg"]
    assert world.columns(v2)["label"] == [0, 1, 2]
    # The head was chosen on ReaL's pictures, if by other labels.
    assert (base.selected_on, relabelled.selected_on) == ("test", "test")
    assert relabelled.counts == {"test_without_label": 1}
    columns, first = world.columns(relabelled), world.columns(base)
    numbers = [int(each[-13:-5]) - 1 for each in columns["image_id"]]
    assert numbers == [0, 2, 3, 4, 5]
    assert columns["predicted"] == [first["predicted"][number] for number in numbers]
    assert columns["top1"] == [
        predicted in real[number]
        for predicted, number in zip(columns["predicted"], numbers, strict=True)
    ]


def test_the_head_of_a_record_comes_back_as_it_was(world: World) -> None:
    (base,) = world.run(model="tiny-reg4")
    path = world.path(base)
    head = heads.read(path, base, base.model.weights_digest)
    chosen = base.details["chosen"]
    assert isinstance(chosen, dict)
    resolved = head.facts["resolved"]
    assert {key: resolved[key] for key in ("n_last_blocks", "avgpool", "learning_rate")} == {
        key: chosen[key] for key in ("n_last_blocks", "avgpool", "learning_rate")
    }
    start, stop = head.facts["columns"]
    assert head.tensors["weights"].shape == (7, stop - start)
    assert head.tensors["biases"].shape == (7,)
    assert [each["token"] for each in head.facts["reads"]] == ["global", "global", "patch-mean"]
    canonical_json(head.facts)
