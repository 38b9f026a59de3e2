"""Applies the rules again and again, and reports each finding once."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

from tfdeep._core._explain import explain
from tfdeep.diagnostics._causes import explained
from tfdeep.diagnostics._finding import Finding
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import Rule, Symptom

# A finding is over, and may come again, when it was not seen so many times in a row.
_TIMES_ABSENT = 3


@dataclasses.dataclass
class _State:
    """What is known of one kind of finding at one layer."""

    first_step: int
    times_seen: int = 0
    times_absent: int = 0
    is_reported: bool = False


class Examiner:
    """Turns what the rules see into findings, with hysteresis.

    A symptom becomes a finding when its rule has seen it `patience` times in a row. It
    is not reported again until it has been absent three times in a row.

    Args:
        rules: The rules to apply.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._states: dict[tuple[str, str], _State] = {}

    def examine(self, recording: Recording) -> list[Finding]:
        """Applies every rule to what was recorded so far; returns what is new."""
        found: list[Finding] = []
        seen: dict[tuple[str, str], tuple[Rule, Symptom]] = {}
        for rule in self.rules:
            for symptom in self._symptoms(rule, recording):
                seen.setdefault((rule.kind, symptom.layer), (rule, symptom))
        for key, (rule, symptom) in seen.items():
            state = self._states.setdefault(key, _State(symptom.first_step))
            state.times_absent = 0
            state.times_seen += 1
            if state.times_seen >= rule.patience and not state.is_reported:
                state.is_reported = True
                found.append(
                    Finding(
                        rule.kind,
                        symptom.layer,
                        symptom.severity,
                        min(state.first_step, symptom.first_step),
                        symptom.evidence,
                        Remedy.of(symptom.remedy),
                    )
                )
        for key, state in list(self._states.items()):
            if key not in seen:
                state.times_seen = 0
                state.times_absent += 1
                if not state.is_reported or state.times_absent >= _TIMES_ABSENT:
                    del self._states[key]
        return list(explained(found, [layer.path for layer in recording.layers]))

    def stands(self, finding: Finding) -> bool:
        """Whether what was found has been seen in one of the last examinations."""
        return finding.place in self._states

    def _symptoms(self, rule: Rule, recording: Recording) -> Sequence[Symptom]:
        """What a rule sees. A rule that fails is dropped, and training continues."""
        try:
            return list(rule.look(recording))
        except Exception as error:
            self.rules = tuple(other for other in self.rules if other is not rule)
            warnings.warn(
                explain(
                    f"The rule {type(rule).__name__} failed and is dropped.",
                    received=f"{type(error).__name__}: {error}",
                    expected="`look(recording)` to return an iterable of `Symptom`",
                    fix=f"correct its `look`; {rule!r}.look(monitor.recording) shows "
                    "the error; training continues with the other rules",
                ),
                stacklevel=2,
            )
            return []
