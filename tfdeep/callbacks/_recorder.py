"""Records the numbers of each training step inside the compiled step.

Nothing is computed twice and nothing leaves the device before it is drained: the
recorder looks at the gradients that pass through the optimizer, writes a row of each
step into a ring of rows, and reads the ring when asked.

Keras has no hook for this. The recorder replaces methods of the optimizer objects
while a train function runs (which is when TensorFlow traces it) and puts them back
right after, so the model's optimizer is never another object, is saved as it is, and
stays untouched if training stops in the middle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _gradients, _keras_internals, _optimizers, _replicas
from tfdeep._core._gradients import Gradient
from tfdeep.optimizers import OptimizerWrapper

# The update of a weight is measured at every tenth step: it takes a copy of the
# weights, which at every step costs 6 to 19 percent of the training time.
RATIO_EVERY = 10

# Weights up to this many entries share one copy; fewer, larger operations are cheaper.
_SHARED_COPY = 131_072


class StepRecorder:
    """Records gradient norms, largest entries and update ratios of each step.

    Args:
        model: A compiled model.
        choose: Returns the variables to record, one column each. It is called once
            the model has its variables.
        capacity: How many steps the rings hold.
    """

    def __init__(
        self,
        model: Any,
        choose: Callable[[], Sequence[keras.Variable]],
        capacity: int,
    ) -> None:
        self.capacity = capacity
        self._model = model
        self._choose = choose
        chain = _optimizers.chain(model.optimizer)
        self._outer = chain[0]
        self._wrappers = [o for o in chain if isinstance(o, OptimizerWrapper)]
        self._plain = chain[-1]
        self._clips = bool(self._wrappers) or _changes_gradients(self._plain)
        self._drained = 0
        self.is_ready = False

    def prepare(self) -> None:
        """Creates the recorder's own variables, beside those of the model."""
        if not self.is_ready:
            # A model may build itself in its first step, while that is traced.
            with tf.init_scope(), self._model.distribute_strategy.scope():
                self._create_variables()
            self.is_ready = True

    def _create_variables(self) -> None:
        self._variables = list(self._choose())
        self._column = {id(v): i for i, v in enumerate(self._variables)}
        count = len(self._variables)
        self._step = _local(tf.zeros([], tf.int64))
        self._seen = _local(self._blank(2 * count))
        self._passed_on = _local(self._blank(count)) if self._clips else None
        self._ratio = _local(self._blank(count))
        sizes = [int(np.prod(variable.shape)) for variable in self._variables]
        self._shared = [i for i in range(count) if sizes[i] <= _SHARED_COPY]
        self._single = [i for i in range(count) if sizes[i] > _SHARED_COPY]
        self._shared_sizes = [sizes[i] for i in self._shared]
        self._shared_copy = _local(tf.zeros([sum(self._shared_sizes)]))
        self._copies = [
            _local(tf.zeros(self._variables[i].shape, tf.float32)) for i in self._single
        ]

    def _blank(self, columns: int) -> tf.Tensor:
        return tf.fill([self.capacity, columns], np.float32(np.nan))

    # Looking on, inside the step.

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Puts the recorder between the gradients and the optimizer."""
        with contextlib.ExitStack() as stack:
            if self._wrappers:
                _replace(stack, self._wrappers[0], "apply_reduced", self._look_before)
                _replace(stack, self._plain, "apply", self._look_after)
            else:
                _replace(stack, self._plain, "apply", self._look_at_plain)
            _replace(stack, self._outer, "apply", self._count_step)
            yield

    def _count_step(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        def counted(grads: Any, trainable_variables: Any = None) -> Any:
            self.prepare()
            self._measure_updates()
            result = apply(grads, trainable_variables)
            self._step.assign_add(1)
            return result

        return counted

    def _look_before(self, apply_reduced: Callable[..., Any]) -> Callable[..., Any]:
        def seen(gradients: list[Gradient | None], variables: list[Any]) -> None:
            self._record_seen(*_present(gradients, variables))
            apply_reduced(gradients, variables)

        return seen

    def _look_after(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        def seen(grads: Any, trainable_variables: Any) -> Any:
            self._record_passed_on(
                *self._unscaled(*_present(grads, trainable_variables))
            )
            return apply(grads, trainable_variables)

        return seen

    def _look_at_plain(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        def seen(grads: Any, trainable_variables: Any = None) -> Any:
            if trainable_variables is None:
                variables = _keras_internals.built_for(self._plain)
            else:
                variables = list(trainable_variables)
            gradients, present = _present(grads, variables)
            if gradients:
                self._record_plain(gradients, present)
            return apply(grads, trainable_variables)

        return seen

    def _unscaled(
        self, gradients: list[Gradient], variables: list[Any]
    ) -> tuple[list[Gradient], list[Any]]:
        scale = self._plain.loss_scale_factor
        if scale is not None:
            gradients = [_gradients.scale(g, 1.0 / scale) for g in gradients]
        return gradients, variables

    def _record_plain(self, gradients: list[Gradient], variables: list[Any]) -> None:
        gradients, variables = self._unscaled(gradients, variables)
        self._record_seen(_replicas.sum_over(gradients), variables)
        # With accumulation a gradient is clipped later, as a part of a sum.
        if self._clips and not _accumulates(self._plain):
            clipped = _clipped_by_keras(self._plain, gradients)
            self._record_passed_on(_replicas.sum_over(clipped), variables)

    def _record_seen(self, gradients: list[Gradient], variables: list[Any]) -> None:
        gradients, columns = self._selected(gradients, variables)
        if not columns:
            return
        largest = _gradients.largest_entries(gradients)
        # Squares of what is below 1e-19 underflow; the norm of such a gradient is at
        # least its largest entry.
        norms = tf.maximum(_gradients.l2_norms(gradients), largest)
        row = [self._in_columns(norms, columns), self._in_columns(largest, columns)]
        self._write(self._seen, tf.concat(row, 0))

    def _record_passed_on(
        self, gradients: list[Gradient], variables: list[Any]
    ) -> None:
        gradients, columns = self._selected(gradients, variables)
        if not columns:
            return
        row = self._in_columns(_gradients.l2_norms(gradients), columns)
        self._write(self._passed_on, row)

    def _selected(
        self, gradients: list[Gradient], variables: list[Any]
    ) -> tuple[list[Gradient], list[int]]:
        pairs = [
            (gradient, self._column[id(variable)])
            for gradient, variable in zip(gradients, variables, strict=True)
            if id(variable) in self._column
        ]
        return [gradient for gradient, _ in pairs], [column for _, column in pairs]

    def _in_columns(self, values: tf.Tensor, columns: list[int]) -> tf.Tensor:
        """Spreads `values` over all columns; NaN where a variable has none.

        Infinity stands for all that is not finite, so that NaN means one thing.
        """
        values = tf.cast(values, tf.float32)
        values = tf.where(tf.math.is_nan(values), np.float32(np.inf), values)
        if columns == list(range(len(self._variables))):
            return values
        place = {column: i for i, column in enumerate(columns)}
        values = tf.concat([values, [np.float32(np.nan)]], 0)
        return tf.gather(
            values, [place.get(i, len(columns)) for i in range(len(self._variables))]
        )

    def _measure_updates(self) -> None:
        """Copies the weights before a step to be measured, compares them after it."""
        phase = tf.cast(tf.minimum(self._step % RATIO_EVERY, 2), tf.int32)
        tf.switch_case(
            phase, [self._copy_weights, self._compare_weights, lambda: tf.constant(0)]
        )

    def _copy_weights(self) -> tf.Tensor:
        if self._shared:
            self._shared_copy.assign(self._flat_shared())
        for i, copy in zip(self._single, self._copies, strict=True):
            copy.assign(tf.cast(self._variables[i].value, tf.float32))
        return tf.constant(0)

    def _compare_weights(self) -> tf.Tensor:
        old, change = [], []
        if self._shared:
            flat = self._shared_copy.read_value()
            old += tf.split(flat, self._shared_sizes)
            change += tf.split(self._flat_shared() - flat, self._shared_sizes)
        for i, copy in zip(self._single, self._copies, strict=True):
            old.append(copy.read_value())
            change.append(tf.cast(self._variables[i].value, tf.float32) - old[-1])
        ratios = _gradients.l2_norms(change) / _gradients.l2_norms(old)
        self._write(self._ratio, self._in_columns(ratios, self._shared + self._single))
        return tf.constant(0)

    def _flat_shared(self) -> tf.Tensor:
        flat = [
            tf.cast(tf.reshape(self._variables[i].value, [-1]), tf.float32)
            for i in self._shared
        ]
        return tf.concat(flat, 0)

    def _write(self, ring: tf.Variable, row: tf.Tensor) -> None:
        place = tf.cast(self._step % self.capacity, tf.int32)
        ring.scatter_update(tf.IndexedSlices(row[tf.newaxis], place[tf.newaxis]))

    # Reading, between the steps.

    def drain(self, last: bool = False) -> dict[str, np.ndarray]:
        """Takes what was recorded since the last call out of the rings.

        Args:
            last: True when no step will follow, so that an update that still waits to
                be measured is measured now.

        Returns:
            `norm`, `clipped_norm`, `largest_entry` and `update_ratio`, each of shape
            (steps, variables). The rows of `update_ratio` belong to one step earlier,
            since an update is measured at the start of the next step; with `last`
            there is one row more.
        """
        step = int(self._step.numpy())
        if last and step % RATIO_EVERY == 1:
            self._compare_weights()
        # A ring that was overrun has lost its oldest rows; they read as unknown.
        lost = max(step - self._drained - self.capacity, 0)
        rows = np.arange(self._drained + lost, step) % self.capacity
        seen = self._take(self._seen)
        norm, largest = np.split(seen[rows], 2, axis=1)
        clipped = norm
        if self._passed_on is not None:
            clipped = self._take(self._passed_on)[rows]
            # Too small for its squares, and so for any clipping.
            clipped = np.where((clipped == 0) & (norm < 1e-18), norm, clipped)
        ratio_rows = np.append(rows, step % self.capacity) if last else rows
        ratio = self._take(self._ratio)[ratio_rows]
        self._drained = step
        recorded = {
            "norm": norm,
            "clipped_norm": clipped,
            "largest_entry": largest,
            "update_ratio": ratio,
        }
        unknown = np.full((lost, norm.shape[1]), np.nan, np.float32)
        return {name: np.concatenate([unknown, x]) for name, x in recorded.items()}

    def _take(self, ring: tf.Variable) -> np.ndarray:
        values = np.array(ring.numpy())
        ring.assign(self._blank(values.shape[1]))
        return values


def _replace(
    stack: contextlib.ExitStack,
    owner: Any,
    name: str,
    around: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Replaces a method of one object until `stack` closes.

    It goes past `__setattr__`, which in Keras tracks what is assigned.
    """
    attributes = vars(owner)
    before = attributes.get(name)
    attributes[name] = around(getattr(owner, name))
    if before is None:
        stack.callback(attributes.pop, name)
    else:
        stack.callback(attributes.__setitem__, name, before)


