"""Train Sa2VA on shards.

    accelerate launch trainer/train.py [config.yaml] [key=value ...]

On a machine with GPUs this takes all of them; on a CPU, name the processes and their threads:

    accelerate launch --num_processes 1 --num_cpu_threads_per_process 8 trainer/train.py data.shards=[shards/sav]
    accelerate launch --num_processes 2 trainer/train.py data.shards=[shards/sav] mixed_precision=no

The configuration is the defaults of trainer/config.py, then the YAML file, then the command line; an unknown key is an
error. docs/TRAINING.md explains the keys. The run leaves in `output_dir`: config.yaml (as it was in effect),
metrics.jsonl, tensorboard/, checkpoint/ (what was trained; `cli.py export` makes a released folder of it), report.html.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.lr_scheduler import LambdaLR

from shards.errors import UserError
from trainer.config import flat, load_config, save_config
from trainer.data import Batch, Loader, check_recipe
from trainer.dual_loop import FIELDS, NEED, DualLoop
from trainer.evaluation import SHOWN, evaluate, panels
from trainer.journal import Journal
from trainer.model.architecture import GRID, VISION_SIZE
from trainer.model.grounding import IMAGE_SIZE, MEAN, STD
from trainer.model.trainable import set_trainable
from trainer.processes import missing_processes, start
from trainer.report import write_report
from trainer.schedule import rate_factor
from trainer.trained import Origin, base_model, save_trained


def main(arguments: list[str]) -> None:
    """Run a training from its command line. Raises `UserError` for whatever a user can mend."""
    config = load_config(arguments)
    if processes := missing_processes():
        return start(processes)

    # The one place that decides device and precision.
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulation,
        log_with="tensorboard",
        project_dir=config.output_dir,
    )
    show, folder = accelerator.print, Path(config.output_dir)
    if accelerator.is_main_process:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("trainer").setLevel(logging.INFO)
        folder.mkdir(parents=True, exist_ok=True)
        save_config(config, folder / "config.yaml")

    # The loader is not prepared: Accelerate would let one process read for all, or split their batches once more.
    load = partial(
        Loader,
        config.data.shards,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        holdout=config.data.holdout,
        repeats=config.data.sources,
        objects_per_sample=config.data.objects_per_sample,
        need=NEED[config.objective],
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        pin=accelerator.device.type == "cuda",
    )
    loader = load(fields=FIELDS[config.objective])
    held_out = load(fields=FIELDS[config.objective], part="holdout") if config.data.holdout else None
    check_recipe(loader.recipe, vision_size=VISION_SIZE, grid=GRID, sam_size=IMAGE_SIZE, mean=MEAN, std=STD)

    set_seed(config.seed)  # the same for all processes, so that they build the same model
    model, new = base_model(config.model, accelerator.device)
    sizes = set_trainable(model, config.trainable, **vars(config.lora))
    if config.gradient_checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    loop = DualLoop(model.to(accelerator.device), config)
    trainable = [p for p in loop.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    # The scheduler is not prepared: it would step once a process, so many times too fast.
    factor = partial(rate_factor, steps=config.steps, warmup_steps=config.warmup_steps, warmup_from=config.warmup_from)
    scheduler = LambdaLR(optimizer, factor)
    step_forward, stepper = accelerator.prepare(loop, optimizer)
    set_seed(config.seed, device_specific=True)  # from here on (dropout) processes differ

    accelerator.init_trackers("tensorboard", config={name: str(value) for name, value in flat(config).items()})
    journal = Journal(folder, config.steps, accelerator.log, show) if accelerator.is_main_process else None
    show(f"{accelerator.num_processes} process(es) on {accelerator.device}, mixed precision {config.mixed_precision}")
    show("training " + ", ".join(f"{part} ({size:,} parameters)" for part, size in sizes.items()))

    def look_at_held_out(step: int) -> None:
        if held_out is not None:
            values = evaluate(accelerator, loop, held_out, config)
            if journal:
                journal.held_out(step, values)

    look_at_held_out(0)
    began, batches = time.perf_counter(), endless(loader)
    step_forward.train()
    for step in range(1, config.steps + 1):
        started, waited = time.perf_counter(), loader.wait_seconds
        losses: dict[str, torch.Tensor] = {}
        keys: list[str] = []
        for _ in range(config.accumulation):
            batch = next(batches)
            keys += batch["keys"]
            with accelerator.accumulate(step_forward):
                result = step_forward(batch, config.objective)
                accelerator.backward(result["loss"])
            for name, value in result.items():
                losses[name] = losses.get(name, 0) + value.detach() / config.accumulation
        losses["grad_norm"] = accelerator.clip_grad_norm_(trainable, config.clip)
        means = mean_over_processes(accelerator, losses)
        stop_unless_finite(means, losses, step, config.objective, keys)
        stepper.step()
        stepper.zero_grad()
        loop.teacher.update()
        rate = float(scheduler.get_last_lr()[0])
        scheduler.step()
        if journal:
            samples = len(keys) * accelerator.num_processes
            journal.step(step, means, rate, time.perf_counter() - started, loader.wait_seconds - waited, samples)
        if step % config.eval.every == 0 or step == config.steps:
            look_at_held_out(step)

    seconds = time.perf_counter() - began
    if journal:
        origin = Origin.of(config, config.steps, loader.recipe.name, loader.described)
        save_trained(folder / "checkpoint", model, new, origin)
        shown = (
            panels(accelerator, loop, load(fields=SHOWN[config.objective], part="holdout"), config) if held_out else []
        )
        facts = {
            "steps": f"{config.steps} of {config.accumulation} x {config.batch_size} samples on each of "
            f"{accelerator.num_processes} process(es), {accelerator.device.type}",
            "time": f"{seconds:.0f} s, {loader.wait_seconds / seconds:.1%} of it waiting for data",
            "trained": ", ".join(sizes),
        }
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        write_report(folder / "report.html", f"{config.objective}: {folder.name}", facts, journal.records, shown, text)
        journal.close()
        show(f"weights: {folder / 'checkpoint'}\nreport: {folder / 'report.html'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def endless(loader: Loader) -> Iterator[Batch]:
    """One epoch after another. Each has as many steps on every process, so that none waits for another at its end."""
    for epoch in count():
        yield from loader.epoch(epoch)


def mean_over_processes(accelerator: Accelerator, values: dict[str, torch.Tensor]) -> dict[str, float]:
    """The mean of each value () over all processes."""
    stacked = torch.stack([value.float() for value in values.values()])
    return dict(zip(values, accelerator.gather(stacked[None]).mean(0).tolist(), strict=True))


def stop_unless_finite(
    means: dict[str, float], own: dict[str, torch.Tensor], step: int, objective: str, keys: list[str]
) -> None:
    """Raise `UserError` on every process where a loss or the gradient norm of any is not finite.

    `means` are over all processes, so that all agree; `own` are this one's, whose samples are named.
    """
    if all(math.isfinite(value) for value in means.values()):
        return
    broken = {name: float(value) for name, value in own.items() if not math.isfinite(value)}
    met = ", ".join(f"{name} {value}" for name, value in broken.items()) or "finite here, not on another process"
    where = f"step {step}, objective {objective}, samples {', '.join(keys)}"
    raise UserError("loss or gradient is not finite", where=where, met=met, do="nothing was updated in this step")


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        sys.exit()
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
