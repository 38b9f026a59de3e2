"""Shows that the sick nets do not learn, but do when mended, as do the healthy ones.

Run `python -m benchmarks.gym.measure`, with names to measure only those.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np

from benchmarks.gym._case import Case, train
from benchmarks.gym._data import chance
from benchmarks.gym.healthy import HEALTHY
from benchmarks.gym.sick import SICK

STEPS = 150
LAST = 10


def measure(case: Case, **changes: Any) -> tuple[float, float, bool]:
    """The first loss, the mean of the last, and whether that is good.

    Learning is to get below half of what is lost without looking at the inputs. Half
    of the first loss says little: that of a net that explodes is easily halved.
    """
    keras.backend.clear_session()
    losses = train(case, STEPS, **changes)
    # A count of executions, not of steps, if several steps are in one.
    last = float(np.mean(losses[-max(1, LAST * len(losses) // STEPS) :]))
    settings = {**case.settings, **changes}
    blind = chance(case.data(**settings)[1]) * settings.get("loss_weight", 1.0)
    return losses[0], last, last < min(blind / 2, losses[0])


def main(names: list[str]) -> None:
    """Prints the losses of each net, sick and mended or healthy."""
    for cases, health in ((SICK, "sick"), (HEALTHY, "healthy")):
        for case in cases:
            if names and case.name not in names:
                continue
            first, last, learns = measure(case)
            line = f"{health:9}{case.name:34}{first:10.3g} -> {last:8.3g}"
            expected = learns == case.learns
            if case.remedy:
                first, last, learns = measure(case, **case.remedy)
                line += f"   mended {first:10.3g} -> {last:8.3g}"
                expected = expected and learns
            print(line + ("" if expected else "   UNEXPECTED"), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
