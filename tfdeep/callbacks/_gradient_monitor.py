"""The callback that sees the gradients which train the model."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import keras
import numpy as np

from tfdeep._core import _optimizers, _paths
from tfdeep._core._explain import explain
from tfdeep._core._paths import Patterns
from tfdeep.callbacks._recorder import StepRecorder
from tfdeep.callbacks._tensorboard import ScalarWriter
from tfdeep.callbacks._train_function import WatchedTrainFunction
from tfdeep.diagnostics import MonitorReport, summarize
from tfdeep.errors import InvalidArgumentError, ModelError
from tfdeep.optimizers import OptimizerWrapper, Telemetry


class GradientMonitor(keras.callbacks.Callback):
    """Records the gradients of every layer while `fit` trains, at every step.

    Use it when a deep network does not train, or to see that it does. It records the
    gradients that train the model: summed over replicas, free of the loss scale,
    before and after clipping, inside the compiled step, without a second backward
    pass. It works with any optimizer given to `compile` and leaves the model as it
    found it.

    A fit with a monitor traces the train step anew, as the first fit after
    `compile` does. Each fit starts a new history.

    Args:
        log_dir: Directory for TensorBoard scalars. Every step is written at first,
            then ever more sparsely, so that long runs stay readable; `history` holds
            every step. None writes nothing.
        include: A pattern or a list of patterns; the variables to record. None
            records every trainable variable.
        exclude: A pattern or a list of patterns; the variables to leave out.
        flush_every: Integer > 0. How many steps are kept on the device before they
            are read, in steps.

    Raises:
        InvalidArgumentError: If `flush_every` is not a whole number > 0.
        MissingDependencyError: If `log_dir` is given and tensorboard is not
            installed.
        ModelError: At the start of `fit`, if the model has no optimizer.
        SelectionError: At the start of `fit`, if a pattern selects no variable.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[8, 8], num_outputs=2)
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    >>> monitor = tfdeep.callbacks.GradientMonitor()
    >>> x, y = np.ones((32, 4), "float32"), np.zeros(32)
    >>> history = model.fit(x, y, batch_size=8, verbose=0, callbacks=[monitor])
    >>> list(monitor.history)[:2]
    ['hidden1/kernel', 'hidden1/bias']
    >>> monitor.history["hidden1/kernel"]["norm"].shape
    (4,)
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        flush_every: int = 100,
    ) -> None:
        super().__init__()
        if (
            isinstance(flush_every, bool)
            or not isinstance(flush_every, (int, np.integer))
            or flush_every < 1
        ):
            raise InvalidArgumentError(
                explain(
                    "`GradientMonitor` cannot keep this many steps.",
                    received=f"flush_every={flush_every!r}",
                    expected="a whole number > 0, in steps",
                    fix="leave `flush_every` at its default of 100",
                )
            )
        self.include = include
        self.exclude = exclude
        self.flush_every = int(flush_every)
        self._writer = None if log_dir is None else ScalarWriter(log_dir)
        self._recorder: StepRecorder | None = None
        self._reset()

    def _reset(self) -> None:
        self._recorder = None
        self._paths: list[str] = []
        self._keys: list[str] = []
        self._chunks: dict[str, list[np.ndarray]] = {}
        self._pending = 0
        self._batch_begin = 0
        self._watched: WatchedTrainFunction | None = None
        self._wrappers: list[OptimizerWrapper] = []

    # What users read.

    @property
    def history(self) -> dict[str, dict[str, np.ndarray]]:
        """What was recorded: `history[variable.path][quantity]`, one value a step.

        The quantities, in float32:

        * `norm`: L2 norm of the gradient, in gradient units (loss per unit of
          weight), before clipping;
        * `clipped_norm`: the same after clipping;
        * `largest_entry`: the largest absolute entry before clipping;
        * `update_ratio`: `||w_after - w_before|| / ||w_before||` of the step's
          update, at every tenth step; NaN between.

        Infinity stands for a gradient with a NaN or infinite entry; NaN where a
        step had no gradient for the variable, or did not apply it.
        """
        if self._pending:
            self._flush()
        recorded = {name: np.concatenate(c) for name, c in self._chunks.items() if c}
        if not recorded:
            return {key: {} for key in self._keys}
        steps = len(recorded["norm"])
        # The first row says nothing: there is no update before the first step.
        ratio = recorded["update_ratio"][1:]
        unknown = np.full((steps - len(ratio), ratio.shape[1]), np.nan, np.float32)
        recorded["update_ratio"] = np.concatenate([ratio, unknown])
        return {
            key: {name: values[:, i] for name, values in recorded.items()}
            for i, key in enumerate(self._keys)
        }

    def report(self) -> MonitorReport:
        """What the recorded numbers say about each variable, as a table.

        Below it stands what each of tfdeep's optimizer wrappers has done.
        """
        history = self.history
        report = summarize(
            {
                path: history[key]
                for path, key in zip(self._paths, self._keys, strict=True)
            }
        )
        wrappers = tuple(f"{telemetry}." for telemetry in self.telemetry)
        return dataclasses.replace(report, remarks=report.remarks + wrappers)

    @property
    def telemetry(self) -> list[Telemetry]:
        """What each optimizer wrapper has done, from the outside in."""
        return [wrapper.telemetry for wrapper in self._wrappers]

    # What Keras calls.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._unwatch()
        self._reset()
        model = self.model
        if model.optimizer is None:
            raise ModelError(
                explain(
                    "`GradientMonitor` has no optimizer to watch.",
                    received=f"model {model.name!r} with optimizer=None",
                    expected="a model compiled with an optimizer",
                    fix="`model.compile(optimizer=..., loss=...)`",
                )
            )
        self._wrappers = [
            optimizer
            for optimizer in _optimizers.chain(model.optimizer)
            if isinstance(optimizer, OptimizerWrapper)
        ]
        self._recorder = StepRecorder(
            model,
            self._chosen_variables,
            capacity=self.flush_every + max(model.steps_per_execution, 64),
        )
        if model.built:
            self._recorder.prepare()
        self._watched = WatchedTrainFunction.of(model, self._recorder)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._batch_begin = batch
        if self._watched is None or self._recorder is None:
            return
        if self.model.train_function is not self._watched:
            # Another callback had the train step traced anew.
            self._watched = WatchedTrainFunction.of(self.model, self._recorder)
        self._watched.is_expected = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._pending += batch - self._batch_begin + 1
        if self._pending >= self.flush_every:
            self._flush()

    def on_train_end(self, logs: Any = None) -> None:
        self._flush(last=True)
        self._unwatch()

    # How it does it.

    def _chosen_variables(self) -> list[keras.Variable]:
        trainable = {id(variable) for variable in self.model.trainable_variables}
        variables = [
            v for v in _paths.model_variables(self.model) if id(v.variable) in trainable
        ]
        paths = [v.path for v in variables]
        chosen = set(
            _paths.select(paths, self.include, self.exclude, what="trainable variable")
        )
        variables = [v for v in variables if v.path in chosen]
        self._paths = [v.path for v in variables]
        keras_paths = [v.variable.path for v in variables]
        # Two inner models may hold variables that Keras gives the same path.
        unique = len(set(keras_paths)) == len(keras_paths)
        self._keys = keras_paths if unique else self._paths
        return [v.variable for v in variables]

    def _unwatch(self) -> None:
        if self._watched is not None and self._recorder is not None:
            self._watched.release(self._recorder)
        self._watched = None

    def _flush(self, last: bool = False) -> None:
        self._pending = 0
        if self._recorder is None or not self._recorder.is_ready:
            return
        first_step = sum(map(len, self._chunks.get("norm", [])))
        rows = self._recorder.drain(last)
        for name, values in rows.items():
            self._chunks.setdefault(name, []).append(values)
        if self._writer is not None:
            self._writer.write(self._paths, rows, first_step)
            self._writer.write_telemetry(
                self.telemetry, first_step + len(rows["norm"]) - 1
            )
            if last:
                self._writer.close()
