"""Evaluation on held-out samples during a run, their contact sheets, and the report that shows both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from trainer.config import Config
from trainer.data.loader import Loader
from trainer.measure.evaluation import evaluate
from trainer.measure.journal import Journal
from trainer.measure.panels import AnyPanel
from trainer.measure.report import printable, write_report
from trainer.measure.sheet import contact_sheet
from trainer.objectives.step import Step


class HeldOut:
    """Evaluates on held-out samples, and writes the report.

    Args:
        accelerator: of the run.
        loop: the step, bare.
        loaders: by objective, of held-out samples; none where nothing is held out.
        config: of the run.
        journal: in the main process.
        report: the path of `report.html`.
        trained: the parts that train.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        loop: Step,
        loaders: Mapping[str, Loader],
        config: Config,
        journal: Journal | None,
        report: Path,
        trained: list[str],
    ) -> None:
        self._accelerator = accelerator
        self._loop = loop
        self._loaders = loaders
        self._config = config
        self._journal = journal
        self._report = report
        self._trained = trained
        self._sheets: dict[str, dict[int, list[AnyPanel]]] = {name: {} for name in config.objectives()}
        """Panels by objective and step: those of the first and of the last evaluation."""

    def evaluate(self, step: int, known: bool = False) -> float | None:
        """Evaluate, and return the mean mask loss, or None where no masks are predicted.

        All processes have to call this.

        Args:
            step: optimiser steps done.
            known: the records hold this evaluation already; only its pictures are drawn.
        """
        found: dict[str, dict[str, float]] = {}
        for name, loader in self._loaders.items():
            found[name], panels = evaluate(self._accelerator, self._loop, loader, name, self._config)
            sheets = self._sheets[name]
            first = min(sheets, default=step)
            self._sheets[name] = {at: sheets[at] for at in sheets if at == first} | {step: panels}
            if panels and self._journal and not known:
                text = [printable(line) for panel in panels for line in panel.said()]
                self._journal.picture(name, contact_sheet(panels), text, step)
        if self._journal and found:
            if not known:
                self._journal.held_out(step, _named(found))
            self.write_report()
        losses = [values["mask_loss"] for values in found.values() if "mask_loss" in values]
        return sum(losses) / len(losses) if losses else None

    def is_due(self, step: int) -> bool:
        """Whether an evaluation is due after `step` steps."""
        return bool(self._loaders) and (step % self._config.eval.every == 0 or step == self._config.steps)

    def write_report(self) -> None:
        """Write `report.html`, with the samples of the first and of the last evaluation so far."""
        if not self._journal:
            return
        config = self._config
        folder = self._report.parent
        mix = config.objectives()
        facts = {
            "objectives": ", ".join(f"{name} (weight {share.weight:g})" for name, share in mix.items()),
            "steps": f"{config.steps} of {config.accumulation} x {config.batch_size} samples on each of "
            f"{self._accelerator.num_processes} process(es), {self._accelerator.device.type}",
            "time": self._journal.time(),
            "trained": ", ".join(self._trained),
        }
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        title = f"{', '.join(mix)}: {folder.name}"
        write_report(self._report, title, facts, self._journal.records, self._sheets, text)


def _named(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the values of all objectives; in a mix their names begin with the objective's, as in dual/iou."""
    several = len(found) > 1
    return {f"{o}/{k}" if several else k: value for o, values in found.items() for k, value in values.items()}
