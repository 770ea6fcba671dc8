"""Heads trained together against torch's own modules, trained one by one."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.probes.dense_head import DenseHead, DenseHeads, Form, Training, side_by_side
from harness.probes.dense_losses import ClassMap, DepthBins, Objective
from harness.probes.schedules import Schedule

WIDTH, STEPS, CLASSES = 12, 25, 5
GRID = [DenseHead(f"{rate} {decay}", rate, decay) for rate in (1e-3, 3e-2) for decay in (1e-4, 0.1)]
SEGMENTATION = Form(batch_norm=True)
DEPTH = Form(batch_norm=False, init_std=None)
POLY = Training(Schedule(STEPS, power=0.9))
Steps = list[tuple[Tensor, Tensor]]


def labelled(count: int = STEPS, pictures: int = 4) -> Steps:
    """Tokens that say something of their labels, at a size that is no multiple of the grid's."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(CLASSES, WIDTH, generator=generator)
    steps = []
    for _ in range(count):
        labels = torch.randint(CLASSES, (pictures, 3, 4), generator=generator)
        noise = torch.randn(pictures, 3, 4, WIDTH, generator=generator)
        tokens = 3 * directions[labels] + noise + torch.arange(WIDTH)
        larger = labels.repeat_interleave(5, 1).repeat_interleave(4, 2)[:, :14, :15].clone()
        larger[torch.rand(larger.shape, generator=generator) < 0.2] = 255
        steps.append((tokens, larger))
    return steps


def measured(count: int = STEPS, pictures: int = 4) -> Steps:
    """The same with depths, some of them missing."""
    return [
        (tokens, torch.where(labels == 255, 0.0, 1.0 + labels))
        for tokens, labels in labelled(count, pictures)
    ]


def trained(heads: DenseHeads, steps: Steps) -> list[Tensor]:
    return [heads.step(tokens, targets) for tokens, targets in steps]


class Published(nn.Module):
    """A linear head as it is published, with the channels that ``kept`` says left in."""

    def __init__(self, form: Form, begun: dict[str, Tensor]) -> None:
        super().__init__()
        outputs, width = begun["weights"].shape
        self.norm = nn.BatchNorm2d(width) if form.batch_norm else nn.Identity()
        self.conv = nn.Conv2d(width, outputs, 1)
        self.before = form.dropout_before_norm
        with torch.no_grad():
            self.conv.weight.copy_(begun["weights"][:, :, None, None])
            self.conv.bias.copy_(begun["biases"])

    def forward(self, tokens: Tensor, kept: Tensor | float = 1.0) -> Tensor:
        features = tokens.permute(0, 3, 1, 2)
        if isinstance(kept, Tensor):
            kept = kept[:, :, None, None]
        if self.before:
            return self.conv(self.norm(features * kept))
        return self.conv(self.norm(features) * kept)


