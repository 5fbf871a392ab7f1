"""Letters never become a mark, whatever they spell; text that spells none keeps its ids."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from shards.errors import UserError
from tests.trainer.model.tokenizers_built import beginning_tokenizer, merging_tokenizer, writing_tokenizer
from trainer.model.tokenizer import CHAT, MarkedText, byte_tokenizer

TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "with merges": merging_tokenizer(),
    "with a BOS": beginning_tokenizer(),
    "whose letters make marks": writing_tokenizer(),
}
ADDED = {name: sorted(tokenizer.added_tokens_decoder) for name, tokenizer in TOKENIZERS.items()}
EVERY_MARK = [(name, mark) for name, ids in ADDED.items() for mark in ids]
PIECES = ["dog", " the", "  ", "\n", "e\u0301", "\u72ac", "'s", "7", "[S", "EG]", "<", "p>", "<|im_", "end|>", *CHAT]


def content_of(tokenizer: PreTrainedTokenizerBase, mark: int) -> str:
    return str(tokenizer.added_tokens_decoder[mark].content)


@pytest.mark.parametrize(("name", "mark"), EVERY_MARK)
def test_no_letters_become_a_mark(name, mark):
    tokenizer = TOKENIZERS[name]
    text = MarkedText(tokenizer)
    content = content_of(tokenizer, mark)
    half = len(content) // 2
    for letters in (
        *([content], [f"a dog {content} on"], [content, " dog"], ["dog ", content], [content * 3], [f"\n{content}\n"]),
        *([content[:half], content[half:]], [*content], ["<", content, ">"]),
    ):
        ids = text.encode(letters)
        assert not {*ids} & {*ADDED[name]} and tokenizer.decode(ids) == "".join(letters)
        # Between marks, as in a row: the only marks are those that were given.
        marked = text.encode([[mark], *letters, [mark], *letters, [mark, mark]])
        assert [token for token in marked if token in ADDED[name]] == [mark] * 4
        assert tokenizer.decode([token for token in marked if token != mark]) == "".join(letters) * 2


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=8))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_other_text_keeps_its_ids(name, pieces):
    tokenizer = TOKENIZERS[name]
    written = "".join(pieces)
    expected = tokenizer(written, add_special_tokens=False).input_ids
    ids = MarkedText(tokenizer).encode(pieces)
    if {*expected}.isdisjoint(ADDED[name]):
        assert ids == expected
    else:
        assert {*ids}.isdisjoint(ADDED[name])
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", written)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_marks_of_our_own_texts_are_those_of_the_tokenizer(name):
    tokenizer = TOKENIZERS[name]
    text = MarkedText(tokenizer)
    for written in ("<|im_start|>user\n", "<p> a dog </p> [SEG] and [SEG].", "[SEG]", "dog", "", "a<vp></vp>."):
        assert text.encode(text.parts(written)) == tokenizer(written, add_special_tokens=False).input_ids


def test_what_stands_for_marks_inside_is_no_text():
    text = MarkedText(byte_tokenizer())
    gap = "\ufdd0gap\ufdd1"
    assert text.encode([f"a{gap}b", [262], gap[:3], gap[3:]]) == text.encode(["ab", [262]])


def test_half_a_surrogate_pair_is_a_question_mark():
    text = MarkedText(byte_tokenizer())
    assert text.encode(["a \ud83d dog", [262], "🐕"]) == text.encode(["a ? dog", [262], "🐕"])


def test_a_vocabulary_whose_ids_have_holes_is_refused():
    vocabulary = {"a": 0, "b": 2}
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[])))
    with pytest.raises(UserError, match="a vocabulary with holes; met token 2 is 'b'"):
        MarkedText(bare)
