"""The samples of each optimiser step: the same ones on any number of processes, interrupted or not."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice

import pytest

from tests.batches import make_loader
from trainer.data.stream import Stream

SHAPES = [(1, 1, 4), (1, 2, 2), (2, 2, 1), (4, 1, 1), (2, 1, 2), (1, 4, 1)]  # batch_size, processes, accumulation


def ranks(folder, shape, consumed=None) -> list[Stream]:
    batch_size, processes, accumulation = shape
    common = {"fields": ("prompt_masks1",), "batch_size": batch_size, "seed": 3, "accumulation": accumulation}
    loaders = [make_loader([folder], rank=rank, world_size=processes, **common) for rank in range(processes)]
    return [Stream({"dual": loader}, accumulation, consumed) for loader in loaders]


def steps(streams: list[Stream]) -> Iterator[list[str]]:
    """The keys that all ranks together consume in each step, in their global order."""
    while True:
        parts = [[batch.keys for _, batch in stream.step()] for stream in streams]
        yield [*chain(*(chain(*together) for together in zip(*parts, strict=True)))]


@pytest.fixture(scope="module")
def undisturbed(sav_set) -> list[list[str]]:
    return [*islice(steps(ranks(sav_set, SHAPES[0])), 8)]


def test_an_epoch_holds_each_sample_once(undisturbed):
    epochs = undisturbed[:3], undisturbed[3:6]
    for epoch in epochs:
        assert set(Counter(chain(*epoch)).values()) == {1} and len([*chain(*epoch)]) == 12
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_sequence_does_not_depend_on_the_number_of_processes(sav_set, undisturbed, shape):
    assert [*islice(steps(ranks(sav_set, shape)), 8)] == undisturbed


@pytest.mark.parametrize(("before", "after"), [(SHAPES[1], SHAPES[4]), (SHAPES[3], SHAPES[5])])
@pytest.mark.parametrize("done", [2, 3])
def test_a_run_goes_on_with_another_number_of_processes(sav_set, undisturbed, before, after, done):
    first = ranks(sav_set, before)
    consumed = [*islice(steps(first), done)]
    assert len({str(stream.position) for stream in first}) == 1
    assert first[0].position == {"dual": {"epoch": 0, "samples": 4 * done}}
    assert [*consumed, *islice(steps(ranks(sav_set, after, first[0].position)), 8 - done)] == undisturbed


@pytest.mark.parametrize("shape", [(1, 1, 5), (1, 5, 1), (5, 1, 1)])
def test_no_step_mixes_two_epochs(sav_set, shape):
    """12 samples give 2 steps of 5; the other 2 are left out."""
    streams = ranks(sav_set, shape)
    taken = [*islice(steps(streams), 5)]
    assert all(len(set(step)) == 5 for step in taken)
    assert not set(taken[0]) & set(taken[1]) and not set(taken[2]) & set(taken[3])
    assert streams[0].position == {"dual": {"epoch": 2, "samples": 5}}


def test_prefetched_batches_do_not_advance_the_position(sav_set):
    stream = ranks(sav_set, (1, 1, 2))[0]
    batches = stream.step()
    next(batches)
    assert stream.position == {"dual": {"epoch": 0, "samples": 0}}  # the first batch is being trained on
    assert len([*batches]) == 1
    assert stream.position == {"dual": {"epoch": 0, "samples": 2}}
