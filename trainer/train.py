"""Train Sa2VA on shards.

    accelerate launch trainer/train.py [config.yaml] [key=value ...]

On a machine with GPUs this takes all of them; on a CPU, name the processes and their threads:

    accelerate launch --num_processes 1 --num_cpu_threads_per_process 8 trainer/train.py data.shards=[shards/sav]
    accelerate launch --num_processes 2 trainer/train.py data.shards=[shards/sav] mixed_precision=no

The configuration is the defaults of trainer/config.py, then the YAML file, then the command line; an unknown key is an
error. docs/TRAINING.md explains the keys. The run leaves in `output_dir`: config.yaml (as it was in effect),
metrics.jsonl, what `tracker` asks for (tensorboard/), checkpoints/, checkpoint (the latest; `cli.py export` makes a
released folder of it), report.html. Stopped at any moment, by kill -9 too, the same command goes on.
"""

from __future__ import annotations

if __name__ == "__main__":
    from trainer.command import run_command
    from trainer.processes import start_missing

    run_command(start_missing, __doc__)  # before the imports below, which take seconds: it may be all there is to do

import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from signal import Signals
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.profiler import record_function

from trainer.agreement import over_processes, stop_unless_finite
from trainer.build import Run, build_run, drop_unreached_parts
from trainer.checkpoints.checkpoint import State, nbytes, write
from trainer.checkpoints.preemption import Preemption
from trainer.checkpoints.rng import random_state
from trainer.checkpoints.run_folder import RunFolder
from trainer.config import Config, flat, load_config
from trainer.fsdp import full_tensor
from trainer.launcher import typed_command
from trainer.measure.benchmarks import Benchmarks
from trainer.measure.profiler import Profiler
from trainer.measure.rates import Spent, memory
from trainer.measure.trackers import check_installed
from trainer.stall import StallWatch
from trainer.strategy import make_accelerator
from trainer.trained import Origin


def main(arguments: list[str]) -> None:
    """Run a training from its command line.

    Raises:
        UserError: whatever a user can mend.
        SystemExit: SIGTERM or SIGINT arrived and a checkpoint was saved; the status is 128 + its number.
    """
    config = drop_unreached_parts(load_config(arguments))
    check_installed(config.trackers())
    accelerator = make_accelerator(config)
    command = typed_command(arguments, accelerator.num_processes)  # while the launcher is alive
    with (
        closing(RunFolder(Path(config.output_dir), config.checkpoint.keep)) as folder,
        closing(stall_watch(config, accelerator)) as watch,
        closing(Benchmarks(config, accelerator)) as benchmarks,
    ):
        run = build_run(config, accelerator, folder, watch)
        if run and (signal := train(run, benchmarks)):
            run.show(f"to go on: {command}")
            sys.exit(128 + signal)


