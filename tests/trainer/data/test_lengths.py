"""Samples of like length in one step."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from shards.manifest import INDEX_DTYPE
from tests.pipeline.built import through  # noqa: F401
from trainer.conversations.options import ConversationOptions
from trainer.data.lengths import expected_tokens, group_by_length


@pytest.mark.parametrize("per_step", [1, 4, 7])
def test_steps_hold_samples_of_like_length_in_random_order(per_step):
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 2000, 3000)
    windows = np.arange(3000) // 1100
    order = np.arange(3000)
    grouped = group_by_length(order, windows, lengths, per_step, 5)
    assert np.array_equal(np.sort(grouped), order)
    steps = 3000 // per_step
    assert np.array_equal(grouped[steps * per_step :], order[steps * per_step :])
    assert np.array_equal(grouped, group_by_length(order, windows, lengths, per_step, 5))
    assert np.abs(windows[grouped] - windows).max() == 0 or per_step == 7  # a step across two windows is its own
    if per_step == 1:
        return
    inside = lengths[grouped[: steps * per_step]].reshape(steps, per_step)
    before = lengths[: steps * per_step].reshape(steps, per_step)
    assert np.ptp(inside, axis=1).mean() < 0.1 * np.ptp(before, axis=1).mean()
    means = inside.mean(1)
    assert abs(np.corrcoef(means, np.arange(steps))[0, 1]) < 0.15
    assert abs(means[: steps // 2].mean() - means[steps // 2 :].mean()) < 0.1 * means.mean()


def test_tokens_are_expected_from_the_index():
    index = np.zeros(5, INDEX_DTYPE)
    index["frames"] = [0, 1, 1, 6, 1]
    index["letters"] = [400, 0, 90, 60, 10**6]
    index["texts"] = [0, 0, 3, 1, 0]
    options = ConversationOptions(phrases=2, frames=5, max_row_tokens=8000)
    found = [100, 259, 259 + 2 * (40 + 7), 5 * 259 + 40 + 15, 8000]
    assert expected_tokens(SimpleNamespace(index=index), options).tolist() == found
    drawn = expected_tokens(SimpleNamespace(index=index), replace(options, with_replacement=True))
    assert drawn.tolist() == [*found[:3], 5 * 259 + 2 * (40 + 15), found[4]]
    older = index[["key", "texts"]]
    assert expected_tokens(SimpleNamespace(index=older), options).tolist() == [259, 259, 339, 299, 259]
