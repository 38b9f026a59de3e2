"""Clipping each unit's gradient by the size of its weights."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdeep._core import _gradients, _paths
from tfdeep._core._arguments import number
from tfdeep._core._gradients import Gradient
from tfdeep._core._paths import Patterns
from tfdeep._keras import _owners, _variables
from tfdeep.optimizers._refusals import fix_for
from tfdeep.optimizers._wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable("tfdeep")
class AdaptiveClip(OptimizerWrapper):
    """Shortens the gradient of each unit that is long beside the unit's weights.

    Use it for deep networks without batch normalization and with large batches: the
    bound needs no tuning by layer, since it follows the weights. For unit i of a
    layer, with weights W_i and gradient G_i:

        G_i  <-  G_i * min(1, b_i / ||G_i||),   b_i = lambda * max(||W_i||, epsilon)

    What a unit is depends on the layer: a column of a dense or recurrent kernel, a
    filter of a convolution (also transposed), a channel's window of a depthwise one,
    a head's output of attention, a row of an embedding. Biases and gains are one unit
    each.

    The last layer is best left out; name it in `exclude`.

    Args:
        inner_optimizer: Any Keras optimizer, or its name.
        clip_factor: Float > 0. Lambda, the largest ratio of gradient to weights,
            without a unit.
        epsilon: Float > 0. The weight norm that a unit has at least, so that one
            whose weights are zero can start to learn.
        exclude: A pattern or a list of patterns; variables to leave unclipped. In
            `fit`, of paths within the model, such as "outputs"; in a loop of one's
            own, of `variable.path`.
        name: Name of the wrapper.

    Raises:
        InvalidArgumentError: If `clip_factor` or `epsilon` is not a finite number > 0,
            or `inner_optimizer` cannot work inside a wrapper.
        SelectionError: At the first step, if `exclude` selects no variable.

    Example:

    >>> kernel = keras.Variable([[3.0, 0.3], [4.0, 0.4]], name="kernel")
    >>> sgd = keras.optimizers.SGD(learning_rate=1.0)
    >>> optimizer = tfdeep.optimizers.AdaptiveClip(sgd, clip_factor=0.1)
    >>> optimizer.apply([keras.ops.array([[3.0, 0.03], [4.0, 0.04]])], [kernel])
    >>> print(kernel.numpy().round(2))  # unit 1 moves .5 of its 5, unit 2 as it would
    [[2.7  0.27]
     [3.6  0.36]]

    Reference:
        Brock et al., 2021, https://arxiv.org/abs/2102.06171 (section 4).
    """

    def __init__(
        self,
        inner_optimizer: Any,
        clip_factor: float = 0.01,
        epsilon: float = 1e-3,
        exclude: Patterns = None,
        name: str | None = None,
    ) -> None:
        clip_factor = number(
            clip_factor,
            "clip_factor",
            "AdaptiveClip",
            above=0,
            unit="gradient norm over weight norm",
            fix=fix_for(clip_factor, "AdaptiveClip", "clip_factor=0.01"),
        )
        epsilon = number(
            epsilon,
            "epsilon",
            "AdaptiveClip",
            above=0,
            unit="units of weight",
            example=1e-3,
        )
        for pattern in _paths.as_patterns(exclude):
            _paths.compile_pattern(pattern)
        super().__init__(inner_optimizer, name=name)
        self.clip_factor = clip_factor
        self.epsilon = epsilon
        self.exclude = exclude

    def build_state(self, variables: list[keras.Variable]) -> None:
        # Looked up in the first step: only then is it known whose optimizer this is.
        self._axes: dict[int, tuple[int, ...] | None] = {}

    def transform(
        self, gradients: list[Gradient], variables: list[keras.Variable]
    ) -> list[Gradient]:
        if any(id(variable) not in self._axes for variable in variables):
            self._axes = self._find_axes(variables)
        clipped: list[Gradient] = []
        before: list[tf.Tensor] = []
        after: list[tf.Tensor] = []
        for gradient, variable in zip(gradients, variables, strict=True):
            axes = self._axes[id(variable)]
            if axes is None:
                square = tf.square(_gradients.l2_norms([gradient])[0])
                kept = (gradient, square, square)
            elif isinstance(gradient, tf.IndexedSlices) and axes == (1,):
                kept = self._clip_rows(gradient, variable)
            else:
                kept = self._clip_units(gradient, variable, axes)
            for values, value in zip((clipped, before, after), kept, strict=True):
                values.append(value)
        self.record(
            norm=tf.sqrt(tf.add_n(before)),
            clipped_norm=tf.sqrt(tf.add_n(after)),
            threshold=self.clip_factor,
        )
        return clipped

    def _clip_units(
        self, gradient: Gradient, variable: keras.Variable, axes: tuple[int, ...]
    ) -> tuple[Gradient, tf.Tensor, tf.Tensor]:
        gradient = tf.convert_to_tensor(gradient)
        norms = _norms(gradient, axes)
        factors = self._factors(norms, _norms(variable.value, axes))
        clipped = gradient * tf.cast(factors, gradient.dtype)
        return clipped, *_squares(norms, factors)

    def _clip_rows(
        self, gradient: tf.IndexedSlices, variable: keras.Variable
    ) -> tuple[Gradient, tf.Tensor, tf.Tensor]:
        """Clips the rows of an embedding; only those that the batch has used."""
        rows, place = _gradients.sum_repeated_rows(gradient)
        weights = tf.gather(variable.value, gradient.indices)
        norms = _norms(rows, (1,))
        factors = self._factors(tf.gather(norms, place), _norms(weights, (1,)))
        clipped = tf.IndexedSlices(
            gradient.values * tf.cast(factors, gradient.values.dtype),
            gradient.indices,
            gradient.dense_shape,
        )
        by_row = tf.math.unsorted_segment_max(factors, place, tf.shape(norms)[0])
        return clipped, *_squares(norms, tf.where(norms > 0, by_row, 0.0))

    def _factors(self, gradient_norms: tf.Tensor, weight_norms: tf.Tensor) -> tf.Tensor:
        bounds = self.clip_factor * tf.maximum(weight_norms, self.epsilon)
        return tf.where(gradient_norms > bounds, bounds / gradient_norms, 1.0)

    def _find_axes(
        self, variables: list[keras.Variable]
    ) -> dict[int, tuple[int, ...] | None]:
        excluded: set[int] = set()
        if self.exclude is not None:
            paths = {v.path: v for v in variables}
            model = self._bound_model()
            if model is not None:
                paths = {v.path: v.variable for v in _variables.model_variables(model)}
            selected = _paths.select(list(paths), include=self.exclude)
            excluded = {id(paths[path]) for path in selected}
        fix = "call `optimizer.bind(model)` before the first step"
        return {
            id(v): None
            if id(v) in excluded
            else _owners.unit_axes(v, "AdaptiveClip", fix)
            for v in variables
        }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "clip_factor": self.clip_factor,
            "epsilon": self.epsilon,
            "exclude": self.exclude,
        }


def _norms(x: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    squares = tf.square(tf.cast(x, tf.float32))
    return tf.sqrt(tf.reduce_sum(squares, axis=axes, keepdims=True))


def _squares(norms: tf.Tensor, factors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.reduce_sum(norms**2), tf.reduce_sum((norms * factors) ** 2)