def train(run: Run, benchmarks: Benchmarks) -> int:
    """Train to the last step and return 0, or to the step at which a signal stopped the run and return that signal."""
    config = run.config
    learner = run.learner
    held_out = run.held_out
    first = run.beginning.step
    run.watch.at(f"the evaluation after step {first}")
    if held_out.is_due(first) and (not run.beginning.evaluated or first == config.steps):
        held_out.evaluate(first, known=run.beginning.evaluated)
    if benchmarks.is_due(first) and not run.beginning.benchmarked:
        measure_benchmarks(run, benchmarks, first)
    learner.wrapped.train()
    profiler = Profiler(config.profiled(), run.folder.folder, run.accelerator.process_index, run.show)
    with Preemption() as preemption:
        for step in range(first + 1, config.steps + 1):
            run.watch.at(f"step {step}")
            run.folder.writer.check()
            profiler.begin(step)
            started = time.perf_counter()
            waited = run.stream.wait_seconds
            losses, counts, keys = learner.backward(run.stream)
            losses["grad_norm"] = full_tensor(run.accelerator.clip_grad_norm_(learner.trainable, config.clip))
            waited = run.stream.wait_seconds - waited
            teacher = learner.parts.module.teacher
            amounts: dict[str, Any] = {**counts, "waited": waited, "memory": memory(run.accelerator.device)}
            amounts["captions"] = teacher.writing.take()
            means, each, signal = over_processes(run.accelerator, losses, amounts, preemption.signal)
            stop_unless_finite(means, losses, step, keys)
            with record_function("optimiser"):
                learner.optimizer.step()
                learner.optimizer.zero_grad()
                teacher.update()
            learner.parts.scheduler.step()
            if run.journal:
                samples = run.data.samples_per_step * len(run.data.train)
                spent = Spent.of(time.perf_counter() - started, samples, each)
                run.journal.step(step, means, config.lr * learner.factor(step - 1), spent)
            profiler.end(step, stopping=bool(signal) or step == config.steps)
            run.watch.at(f"what follows step {step}")
            # A preempted run has little time left: it is not evaluated.
            mask_loss = held_out.evaluate(step) if held_out.is_due(step) and not signal else None
            if signal or step % config.checkpoint.every == 0 or step == config.steps:
                save_checkpoint(run, step, mask_loss, last=bool(signal) or step == config.steps)
            if signal:
                run.show(f"stopped by {Signals(signal).name} after step {step}, saved")
                run.accelerator.end_training()
                return signal
            if benchmarks.is_due(step):  # after the checkpoint: this may take long
                measure_benchmarks(run, benchmarks, step)
    held_out.write_report()
    if run.journal:
        run.journal.close()
        run.show(f"weights: {run.folder.folder / 'checkpoint'}\nreport: {run.folder.report}")
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return 0


def measure_benchmarks(run: Run, benchmarks: Benchmarks, step: int) -> None:
    """Measure published benchmarks after `step` optimiser steps. All processes have to call this."""
    run.watch.at(f"the benchmarks after step {step}")
    benchmarks.measure(step, run.learner.parts.module, run.data.recipe, run.journal)
    run.held_out.write_report()


def save_checkpoint(run: Run, step: int, mask_loss: float | None, last: bool) -> None:
    """Save the run after `step` optimiser steps. All processes have to call this; the main one writes.

    With `checkpoint.background` it is written while the run goes on, and the one before has been by then.

    Args:
        last: return when it is written: no step follows.
        mask_loss: of the evaluation after this step; None where there was none, or no masks are predicted.
    """
    config = run.config
    data = run.data
    parts = run.learner.parts
    run.watch.at(f"the checkpoint of step {step}")
    random_states = gather_object([random_state(run.accelerator.device)])
    for what, count in sum(gather_object([run.stream.notes]), Counter()).items():
        run.show(f"since this start, {what}: {count:,}")
    background = config.checkpoint.background and not last
    is_main = run.accelerator.is_main_process
    run.folder.writer.wait()  # before the copy: there is never more than one
    tensors = parts.tensors(keep=is_main, copy=is_main and background)
    if run.journal:
        journal = run.journal
        origin = Origin.of(config, step, data.recipe, data.described, run.trained_on)
        samples = data.samples_per_step
        position = {name: {**place} for name, place in run.stream.position.items()}
        state = State(step, position, samples, mask_loss, parts.schedule(), flat(config), data.described)

        def save() -> None:
            journal.sync()
            run.folder.save(step, nbytes(tensors), lambda target: write(target, tensors, state, origin, random_states))

        run.folder.writer.start(save) if background else save()
    run.watch.at(f"the end of the checkpoint of step {step}")
    run.accelerator.wait_for_everyone()


def stall_watch(config: Config, accelerator: Accelerator) -> StallWatch:
    """Return the watch that logs which process of this run waits for which."""
    rank = accelerator.process_index
    count = accelerator.num_processes
    return StallWatch(Path(config.output_dir), rank, count, config.stall_notice, config.collective_timeout)


if __name__ == "__main__":
    run_command(main, __doc__)
