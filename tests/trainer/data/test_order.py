"""Which samples an epoch takes: fractions of a source, exact over epochs."""

from collections import Counter
from fractions import Fraction
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from shards.select import split
from tests.batches import make_loader
from trainer.data.order import SampleOrder, entries_of

OPTIONS = {"fields": ("prompt_masks1",), "batch_size": 1, "seed": 7}


@pytest.mark.parametrize("repeats, cycle, times", [(0.1, 10, 1), (0.3, 10, 3), (2.5, 2, 5), (1 / 3, 3, 1)])
def test_each_sample_comes_exactly_as_often_as_its_share_over_the_epochs(sav_set, repeats, cycle, times):
    loads = make_loader([sav_set], **OPTIONS, repeats={"sav": repeats})
    epochs = [[loads._order.locate(p)[1] for p in loads.order(epoch).tolist()] for epoch in range(2 * cycle + 3)]
    for begin in (0, 3, cycle):
        counted = Counter(chain(*epochs[begin : begin + cycle]))
        assert counted == dict.fromkeys(range(12), times)
    sizes = {len(epoch) for epoch in epochs}
    assert {int(12 * repeats), -int(-12 * repeats // 1)} >= sizes and len(loads._order) == min(sizes)
    assert repeats > 1 or len({tuple(epoch) for epoch in epochs if epoch}) > 1


@pytest.mark.parametrize("repeats", [0.3, 2.5, 3])
def test_visits_of_a_sample_are_counted_without_gaps(small_set, repeats):
    loads = make_loader([small_set], **OPTIONS, repeats={"sav": repeats})
    visits: dict[int, list[int]] = {}
    for epoch in range(10):
        for position in sorted(loads.order(epoch).tolist()):  # copies of a sample in their order
            visits.setdefault(loads._order.locate(position)[1], []).append(loads._order.visits(position, epoch))
    assert len(visits) == 8 and all(found == [*range(len(found))] for found in visits.values())


def test_a_fraction_is_resumed_and_shared_by_processes(small_set):
    def keys(rank: int = 0, world: int = 1, epoch: int = 1, consumed: int = 0) -> list[str]:
        loads = make_loader([small_set], **OPTIONS, repeats={"sav": 1.5}, rank=rank, world_size=world)
        return [key for batch in loads.epoch(epoch, consumed) for key in batch.keys]

    whole = keys()
    assert len(whole) == 12 and Counter(Counter(whole).values()) == {1: 4, 2: 4}
    assert keys(consumed=5) == whole[5:]
    both = [keys(rank, 2) for rank in range(2)]
    assert [*chain(*zip(*both, strict=True))] == whole
    loads = make_loader([small_set], **OPTIONS, repeats={"sav": 1.5})
    copies = [(batch.keys[0], batch.copies[0]) for batch in loads.epoch(1)]
    assert Counter(copies) == Counter((key, copy) for key, times in Counter(whole).items() for copy in range(times))


def test_a_fraction_takes_whole_tars_where_there_are_many():
    """A tenth of 1,280 tars of ten samples is two windows of 64 tars, not a sample of each tar."""
    index = np.zeros(12_800, [("shard", "<u4"), ("texts", "<u4")])
    index["shard"] = np.repeat(np.arange(1280), 10)

    class Many:
        manifest = SimpleNamespace(shards=[None] * 1280)

        def __len__(self) -> int:
            return len(self.index)

    many = Many()
    many.index = index
    [entry] = entries_of(many, np.zeros(12_800, bool), 0.1)
    assert entry.share == Fraction(1, 10) and entry.whole == 0
    order = SampleOrder([entry], "train", None, 3)
    for epoch in range(10):
        positions = order.epoch(epoch)
        assert len(positions) == 1280 and len(np.unique(positions // 10)) <= 3 * 64
    assert len(np.unique(np.concatenate([order.epoch(epoch) for epoch in range(10)]))) == 12_800


def test_a_limit_takes_held_out_samples_of_all_sets_in_turn(sav_set, small_set):
    """8 and 12 samples of which all are held out; three of each set, then the rest of what a small one leaves."""
    sets = [small_set, sav_set]
    of_both = {"part": "holdout", "holdout": 1.0, "holdout_by": "sample"}
    for limit, numbers in ((6, [[0, 1, 2], [0, 1, 2]]), (5, [[0, 1, 2], [0, 1]]), (18, [[*range(8)], [*range(10)]])):
        loads = make_loader(sets, **OPTIONS, **of_both, limit=limit)
        found = [loads._order.locate(position) for position in loads.order(0).tolist()]
        assert [[number for entry, number in found if str(entry.shards.folder) == str(one)] for one in sets] == numbers


@pytest.mark.parametrize("repeats, epochs, times", [(2, 1, 2), (0.5, 2, 1)])
def test_two_sets_of_one_source_are_one_source(sav_set, tmp_path, repeats, epochs, times):
    split(sav_set, tmp_path, 0.5, "sample", 10**9)
    loads = make_loader([tmp_path / "sav-train", tmp_path / "sav-val"], **OPTIONS, repeats={"sav": repeats})
    places = [loads._order.locate(place) for epoch in range(epochs) for place in loads.order(epoch).tolist()]
    counted = Counter(entry.shards.key(number) for entry, number in places)
    assert [*counted.values()] == [times] * 12
