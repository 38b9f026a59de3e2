"""What all rules have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy


@dataclasses.dataclass(frozen=True)
class Symptom:
    """What a rule sees at one layer; if it lasts, it becomes a `Finding`.

    Attributes:
        layer: Path of the layer; empty for the whole net.
        severity: "critical" or "warning".
        first_step: The first step at which it shows.
        evidence: What was measured.
        remedy: What helps, with the call that does it.
    """

    layer: str
    severity: str
    first_step: int
    evidence: str
    remedy: Remedy | str


@dataclasses.dataclass(frozen=True)
class Rule:
    """Looks for one kind of problem in a recording; subclass it for your own.

    The fields of a rule are its thresholds. Its `kind` is a name of your own, or one of
    those of `tfdeep.diagnostics.Finding`. A rule that fails during a fit is dropped,
    with a warning.

    Example:

    >>> @dataclasses.dataclass(frozen=True)
    ... class LossAboveLimit(tfdeep.diagnostics.rules.Rule):
    ...     kind = "loss_above_limit"
    ...     limit: float = 100.0
    ...     def look(self, recording):
    ...         above = np.flatnonzero(recording["loss"][:, 0] > self.limit)
    ...         if len(above):
    ...             step = int(recording.steps[above[0]])
    ...             yield tfdeep.diagnostics.rules.Symptom(
    ...                 "", "warning", step, f"loss above {self.limit}", "look at it"
    ...             )
    >>> monitor = tfdeep.callbacks.GradientMonitor(rules=[LossAboveLimit(limit=50.0)])
    """

    kind: ClassVar[str] = ""
    patience: ClassVar[int] = 2  # examinations in a row before it is a finding

    def look(self, recording: Recording) -> Iterable[Symptom]:
        """Yields what the rule sees now; called every ten steps, later every hundred.

        Args:
            recording: Everything that was recorded so far.
        """
        raise NotImplementedError
