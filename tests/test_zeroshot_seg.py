"""Zero-shot segmentation against a plain loop over timm's module, pixels and class names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks import NAMES, SIDE, blocks, columns
from fake_tower import FakeTower, install, models
from PIL import Image
from tiny import ARCHITECTURE
from torch.nn.functional import cosine_similarity, interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

import harness
from harness import evaluate
from harness.backbone.layout import Tokens
from harness.backbone.vit import Read
from harness.data.dataset import IGNORED, Dataset, Dense, Role, Sample, Target
from harness.data.semantic_classes import ADE20K, CAMVID, CITYSCAPES, COCO_STUFF, VOC
from harness.data.views import Geometry
from harness.dense.text_classes import TextJudge, text_classes
from harness.errors import HarnessError
from harness.features.store import Store
from harness.interventions import NeuronFile, text
from harness.language.class_texts import PromptSet, shipped
from harness.language.texts import Texts
from harness.records import find
from harness.registry import Registry
from harness.schema import Record
from harness.task import Batch, Context, NotApplicable
from harness.task_names import find_task

EXACT: dict[str, Any] = {"size": 98, "precision": "fp32", "stored_as": "fp32"}
TASK = find_task("zeroshot-seg")


def run(
    folder: Path, model: str, dataset: str, data: Path, settings: Mapping[str, Any], **more: Any
) -> Record:
    given: dict[str, Any] = {"workers": 0, "device": "cpu", "out": folder / "out", **more}
    (record,) = evaluate(
        "zeroshot-seg", model, dataset, settings=dict(settings), dataset_files=[data],
        model_files=[models(folder) if "file" not in given else given.pop("file")], **given,
    )  # fmt: skip
    return record


def camvid(folder: Path, shared: Path) -> Path:
    file = folder / "real.yaml"
    names = ", ".join(["sky", "building", "pole", "road", "pavement", "tree", "sign symbol"])
    file.write_text(
        f"cam: {{format: masks, root: {shared / 'camvid'}, splits: {{test: val}}, "
        "images: '{split}', masks: '{split}annot', ignore: [11], "
        f"classes: [{names}, fence, car, pedestrian, bicyclist]}}\n"
    )
    return file


def coco(folder: Path, shared: Path) -> Path:
    """Three pictures of COCO with ids up to 200, of which 0 says nothing."""
    for kind in ("images", "masks"):
        (folder / kind / "test").mkdir(parents=True)
    for mask in sorted((shared / "coco256/semantic/val2017").iterdir())[:3]:
        picture = shared / f"coco256/val2017/{mask.stem}.jpg"
        (folder / "images/test" / picture.name).symlink_to(picture)
        (folder / "masks/test" / mask.name).symlink_to(mask)
    file, names = folder / "real.yaml", ", ".join(f"k{n}: {n}" for n in range(1, 201))
    file.write_text(
        f"coco: {{format: masks, root: {folder}, splits: {{test: test}}, ignore: [0], "
        f"classes: {{{names}}}}}\n"
    )
    return file


@torch.no_grad()
def by_a_plain_loop(
    backbone: Any, tower: FakeTower, path: Path, names: list[list[str]], read: str
) -> np.ndarray:
    """The class of every pixel: timm's module, its last attention replaced by hand, patch by
    patch and text by text."""
    facts, module = backbone.architecture, backbone.module
    stored = np.asarray(Image.open(path).convert("RGB"))
    picture = torch.from_numpy(stored.copy()).permute(2, 0, 1)
    small = F.resize(picture, [98, 98], InterpolationMode.BICUBIC, antialias=True)
    mean, std = (torch.tensor(each)[:, None, None] for each in (facts.mean, facts.std))
    pixels = (small.float() / 255 - mean) / std
    seen: dict[str, Any] = {}
    block = module.blocks[-1]
    handle = block.register_forward_pre_hook(lambda _m, inputs: seen.update(entered=inputs[0]))
    whole = module.forward_features(pixels[None])
    handle.remove()
    if read == "value":
        entered = seen["entered"]
        values = block.attn.qkv(block.norm1(entered))[..., -entered.shape[-1] :]
        entered = entered + block.ls1(block.attn.proj(values))
        whole = module.norm(entered + block.ls2(block.mlp(block.norm2(entered))))
    patches = tower.project(whole[0, facts.layout.extra :])
    maps = torch.zeros(len(names), 7, 7)
    for place, texts in enumerate(names):
        vector = tower.encode(texts).mean(0)
        for number, patch in enumerate(patches):
            maps[place, number // 7, number % 7] = cosine_similarity(patch, vector, dim=0)
    large = maps[None]
    for size in ((98, 98), stored.shape[:2]):  # as mmsegmentation: to the input's size, and then on
        large = interpolate(large, size, mode="bilinear", align_corners=False)
    return large[0].argmax(0).numpy()


def counted(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    labelled = truth != IGNORED
    return np.array(
        [
            [
                int(((predicted == c) & (truth == c)).sum()),
                int(((predicted == c) & labelled).sum()),
                int((truth == c).sum()),
            ]
            for c in range(classes)
        ]
    )


def against_a_plain_loop(
    folder: Path, data: Path, dataset: str, model: str, read: str, tower: FakeTower, root: Path,
    masks: str,
) -> None:  # fmt: skip
    """Every pixel of three pictures. ``root`` has their files, ``masks`` the folder of labels."""
    settings = {**EXACT, "read": read, "templates": "prompts"}
    record = run(folder, model, dataset, data, settings, limit=3)
    told, names = columns(folder / "out"), list(record.details["iou_by_class"])
    backbone = harness.load_backbone(model, [models(folder)], device="cpu")
    texts = [[f"a photo of a {name}."] for name in names]
    for row, identity in enumerate(told["image_id"]):
        picture = next(root.glob(f"{Path(identity).stem}.*"))
        labels = np.asarray(Image.open(root.parent / masks / f"{picture.stem}.png")).astype(int)
        truth = np.where(labels == 11, IGNORED, labels) if dataset == "cam" else labels - 1
        truth = np.where(truth < 0, IGNORED, truth)
        predicted = by_a_plain_loop(backbone, tower, picture, texts, read)
        found = np.stack([told[name][row] for name in ("intersection", "predicted", "labelled")])
        off = np.abs(found.T - counted(predicted, truth, len(names))).max()
        assert off <= 2, "all but a tie or two"
        assert len(np.unique(predicted)) > 1


@pytest.mark.parametrize("read", ["value", "token"])
@pytest.mark.parametrize("model", ["tiny", "tiny-reg4"])
def test_every_pixel_of_camvid_is_of_the_class_that_a_plain_loop_gives(
    model: str, read: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tower := FakeTower())
    data, root = camvid(tmp_path, shared_data), shared_data / "camvid/val"
    against_a_plain_loop(tmp_path, data, "cam", model, read, tower, root, "valannot")


def test_every_pixel_of_coco_is_of_the_class_that_a_plain_loop_gives(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tower := FakeTower())
    data, root = coco(tmp_path, shared_data), tmp_path / "images/test"
    (tmp_path / "images/masks").symlink_to(tmp_path / "masks/test")
    against_a_plain_loop(tmp_path, data, "coco", "tiny-reg4", "value", tower, root, "masks")


def planted(model: str, read: Read) -> FakeTower:
    """A tower in which the texts of red, green and blue lie where such patches do."""
    backbone, tower = harness.load_backbone(model, device="cpu"), FakeTower()
    facts, found = backbone.architecture, {}
    for name, colour in zip(NAMES, np.eye(3), strict=True):
        pixels = (torch.tensor(40 + 180 * colour).float() / 255 - torch.tensor(facts.mean)) / (
            torch.tensor(facts.std)
        )
        flat = pixels[None, :, None, None].expand(1, 3, SIDE, SIDE)
        side = SIDE - SIDE % facts.patch
        patches = backbone(flat[..., :side, :side], [read]).tokens[read].patches
        found[name] = tower.project(patches).flatten(0, 2).mean(0)
    return FakeTower(planted=found)


def pixels_with_words(folder: Path) -> Path:
    assert not Registry.load().entry("pixels").arguments
    return models(folder, words="  factory: harness.nano.floors:pixels\n")


def test_colours_are_told_by_texts_that_lie_where_their_patches_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = harness.load_backbone("pixels", device="cpu").architecture.depth
    install(monkeypatch, planted("pixels", Read(depth - 1, "token", True)))
    data, file = blocks(tmp_path), pixels_with_words(tmp_path)
    settings = {"size": SIDE, "read": "token"}
    record = run(tmp_path, "words", "blocks", data, settings, file=file, allow_code=True)
    assert record.metrics["miou"].value > 75
    assert record.counts["names"] == 3 and record.counts["texts"] == 240
    assert record.protocol.resolved["facet"] == "token"
    assert list(record.details["iou_by_class"]) == list(NAMES)


def test_other_texts_cost_no_forward_pass_and_no_second_tower_for_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, data = install(monkeypatch, tower := FakeTower()), blocks(tmp_path)
    first = run(tmp_path, "tiny", "blocks", data, {"size": 56, "templates": "prompts"})
    assert first.cost.forward_passes == 6 and loaded
    before = len(tower.encoded)
    other = run(tmp_path, "tiny", "blocks", data, {"size": 56})
    assert other.cost.forward_passes == 0
    assert len(tower.encoded) == before + 240
    assert other.protocol.resolved["texts"] != first.protocol.resolved["texts"]
    (prompts := tmp_path / "p.yaml").write_text("classes: {red: [red, crimson]}\n")
    settings = {"size": 56, "templates": "prompts", "prompts": str(prompts)}
    named = run(tmp_path, "tiny", "blocks", data, settings)
    assert named.counts["names"] == 4 and named.cost.forward_passes == 0


def test_a_picture_within_one_window_is_seen_as_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeTower())
    data, exact = blocks(tmp_path), {"precision": "fp32", "templates": "prompts"}
    run(tmp_path, "tiny-reg4", "blocks", data, {**exact, "size": SIDE, "stored_as": "fp32"})
    windows = {**exact, "short": SIDE, "window": SIDE, "stride": 32}
    out = tmp_path / "windows"
    run(tmp_path, "tiny-reg4", "blocks", data, windows, out=out, protocols=["zeroshot-seg-windows"])
    whole, seen = columns(tmp_path / "out"), columns(out)
    for name in ("intersection", "predicted", "labelled"):
        assert np.abs(whole[name] - seen[name]).max() <= 2


def test_batches_and_the_store_move_no_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeTower())
    data, found = blocks(tmp_path), []
    settings = {"short": 80, "window": 56, "stride": 28, "templates": "prompts"}
    for number, size in enumerate((1, 7, 64)):
        out = tmp_path / str(number)
        run(
            tmp_path, "tiny-reg4", "blocks", data, settings, out=out, batch_size=size,
            protocols=["zeroshot-seg-windows"], store=number > 0,
        )  # fmt: skip
        found.append(columns(out))
    for other in found[1:]:
        for name, column in found[0].items():
            assert np.array_equal(column, other[name]), name


def test_patches_are_pooled_alone_where_attention_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeTower())
    small = "{embed_dim: 48, depth: 3, num_heads: 4, img_size: 64}"
    file = models(
        tmp_path,
        pooled=f"  timm: vit_base_patch16_siglip_256.v2_webli\n  arguments: {small}\n",
    )
    settings, data = {"size": SIDE, "templates": "prompts"}, blocks(tmp_path)
    record = run(tmp_path, "pooled", "blocks", data, settings, file=file, weights="random")
    assert record.protocol.resolved["facet"] == "pooled-alone"
    assert columns(tmp_path / "out")["predicted"].sum() == 6 * SIDE * SIDE
    token = {**settings, "read": "token"}
    with pytest.raises(HarnessError, match="read=value pools each patch alone"):
        run(tmp_path, "pooled", "blocks", data, token, file=file, weights="random")


def test_test_time_registers_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTower())
    data, file = blocks(tmp_path), models(tmp_path)
    digest = harness.load_backbone("tiny", [file], device="cpu").weights_digest
    neurons = NeuronFile(
        model="tiny", weights_digest=digest, neurons=[(1, 3), (1, 17), (1, 100), (2, 5), (2, 60)],
        scores=[1.0] * 5, settings={}, pictures={}, curve=[],
    )  # fmt: skip
    (tmp_path / "n.json").write_text(text(neurons))
    file.write_text(
        file.read_text() + "tiny-ttr1:\n  like: tiny\n  test_time_registers: {neurons: n.json}\n"
    )
    scores = set()
    for model in ("tiny", "tiny-ttr1"):
        for read in ("value", "token"):
            settings = {"size": 98, "read": read, "templates": "prompts"}
            out = tmp_path / f"{model} {read}"
            run(tmp_path, model, "blocks", data, settings, out=out, file=file)
            scores.add(columns(out)["predicted"].tobytes())
    assert len(scores) == 4


class Named(Dataset):
    """Pictures of which only the classes of pixels are looked at."""

    name, split = "named", "test"

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.samples, self.semantic_classes = (Sample("a", (28, 28)),), classes


def started(folder: Path, classes: tuple[str, ...], **settings: Any) -> Any:
    protocol = TASK.protocols["zeroshot-seg-windows"].changed(
        {"precision": "fp32", "templates": "prompts", **settings}
    )
    entry = Registry.load([models(folder)]).entry("tiny-reg4")
    data: dict[Role, Dataset] = {"test": Named(classes)}
    context: Context[Any] = Context(
        ARCHITECTURE, data, protocol, 0, text=Texts(entry, stored=False)
    )
    return TASK.start(context)


def test_permuted_registers_move_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTower())
    draw = torch.Generator().manual_seed(0)
    tokens = Tokens(
        torch.randn(1, 48, generator=draw),
        torch.randn(1, 4, 48, generator=draw),
        torch.randn(1, 2, 2, 48, generator=draw),
    )
    dense = Dense(np.zeros((28, 28), np.uint8))
    found = []
    for each in (tokens, replace(tokens, registers=tokens.registers.flip(1) * 9)):
        evaluation = started(tmp_path, ("a", "b", "c"), read="token")
        evaluation.update(
            "test",
            Batch(
                {Read(3, "token", True): each}, {}, ("a",), (Target(),), (0,),
                (Geometry((28, 28), (28, 28), (0, 0, 28, 28), (0, 0, 0, 0)),),
                crops=(1,), dense=(dense,),
            ),
        )  # fmt: skip
        found.append(evaluation.finish().columns["predicted"])
    assert np.array_equal(*found) and found[0].any()


# ------------------------------------------------------------------------------- names, background


def test_the_background_of_voc_is_what_its_words_name() -> None:
    classes = text_classes("voc12-seg", VOC, "own", "words")
    assert classes.kept == tuple(range(21)) and classes.background is None
    words = [name for name, owner in zip(classes.names, classes.owners, strict=True) if not owner]
    assert {"sky", "grass", "wall"} <= set(words) and len(words) == 39
    assert not {"sofa", "chair", "person"} & set(words)
    assert set(classes.owners) == set(range(21))


@pytest.mark.parametrize(
    ("dataset", "classes", "said"),
    [
        ("ade20k", ADE20K, {"windowpane": "window"}),
        ("camvid", CAMVID, {"sign symbol": "traffic sign"}),
        ("cityscapes", tuple(CITYSCAPES), {"traffic light": "traffic light"}),
        ("coco-stuff", COCO_STUFF, {"wall-brick": "brick wall", "sky-other": "sky"}),
        ("voc12-aug", VOC, {"tvmonitor": "television"}),
    ],
)
def test_every_class_of_a_shipped_data_set_has_names_that_are_words(
    dataset: str, classes: tuple[str, ...], said: dict[str, str]
) -> None:
    found = text_classes(dataset, classes, "own", "words")
    assert set(found.owners) == set(range(len(classes)))
    assert not [name for name in found.names if "-" in name or "_" in name]
    known = shipped().get(dataset, PromptSet()).classes
    assert known.keys() <= set(classes), "a name of a class that is not there"
    for word, name in said.items():
        assert found.names[found.owners.index(classes.index(word))] == name


def test_a_word_of_the_background_that_is_a_class_is_left_to_the_class() -> None:
    classes = text_classes("x", ("background", "tree", "sky"), "own", "words")
    assert classes.names.count("tree") == classes.names.count("sky") == 1


def test_a_background_that_is_left_out_counts_for_nothing_and_is_drawn_as_it_was() -> None:
    classes = text_classes("voc12-seg", VOC, "own", "left out")
    assert len(classes.classes) == 20 and "background" not in classes.classes
    judge = TextJudge(classes, 14)
    truth = judge.truth(Dense(np.array([[0, 1, 20, IGNORED]], np.uint8)))
    assert truth.tolist() == [[IGNORED, 0, 19, IGNORED]]
    said, true = judge.drawn(torch.tensor([[3, 0, 19, 0]]), truth)
    assert said.tolist() == [[4, 1, 20, 1]] and true.tolist() == [[IGNORED, 1, 20, IGNORED]]


def test_a_threshold_gives_to_the_background_what_no_class_is_sure_of() -> None:
    classes = text_classes("x", ("background", "a", "b"), "own", "threshold")
    assert classes.names == ("a", "b") and classes.background == 0
    whole = Geometry((3, 1), (3, 1), (0, 0, 3, 1), (0, 0, 0, 0))
    maps = torch.tensor([[[0.9, 0.5, 0.1]], [[0.1, 0.5, 0.9]]])
    for threshold, expected in ((0.0, [1, 1, 2]), (0.6, [1, 0, 2]), (0.999, [0, 0, 0])):
        judge = TextJudge(classes, 14, scale=2.0, threshold=threshold)
        assert judge.prediction([maps], [whole]).tolist() == [expected]
    probability = (2 * maps).softmax(0).amax(0)[0, 0]
    below, above = (float(probability) + each for each in (-1e-4, 1e-4))
    assert TextJudge(classes, 14, 2.0, below).prediction([maps], [whole])[0, 0] == 1
    assert TextJudge(classes, 14, 2.0, above).prediction([maps], [whole])[0, 0] == 0


def test_of_several_names_of_a_class_the_nearest_counts() -> None:
    prompts = PromptSet(classes={"a": ("one", "two")})
    classes = text_classes("x", ("a", "b"), prompts, "words")
    assert classes.names == ("one", "two", "b") and classes.owners == (0, 0, 1)
    whole = Geometry((1, 1), (1, 1), (0, 0, 1, 1), (0, 0, 0, 0))
    maps = torch.tensor([0.1, 0.5, 0.4])[:, None, None]
    assert TextJudge(classes, 14).prediction([maps], [whole]).tolist() == [[0]]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("background",), "background is the only class"),
        (("traffic_light", "traffic light"), "no text can tell them apart"),
        (("12", "b"), "no name that a text could hold"),
    ],
)
def test_classes_that_no_text_can_tell_are_refused(names: tuple[str, ...], says: str) -> None:
    with pytest.raises(HarnessError, match=says):
        text_classes("x", names, "own", "words")


# ----------------------------------------------------------------------------------- what is not so


def test_what_is_read_is_the_models_own_kind_of_value_path() -> None:
    data: dict[Role, Dataset] = {"test": Named(("a", "b"))}
    windows = TASK.protocols["zeroshot-seg-windows"]
    pooled = replace(ARCHITECTURE, global_feature="attention pooling")
    odd = replace(ARCHITECTURE, attends=False)

    def reads(architecture: Any, **settings: Any) -> set[Read]:
        request = TASK.requests(architecture, data, windows.changed(settings))["test"]
        return set(request.reads)

    assert reads(ARCHITECTURE) == {Read(3, "value-path", True)}
    assert reads(ARCHITECTURE, block="attention alone") == {Read(3, "value-written", True)}
    assert reads(ARCHITECTURE, read="token") == {Read(3, "token", True)}
    assert reads(pooled) == {Read(3, "pooled-alone", True)}
    assert reads(odd, read="token") == {Read(3, "token", True)}
    for facts, settings in (
        (pooled, {"read": "token"}),
        (pooled, {"block": "attention alone"}),
        (odd, {}),
    ):
        with pytest.raises(NotApplicable):
            reads(facts, **settings)
    with pytest.raises(HarnessError, match="a token is what the whole block gives"):
        windows.changed({"read": "token", "block": "attention alone"})
    with pytest.raises(HarnessError, match="would leave gaps"):
        windows.changed({"stride": 300})


def test_data_without_masks_and_models_without_words_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeTower())
    with pytest.raises(NotApplicable, match="no masks"):
        TASK.requests(ARCHITECTURE, {"test": Named(())}, TASK.protocols["zeroshot-seg"])
    with pytest.raises(HarnessError, match=r"no text tower \(openclip-vitb16, .* have one"):
        run(tmp_path, "tiny-mute", "blocks", blocks(tmp_path), {"size": 56})


def test_a_tower_that_cannot_be_had_loses_no_neighbours_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(FakeTower):
        def encode(self, texts: Any) -> Any:
            raise HarnessError("no words today")

    install(monkeypatch, Broken())
    data = blocks(tmp_path)
    with pytest.raises(HarnessError, match="no words today"):
        run(tmp_path, "tiny", "blocks", data, {"size": 56})
    assert not list(find(tmp_path / "out")) and list(Store().folder.iterdir())
    install(monkeypatch, FakeTower())
    assert run(tmp_path, "tiny", "blocks", data, {"size": 56}).cost.forward_passes == 0
