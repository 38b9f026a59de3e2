"""The inputs are far from zero, or far from unit scale."""

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
class InputScale(Rule):
    """The input of the first layer with weights is too large, too small or off-center.

    Not reported for a first layer that normalizes or is followed by a normalization,
    nor for a pretrained one, which has learned the scale.

    Args:
        magnitude: Root mean square of the inputs. Pixels of 0 to 255 have about 100,
            pixels of 0 to 16 about 8.
        offset: Root mean square of the features' means, over that of their standard
            deviations.
        length: Root mean square of the length of an input vector; a one-hot vector
            has 1.

    Reference: LeCun, Bottou, Orr and Mueller, Efficient backprop, 1998.
    """

    kind: ClassVar[str] = "input_scale"
    patience: ClassVar[int] = 1
    magnitude: float = 20.0
    offset: float = 10.0
    length: float = 1e-2

    def look(self, recording: Recording) -> Iterable[Symptom]:
        if "input_offset" not in recording or recording.lasted < 5:
            return
        offset = _measures.median(recording["input_offset"][:10])
        spread = _measures.median(recording["input_spread"][:10])
        layer = next(
            (
                x
                for x in recording.layers
                if (x.is_trainable and x.kernel) or x.is_normalization
            ),
            None,
        )
        if np.isnan(offset) or layer is None or layer.is_normalization:
            return
        if layer.is_embedding:
            return  # numbers of rows have no scale
        if _measures.is_normalized(recording, layer):
            return
        if layer.bias is not None and not layer.is_untouched:
            return
        size = float(np.hypot(offset, spread))
        found = f"inputs of mean {offset:.2g} and standard deviation {spread:.2g}"
        seen = _measures.examples_of(recording, None, slice(10))
        on_examples = _measures.on_examples(seen)
        if size > self.magnitude or (offset > self.offset * spread and offset > 1):
            evidence = f"it gets {found}{on_examples}"
        elif 0 < size * np.sqrt(max(layer.fan_in, 1)) < self.length:
            evidence = f"it gets {found}, almost zero{on_examples}"
        else:
            return
        yield Symptom(
            layer.path,
            "warning",
            0,
            evidence,
            Remedy(
                "keras.layers.Normalization(), adapted to the training data, in front "
                "of it; or keras.layers.Rescaling(1 / 255) for pixels",
                "inputs",
                layer.path,
                (float(offset), float(spread)),
                (0.0, 1.0),
            ),
        )
