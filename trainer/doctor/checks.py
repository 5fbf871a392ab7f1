"""All checks of a run before it starts. Nothing trains, no weights are loaded, nothing is written.

Each check imports the packages that it needs, so that a mistake in the configuration is reported within a second.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from shards.errors import UserError
from shards.printable import printable
from trainer.config import load_config
from trainer.doctor.findings import Finding, fail, ok
from trainer.doctor.machine import check_device, check_versions, count_processes

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(arguments: Sequence[str]) -> bool:
    """Check the run that `trainer/train.py` would start with these arguments, and print the findings.

    Returns:
        Whether nothing failed; warnings do not count.
    """
    logging.getLogger("trainer").addHandler(logging.NullHandler())  # loaders would log what is reported here
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    is_ready = True
    for finding in examine(arguments, _announce):
        line = Text(f"{finding.level:5}", style=_COLOURS[finding.level])
        console.print(line.append(f"{finding.check:14}{printable(finding.text)}", style="default"))
        console.file.flush()  # line by line into a pipe, too
        is_ready = is_ready and finding.level != "fail"
    verdict = Text("ready to train", "green") if is_ready else Text("not ready: mend what failed first", "red")
    console.print(verdict)
    return is_ready


def examine(arguments: Sequence[str], begin: Callable[[str], object] = lambda what: None) -> Iterator[Finding]:
    """Yield all findings, in the order of the checks.

    Args:
        arguments: as `trainer/train.py` takes them.
        begin: is called with what is done next, where that may take a while.
    """
    yield from check_versions()
    try:
        config = load_config(arguments)
    except UserError as error:
        yield fail("configuration", str(error))
        return
    begin("loading PyTorch and the packages of training")
    from trainer.checkpoints.resume import keep_earlier_defaults
    from trainer.checkpoints.run_folder import RunFolder
    from trainer.doctor import conversations, data, footprint, model, output, settings

    kept: list[str] = []
    with suppress(UserError):  # `check_output` reports it
        config, kept = keep_earlier_defaults(config, RunFolder(Path(config.output_dir), config.checkpoint.keep))
    processes = count_processes()
    yield ok("configuration", f"{', '.join(config.objectives())}; as for {processes} process(es), one per GPU")
    yield from (ok("configuration", line) for line in kept)
    yield from check_device(config)
    yield from settings.check_trackers(config)

    begin(f"opening {len(config.data.shards)} shard set(s), and dividing their samples")
    opened = data.Data.open(config, processes)
    begin("checking manifests, indexes and the sizes of tars")
    yield from _guarded("data", lambda: data.check_sets(config, opened))
    begin(f"decoding up to {data.PROBED} samples of each set")
    yield from _guarded("samples", lambda: data.check_samples(config, opened))
    yield from data.check_objective(config, opened)
    yield from conversations.check_frames(config, opened)
    yield from settings.check_losses(config)
    yield from settings.check_schedule(config, opened.train, processes)

    begin("building the model without memory, and reading the headers of its weights")
    try:
        needed = footprint.measure_footprint(config)
    except UserError as error:
        yield fail("model", str(error))
    else:
        yield from model.check_model(config, needed)
        yield from model.check_memory(config, needed, processes)
        yield from model.check_disk(config, needed)
        yield from _guarded("rows", lambda: conversations.check_rows(config, opened, needed))
    yield from _guarded("output_dir", lambda: output.check_output(config, opened, processes))


def _announce(what: str) -> None:
    print(f"...  {what}", file=sys.stderr, flush=True)


def _guarded(check: str, findings: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from findings()
    except UserError as error:
        yield fail(check, str(error))