def resized(maps: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    return nn.functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def class_loss(logits: Tensor, labels: Tensor, step: int) -> Tensor:
    return nn.functional.cross_entropy(resized(logits, labels.shape[1:]), labels, ignore_index=255)


def depth_loss(logits: Tensor, truth: Tensor, step: int) -> Tensor:
    """dinov2/eval/depth/models/losses/sigloss.py on what decode_head.py makes of logits."""
    weights = torch.relu(logits) + 0.1
    weights = weights / weights.sum(dim=1, keepdim=True)
    bins = torch.linspace(1e-3, 10, logits.shape[1])
    depth = torch.einsum("ikmn,k->imn", weights, bins)[:, None]
    depth = resized(depth, truth.shape[1:])[:, 0]
    ratio = torch.log(depth[truth > 0] + 1e-3) - torch.log(truth[truth > 0] + 1e-3)
    mean = 0.15 * torch.pow(torch.mean(ratio), 2)
    return torch.sqrt(mean if step < 10 else torch.var(ratio) + mean)


def by_torch(
    head: DenseHead,
    model: Published,
    training: Training,
    steps: Steps,
    loss_of: Callable[[Tensor, Tensor, int], Tensor],
    scheduler: Callable[[torch.optim.Optimizer], Any],
    kept: Callable[[int], Tensor] | None = None,
) -> Published:
    optimiser = torch.optim.AdamW(
        model.parameters(), head.learning_rate, weight_decay=head.weight_decay
    )
    schedule = scheduler(optimiser)
    group = training.pictures_per_loss or 10**6
    for step, (tokens, targets) in enumerate(steps):
        for one in optimiser.param_groups:
            one["betas"] = (training.schedule.first_beta(step), 0.999)
        optimiser.zero_grad()
        logits = model(tokens) if kept is None else model(tokens, kept(step))
        parts = zip(logits.split(group), targets.split(group), strict=True)
        torch.stack([loss_of(some, theirs, step) for some, theirs in parts]).mean().backward()
        if training.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimiser.step()
        schedule.step()
    return model.eval()


def poly(optimiser: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.PolynomialLR(optimiser, STEPS, power=0.9)


def cosine(optimiser: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: (
            (1e-8 + (1 - 1e-8) * (1 + math.cos(math.pi * step / STEPS)) / 2)
            * (1 - max(0, 1 - step / 8) * (1 - 1e-3))
        ),
    )


SCALE_INVARIANT = DepthBins(bins=16, warm_up=10)
WARM_COSINE = Schedule(
    STEPS, "cosine", floor=1e-8, warm_up=8, warm_up_ratio=1e-3, momentum="one cycle"
)


@pytest.mark.parametrize(
    ("form", "training", "objective", "loss_of", "scheduler"),
    [
        (SEGMENTATION, POLY, ClassMap(CLASSES), class_loss, poly),
        (Form(False), POLY, ClassMap(CLASSES), class_loss, poly),
        (Form(dropout=0.3), POLY, ClassMap(CLASSES), class_loss, poly),
        (Form(dropout=0.3, dropout_before_norm=True), POLY, ClassMap(CLASSES), class_loss, poly),
        (
            SEGMENTATION,
            Training(POLY.schedule, clip=0.05, pictures_per_loss=2),
            ClassMap(CLASSES),
            class_loss,
            poly,
        ),
        (
            DEPTH,
            Training(WARM_COSINE, clip=0.05, pictures_per_loss=2),
            SCALE_INVARIANT,
            depth_loss,
            cosine,
        ),
    ],
    ids=["norm", "plain", "dropout", "dropout before norm", "clipped in pairs", "depth"],
)
def test_heads_are_those_that_torch_trains_one_by_one(
    form: Form,
    training: Training,
    objective: Objective,
    loss_of: Callable[[Tensor, Tensor, int], Tensor],
    scheduler: Callable[[torch.optim.Optimizer], Any],
) -> None:
    steps = measured() if isinstance(objective, DepthBins) else labelled()
    heads = DenseHeads(GRID, WIDTH, objective, form, training, seed=3)
    models = [Published(form, heads.head(place)) for place in range(len(GRID))]
    masks = []
    for tokens, targets in steps:
        masks.append(heads._kept(len(tokens)))
        heads.step(tokens, targets)
    moved = 0.0
    for place, (head, model) in enumerate(zip(GRID, models, strict=True)):
        begun = model.conv.weight.detach().clone()
        kept = masks.__getitem__ if form.dropout else None
        by_torch(head, model, training, steps, loss_of, scheduler, kept)
        ours = heads.head(place)
        expected = {"weights": model.conv.weight[:, :, 0, 0], "biases": model.conv.bias}
        if form.batch_norm:
            expected |= {"gains": model.norm.weight, "offsets": model.norm.bias}
            expected |= {"mean": model.norm.running_mean, "variance": model.norm.running_var}
        assert ours.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(ours[name], values.detach(), rtol=2e-4, atol=2e-5)
        moved = max(moved, float((model.conv.weight.detach() - begun).abs().max()))
        (maps,) = heads.maps(steps[0][0], [place])
        with torch.no_grad():
            theirs = objective.maps(model(steps[0][0]))
        torch.testing.assert_close(maps, theirs, rtol=2e-4, atol=1e-3)
    assert moved > 0.1, "nothing was trained: it shows nothing"


def test_heads_learn_and_the_losses_that_are_told_are_those_before_a_step() -> None:
    steps = labelled(pictures=16)
    heads = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), SEGMENTATION, POLY)
    losses = trained(heads, steps)
    assert losses[0].tolist() == pytest.approx([math.log(CLASSES)] * len(GRID), abs=0.1)
    assert float(losses[-1][-1]) < 0.7 * float(losses[0][-1])
    tokens, labels = labelled(1, pictures=50)[0]
    *_, predicted = heads.predict(tokens, (14, 15))
    assert float((predicted == labels)[labels != 255].float().mean()) > 0.8


