"""Draws for an object depend on seed, epoch, sample and object, and on nothing else."""

import torch

from shards.recipe import named_recipe
from trainer.data.batch import Frame, PairBatch
from trainer.objectives.noise import object_generators, uniform


def batch(
    keys: list[str], image_of_object: list[int], copies: list[int] | None = None, epoch: int = 0, step: int = 0
) -> PairBatch:
    """A batch of samples without tensors."""
    return PairBatch(
        frames=(Frame(), Frame()),
        image_of_object=torch.tensor(image_of_object),
        paired=torch.ones(len(keys), dtype=torch.bool),
        keys=keys,
        texts=[[] for _ in image_of_object],
        objects=[image_of_object[:i].count(image) for i, image in enumerate(image_of_object)],
        recipe=named_recipe("default"),
        meta=[{} for _ in keys],
        frame_numbers=[(1, 2) for _ in keys],
        turns=[0 for _ in image_of_object],
        copies=copies or [0 for _ in keys],
        position={"epoch": epoch, "samples": 2 * step},
    )


def draw(changed: PairBatch, seed: int = 0) -> torch.Tensor:
    return uniform(object_generators(changed, seed), 4)


def test_draws_do_not_depend_on_the_samples_place_in_the_batch():
    together = draw(batch(["a", "b"], [0, 0, 1]))
    elsewhere = draw(batch(["b"], [0], step=7))
    assert torch.equal(together[2:], elsewhere)
    assert torch.equal(draw(batch(["b", "a"], [0, 1, 1])), together[[2, 0, 1]])


def test_draws_differ_between_objects_copies_epochs_and_seeds():
    draws = [
        draw(batch(["a", "a"], [0, 0, 1], copies=[0, 1])),
        draw(batch(["a"], [0, 0], epoch=1)),
        draw(batch(["a"], [0, 0]), seed=1),
    ]
    assert len({tuple(row.tolist()) for rows in draws for row in rows}) == 7
