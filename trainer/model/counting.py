"""How much a model works in a step, counted by hooks on its modules: pictures, tokens, objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.attention import LENGTHS
from trainer.model.rows import RowLengths
from trainer.model.sa2va import Sa2VA

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


class Counts:
    """Amounts by kind of work and by whether gradients will flow back.

    Kinds: `vision_model`, `sam_image_encoder` and `mlp1` are pictures through these modules; `language_model` is tokens
    without padding; `attention` is pairs of such a token and a token of its row; `lm_head` is positions at which a
    token is predicted; `sam_mask_decoder` is objects.
    """

    def __init__(self) -> None:
        self.amounts: dict[tuple[str, bool], int | Tensor] = {}
        self.padding: int | Tensor = 0
        """Padding tokens of the rows that the language model reads with gradients, so the student's; () float32."""

    def add(self, kind: str, amount: int | Tensor) -> None:
        """Add `amount`, an int or a tensor of shape ()."""
        key = (kind, torch.is_grad_enabled())
        self.amounts[key] = self.amounts.get(key, 0) + amount

    def add_tokens(self, attention: Tensor | RowLengths, new: int) -> None:
        """Add tokens of rows: all of packed ones, the last `new` of rows whose attention mask is (M, past + new)."""
        if isinstance(attention, RowLengths):
            self.add("language_model", sum(attention.each))
            self.add("attention", sum(length * length for length in attention.each))
            return
        lengths = attention.sum(1).float()
        tokens = attention[:, -new:].sum(1).float()
        if torch.is_grad_enabled():
            self.padding = self.padding + (new * len(attention) - tokens.sum())
        self.add("language_model", tokens.sum())
        self.add("attention", (tokens * lengths).sum())

    @property
    def tokens(self) -> Tensor:
        """() float32: tokens that the language model reads with gradients, so the student's and not the teacher's."""
        return torch.as_tensor(self.amounts.get(("language_model", True), 0.0), dtype=torch.float32)


@contextmanager
def counting(model: Sa2VA) -> Iterator[Counts]:
    """Count the forward passes of the model's modules within the `with` block.

    Leave the block before the backward pass: layers under gradient checkpointing run forward again there, which does
    not count.
    """
    counts = Counts()

    def count_rows(kind: str) -> Hook:
        return lambda _, args, kwargs: counts.add(kind, len([*args, *kwargs.values()][0]))

    def count_tokens(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        counts.add_tokens(kwargs.get(LENGTHS, kwargs["attention_mask"]), kwargs["inputs_embeds"].shape[1])

    sam = model.grounding_encoder.sam2_model
    hooks: list[tuple[nn.Module, Hook]] = [
        (model.vision_model, count_rows("vision_model")),
        (sam.image_encoder, count_rows("sam_image_encoder")),
        (model.mlp1, count_rows("mlp1")),
        (model.language_model.model, count_tokens),
        (model.language_model.lm_head, count_rows("lm_head")),
        (sam.sam_mask_decoder, count_rows("sam_mask_decoder")),
    ]
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield counts
