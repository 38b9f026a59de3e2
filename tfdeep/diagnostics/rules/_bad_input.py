"""The inputs hold numbers that are not finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom


@dataclasses.dataclass(frozen=True)
class BadInput(Rule):
    """A batch of inputs holds NaN or infinity.

    Looked at are the steps that are measured in detail, and every step whose loss is
    not finite. A model that fills such numbers in, for example with a layer of its own,
    has a finite loss, and is left alone.
    """

    kind: ClassVar[str] = "bad_input"
    patience: ClassVar[int] = 1

    def look(self, recording: Recording) -> Iterable[Symptom]:
        if "input_nonfinite" not in recording:
            return
        bad = recording["input_nonfinite"][:, 0]
        places = np.flatnonzero(bad > 0)
        if not len(places) or not _measures.is_broken(recording):
            return
        step = int(recording.measured_steps[places[0]])
        fraction, feature = bad[places[0]], recording["nonfinite_feature"][places[0], 0]
        examples = recording["examples"][places[0], 0]
        yield Symptom(
            "",
            "critical",
            step,
            f"NaN or infinite inputs in {fraction * examples:.0f} of {examples:.0f} "
            f"examples of batch {step}, the first at feature {feature:.0f}",
            Remedy(
                "clean the data: `np.isfinite(x)` finds such values. Leave these "
                "examples out, or fill in the values, e.g. "
                "`np.nan_to_num(x, nan=np.nanmean(x))`",
                "data",
                before="NaN or infinity",
                after="finite values",
            ),
        )
