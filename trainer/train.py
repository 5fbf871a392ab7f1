"""Train Sa2VA on shards.

    accelerate launch trainer/train.py [config.yaml] [key=value ...]

On a machine with GPUs this takes all of them; on a CPU, name the processes and their threads:

    accelerate launch --num_processes 1 --num_cpu_threads_per_process 8 trainer/train.py data.shards=[shards/sav]
    accelerate launch --num_processes 2 trainer/train.py data.shards=[shards/sav] mixed_precision=no

The configuration is the defaults of trainer/config.py, then the YAML file, then the command line; an unknown key is an
error. docs/TRAINING.md explains the keys. The run leaves in `output_dir`: config.yaml (as it was in effect),
metrics.jsonl, tensorboard/, checkpoints/, checkpoint (the latest; `cli.py export` makes a released folder of it),
report.html. Stopped at any moment, by kill -9 too, the same command goes on.
"""

from __future__ import annotations

if __name__ == "__main__":
    from trainer.command import run_command
    from trainer.processes import start_missing

    run_command(start_missing, __doc__)  # before the imports below, which take seconds: it may be all there is to do

import logging
import shlex
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from signal import Signals
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.optim.lr_scheduler import LambdaLR

from shards.checksum import Check
from shards.errors import UserError
from shards.groups import named_group
from shards.printable import PrintableFormatter, printable, printable_lines
from shards.remote import open_set
from trainer.agreement import decided_by_main, over_processes, stop_unless_finite
from trainer.checkpoints.checkpoint import Parts, State, nbytes, write
from trainer.checkpoints.preemption import Preemption
from trainer.checkpoints.resume import begin, keep_old_ways
from trainer.checkpoints.rng import random_state, set_random_state
from trainer.checkpoints.run_folder import RunFolder
from trainer.config import Config, flat, load_config, save_config
from trainer.data.holdout import holdout_notes
from trainer.data.loader import Loader, check_recipe
from trainer.data.stream import Stream
from trainer.fsdp import whole
from trainer.measure.evaluation import SHOWN
from trainer.measure.flops import costs_of, peak_of
from trainer.measure.held_out import HeldOut
from trainer.measure.journal import Journal
from trainer.measure.rates import Spent, memory
from trainer.model.architecture import GRID, VISION_SIZE
from trainer.model.compiled import compile_layers
from trainer.model.grounding import IMAGE_SIZE, MEAN, STD
from trainer.model.trainable import set_trainable
from trainer.objectives.backward import Backward
from trainer.objectives.losses import NOT_COMPARABLE
from trainer.objectives.step import FIELDS, NEED, UNREACHED, Step
from trainer.optimizer import make_optimizer
from trainer.schedule import rate_factor
from trainer.stall import StallWatch
from trainer.strategy import lay_out, layout_of, make_accelerator
from trainer.trained import Origin, base_model
from trainer.trained_on import after_training
from trainer.zero import sharing


def main(arguments: list[str]) -> None:
    """Run a training from its command line.

    Raises:
        UserError: whatever a user can mend.
        SystemExit: SIGTERM or SIGINT arrived and a checkpoint was saved; the status is 128 + its number.
    """
    config = reached(load_config(arguments))

    accelerator = make_accelerator(config)
    with (
        closing(RunFolder(Path(config.output_dir), config.checkpoint.keep)) as run,
        closing(stall_watch(config, accelerator)) as watch,
    ):
        if stopped := train(config, accelerator, run, watch):
            again = shlex.join(["trainer/train.py", *arguments])
            again = f"accelerate launch --num_processes {accelerator.num_processes} {again}"
            accelerator.print(printable(f"to go on: {again}"))
            sys.exit(128 + stopped)


