"""The callback that sees the gradients which train the model."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfdeep._core._arguments import flag
from tfdeep._core._explain import explain
from tfdeep._core._paths import Patterns
from tfdeep._keras._train_step import TrainSteps
from tfdeep.callbacks._monitored import Monitored, OnFinding
from tfdeep.callbacks._recorder import StepRecorder
from tfdeep.diagnostics.rules import Rule
from tfdeep.errors import ModelError


class GradientMonitor(Monitored, keras.callbacks.Callback):
    """Sees why a deep network does not train: watches every layer while `fit` trains.

    Use it when a network does not train, or to see that it does. It records the
    gradients that train the model: summed over replicas, free of the loss scale,
    before and after clipping, inside the compiled step, without a second backward
    pass. Rules look at what was recorded, name the layer that is sick, and say what
    helps. It works with any optimizer given to `compile` and leaves the model as it
    found it.

    The first fit with a monitor traces the train step, as the first fit after `compile`
    does. Later fits of the model use that step again, also with another monitor of the
    same arguments. A monitor that is used again goes on with its history; what trains
    for the first time then has no numbers of the steps before.

    Args:
        log_dir: Directory for TensorBoard and for `tfdeep report`. Every step is
            written at first, then ever more sparsely, so that long runs stay readable.
            A second fit into the same directory goes to `fit_2` in it. None writes
            nothing. If it can be written to no more, as on a full disk, the monitor
            warns and goes on without.
        include: A pattern or a list of patterns; the variables to record. None
            records every trainable variable.
        exclude: A pattern or a list of patterns; the variables to leave out.
        flush_every: Integer > 0. How many steps are kept on the device at most
            before they are read, in steps. Where there are rules they are read for
            these, too: every ten steps at first, then every hundred.
        activations: Whether to look at the outputs of the layers as well: their
            scale, units that are never active, saturation, rank. It costs more time.
        histograms: Whether to write histograms of the gradients to TensorBoard, each
            time the rings are read. It keeps a copy of the gradients, and needs
            `log_dir`.
        rules: A list of `tfdeep.diagnostics.rules.Rule`. "default" takes one of each
            kind; None or an empty list looks for nothing.
        on_finding: What to do when a rule finds something: "warn" gives a
            `SickLayerWarning`, one for all layers with the same finding; "stop" warns
            and ends the fit after the step; "raise" raises a `SickLayerError` for the
            first; a callable is called with each `Finding`; None leaves it to the
            report.
        reset: Whether each fit begins a new history.

    Raises:
        InvalidArgumentError: If an argument cannot work as given; at the start of
            `fit`, if `log_dir` cannot be written to.
        MissingDependencyError: If `log_dir` is given and tensorboard is not
            installed.
        ModelError: At the start of `fit`, if the model has no optimizer, or nothing to
            train.
        SelectionError: At the start of `fit`, if a pattern selects no variable.
        SickLayerError: During `fit`, with `on_finding="raise"`.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[8, 8], num_outputs=2)
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    >>> monitor = tfdeep.callbacks.GradientMonitor()
    >>> x, y = np.random.normal(size=(32, 4)), np.zeros(32)
    >>> history = model.fit(x, y, batch_size=8, verbose=0, callbacks=[monitor])
    >>> list(monitor.history)[:2]
    ['hidden1/kernel', 'hidden1/bias']
    >>> monitor.history["hidden1/kernel"]["norm"].shape
    (4,)
    >>> monitor.report().findings
    ()
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        flush_every: int = 100,
        activations: bool = False,
        histograms: bool = False,
        rules: Sequence[Rule] | str | None = "default",
        on_finding: OnFinding = "warn",
        reset: bool = False,
    ) -> None:
        keras.callbacks.Callback.__init__(self)
        Monitored.__init__(
            self,
            "GradientMonitor",
            log_dir,
            include,
            exclude,
            flush_every,
            activations,
            histograms,
            rules,
            on_finding,
        )
        self.reset = flag(reset, "reset", "GradientMonitor")
        self._steps: TrainSteps | None = None
        self._batch_begin = 0
        self._has_trained = False

    # What Keras calls.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
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
        if self._pending:
            self._flush()  # what a fit that failed has left
        self._end_watch()
        if self.reset or self._history_of is None or self._history_of() is not model:
            self._forget()
            self._history_of = weakref.ref(model)
        self._can_write = self._writer is not None
        self._has_trained = False
        self._steps = TrainSteps.of(model)
        self._guard("this fit", self._watch, None)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._batch_begin = batch
        if self._recorder is None or self._steps is None:
            return
        if self.model.optimizer is not self._recorder.optimizer:
            # Another callback compiled the model anew.
            self._flush()
            self._watch(self._recorder.variables)
        elif not self._steps.is_observed_by(self._recorder):
            # Another callback had the train step made anew.
            self._steps.observe([*self._steps.observers, self._recorder])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._has_trained = True
        # Before Keras 3.9 both numbers are that of the first step of an execution.
        count = batch - self._batch_begin + 1
        self._pending += count if count > 1 else self.model.steps_per_execution
        done = self._recording.total_steps if self._recording else 0
        is_asked = self.rules and done + self._pending >= self._next_examination
        if is_asked or self._pending >= self.flush_every:
            self._flush()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        recording = self._recording
        if recording is not None:
            known = {
                name: float(value)
                for name, value in (logs or {}).items()
                if np.ndim(value) == 0
            }
            recording.epochs.append((recording.total_steps + self._pending, known))

    def on_train_end(self, logs: Any = None) -> None:
        try:
            self._flush(last=True)
        finally:
            self._end_watch()
            self._close()
        if self._has_trained and not self.recording.total_steps:
            warnings.warn(
                explain(
                    "`GradientMonitor` has seen no step of this fit.",
                    received="a train step that calls neither `optimizer.apply` nor "
                    "`optimizer.apply_gradients` of the model's optimizer",
                    expected="a gradient that passes through `model.optimizer`",
                    fix="call `self.optimizer.apply(gradients, variables)` in "
                    "`train_step`; that nothing was found says nothing",
                ),
                stacklevel=2,
            )

    # How it does it.

    def _chosen_recorder(self, variables: list[keras.Variable] | None) -> StepRecorder:
        """One that was kept from an earlier fit, whose step need not be traced anew."""
        settings = self._settings

        def is_like(recorder: StepRecorder) -> bool:
            return (
                variables is not None
                and recorder.settings == settings
                and recorder.is_ready
                and [*map(id, recorder.variables)] == [*map(id, variables)]
            )

        steps = TrainSteps.of(self.model)
        recorder: StepRecorder = steps.observer(
            is_like, lambda: self._new_recorder(variables)
        )
        steps.observe([*steps.observers, recorder])
        return recorder

    @property
    def _was_traced(self) -> bool:
        return TrainSteps.of(self.model).was_traced

    def _end_watch(self) -> None:
        if self._recorder is not None and self._steps is not None:
            others = [o for o in self._steps.observers if o is not self._recorder]
            self._steps.observe(others)
        self._recorder = None
