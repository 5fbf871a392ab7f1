"""Questions and answers as the dataset wrote them."""

from tests.trainer.conversations.samples import check, make, sample, written

LATER = {"question": "And <image>?", "answer": "[SEG]"}


def test_the_picture_stands_at_its_place_in_the_first_question():
    of = sample({"turns": [{"question": "Look:\nwhat is it?", "answer": "A cat.", "picture": 6}, LATER]})
    (row,), notes = make(of)
    check(row, of)
    assert written(row) == [("Look:\n«<image>»what is it?", "A cat."), ("And <image>?", "[SEG]")]
    assert row.turns[1].question == ("And <image>?",) and row.turns[1].answer == ("[SEG]",)
    assert row.kind == "chat" and row.frames == (0,) and notes == {"turns of chat": 2}


def test_the_picture_stands_at_either_end():
    for place, wanted in ((0, "«<image>»\nWhat?"), (6, "\nWhat?«<image>»")):
        (row,), _ = make(sample({"turns": [{"question": "\nWhat?", "answer": "x", "picture": place}]}))
        assert written(row)[0][0] == wanted


def test_a_video_stands_in_front_on_a_line_of_its_own_and_shows_a_frame_of_each_part():
    of = sample({"turns": [{"question": "What?", "answer": "Rain."}]}, frames=16)
    frames = set()
    for epoch in range(40):
        (row,), _ = make(of, epoch, frames=5)
        assert written(row) == [("«<image>»\nWhat?", "Rain.")]
        for frame, (start, end) in zip(row.frames, [(0, 3), (3, 6), (6, 9), (9, 12), (12, 16)], strict=True):
            assert start <= frame < end
        frames |= {*row.frames}
    assert frames == {*range(16)}
    assert make(sample(of.meta, frames=4), frames=5)[0][0].frames == (0, 1, 2, 3)


def test_a_text_has_no_picture():
    of = sample({"turns": [{"question": "2 + 2?", "answer": "4"}]}, frames=0)
    (row,), _ = make(of)
    check(row, of)
    assert row.frames == () and written(row) == [("2 + 2?", "4")]
