"""One update for several micro-batches."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._arguments import whole_number
from tfdeep._core._gradients import Gradient
from tfdeep._keras import _internals, _replicas
from tfdeep.optimizers._refusals import fix_for
from tfdeep.optimizers._wrapper import OptimizerWrapper, trained


@keras.saving.register_keras_serializable("tfdeep")
class Accumulate(OptimizerWrapper):
    """Makes one update of the mean gradient of `steps` micro-batches.

    Use it where the batch that trains well does not fit into memory. With equally
    large micro-batches and no layer that looks at the whole batch (as
    `BatchNormalization` does), k of them are the same as one batch of k times the
    size:

        g  <-  (g_1 + ... + g_k) / k

    Put clipping inside, so that the mean is clipped and not each part:
    `Accumulate(ClipByGlobalNorm(Adam(), 1.0), steps=4)`. Schedules and `iterations`
    count updates, not micro-batches. Micro-batches that are left over at the end of
    an epoch count towards the first update of the next.

    Args:
        inner_optimizer: Any Keras optimizer, or its name.
        steps: Integer > 1. The number of micro-batches in an update.
        name: Name of the wrapper.

    Raises:
        InvalidArgumentError: If `steps` is not a whole number > 1, or
            `inner_optimizer` cannot work inside a wrapper.

    Example:

    >>> weight = keras.Variable([0.0])
    >>> sgd = keras.optimizers.SGD(learning_rate=1.0)
    >>> optimizer = tfdeep.optimizers.Accumulate(sgd, steps=2)
    >>> for gradient in [1.0, 3.0, 5.0]:
    ...     optimizer.apply([keras.ops.array([gradient])], [weight])
    >>> print(weight.numpy(), int(optimizer.iterations))
    [-2.] 1
    """

    def __init__(
        self, inner_optimizer: Any, steps: int, name: str | None = None
    ) -> None:
        steps = whole_number(
            steps,
            "steps",
            "Accumulate",
            above=1,
            unit="micro-batches",
            fix=fix_for(steps, "Accumulate", "steps=4"),
        )
        super().__init__(inner_optimizer, name=name)
        self.steps = steps

    def build_state(self, variables: list[keras.Variable]) -> None:
        self._count = self.add_variable((), dtype="int", name="micro_batches")
        self._sums = [
            self.add_variable_from_reference(variable, name="sum")
            for variable in variables
        ]

    def apply_reduced(
        self,
        gradients: list[Gradient | None],
        variables: list[keras.Variable],
    ) -> None:
        places = trained(gradients, variables)
        built_for = map(id, _internals.built_for(self))
        sum_of = dict(zip(built_for, self._sums, strict=True))
        sums = [sum_of[id(variables[i])] for i in places]
        for total, i in zip(sums, places, strict=True):
            total.assign(total + tf.cast(gradients[i], total.dtype))
        self.record()
        count = self._count.value + 1
        self._count.assign(count % self.steps)

        def update() -> None:
            means = list(gradients)
            for total, i in zip(sums, places, strict=True):
                means[i] = total / self.steps
                total.assign(tf.zeros_like(total))
            self.pass_on(means, variables)

        _replicas.call_if(count == self.steps, update)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "steps": self.steps}
