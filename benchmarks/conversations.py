"""What several phrases of a picture cost in one row against a row for each, and the memory of a step of videos.

    python -m benchmarks.conversations [--phrases 5] [--rounds 15]
    python -m benchmarks.conversations --memory [--videos 2] [--frames 5] [--phrases 5] [--layers 8]

Tokens are those of a byte-level BPE that learnt whole words from the questions, as Qwen's has them. The time is that of
the language model of the preset `tiny`, forward and backward; the two ways take turns. The memory is that of a step of
the objective converse: a language model of 0.9 k width with adapters, SAM 2's mask decoder of the released width, tiny
encoders; the peak of PyTorch's allocator on a GPU and of the resident set on the CPU, less what the process held before
the step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.step_memory import SHAPE, resident
from shards.recipe import named_recipe
from trainer.config import Config
from trainer.conversations.conversation import Conversation, Mark, Target, Text, Turn
from trainer.conversations.wording import ANSWERS, QUESTIONS
from trainer.data.batch import ConversationBatch
from trainer.model.architecture import PRESETS, Architecture, tiny_sam
from trainer.model.prompts import Prompts
from trainer.model.rows import TokenRow
from trainer.model.sa2va import Sa2VA
from trainer.model.tokenizer import with_added_tokens
from trainer.model.trainable import set_trainable
from trainer.objectives.step import Step

PHRASES = (
    *("the man on the left", "woman in a red jacket", "the dog near the door", "white car behind the bus"),
    *("the boy with the blue cap", "second cup from the right", "black suitcase", "the person who is sitting"),
)
_VOCABULARY = 2_000


def prompts() -> Prompts:
    """Return the prompts of a tokenizer with tokens for the words of the questions and phrases."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1_500, initial_alphabet=alphabet, show_progress=False)
    texts = [*QUESTIONS, *ANSWERS, *PHRASES, "user assistant"]
    tokenizer.train_from_iterator(texts * 3, trainer)
    return Prompts(with_added_tokens(tokenizer), "qwen_chat", _VOCABULARY)


def marked(text: str) -> Text:
    before, _, after = text.partition(Mark.SEG.value)
    return (before, Mark.SEG, after)


def conversation(first: int, phrases: int, frames: int = 1) -> Conversation:
    """Return a conversation that asks for `phrases` of `PHRASES` from number `first` on."""
    turns = []
    numbers = range(first, first + phrases)
    for number in numbers:
        question = QUESTIONS[number % len(QUESTIONS)].format(phrase=PHRASES[number % len(PHRASES)])
        asked: Text = (Mark.PICTURES, "\n", question) if number == first else (question,)
        turns.append(Turn(asked, marked(ANSWERS[number % len(ANSWERS)])))
    targets = tuple(Target((0,), PHRASES[number % len(PHRASES)]) for number in numbers)
    return Conversation("referring", tuple(turns), tuple(range(frames)), targets)


def build(layers: int | None, width: int) -> Sa2VA:
    """Return the preset `tiny`; with `layers`, as many layers of 0.9 k width. `width`: of SAM 2's mask decoder."""
    tiny = PRESETS["tiny"]
    shape = {"vocab_size": _VOCABULARY, **({**SHAPE, "num_hidden_layers": layers} if layers else {})}
    config = {**tiny.config, "llm_config": {**tiny.config["llm_config"], **shape}}
    return Sa2VA(Architecture(config, tiny_sam(width)), prompts())


def compare_rows(phrases: int, rounds: int) -> None:
    """Print the tokens of one row of `phrases` and of a row for each, and the language model's time for both."""
    torch.manual_seed(0)
    model = build(None, 32)
    config = Config()
    set_trainable(model, config.trainable, **vars(config.lora))
    ways = {
        "one row": [model.prompts.conversation("picture", conversation(0, phrases), [])],
        "a row each": [model.prompts.conversation("picture", conversation(n, 1), []) for n in range(phrases)],
    }
    tokens = {name: sum(len(row.ids) for row in rows) for name, rows in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 2):
        for name, rows in ways.items():
            taken[name].append(seconds(model, rows))
    one, each = [times[2:] for times in taken.values()]
    ratios = sorted(a / b for a, b in zip(one, each, strict=True))
    print(f"{phrases} phrases of a picture, {' / '.join(ways)}")
    first, second = tokens.values()
    print(f"tokens: {first:,} / {second:,} = {first / second:.2f}")
    first_ms, second_ms = (statistics.median(times) * 1e3 for times in (one, each))
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"language model, forward and backward: {first_ms:.0f} ms / {second_ms:.0f} ms = {spread}")


def seconds(model: Sa2VA, rows: Sequence[TokenRow]) -> float:
    """Return the time of the language model, forward and backward, for rows in one batch."""
    padded = model.prompts.padded(rows, model.device)
    embeddings = model.embedding(padded.ids).detach().requires_grad_()
    started = time.perf_counter()
    model.run_language_model(embeddings, padded.attention, padded.positions).sum().backward()
    return time.perf_counter() - started


def videos(prompts: Prompts, count: int, frames: int, phrases: int) -> ConversationBatch:
    """Return a batch of `count` videos, each a row of `phrases`."""
    talk = conversation(0, phrases, frames)
    segs = torch.arange(count * phrases).view(count, 1, phrases).expand(-1, frames, -1)
    pictures = torch.arange(count * frames).view(count, frames)
    masks = torch.zeros(count * frames * phrases, 1024, 1024, dtype=torch.bool)
    masks[:, 200:600, 200:600] = True
    names = [f"video{n}" for n in range(count)]
    return ConversationBatch(
        keys=names,
        recipe=named_recipe("default"),
        meta=[{}] * count,
        copies=[0] * count,
        conversations=[talk] * count,
        rows=[prompts.conversation(name, talk, []) for name in names],
        sample_of_row=[*range(count)],
        pixel_values=torch.randn(count * frames, 3, 448, 448),
        image_of_row=pictures,
        regions=torch.zeros(count, 0, 16, 16, dtype=torch.bool),
        g_pixel_values=torch.randint(0, 256, (count * frames, 3, 1024, 1024), dtype=torch.uint8),
        masks=masks,
        seg_of_mask=segs.flatten(),
        picture_of_mask=pictures.flatten().repeat_interleave(phrases),
    )


def measure_memory(count: int, frames: int, phrases: int, layers: int) -> None:
    """Print the peak memory of a step of the objective converse."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = replace(Config(), mixed_precision="no")
    model = build(layers, 256)
    set_trainable(model, config.trainable, **vars(config.lora))
    step = Step(model.to(device), config).train()
    batch = videos(model.prompts, count, frames, phrases).to(device)
    before = torch.cuda.memory_allocated() if device.type == "cuda" else resident()
    started = time.perf_counter()
    step(batch, "converse")["loss"].backward()
    taken = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident()
    tokens = sum(len(row.ids) for row in batch.rows)
    masks = count * frames * phrases
    print(f"{count} videos of {frames} frames with {phrases} phrases: {tokens:,} tokens, {masks} masks")
    print(f"{(peak - before) / 2**20:,.0f} MiB beyond model and batch, {taken:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description="What conversations cost.")
    parser.add_argument("--phrases", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.videos, arguments.frames, arguments.phrases, arguments.layers)
    else:
        compare_rows(arguments.phrases, arguments.rounds)


if __name__ == "__main__":
    main()
