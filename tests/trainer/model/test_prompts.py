"""Questions and answers as Sa2VA writes them, and the byte-level tokenizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from shards.errors import UserError
from tests.trainer.model.tokenizers_built import beginning_tokenizer, merging_tokenizer
from trainer.conversations.conversation import Conversation, Mark, Target, Turn
from trainer.model.prompts import SEGMENT, SEGMENT_ANSWERS, Prompts, description_question, normalise_phrase
from trainer.model.rows import IGNORE, TokenRow
from trainer.model.tokenizer import ADDED, byte_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(byte_tokenizer(), "qwen_chat", vocabulary=272)


def text(prompts: Prompts, ids: list[int]) -> str:
    return prompts.decode(ids)


@pytest.mark.parametrize("written", ["a dog", "naïve café\n\t", "犬 🐕", "  two  spaces ", "<|im_sta"])
def test_any_text_survives_the_byte_tokenizer(prompts: Prompts, written: str):
    ids = prompts.encode(written)
    assert len(ids) == len(written.encode())
    assert prompts.decode(ids) == written


def test_special_tokens_are_one_token_each_and_not_text(prompts: Prompts):
    marks = [*ADDED, "<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    ids = [prompts.encode(mark) for mark in marks]
    assert all(len(i) == 1 for i in ids) and len({i[0] for i in ids}) == len(marks)
    assert not prompts.ordinary[[i[0] for i in ids]].any()
    assert prompts.ordinary.sum() == 256
    added = [prompts.encode(mark)[0] for mark in ADDED]
    assert added == list(range(added[0], added[0] + 5))  # in this order


def test_a_description_question(prompts: Prompts):
    row = prompts.describe("k", [3], answer=[5, 6], targets=[7, 8])
    picture = "<img>" + "<IMG_CONTEXT>" * 256 + "</img>"
    cells = "<IMG_CONTEXT>" * 3
    asked = (
        f"<|im_start|>user\n{picture}\nThere are 1 part regions in the picture: region1<vp>{cells}</vp>.\n"
        "Please generate a detailed description for the given image region.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text(prompts, row.ids[:-2]) == asked
    assert row.ids[-2:] == [5, 6] and row.labels[-2:] == [7, 8]
    assert set(row.labels[:-2]) == {IGNORE}


def test_several_regions_are_named(prompts: Prompts):
    asked = text(prompts, prompts.describe("k", [1, 2]).ids)
    one = "<IMG_CONTEXT>"
    two = "<IMG_CONTEXT>" * 2
    assert f"There are 2 part regions in the picture: region1<vp>{one}</vp>, region2<vp>{two}</vp>.\n" in asked
    assert "region1, region2" in asked


@pytest.mark.parametrize("question", range(len(SEGMENT)))
@pytest.mark.parametrize("answer", range(len(SEGMENT_ANSWERS)))
def test_a_segmentation_question_and_its_answer(prompts: Prompts, question: int, answer: int):
    row = prompts.segment("k", " The Dog on the LEFT. ", question, answer)
    written = text(prompts, row.ids)
    assert SEGMENT[question].format(phrase="the dog on the left") + "<|im_end|>\n<|im_start|>assistant\n" in written
    assert written.endswith(SEGMENT_ANSWERS[answer] + "<|im_end|>")
    trained = [token for token in row.labels if token != IGNORE]
    assert text(prompts, trained) == SEGMENT_ANSWERS[answer] + "<|im_end|>"
    assert row.ids.count(prompts.seg) == 1 and not any(row.replaced)


def test_a_phrase_that_is_a_question_is_not_reworded(prompts: Prompts):
    written = text(prompts, prompts.segment("k", "Which cat is Asleep?").ids)
    assert "</img>\nWhich cat is Asleep?<|im_end|>" in written


def test_a_phrase_of_tokens_takes_the_place_of_its_text(prompts: Prompts):
    words = prompts.encode("a cup")
    row = prompts.segment("k", words, question=1)
    assert row.ids == prompts.segment("k", "a cup", question=1).ids
    assert [i for i, replaced in zip(row.ids, row.replaced, strict=True) if replaced] == words


def test_one_full_stop_is_removed_from_a_phrase():
    assert [normalise_phrase(p) for p in ("A.", "a..", " b ")] == ["a", "a.", "b"]


def test_padding_has_no_attention_and_no_position(prompts: Prompts):
    rows = [prompts.segment("k", "a"), prompts.segment("l", "a long phrase")]
    length = len(rows[1].ids)
    right = prompts.padded(rows, CPU)
    left = prompts.padded(rows, CPU, left=True)
    assert right.ids.shape == left.ids.shape == (2, length)
    short = len(rows[0].ids)
    assert right.attention[0].tolist() == [1] * short + [0] * (length - short)
    assert left.attention[0].tolist() == [0] * (length - short) + [1] * short
    assert right.positions[0, :short].tolist() == left.positions[0, -short:].tolist() == list(range(short))


def test_places_are_those_of_the_tokens_padded_or_packed(prompts: Prompts):
    rows = [prompts.segment("k", [70, 71, 72]), prompts.describe("l", [2], [65, 66, 67])]
    whole = TokenRow("m", [68, prompts.seg, 69], [7, 8, 9], [False] * 3)  # nothing comes before the first label
    rows.append(whole)
    lengths = [len(row.ids) for row in rows]
    for laid in (prompts.padded(rows, CPU), prompts.padded(rows, CPU, left=True), prompts.packed(rows, CPU)):
        ids = laid.ids.flatten()
        assert ids[laid.replaced].tolist() == [70, 71, 72]
        assert (ids[laid.contexts] == prompts.context).all()
        assert laid.contexts_per_row == [256, 258, 0] and len(laid.contexts) == 514
        assert ids[laid.segs].tolist() == [prompts.seg] * 2
        labels = [[label for label in row.labels[1:] if label != IGNORE] for row in rows]
        assert laid.labels.tolist() == [label for of_row in labels for label in of_row]
        assert laid.row_of_label.tolist() == [n for n, of_row in enumerate(labels) for _ in of_row]
        assert ids[laid.before_labels + 1].tolist()[-5:] == [65, 66, 67, prompts.seg, 69]
        assert laid.positions.flatten()[laid.before_labels].tolist()[-2:] == [0, 1]
    assert laid.ids.shape == (1, sum(lengths)) and laid.ids[0].tolist() == [i for row in rows for i in row.ids]
    assert laid.positions[0].tolist() == [n for length in lengths for n in range(length)]
    assert laid.attention.each == tuple(lengths)
    assert laid.attention.bounds.tolist() == [0, lengths[0], sum(lengths[:2]), sum(lengths)]


def test_a_tokenizer_without_the_tokens_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(UserError, match=r"lacks a token.*\[SEG\]"):
        Prompts(bare, "qwen_chat", 10)
    with pytest.raises(UserError, match="unknown chat template"):
        Prompts(byte_tokenizer(), "vicuna", 272)


def test_a_question_in_a_users_words(prompts: Prompts):
    picture = "<img>" + "<IMG_CONTEXT>" * 256 + "</img>"
    before = "<|im_start|>user\n"
    after = "<|im_end|>\n<|im_start|>assistant\n"
    assert text(prompts, prompts.ask("k", "Where is it?").ids) == f"{before}{picture}\nWhere is it?{after}"
    assert text(prompts, prompts.ask("k", "<image>Where?").ids) == f"{before}{picture}Where?{after}"
    assert text(prompts, prompts.ask("k", "In <image> where?").ids) == f"{before}In {picture} where?{after}"
    tiles = "<img>" + "<IMG_CONTEXT>" * (256 * 13) + "</img>"
    assert text(prompts, prompts.ask("k", "Where?", tiles=13).ids) == f"{before}{tiles}\nWhere?{after}"
    frames = f"{picture}\n{picture}\n{picture}"
    assert text(prompts, prompts.ask("k", "Where?", frames=3).ids) == f"{before}{frames}\nWhere?{after}"
    with pytest.raises(UserError, match=r"sample k: a question has one picture.*met 2 <image>"):
        prompts.ask("k", "<image> and <image>")


@pytest.mark.parametrize("cells", [[3], [1, 5]])
def test_a_region_question_with_the_training_text_equals_describe(prompts: Prompts, cells: list[int]):
    assert prompts.ask("k", description_question(len(cells)), cells=cells).ids == prompts.describe("k", cells).ids


def test_every_row_starts_with_the_tokenizers_prefix():
    prompts = Prompts(beginning_tokenizer(), "internlm2_chat", 300)
    bare = Prompts(byte_tokenizer(), "internlm2_chat", 300)
    bos = beginning_tokenizer().convert_tokens_to_ids("<s>")
    assert prompts.start == [bos] and bare.start == []
    for ask in (
        lambda p: p.ask("k", "Where?"),
        lambda p: p.describe("k", [2], [65]),
        lambda p: p.segment("k", "a dog"),
        lambda p: p.segment("k", [65, 66]),
    ):
        row = ask(prompts)
        plain = ask(bare)
        assert row.ids == [bos, *plain.ids]
        assert row.labels == [IGNORE, *plain.labels] and row.replaced == [False, *plain.replaced]


def test_phi3s_template():
    prompts = Prompts(byte_tokenizer(), "phi3_chat", vocabulary=272)
    asked = text(prompts, prompts.ask("k", "<image>?").ids)
    assert asked.startswith("<|user|>\n<img>") and asked.endswith("</img>?<|end|>\n<|assistant|>\n")
    assert prompts.end_ids == prompts.encode("<|end|>") and len(prompts.end_ids) > 1


PICTURE = "<img>" + "<IMG_CONTEXT>" * 256 + "</img>"
SEG, PICTURES, REGION = Mark.SEG, Mark.PICTURES, Mark.REGION
START, END = Mark.PHRASE_START, Mark.PHRASE_END
CONVERSATIONS: dict[str, tuple[Conversation, list[int], list[tuple[str, str]]]] = {
    "referring": (
        Conversation(
            "referring",
            (
                Turn((PICTURES, "\nCan you segment the dog in this image?"), ("Sure, it is ", SEG, ".")),
                Turn(("Please segment the cup in this image.",), (SEG, ".")),
            ),
            frames=(0,),
            targets=(Target((0,), "the dog"), Target((1, 2), "the cup")),
        ),
        [],
        [
            (f"{PICTURE}\nCan you segment the dog in this image?", "Sure, it is [SEG]."),
            ("Please segment the cup in this image.", "[SEG]."),
        ],
    ),
    "referring video": (
        Conversation(
            "referring",
            (
                Turn((PICTURES, "\nWho runs?"), ("It is ", SEG, ".")),
                Turn(("Please segment the white helmet in this image.",), ("Sure, ", SEG, ".")),
            ),
            frames=(0, 2, 2, 5, 7),
            targets=(Target((0,), "Who runs?"), Target((), "the white helmet")),
        ),
        [],
        [
            (f"{PICTURE}\n{PICTURE}\n{PICTURE}\n{PICTURE}\n{PICTURE}\nWho runs?", "It is [SEG]."),
            ("Please segment the white helmet in this image.", "Sure, [SEG]."),
        ],
    ),
    "grounded caption": (
        Conversation(
            "grounded_caption",
            (
                Turn(
                    (PICTURES, "\nCould you describe it?"),
                    ("A ", START, " red cup ", END, " ", SEG, " near ", START, " dogs ", END, " ", SEG),
                ),
            ),
            frames=(0,),
            targets=(Target((0,), "red cup"), Target((1,), "dogs")),
        ),
        [],
        [(f"{PICTURE}\nCould you describe it?", "A <p> red cup </p> [SEG] near <p> dogs </p> [SEG]")],
    ),
    "regions": (
        Conversation(
            "regions",
            (
                Turn(
                    (
                        *(PICTURES, "\nThere are 2 part regions in the picture: region1", REGION, ", region2", REGION),
                        ".\nWhat is region1?  ",
                    ),
                    (" A dog.\n",),
                ),
                Turn((" And region2?",), ("A cup.",)),
            ),
            frames=(3,),
            regions=(4, 1),
        ),
        [3, 7],
        [
            (
                f"{PICTURE}\nThere are 2 part regions in the picture: region1<vp>{'<IMG_CONTEXT>' * 3}</vp>, "
                f"region2<vp>{'<IMG_CONTEXT>' * 7}</vp>.\nWhat is region1?",
                "A dog.",
            ),
            (" And region2?", "A cup."),
        ],
    ),
    "chat about a picture": (
        Conversation(
            "chat",
            (Turn((" What is this? ", PICTURES), ("Caf\u00e9.",)), Turn(("\nSure?",), ("\t Yes ",))),
            frames=(0,),
        ),
        [],
        [(f"What is this? {PICTURE}", "Caf\u00e9."), ("\nSure?", "Yes")],
    ),
    "text alone": (
        Conversation("chat", (Turn((" Hello ",), ("Hi.", " You?")), Turn(("Fine",), ("",)))),
        [],
        [(" Hello ", "Hi. You?"), ("Fine", "")],
    ),
}
"""By family: a conversation, the cells of its regions, and its turns as Sa2VA's own training writes them."""
CHATS = {
    "qwen_chat": ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "internlm2_chat": ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "phi3_chat": ("<|user|>\n{}<|end|>\n<|assistant|>\n", "<|end|>"),
}


