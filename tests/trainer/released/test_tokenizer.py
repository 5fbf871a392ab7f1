"""Tokenizers of released folders compared with the libraries that made them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import UserError
from trainer.conversations.conversation import Conversation, Mark, Target, Turn
from trainer.model.prompts import Prompts
from trainer.model.tokenizer import ADDED, byte_tokenizer
from trainer.released.tokenizer import load_tokenizer, save_tokenizer

TEXT = """Please segment the dog on the left. Sure, the segmentation result is shown in this image of a picture.
Can you segment the white helmet in this image? What is the region near the astronaut? It is a red cup of coffee.
There are two part regions in the picture: region one and region two. Please generate a detailed description.
"""
MARKS = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", *ADDED]
PROMPT = "<|im_start|>user\n<img><IMG_CONTEXT></img>\nPlease segment the  dog.<|im_end|>\n<|im_start|>assistant\n"
TEXTS = ["the dog", " the dog", "the  dog ", "Grüße, 狗!", PROMPT, "[SEG]", "a[SEG] b", "\n", "\t x"]
WORDS = ["dog", " ", "the ", "Please", "[SEG]", "<img>", "\n", "é", "region1", ":"]


@pytest.fixture(scope="module", params=[False, True], ids=["no dummy prefix", "dummy prefix"])
def internlm2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small SentencePiece model of InternLM2's kind: two unused pieces got names, the rest follows."""
    folder = tmp_path_factory.mktemp("internlm2")
    (folder / "text.txt").write_text(TEXT * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=request.param,
        user_defined_symbols=["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    places = [model.piece_to_id(f"[UNUSED_TOKEN_{i}]") for i in (0, 1)]
    places += range(len(model), len(model) + len(MARKS) - 2)
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(i): {"content": mark, **plain} for i, mark in zip(places, MARKS, strict=True)}
    decoder |= {str(i): {"content": mark, **plain} for i, mark in enumerate(["<unk>", "<s>", "</s>"])}
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": decoder,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def expected(folder: Path, text: str) -> list[int]:
    """Ids by SentencePiece itself, for the text between special tokens."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    marks = {token["content"]: int(i) for i, token in config["added_tokens_decoder"].items()}
    ids = []
    for piece in re.split("(" + "|".join(map(re.escape, marks)) + ")", text):
        ids += [marks[piece]] if piece in marks else model.encode(piece) if piece else []
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_internlm2_encodes_as_sentencepiece_does(internlm2, text):
    tokenizer = load_tokenizer(internlm2)
    assert tokenizer(text, add_special_tokens=False).input_ids == expected(internlm2, text)
    assert tokenizer(text).input_ids == [1, *expected(internlm2, text)]


@given(
    st.lists(st.sampled_from(["dog", " ", "the ", "Please", "[SEG]", "<img>", "\n", "é", "region1", ":"]), max_size=12)
)
def test_internlm2_encodes_any_text_as_sentencepiece_does(internlm2, words):
    text = "".join(words)
    assert load_tokenizer(internlm2)(text, add_special_tokens=False).input_ids == expected(internlm2, text)


def test_internlm2_decodes_what_it_encoded(internlm2):
    tokenizer = load_tokenizer(internlm2)
    for text in ("Sure, it is the dog 狗.", "two  spaces"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_tokens_added_to_internlm2_are_there_after_saving(internlm2, tmp_path):
    tokenizer = load_tokenizer(internlm2)
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    save_tokenizer(tokenizer, internlm2, tmp_path)
    again = load_tokenizer(tmp_path)
    assert again("a<new>b").input_ids == tokenizer("a<new>b").input_ids
    assert len(again) == len(tokenizer)


def test_a_sentencepiece_model_of_another_kind_is_refused(internlm2, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=50, model_type="unigram"
    )
    (tmp_path / "tokenizer_config.json").write_text((internlm2 / "tokenizer_config.json").read_text())
    with pytest.raises(UserError, match=r"tokenizer\.model: another kind of SentencePiece model"):
        load_tokenizer(tmp_path)


def test_the_byte_tokenizer_survives_a_folder(tmp_path):
    tokenizer = byte_tokenizer()
    save_tokenizer(tokenizer, None, tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(PROMPT, add_special_tokens=False).input_ids == tokenizer(PROMPT, add_special_tokens=False).input_ids
    assert again.pad_token_id == tokenizer.pad_token_id


def test_a_conversation_of_internlm2_begins_once_and_has_no_marks_of_a_dataset(internlm2):
    prompts = Prompts(load_tokenizer(internlm2), "internlm2_chat", 600)
    model = sentencepiece.SentencePieceProcessor(model_file=str(internlm2 / "tokenizer.model"))
    first = Turn((Mark.PICTURES, "\nPlease segment the dog [SEG]."), ("Sure, ", Mark.SEG, "."))
    second = Turn(("the <img> cup",), ("[SEG] it is.",))
    row = prompts.conversation("k", Conversation("x", (first, second), (0,), (Target((0,), ""),)), [])
    marks = {mark: prompts.encode(mark)[0] for mark in MARKS}
    picture = [marks["<img>"], *[marks["<IMG_CONTEXT>"]] * 256, marks["</img>"]]
    end = [marks["<|im_end|>"]]
    reply = [*end, *model.encode("\n"), marks["<|im_start|>"], *model.encode("assistant\n")]
    asked = [marks["<|im_start|>"], *model.encode("user\n"), *picture, *model.encode("\nPlease segment the dog [SEG].")]
    answer = [*model.encode("Sure, "), marks["[SEG]"], *model.encode("."), *end]
    asked_then = [marks["<|im_start|>"], *model.encode("user\nthe <img> cup")]
    answer_then = [*model.encode("[SEG] it is."), *end]
    between = model.encode("\n")
    ids = [1, *asked, *reply, *answer, *between, *asked_then, *reply, *answer_then, *between]
    assert row.ids == ids and row.ids.count(1) == 1
    assert [label for label in row.labels if label != -100] == [*answer, *answer_then]
