"""The objectives that a training can have: one module and one class each, named in `OBJECTIVES`.

To add one, write a module with a subclass of `trainer.objectives.objective.Objective` and name it here. Reading the
names imports neither torch nor a model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shards.errors import UserError

if TYPE_CHECKING:
    from trainer.objectives.objective import Objective

OBJECTIVES = {
    "dual": "trainer.objectives.dual:Dual",
    "segment": "trainer.objectives.segment:Segment",
    "describe": "trainer.objectives.describe:Describe",
    "reverse": "trainer.objectives.reverse:Reverse",
    "converse": "trainer.objectives.converse:Converse",
}
"""Module and class of each objective, by its name in the configuration."""


def load_objective(name: str) -> type[Objective[Any]]:
    """Import the class of an objective.

    Raises:
        UserError: `OBJECTIVES` has no such name.
    """
    if name not in OBJECTIVES:
        raise UserError("no such objective", met=name, wanted=" or ".join(OBJECTIVES))
    module, _, class_name = OBJECTIVES[name].partition(":")
    objective: type[Objective[Any]] = getattr(import_module(module), class_name)
    return objective