def _present(
    gradients: Sequence[Gradient | None], variables: Sequence[Any]
) -> tuple[list[Gradient], list[Any]]:
    """The gradients that there are, and their variables."""
    pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
    return [g for g, _ in pairs], [v for _, v in pairs]


def _local(value: tf.Tensor) -> tf.Variable:
    """A variable that every replica writes by itself, with the same value."""
    return tf.Variable(value, trainable=False, aggregation=tf.VariableAggregation.NONE)


def _accumulates(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "gradient_accumulation_steps", None))


def _changes_gradients(optimizer: Any) -> bool:
    arguments = ("clipvalue", "clipnorm", "global_clipnorm")
    clips = any(getattr(optimizer, name, None) is not None for name in arguments)
    return clips or _accumulates(optimizer)


def _clipped_by_keras(optimizer: Any, gradients: list[Gradient]) -> list[Gradient]:
    """What the clipping arguments of a Keras optimizer make of the gradients."""
    if optimizer.clipvalue is not None:
        limit = optimizer.clipvalue
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return [tf.clip_by_value(gradient, -limit, limit) for gradient in dense]
    if optimizer.clipnorm is not None:
        return [tf.clip_by_norm(gradient, optimizer.clipnorm) for gradient in gradients]
    dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
    clipped, _ = tf.clip_by_global_norm(dense, optimizer.global_clipnorm)
    return list(clipped)
