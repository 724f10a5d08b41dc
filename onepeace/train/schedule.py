"""The learning rate of each step: a warm-up, then the course of a schedule, of which ``SCHEDULES["mine"]`` adds one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from onepeace.config.reader import Count, Natural, NotNegative, Probability, nearest
from onepeace.errors import UserError

WSD_DECAY = 0.2
"""Share of the steps in the decay of wsd; a fifth is enough (arXiv 2405.18392)."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate schedule: a linear warm-up from min_lr, then a course between the peak and min_lr."""

    steps: Count
    """Length of the run in updates. A run that is resumed may have more than before."""
    name: str = "cosine"
    """Key of SCHEDULES, the course after the warm-up: cosine, half a period; linear; or wsd (warm-up, stable, decay:
    arXiv 2404.06395), which keeps the peak until a line at the end."""
    warmup_steps: Natural | None = None
    warmup_ratio: Probability | None = None
    """Warm-up as a share of the steps, instead of warmup_steps."""
    decay_ratio: Probability | None = None
    """Length of the line at the end of wsd as a share of the steps, 0 = the peak to the end; null = a fifth."""
    min_lr: NotNegative = 1e-6
    """Learning rate of the first update, and after the last."""

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise UserError(f"schedule.name {self.name!r} is not known; {nearest(self.name, SCHEDULES)}")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise UserError("schedule.warmup_steps and schedule.warmup_ratio say the same; give one of them")
        if self.decay_ratio is not None and self.name != "wsd":
            raise UserError(f"schedule.decay_ratio is for the schedule wsd, but this is {self.name}; leave it out")
        if self.warmup + self.decay > self.steps:
            raise UserError(
                f"schedule: a warm-up of {self.warmup} steps and a decay of {self.decay} are more than the "
                f"{self.steps} steps"
            )

    @property
    def warmup(self) -> int:
        """Number of updates in the warm-up."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return int(self.steps * (self.warmup_ratio or 0.0))

    @property
    def decay(self) -> int:
        """Number of updates in the decay at the end of wsd; 0 for other schedules."""
        if self.name != "wsd":
            return 0
        return int(self.steps * (WSD_DECAY if self.decay_ratio is None else self.decay_ratio))


def learning_rate(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate after ``step`` updates: linear warm-up from min_lr to ``peak``, then the schedule's course.

    The first update (step 0) runs at min_lr, as in the released code. From ``schedule.steps`` on the rate stays where
    the course ends, where the released code would start another cosine at a tenth.
    """
    low = schedule.min_lr
    if step < schedule.warmup:
        return low + step * (peak - low) / schedule.warmup
    step = min(step, schedule.steps)
    return low + (peak - low) * SCHEDULES[schedule.name](step, schedule)


def cosine(step: int, schedule: ScheduleConfig) -> float:
    """Half a period of a cosine."""
    return (1 + math.cos(math.pi * (1 - _share_left(step, schedule)))) / 2


def linear(step: int, schedule: ScheduleConfig) -> float:
    """A line from the end of the warm-up to the last step."""
    return _share_left(step, schedule)


def wsd(step: int, schedule: ScheduleConfig) -> float:
    """The peak, then a line over the last ``decay`` steps."""
    left = schedule.steps - step
    return 1.0 if left >= schedule.decay else left / schedule.decay


def _share_left(step: int, schedule: ScheduleConfig) -> float:
    """Share of the steps after the warm-up that are left."""
    after_warmup = schedule.steps - schedule.warmup
    return (schedule.steps - step) / after_warmup if after_warmup else 0.0


SCHEDULES: dict[str, Callable[[int, ScheduleConfig], float]] = {
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
}
"""Courses by name: from the number of updates done, at least ``warmup`` and at most ``steps``, to a share of the way
from min_lr (0) to the peak (1)."""
