"""Build a run in four steps: open its data, build its model, lay it out over the processes, restore its checkpoint.

`build_run` takes these steps in this order; `trainer/train.py` trains what it returns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from shards.errors import UserError
from shards.printable import PrintableFormatter, printable_lines
from shards.recipe import Recipe
from shards.sets import open_sets
from trainer.agreement import decided_by_main
from trainer.checkpoints.checkpoint import Parts
from trainer.checkpoints.resume import Beginning, begin, keep_earlier_defaults
from trainer.checkpoints.rng import set_random_state
from trainer.checkpoints.run_folder import RunFolder
from trainer.config import Config, save_config
from trainer.data.copying import copies_to
from trainer.data.holdout import holdout_notes
from trainer.data.loader import Loader, check_recipe
from trainer.data.near_twins import near_twins
from trainer.data.stream import Stream
from trainer.loader_options import judging_options, prompts_of, training_options
from trainer.measure.held_out import HeldOut
from trainer.measure.journal import METRICS, Journal, read_records
from trainer.measure.trackers import Trackers
from trainer.model.architecture import GRID, VISION_SIZE
from trainer.model.compiled import compile_layers
from trainer.model.flops import costs_of, peak_of
from trainer.model.grounding import IMAGE_SIZE, MEAN, STD
from trainer.model.trainable import set_trainable
from trainer.objectives import load_objective
from trainer.objectives.backward import Backward
from trainer.objectives.losses import NOT_COMPARABLE
from trainer.objectives.step import Step
from trainer.optimizer import make_optimizer
from trainer.schedule import rate_factor
from trainer.stall import StallWatch
from trainer.strategy import lay_out, layout_of
from trainer.trained import base_model
from trainer.trained_on import TrainedOn, after_training
from trainer.zero import deepspeed_optimizer

Show = Callable[[str], None]


@dataclass(frozen=True)
class RunData:
    """Shards of a run as batches, by objective."""

    train: dict[str, Loader]
    held_out: dict[str, Loader]
    """Empty where nothing is held out."""
    samples_per_step: int
    """Samples per optimiser step and objective on all processes together: the global batch."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of all shards."""
        return next(iter(self.train.values())).recipe

    @property
    def described(self) -> list[str]:
        """One line per objective and shard set."""
        return [f"{name}: {line}" for name, loader in self.train.items() for line in loader.described]

    def trained_on(self, before: TrainedOn | None) -> TrainedOn:
        """Return the record of a model's training samples after this run; `before` is its record so far."""
        loaders = self.train.values()
        return after_training(before, [each.sample_ids for each in loaders], chain(*(each.plans for each in loaders)))


@dataclass(frozen=True)
class BuiltModel:
    """The model inside its training step, on its device."""

    step: Step
    new: frozenset[str]
    """Names of the tensors that no file held."""
    sizes: dict[str, int]
    """Trainable parameters of each part."""
    trained_on: TrainedOn
    """The model's training samples after this run."""


@dataclass(frozen=True)
class Learner:
    """What an optimiser step works on, laid out over the processes."""

    parts: Parts
    """What a checkpoint holds."""
    wrapped: nn.Module
    """The `Step` as Accelerate wrapped it: its forward is a training step."""
    optimizer: Optimizer
    """The optimiser as Accelerate wrapped it."""
    trainable: list[nn.Parameter]
    backward: Backward
    factor: Callable[[int], float]
    """Share of the full learning rate for an optimiser step, counted from 0."""


@dataclass(frozen=True)
class Run:
    """All that the training loop uses."""

    config: Config
    accelerator: Accelerator
    folder: RunFolder
    watch: StallWatch
    show: Show
    """Prints a text in the main process."""
    data: RunData
    stream: Stream
    beginning: Beginning
    learner: Learner
    trained_on: TrainedOn
    """The model's training samples after this run."""
    held_out: HeldOut
    journal: Journal | None
    """In the main process."""


