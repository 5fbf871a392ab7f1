"""Point-sampled losses compared with dense and with hand-written computations."""

import math

import pytest
import torch
from torch.nn import functional as F

from trainer.objectives.losses import (
    even_losses,
    logits_at,
    point_losses,
    regular_points,
    truth_at,
    uncertain_points,
)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def smooth_logits(count: int) -> torch.Tensor:
    """(count, 256, 256): blobs with a soft edge, in float32."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    return torch.stack([3 - (((x - 90 - 20 * i) ** 2 + (y - 120) ** 2).sqrt() - 50) / 6 for i in range(count)]).clamp(
        -6, 6
    )


def discs(count: int) -> torch.Tensor:
    """(count, 1024, 1024) bool."""
    y, x = torch.meshgrid(torch.arange(1024.0), torch.arange(1024.0), indexing="ij")
    return torch.stack([(x - 430) ** 2 + (y - 470 - 30 * i) ** 2 < 210**2 for i in range(count)])


def bilinear(image: list[list[float]], x: float, y: float) -> float:
    """The value at (x, y) in [0, 1] of an image whose pixel centres lie at (i + 0.5) / size."""
    height = len(image)
    width = len(image[0])
    u = x * width - 0.5
    v = y * height - 0.5
    left = math.floor(u)
    top = math.floor(v)

    def pixel(row: int, column: int) -> float:
        return image[min(max(row, 0), height - 1)][min(max(column, 0), width - 1)]

    a = u - left
    b = v - top
    upper = (1 - a) * pixel(top, left) + a * pixel(top, left + 1)
    lower = (1 - a) * pixel(top + 1, left) + a * pixel(top + 1, left + 1)
    return (1 - b) * upper + b * lower


def test_losses_at_fixed_points_equal_a_computation_in_plain_python():
    torch.manual_seed(1)
    logits = torch.randn(2, 8, 6)
    masks = torch.rand(2, 32, 24) < 0.4
    points = torch.rand(2, 50, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1 / 6, 0.5]])
    bce, dice = point_losses(logits, masks, points)
    for n in range(2):
        image = logits[n].tolist()
        total = 0.0
        overlap = 0.0
        mass = 0.0
        for x, y in points[n].tolist():
            value = bilinear(image, x, y)
            truth = float(masks[n, min(int(y * 32), 31), min(int(x * 24), 23)])
            p = 1 / (1 + math.exp(-value))
            total -= truth * math.log(p) + (1 - truth) * math.log(1 - p)
            overlap += p * truth
            mass += p + truth
        assert bce[n].item() == pytest.approx(total / 50, rel=1e-5)
        assert dice[n].item() == pytest.approx(1 - (2 * overlap + 1) / (mass + 1), rel=1e-5)


def test_uniform_points_estimate_the_dense_losses_within_their_sampling_error():
    logits = smooth_logits(3)
    masks = discs(3)
    dense = F.interpolate(logits[:, None], size=(1024, 1024), mode="bilinear", align_corners=False)[:, 0]
    each = F.binary_cross_entropy_with_logits(dense, masks.float(), reduction="none")
    probabilities = dense.sigmoid()
    truth = masks.float()
    dense_dice = 1 - 2 * (probabilities * truth).sum((1, 2)) / (probabilities.sum((1, 2)) + truth.sum((1, 2)))
    count = 40_000
    points = uncertain_points(logits, count, 1.0, 0.0, generators(3))
    bce, dice = point_losses(logits, masks, points)
    error = each.flatten(1).std(1) / math.sqrt(count)
    assert ((bce - each.mean((1, 2))).abs() < 4 * error).all()
    assert (dice - dense_dice).abs().max() < 0.01


def test_losses_use_the_truth_at_full_resolution():
    """Ground truth at 1024 keeps what the nearest pixel at 256 loses."""
    fine = torch.zeros(1, 1024, 1024, dtype=torch.bool)
    fine[:, ::4] = True  # a quarter of the rows: at 256, by nearest, all of them or none
    points = uncertain_points(torch.zeros(1, 256, 256), 20_000, 1.0, 0.0, generators(1))
    assert truth_at(fine, points).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_points_are_the_most_uncertain_of_the_candidates_and_some_uniform_ones():
    logits = smooth_logits(2)
    points = uncertain_points(logits, 1000, 3.0, 0.75, generators(2))
    assert points.shape == (2, 1000, 2)
    assert points.min() >= 0 and points.max() <= 1
    values = logits_at(logits, points).abs()
    uniform = logits_at(logits, uncertain_points(logits, 1000, 3.0, 0.0, generators(2))).abs()
    assert values[:, :750].mean() < 0.6 * uniform.mean()
    # The candidates are known from the seed: 750 of 3,000, none of the others closer to 0.
    candidates = torch.stack([torch.rand(3000, 2, generator=g) for g in generators(2)])
    best = logits_at(logits, candidates).abs().sort(1).values[:, :750]
    assert torch.allclose(values[:, :750].sort(1).values, best)


def test_points_do_not_depend_on_the_objects_place_in_the_batch():
    logits = smooth_logits(2)
    together = uncertain_points(logits, 100, 3.0, 0.75, generators(2))
    alone = uncertain_points(logits[1:], 100, 3.0, 0.75, generators(1, seed=1))
    assert torch.equal(together[1:], alone)


def test_regular_points_on_the_grid_of_the_logits_equal_the_logits():
    logits = torch.randn(2, 16, 16)
    assert torch.allclose(logits_at(logits, regular_points(2, 16, logits.device)), logits.flatten(1), atol=1e-5)


def test_gradient_pulls_towards_the_truth():
    logits = torch.zeros(1, 256, 256, requires_grad=True)
    masks = discs(1)
    bce, dice = point_losses(logits, masks, regular_points(1, 256, logits.device))
    (bce + dice).sum().backward()
    inside = masks[0, 2::4, 2::4]
    assert (logits.grad[0][inside] < 0).all() and (logits.grad[0][~inside] > 0).all()


def test_losses_at_even_points_are_those_of_an_evaluation_and_smaller():
    """A good prediction has higher losses at uncertain points, near the edge, than over the whole mask."""
    masks = discs(2)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 256, 256, generator=generator)
    logits = (masks[:, 2::4, 2::4].float() * 8 - 4 + noise).requires_grad_(True)
    bce, dice = even_losses(logits, masks)
    expected = point_losses(logits, masks, regular_points(2, 256, logits.device))
    assert torch.allclose(bce, expected[0], atol=1e-6) and torch.allclose(dice, expected[1], atol=1e-6)
    assert not bce.requires_grad and not dice.requires_grad
    points = uncertain_points(logits.detach(), 12544, 3.0, 0.75, generators(2))
    sampled, _ = point_losses(logits, masks, points)
    assert (sampled > 1.5 * bce).all()
