"""Write the demo's model, a tiny Sa2VA without training, as a released folder.

    python -m demo.make_model data/model

Its weights are random, but drawn so that it learns in a few hundred steps on two cores. With the usual random weights,
less than a hundredth of a mask would depend on the phrase.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo.make_sav import SCENES
from trainer.model.architecture import PRESETS, Architecture, tiny_sam
from trainer.model.prompts import DESCRIBE, IMAGE_TOKENS, SEGMENT, SEGMENT_ANSWERS, Prompts
from trainer.model.sa2va import Sa2VA, initialise
from trainer.model.tokenizer import with_added_tokens
from trainer.released.folder import save_model

_LOCAL = 1.5
"""Biases of queries and keys."""
_PICTURE = 0.1
"""Factor of the projector's last weights."""
_PROMPT = 4.0
"""Root mean square of the differences between SAM 2's prompt tokens."""


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with tokens for the words of Sa2VA's questions and for `words`; other text is bytes."""
    tokenizer = Tokenizer(models.BPE())
    # A space is a token of its own: a word is the same token inside a question and alone.
    parts = [pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    text = [DESCRIBE, "user", "assistant", *SEGMENT, *SEGMENT_ANSWERS, *words]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    return with_added_tokens(tokenizer)


def make(words: Sequence[str], seed: int = 0) -> Sa2VA:
    """Build the model, float32; the same for the same seed."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(words)
    tiny = PRESETS["tiny"]
    language = {"vocab_size": len(tokenizer), "num_attention_heads": 8, "num_key_value_heads": 8}
    # Each layer attends to the last words alone: among 256 visual tokens the phrase would not count.
    language |= {"initializer_range": 0.15, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0}
    config = {**tiny.config, "llm_config": {**tiny.config["llm_config"], **language}}
    architecture = Architecture(config, tiny_sam(64))
    model = Sa2VA(architecture, Prompts(tokenizer, architecture.template, len(tokenizer)))
    initialise(model)
    with torch.no_grad():
        _whiten_patches(model)
        _favour_near_words(model)
        _spread_prompts(model, words)
    return model


def _whiten_patches(model: Sa2VA) -> None:
    """Let both encoders, which are frozen, begin with whitening filters; random ones would only encode brightness."""
    trunk = model.grounding_encoder.sam2_model.image_encoder.trunk
    for conv in (model.vision_model.embeddings.patch_embeddings.projection, trunk.patch_embed.proj):
        conv.weight.copy_(whitening_filters(len(conv.weight), conv.weight.shape[-1]))


def _favour_near_words(model: Sa2VA) -> None:
    """Make embeddings of words differ much and those of pictures little, and attention prefer near positions.

    With equal biases in queries and keys, rotary positions give distant positions a lower score.
    """
    table = model.embedding.weight
    table.div_(table.std())
    last = model.mlp1[3]
    last.bias.normal_()
    last.weight.mul_(_PICTURE)
    for layer in model.language_model.model.layers:
        layer.self_attn.q_proj.bias.fill_(_LOCAL)
        layer.self_attn.k_proj.bias.fill_(_LOCAL)


def _spread_prompts(model: Sa2VA, phrases: Sequence[str]) -> None:
    """Centre SAM 2's prompt tokens over phrases and scale their differences to one size in all directions.

    Else what all phrases share would hide their differences. (Data-dependent initialisation, Krähenbühl et al. 2016.)
    """
    prompts = model.prompts
    rows = prompts.padded([prompts.segment("any", phrase) for phrase in phrases], model.device)
    visual_tokens = torch.randn(1, IMAGE_TOKENS, model.mlp1[0].normalized_shape[0])
    embeddings = model.embed_rows(rows, visual_tokens, torch.zeros(len(phrases), dtype=torch.int64))
    states = model.run_language_model(embeddings, rows.attention, rows.positions)
    tokens = model.text_hidden_fcs(states.flatten(0, 1)[rows.segs])
    mean = tokens.mean(0)
    _, spread, directions = torch.linalg.svd(tokens - mean, full_matrices=False)
    directions = directions[:-1]  # centred tokens span one dimension less
    spread = spread[:-1]
    target = _PROMPT * (tokens.numel() / len(spread)) ** 0.5
    last = model.text_hidden_fcs[2]
    even = torch.eye(len(mean)) + directions.T @ (directions * (target / spread - 1)[:, None])
    last.weight.copy_(even @ last.weight)
    last.bias.copy_(-even @ mean)


def whitening_filters(count: int, side: int) -> Tensor:
    """Return filters (count, 3, side, side) whose responses to photographs hardly correlate; count <= 3 * side * side.

    They are the principal components of largest variance, each divided by its standard deviation, of patches in which
    neighbouring pixels correlate by 0.97 and colours by 0.8: cosines in space (Ahmed et al. 1974), brightness and two
    opponent colours.
    """
    place = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(torch.pi * place[:, None] * (place + 0.5) / side)
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    waves = waves / waves.norm(dim=1, keepdim=True)
    colours = colours / colours.norm(dim=1, keepdim=True)
    in_place = (waves @ 0.97 ** (place[:, None] - place).abs() * waves).sum(1)
    in_colour = torch.tensor([2.6, 0.2, 0.2], dtype=torch.float64)
    variance = (in_colour[:, None, None] * in_place[:, None] * in_place).flatten()
    most = variance.argsort(descending=True, stable=True)[:count]
    components = torch.einsum("ac,by,dx->abdcyx", colours, waves, waves).flatten(0, 2)
    return (components[most] / variance[most].sqrt()[:, None, None, None]).float()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's model.")
    parser.add_argument("folder", type=Path, help="folder to write, replaced if it is there")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    model = make([thing for things in SCENES.values() for thing in things], arguments.seed)
    save_model(model, arguments.folder, card="# A tiny Sa2VA with random weights\n")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters: {arguments.folder}")


if __name__ == "__main__":
    main()
