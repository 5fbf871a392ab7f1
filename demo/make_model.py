"""Write the demo's model, a tiny Sa2VA that has seen nothing yet, as a released folder.

    python -m demo.make_model data/model

Nothing pretrained is at hand, so its weights are random; but they are drawn so that a few hundred steps on two cores
can teach it. At random in the usual way, a mask would depend on what is asked for by less than a part in a hundred.
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

_LOCAL = 1.5  # of queries' and keys' biases
_PICTURE = 0.1
_PROMPT = 4.0


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer in which Sa2VA's questions are made of whole words, and so are `words`; other text is bytes."""
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
    """The model, float32; the same for the same seed."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(words)
    tiny = PRESETS["tiny"]
    language = {"vocab_size": len(tokenizer), "num_attention_heads": 8, "num_key_value_heads": 8}
    # Each layer sees the last words alone: beside 256 visual tokens the phrase would not count.
    language |= {"initializer_range": 0.15, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0}
    config = {**tiny.config, "llm_config": {**tiny.config["llm_config"], **language}}
    architecture = Architecture(config, tiny_sam(64))
    model = Sa2VA(architecture, Prompts(tokenizer, architecture.template, len(tokenizer)))
    initialise(model)
    with torch.no_grad():
        _see_shapes(model)
        _read_near(model)
        _tell_phrases_apart(model, words)
    return model


def _see_shapes(model: Sa2VA) -> None:
    """Both encoders, which stay as they are, begin with filters that whiten; at random they would see brightness."""
    trunk = model.grounding_encoder.sam2_model.image_encoder.trunk
    for conv in (model.vision_model.embeddings.patch_embeddings.projection, trunk.patch_embed.proj):
        conv.weight.copy_(whitening_filters(len(conv.weight), conv.weight.shape[-1]))


def _read_near(model: Sa2VA) -> None:
    """Words differ much, pictures a little, and what is near counts more: with equal biases in queries and keys,
    rotary positions turn distance into a lower score."""
    table = model.embedding.weight
    table.div_(table.std())
    last = model.mlp1[3]
    last.bias.normal_()
    last.weight.mul_(_PICTURE)
    for layer in model.language_model.model.layers:
        layer.self_attn.q_proj.bias.fill_(_LOCAL)
        layer.self_attn.k_proj.bias.fill_(_LOCAL)


def _tell_phrases_apart(model: Sa2VA, phrases: Sequence[str]) -> None:
    """Centre SAM 2's prompt token over phrases and spread it evenly, as in data-dependent initialisation (Krähenbühl
    et al. 2016): what all phrases share would hide what tells them apart."""
    prompts = model.prompts
    rows = prompts.pack([prompts.segment("any", phrase) for phrase in phrases], model.device)
    visual_tokens = torch.randn(1, IMAGE_TOKENS, model.mlp1[0].normalized_shape[0])
    embeddings = model.embed_rows(rows, visual_tokens, torch.zeros(len(phrases), dtype=torch.int64))
    states = model.run_language_model(embeddings, rows.attention, rows.positions)
    tokens = model.text_hidden_fcs(states[rows.ids == prompts.seg])
    mean = tokens.mean(0)
    _, spread, directions = torch.linalg.svd(tokens - mean, full_matrices=False)
    directions, spread = directions[:-1], spread[:-1]  # centred, they span one dimension less
    wanted = _PROMPT * (tokens.numel() / len(spread)) ** 0.5
    last = model.text_hidden_fcs[2]
    even = torch.eye(len(mean)) + directions.T @ (directions * (wanted / spread - 1)[:, None])
    last.weight.copy_(even @ last.weight)
    last.bias.copy_(-even @ mean)


def whitening_filters(count: int, side: int) -> Tensor:
    """Filters (count, 3, side, side), at most 3 * side * side, whose answers to photographs hardly correlate.

    These are the principal components with the largest variance, each over its root, of patches in which neighbouring
    pixels correlate by 0.97 and colours by 0.8: in place cosines (Ahmed et al. 1974), in colour brightness and two
    opponents.
    """
    place = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(torch.pi * place[:, None] * (place + 0.5) / side)
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    waves, colours = waves / waves.norm(dim=1, keepdim=True), colours / colours.norm(dim=1, keepdim=True)
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
