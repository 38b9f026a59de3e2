"""Judges what tfdeep says of faulty programs, and of their repaired forms.

    python -m benchmarks.programs                     all of it
    python -m benchmarks.programs --only "softmax.*"  some programs
    python -m benchmarks.programs --part faulty       without the repaired forms
    python -m benchmarks.programs --steps 50          a quick look

Each program is trained for at most 300 steps under `GradientMonitor(activations=True)`,
and `tfdeep.diagnose` is asked about a fresh build of it with its first batch. For each
it prints what both name first, and the other kinds they name; then

* by kind of fault and overall: of how many programs the cause is named first (a right
  kind at a right place) and named at all, by the monitor, by `diagnose`, by either;
* of how many wiring faults both find the cause;
* the repaired forms of which anything is said, with the loss before and after: some
  may not be as healthy as their authors thought. A form that several programs share
  counts once.

A program whose fault does not show in 300 steps is printed and not counted.
"""

from __future__ import annotations

import argparse
import os
import re
import time
import warnings
from collections.abc import Mapping

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.programs import PROGRAMS, Program
from benchmarks.programs._judge import Said, ask_diagnose, ask_monitor, best, judge
from benchmarks.programs._train import STEPS

WIRING = (
    "output_mismatch",
    "bad_labels",
    "bad_input",
    "target_scale",
    "input_scale",
    "equal_units",
    "learning_rate",
    "linear_net",
    "heavy_dropout",
    "axis_order",
)
_ASKED = ("monitor", "diagnose")
_COLUMNS = (*_ASKED, "either")

Verdicts = dict[str, dict[str, str]]  # by program, by who was asked


def run_faulty(programs: list[Program], steps: int) -> Verdicts:
    """Prints what is said of the faulty programs; returns the verdicts."""
    verdicts: Verdicts = {}
    for program in programs:
        monitor, outcome = ask_monitor(program.faulty(), steps)
        diagnose = ask_diagnose(program.faulty())
        said = dict(zip(_ASKED, (monitor, diagnose), strict=True))
        own = {name: judge(program, it) for name, it in said.items()}
        own["either"] = best(tuple(own.values()))
        verdicts[program.name] = own
        counted = "" if program.shows_itself else f"   (not counted: {program.hidden})"
        where = f" at {' or '.join(program.layers)}" if program.layers else ""
        print(f"{program.name}: {program.fault}{counted}")
        print(f"  wanted   {' or '.join(program.kinds)}{where}; {outcome}")
        for name, it in said.items():
            print(f"  {name:9}{own[name]:7} {it}", flush=True)
    return verdicts


def distinct_repaired(programs: list[Program]) -> list[Program]:
    """Programs without those whose repaired form is that of an earlier one."""
    kept: list[Program] = []
    for program in programs:
        if not any(
            other.make is program.make and other.right == program.right
            for other in kept
        ):
            kept.append(program)
    return kept


def run_repaired(programs: list[Program], steps: int) -> dict[str, dict[str, Said]]:
    """Prints how repaired programs train and what is said; returns what is said."""
    alarms: dict[str, dict[str, Said]] = {}
    for program in programs:
        monitor, outcome = ask_monitor(program.repaired(), steps)
        diagnose = ask_diagnose(program.repaired())
        said = dict(zip(_ASKED, (monitor, diagnose), strict=True))
        spoke = {name: it for name, it in said.items() if it.findings or it.error}
        if spoke:
            alarms[program.name] = spoke
        verdict = "FALSE ALARM" if spoke else "clean"
        print(f"{program.name} repaired, {verdict}: {outcome}", flush=True)
        for name, it in spoke.items():
            print(f"  {name:9}{it}", flush=True)
            for finding in it.findings:
                print(f"    {finding}")
    return alarms


def print_scores(programs: list[Program], verdicts: Verdicts) -> None:
    """Prints how often the cause is named, by kind of fault."""
    counted = [program for program in programs if program.shows_itself]
    print("\ncause named first / named at all")
    print(f"{'':24}{'programs':>9}" + "".join(f"{name:>13}" for name in _COLUMNS))
    kinds = dict.fromkeys(program.kinds[0] for program in counted)
    for kind in kinds:
        chosen = [program for program in counted if program.kinds[0] == kind]
        print(_row(kind, [verdicts[program.name] for program in chosen]))
    everything = [verdicts[program.name] for program in counted]
    print(_row("all", everything))
    if counted:
        shares = [
            f"{name} {_count(everything, name, ('first',)) / len(counted):.2f} / "
            f"{_count(everything, name, ('first', 'named')) / len(counted):.2f}"
            for name in _COLUMNS
        ]
        print("shares: " + ", ".join(shares))
    wiring = [program for program in counted if program.kinds[0] in WIRING]
    both = [
        program
        for program in wiring
        if all(verdicts[program.name][name] != "missed" for name in _ASKED)
    ]
    print(f"wiring faults found by both: {len(both)} of {len(wiring)}")
    for found, other in (_ASKED, _ASKED[::-1]):
        alone = [
            program.name
            for program in wiring
            if verdicts[program.name][found] != "missed"
            and verdicts[program.name][other] == "missed"
        ]
        print(f"  by {found} only: {', '.join(alone) or 'none'}")


def print_alarms(programs: list[Program], alarms: Mapping[str, object]) -> None:
    """Prints of how many repaired forms anything was said."""
    share = len(alarms) / max(1, len(programs))
    print(f"\nrepaired forms of which something is said: {len(alarms)}", end="")
    print(f" of {len(programs)} = {share:.3f}: {', '.join(alarms) or 'none'}")


def _row(title: str, verdicts: list[dict[str, str]]) -> str:
    cells = [
        f"{_count(verdicts, name, ('first',))} / "
        f"{_count(verdicts, name, ('first', 'named'))}"
        for name in _COLUMNS
    ]
    return f"{title:24}{len(verdicts):9}" + "".join(f"{cell:>13}" for cell in cells)


def _count(verdicts: list[dict[str, str]], name: str, good: tuple[str, ...]) -> int:
    return sum(verdict[name] in good for verdict in verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="a regular expression of names")
    parser.add_argument("--part", choices=["faulty", "repaired"], help="not both")
    parser.add_argument("--steps", type=int, default=STEPS, help="at most, of a fit")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="keras")  # it warns of some of the faults
    programs = [p for p in PROGRAMS if re.search(options.only, p.name)]
    repaired = distinct_repaired(programs)
    start = time.perf_counter()
    print(f"{len(programs)} programs, at most {options.steps} steps each\n", flush=True)
    verdicts: Verdicts = {}
    alarms: dict[str, dict[str, Said]] = {}
    if options.part != "repaired":
        verdicts = run_faulty(programs, options.steps)
    if options.part != "faulty":
        alarms = run_repaired(repaired, options.steps)
    if options.part != "repaired":
        print_scores(programs, verdicts)
    if options.part != "faulty":
        print_alarms(repaired, alarms)
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
