"""Cost of a training step on this machine's GPU, measured within a given time, as docs/GPU.md's table.

    python -m benchmarks.gpu [--seconds 460] [--records gpu.jsonl] [--page docs/GPU.md] [--write-page]
    python -m benchmarks.gpu --small            the same on the CPU with a tiny model, to try this script

Models have the sizes of Sa2VA 1B, 4B and 8B and random weights in bfloat16; adapters and the other parts that train by
default are float32. Data are photographs in shards that the script writes. Each size is measured in a process of its
own, so that one that fails or hangs costs no other. A record is written when it is measured: a run that is cut leaves
what it has. What no time was left for is said.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.stopwatch import Stopwatch

PAGE = Path("docs/GPU.md")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
OBJECTIVES = ("segment", "dual", "converse")
OPTIONS: dict[str, dict[str, Any]] = {
    "packing: false": {"packing": False},
    "gradient_checkpointing: true": {"gradient_checkpointing": True},
    "optimizer: adamw8bit": {"optimizer": "adamw8bit"},
    "compile: true": {"compile": True},
}
"""Measured with the objective segment; `compile` last, because it stays."""
_SECONDS_OF_A_MEASUREMENT = 12.0
"""After which no further step begins."""
_MOST_STEPS = 20
_WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    size: str
    """A preset."""
    what: str
    """An objective; or what is changed of it, or checked."""


@dataclass(frozen=True)
class Plan:
    """Measurements of one size, and its share of the time."""

    size: str
    cases: tuple[str, ...]
    share: float


def plans(small: bool) -> list[Plan]:
    """Return what is measured, in order."""
    more = ("raw shards", "gradient shards", "normalise: device", *OPTIONS)
    if small:
        return [Plan("tiny", (*OBJECTIVES, *more), 1.0)]
    return [
        Plan("sa2va-1b", (*OBJECTIVES, *more), 0.5),
        Plan("sa2va-4b", (*OBJECTIVES, "gradient_checkpointing: true"), 0.5),
        Plan("sa2va-8b", (*OBJECTIVES, "gradient_checkpointing: true"), 1.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step costs on this machine's GPU.")
    parser.add_argument("--seconds", type=float, default=460.0, help="for all measurements together")
    parser.add_argument("--records", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--page", type=Path, default=PAGE, help="has the table")
    parser.add_argument("--write-page", action="store_true", help="put the table into --page; else it is only printed")
    parser.add_argument("--small", action="store_true", help="a tiny model, on the CPU")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        plan = next(plan for plan in plans(arguments.small) if plan.size == arguments.measure)
        for record in measure(plan, arguments.data, arguments.small):
            print(json.dumps(record), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, Path(folder))


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure all, each size in a process of its own; write records as they come, and the table after each size."""
    until = time.monotonic() + arguments.seconds
    records: list[dict[str, Any]] = []
    with arguments.records.open("w") as file:
        for plan in plans(arguments.small):
            left = (until - time.monotonic()) * plan.share
            command = [sys.executable, "-m", "benchmarks.gpu", "--measure", plan.size, "--data", str(folder)]
            for record in lines_of([*command, *(["--small"] * arguments.small)], left):
                records.append(record)
                file.write(json.dumps(record) + "\n")
                file.flush()
                print(json.dumps(record), flush=True)
            measured = {record["what"] for record in records if record.get("size") == plan.size}
            for what in plan.cases:
                if what not in measured:
                    records.append({"size": plan.size, "what": what, "left out": "no time was left"})
                    file.write(json.dumps(records[-1]) + "\n")
            if arguments.write_page:
                page = arguments.page.read_text(encoding="utf-8")
                arguments.page.write_text(with_table(page, table(records)), encoding="utf-8")
    print(table(records))


