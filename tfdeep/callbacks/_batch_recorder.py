"""Records what a batch gives the model and the loss: inputs, targets, predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeep._keras import _batch_facts, _program
from tfdeep._quantities import OF_BATCH, OF_OUTPUTS
from tfdeep.callbacks._ring import Ring, is_at_hand
from tfdeep.callbacks._sometimes import nothing


class BatchRecorder:
    """Writes a row of statistics of the batch at the steps that are due.

    Args:
        outputs: How many outputs the model has.
        capacity: How many steps the rings hold.

    Attributes:
        seen_outputs: What the traced step has shown of the outputs.
    """

    def __init__(self, outputs: int, capacity: int) -> None:
        self.seen_outputs: list[_program.Output] = []
        self._count = outputs
        self._batch = Ring(capacity, OF_BATCH, 1, np.mean)
        self._outputs = Ring(capacity, OF_OUTPUTS, outputs, np.mean)

    def seen(
        self, step: tf.Tensor, x: Any, y: Any, predictions: Any
    ) -> Callable[[], tf.Tensor]:
        """Returns what writes the rows of a step, to be called after its loss.

        Args:
            step: The number of the step.
            x: The inputs of the batch.
            y: Its targets.
            predictions: What the model made of the inputs.
        """
        pairs = _batch_facts.pairs(y, predictions)
        pairs = [pair if all(map(_is_known, pair)) else (None, None) for pair in pairs]
        if len(pairs) == self._count:
            self.seen_outputs = [_program.seen_output(p, t) for t, p in pairs]
        inputs = [part for part in tf.nest.flatten(x) if _is_known(part)]

        def record() -> tf.Tensor:
            batch = _batch_facts.of_batch(inputs)
            if batch:
                row = {name: value[tf.newaxis] for name, value in batch.items()}
                self._batch.write(step, **row)
            if len(pairs) == self._count:
                found = [_batch_facts.of_output(*pair) for pair in pairs]
                names = [n for n in OF_OUTPUTS if any(n in f for f in found)]
                if names:
                    nan = np.float32(np.nan)
                    self._outputs.write(
                        step,
                        **{n: tf.stack([f.get(n, nan) for f in found]) for n in names},
                    )
            return nothing()

        return record

    def take(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """Reads what was written, and empties the rings."""
        return {**self._batch.take(places), **self._outputs.take(places)}


def _is_known(tensor: Any) -> bool:
    return tensor is not None and _batch_facts.is_numeric(tensor) and is_at_hand(tensor)
