"""Conversations as rows of tokens: chat templates, strings for pictures and regions, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shards.errors import UserError
from trainer.conversations.wording import ANSWERS, DESCRIBE, QUESTIONS, normalise_phrase
from trainer.model.rows import IGNORE, PackedRows, TokenRow
from trainer.model.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, REGION_END, REGION_START, SEG

IMAGE_TOKENS = 256
"""Visual tokens per 448 x 448 picture: (448 / 14 * 0.5) squared."""

SEGMENT = QUESTIONS[:3]
"""Wordings of a segmentation question in the dual and the reverse loop."""
SEGMENT_ANSWERS = ANSWERS


@dataclass(frozen=True)
class Template:
    """A chat format: the texts before and after a question, and the mark that ends an answer."""

    before: str
    after: str
    end: str
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
        self.seg = self._id_of(SEG)
        self.context = self._id_of(IMAGE_CONTEXT)
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
        """Return the tokens of a text, without a BOS."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, marks included."""
        return str(self.tokenizer.decode(list(ids)))

    def readable(self, ids: Sequence[int]) -> str:
        """Return the text, or the names of the tokens where their bytes are no UTF-8, as random weights write."""
        text = self.decode(ids)
        return "".join(self.tokenizer.convert_ids_to_tokens(list(ids))) if "\N{REPLACEMENT CHARACTER}" in text else text

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

    def ask(self, name: str, text: str, *, tiles: int = 1, frames: int = 1, cells: Sequence[int] = ()) -> TokenRow:
        """Build the row of a user's question.

        Args:
            name: of the picture, for messages.
            text: the question. The picture and its regions replace `<image>`, or are put in front of the text.
            tiles: number of 448 x 448 pictures that the picture was cut into.
            frames: number of frames of a video; each gets an image string.
            cells: number of the 256 visual tokens that lie in each region.

        Raises:
            UserError: `<image>` is in the text more than once.
        """
        if text.count(IMAGE) > 1:
            raise UserError("a question has one picture", where=f"sample {name}", met=f"{text.count(IMAGE)} {IMAGE}")
        if IMAGE not in text:
            text = IMAGE + ("" if cells else "\n") + text
        question = text.replace(IMAGE, "\n".join([_image(tiles)] * frames) + _regions(cells))
        return _row(name, self._begin(question + self.template.after), [], [])

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
        question = self._begin(_image() + _regions(cells) + description_question(len(cells)) + self.template.after)
        return _row(name, question, list(answer), list(answer if targets is None else targets))

    def segment(self, name: str, phrase: str | Sequence[int], question: int = 0, answer: int = 0) -> TokenRow:
        """Build the row of a segmentation question about `phrase`, and of its answer with `[SEG]`.

        Args:
            name: the sample's key.
            phrase: text; or token ids, whose embeddings will be replaced.
            question: index in `SEGMENT`.
            answer: index in `SEGMENT_ANSWERS`.
        """
        reply = self.encode(SEGMENT_ANSWERS[answer] + self.template.end)
        after = self.template.after
        if isinstance(phrase, str):
            text = phrase.strip()
            if not text.endswith("?"):
                text = SEGMENT[question].format(phrase=normalise_phrase(phrase))
            return _row(name, self._begin(_image() + "\n" + text + after), reply, reply)
        head, tail = SEGMENT[question].split("{phrase}")
        first = self._begin(_image() + "\n" + head)
        last = self.encode(tail + after)
        return _row(name, [*first, *phrase, *last], reply, reply, replaced=range(len(first), len(first) + len(phrase)))

    def _begin(self, text: str) -> list[int]:
        """Return the tokens of the first question of a row, as far as `text` goes."""
        return self.start + self.encode(self.template.before + text)

    def pack(self, rows: Sequence[TokenRow], device: torch.device, left: bool = False) -> PackedRows:
        """Stack rows, padded to one length at their end, or `left` at their start for generation."""

        def padded(values: list[list[int]], fill: int) -> Tensor:
            length = max(map(len, values))
            full = [[fill] * (length - len(v)) + v if left else v + [fill] * (length - len(v)) for v in values]
            return torch.tensor(full, device=device)

        return PackedRows(
            names=[row.name for row in rows],
            ids=padded([row.ids for row in rows], self.pad),
            labels=padded([row.labels for row in rows], IGNORE),
            replaced=padded([[*map(int, row.replaced)] for row in rows], 0).bool(),
            attention=padded([[1] * len(row.ids) for row in rows], 0),
        )


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


def _image(tiles: int = 1) -> str:
    return IMAGE_START + IMAGE_CONTEXT * (IMAGE_TOKENS * tiles) + IMAGE_END


def _regions(cells: Sequence[int]) -> str:
    if not cells:
        return ""
    regions = (f"region{i}{REGION_START}{IMAGE_CONTEXT * count}{REGION_END}" for i, count in enumerate(cells, 1))
    return f"\nThere are {len(cells)} part regions in the picture: {', '.join(regions)}.\n"


def _row(
    name: str, question: list[int], answer: list[int], targets: list[int], replaced: Sequence[int] = ()
) -> TokenRow:
    """Join a question without loss and an answer; `replaced` are positions, see `TokenRow`."""
    ids = question + answer
    marks = [False] * len(ids)
    for position in replaced:
        marks[position] = True
    return TokenRow(name, ids, [IGNORE] * len(question) + targets, marks)