def test_a_head_is_the_same_whatever_else_is_trained_with_it() -> None:
    form = Form(dropout=0.2)
    together = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), form, POLY, seed=1)
    alone = DenseHeads(GRID[2:3], WIDTH, ClassMap(CLASSES), form, POLY, seed=1)
    other = DenseHeads(GRID[2:3], WIDTH, ClassMap(CLASSES), form, POLY, seed=2)
    assert not torch.equal(alone.head(0)["weights"], other.head(0)["weights"])
    for heads in (together, alone):
        trained(heads, labelled())
    for name, values in alone.head(0).items():
        torch.testing.assert_close(together.head(2)[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [Form(dropout=0.2), Form(dropout=0.2, dropout_before_norm=True)])
def test_training_taken_up_again_is_training_gone_through_to_the_bit(form: Form) -> None:
    steps = labelled()
    whole = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), form, POLY)
    trained(whole, steps)
    first = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), form, POLY)
    trained(first, steps[:11])
    resumed = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), form, POLY, seed=9)
    resumed.load(pickle.loads(pickle.dumps(first.state())))
    trained(resumed, steps[11:])
    before, after = whole.state(), resumed.state()
    assert before["steps"] == after["steps"] == STEPS
    for name, values in before["tensors"].items():
        assert torch.equal(values, after["tensors"][name]), name


def test_a_state_does_not_change_when_training_goes_on_and_is_of_its_own_heads() -> None:
    heads = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), SEGMENTATION, POLY)
    state = heads.state()
    before = pickle.dumps(state)
    trained(heads, labelled(3))
    assert pickle.dumps(state) == before
    with pytest.raises(ValueError, match="other heads"):
        DenseHeads(GRID[:1], WIDTH, ClassMap(CLASSES), SEGMENTATION, POLY).load(state)


def test_heads_begin_as_published() -> None:
    head = [DenseHead("one", 0.1)]
    drawn = DenseHeads(head, 400, ClassMap(500), Form(init_std=0.01), POLY).head(0)
    assert float(drawn["weights"].std()) == pytest.approx(0.01, rel=0.01)
    assert not drawn["biases"].any()
    torchs = nn.Conv2d(400, 500, 1).requires_grad_(False)
    begun = DenseHeads(head, 400, ClassMap(500), DEPTH, POLY).head(0)
    for name, theirs in (("weights", torchs.weight), ("biases", torchs.bias)):
        assert float(begun[name].std()) == pytest.approx(float(theirs.std()), rel=0.1)
        assert float(begun[name].abs().max()) == pytest.approx(0.05, rel=0.01)


def test_dropout_takes_whole_channels_of_a_picture_and_makes_up_for_them() -> None:
    heads = DenseHeads(GRID[:1], 5000, ClassMap(2), Form(dropout=0.3), POLY)
    kept = heads._kept(3)
    assert kept.shape == (3, 5000)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert kept.mean(1).tolist() == pytest.approx([1] * 3, abs=0.05)
    assert not torch.equal(kept[0], kept[1])
    tokens = torch.ones(3, 1, 1, 5000)
    assert torch.equal(*[next(heads.maps(tokens)) for _ in range(2)]), "a prediction drops nothing"


