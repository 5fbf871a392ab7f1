"""The demo's videos and captions say what their pictures show."""

import numpy as np

from demo import make_conversations
from demo.make_sav import SCENES, SIZE
from tests.pipeline.built import Found

EVERY = [name for name, things in SCENES.items() for _ in things]


def test_the_expressions_of_a_video_name_what_moves_in_it(tmp_path):
    make_conversations.write_videos(tmp_path / "raw", 5, seed=3)
    found = Found("mevis", tmp_path / "raw", tmp_path, frames=4)
    assert len(found.paths) == 5
    for name, path in zip(EVERY, found.paths, strict=False):
        sample = found.load(path)
        alone = {one["objects"][0]: one["text"] for one in sample.more["expressions"] if len(one["objects"]) == 1}
        both = [one["text"] for one in sample.more["expressions"] if len(one["objects"]) == 2]
        assert {*alone.values()} <= {*SCENES[name]} and [item.texts for item in sample.objects] == [
            (text,) for text in alone.values()
        ]
        assert both == [" and ".join([*alone.values()][:2])] * (len(alone) > 1)
        shown = [[np.asarray(mask) for mask in frame.masks] for frame in sample.frames]
        assert len(shown) == 4 and all(mask.shape == (SIZE, SIZE) and mask.any() for frame in shown for mask in frame)
        assert all((first != last).any() for first, last in zip(shown[0], shown[3], strict=True))


def test_a_caption_names_the_objects_of_its_picture(tmp_path):
    make_conversations.write_captions(tmp_path / "raw", 4, seed=3)
    found = Found("gcg-grandf", tmp_path / "raw", tmp_path)
    for name, path in zip(EVERY, found.paths, strict=False):
        sample = found.load(path)
        (caption,) = sample.more["captions"]
        words = [phrase["text"] for phrase in caption["phrases"]]
        assert " and ".join(words) == caption["text"] and {*words} <= {*SCENES[name]}
        texts = {item.id: item.texts for item in sample.objects}
        assert [texts[phrase["objects"][0]] for phrase in caption["phrases"]] == [(word,) for word in words]
        assert all(np.asarray(mask).any() for mask in sample.frames[0].masks)
