"""The tokens that Sa2VA adds, and a small byte-level tokenizer that has them all."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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
