"""The output of a model, its loss and its targets do not belong together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep._keras import _layer_facts
from tfdeep._keras._losses import Loss, Predictions, Targets
from tfdeep._keras._program import Output, Shape
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom

# The values that an activation can give.
_RANGES = {
    "sigmoid": (0.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "sparsemax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "relu": (0.0, np.inf),
    "relu6": (0.0, 6.0),
    "softplus": (0.0, np.inf),
    "exponential": (0.0, np.inf),
    "log_softmax": (-np.inf, 0.0),
}
_PROBABILITIES = ("sigmoid", "hard_sigmoid", "softmax", "sparsemax")


@dataclasses.dataclass(frozen=True)
class OutputMismatch(Rule):
    """The last activation cannot give what the loss or the targets ask for.

    Found are, by the definition of the functions:

    * softmax over a single number, which is always 1;
    * logits for a loss of probabilities, and probabilities for a loss of logits;
    * sigmoid for a loss of one distribution, softmax for a loss of independent
      probabilities, or softmax for the squared error of labels;
    * crossentropy of a single class, which is always 0;
    * targets outside the values that the activation can have;
    * ReLU for labels of 0 and 1: where it is zero it has no gradient;
    * shapes that only fit because numbers are repeated.

    Args:
        beyond: Fraction of the targets' range that must lie outside of what the
            activation can give.
    """

    kind: ClassVar[str] = "output_mismatch"
    patience: ClassVar[int] = 1
    beyond: float = 0.02

    def look(self, recording: Recording) -> Iterable[Symptom]:
        for i, output in enumerate(recording.program.outputs):
            seen = _Seen(recording, i)
            found = (
                _repeated(output, seen)
                or _of_one(output)
                or _twice(output)
                or _with_loss(output, seen)
                or self._out_of_reach(output, seen)
            )
            if found:
                severity, evidence, remedy = found
                remedy = dataclasses.replace(remedy, layer=output.layer)
                yield Symptom(output.layer, severity, 0, evidence, remedy)

    def _out_of_reach(self, output: Output, seen: _Seen) -> _Found | None:
        activation = output.activation or ""
        if activation not in _RANGES or not seen.has_targets:
            return None
        if output.loss.is_crossentropy or output.loss.targets is Targets.CLASS:
            return None
        low, high = _RANGES[activation]
        span = max(seen.high - seen.low, abs(seen.high), abs(seen.low))
        below, above = low - seen.low, seen.high - high
        if max(below, above) > self.beyond * span:
            return (
                "critical",
                f"{activation} gives {_span(low, high)}, and the targets go from "
                f"{seen.low:.3g} to {seen.high:.3g}",
                Remedy(
                    f"activation=None in place of {activation!r}; standardize the "
                    "targets if their scale is far from 1",
                    "output",
                    before=activation,
                    after="linear",
                ),
            )
        is_label = seen.are_labels and (seen.low, seen.high) == (0.0, 1.0)
        if activation in ("relu", "relu6") and is_label:
            return (
                "critical",
                f"{activation} for labels of 0 and 1: it gives no probability, and "
                "where it is zero no gradient",
                _activation("sigmoid", activation),
            )
        return None


_Found = tuple[str, str, Remedy]  # severity, what is wrong, and the remedy


class _Seen:
    """What was measured of one output."""

    def __init__(self, recording: Recording, i: int) -> None:
        def extreme(name: str, largest: bool) -> float:
            found = _measures.of_output(recording, name, i)
            found = found[np.isfinite(found)]
            if not len(found):
                return np.nan
            return float(found.max() if largest else found.min())

        self.low = extreme("target_min", largest=False)
        self.high = extreme("target_max", largest=True)
        self.sum_low = extreme("target_sum_min", largest=False)
        self.sum_high = extreme("target_sum_max", largest=True)
        self.fractional = extreme("target_fractional", largest=True)
        self.inner_spread = extreme("target_inner_spread", largest=True)
        self.spread = extreme("target_spread", largest=True)
        self.predicted_low = extreme("prediction_min", largest=False)
        self.predicted_high = extreme("prediction_max", largest=True)
        self.predicted_sum_low = extreme("prediction_sum_min", largest=False)
        self.predicted_sum_high = extreme("prediction_sum_max", largest=True)

    @property
    def has_targets(self) -> bool:
        return not np.isnan(self.low)

    @property
    def are_labels(self) -> bool:
        """Whether all targets are whole numbers."""
        return self.fractional == 0

    @property
    def are_one_hot(self) -> bool:
        """Whether each row of the targets has a single 1."""
        is_binary = self.are_labels and self.low >= 0 and self.high <= 1
        return is_binary and self.sum_low == self.sum_high == 1


def _repeated(output: Output, seen: _Seen) -> _Found | None:
    shape, targets = output.shape, output.target_shape
    if shape is None or targets is None:
        return None
    if output.loss.compares_all and len(targets) == 1 and len(shape) == 2:
        return (
            "critical",
            f"{output.loss.name} compares each target, of shape {targets}, with each "
            f"output, of shape {shape}",
            Remedy(
                "`y = y[:, None]`, or `keras.ops.reshape(y_true, "
                "keras.ops.shape(y_pred))` in the loss",
                "targets",
                before=targets,
                after=shape,
            ),
        )
    if output.loss.targets in (Targets.CLASS, Targets.UNKNOWN):
        return None
    inner, given = shape[1:], targets[1:]
    fits = inner == given or (not given and inner in ((), (1,))) or not inner
    unknown = None in inner or None in given
    if not fits and not unknown and _count(inner) != _count(given):
        return (
            "critical",
            f"outputs of shape {inner} an example for targets of shape {given or ()}: "
            "each target is compared with several outputs",
            Remedy(
                f"a last layer of {_count(given)} units; after layers "
                "that keep positions, keras.layers.Flatten or "
                "GlobalAveragePooling comes before it",
                "output",
                before=inner,
                after=given or (1,),
            ),
        )
    if len(inner) > 1 and seen.inner_spread == 0 and seen.spread > 0:
        return (
            "critical",
            f"the target of an example is the same at all of its {inner} outputs",
            Remedy(
                "keras.layers.Flatten() or GlobalAveragePooling before the last layer, "
                "and one target for each example",
                "output",
                before=inner,
                after=(1,),
            ),
        )
    return None


def _count(shape: Shape) -> int:
    return math.prod(size or 0 for size in shape)


def _of_one(output: Output) -> _Found | None:
    activation, loss = output.activation, output.loss
    if output.size != 1:
        return None
    if activation in ("softmax", "log_softmax"):
        return (
            "critical",
            f"{activation} over a single number, which is always "
            f"{1 if activation == 'softmax' else 0}",
            _activation("sigmoid", activation),
        )
    if loss.is_crossentropy and (
        loss.targets is Targets.DISTRIBUTION or loss.targets is Targets.CLASS
    ):
        return (
            "critical",
            f"{loss.name} over a single output, which is always 0",
            Remedy(
                'Dense(1, activation="sigmoid") with loss="binary_crossentropy"; for '
                "several classes, as many units as classes",
                "loss",
                before=loss.name,
                after="binary_crossentropy",
            ),
        )
    return None


def _twice(output: Output) -> _Found | None:
    if output.before not in _PROBABILITIES or output.activation not in _PROBABILITIES:
        return None
    return (
        "critical",
        f"{output.activation} of {output.before}: of numbers from 0 to 1 it gives "
        "nearly equal ones",
        Remedy(
            f"activation=None in place of {output.before!r}: one activation is enough",
            "output",
            before=output.before,
            after="linear",
        ),
    )


def _with_loss(output: Output, seen: _Seen) -> _Found | None:
    loss, activation = output.loss, output.activation
    if activation is None or activation not in _layer_facts.ACTIVATIONS:
        return _by_values(loss, seen)
    if loss.takes_logits:
        return _for_logits(loss, activation)
    if loss.name == "poisson" and _RANGES.get(activation, (-1.0, 1.0))[0] < 0:
        return (
            "critical",
            f"{activation} for poisson, which takes the logarithm of its predictions",
            _activation("softplus", activation),
        )
    if loss.takes_probabilities:
        found = _for_probabilities(loss, activation)
        if found:
            return found
        if activation == "softmax" and output.size > 1:
            found = _softmax_for_fractions(loss, seen)
            if found:
                return found
        if (
            loss.predictions is Predictions.DISTRIBUTION
            and activation in ("sigmoid", "hard_sigmoid")
            and output.size > 1
        ):
            return (
                "critical",
                f"sigmoid for {loss.name}, which takes probabilities that add up to 1",
                _activation("softmax", activation),
            )
    if (
        activation == "softmax"
        and loss.predictions is Predictions.DISTRIBUTION
        and seen.sum_high > 1.5
        and seen.are_labels
        and seen.high <= 1
    ):
        return _several_labels(loss, seen)
    if loss.is_regression and activation == "softmax" and output.size > 1:
        if seen.are_one_hot:
            return (
                "warning",
                f"softmax with {loss.name}, whose gradient fades where the net is "
                "wrong and sure of it",
                Remedy(
                    'loss="categorical_crossentropy"',
                    "loss",
                    before=loss.name,
                    after="categorical_crossentropy",
                ),
            )
        if seen.are_labels and seen.low >= 0 and seen.high <= 1:
            return _several_labels(loss, seen)
    return None


def _several_labels(loss: Loss, seen: _Seen) -> _Found:
    return (
        "critical",
        f"softmax gives probabilities that add up to 1, and rows of targets add up to "
        f"{seen.sum_low:.3g} to {seen.sum_high:.3g}: an example has several labels",
        Remedy(
            'activation="sigmoid" with loss="binary_crossentropy"',
            "output",
            before="softmax",
            after="sigmoid",
        ),
    )


def _for_logits(loss: Loss, activation: str) -> _Found | None:
    if activation in ("linear", "log_softmax"):
        return None
    if activation in _PROBABILITIES:
        evidence = f"{activation} twice: {loss.name} has from_logits=True"
    else:
        low, high = _RANGES.get(activation, (np.nan, np.nan))
        evidence = (
            f"{activation} before {loss.name} with from_logits=True: logits are "
            + (f"any numbers, not {_span(low, high)}" if low == low else "any numbers")
        )
    return "critical", evidence, _activation("linear", activation)


def _for_probabilities(loss: Loss, activation: str) -> _Found | None:
    if activation in _PROBABILITIES:
        return None
    low, high = _RANGES.get(activation, (-np.inf, np.inf))
    if low >= 0 and high <= 1:
        return None
    is_single = loss.predictions is Predictions.FRACTION
    fitting = "sigmoid" if is_single else "softmax"
    if activation == "linear" and loss.is_crossentropy:
        return (
            "critical",
            f"logits for {loss.name}, which takes probabilities (from_logits=False)",
            Remedy(
                f"loss=keras.losses.{_class_name(loss)}(from_logits=True), or "
                f'activation="{fitting}" in the last layer',
                "output",
                before=activation,
                after=fitting,
            ),
        )
    return (
        "critical",
        f"{activation} for {loss.name}, which takes probabilities: it gives "
        f"{_span(low, high)}",
        _activation(fitting, activation),
    )


def _softmax_for_fractions(loss: Loss, seen: _Seen) -> _Found | None:
    if loss.predictions is not Predictions.FRACTION or not loss.is_crossentropy:
        return None
    if seen.are_one_hot or not seen.has_targets or np.isnan(seen.sum_high):
        return (
            "critical",
            f"softmax for {loss.name}, which takes each output for a question of its "
            "own; the targets are one-hot",
            Remedy(
                'loss="categorical_crossentropy"',
                "loss",
                before=loss.name,
                after="categorical_crossentropy",
            ),
        )
    if seen.are_labels and seen.sum_high > 1:
        return _several_labels(loss, seen)
    return None


def _by_values(loss: Loss, seen: _Seen) -> _Found | None:
    """What the values of an output show whose activation is not known."""
    low, high = seen.predicted_low, seen.predicted_high
    if np.isnan(low):
        return None
    if loss.takes_probabilities and loss.is_crossentropy:
        if low < -1e-3 or high > 1 + 1e-3:
            fitting = (
                "sigmoid" if loss.predictions is Predictions.FRACTION else "softmax"
            )
            return (
                "critical",
                f"outputs from {low:.3g} to {high:.3g} for {loss.name}, which takes "
                "probabilities (from_logits=False)",
                Remedy(
                    f"loss=keras.losses.{_class_name(loss)}(from_logits=True), or "
                    f'activation="{fitting}" in the last layer',
                    "output",
                    before="linear",
                    after=fitting,
                ),
            )
        return None
    is_softmax = (
        loss.predictions is Predictions.LOGITS
        and low >= 0
        and abs(seen.predicted_sum_low - 1) < 1e-4
        and abs(seen.predicted_sum_high - 1) < 1e-4
    )
    if is_softmax:
        return _for_logits(loss, "softmax")
    return None


def _class_name(loss: Loss) -> str:
    return "".join(part.title() for part in loss.name.split("_"))


def _activation(after: str, before: str) -> Remedy:
    text = (
        f"activation=None in place of {before!r} in the last layer"
        if after == "linear"
        else f'activation="{after}" in place of {before!r} in the last layer'
    )
    return Remedy(text, "output", before=before, after=after)


def _span(low: float, high: float) -> str:
    if np.isinf(low) and np.isinf(high):
        return "any number"
    if np.isinf(high):
        return f"numbers from {low:g} on"
    if np.isinf(low):
        return f"numbers up to {high:g}"
    return f"{low:g} to {high:g}"
