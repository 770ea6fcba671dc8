"""Linear probes in closed form: a planted code is read exactly, noise by chance."""

from __future__ import annotations

import pytest
import torch

from harness.probes import local_information
from harness.probes.local_information import Examples, TokenSums, patch_pixels, score

GRID = 6, 8
N = 48


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def examples(code: torch.Tensor, pictures: int, spread: float = 0.0, seed: int = 0) -> Examples:
    """``code [N, D]`` at every position of so many pictures, with noise of that spread; a patch's
    two pixels are the first features, and the picture's class is in the last one."""
    features = code.repeat(pictures, 1) + spread * noise(pictures * N, code.shape[1], seed=seed)
    labels = torch.arange(pictures).remainder(3).repeat_interleave(N)
    features[:, -1] = labels
    return Examples(features, torch.arange(N).repeat(pictures), features[:, :2].clone(), labels)


def fitted(of: Examples, ridge: float = 1e-6) -> TokenSums:
    sums = TokenSums(GRID, 3)
    sums.add(of)
    return sums


def one_hot() -> torch.Tensor:
    return torch.cat([torch.eye(N), torch.zeros(N, 1)], 1)


def coordinates() -> torch.Tensor:
    """Row and column as two numbers: a regression onto one-hot positions cannot read these."""
    places = torch.arange(N)
    return torch.stack([places // 8, places % 8, torch.zeros(N)], 1).float() * 3 + 5


@pytest.mark.parametrize("code", [one_hot(), coordinates()], ids=["one-hot", "coordinates"])
def test_a_planted_position_code_is_read_exactly(code: torch.Tensor) -> None:
    probes = fitted(examples(code, 9, 0.02)).fit(1e-6)
    found = score(probes, examples(code, 6, 0.02, seed=1), GRID[1])
    assert found.position_top1.mean() == 1
    assert found.position_distance.max() == 0
    assert found.pixel_l2.max() < 1e-3
    assert found.class_top1 is not None and found.class_top1.mean() == 1


def test_noise_is_read_by_chance() -> None:
    code = torch.zeros(N, 20)
    train, test = examples(code, 60, 1.0), examples(code, 200, 1.0, seed=1)
    pixels = noise(len(test.positions), 2, seed=2)
    train = train._replace(pixels=noise(len(train.positions), 2, seed=3))
    found = score(fitted(train).fit(1e-3), test._replace(pixels=pixels), GRID[1])
    # 9,600 tokens: four standard errors about 1/48, and the mean distance of two random places.
    assert float(found.position_top1.mean()) == pytest.approx(1 / N, abs=0.006)
    places = torch.arange(N)
    apart = torch.hypot(
        (places // 8 - places[:, None] // 8).double(), (places % 8 - places[:, None] % 8).double()
    )
    assert float(found.position_distance.mean()) == pytest.approx(float(apart.mean()), abs=0.15)
    assert float(found.pixel_l2.mean()) == pytest.approx(float(pixels.norm(dim=1).mean()), abs=0.05)


def test_the_ridge_is_in_units_of_each_dimension() -> None:
    train, test = examples(coordinates(), 5, 0.5), examples(coordinates(), 5, 0.5, seed=1)
    scale = torch.tensor([1e4, 1e-3, 7.0])
    scaled = [each._replace(features=each.features * scale) for each in (train, test)]
    plain = score(fitted(train).fit(0.1), test, GRID[1])
    other = score(fitted(scaled[0]).fit(0.1), scaled[1], GRID[1])
    torch.testing.assert_close(other.pixel_l2, plain.pixel_l2, rtol=1e-4, atol=1e-4)
    assert float((other.position_top1 != plain.position_top1).double().mean()) < 0.01


def test_a_dimension_that_never_varies_changes_nothing() -> None:
    train, test = examples(coordinates(), 5, 0.5), examples(coordinates(), 5, 0.5, seed=1)
    plain = score(fitted(train).fit(0.1), test, GRID[1])
    wider = [
        each._replace(features=torch.cat([each.features, torch.full((5 * N, 1), 1e3)], 1))
        for each in (train, test)
    ]
    other = score(fitted(wider[0]).fit(0.1), wider[1], GRID[1])
    torch.testing.assert_close(other.pixel_l2, plain.pixel_l2)


def test_sums_of_parts_merged_or_taken_up_again_are_those_of_the_whole() -> None:
    every = examples(coordinates(), 6, 0.5)
    first = torch.arange(6 * N) < 2 * N
    whole, left, right = fitted(every), fitted(every.of(first)), fitted(every.of(~first))
    resumed = TokenSums(GRID, 3)
    resumed.load(right.state())
    resumed.add(every.of(first))
    left.merge(right)
    for other in (left, resumed):
        assert other.count == whole.count == 6 * N
        for ours, theirs in zip(whole.fit(0.1), other.fit(0.1), strict=True):
            assert ours is not None and theirs is not None
            torch.testing.assert_close(theirs.weights, ours.weights)
            torch.testing.assert_close(theirs.bias, ours.bias)


def test_scores_do_not_depend_on_how_many_are_made_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = examples(coordinates(), 4, 0.8)
    probes = fitted(of).fit(0.1)
    whole = score(probes, of, GRID[1])
    monkeypatch.setattr(local_information, "_CHUNK", 7 * N)
    for ours, theirs in zip(whole, score(probes, of, GRID[1]), strict=True):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(theirs, ours)


def test_a_class_that_is_not_known_is_not_scored_and_lets_none_be_fitted() -> None:
    of = examples(coordinates(), 6)
    assert of.labels is not None
    unknown = of.labels.clone()
    unknown[:N] = -1
    found = score(fitted(of).fit(1e-3), of._replace(labels=unknown), GRID[1])
    assert found.class_top1 is not None
    assert found.class_top1[:N].isnan().all() and (found.class_top1[N:] == 1).all()
    assert fitted(of._replace(labels=unknown)).fit(1e-3).label is None
    assert fitted(of._replace(labels=None)).fit(1e-3).label is None


def test_a_position_that_was_never_seen_is_never_said() -> None:
    of = examples(coordinates(), 4, 0.3)
    probes = fitted(of.of(of.positions != 11)).fit(1e-3)
    assert not (probes.position(of.features).argmax(1) == 11).any()


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(ValueError, match="no token"):
        TokenSums(GRID, 3).fit(0.1)


def test_pixels_are_those_of_the_patch() -> None:
    pixels = noise(2, 3, 6, 8)
    found = patch_pixels(pixels, 2)
    assert found.shape == (2, 3, 4, 12)
    torch.testing.assert_close(found[1, 2, 3], pixels[1, :, 4:6, 6:8].flatten())
