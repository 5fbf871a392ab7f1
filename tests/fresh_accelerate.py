"""Accelerate's state, which runs of one test process would share."""

from __future__ import annotations

import sys


def reset_accelerate() -> None:
    """Forget Accelerate's state, so that the next run of this process begins as the first one does."""
    if module := sys.modules.get("accelerate.state"):
        for state in (module.AcceleratorState, module.GradientState, module.PartialState):
            state._reset_state()