def train(config: Config, accelerator: Accelerator, run: RunFolder, watch: StallWatch) -> int:
    """Train to the last step and return 0, or to the step at which a signal stopped it and return the signal."""
    folder, mix = run.folder, config.objectives()

    def show(text: str) -> None:
        accelerator.print(printable_lines(text))

    cache = config.data.open_cache()
    if accelerator.is_main_process:
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter())
        logging.basicConfig(handlers=[handler])
        logging.getLogger("trainer").setLevel(logging.INFO)

    config, kept = decided_by_main(accelerator, lambda: keep_old_ways(config, run))
    for line in kept:
        show(line)
    holdout_by = named_group(config.data.holdout_by)

    on_gpu, where = accelerator.device.type == "cuda", config.data.normalise

    # Loaders are not prepared: Accelerate would let one process read for all, or split their batches once more.
    def load(objective: str, fields: tuple[str, ...], **how: Any) -> Loader:
        return Loader(
            config.data.shards,
            fields=fields,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            holdout=config.data.holdout,
            holdout_by=holdout_by,
            purpose=config.key_of(objective),
            sources=mix[objective].sources,
            repeats=config.data.sources,
            need=NEED[objective],
            threads=config.data.threads,
            prefetch=config.data.prefetch,
            pin=on_gpu,
            normalise="device" if where == "device" or (where == "auto" and on_gpu) else "host",
            cache=cache,
            check=cast(Check, config.data.check),
            **how,
        )

    chosen = config.data.objects_per_sample
    loaders = {
        name: load(name, FIELDS[name], accumulation=config.accumulation, objects_per_sample=chosen) for name in mix
    }
    # Two objects of a picture, so that captions can be swapped.
    two: dict[str, Any] = {"part": "holdout", "objects_per_sample": max(2, chosen)}
    judged = {name: load(name, SHOWN[name], **two) for name in mix if config.data.holdout}
    recipe, described = loaders[next(iter(mix))].recipe, [f"{k}: {d}" for k in mix for d in loaders[k].described]
    for loader in loaders.values():
        check_recipe(loader.recipe, vision_size=VISION_SIZE, grid=GRID, sam_size=IMAGE_SIZE, mean=MEAN, std=STD)
    samples = config.batch_size * accelerator.num_processes * config.accumulation
    for said in dict.fromkeys(said for loader in loaders.values() for said in loader.lossy):
        show(f"pictures are not bit-equal to the recipe: {said}")
    if accelerator.is_main_process:
        sets = [open_set(path, cache) for path in config.data.shards]
        for note in holdout_notes(sets, config.data.holdout, holdout_by, config.sources()):
            show(note)

    begun = decided_by_main(accelerator, lambda: begin(config, run, described, samples))
    if begun.finished:
        show(f"{folder} is finished: {begun.step} steps. More steps=N go on, another output_dir starts anew")
        return 0
    if accelerator.is_main_process:
        save_config(config, folder / "config.yaml")
    watch.start()

    set_seed(config.seed)  # the same for all processes, so that they build the same model
    model, new = base_model(config.model, accelerator.device)
    if model.recipe and (differences := recipe.differences(model.recipe)):
        show(f"the model to start from was trained with another recipe than that of the shards: {differences}")
    ids, plans = ([getattr(loader, name) for loader in loaders.values()] for name in ("sample_ids", "plans"))
    trained_on = after_training(model.trained_on, ids, chain(*plans))
    sizes = set_trainable(model, config.trainable, **vars(config.lora))
    if config.gradient_checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        compile_layers(model)
    loop = Step(model.to(accelerator.device), config)
    device_peak = peak_of(accelerator.device, config.mixed_precision)
    loop.costs = costs_of(model) if device_peak else None
    optimizer = make_optimizer(model, config)
    # The scheduler is not prepared: it would step once a process, so many times too fast.
    factor = partial(rate_factor, steps=config.steps, warmup_steps=config.warmup_steps, warmup_from=config.warmup_from)
    scheduler = LambdaLR(optimizer, factor)
    stream = Stream(loaders, config.accumulation, begun.position)
    stream.on_batch = watch.advance
    step_forward, stepper = lay_out(accelerator, loop, optimizer)
    parts = Parts(loop, new, optimizer, scheduler, sharing(accelerator))
    trainable = [p for p in loop.parameters() if p.requires_grad]
    if begun.checkpoint:
        parts.read(begun.checkpoint)
    backward = Backward(accelerator, step_forward, trainable, config)
    # From here on (dropout) processes differ.
    set_random_state(begun.random_states, accelerator.process_index, accelerator.device, config.seed + begun.step)

    hyperparameters = None if begun.checkpoint else {name: str(value) for name, value in flat(config).items()}
    purge = {"purge_step": begun.step + 1 if begun.checkpoint else 0}  # what a killed run said of later steps
    accelerator.init_trackers("tensorboard", hyperparameters, {"tensorboard": purge})
    main = accelerator.is_main_process
    gauges: dict[str, Any] = {"peak": device_peak, "threads": config.data.threads}
    journal = Journal(folder, config.steps, accelerator.log, show, begun.records, **gauges) if main else None
    device, how = accelerator.device, layout_of(accelerator)
    show(f"{accelerator.num_processes} process(es) on {device}{how}, mixed precision {config.mixed_precision}")
    show("training " + ", ".join(f"{part} ({size:,} parameters)" for part, size in sizes.items()))
    if judged and config.importance_sample_ratio and {"dual", "segment"} & {*mix}:
        show(NOT_COMPARABLE)
    if begun.checkpoint:
        show(f"going on after step {begun.step}: {begun.checkpoint}")

    held_out = HeldOut(accelerator, loop, judged, config, journal, run.report, [*sizes])

    def save(step: int, mask_loss: float | None) -> None:
        watch.at(f"the checkpoint of step {step}")
        random_states = gather_object([random_state(accelerator.device)])
        tensors = parts.tensors(keep=main)
        if journal:
            journal.sync()
            origin = Origin.of(config, step, recipe, described, trained_on)
            state = State(step, stream.position, samples, mask_loss, parts.schedule(), flat(config), described)
            run.save(step, nbytes(tensors), lambda target: write(target, tensors, state, origin, random_states))
        watch.at(f"the end of the checkpoint of step {step}")
        accelerator.wait_for_everyone()

    watch.at(f"the evaluation after step {begun.step}")
    if held_out.is_due(begun.step) and (not begun.evaluated or begun.step == config.steps):
        held_out.look(begun.step, known=begun.evaluated)
    step_forward.train()
    with Preemption() as preemption:
        for step in range(begun.step + 1, config.steps + 1):
            watch.at(f"step {step}")
            started, waited = time.perf_counter(), stream.wait_seconds
            losses, counts, keys = backward(stream)
            losses["grad_norm"] = whole(accelerator.clip_grad_norm_(trainable, config.clip))
            own: dict[str, Any] = {
                **counts,
                "waited": stream.wait_seconds - waited,
                "memory": memory(accelerator.device),
            }
            means, each, stopped = over_processes(accelerator, losses, own, preemption.signal)
            stop_unless_finite(means, losses, step, keys)
            stepper.step()
            stepper.zero_grad()
            loop.teacher.update()
            rate = config.lr * factor(step - 1)
            parts.scheduler.step()
            if journal:
                seconds = time.perf_counter() - started
                journal.step(step, means, rate, Spent.of(seconds, samples * len(mix), each))
            watch.at(f"what follows step {step}")
            # Preempted: the time is short.
            mask_loss = held_out.look(step) if held_out.is_due(step) and not stopped else None
            if stopped or step % config.checkpoint.every == 0 or step == config.steps:
                save(step, mask_loss)
            if stopped:
                show(f"stopped by {Signals(stopped).name} after step {step}, saved")
                accelerator.end_training()
                return stopped

    held_out.write_report()
    if journal:
        journal.close()
        show(f"weights: {folder / 'checkpoint'}\nreport: {run.report}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def stall_watch(config: Config, accelerator: Accelerator) -> StallWatch:
    """Says which process of this run waits for which."""
    rank, count = accelerator.process_index, accelerator.num_processes
    return StallWatch(Path(config.output_dir), rank, count, config.stall_notice, config.collective_timeout)


def reached(config: Config) -> Config:
    """Without the parts that no loss reaches: weight decay alone would shrink them."""
    kept = [p for p in config.trainable if any(p not in UNREACHED.get(name, ()) for name in config.objectives())]
    if config.trainable and not kept:
        met, wanted = ", ".join(config.trainable), "a part that a loss of the objective reaches"
        raise UserError("nothing to train", where="trainable", met=met, wanted=wanted)
    return replace(config, trainable=kept)


if __name__ == "__main__":
    run_command(main, __doc__)