def expected_row(
    tokenizer: PreTrainedTokenizerBase, template: str, turns: list[tuple[str, str]], start: list[int]
) -> tuple[list[int], list[int]]:
    """Ids and labels, piece by piece from the tokenizer itself."""
    question_format, end = CHATS[template]
    ids = list(start)
    labels = [-100] * len(start)
    for question, answer in turns:
        for piece, trained in ((question_format.format(question), False), (answer + end, True), ("\n", False)):
            tokens = tokenizer(piece, add_special_tokens=False).input_ids
            ids += tokens
            labels += tokens if trained else [-100] * len(tokens)
    return ids, labels


@pytest.mark.parametrize(
    ("template", "tokenizer"),
    [("qwen_chat", merging_tokenizer), ("internlm2_chat", beginning_tokenizer), ("phi3_chat", merging_tokenizer)],
)
@pytest.mark.parametrize("family", CONVERSATIONS)
def test_a_conversation_is_encoded_piece_by_piece(template, tokenizer, family):
    conversation, cells, turns = CONVERSATIONS[family]
    prompts = Prompts(tokenizer(), template, 600)
    row = prompts.conversation("k", conversation, cells)
    start = [tokenizer().convert_tokens_to_ids("<s>")] if template == "internlm2_chat" else []
    assert (row.ids, row.labels) == expected_row(tokenizer(), template, turns, start)
    assert row.name == "k" and row.replaced == [False] * len(row.ids)


