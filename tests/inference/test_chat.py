"""A conversation: earlier turns, what is kept between them, streamed answers, phrases with masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import DynamicCache, Qwen2Config

from inference.chat import Reply, _cropped, text_so_far
from inference.predictor import Predictor
from pipeline import resize
from shards.errors import UserError
from tests.inference.test_predictor import differing, spy
from trainer.model.prompts import Prompts
from trainer.model.sa2va import Sa2VA
from trainer.model.tokenizer import byte_tokenizer
from trainer.released.loaded import LoadedModel

PICTURE = "<img>" + "<IMG_CONTEXT>" * 256 + "</img>"
BEFORE, AFTER, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"


def greedy(model: Sa2VA, said: str, visual: torch.Tensor, count: int) -> tuple[list[int], torch.Tensor]:
    """Answer a text by whole passes, without any cache; `visual` (n, D) takes the places of pictures and regions.

    Returns:
        The tokens, and the states (n, D) at `[SEG]`.
    """
    asked = model.prompts.encode(said)
    ids: list[int] = []
    while True:
        all_ids = torch.tensor([asked + ids])
        embeddings = model.embedding(all_ids)
        places = (all_ids == model.prompts.context) & (torch.arange(all_ids.shape[1]) < len(asked))
        embeddings[places] = visual
        length = all_ids.shape[1]
        ones = torch.ones(1, length, dtype=torch.int64)
        states = model.run_language_model(embeddings, ones, torch.arange(length)[None])[0]
        if len(ids) == count or ids[-1:] == model.prompts.end_ids:
            places = [len(asked) + n for n, token in enumerate(ids) if token == model.prompts.seg]
            return ids, states[places]
        ids.append(int(model.language_model.lm_head(states[-1]).argmax()))


def write(monkeypatch: pytest.MonkeyPatch, model: Sa2VA, answers: Sequence[str | list[int]]) -> None:
    """Let the model write these answers, each with its end mark, whatever its states are."""
    written = [model.prompts.encode(answer) if isinstance(answer, str) else answer for answer in answers]
    tokens = iter([token for answer in written for token in answer + model.prompts.end_ids])
    vocabulary = len(model.language_model.lm_head.weight)

    def forward(states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(tokens)]), vocabulary).float()

    monkeypatch.setattr(model.language_model.lm_head, "forward", forward)


def test_turns_are_those_of_a_model_that_reads_everything_again(talker: Sa2VA, photos):
    """Questions, regions and answers are written out by hand; all is computed without a cache."""
    model = talker
    photo = photos[0][:, :200].copy()
    region = np.zeros((1, *photo.shape[:2]), bool)
    region[0, :150, 50:] = True
    predictor = Predictor(LoadedModel(model), max_new_tokens=3)
    chat = predictor.chat(photo)
    questions = [("Please segment the cat.", None), ("And?", None), ("What is region1?", region), ("Why?", None)]
    replies = [chat.ask(text, mask) for text, mask in questions]
    assert [question for question, _ in chat.turns] == [text for text, _ in questions]
    pixels = torch.from_numpy(resize.picture(photo, 448, predictor.recipe))[None]
    visual = model.mlp1(model.encode_image(predictor._normalise(pixels)))[0]
    cells = resize.prompt_cells(region[0], "corner", predictor.recipe)
    of_region = visual[torch.from_numpy(cells.ravel())]
    sentence = f"\nThere are 1 part regions in the picture: region1<vp>{'<IMG_CONTEXT>' * cells.sum()}</vp>.\n"
    features = model.encode_sam(torch.from_numpy(resize.picture(photo, 1024, predictor.recipe))[None])
    turns = ""
    for number, ((text, _), reply) in enumerate(zip(questions, replies, strict=True)):
        shown, known = (PICTURE + "\n", visual) if number < 2 else (PICTURE + sentence, torch.cat([visual, of_region]))
        turns += f"{BEFORE if number else ''}{text}{AFTER}"
        ids, states = greedy(model, f"{BEFORE}{shown}{turns}", known, 3)
        assert reply.text == model.prompts.answer(ids)
        assert len(reply.masks) == len(states) == ids.count(model.prompts.seg) > 0
        assert differing(reply.masks, predictor.decode_masks(features, states, *photo.shape[:2])) < 1e-4
        assert reply.tokens == len(model.prompts.encode(f"{BEFORE}{shown}{turns}"))
        turns += f"{reply.text}{END}\n"
    # A question with new regions keeps what is in front of them; another one all that was read, the last [SEG] too.
    picture = model.prompts.encode(f"{BEFORE}{PICTURE}\n")
    read = [reply.tokens + len(model.prompts.encode(reply.text)) for reply in replies]
    assert [reply.reused for reply in replies] == [0, read[0], len(picture), read[2]]


def test_an_answer_that_becomes_other_tokens_is_read_again(talker: Sa2VA, photos, monkeypatch):
    letters = byte_tokenizer().get_vocab()
    byte = letters["ÿ"]  # 255, which is no UTF-8
    write(monkeypatch, talker, [[65, byte, 66], [65]])
    chat = Predictor(LoadedModel(talker)).chat(photos[1])
    first = chat.ask("Who?")
    assert first.text == talker.prompts.decode([65]) + "\N{REPLACEMENT CHARACTER}" + talker.prompts.decode([66])
    assert chat.ask("And?").reused == first.tokens + 1


def test_a_picture_is_encoded_once_for_all_turns_and_regions(talker: Sa2VA, photos, monkeypatch):
    predictor = Predictor(LoadedModel(talker), max_new_tokens=2, most_tiles=4)
    vision = spy(monkeypatch, talker, "encode_image")
    sam = spy(monkeypatch, talker.grounding_encoder, "encode_maps")
    chat = predictor.chat(photos[0])
    assert not vision and not sam
    region = chat.region_at(box=(90, 50, 300, 200))
    replies = [chat.ask("Please segment the cat."), chat.ask("What is region1?", region[None]), chat.ask("Where?")]
    assert all(len(reply.masks) == 2 for reply in replies)
    assert len(vision) == 1 and len(sam) == 1
    assert chat.regions == 1


def test_phrases_come_with_their_masks(talker: Sa2VA, photos, monkeypatch):
    write(monkeypatch, talker, ["<p> A cat </p> [SEG] [SEG] on <p>a mat</p>, and [SEG].", "No."])
    chat = Predictor(LoadedModel(talker)).chat(photos[1][:100])
    reply = chat.ask("What is this?")
    assert reply.text == "<p> A cat </p> [SEG] [SEG] on <p>a mat</p>, and [SEG]."
    assert reply.plain == "A cat on a mat, and."
    assert [(phrase.text, phrase.start, phrase.end) for phrase in reply.phrases] == [
        ("A cat", 0, 5),
        ("a mat", 9, 14),
        ("", 19, 19),
    ]
    cat, mat, other = (phrase.masks for phrase in reply.phrases)
    assert cat.shape == (2, 100, 300) and mat.shape == (0, 100, 300) and other.shape == (1, 100, 300)
    assert np.array_equal(np.concatenate([cat, mat, other]), reply.masks)
    assert chat.ask("A dog?").masks.shape == (0, 100, 300)


@pytest.mark.parametrize("kept", [30, 60])
def test_a_window_that_slides_is_read_again(kept: int):
    """A layer with a window forgets: the cache serves a conversation that goes on, and none that goes back."""
    config = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    cache = DynamicCache(config=config)
    for layer in range(2):
        cache.update(torch.zeros(1, 1, 60, 4), torch.zeros(1, 1, 60, 4), layer)
    assert _cropped(cache, kept) is (kept == 60)


def test_an_answer_grows_without_half_a_character(talker: Sa2VA, photos, monkeypatch):
    answer = "<p>naïve 犬</p> [SEG] 🐕 !"
    write(monkeypatch, talker, [f"  {answer} "])
    parts = list(Predictor(LoadedModel(talker)).chat(photos[1]).stream("Who?"))
    *shown, reply = parts
    assert isinstance(reply, Reply) and reply.text == answer and len(reply.masks) == 1
    # One token is a byte or a mark: each character and each mark appears by itself, blanks with what follows them.
    letters = ["<p>", *"naïve", " 犬", "</p>", " [SEG]", " 🐕", " !"]
    assert shown == ["".join(letters[: n + 1]) for n in range(len(letters))]


def test_an_end_mark_in_letters_is_never_shown():
    prompts = Prompts(byte_tokenizer(), "phi3_chat", vocabulary=272)
    whole = "a < b<|end|>"
    ids = prompts.encode(whole)
    shown = [text_so_far(prompts, ids[:n]) for n in range(len(ids) + 1)]
    assert shown == ["", *["a"] * 4, *["a < b"] * 8]
    assert prompts.answer(ids) == "a < b"


def test_a_closed_iterator_stops_the_generation(talker: Sa2VA, photos, monkeypatch):
    predictor = Predictor(LoadedModel(talker), max_new_tokens=8)
    chat = predictor.chat(photos[1])
    chat.ask("Where?")
    expected = chat.ask("And?")
    other = predictor.chat(photos[1])
    other.ask("Where?")
    passes = spy(monkeypatch, talker, "run_language_model")
    stopped = other.stream("Something else?", np.ones((1, *photos[1].shape[:2]), bool))
    assert next(stopped) and torch.is_grad_enabled()
    stopped.close()
    assert len(passes) == 1 and len(other.turns) == 1 and other.regions == 0
    left = other.stream("Another?")  # closed by the next question
    next(left)
    found = other.ask("And?")
    assert list(left) == [] and [question for question, _ in other.turns] == ["Where?", "And?"]
    assert found.text == expected.text and differing(found.masks, expected.masks) < 1e-4
    assert found.reused > expected.reused > 0  # of the question that was stopped, too


def test_an_error_in_the_middle_leaves_the_conversation_as_it_was(talker: Sa2VA, photos, monkeypatch):
    chat = Predictor(LoadedModel(talker), max_new_tokens=3).chat(photos[1])
    chat.ask("Where?")

    def fail(token: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(talker.embedding, "forward", fail)
        with pytest.raises(MemoryError):
            chat.ask("And?")
    reply = chat.ask("And?")
    assert len(chat.turns) == 2 and reply.reused == 0


@pytest.mark.slow
def test_a_video_is_followed_after_each_question(talker: Sa2VA, photos, monkeypatch):
    predictor = Predictor(LoadedModel(talker), max_new_tokens=2)
    frames = [photos[0][:100, :150], photos[0][100:200, :150]]
    vision = spy(monkeypatch, talker, "encode_image")
    chat = predictor.chat(np.stack(frames), name="cat.mp4")
    first = chat.ask("Where is the cat?")
    second = chat.ask("And?")
    assert len(vision) == 1 and vision[0][0].shape[0] == 2
    expected = predictor.track(frames, "Where is the cat?")
    assert first.text == expected.text and first.track.objects == expected.objects == 2
    assert first.masks.shape == (0, 0, 0) and [phrase.numbers for phrase in first.phrases] == [range(1), range(1, 2)]
    for found, wanted in zip(first.track.masks, expected.masks, strict=True):
        assert differing(found, wanted) < 1e-4
    assert next(second.track.masks).shape == (2, 100, 150) and second.reused > 2 * 258
    with pytest.raises(UserError, match=r"cat\.mp4: regions belong to a picture"):
        chat.ask("What is region1?", np.ones((1, 100, 150), bool))


def test_what_cannot_be_asked_is_one_line(predictor: Predictor, photos, monkeypatch):
    with pytest.raises(UserError, match="a: no frames"):
        predictor.chat([], "a")
    with pytest.raises(UserError, match="a: no picture"):
        predictor.chat(np.zeros((4, 4), np.uint8), "a")
    chat = predictor.chat(photos[1], "a.png")
    for empty in ("", " \n", "<image>\n"):
        with pytest.raises(UserError, match=r"a\.png: an empty question"):
            chat.stream(empty)  # at once, without iterating
    with pytest.raises(UserError, match=r"a\.png: regions that do not fit the picture; met bool \(1, 3, 4\)"):
        chat.ask("region1?", np.ones((1, 3, 4), bool))
    assert chat.ask("<image> where?").text
    with pytest.raises(UserError, match=r"a\.png: a conversation has one picture, in its first question"):
        chat.ask("<image> and here?")
    assert len(chat.turns) == 1
    config = predictor.model.language_model.config
    monkeypatch.setattr(config, "max_position_embeddings", chat.turns[0][1].tokens + 50)
    short = chat.ask("And?")
    assert 0 < short.text.count("[SEG]") <= 4
    with pytest.raises(UserError, match=r"longer than the language model's context.*met 3\d\d tokens in 3 questions"):
        chat.ask("And there?")
    assert chat.context == chat.turns[0][1].tokens + 50 and len(chat.turns) == 2
