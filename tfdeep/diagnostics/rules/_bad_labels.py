"""The targets are not what the loss takes for targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep._keras._losses import Targets
from tfdeep._keras._program import Output
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom

_Found = tuple[str, Remedy]  # what is wrong, and the remedy


@dataclasses.dataclass(frozen=True)
class BadLabels(Rule):
    """Targets are out of the loss' range, all the same, or not finite.

    What a loss takes is known of Keras' losses, and of functions that give the same
    values: binary crossentropy takes 0 to 1, categorical crossentropy rows that add up
    to 1, the sparse one whole numbers below the number of classes.

    Args:
        examples: How many examples must have the same target before it is said that
            there is no other.
    """

    kind: ClassVar[str] = "bad_labels"
    patience: ClassVar[int] = 1
    examples: int = 64

    def look(self, recording: Recording) -> Iterable[Symptom]:
        for i, output in enumerate(recording.program.outputs):
            if "target_max" not in recording:
                return
            if np.isnan(_measures.of_output(recording, "target_max", i)).all():
                continue
            targets = _Targets(recording, i)
            found = (
                self._nonfinite(targets)
                or _of_other_shape(output)
                or self._out_of_range(targets, output)
                or self._alike(recording, targets, output)
            )
            if found:
                evidence, remedy = found
                yield Symptom(output.layer, "critical", 0, evidence, remedy)

    def _nonfinite(self, targets: _Targets) -> _Found | None:
        if not targets.nonfinite:
            return None
        return (
            f"NaN or infinite targets in {targets.nonfinite:.0f} of "
            f"{targets.of_examples:.0f} examples of batch {targets.step}",
            Remedy(
                "clean the targets: `np.isfinite(y)` finds such values. Leave these "
                "examples out",
                "data",
                before="NaN or infinity",
                after="finite values",
            ),
        )

    def _out_of_range(self, targets: _Targets, output: Output) -> _Found | None:
        takes, low, high = output.loss.targets, targets.low, targets.high
        name, units = output.loss.name, output.size
        span = f"targets from {low:.4g} to {high:.4g}"
        if takes is Targets.CLASS:
            if targets.fractional:
                return (
                    f"{span} that are not whole numbers, for {name}, which cuts them "
                    "down to class numbers",
                    _labels(
                        "give the numbers of the classes, 0, 1, 2, ..., as they "
                        "are: do not scale labels",
                        span,
                        "0, 1, 2, ...",
                    ),
                )
            if low < 0 or (units and high >= units):
                return (
                    f"{span} for {units} classes, whose numbers are 0 to {units - 1}",
                    _labels(
                        f"`Dense({int(high - min(low, 0)) + 1})` for that many classes,"
                        " or labels that begin at 0: `np.unique(y, return_inverse=True)"
                        "[1]`",
                        span,
                        f"0 to {units - 1}",
                    ),
                )
        if takes is Targets.FRACTION and (low < -1e-6 or high > 1 + 1e-6):
            return f"{span} for {name}, which takes 0 to 1", _for_fractions(targets)
        if takes is Targets.DISTRIBUTION:
            if low < -1e-6 or high > 1 + 1e-6:
                return (
                    f"{span} for {name}, which takes one-hot rows",
                    _labels(
                        "one-hot rows: `keras.utils.to_categorical(y)`; class "
                        "numbers go with sparse_categorical_crossentropy",
                        span,
                        "one-hot rows",
                    ),
                )
            if units > 1 and targets.largest_sum < 0.99:
                return (
                    f"rows of targets that add up to {targets.largest_sum:.3g} at most,"
                    f" for {name}, which takes rows that add up to 1",
                    _labels(
                        "one-hot rows of 0 and 1: do not scale labels",
                        span,
                        "one-hot rows",
                    ),
                )
        if takes is Targets.SIGN and (low < -1 - 1e-6 or high > 1 + 1e-6):
            return (
                f"{span} for {name}, which takes -1 and 1",
                _labels("labels of -1 and 1: `2 * y - 1`", span, "-1 and 1"),
            )
        if (
            takes is Targets.FRACTION
            and low >= 0
            and 0 < high < 0.1
            and output.loss.is_crossentropy
        ):
            return (
                f"{span} for {name}, which takes labels of 0 and 1",
                _labels(
                    "labels of 0 and 1: do not scale labels with the inputs",
                    span,
                    "0 and 1",
                ),
            )
        return None

    def _alike(
        self, recording: Recording, targets: _Targets, output: Output
    ) -> _Found | None:
        has_norms = bool(recording.program.batch_norms)
        if _measures.has_sorted_batches(recording) and not has_norms:
            return (
                "the examples of a batch all have the same target, and those of the "
                "next another",
                Remedy(
                    "`dataset.shuffle(len(x))` before `batch`, or `shuffle=True` in "
                    "`fit`",
                    "data",
                    before="sorted",
                    after="shuffled",
                ),
            )
        if targets.spread > 1e-6 * max(abs(targets.low), abs(targets.high), 1e-30):
            return None
        if targets.examples < self.examples:
            return None
        if output.loss.targets is Targets.UNKNOWN:
            return None  # it may not look at them
        seen = f"all of {targets.examples:.0f} examples have the same target"
        if targets.low == targets.high:
            seen += f", {targets.low:.4g}"
        return (
            seen,
            _labels(
                "look at how the labels are made: there is one class only; sorted "
                "data must be shuffled",
                seen,
                "labels of all classes",
            ),
        )


def _of_other_shape(output: Output) -> _Found | None:
    """One-hot rows for a loss of class numbers, and the reverse."""
    shape, given, name = output.shape, output.target_shape, output.loss.name
    if shape is None or given is None or output.size < 2:
        return None
    is_class = len(given) == len(shape) - 1 or given[-1] == 1
    if output.loss.targets is Targets.CLASS and not is_class and given[-1] == shape[-1]:
        return (
            f"one-hot targets of shape {given} for {name}, which takes class numbers",
            Remedy(
                'loss="categorical_crossentropy", or `y.argmax(axis=-1)`',
                "loss",
                before=name,
                after=name.removeprefix("sparse_"),
            ),
        )
    if output.loss.targets is Targets.DISTRIBUTION and is_class:
        return (
            f"class numbers of shape {given} for {name}, which takes one-hot rows",
            Remedy(
                f'loss="sparse_categorical_crossentropy", or '
                f"`keras.utils.to_categorical(y, {output.size})`",
                "loss",
                before=name,
                after="sparse_categorical_crossentropy",
            ),
        )
    return None


class _Targets:
    """The targets of one output over all that was measured."""

    def __init__(self, recording: Recording, i: int) -> None:
        def values(name: str) -> np.ndarray:
            found = _measures.of_output(recording, f"target_{name}", i)
            return np.asarray(found[np.isfinite(found)])

        self.low = float(values("min").min(initial=np.inf))
        self.high = float(values("max").max(initial=-np.inf))
        bad = _measures.of_output(recording, "target_nonfinite", i)
        place = int(np.nan_to_num(bad).argmax()) if len(bad) else 0
        self.step = int(recording.measured_steps[place])
        self.of_examples = float(recording["examples"][place, 0])
        self.nonfinite = float(np.nan_to_num(bad).max(initial=0)) * self.of_examples
        self.fractional = float(values("fractional").max(initial=0))
        self.largest_sum = float(values("sum_max").max(initial=-np.inf))
        # The batches differ, too.
        offset = values("offset")
        between = float(np.ptp(offset)) if len(offset) else 0.0
        self.spread = max(float(values("spread").max(initial=0)), between)
        self.examples = _measures.examples(recording)


def _labels(text: str, before: str, after: str) -> Remedy:
    return Remedy(text, "labels", before=before, after=after)


def _for_fractions(targets: _Targets) -> Remedy:
    low, high = targets.low, targets.high
    span = f"{low:.4g} to {high:.4g}"
    if targets.fractional:
        return _labels(
            "scale the targets to 0 to 1; or, if they are numbers to predict, "
            '`Dense(1)` without activation and loss="mse"',
            span,
            "0 to 1",
        )
    if (low, high) == (-1, 1):
        return _labels("`y = (y + 1) / 2` makes labels of 0 and 1", span, "0 and 1")
    classes = int(high - low) + 1
    return _labels(
        f'`Dense({classes}, activation="softmax")` with loss='
        '"sparse_categorical_crossentropy" for that many classes'
        + ("" if low == 0 else f", of labels less {low:.0f}")
        + "; a label of two classes is 0 or 1",
        span,
        f"{classes} classes",
    )
