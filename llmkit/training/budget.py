"""A wall-clock budget: what is spent, what has to be kept for the end, and how many steps fit between."""

import math
import re
import time

from llmkit.errors import UserError

_UNITS = {"h": 3600, "m": 60, "s": 1}
# Measured times vary from minute to minute on a shared machine; this share of the rest is left unplanned.
MARGIN = 0.08


def parse_budget(text: str) -> float:
    """Seconds of a duration such as 5m, 90s, 1h30m or 300.

    Raises:
        UserError: it is not a duration, or not above zero.
    """
    words = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip().lower())
    seconds = sum(float(n) * unit for n, unit in zip(words.groups(), _UNITS.values(), strict=True) if n) if words else 0
    if seconds <= 0:
        raise UserError(f"--time_budget {text}: is not a duration; write for instance 5m, 90s or 1h30m")
    return seconds


def seconds_since_start() -> float:
    """Seconds since this program was started, its launcher included: imports are part of what a person waits for."""
    import psutil

    process = psutil.Process()
    started = process.create_time()
    for parent in process.parents():
        if not any(word in " ".join(parent.cmdline()) for word in ("accelerate", "torchrun", "torch.distributed.run")):
            break
        started = parent.create_time()
    return time.time() - started


def steps_within(budget: float, spent: float, reserve: float, step_seconds: float) -> int:
    """How many steps end inside the budget.

    Args:
        budget, spent, reserve: seconds: in all, until now, and for evaluation and saving.
        step_seconds: measured seconds of one step.

    Raises:
        UserError: not even one.
    """
    steps = int((budget - spent - reserve) * (1 - MARGIN) / step_seconds)
    if steps < 1:
        least = math.ceil((spent + reserve + 20 * step_seconds) * 1.1)
        raise UserError(
            f"--time_budget {budget:.0f}s: is too short for one step: {spent:.0f} s went into start and data, {reserve:.0f} s are "
            f"kept for evaluation and saving, a step takes {step_seconds:.2f} s; give at least {least}s"
        )
    return steps
