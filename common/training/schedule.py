"""Steps and learning rates as pure functions: the same for a resumed run and for every backend."""

import itertools
from collections.abc import Sequence

from common.config import OptimiserConfig


def learning_rate(step: int, base: float, milestones: Sequence[int], warmup: int = 0) -> float:
    """Learning rate of an optimiser step: a linear warm-up, then a drop to a tenth at each milestone.

    Args:
        step: optimiser step, from 0.
        base: learning rate after the warm-up.
        milestones: steps at which the rate drops to a tenth, increasing.
        warmup: steps in which the rate rises from base / warmup to base; 0: none.

    Raises:
        ValueError: milestones do not increase, or one lies inside the warm-up.

    Source: the step schedules of the published recipes (recipes.py).
    """
    if any(a >= b for a, b in itertools.pairwise(milestones)):
        raise ValueError(f"optimiser.milestones: expected steps that increase, got {list(milestones)}")
    if milestones and milestones[0] < warmup:
        raise ValueError(
            f"optimiser.milestones: expected none before the end of the warm-up (optimiser.warmup_steps {warmup}), "
            f"got step {milestones[0]}"
        )
    if step < warmup:
        return base * (step + 1) / warmup
    return base / 10 ** sum(step >= milestone for milestone in milestones)


def scheduled_rate(step: int, optimiser: OptimiserConfig, steps_per_epoch: int) -> float:
    """Learning rate of a step of a run, from 0, as its configuration says; raises as `learning_rate`."""
    milestones = milestone_steps(optimiser, steps_per_epoch)
    return learning_rate(step, optimiser.learning_rate, milestones, optimiser.warmup_steps)


def milestone_steps(optimiser: OptimiserConfig, steps_per_epoch: int) -> list[int]:
    """The milestones of the configuration, in steps."""
    unit = steps_per_epoch if optimiser.milestone_unit == "epochs" else 1
    return [round(milestone * unit) for milestone in optimiser.milestones]


def total_steps(optimiser: OptimiserConfig, steps_per_epoch: int) -> int:
    """Number of optimiser steps of the whole run."""
    steps = optimiser.epochs * steps_per_epoch
    return steps if optimiser.max_steps is None else min(steps, optimiser.max_steps)
