"""Tokenizers for tests: small, but with what released ones have."""

from __future__ import annotations

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase

from trainer.model.tokenizer import byte_tokenizer, with_added_tokens

TEXT = """Please segment the dog on the left. Sure, the segmentation result is shown in this image of a picture.
Can you segment the white helmet in this image? What is the region near the astronaut? It is a red cup of coffee.
There are two part regions in the picture: region1, region2. Please generate a detailed description. user assistant
"""
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Where Qwen's tokenizer cuts a text before it merges bytes."""


@cache
def merging_tokenizer() -> PreTrainedTokenizerBase:
    """Build a byte-level BPE that normalises, cuts and merges as Qwen's does. Not to be changed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    parts = [pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return with_added_tokens(tokenizer)


@cache
def writing_tokenizer() -> PreTrainedTokenizerBase:
    """Build a byte-level BPE whose merges make `[SEG]` and `<p>` of letters too. Not to be changed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("[", "S"), ("E", "G"), ("[S", "EG"), ("[SEG", "]"), ("<", "p"), ("<p", ">")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_added_tokens(tokenizer)


@cache
def beginning_tokenizer() -> PreTrainedTokenizerBase:
    """Build a byte-level tokenizer that puts `<s>` in front of a text. Not to be changed."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
    )
    return tokenizer