def build_run(config: Config, accelerator: Accelerator, folder: RunFolder, watch: StallWatch) -> Run | None:
    """Build the run that `config` asks for; return None where it is finished already.

    Raises:
        UserError: shards, model or checkpoint cannot be read, or do not fit each other or the configuration.
    """

    def show(text: str) -> None:
        if accelerator.is_main_process:  # `Accelerator.print` prints on every machine
            print(printable_lines(text))

    if accelerator.is_main_process:
        log_to_terminal()
    config, kept = decided_by_main(accelerator, lambda: keep_earlier_defaults(config, folder))
    for line in kept:
        show(line)
    data = open_data(config, accelerator, show)
    beginning = decided_by_main(accelerator, lambda: begin(config, folder, data.described, data.samples_per_step))
    if beginning.finished:
        show(f"{folder.folder} is finished: {beginning.step} steps. More steps=N go on, another output_dir starts anew")
        return None
    if accelerator.is_main_process:
        save_config(config, folder.folder / "config.yaml")
    watch.start()

    built = build_model(config, accelerator, data, show)
    stream = Stream(data.train, config.accumulation, beginning.position)
    stream.on_batch = watch.advance
    learner = lay_out_learner(config, accelerator, built)
    restore(config, accelerator, learner, beginning)

    journal = open_journal(config, accelerator, folder, beginning, show)
    show(
        f"{accelerator.num_processes} process(es) on {accelerator.device}{layout_of(accelerator)}, "
        f"mixed precision {config.mixed_precision}"
    )
    show("training " + ", ".join(f"{part} ({size:,} parameters)" for part, size in built.sizes.items()))
    learns_masks = any("bce" in load_objective(name).loss_weights for name in data.train)
    if data.held_out and config.importance_sample_ratio and learns_masks:
        show(NOT_COMPARABLE)
    if beginning.checkpoint:
        show(f"going on after step {beginning.step}: {beginning.checkpoint}")
    held_out = HeldOut(accelerator, built.step, data.held_out, config, journal, folder.report, [*built.sizes])
    return Run(
        config=config,
        accelerator=accelerator,
        folder=folder,
        watch=watch,
        show=show,
        data=data,
        stream=stream,
        beginning=beginning,
        learner=learner,
        trained_on=built.trained_on,
        held_out=held_out,
        journal=journal,
    )


def open_data(config: Config, accelerator: Accelerator, show: Show) -> RunData:
    """Open the shards for each objective of the run, to train on and to evaluate on; show what is worth knowing."""
    copies = copies_to(accelerator.device)
    where = config.data.normalise
    prompts = prompts_of(config)
    cache = config.data.open_cache()
    here: dict[str, Any] = {
        "cache": cache,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "normalise": "device" if where == "device" or (where == "auto" and copies) else "host",
    }
    # Loaders are not prepared: Accelerate would let one process read for all, or split their batches once more.
    shards = config.data.shards
    names = config.objectives()
    train = {name: Loader(shards, training_options(config, name, prompts, copies=copies, **here)) for name in names}
    judged = names if config.data.holdout else ()
    held_out = {name: Loader(shards, judging_options(config, name, prompts, **here)) for name in judged}
    for loader in train.values():
        check_recipe(loader.recipe, vision_size=VISION_SIZE, grid=GRID, sam_size=IMAGE_SIZE, mean=MEAN, std=STD)
    for line in dict.fromkeys(line for loader in train.values() for line in loader.selected):
        show(line)
    for line in dict.fromkeys(line for loader in train.values() for line in loader.lossy):
        show(f"pictures are not bit-equal to the recipe: {line}")
    if accelerator.is_main_process:
        sets = open_sets(shards, cache)
        held_out_by = config.data.holdout, config.data.holdout_by, config.sources()
        for note in (*holdout_notes(sets, *held_out_by), *near_twins(sets, *held_out_by).found):
            show(note)
    return RunData(train, held_out, config.batch_size * accelerator.num_processes * config.accumulation)


