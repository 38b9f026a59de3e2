"""Asks the monitor and `diagnose` about a program, and judges what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tfdeep
from benchmarks.programs._program import Prepared, Program
from benchmarks.programs._train import STEPS, Outcome, data, train

VERDICTS = ("first", "named", "missed")


@dataclasses.dataclass(frozen=True)
class Said:
    """What one of the two said of a program.

    Attributes:
        findings: All that it found.
        causes: What it takes for causes, the most likely first. A version of tfdeep
            that tells no causes apart gives the findings in their order.
        error: What it raised; empty if nothing.
    """

    findings: tuple[Any, ...]
    causes: tuple[Any, ...]
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return self.error
        if not self.findings:
            return "nothing"
        first = self.causes[0] if self.causes else self.findings[0]
        kinds = dict.fromkeys(finding.kind for finding in self.findings)
        rest = [kind for kind in kinds if kind != first.kind]
        place = f"{first.kind} at {first.layer or 'the net'}"
        return ", ".join([place, *rest])


def ask_monitor(prepared: Prepared, steps: int = STEPS) -> tuple[Said, Outcome]:
    """What the monitor finds in the first steps of a program, and how these went."""
    monitor = tfdeep.callbacks.GradientMonitor(activations=True, on_finding=None)
    outcome = train(prepared, steps, [monitor])
    try:
        return _said(monitor.report()), outcome
    except Exception as raised:  # an answer that fails is an answer that is wrong
        return Said((), (), _short(raised)), outcome


def ask_diagnose(prepared: Prepared) -> Said:
    """What `diagnose` finds in a program before training."""
    try:
        return _said(tfdeep.diagnose(prepared[0], *data(prepared)))
    except Exception as raised:
        return Said((), (), _short(raised))


def judge(program: Program, said: Said) -> str:
    """One of `VERDICTS`: where among the findings the cause of the fault is."""
    if said.causes and is_right(program, said.causes[0]):
        return "first"
    if any(is_right(program, finding) for finding in said.findings):
        return "named"
    return "missed"


def is_right(program: Program, finding: Any) -> bool:
    """Whether a finding names what is wrong with a program, and where."""
    if finding.kind not in program.kinds:
        return False
    places = set(finding.layer.split("/"))
    return not program.layers or bool(places & set(program.layers))


def best(verdicts: Sequence[str]) -> str:
    """The best of some verdicts."""
    return min(verdicts, key=VERDICTS.index)


def _said(report: Any) -> Said:
    findings = tuple(report.findings)
    return Said(findings, tuple(getattr(report, "causes", findings)))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"
