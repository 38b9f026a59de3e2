"""What a wrapper remembers of the steps it has seen."""

from __future__ import annotations

import dataclasses

from tfdeep._core._records import Record, counted


@dataclasses.dataclass(frozen=True)
class Telemetry(Record):
    """What an optimizer wrapper has done, read from its variables.

    Attributes:
        wrapper: Name of the wrapper's class.
        steps: Number of steps whose gradients it has seen.
        clipped_steps: Number of steps in which it shortened a gradient.
        skipped_steps: Number of steps it did not pass on, because a gradient was not
            finite.
        norm: Joint L2 norm of the last step's gradients before the wrapper, in
            gradient units (loss per unit of weight). NaN if it was not measured.
        clipped_norm: The same after the wrapper.
        threshold: The bound in force in the last step, in gradient units (of
            `AdaptiveClip`, its factor); infinity while a wrapper still learns its
            bound. NaN if it has none.
    """

    wrapper: str
    steps: int
    clipped_steps: int
    skipped_steps: int
    norm: float
    clipped_norm: float
    threshold: float

    @property
    def clipped_fraction(self) -> float:
        """Fraction of the steps in which a gradient was shortened."""
        return self.clipped_steps / self.steps if self.steps else 0.0

    def __str__(self) -> str:
        parts = [f"{self.wrapper}: {counted(self.steps, 'step')}"]
        if self.threshold == self.threshold:  # not NaN
            parts.append(f"{self.clipped_fraction:.0%} clipped")
            parts.append(f"threshold {self.threshold:.3g}")
        if self.skipped_steps:
            parts.append(f"{self.skipped_steps} skipped")
        return ", ".join(parts)
