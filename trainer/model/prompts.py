"""Conversations as rows of tokens: chat templates, strings for pictures and regions, labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shards.errors import UserError
from trainer.conversations.conversation import Conversation, Mark, Text
from trainer.conversations.wording import ANSWERS, DESCRIBE, QUESTIONS, normalise_phrase
from trainer.model.rows import IGNORE, Rows, SpecialTokens, TokenRow, packed_rows, padded_rows
from trainer.model.tokenizer import (
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    PHRASE_END,
    PHRASE_START,
    REGION_END,
    REGION_START,
    SEG,
    MarkedText,
    Part,
)

IMAGE_TOKENS = 256
"""Visual tokens per 448 x 448 picture: (448 / 14 * 0.5) squared."""

SEGMENT = QUESTIONS[:3]
"""Wordings of a segmentation question in the dual and the reverse loop."""
SEGMENT_ANSWERS = ANSWERS


@dataclass(frozen=True)
class Template:
    """A chat format: the texts before and after a question, the mark that ends an answer, and what separates turns."""

    before: str
    after: str
    end: str
    separator: str = "\n"
    also_ends: tuple[str, ...] = ()
    """Other marks that end a generated answer."""


_IM = Template("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
TEMPLATES = {
    "qwen_chat": replace(_IM, also_ends=("<|endoftext|>",)),
    "internlm2_chat": _IM,
    "phi3_chat": Template("<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>"),
}
IMAGE = "<image>"
"""The place of the picture in a user's question."""
_TAIL = 16
"""Tokens in which an end mark in letters fits, with line breaks between them."""


def description_question(regions: int) -> str:
    """Return the question for a description of `regions` regions."""
    which = "" if regions == 1 else " Describe " + ", ".join(f"region{i + 1}" for i in range(regions)) + "."
    return DESCRIBE + which


