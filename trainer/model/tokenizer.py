"""The tokens that Sa2VA adds, text in which letters never become one, and a small byte-level tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from shards.errors import UserError

PAD = "<|endoftext|>"
CHAT = ["<|im_start|>", "<|im_end|>"]
IMAGE_START = "<img>"
IMAGE_END = "</img>"
IMAGE_CONTEXT = "<IMG_CONTEXT>"
SEG = "[SEG]"
PHRASE_START = "<p>"
PHRASE_END = "</p>"
REGION_START = "<vp>"
REGION_END = "</vp>"
ADDED = [SEG, PHRASE_START, PHRASE_END, REGION_START, REGION_END]
"""Sa2VA's tokens, in the order in which they are added to InternVL's tokenizer."""

Part = str | Sequence[int]
"""Letters; or the ids of marks, which are tokens that no letters become."""
_GAP = "\ufdd0gap\ufdd1"
"""Stands for a run of marks while letters are tokenised. Both ends of it are no characters of any text."""
_REMEMBERED = 1024
"""Texts whose ids are kept: the answers of a training are few."""


class MarkedText:
    """Encodes letters and marks with the tokens of one tokenizer.

    A tokenizer reads `[SEG]` in a text as a mark, whoever wrote it. Here only ids are marks: letters are tokenised
    without the added tokens. Letters that spell no mark get the ids that the tokenizer itself gives them.

    Raises:
        UserError: a tokenizer that is not one of the `tokenizers` library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        whole = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(whole, Tokenizer):
            met = type(tokenizer).__name__
            raise UserError("a tokenizer of another kind", met=met, wanted="one of the tokenizers library")
        self._added = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._letters = Tokenizer(whole.model)  # shares the model, and has none of the added tokens
        if whole.normalizer:
            self._letters.normalizer = whole.normalizer
        if whole.pre_tokenizer:
            self._letters.pre_tokenizer = whole.pre_tokenizer
        # A token: so letters are cut at it just as the tokenizer cuts them at marks.
        self._letters.add_special_tokens([AddedToken(_GAP, normalized=False)])
        self._gap = self._letters.token_to_id(_GAP)
        if (taken := whole.model.id_to_token(self._gap)) is not None:
            raise UserError("a vocabulary with holes", met=f"token {self._gap:,} is {taken!r}")
        self._marks = frozenset(self._added.values())
        self._ids = lru_cache(_REMEMBERED)(self._encode_letters)

    def parts(self, text: str) -> list[Part]:
        """Split a text that holds marks as they are written; not for a text of a dataset or a user."""
        parts: list[Part] = []
        end = 0
        for match in self._written.finditer(text):
            parts += [text[end : match.start()], [self._added[match[0]]]]
            end = match.end()
        return [*parts, text[end:]]

    def is_mark(self, token: int) -> bool:
        """Return whether a token is a mark."""
        return token in self._marks

    def escaped(self, letters: str) -> str:
        """Return `letters` with a backslash in front of each mark that they spell."""
        return self._written.sub(lambda match: "\\" + match[0], letters)

    def encode(self, parts: Iterable[Part]) -> list[int]:
        """Return the tokens of parts in order. Letters on both sides of no mark are tokenised as one text."""
        runs = [""]
        marks: list[Sequence[int]] = []
        for part in parts:
            if isinstance(part, str):
                runs[-1] += part
            else:
                marks.append(part)
                runs.append("")
        tokens = self._ids(_GAP.join(run.replace(_GAP, "") for run in runs))
        ids: list[int] = []
        begin = 0
        for mark in marks:
            end = tokens.index(self._gap, begin)
            ids += tokens[begin:end]
            ids += mark
            begin = end + 1
        ids += tokens[begin:]
        return ids

    def _encode_letters(self, text: str) -> tuple[int, ...]:
        if not text.isascii():  # half a surrogate pair, which JSON may hold, is a question mark
            text = text.encode("utf-8", "replace").decode()
        encoded = self._letters.encode(text, add_special_tokens=False)
        wrong = self._marks.intersection(encoded.ids) - {self._gap}
        if not wrong:
            return tuple(encoded.ids)
        # The vocabulary of letters holds a mark too: its characters are tokenised one by one.
        ids: list[int] = []
        for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            single = [self._letters.encode(letter, add_special_tokens=False).ids for letter in text[start:end]]
            ids += chain(*single) if token in wrong else [token]
        return tuple(ids)


def as_letters(text: str, mark: str) -> str:
    """Return a text in which `mark` is not found, and which `MarkedText` encodes with the letters of `mark`."""
    return text.replace(mark, mark[:-1] + _GAP + mark[-1:])


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer whose ordinary tokens are the 256 bytes: for any text, without merges and downloads."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_added_tokens(tokenizer)


def with_added_tokens(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return `tokenizer` with the marks of a chat, InternVL's marks of pictures and Sa2VA's tokens."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=CHAT[1])
    fast.add_tokens([*CHAT, IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *ADDED], special_tokens=True)
    return fast