def lines_of(command: Sequence[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Run a command and yield its lines as they come, each a JSON object; end it after so many seconds."""
    until = time.monotonic() + seconds
    lines: Queue[str | None] = Queue()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout

    def read(stream: Any) -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    try:
        while (left := until - time.monotonic()) > 0:
            try:
                line = lines.get(timeout=left)
            except Empty:
                return
            if line is None:
                return
            if line.startswith("{"):
                yield json.loads(line)
    finally:
        process.kill()
        process.wait()


def measure(plan: Plan, folder: Path, small: bool) -> Iterator[dict[str, Any]]:
    """Yield the machine, then what is measured of one size."""
    import torch

    device = torch.device("cpu" if small or not torch.cuda.is_available() else "cuda")
    yield {"machine": machine(device)}
    write_shards(folder, 2 if small else 48, 1 if small else 2)
    bench = Bench(plan.size, folder, device, small)
    for what in plan.cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield {"size": plan.size, "what": what, **bench.record(what)}


def machine(device: Any) -> dict[str, Any]:
    """Return names and versions, and whether shards are read by the compiled part."""
    import torch
    import transformers

    from shards.compiled import is_compiled

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "reader": "compiled" if is_compiled() else "Python",
    }
    if device.type != "cuda":
        return {"device": f"CPU, {torch.get_num_threads()} thread(s)", **versions}
    memory = torch.cuda.get_device_properties(device).total_memory
    return {"device": torch.cuda.get_device_name(device), "memory": memory, **versions, "cuda": torch.version.cuda}


def write_shards(folder: Path, samples: int, workers: int) -> None:
    """Write shards of photographs with two frames, 4 objects and texts, as gradient and raw, unless they are there."""
    from demo.make_sav import photograph
    from pipeline.request import make_request
    from pipeline.run import run
    from shards.recode import recode

    if (folder / "done").exists():
        return
    for name in ("pictures", "gradient", "raw"):  # of a process that was ended while it wrote
        shutil.rmtree(folder / name, ignore_errors=True)
    root = folder / "pictures"
    root.mkdir(parents=True)
    for name in ("astronaut", "coffee"):
        photograph(name).resize((640, 480)).save(root / f"{name}.jpg")
    corners = [(40, 40), (300, 60), (80, 250), (340, 260)]
    masks = [[[x, y, x + 180, y, x + 150, y + 170, x, y + 140]] for x, y in corners]
    objects = [{"masks": [mask, mask], "texts": [f"the shape number {n}"]} for n, mask in enumerate(masks)]
    lines = [
        json.dumps({"id": f"n{number}", "frames": ["astronaut.jpg", "coffee.jpg"], "objects": objects})
        for number in range(samples)
    ]
    (root / "samples.jsonl").write_text("\n".join(lines) + "\n")
    run(make_request("folder", root, shard_bytes=1 << 26), folder / "gradient", workers, 0.0)
    recode(folder / "gradient", folder / "raw", "raw", workers)
    (folder / "done").touch()


class Bench:
    """Measures steps of one model.

    Args:
        size: a preset.
        folder: what `write_shards` wrote.
        device: where it runs.
        small: few steps, and options that compile run as they are written.
    """

    def __init__(self, size: str, folder: Path, device: Any, small: bool) -> None:
        import torch
        from accelerate import Accelerator

        from trainer.config import Config, ModelConfig
        from trainer.model.architecture import preset_named
        from trainer.model.flops import costs_of
        from trainer.model.sa2va import Sa2VA, initialise, preset_prompts
        from trainer.model.trainable import set_trainable
        from trainer.released.folder import cast

        self._device = device
        self._folder = folder
        self._small = small
        self._batch_size = 1 if small else 4
        precision = "no" if device.type == "cpu" else "bf16"
        self._config = Config(
            model=ModelConfig(preset=size), mixed_precision=precision, accumulation=1, batch_size=self._batch_size
        )
        if small:
            self._config.max_caption_tokens = 2
            self._config.num_points = 256
        self._accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
        torch.manual_seed(0)
        prompts = preset_prompts(size)
        with device:  # random numbers for billions of weights would take minutes on the CPU
            model = Sa2VA(preset_named(size), prompts)
            initialise(model)
        if precision == "bf16":
            cast(model, torch.bfloat16)
        set_trainable(model, self._config.trainable, **asdict(self._config.lora))
        self._model = model.to(device)
        self._costs = costs_of(self._model)

    def record(self, what: str) -> dict[str, Any]:
        """Return what is measured of a case; why it is left out where it fails."""
        import torch

        while True:
            try:
                if what == "normalise: device":
                    return self._normalise()
                if what in OBJECTIVES:
                    return self._steps(what, self._config)
                if what.endswith(" shards"):
                    return self._steps("segment", self._config, shards=what.split()[0])
                return self._option(what)
            except torch.cuda.OutOfMemoryError:
                found = f"out of memory with {self._batch_size} sample(s) per step"
                if self._batch_size == 1:
                    return {"left out": found}
                self._batch_size //= 2
                self._config = replace(self._config, batch_size=self._batch_size)
            except Exception as error:  # one case must not cost the others
                return {"left out": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
            finally:
                gc.collect()
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()

    def _option(self, what: str) -> dict[str, Any]:
        """Measure steps of segment with an option."""
        import torch

        from trainer.model.compiled import compile_layers

        config = replace(self._config, **OPTIONS[what])
        language = self._model.language_model
        if config.compile:
            compile_layers(self._model)
        if config.gradient_checkpointing:
            language.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            with torch.compiler.set_stance("force_eager") if self._small else nullcontext():
                return self._steps("segment", config)
        finally:
            if config.gradient_checkpointing:
                language.gradient_checkpointing_disable()

    def _steps(self, objective: str, config: Any, shards: str | None = None) -> dict[str, Any]:
        """Measure optimiser steps of an objective.

        Args:
            shards: "raw" or "gradient": batches are read from them. None: one batch lies on the device already.
        """
        import torch

        from trainer.data.copying import copies_to
        from trainer.data.loader import Loader
        from trainer.data.stream import Stream
        from trainer.loader_options import training_options
        from trainer.objectives.backward import Backward
        from trainer.objectives.step import Step
        from trainer.optimizer import make_optimizer

        where = "device" if self._device.type == "cuda" else "host"
        options = training_options(
            replace(config, objective=objective),
            objective,
            self._model.prompts,
            normalise=where,
            copies=copies_to(self._device),
        )
        config = replace(config, objective=objective)
        loader = Loader([str(self._folder / (shards or "raw"))], options)
        step = Step(self._model, config).train()
        step.costs = self._costs
        optimizer = make_optimizer(self._model, config)
        trainable = [p for p in step.parameters() if p.requires_grad]
        backward = Backward(self._accelerator, step, trainable, config)
        stream = Stream({objective: loader}, 1)
        source: Any = stream if shards else Repeated(objective, stream, self._device)

        def one() -> dict[str, float]:
            losses, counts, _ = backward(source)
            losses["grad_norm"] = torch.nn.utils.clip_grad_norm_(trainable, config.clip)
            numbers = torch.stack([v.float().to(self._device) for v in (*losses.values(), *counts.values())]).tolist()
            optimizer.step()
            optimizer.zero_grad()
            step.teacher.update()
            return dict(zip([*losses, *counts], numbers, strict=True))

        with closing(stream):
            return self._timed(one, step.teacher.writing, lambda: stream.wait_seconds, bool(shards))

    def _timed(
        self, one: Callable[[], dict[str, float]], captions: Stopwatch, waited: Callable[[], float], from_shards: bool
    ) -> dict[str, Any]:
        """Run steps, and return the numbers of their median."""
        import torch

        on_gpu = self._device.type == "cuda"
        for _ in range(0 if self._small else _WARM_UP):
            one()
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        captions.take()
        first_wait = waited()
        begun = time.perf_counter()
        taken: list[float] = []
        while len(taken) < (1 if self._small else _MOST_STEPS) and (
            len(taken) < 3 or time.perf_counter() - begun < _SECONDS_OF_A_MEASUREMENT
        ):
            started = time.perf_counter()
            numbers = one()
            if on_gpu:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
            if self._small:
                break
        seconds = statistics.median(taken)
        together = sum(taken)
        found: dict[str, Any] = {
            "batch_size": self._batch_size,
            "steps": len(taken),
            "ms": 1e3 * seconds,
            "ms_range": [1e3 * min(taken), 1e3 * max(taken)],
            "samples_per_second": self._batch_size / seconds,
            "tokens_per_second": numbers["tokens"] / seconds,
            "tflops": numbers["flops"] / seconds / 1e12,
            "captions": captions.take() / together,
            "loss": numbers["loss"],
        }
        if from_shards:
            found["data_wait"] = (waited() - first_wait) / together
        if on_gpu:
            found |= self._of_gpu(found["tflops"], one)
        return found

    def _of_gpu(self, tflops: float, one: Callable[[], object]) -> dict[str, Any]:
        """Model FLOPs utilisation, peak of memory, and how often CUDA made the host wait in a step."""
        import torch

        from trainer.model.flops import peak_of

        found: dict[str, Any] = {"memory": torch.cuda.max_memory_allocated()}
        if peak := peak_of(self._device, self._config.mixed_precision):
            found["mfu"] = tflops * 1e12 / peak
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as noted:
                warnings.simplefilter("always")
                one()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found["host_waits"] = sum("synchron" in str(warning.message) for warning in noted)
        return found

    def _normalise(self) -> dict[str, Any]:
        """Compare pictures that were normalised on the device, and masks that were unpacked there, with the host's."""
        import numpy as np
        import torch

        from shards import codec
        from shards.recipe import named_recipe
        from trainer.data.normalise import normalised
        from trainer.data.unpack import unpacked

        recipe = named_recipe("default")
        draw = np.random.default_rng(0)
        pictures = draw.integers(0, 256, (2, 3, 448, 448), np.uint8)
        host = np.stack([codec.normalise(picture, recipe.mean, recipe.std) for picture in pictures])
        there = normalised(torch.from_numpy(pictures).to(self._device), recipe.mean, recipe.std).cpu()
        bits = draw.integers(0, 256, (2, 1024, 128), np.uint8)
        masks = unpacked(torch.from_numpy(bits).to(self._device)).cpu()
        equal = torch.equal(there, torch.from_numpy(host))
        return {
            "pictures_bit_equal": equal,
            "masks_bit_equal": bool(np.array_equal(masks.numpy(), np.unpackbits(bits, axis=2).astype(bool))),
        }


class Repeated:
    """Yields one batch again and again, which lies on the device already; see `trainer.data.stream.Stream`."""

    def __init__(self, objective: str, stream: Any, device: Any) -> None:
        self._objective = objective
        self._counts = stream.counts()
        self._batch = next(stream.step())[1].to(device)

    def counts(self) -> Any:
        """See `Stream.counts`."""
        return self._counts

    def step(self) -> Iterator[tuple[str, Any]]:
        """See `Stream.step`."""
        yield self._objective, self._batch


COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("samples a step", "batch_size", "{:.0f}".format),
    ("ms a step", "ms", "{:,.0f}".format),
    ("samples/s", "samples_per_second", "{:.2f}".format),
    ("tokens/s", "tokens_per_second", "{:,.0f}".format),
    ("MFU", "mfu", "{:.1%}".format),
    ("peak memory, GB", "memory", lambda value: f"{value / 1e9:.1f}"),
    ("captions", "captions", "{:.0%}".format),
    ("data wait", "data_wait", "{:.1%}".format),
    ("host waits", "host_waits", "{:.0f}".format),
)
"""Title of each column, the name of its value in the records, and how it is written."""


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the records as Markdown: the machine, a table of the steps, and what was checked or left out."""
    lines = []
    for record in records:
        if "machine" in record and (line := ", ".join(f"{k} {v}" for k, v in record["machine"].items())) not in lines:
            lines.append(line)
    lines += ["", "| model | what | " + " | ".join(title for title, _, _ in COLUMNS) + " |"]
    lines += ["|" + "---|" * (2 + len(COLUMNS))]
    for record in records:
        if "ms" in record:
            cells = [write(record[name]) if name in record else "" for _, name, write in COLUMNS]
            lines.append("| " + " | ".join([record["size"], f"`{record['what']}`", *cells]) + " |")
    lines.append("")
    for record in records:
        if "pictures_bit_equal" in record:
            equal = record["pictures_bit_equal"] and record["masks_bit_equal"]
            lines.append(
                f"- `data.normalise: device` gives {'the same bits as' if equal else 'OTHER bits than'} the host."
            )
        if "left out" in record:
            lines.append(f"- left out: {record['size']}, `{record['what']}`: {record['left out']}")
    return "\n".join(lines)


def with_table(page: str, text: str) -> str:
    """Return the page with `text` between its two marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"


if __name__ == "__main__":
    main()
