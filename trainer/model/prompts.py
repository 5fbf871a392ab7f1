"""Questions and answers as token rows: chat templates, image and region strings, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shards.errors import UserError
from trainer.model.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, REGION_END, REGION_START, SEG

IGNORE = -100
"""Label of a position that is not trained."""

IMAGE_TOKENS = 256
"""Visual tokens of a 448 x 448 picture: (448 / 14 * 0.5) squared."""

DESCRIBE = "Please generate a detailed description for the given image region."
SEGMENT = (
    "Can you segment the {phrase} in this image?",
    "Please segment {phrase} in this image.",
    "What is {phrase} in this image? Please respond with segmentation mask.",
)
SEGMENT_ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)


@dataclass(frozen=True)
class Template:
    """A chat format: what stands around a question, and what ends an answer."""

    before: str
    after: str
    end: str
    also_ends: tuple[str, ...] = ()
    """Marks that end a generated answer too."""


_IM = Template("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
TEMPLATES = {
    "qwen_chat": replace(_IM, also_ends=("<|endoftext|>",)),
    "internlm2_chat": _IM,
    "phi3_chat": Template("<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>"),
}
IMAGE = "<image>"
"""Where the picture stands in a question that a user writes."""
_TAIL = 16
"""Tokens in which a written end mark fits, line breaks among them included."""


@dataclass(frozen=True)
class TokenRow:
    """One sequence of L tokens."""

    name: str
    """The sample's key, for messages."""
    ids: list[int]
    labels: list[int]
    """The token that each position is trained to be; `IGNORE` where none."""
    given: list[bool]
    """Positions whose embedding comes from elsewhere, not from the token table."""


@dataclass(frozen=True)
class PackedRows:
    """M rows as tensors, padded to one length L."""

    names: list[str]
    ids: Tensor
    """(M, L) int64."""
    labels: Tensor
    """(M, L) int64."""
    given: Tensor
    """(M, L) bool."""
    attention: Tensor
    """(M, L) int64, 0 on padding."""

    @property
    def positions(self) -> Tensor:
        """(M, L) int64: places counted without the padding."""
        return (self.attention.cumsum(1) - 1).clamp_min(0)


def normalise_phrase(text: str) -> str:
    """Lower case, without surrounding space and without one final full stop."""
    return text.strip().lower().removesuffix(".")


def description_question(regions: int) -> str:
    """What to ask for a description of so many regions."""
    which = "" if regions == 1 else " Describe " + ", ".join(f"region{i + 1}" for i in range(regions)) + "."
    return DESCRIBE + which