def test_a_diverged_head_is_told_and_spoils_no_other() -> None:
    wild = DenseHead("wild", 1e38)
    heads = DenseHeads([wild, *GRID], WIDTH, ClassMap(CLASSES), SEGMENTATION, POLY)
    alone = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), SEGMENTATION, POLY)
    for each in (heads, alone):
        trained(each, labelled())
    assert heads.finite() == (False, *[True] * len(GRID))
    torch.testing.assert_close(heads.head(1)["weights"], alone.head(0)["weights"])


def test_predictions_are_of_the_heads_asked_for_and_of_any_size() -> None:
    heads = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), SEGMENTATION, POLY)
    trained(heads, labelled(3))
    tokens = labelled(1)[0][0]
    every = list(heads.predict(tokens, (31, 17)))
    (third,) = heads.predict(tokens, (31, 17), [2])
    assert torch.equal(third, every[2]) and third.shape == (4, 31, 17)
    (maps,) = heads.maps(tokens, [2])
    assert torch.equal(third, resized(maps, (31, 17)).argmax(1))
    depth = DenseHeads(GRID[:1], WIDTH, SCALE_INVARIANT, DEPTH, POLY)
    (metres,) = depth.predict(tokens, (31, 17))
    assert metres.shape == (4, 31, 17) and 0 < float(metres.min()) <= float(metres.max()) < 10


def test_layers_stand_side_by_side_each_with_its_class_token() -> None:
    layers = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 6)]
    summaries = [torch.randn(2, 5), torch.randn(2, 6)]
    plain = side_by_side(layers)
    assert torch.equal(plain, torch.cat(layers, 3))
    both = side_by_side(layers, summaries)
    parts = both.split([5, 5, 6, 6], 3)
    assert torch.equal(parts[0], layers[0]) and torch.equal(parts[2], layers[1])
    assert torch.equal(parts[1][:, 2, 3], summaries[0])
    assert torch.equal(parts[3][:, 0, 1], summaries[1])


def test_half_precision_is_the_gpus_alone() -> None:
    heads = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), SEGMENTATION, POLY, precision="bf16")
    full = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), SEGMENTATION, POLY)
    assert heads.precision == "fp32"
    for each in (heads, full):
        trained(each, labelled(3))
    assert torch.equal(heads.head(0)["weights"], full.head(0)["weights"])
    heads.precision = "bf16"  # what a GPU does, and a CPU can
    trained(heads, labelled(3))
    trained(full, labelled(3))
    assert heads.head(0)["weights"].dtype == torch.float32
    difference = float((heads.head(0)["weights"] - full.head(0)["weights"]).abs().max())
    assert 0 < difference < 0.01


@pytest.mark.parametrize(
    ("heads", "form", "objective", "says"),
    [
        ([], SEGMENTATION, ClassMap(2), "at least"),
        ([GRID[0], GRID[0]], SEGMENTATION, ClassMap(2), "one name"),
        (GRID, Form(dropout=1.0), ClassMap(2), "dropout"),
        (GRID, SEGMENTATION, DepthBins(enlarge=4), "enlarge 1"),
    ],
)
def test_heads_that_make_no_sense_are_refused(
    heads: list[DenseHead], form: Form, objective: Objective, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        DenseHeads(heads, WIDTH, objective, form, POLY)


def test_tokens_of_another_width_are_refused() -> None:
    heads = DenseHeads(GRID, WIDTH, ClassMap(CLASSES), SEGMENTATION, POLY)
    with pytest.raises(ValueError, match="of 5 channels"):
        heads.step(torch.zeros(1, 2, 2, 5), torch.zeros(1, 4, 4))
