"""Leaving out the steps whose gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeep._core import _gradients
from tfdeep._core._arguments import whole_number
from tfdeep._core._explain import explain
from tfdeep._core._gradients import Gradient
from tfdeep._keras import _internals, _replicas
from tfdeep.errors import NonFiniteGradientError
from tfdeep.optimizers._refusals import fix_for
from tfdeep.optimizers._wrapper import OptimizerWrapper, trained


@keras.saving.register_keras_serializable("tfdeep")
class SkipNonFinite(OptimizerWrapper):
    """Leaves out each step whose gradient has a NaN, an infinity, or overflows.

    Use it as the outermost wrapper where a rare batch gives a gradient that would
    make every weight NaN. A skipped step changes nothing of what it wraps: no weight,
    no moment, no moving average, no history of norms, not the step count, and so not
    the schedule. It is counted in `telemetry`, and `nonfinite_variable` names where
    the gradient broke.

    A gradient whose squares overflow float32 counts as not finite, since they would
    make the moments of Adam and its kin infinite for good. Statistics that the forward
    pass keeps, such as those of `BatchNormalization`, are not the optimizer's and
    are not protected.

    Args:
        inner_optimizer: Any Keras optimizer, or its name.
        max_consecutive: Integer > 0. How many steps in a row may be skipped, in steps.
            One more stops the training with an error: `NonFiniteGradientError` when
            run eagerly, TensorFlow's `InvalidArgumentError` with the same words in a
            compiled step. XLA drops checks from the steps that it compiles; there,
            every further step is skipped as well and the error comes when `fit` ends.
            None never stops.
        name: Name of the wrapper.

    Raises:
        InvalidArgumentError: If `max_consecutive` is not a whole number > 0, or
            `inner_optimizer` cannot work inside a wrapper.

    Example:

    >>> weight = keras.Variable([1.0], name="weight")
    >>> sgd = keras.optimizers.SGD(learning_rate=0.5)
    >>> optimizer = tfdeep.optimizers.SkipNonFinite(sgd)
    >>> for gradient in [1.0, np.nan, 1.0]:
    ...     optimizer.apply([keras.ops.array([gradient])], [weight])
    >>> print(weight.numpy(), int(optimizer.iterations))
    [0.] 2
    >>> optimizer.telemetry.skipped_steps, optimizer.nonfinite_variable
    (1, 'weight')
    """

    def __init__(
        self,
        inner_optimizer: Any,
        max_consecutive: int | None = None,
        name: str | None = None,
    ) -> None:
        if max_consecutive is not None:
            max_consecutive = whole_number(
                max_consecutive,
                "max_consecutive",
                "SkipNonFinite",
                above=0,
                unit="steps, or None for no limit",
                fix=fix_for(max_consecutive, "SkipNonFinite", "max_consecutive=10"),
            )
        super().__init__(inner_optimizer, name=name)
        self.max_consecutive = max_consecutive

    def build_state(self, variables: list[keras.Variable]) -> None:
        self._consecutive = self.add_variable((), dtype="int", name="skipped_in_a_row")
        self._broken = self.add_variable(
            (),
            dtype="int",
            initializer=keras.initializers.Constant(-1),
            name="nonfinite_variable",
        )

    @property
    def nonfinite_variable(self) -> str | None:
        """Path of the first variable whose gradient broke the last skipped step."""
        place = int(self._broken.numpy()) if self.built else -1
        return None if place < 0 else self._paths()[place]

    def _paths(self) -> list[str]:
        return [variable.path for variable in _internals.built_for(self)]

    def apply_reduced(
        self,
        gradients: list[Gradient | None],
        variables: list[keras.Variable],
    ) -> None:
        places = trained(gradients, variables)
        norms = _gradients.l2_norms([gradients[i] for i in places])
        is_finite = tf.math.is_finite(norms)
        passes = tf.reduce_all(is_finite)
        self.record(norm=tf.norm(norms), skipped=~passes)
        skipped = tf.cast(~passes, self._consecutive.dtype)
        in_a_row = (self._consecutive.value + 1) * skipped
        self._consecutive.assign(in_a_row)

        position = {id(v): i for i, v in enumerate(_internals.built_for(self))}
        first = tf.argmin(tf.cast(is_finite, tf.int32))
        broken = tf.gather([position[id(variables[i])] for i in places], first)
        broken = tf.cast(broken, self._broken.dtype)
        self._broken.assign(tf.where(passes, self._broken.value, broken))

        _replicas.call_if(
            passes,
            lambda g: super(SkipNonFinite, self).apply_reduced(g, variables),
            gradients,
        )
        if self.max_consecutive is not None:
            self._stop(in_a_row > self.max_consecutive, self._broken.value)

    def _stop(self, is_over: tf.Tensor, broken: tf.Tensor) -> None:
        if tf.executing_eagerly():
            self._raise_if_over()
            return

        def stop() -> tf.Tensor:
            # One check for each variable, since XLA has no strings to choose from.
            for i, path in enumerate(self._paths()):
                lines = str(self._error(path)).splitlines()
                tf.debugging.Assert(broken != i, [line.strip() for line in lines])
            return tf.constant(0)

        tf.cond(is_over, stop, lambda: tf.constant(0))

    def _raise_if_over(self) -> None:
        if self.max_consecutive is None or not self.built:
            return
        if int(self._consecutive.numpy()) > self.max_consecutive:
            raise self._error(self.nonfinite_variable)

    def _error(self, path: str | None) -> NonFiniteGradientError:
        return NonFiniteGradientError(
            explain(
                "Training stopped: too many steps in a row had a gradient that is not "
                "finite.",
                received=f"a gradient of `{path}` with a NaN or infinite entry, or too "
                f"large for float32, in more than {self.max_consecutive} steps in a "
                "row",
                expected=f"at most {self.max_consecutive} such steps in a row",
                fix="a tenth of the learning rate, `ClipByGlobalNorm` inside this "
                "wrapper, or a look at the batch; none of these steps changed a weight",
            )
        )

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        super().finalize_variable_values(var_list)
        self._raise_if_over()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_consecutive": self.max_consecutive}
