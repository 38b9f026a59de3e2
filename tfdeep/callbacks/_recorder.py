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
import functools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _gradients
from tfdeep._core._gradients import Gradient, Grouped
from tfdeep._keras import _internals, _optimizers, _penalties, _program, _replicas
from tfdeep._keras._patches import replaced
from tfdeep._quantities import OF_VARIABLES
from tfdeep.callbacks import _schedule
from tfdeep.callbacks._batch_recorder import BatchRecorder
from tfdeep.callbacks._layer_recorder import LayerRecorder
from tfdeep.callbacks._ring import Ring, is_at_hand, local_variable
from tfdeep.callbacks._sometimes import are_on_one_cpu, nothing, sometimes
from tfdeep.optimizers import Accumulate, OptimizerWrapper

# A norm below this may lack squares that are too small for float32.
_UNDERFLOW = 1e-18

# Weights up to this many entries share one copy; fewer, larger operations are cheaper.
_SHARED_COPY = 131_072


class StepRecorder:
    """Records what happens to the gradients, weights and layers in each step.

    Args:
        model: A compiled model.
        choose: Returns the variables to record, one column each. It is called once
            the model has its variables.
        layers: Returns the layers of the model by path.
        outputs: Returns how many outputs the model has.
        capacity: How many steps the rings hold.
        activations: Whether to look at the outputs of the layers.
        copies: Whether to keep the latest gradients, for histograms.
        settings: What distinguishes it from other recorders of the model.
    """

    def __init__(
        self,
        model: Any,
        choose: Callable[[], Sequence[keras.Variable]],
        layers: Callable[[], Mapping[str, Any]],
        outputs: Callable[[], int],
        capacity: int,
        activations: bool = False,
        copies: bool = False,
        settings: Any = None,
    ) -> None:
        self.capacity = capacity
        self.settings = settings
        self._model = model
        self._choose = choose
        self._choose_layers = layers
        self._count_outputs = outputs
        self._activations = activations
        self._copies_gradients = copies
        self._history: Any = None
        chain = _optimizers.chain(model.optimizer)
        self._outer = chain[0]
        self._wrappers = [o for o in chain if isinstance(o, OptimizerWrapper)]
        self._plain = chain[-1]
        self._clips = bool(self._wrappers) or _changes_gradients(self._plain)
        # How many steps an update takes; as many hold one, wherever they begin.
        self._span = math.prod(_steps_accumulated(o) for o in chain)
        self._period = self._span * math.ceil(max(_schedule.EVERY / self._span, 2))
        # By thread, as the replicas of a strategy trace the step.
        self._losses: dict[int, tf.Tensor] = {}
        self._data_losses: dict[int, tf.Tensor] = {}
        self._batches: dict[int, tuple[Any, Any, Any]] = {}
        self._now: dict[int, tuple[tf.Tensor, tf.Tensor]] = {}
        self._drained = 0
        self._has_penalties = False
        self.is_ready = False

    def prepare(self) -> None:
        """Creates the recorder's own variables, beside those of the model."""
        if not self.is_ready:
            # A model may build itself in its first step, while that is traced.
            with tf.init_scope(), self._model.distribute_strategy.scope():
                self._create_variables()
            # And with them whoever gave them.
            del self._choose, self._choose_layers, self._count_outputs
            self.is_ready = True

    def resume(self, history: Any, step: int) -> None:
        """Goes on with a history at this step, which is measured in detail.

        Args:
            history: The object in which the steps are recorded.
            step: The number of the next step.
        """
        if self._history is history and step == self._drained:
            return
        if self._history is not None or step:  # the variables are not new
            for variable in (self._step, self._next_due, self._next_look):
                variable.assign(step)
            self._last_heard.assign(tf.fill(self._last_heard.shape, np.int64(step - 1)))
            self._layers.resume(step)
        self._history = history
        self._drained = step

    def _create_variables(self) -> None:
        self._variables = list(self._choose())
        self._column = {id(v): i for i, v in enumerate(self._variables)}
        count = len(self._variables)
        self._sizes = [int(np.prod(v.shape)) for v in self._variables]
        self._biases = [
            i for i, v in enumerate(self._variables) if v.name in ("bias", "beta")
        ]
        bias_sizes = [self._sizes[i] for i in self._biases]
        self._bias_of_unit = np.repeat(np.arange(len(bias_sizes)), bias_sizes)
        self._last_heard = local_variable(tf.fill([sum(bias_sizes)], np.int64(-1)))
        self._step = local_variable(tf.zeros([], tf.int64))
        # The number of the next step that is measured in detail, and of the next one
        # at which the layers or the weights are due: a comparison at each step, and not
        # a dozen operations.
        self._next_due = local_variable(tf.zeros([], tf.int64))
        self._next_look = local_variable(tf.zeros([], tf.int64))
        self._loss = Ring(self.capacity, ("loss", "data_loss"), 1, across=np.mean)
        self._batch = BatchRecorder(self._count_outputs(), self.capacity)
        written = [n for n in OF_VARIABLES if self._clips or n != "clipped_norm"]
        self._of_variables = Ring(self.capacity, written, count)
        self._shared = [i for i in range(count) if self._sizes[i] <= _SHARED_COPY]
        self._single = [i for i in range(count) if self._sizes[i] > _SHARED_COPY]
        self._shared_sizes = [self._sizes[i] for i in self._shared]
        self._shared_copy = local_variable(tf.zeros([sum(self._shared_sizes)]))
        self._copies = [
            local_variable(tf.zeros(self._variables[i].shape, tf.float32))
            for i in self._single
        ]
        self._latest = [
            local_variable(tf.zeros(variable.shape, tf.float32))
            for variable in self._variables
            if self._copies_gradients
        ]
        self._is_on_one_cpu = are_on_one_cpu(
            [self._step, *(variable.value for variable in self._variables)]
        )
        self._layers = LayerRecorder(
            self._choose_layers(), self.capacity, self._activations
        )

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that it records, one column each."""
        return self._variables

    @property
    def seen_outputs(self) -> list[_program.Output]:
        """What the traced step has shown of the model's outputs."""
        return self._batch.seen_outputs if self.is_ready else []

    @property
    def optimizer(self) -> Any:
        """The optimizer that the model had when the recorder was made."""
        return self._outer

    # Looking on, inside the step.

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Puts the recorder between the gradients and the optimizer."""
        with contextlib.ExitStack() as stack:
            if self._wrappers:
                stack.enter_context(
                    replaced(self._wrappers[0], "apply_reduced", self._look_before)
                )
                stack.enter_context(replaced(self._plain, "apply", self._look_after))
            else:
                stack.enter_context(replaced(self._plain, "apply", self._look_at_plain))
            stack.enter_context(replaced(self._outer, "apply", self._count_step))
            stack.enter_context(
                replaced(self._model, "compute_loss", self._look_at_computed_loss)
            )
            data_loss = _internals.compiled_loss(self._model)
            if data_loss is not None:
                stack.enter_context(
                    replaced(data_loss, "call", self._look_at_data_loss)
                )
            stack.enter_context(replaced(self._outer, "scale_loss", self._look_at_loss))
            if self.is_ready:
                stack.enter_context(self._layers.watching())
            yield

    def _look_at_computed_loss(self, compute_loss: Callable[..., Any]) -> Any:
        """A train step of one's own may leave out `scale_loss`."""

        @functools.wraps(compute_loss)
        def seen(*args: Any, **kwargs: Any) -> Any:
            self._data_losses.pop(threading.get_ident(), None)
            loss = compute_loss(*args, **kwargs)
            self._losses[threading.get_ident()] = loss
            given = dict(zip(("x", "y", "y_pred"), args, strict=False)) | kwargs
            x, y, predictions = map(given.get, ("x", "y", "y_pred"))
            self._batches[threading.get_ident()] = x, y, predictions
            return loss

        return seen

    def _look_at_data_loss(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The loss without penalties, of which `compute_loss` returns the sum."""

        def seen(*args: Any, **kwargs: Any) -> Any:
            loss = call(*args, **kwargs)
            self._data_losses[threading.get_ident()] = loss
            return loss

        return seen

    def _look_at_loss(self, scale_loss: Callable[..., Any]) -> Callable[..., Any]:
        def seen(loss: Any) -> Any:
            self._losses[threading.get_ident()] = loss
            return scale_loss(loss)

        return seen

    def _count_step(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        def counted(grads: Any, trainable_variables: Any = None) -> Any:
            self.prepare()
            step = self._step.read_value()
            is_due = step >= self._next_due
            is_broken = self._record_loss(step)
            self._measure(step, is_broken)
            self._now[threading.get_ident()] = step, is_due
            try:
                result = apply(grads, trainable_variables)
            finally:
                del self._now[threading.get_ident()]
            self._step.assign_add(1)
            return result

        return counted

    def _this_step(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The number of the step, and whether it is measured in detail.

        Both are read once, but by each thread of a strategy.
        """
        now = self._now.get(threading.get_ident())
        if now is None:
            step = self._step.read_value()
            now = step, _schedule.is_due(step)
        return now

    def _record_loss(self, step: tf.Tensor) -> tf.Tensor | None:
        """Writes the loss of the step; returns whether it is not finite, if known."""
        thread = threading.get_ident()
        total = self._losses.pop(thread, None)
        data = self._data_losses.pop(thread, None)
        if total is None or not is_at_hand(total):
            return None

        def as_row(loss: tf.Tensor) -> tf.Tensor:
            # Keras divides the loss by the number of replicas.
            loss = tf.cast(tf.reduce_mean(loss), tf.float32) * _replicas.count()
            return loss[tf.newaxis]

        rows = {"loss": as_row(total)}
        self._has_penalties = (
            data is not None and data is not total and is_at_hand(data)
        )
        if self._has_penalties:
            rows["data_loss"] = as_row(data)
        self._loss.write(step, **rows)
        return ~tf.math.is_finite(rows["loss"][0])

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
                variables = _internals.built_for(self._plain)
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
        step, is_due = self._this_step()
        grouped = _gradients.Grouped(gradients)
        norms = tf.cast(_gradients.l2_norms(grouped), tf.float32)

        def look_closer() -> tf.Tensor:
            largest = _gradients.largest_entries(grouped)

            def record() -> tf.Tensor:
                self._record_details(step, grouped, columns, largest)
                self._copy_gradients(gradients, columns)
                return nothing()

            is_measured = is_due | ~tf.reduce_all(tf.math.is_finite(norms))
            tf.cond(is_measured, record, nothing)
            # Its squares underflow, but a norm is at least the largest entry.
            return _without_nan(tf.maximum(norms, tf.cast(largest, tf.float32)))

        usual = tf.clip_by_value(norms, _UNDERFLOW, tf.float32.max)
        is_odd = tf.reduce_any(tf.not_equal(norms, usual))  # as a NaN is
        norms = sometimes(is_due | is_odd, look_closer, norms, self._is_on_one_cpu)
        self._of_variables.write(step, norm=self._in_columns(norms, columns))

    def _record_details(
        self,
        step: tf.Tensor,
        gradients: Grouped,
        columns: list[int],
        largest: tf.Tensor,
    ) -> None:
        sizes = [self._sizes[column] for column in columns]
        mean, zeros, nonfinite = _gradients.entry_statistics(gradients, sizes)
        measured = {
            "largest_entry": largest,
            "mean": mean,
            "zero_fraction": zeros,
            "nonfinite_count": nonfinite,
        }
        rows = {
            name: self._in_columns(_without_nan(values), columns)
            for name, values in measured.items()
        }
        entries = dict(zip(columns, gradients.entries(), strict=True))
        if self._biases:
            silent = self._silent_units(step, entries)
            rows["silent_fraction"] = self._in_columns(silent, self._biases)
        penalized = [c for c in columns if self._variables[c].regularizer is not None]
        if self._has_penalties and penalized:
            norms = [self._data_norm(c, entries[c]) for c in penalized]
            rows["data_norm"] = self._in_columns(
                _without_nan(tf.stack(norms)), penalized
            )
        self._of_variables.write(step, **rows)

    def _data_norm(self, column: int, gradient: tf.Tensor) -> tf.Tensor:
        """The norm of a gradient without that of the penalty on the weight itself."""
        variable = self._variables[column]
        of_penalty = _penalties.gradient(variable)
        data = tf.cast(tf.reshape(gradient, [-1]), tf.float32)
        data -= tf.cast(tf.reshape(of_penalty, [-1]), tf.float32)
        # What is left of two equal numbers is rounding.
        rounding = 1e-6 * tf.norm(tf.cast(of_penalty, tf.float32))
        norm = tf.norm(data)
        return tf.where(norm > rounding, norm, 0.0)

    def _copy_gradients(self, gradients: list[Gradient], columns: list[int]) -> None:
        if self._copies_gradients:
            for column, gradient in zip(columns, gradients, strict=True):
                dense = tf.convert_to_tensor(gradient)
                self._latest[column].assign(tf.cast(dense, tf.float32))

    def _silent_units(
        self, step: tf.Tensor, entries: dict[int, tf.Tensor]
    ) -> tf.Tensor:
        """The fraction of each bias' units that have had no gradient for a while."""
        gradient = tf.concat(
            [
                tf.cast(entries[i], tf.float32)
                if i in entries
                else tf.zeros([self._sizes[i]])
                for i in self._biases
            ],
            0,
        )
        last_heard = tf.where(tf.not_equal(gradient, 0), step, self._last_heard)
        self._last_heard.assign(last_heard)
        silent = tf.cast(_schedule.is_long_ago(last_heard, step), tf.float32)
        # Of what is not a number nothing can be said.
        silent = tf.where(tf.math.is_nan(gradient), np.float32(np.nan), silent)
        count = len(self._biases)
        return tf.math.unsorted_segment_mean(silent, self._bias_of_unit, count)

    def _record_passed_on(
        self, gradients: list[Gradient], variables: list[Any]
    ) -> None:
        gradients, columns = self._selected(gradients, variables)
        if not columns or not self._clips:
            return
        norms = _without_nan(_gradients.l2_norms(gradients))
        row = self._in_columns(norms, columns)
        step, _ = self._this_step()
        self._of_variables.write(step, clipped_norm=row)

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
        """Spreads `values` over all columns; NaN where a variable has none."""
        if columns == list(range(len(self._variables))):
            return values
        place = {column: i for i, column in enumerate(columns)}
        values = tf.concat([values, [np.float32(np.nan)]], 0)
        return tf.gather(
            values, [place.get(i, len(columns)) for i in range(len(self._variables))]
        )

    def _measure(self, step: tf.Tensor, is_broken: tf.Tensor | None) -> None:
        """At the steps that are due, looks at the batch, the layers and the weights.

        The weights are copied before an update to be measured and compared after it;
        with accumulation an update is made every so many steps. A batch whose loss is
        not finite is always looked at.
        """
        record_layers = self._layers.seen(step)
        batch = self._batches.pop(threading.get_ident(), (None, None, None))
        record_batch = self._batch.seen(step, *batch)

        def record() -> tf.Tensor:
            record_batch()
            return record_layers()

        def measure() -> tf.Tensor:
            is_due = _schedule.is_due(step)
            is_due = is_due if is_broken is None else is_due | is_broken
            tf.cond(is_due, record, nothing)
            tf.cond(self._is_before(step), self._copy_weights, nothing)
            tf.cond(self._is_after(step), lambda: self._compare_weights(step), nothing)
            most = _schedule.RARER * self._period
            soon = step + tf.range(1, most + 1, dtype=tf.int64)
            is_due = _schedule.is_due(soon)
            is_looked_at = is_due | self._is_before(soon) | self._is_after(soon)
            self._next_due.assign(_first(soon, is_due))
            self._next_look.assign(_first(soon, is_looked_at))
            return nothing()

        is_looked_at = step >= self._next_look
        if is_broken is not None:
            is_looked_at |= is_broken
        sometimes(is_looked_at, measure, nothing(), self._is_on_one_cpu)

    def _is_before(self, step: tf.Tensor) -> tf.Tensor:
        return tf.equal(step % _schedule.every(step, self._period), 0)

    def _is_after(self, step: tf.Tensor) -> tf.Tensor:
        return tf.equal(step % _schedule.every(step, self._period), self._span)

    def _copy_weights(self) -> tf.Tensor:
        if self._shared:
            self._shared_copy.assign(self._flat_shared())
        for i, copy in zip(self._single, self._copies, strict=True):
            copy.assign(tf.cast(self._variables[i].value, tf.float32))
        return nothing()

    def _compare_weights(self, step: tf.Tensor) -> tf.Tensor:
        old, change = [], []
        if self._shared:
            flat = self._shared_copy.read_value()
            old += tf.split(flat, self._shared_sizes)
            change += tf.split(self._flat_shared() - flat, self._shared_sizes)
        for i, copy in zip(self._single, self._copies, strict=True):
            old.append(copy.read_value())
            change.append(tf.cast(self._variables[i].value, tf.float32) - old[-1])
        order = self._shared + self._single
        norms = [_without_nan(_gradients.l2_norms(x)) for x in (change, old)]
        update, weight = [self._in_columns(x, order) for x in norms]
        # The step before made the update.
        self._of_variables.write(step - 1, update_norm=update, weight_norm=weight)
        return nothing()

    def _flat_shared(self) -> tf.Tensor:
        flat = [
            tf.cast(tf.reshape(self._variables[i].value, [-1]), tf.float32)
            for i in self._shared
        ]
        return tf.concat(flat, 0)

    # Reading, between the steps.

    def latest_gradients(self) -> list[np.ndarray]:
        """The gradients of the last step that was measured in detail, before clipping.

        Empty unless copies were asked for.
        """
        return [np.array(variable.numpy()) for variable in self._latest]

    def drain(self) -> dict[str, np.ndarray]:
        """Takes what was recorded since the last call out of the rings.

        Returns:
            By quantity, an array of shape (steps, columns), NaN where a step was not
            measured: `loss` (one column); of each variable `norm`, `clipped_norm`,
            `largest_entry`, `mean`, `zero_fraction`, `nonfinite_count`,
            `silent_fraction`, `update_norm` and `weight_norm`; and what
            `LayerRecorder` records of the layers.
        """
        step = int(self._step.numpy())
        if step % self._period == self._span:
            here = self._step.read_value()
            if self._is_after(here):  # the next step would measure it
                self._compare_weights(here)
        # A ring that was overrun has lost its oldest rows; they read as unknown.
        lost = max(step - self._drained - self.capacity, 0)
        places = np.arange(self._drained + lost, step) % self.capacity
        recorded = {
            **self._loss.take(places),
            **self._batch.take(places),
            **self._of_variables.take(places),
            **self._layers.take(places),
        }
        norm = recorded["norm"]
        clipped = recorded.setdefault("clipped_norm", norm)
        # Too small for its squares, and so for any clipping.
        is_too_small = (clipped == 0) & (norm < _UNDERFLOW)
        recorded["clipped_norm"] = np.where(is_too_small, norm, clipped)
        self._drained = step
        return {
            name: np.concatenate(
                [np.full((lost, values.shape[1]), np.nan, np.float32), values]
            )
            for name, values in recorded.items()
        }


def _first(steps: tf.Tensor, condition: tf.Tensor) -> tf.Tensor:
    """The first of the steps at which a condition holds."""
    # XLA would compile an index anew for each of its values, that is at each step.
    return tf.reduce_min(tf.where(condition, steps, steps.dtype.max))


def _without_nan(values: tf.Tensor) -> tf.Tensor:
    """Infinity for all that is not a number; a NaN in a ring means "not measured"."""
    values = tf.cast(values, tf.float32)
    return tf.where(tf.math.is_nan(values), np.float32(np.inf), values)


def _present(
    gradients: Sequence[Gradient | None], variables: Sequence[Any]
) -> tuple[list[Gradient], list[Any]]:
    """The gradients that there are, and their variables."""
    pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
    return [g for g, _ in pairs], [v for _, v in pairs]


def _accumulates(optimizer: Any) -> bool:
    return _steps_accumulated(optimizer) > 1


def _steps_accumulated(optimizer: Any) -> int:
    if isinstance(optimizer, Accumulate):
        return optimizer.steps
    # A wrapper has the other attributes of its inner optimizer.
    return vars(optimizer).get("gradient_accumulation_steps") or 1


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