class Prompts:
    """Builds rows for one tokenizer and one chat template.

    Raises:
        UserError: the tokenizer lacks one of Sa2VA's tokens, or has tokens beyond the embedding table.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, vocabulary: int) -> None:
        """`vocabulary` is the number of rows of the embedding table, which may be more than the tokenizer's tokens."""
        if template not in TEMPLATES:
            raise UserError("unknown chat template", where="template", met=template, wanted=" or ".join(TEMPLATES))
        self.tokenizer, self.template = tokenizer, TEMPLATES[template]
        if (last := max([*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder], default=0)) >= vocabulary:
            met, wanted = f"token {last:,}", f"less than {vocabulary:,}, the rows of the token table"
            do = "the tokenizer and the weights are not of one model"
            raise UserError("the tokenizer has tokens that the model has no row for", met=met, wanted=wanted, do=do)
        self.seg, self.context = self._one(SEG), self._one(IMAGE_CONTEXT)
        whole, bare = list(tokenizer("a").input_ids), self.encode("a")
        self.start: list[int] = next((whole[:n] for n in range(len(whole)) if whole[n : n + len(bare)] == bare), [])
        """What the tokenizer puts in front of a text: InternLM2's and Llama's a BOS, Qwen's nothing."""
        ends = {mark: self.encode(mark) for mark in (self.template.end, *self.template.also_ends)}
        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.end_tokens = sorted({*eos, *(ids[0] for ids in ends.values() if len(ids) == 1)})
        """Tokens that end a generated answer."""
        self.end_ids = ends[self.template.end]
        """What ends a trained answer: one token as a rule; the letters where the tokenizer has no such token."""
        self.end_texts = [mark for mark, ids in ends.items() if len(ids) != 1]
        """Marks that are no tokens here and end an answer as text: Sa2VA's 4B writes `<|end|>` in letters."""
        pad = tokenizer.pad_token_id
        self.pad = int(pad) if pad is not None else [*self.end_tokens, 0][0]
        self.ordinary = torch.zeros(vocabulary, dtype=torch.bool)
        """(V,) bool: the tokens that are text, not marks."""
        self.ordinary[: len(tokenizer)] = True
        self.ordinary[list(tokenizer.added_tokens_decoder)] = False

    def _one(self, token: str) -> int:
        ids = self.encode(token)
        if len(ids) != 1:
            raise UserError("the tokenizer lacks a token", met=f"{token!r} becomes {len(ids)} tokens", wanted="1")
        return ids[0]

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def readable(self, ids: Sequence[int]) -> str:
        """The text; or, where its bytes make no text (random weights write so), the tokens' names."""
        text = self.decode(ids)
        return "".join(self.tokenizer.convert_ids_to_tokens(list(ids))) if "\N{REPLACEMENT CHARACTER}" in text else text

    def ended(self, ids: Tensor) -> Tensor:
        """Which answers (M, t), t at least 1, end with their last token: (M,) bool."""
        ended = torch.isin(ids[:, -1], torch.tensor(self.end_tokens, device=ids.device, dtype=ids.dtype))
        if self.end_texts:
            tails = [self.decode(row).replace("\r", "").replace("\n", "") for row in ids[:, -_TAIL:].tolist()]
            ended |= torch.tensor([tail.endswith(tuple(self.end_texts)) for tail in tails], device=ids.device)
        return ended

    def answer(self, ids: Sequence[int]) -> str:
        """A generated answer as text, without what ended it."""
        text = self.decode(ids[:-1] if ids and ids[-1] in self.end_tokens else ids).strip()
        for mark in self.end_texts:
            text = text.removesuffix(mark).strip()
        return text

    def ask(self, name: str, text: str, *, tiles: int = 1, frames: int = 1, cells: Sequence[int] = ()) -> TokenRow:
        """A question in a user's words.

        Args:
            name: of the picture, for messages.
            text: the question. The picture and its regions stand where it says `<image>`, or else in front of it.
            tiles: 448 x 448 pictures that the picture was cut into.
            frames: of a video, each with its own image string.
            cells: how many of the 256 visual tokens each region has.

        Raises:
            UserError: the text says `<image>` more than once.
        """
        if text.count(IMAGE) > 1:
            raise UserError("a question has one picture", where=f"sample {name}", met=f"{text.count(IMAGE)} {IMAGE}")
        if IMAGE not in text:
            text = IMAGE + ("" if cells else "\n") + text
        asked = text.replace(IMAGE, "\n".join([_image(tiles)] * frames) + _regions(cells))
        return _row(name, self._begin(asked + self.template.after), [], [])

    def describe(
        self, name: str, cells: Sequence[int], answer: Sequence[int] = (), targets: Sequence[int] | None = None
    ) -> TokenRow:
        """The question for a description of regions, then `answer`.

        Args:
            name: the sample's key.
            cells: how many of the 256 visual tokens each region has.
            answer: tokens that are fed as the answer.
            targets: what the answer's positions are trained to be; `answer` itself where None. As many as `answer`.
        """
        question = self._begin(_image() + _regions(cells) + description_question(len(cells)) + self.template.after)
        return _row(name, question, list(answer), list(answer if targets is None else targets))

    def segment(self, name: str, phrase: str | Sequence[int], question: int = 0, answer: int = 0) -> TokenRow:
        """A segmentation question about `phrase`, answered with `[SEG]`.

        Args:
            name: the sample's key.
            phrase: text; or token ids, whose embeddings will be given.
            question: which of `SEGMENT`.
            answer: which of `SEGMENT_ANSWERS`.
        """
        reply = self.encode(SEGMENT_ANSWERS[answer] + self.template.end)
        after = self.template.after
        if isinstance(phrase, str):
            asked = phrase.strip()
            if not asked.endswith("?"):
                asked = SEGMENT[question].format(phrase=normalise_phrase(phrase))
            return _row(name, self._begin(_image() + "\n" + asked + after), reply, reply)
        head, tail = SEGMENT[question].split("{phrase}")
        first, last = self._begin(_image() + "\n" + head), self.encode(tail + after)
        return _row(name, [*first, *phrase, *last], reply, reply, given=range(len(first), len(first) + len(phrase)))

    def _begin(self, text: str) -> list[int]:
        return self.start + self.encode(self.template.before + text)

    def pack(self, rows: Sequence[TokenRow], device: torch.device, left: bool = False) -> PackedRows:
        """Pad rows to one length, at their end or (for generation) at their start."""

        def padded(values: list[list[int]], fill: int) -> Tensor:
            length = max(map(len, values))
            full = [[fill] * (length - len(v)) + v if left else v + [fill] * (length - len(v)) for v in values]
            return torch.tensor(full, device=device)

        return PackedRows(
            names=[row.name for row in rows],
            ids=padded([row.ids for row in rows], self.pad),
            labels=padded([row.labels for row in rows], IGNORE),
            given=padded([[*map(int, row.given)] for row in rows], 0).bool(),
            attention=padded([[1] * len(row.ids) for row in rows], 0),
        )


def _image(tiles: int = 1) -> str:
    return IMAGE_START + IMAGE_CONTEXT * (IMAGE_TOKENS * tiles) + IMAGE_END


def _regions(cells: Sequence[int]) -> str:
    if not cells:
        return ""
    regions = (f"region{i}{REGION_START}{IMAGE_CONTEXT * count}{REGION_END}" for i, count in enumerate(cells, 1))
    return f"\nThere are {len(cells)} part regions in the picture: {', '.join(regions)}.\n"


def _row(name: str, question: list[int], answer: list[int], targets: list[int], given: Sequence[int] = ()) -> TokenRow:
    ids = question + answer
    marks = [False] * len(ids)
    for place in given:
        marks[place] = True
    return TokenRow(name, ids, [IGNORE] * len(question) + targets, marks)