def build_model(config: Config, accelerator: Accelerator, data: RunData, show: Show) -> BuiltModel:
    """Build the model that the run starts from, choose what trains, and put it inside its training step."""
    set_seed(config.seed)  # the same on all processes, so that they build the same model
    base = base_model(config.model, accelerator.device)
    model = base.model
    if base.info.recipe and (differences := data.recipe.differences(base.info.recipe)):
        show(f"the model to start from was trained with another recipe than that of the shards: {differences}")
    trained_on = data.trained_on(base.info.trained_on)
    sizes = set_trainable(model, config.trainable, **vars(config.lora))
    if config.gradient_checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        compile_layers(model)
    step = Step(model.to(accelerator.device), config)
    step.costs = costs_of(model) if peak_of(accelerator.device, config.mixed_precision) else None
    return BuiltModel(step, base.new, sizes, trained_on)


def lay_out_learner(config: Config, accelerator: Accelerator, built: BuiltModel) -> Learner:
    """Give the model its optimiser and schedule, and lay all out over the processes."""
    optimizer = make_optimizer(built.step.model, config)
    factor = partial(rate_factor, steps=config.steps, warmup_steps=config.warmup_steps, warmup_from=config.warmup_from)
    # The scheduler is not prepared: it would step once per process, so many times too fast.
    scheduler = LambdaLR(optimizer, factor)
    module, stepper = lay_out(accelerator, built.step, optimizer)
    parts = Parts(built.step, built.new, optimizer, scheduler, deepspeed_optimizer(accelerator))
    trainable = [p for p in built.step.parameters() if p.requires_grad]
    return Learner(parts, module, stepper, trainable, Backward(accelerator, module, trainable, config), factor)


def restore(config: Config, accelerator: Accelerator, learner: Learner, beginning: Beginning) -> None:
    """Read the checkpoint that the run goes on from, if there is one, and set the random state of this process."""
    if beginning.checkpoint:
        learner.parts.read(beginning.checkpoint)
    # From here on (dropout) processes differ.
    rank = accelerator.process_index
    set_random_state(beginning.random_states, rank, accelerator.device, config.seed + beginning.step)


def open_journal(
    config: Config, accelerator: Accelerator, folder: RunFolder, beginning: Beginning, show: Show
) -> Journal | None:
    """Open the journal and the trackers in the main process; elsewhere return None.

    Raises:
        UserError: on every process, where a tracker cannot be started.
    """
    opened: list[Journal] = []

    def open_here() -> None:
        step = beginning.step if beginning.checkpoint else None
        before = read_records(folder.folder / METRICS, config.steps)
        trackers = Trackers(config, folder.folder, step, before)
        accelerator.trackers = trackers.opened  # `end_training` finishes them
        peak = peak_of(accelerator.device, config.mixed_precision)
        threads = config.data.threads
        records = beginning.records
        opened.append(Journal(folder.folder, config.steps, trackers, show, records, peak=peak, threads=threads))

    decided_by_main(accelerator, open_here)
    return opened[0] if opened else None


def log_to_terminal() -> None:
    """Write the trainer's log to stderr, without control characters."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("trainer").setLevel(logging.INFO)


def drop_unreached_parts(config: Config) -> Config:
    """Freeze trainable parts that no loss of the objectives reaches; weight decay would still shrink them.

    Raises:
        UserError: no part is left to train.
    """
    unreached = [load_objective(name).unreached_parts for name in config.objectives()]
    kept = [part for part in config.trainable if any(part not in parts for parts in unreached)]
    if config.trainable and not kept:
        raise UserError(
            "nothing to train",
            where="trainable",
            met=", ".join(config.trainable),
            wanted="a part that a loss of the objective reaches",
        )
    return replace(config, trainable=kept)