def test_a_long_row_is_cut_at_its_end_but_not_within_a_picture(prompts: Prompts):
    conversation, cells, _ = CONVERSATIONS["referring"]
    whole = prompts.conversation("k", conversation, cells)
    cut = prompts.conversation("k", conversation, cells, max_tokens=350)
    assert (cut.ids, cut.labels) == (whole.ids[:350], whole.labels[:350]) and len(whole.ids) > 350
    assert prompts.conversation("k", conversation, cells, max_tokens=len(whole.ids)) == whole
    with pytest.raises(UserError, match=r"sample k: a row ends before its pictures do; met at most 200 tokens"):
        prompts.conversation("k", conversation, cells, max_tokens=200)


@pytest.mark.parametrize("change", [{"frames": ()}, {"targets": ()}, {"regions": (0,)}, {"cells": [4]}, {"turns": ()}])
def test_marks_that_stand_for_nothing_are_refused(prompts: Prompts, change):
    conversation, cells, _ = CONVERSATIONS["referring"]
    cells = change.pop("cells", cells)
    if "turns" in change:  # the pictures are not in the first question
        change = {"turns": conversation.turns[::-1]}
    with pytest.raises(ValueError, match="sample k: marks"):
        prompts.conversation("k", replace(conversation, **change), cells)


