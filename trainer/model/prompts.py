"""Questions and answers as token rows: chat templates, image and region strings, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """A chat format: what stands around a question, and the token that ends an answer."""

    before: str
    after: str
    end: str


_IM = Template("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
TEMPLATES = {"qwen_chat": _IM, "internlm2_chat": _IM}


@dataclass(frozen=True)
class Row:
    """One sequence of L tokens."""

    name: str
    """The sample's key, for messages."""
    ids: list[int]
    labels: list[int]
    """The token that each position is trained to be; `IGNORE` where none."""
    given: list[bool]
    """Positions whose embedding comes from elsewhere, not from the token table."""


@dataclass(frozen=True)
class Rows:
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


class Prompts:
    """Builds rows for one tokenizer and one chat template.

    Raises:
        UserError: the tokenizer lacks one of Sa2VA's tokens, or has no single token that ends an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, vocabulary: int) -> None:
        """`vocabulary` is the number of rows of the embedding table, which may be more than the tokenizer's tokens."""
        if template not in TEMPLATES:
            raise UserError("unknown chat template", where="template", met=template, wanted=" or ".join(TEMPLATES))
        self.tokenizer, self.template = tokenizer, TEMPLATES[template]
        self.seg, self.context, self.end = (self._one(t) for t in (SEG, IMAGE_CONTEXT, self.template.end))
        pad = tokenizer.pad_token_id
        self.pad = self.end if pad is None else int(pad)
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

    def describe(
        self, name: str, cells: Sequence[int], answer: Sequence[int] = (), targets: Sequence[int] | None = None
    ) -> Row:
        """The question for a description of regions, then `answer`.

        Args:
            name: the sample's key.
            cells: how many of the 256 visual tokens each region has.
            answer: tokens that are fed as the answer.
            targets: what the answer's positions are trained to be; `answer` itself where None. As many as `answer`.
        """
        regions = ", ".join(
            f"region{i}{REGION_START}{IMAGE_CONTEXT * count}{REGION_END}" for i, count in enumerate(cells, 1)
        )
        which = "" if len(cells) == 1 else " Describe " + ", ".join(f"region{i + 1}" for i in range(len(cells))) + "."
        intro = f"\nThere are {len(cells)} part regions in the picture: {regions}.\n"
        question = self.encode(self.template.before + self._image() + intro + DESCRIBE + which + self.template.after)
        return _row(name, question, list(answer), list(answer if targets is None else targets))

    def segment(self, name: str, phrase: str | Sequence[int], question: int = 0, answer: int = 0) -> Row:
        """A segmentation question about `phrase`, answered with `[SEG]`.

        Args:
            name: the sample's key.
            phrase: text; or token ids, whose embeddings will be given.
            question: which of `SEGMENT`.
            answer: which of `SEGMENT_ANSWERS`.
        """
        reply = self.encode(SEGMENT_ANSWERS[answer] + self.template.end)
        before, after = self.template.before + self._image() + "\n", self.template.after
        if isinstance(phrase, str):
            asked = phrase.strip()
            if not asked.endswith("?"):
                asked = SEGMENT[question].format(phrase=normalise_phrase(phrase))
            return _row(name, self.encode(before + asked + after), reply, reply)
        head, tail = SEGMENT[question].split("{phrase}")
        first, last = self.encode(before + head), self.encode(tail + after)
        return _row(name, [*first, *phrase, *last], reply, reply, given=range(len(first), len(first) + len(phrase)))

    def _image(self) -> str:
        return IMAGE_START + IMAGE_CONTEXT * IMAGE_TOKENS + IMAGE_END

    def pack(self, rows: Sequence[Row], device: torch.device, left: bool = False) -> Rows:
        """Pad rows to one length, at their end or (for generation) at their start."""

        def padded(values: list[list[int]], fill: int) -> Tensor:
            length = max(map(len, values))
            full = [[fill] * (length - len(v)) + v if left else v + [fill] * (length - len(v)) for v in values]
            return torch.tensor(full, device=device)

        return Rows(
            names=[row.name for row in rows],
            ids=padded([row.ids for row in rows], self.pad),
            labels=padded([row.labels for row in rows], IGNORE),
            given=padded([[*map(int, row.given)] for row in rows], 0).bool(),
            attention=padded([[1] * len(row.ids) for row in rows], 0),
        )


def _row(name: str, question: list[int], answer: list[int], targets: list[int], given: Sequence[int] = ()) -> Row:
    ids = question + answer
    marks = [False] * len(ids)
    for place in given:
        marks[place] = True
    return Row(name, ids, [IGNORE] * len(question) + targets, marks)