class Prompts:
    """Builds rows for one tokenizer and one chat template.

    Raises:
        UserError: the tokenizer lacks one of Sa2VA's tokens, or has tokens beyond the embedding table.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, vocabulary: int) -> None:
        """`vocabulary` is the number of rows of the token table, which may be more than the tokenizer's tokens."""
        if template not in TEMPLATES:
            raise UserError("unknown chat template", where="template", met=template, wanted=" or ".join(TEMPLATES))
        _check_vocabulary(tokenizer, vocabulary)
        self.tokenizer = tokenizer
        self.template = TEMPLATES[template]
        marks = (SEG, IMAGE_CONTEXT, IMAGE_START, IMAGE_END, PHRASE_START, PHRASE_END, REGION_START, REGION_END)
        self._id = {mark: self._id_of(mark) for mark in marks}
        self.seg = self._id[SEG]
        self.context = self._id[IMAGE_CONTEXT]
        self._text = MarkedText(tokenizer)
        self._before = self._text.parts(self.template.before)
        self._after = self._text.parts(self.template.after)
        self._end = self._text.parts(self.template.end)
        self._separator = self.letters(self.template.separator)
        self._image = self._places(IMAGE_START, IMAGE_TOKENS, IMAGE_END)
        self.start = self._start_ids()
        """Tokens that the tokenizer puts in front of a text: a BOS for InternLM2 and Llama, none for Qwen."""
        ends = {mark: self.encode(mark) for mark in (self.template.end, *self.template.also_ends)}
        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.end_tokens = sorted({*eos, *(ids[0] for ids in ends.values() if len(ids) == 1)})
        """Tokens that end a generated answer."""
        self.end_ids = ends[self.template.end]
        """Tokens that end a trained answer: one as a rule, several where the tokenizer has no token for the mark."""
        self.end_texts = [mark for mark, ids in ends.items() if len(ids) != 1]
        """Marks without a token, which end a generated answer as letters: Sa2VA's 4B writes `<|end|>` so."""
        pad = tokenizer.pad_token_id
        self.pad = int(pad) if pad is not None else [*self.end_tokens, 0][0]
        self._special = SpecialTokens(self.pad, self.context, self.seg)
        self.ordinary = torch.zeros(vocabulary, dtype=torch.bool)
        """(V,) bool: tokens of text, not marks."""
        self.ordinary[: len(tokenizer)] = True
        self.ordinary[list(tokenizer.added_tokens_decoder)] = False

    def _id_of(self, token: str) -> int:
        ids = self.encode(token)
        if len(ids) != 1:
            raise UserError("the tokenizer lacks a token", met=f"{token!r} becomes {len(ids)} tokens", wanted="1")
        return ids[0]

    def _start_ids(self) -> list[int]:
        with_marks = list(self.tokenizer("a").input_ids)
        bare = self.encode("a")
        starts = (n for n in range(len(with_marks)) if with_marks[n : n + len(bare)] == bare)
        return with_marks[: next(starts, 0)]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without a BOS. A mark that is written in it becomes its token: see `letters`."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def letters(self, text: str) -> list[int]:
        """Return the tokens of a text of a dataset, a user or a model, without a BOS: none of them is a mark."""
        return self._text.encode([text])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, marks included."""
        return str(self.tokenizer.decode(list(ids)))

    def readable(self, ids: Sequence[int]) -> str:
        """Return the text, or the names of the tokens where their bytes are no UTF-8, as random weights write."""
        text = self.decode(ids)
        if "\N{REPLACEMENT CHARACTER}" not in text:
            return text
        # The token table may have rows that no token has.
        return "".join(name or "\N{REPLACEMENT CHARACTER}" for name in self.tokenizer.convert_ids_to_tokens(list(ids)))

    def shown(self, ids: Sequence[int]) -> str:
        """Return the text of tokens for people to check.

        Letters that spell a mark have a backslash in front; repeated marks are one, with their count.
        """
        shown = ""
        for is_mark, run in groupby(ids, self._text.is_mark):
            if not is_mark:
                shown += self._text.escaped(self.readable([*run]))
                continue
            for mark, same in groupby(run):
                count = len([*same])
                shown += self.decode([mark]) + (f" x {count} " if count > 1 else "")
        return shown

    def ended(self, ids: Tensor) -> Tensor:
        """Whether each of the answers (M, t), t at least 1, ends with its last token: (M,) bool."""
        ended = torch.isin(ids[:, -1], torch.tensor(self.end_tokens, device=ids.device, dtype=ids.dtype))
        if self.end_texts:
            tails = [self.decode(row).replace("\r", "").replace("\n", "") for row in ids[:, -_TAIL:].tolist()]
            ended |= torch.tensor([tail.endswith(tuple(self.end_texts)) for tail in tails], device=ids.device)
        return ended

    def answer(self, ids: Sequence[int]) -> str:
        """Return a generated answer as text, without its end mark."""
        text = self.decode(ids[:-1] if ids and ids[-1] in self.end_tokens else ids).strip()
        for mark in self.end_texts:
            text = text.removesuffix(mark).strip()
        return text

    def ask(
        self,
        name: str,
        text: str,
        *,
        tiles: int = 1,
        frames: int = 1,
        cells: Sequence[int] = (),
        earlier: Sequence[tuple[str, str]] = (),
    ) -> TokenRow:
        """Build the row of a user's question, after the earlier turns of its conversation.

        The row is one text to the tokenizer, as in the official inference: earlier turns are tokenised again.

        Args:
            name: of the picture, for messages.
            text: the question. In the first one the picture and its regions replace `<image>`, or are put in front.
            tiles: number of 448 x 448 pictures that the picture was cut into.
            frames: number of frames of a video; each gets an image string.
            cells: number of the 256 visual tokens that lie in each region.
            earlier: question and answer of each earlier turn. An answer keeps `[SEG]`, `<p>` and `</p>` as marks, and
                gets the template's end mark and separator.

        Raises:
            UserError: `<image>` is in the first question more than once, or in a later one.
        """
        questions = [*(question for question, _ in earlier), text]
        first = questions[0]
        if first.count(IMAGE) > 1:
            raise UserError("a question has one picture", where=f"sample {name}", met=f"{first.count(IMAGE)} {IMAGE}")
        if any(IMAGE in question for question in questions[1:]):
            what = "a conversation has one picture, in its first question"
            raise UserError(what, where=f"sample {name}", met=f"{IMAGE} in a later one")
        if IMAGE not in first:
            first = IMAGE + ("" if cells else "\n") + first
        head, _, tail = first.partition(IMAGE)
        pictures = self._pictures(frames, self._places(IMAGE_START, IMAGE_TOKENS * tiles, IMAGE_END))
        parts = [*self._before, head, *pictures, *self._regions(cells), tail, *self._after]
        for question, (_, answer) in zip(questions[1:], earlier, strict=True):
            parts += [*self._answer_parts(answer), *self._end, self.template.separator]
            parts += [*self._before, question, *self._after]
        return _row(name, self.start + self._text.encode(parts), [], [])

    def _answer_parts(self, text: str) -> Iterator[Part]:
        """Yield letters and the ids of the marks of an answer; what looks like another mark is letters."""
        marks = [[self._id[mark]] for mark in (SEG, PHRASE_START, PHRASE_END)]
        for part in self._text.parts(text):
            yield part if isinstance(part, str) or part in marks else self.decode(part)

    def describe(
        self, name: str, cells: Sequence[int], answer: Sequence[int] = (), targets: Sequence[int] | None = None
    ) -> TokenRow:
        """Build the row of a question for a description of regions, and of its answer.

        Args:
            name: the sample's key.
            cells: number of the 256 visual tokens that lie in each region.
            answer: input tokens of the answer.
            targets: the token to predict for each token of the answer; None: `answer`.
        """
        question = self._question(self._image, *self._regions(cells), description_question(len(cells)))
        return _row(name, question, list(answer), list(answer if targets is None else targets))

    def segment(self, name: str, phrase: str | Sequence[int], question: int = 0, answer: int = 0) -> TokenRow:
        """Build the row of a segmentation question about `phrase`, and of its answer with `[SEG]`.

        Args:
            name: the sample's key.
            phrase: text; or token ids, whose embeddings will be replaced.
            question: index in `SEGMENT`.
            answer: index in `SEGMENT_ANSWERS`.
        """
        reply = self._text.encode([*self._text.parts(SEGMENT_ANSWERS[answer]), *self._end])
        if isinstance(phrase, str):
            text = phrase.strip()
            if not text.endswith("?"):
                text = SEGMENT[question].format(phrase=normalise_phrase(phrase))
            return _row(name, self._question(self._image, "\n", text), reply, reply)
        head, tail = SEGMENT[question].split("{phrase}")
        first = self.start + self._text.encode([*self._before, self._image, "\n", head])
        last = self._text.encode([tail, *self._after])
        return _row(name, [*first, *phrase, *last], reply, reply, replaced=range(len(first), len(first) + len(phrase)))

    def conversation(
        self,
        name: str,
        conversation: Conversation,
        cells: Sequence[int],
        max_tokens: int = 8192,
        max_answer_tokens: int | None = None,
    ) -> TokenRow:
        """Build the row of a conversation as Sa2VA's own training does.

        Of each turn the question in its chat format, the answer with its end mark, and the separator are tokenised by
        themselves; the answer and its end mark have labels. A BOS stands in front of the first turn alone.

        Args:
            name: the sample's key.
            conversation: its answers, and the question with the pictures, lose the space around them.
            cells: number of the 256 visual tokens that lie in each of the conversation's regions.
            max_tokens: what is longer is cut at its end.
            max_answer_tokens: longer answers are cut too, and have no end mark. None: they are not.

        Raises:
            UserError: so few tokens that a picture or a region is cut off.
            ValueError: the marks do not fit the conversation's frames, targets and regions.
        """
        _check_marks(name, conversation, len(cells))
        ids = list(self.start)
        labels = [IGNORE] * len(ids)
        regions = iter(cells)
        for turn in conversation.turns:
            asked = _stripped(turn.question) if Mark.PICTURES in turn.question else turn.question
            question = self._parts(asked, len(conversation.frames), regions)
            unlabelled = self._text.encode([*self._before, *question, *self._after])
            answer = [*self._parts(_stripped(turn.answer), len(conversation.frames), regions)]
            labelled = self._text.encode([*answer, *self._end])
            if max_answer_tokens is not None and len(words := self._text.encode(answer)) > max_answer_tokens:
                labelled = words[:max_answer_tokens]
            ids += [*unlabelled, *labelled, *self._separator]
            labels += [IGNORE] * len(unlabelled) + labelled + [IGNORE] * len(self._separator)
        if len(ids) > max_tokens:
            places = ids.count(self.context)
            ids, labels = ids[:max_tokens], labels[:max_tokens]
            if ids.count(self.context) < places:
                raise UserError(
                    "a row ends before its pictures do",
                    where=f"sample {name}",
                    met=f"at most {max_tokens} tokens, with {len(conversation.frames)} frame(s)",
                    do="allow more tokens per row, or fewer frames",
                )
        return TokenRow(name, ids, labels, [False] * len(ids))

    def _question(self, *parts: Part) -> list[int]:
        """Return the tokens of the first question of a row, up to where its answer begins."""
        return self.start + self._text.encode([*self._before, *parts, *self._after])

    def _parts(self, text: Text, frames: int, cells: Iterator[int]) -> Iterator[Part]:
        """Yield letters and the ids of marks."""
        for part in text:
            if isinstance(part, str):
                yield part
            elif part is Mark.PICTURES:
                yield from self._pictures(frames, self._image)
            elif part is Mark.REGION:
                yield self._places(REGION_START, next(cells), REGION_END)
            else:
                yield [self._id[part.value]]

    def _places(self, before: str, count: int, after: str) -> list[int]:
        """Return `count` places of visual tokens between two marks."""
        return [self._id[before], *[self.context] * count, self._id[after]]

    def _pictures(self, frames: int, picture: Sequence[int]) -> list[Part]:
        """Return the places of a video's frames, line by line."""
        return [picture, *(part for _ in range(frames - 1) for part in ("\n", picture))]

    def _regions(self, cells: Sequence[int]) -> list[Part]:
        """Return the sentence that shows regions."""
        if not cells:
            return []
        parts: list[Part] = [f"\nThere are {len(cells)} part regions in the picture: "]
        for i, count in enumerate(cells, 1):
            end = ".\n" if i == len(cells) else ", "
            parts += [f"region{i}", self._places(REGION_START, count, REGION_END), end]
        return parts

    def padded(self, rows: Sequence[TokenRow], device: torch.device, left: bool = False) -> Rows:
        """Return rows padded to one length at their end, or `left` at their start for generation."""
        return padded_rows(rows, self._special, device, left)

    def packed(self, rows: Sequence[TokenRow], device: torch.device) -> Rows:
        """Return rows laid end to end in one sequence."""
        return packed_rows(rows, self._special, device)


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise `UserError` where a token has no row in a token table of `vocabulary` rows."""
    last = max([*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder], default=0)
    if last >= vocabulary:
        raise UserError(
            "the tokenizer has tokens that the model has no row for",
            met=f"token {last:,}",
            wanted=f"less than {vocabulary:,}, the rows of the token table",
            do="the tokenizer and the weights are not of one model",
        )


def _check_marks(name: str, conversation: Conversation, regions: int) -> None:
    """Raise `ValueError` where marks and what they stand for differ in number; cells of `regions` are known."""
    texts = [text for turn in conversation.turns for text in (turn.question, turn.answer)]
    found = {mark: sum(text.count(mark) for text in texts) for mark in (Mark.PICTURES, Mark.SEG, Mark.REGION)}
    expected = {
        Mark.PICTURES: int(bool(conversation.frames)),
        Mark.SEG: len(conversation.targets),
        Mark.REGION: len(conversation.regions),
    }
    first = texts[0].count(Mark.PICTURES)
    if found != expected or found[Mark.PICTURES] != first or regions != len(conversation.regions):
        raise ValueError(f"sample {name}: marks {found} for {expected} and the cells of {regions} regions")


def _stripped(text: Text) -> Text:
    """Return a text without the space around it."""
    parts = list(text)
    for end, strip in ((0, str.lstrip), (-1, str.rstrip)):
        while parts and isinstance(letters := parts[end], str):
            parts[end] = strip(letters)
            if parts[end]:
                break
            del parts[end]
    return tuple(parts)


def _row(
    name: str, question: list[int], answer: list[int], targets: list[int], replaced: Sequence[int] = ()
) -> TokenRow:
    """Join a question without loss and an answer; `replaced` are positions, see `TokenRow`."""
    ids = question + answer
    marks = [False] * len(ids)
    for position in replaced:
        marks[position] = True
    return TokenRow(name, ids, [IGNORE] * len(question) + targets, marks)