def test_a_long_answer_is_cut_and_has_no_end(prompts: Prompts):
    conversation, cells, _ = CONVERSATIONS["regions"]
    (end,) = prompts.end_ids

    def labelled(most: int) -> list[int]:
        row = prompts.conversation("k", conversation, cells, max_answer_tokens=most)
        return [token for token in row.labels if token != IGNORE]

    assert labelled(6) == [*prompts.encode("A dog."), end, *prompts.encode("A cup."), end]
    assert labelled(5) == [*prompts.encode("A dog"), *prompts.encode("A cup")]


def written_by_a_dataset(letters: str) -> dict[str, tuple[Conversation, list[int]]]:
    """Conversations with `letters` in each place where a dataset's text may stand, and cells of regions."""
    halves = (letters[: len(letters) // 2], letters[len(letters) // 2 :])
    one: dict[str, Any] = {"frames": (0,), "targets": (Target((0,), letters),)}
    answer = ("It is ", SEG, ".")
    return {
        "phrase": (Conversation("segment", (Turn((PICTURES, f"\nPlease segment {letters}."), answer),), **one), []),
        "phrase in halves": (Conversation("segment", (Turn((PICTURES, *halves), answer),), **one), []),
        "phrase of a caption": (
            Conversation("grounded_caption", (Turn((PICTURES, "?"), (START, letters, END, " ", SEG, letters)),), **one),
            [],
        ),
        "description": (
            Conversation("describe", (Turn((PICTURES, REGION), (letters,)),), frames=(0,), regions=(0,)),
            [2],
        ),
        "chat": (
            Conversation(
                "chat", (Turn((letters, PICTURES, letters), (letters,)), Turn((letters,), halves)), frames=(0, 1)
            ),
            [],
        ),
    }


@pytest.mark.parametrize("mark", [*(token.content for token in byte_tokenizer().added_tokens_decoder.values())])
@pytest.mark.parametrize("tokenizer", [byte_tokenizer, merging_tokenizer])
def test_a_text_of_a_dataset_has_no_marks(tokenizer, mark):
    prompts = Prompts(tokenizer(), "qwen_chat", 600)
    marks = {*tokenizer().added_tokens_decoder}
    hostile = written_by_a_dataset(mark)
    for place, (plain, cells) in written_by_a_dataset("dog").items():
        expected = prompts.conversation("k", plain, cells)
        row = prompts.conversation("k", hostile[place][0], cells)
        assert [i for i in row.ids if i in marks] == [i for i in expected.ids if i in marks], place
        assert [i for i in row.labels if i in marks] == [i for i in expected.labels if i in marks], place
        assert text(prompts, row.ids) == text(prompts, expected.ids).replace("dog", mark), place


@pytest.mark.parametrize("mark", [*ADDED, "<IMG_CONTEXT>", "<|im_end|>"])
def test_a_phrase_and_a_users_question_have_no_marks(prompts: Prompts, mark: str):
    for ask in (
        lambda text: prompts.segment("k", f"Is it {text}?"),
        lambda text: prompts.ask("k", f"{text} or {text}", cells=[3]),
        lambda text: prompts.ask("k", f"{text} <image> {text}"),
    ):
        row = ask(mark)
        plain = ask("dog")
        assert [i for i in row.ids if not prompts.ordinary[i]] == [i for i in plain.ids if not prompts.ordinary[i]]
        assert text(prompts, row.ids) == text(prompts, plain.ids).replace("dog", mark)
    assert prompts.ordinary[prompts.letters(mark)].all() and text(prompts, prompts.letters(mark)) == mark


def test_rows_are_shown_with_marks_apart_from_letters(prompts: Prompts):
    first = Turn((PICTURES, "\nWho wrote [SEG]?"), ("She: ", START, " caf\u00e9 ", END, " ", SEG, "."))
    row = prompts.conversation("k", Conversation("x", (first,), (0,), (Target((0,), ""),)), [])
    assert prompts.shown(row.ids) == (
        "<|im_start|>user\n<img><IMG_CONTEXT> x 256 </img>\nWho wrote \\[SEG]?<|im_end|>\n<|im_start|>assistant\n"
        "She: <p> caf\u00e9 </p> [SEG].<|im_end|>\n"
    )


def test_tokens_that_the_tokenizer_does_not_have_are_readable():
    """The token table of a model may have more rows, and random weights write them."""
    tokenizer = byte_tokenizer()
    beyond = len(tokenizer)
    prompts = Prompts(tokenizer, "qwen_chat", beyond + 8)
    assert prompts.readable([*prompts.encode("ab"), beyond]) == "ab"
    half = prompts.encode("é")[0]
    assert prompts.readable([half, beyond, *prompts.encode("b")]).endswith("\N{REPLACEMENT CHARACTER}b")


@pytest.mark.parametrize("template", ["qwen_chat", "phi3_chat"])
@pytest.mark.parametrize("tokenizer", [byte_tokenizer, merging_tokenizer, beginning_tokenizer])
def test_a_question_after_earlier_turns(tokenizer, template: str):
    """The tokenizer itself reads the conversation as one text, as the official code passes it."""
    prompts = Prompts(tokenizer(), template, vocabulary=1000)
    before, after, end = {
        "qwen_chat": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"),
        "phi3_chat": ("<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>\n"),
    }[template]
    cells = "<vp><IMG_CONTEXT><IMG_CONTEXT></vp>"
    sentence = f"\nThere are 1 part regions in the picture: region1{cells}.\n"
    earlier = [("the <image>, where?", "<p> A cat </p> [SEG]."), ("and 犬?", "It is [SEG].")]
    for regions, shown in ([], f"{PICTURE}\n{PICTURE}"), ([2], f"{PICTURE}\n{PICTURE}{sentence}"):
        said = f"{before}the {shown}, where?{after}<p> A cat </p> [SEG].{end}"
        said += f"{before}and 犬?{after}It is [SEG].{end}{before}why?{after}"
        row = prompts.ask("k", "why?", frames=2, cells=regions, earlier=earlier)
        assert row.ids == tokenizer()(said).input_ids
        assert set(row.labels) == {IGNORE} and len(row.labels) == len(row.replaced) == len(row.ids)
    with pytest.raises(UserError, match=r"sample k: a conversation has one picture, in its first question"):
        prompts.ask("k", "<image>why?", earlier=earlier)


def test_marks_of_pictures_in_an_earlier_answer_are_letters(prompts: Prompts):
    answer = "<IMG_CONTEXT></img>[SEG]<|im_end|>"
    row = prompts.ask("k", "why?", earlier=[("where? [SEG]", answer)])
    assert row.ids.count(prompts.context) == 256 and row.ids.count(prompts.seg) == 1
    assert row.ids.count(prompts.end_ids[0]) == 3  # of two questions and an answer
    assert f"{answer}<|im_end|>\n" in text(prompts, row.ids)
