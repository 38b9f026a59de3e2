"""Shows that the repaired forms train, and what the faulty ones do instead.

    python -m benchmarks.programs.measure           all programs
    python -m benchmarks.programs.measure "relu.*"  some

A program trains if its loss falls by a third, or its accuracy rises by a tenth, from
the first steps to the last. That a faulty form does so, too, does not make it right:
what its loss measures is then not what was wanted.
"""

from __future__ import annotations

import os
import re
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.programs import PROGRAMS
from benchmarks.programs._train import Outcome, train

_PARTS = ("faulty", "repaired")


def trains(outcome: Outcome) -> bool:
    """Whether the loss fell clearly, or the accuracy rose."""
    if outcome.error or not outcome.last:
        return False
    first, last = outcome.first, outcome.last
    falls = last["loss"] < first["loss"] * (2 / 3 if first["loss"] > 0 else 1)
    gains = [last[name] - first[name] for name in last if "accuracy" in name]
    return falls or any(gain > 0.1 for gain in gains)


def main(pattern: str = "") -> None:
    """Trains both forms of the programs, and prints how it went."""
    sick = []
    for program in PROGRAMS:
        if not re.search(pattern, program.name):
            continue
        print(program.name, "-", program.fault)
        for part in _PARTS:
            start = time.perf_counter()
            outcome = train(getattr(program, part)())
            seconds = time.perf_counter() - start
            mark = "" if trains(outcome) else "   DOES NOT TRAIN"
            if mark and part == "repaired":
                sick.append(program.name)
            print(f"  {part:9}{outcome}   ({seconds:.1f} s){mark}", flush=True)
    print("repaired forms that do not train:", ", ".join(sick) or "none")


if __name__ == "__main__":
    main(*sys.argv[1:])
