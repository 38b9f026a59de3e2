"""Watches training that no callback sees: loops of your own, several optimizers."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._explain import a_type, explain
from tfdeep._core._paths import Patterns
from tfdeep._keras import _hooks, _optimizers
from tfdeep._keras._architecture import LayerInfo
from tfdeep._keras._train_step import TrainSteps
from tfdeep.callbacks._monitored import Monitored, OnFinding
from tfdeep.diagnostics import Finding, MonitorReport, Recording
from tfdeep.diagnostics._causes import causes
from tfdeep.diagnostics.rules import Rule
from tfdeep.errors import InvalidArgumentError, ModelError, SickLayerError
from tfdeep.optimizers import Telemetry


def watch(
    model: keras.Model,
    optimizers: Any = None,
    log_dir: str | os.PathLike[str] | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    flush_every: int = 100,
    activations: bool = False,
    histograms: bool = False,
    rules: Sequence[Rule] | str | None = "default",
    on_finding: OnFinding = "warn",
) -> Watch:
    """Watches every step that trains a model while a block of code runs.

    Use it where `GradientMonitor` cannot go: in a loop with `tf.GradientTape`, eager or
    in a `tf.function`; with `train_on_batch`; and with a model that has several
    optimizers, as a GAN has. It records the same, asks the same rules, and reports the
    same. When the block ends, by an error too, everything is as it was before.

    A step is seen if its function is traced inside the block. One that was traced
    before keeps what it does: enter the block before the first call of the function.
    The same object can be entered again; it then goes on with its history, and also
    sees functions that were traced in its earlier blocks.

    The loss of a step is what `optimizer.scale_loss` was given, or else what
    `tape.gradient` differentiated by the variables of the step, summed up if it is not
    a scalar, or else what `model.compute_loss` returned. With several optimizers each
    has its own recording, of the variables that it is given in its first step.

    Args:
        model: The model to watch.
        optimizers: The optimizer that trains it, a list of several, or a dict that
            names them. None takes `model.optimizer`.
        log_dir: As for `GradientMonitor`, and so are the arguments that follow. With
            several optimizers each writes into a directory of its name in it.
        include: A pattern or a list of patterns; the variables to record.
        exclude: A pattern or a list of patterns; the variables to leave out.
        flush_every: Integer > 0. How many steps are kept on the device at most before
            they are read, in steps. A function that makes more of them in one call
            loses the first.
        activations: Whether to look at the outputs of the layers as well.
        histograms: Whether to write histograms of the gradients.
        rules: A list of rules; "default" for one of each kind; None for none.
        on_finding: "warn", "raise", a callable, None; or "stop", which sets
            `model.stop_training`: `fit` heeds it, your own loop has to ask for it.

    Returns:
        A `Watch`, to be used in a `with` statement.

    Raises:
        InvalidArgumentError: If an argument cannot work as given.
        MissingDependencyError: If `log_dir` is given and tensorboard is not installed.
        ModelError: If the model has no optimizer, or nothing to train.
        SelectionError: If a pattern selects no variable.
        SickLayerError: In the block, with `on_finding="raise"`.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[8, 8], num_outputs=2)
    >>> optimizer = keras.optimizers.SGD(0.1)
    >>> loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> x, y = np.random.normal(size=(32, 4)).astype("float32"), np.arange(32) % 2
    >>> @tf.function
    ... def train_step(x, y):
    ...     with tf.GradientTape() as tape:
    ...         loss = loss_function(y, model(x, training=True))
    ...     gradients = tape.gradient(loss, model.trainable_variables)
    ...     optimizer.apply(gradients, model.trainable_variables)
    ...     return loss
    >>> with tfdeep.callbacks.watch(model, optimizer) as monitor:
    ...     losses = [float(train_step(x, y)) for _ in range(60)]
    >>> monitor.history["hidden1/kernel"]["norm"].shape
    (60,)
    >>> np.allclose(monitor.recording["loss"][:, 0], losses, rtol=1e-4)
    True
    >>> monitor.report().findings
    ()
    """
    return Watch(
        model,
        optimizers,
        log_dir=log_dir,
        include=include,
        exclude=exclude,
        flush_every=flush_every,
        activations=activations,
        histograms=histograms,
        rules=rules,
        on_finding=on_finding,
    )


class Watch:
    """What `tfdeep.callbacks.watch` returns; open in its `with` block.

    It may be read during the block and after it.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizers: Any,
        log_dir: str | os.PathLike[str] | None = None,
        **arguments: Any,
    ) -> None:
        self._model = _checked_model(model)
        named = _named(model, optimizers)
        self._parts: dict[str, _OfOptimizer] = {}
        for name, optimizer in named.items():
            is_one = len(named) == 1
            place = log_dir
            if log_dir is not None and not is_one:
                place = os.path.join(os.fspath(log_dir), name)
            self._parts[name] = _OfOptimizer(
                model, optimizer, not is_one, log_dir=place, **arguments
            )
        self._block: contextlib.ExitStack | None = None
        self._reading = threading.RLock()
        self._is_reading = False

    # The block.

    def __enter__(self) -> Watch:
        if self._block is not None:
            raise InvalidArgumentError(
                explain(
                    "This `watch` is open already.",
                    received="a second `with` on the same object inside the first",
                    expected="one block at a time",
                    fix="`tfdeep.callbacks.watch(...)` anew for the inner block",
                )
            )
        with contextlib.ExitStack() as stack:
            for part in self._parts.values():
                stack.enter_context(part.watching(self._look))
            recorders = [part.recorder for part in self._parts.values()]
            stack.enter_context(TrainSteps.watched(self._model, recorders))
            stack.enter_context(_hooks.functions(self._look))
            self._block = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.close()
        for part in self._parts.values():
            # An error that ends the block is not hidden by another.
            hidden = () if error is None else (SickLayerError,)
            with contextlib.suppress(*hidden):
                part.end(is_complete=error is None)
        unseen = [
            name for name, part in self._parts.items() if not part.recording.total_steps
        ]
        if unseen and error is None:
            warnings.warn(
                explain(
                    "`watch` saw no step in its block.",
                    received=f"no step of {', '.join(map(repr, unseen))}",
                    expected="a call of the optimizer's `apply` or `apply_gradients`, "
                    "eager or in a `tf.function` that is traced inside the block",
                    fix="open the block before the first call of the function, and "
                    "give `optimizers` the ones that train; that nothing was found "
                    "says nothing",
                ),
                stacklevel=2,
            )

    def _look(self, *args: Any, **kwargs: Any) -> None:
        """Reads the steps that were made, if it is time; after calls from outside."""
        if self._is_reading or not tf.executing_eagerly():
            return
        with self._reading:
            self._is_reading = True
            try:
                for part in self._parts.values():
                    part.look()
            finally:
                self._is_reading = False

    # What users read.

    @property
    def recordings(self) -> dict[str, Recording]:
        """Everything that was recorded, by the name of the optimizer."""
        return {name: part.recording for name, part in self._parts.items()}

    @property
    def recording(self) -> Recording:
        """Everything that was recorded, if there is one optimizer."""
        return self._only("recording").recording

    @property
    def history(self) -> dict[str, dict[str, np.ndarray]]:
        """What was recorded of each variable, as in `GradientMonitor.history`.

        The values are those of the steps of the optimizer that trains the variable.
        """
        return {
            path: recorded
            for part in self._parts.values()
            for path, recorded in part.history.items()
        }

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the rules have found, of all optimizers."""
        return tuple(f for part in self._parts.values() for f in part.findings)

    @property
    def causes(self) -> tuple[Finding, ...]:
        """Those of the findings that follow from no other, the likeliest first."""
        return causes(self.findings)

    @property
    def telemetry(self) -> list[Telemetry]:
        """What each optimizer wrapper has done."""
        return [one for part in self._parts.values() for one in part.telemetry]

    def report(self) -> MonitorReport:
        """What the rules found, and the recorded numbers of each variable.

        With several optimizers `parts` has a report of each.
        """
        reports = {name: part.report() for name, part in self._parts.items()}
        if len(reports) == 1:
            return next(iter(reports.values()))
        return MonitorReport.joined(reports, self.findings, self._layers)

    def plot(self, optimizer: str | None = None) -> Any:
        """Draws the steps of one optimizer.

        Args:
            optimizer: The name of the optimizer, where there are several.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            InvalidArgumentError: If there is no optimizer of this name.
            MissingDependencyError: If matplotlib is not installed.
        """
        if optimizer is None:
            return self._only("plot()").plot()
        if optimizer not in self._parts:
            raise InvalidArgumentError(
                explain(
                    "`Watch.plot` does not know this optimizer.",
                    received=f"optimizer={optimizer!r}",
                    expected=f"one of {', '.join(map(repr, self._parts))}",
                    fix=f"`plot({next(iter(self._parts))!r})`",
                )
            )
        return self._parts[optimizer].plot()

    @property
    def _layers(self) -> tuple[LayerInfo, ...]:
        parts = self._parts.values()
        return tuple(info for part in parts for info in part.recording.layers)

    def _only(self, what: str) -> _OfOptimizer:
        if len(self._parts) > 1:
            raise InvalidArgumentError(
                explain(
                    f"`Watch.{what}` is that of one optimizer, and there are several.",
                    received=f"optimizers {', '.join(map(repr, self._parts))}",
                    expected="a choice",
                    fix="`recordings[name]`, or `plot(name)`",
                )
            )
        return next(iter(self._parts.values()))


class _OfOptimizer(Monitored):
    """Watches the steps of one of the optimizers."""

    def __init__(
        self, model: Any, optimizer: Any, is_one_of_several: bool, **arguments: Any
    ) -> None:
        super().__init__("watch", **arguments)
        self.model = model
        self._is_one_of_several = is_one_of_several
        self._own_optimizer = optimizer

    @property
    def _optimizer(self) -> Any:
        return self._own_optimizer

    def _chosen_recorder(self, variables: Any) -> Any:
        """Functions that were traced in an earlier block have its recorder in them."""
        return self._recorder or self._new_recorder(variables)

    @property
    def recorder(self) -> Any:
        return self._recorder

    @contextlib.contextmanager
    def watching(self, look: Any) -> Iterator[None]:
        """Looks on while the context is open.

        Args:
            look: Called after each eager step.
        """
        if self._recorder is not None and self._recorder.is_ready:
            self._recorder.drain()  # steps between the blocks are not of this history
        self._can_write = self._writer is not None
        self._watch(None)
        recorder = self.recorder
        recorder.after_step = look
        try:
            with recorder.watching():
                yield
        finally:
            recorder.after_step = None

    def look(self) -> None:
        """Reads the steps that were made, if it is time."""
        pending = self.recorder.pending if self.recorder is not None else 0
        if not pending:
            return
        done = self._recording.total_steps if self._recording else 0
        is_asked = self.rules and done + pending >= self._next_examination
        if is_asked or pending >= self.flush_every:
            self._flush()

    def end(self, is_complete: bool) -> None:
        """Reads the last steps, and ends what is written."""
        try:
            self._flush(last=True)
        finally:
            self._close(is_complete)

    @property
    def recording(self) -> Recording:
        self._pending = self.recorder.pending if self.recorder is not None else 0
        return super().recording


def _checked_model(model: Any) -> Any:
    if not isinstance(model, keras.Model):
        raise InvalidArgumentError(
            explain(
                "`watch` cannot watch this.",
                received=a_type(model),
                expected="a `keras.Model`",
                fix="give the model that the loop trains; a block for each, if it "
                "trains several",
            )
        )
    return model


def _named(model: Any, optimizers: Any) -> dict[str, Any]:
    """The optimizers by the names that people know them by."""
    if optimizers is None:
        compiled = getattr(model, "optimizer", None)
        if compiled is None:
            raise ModelError(
                explain(
                    "`watch` has no optimizer to watch.",
                    received=f"model {model.name!r} with optimizer=None, and "
                    "optimizers=None",
                    expected="the optimizers that train it",
                    fix="`watch(model, optimizers=[...])`",
                )
            )
        optimizers = [compiled]
    if isinstance(optimizers, keras.optimizers.Optimizer):
        optimizers = [optimizers]
    if isinstance(optimizers, Mapping):
        named = {str(name): _outer(model, o) for name, o in optimizers.items()}
    else:
        named = {}
        attributes = {id(value): name for name, value in vars(model).items()}
        for optimizer in _as_list(optimizers):
            name = attributes.get(id(optimizer), getattr(optimizer, "name", ""))
            while name in named:
                name += "_2"
            named[name] = _outer(model, optimizer)
    is_known = all(isinstance(o, keras.optimizers.Optimizer) for o in named.values())
    is_unique = len({id(o) for o in named.values()}) == len(named)
    if not named or not is_known or not is_unique:
        raise InvalidArgumentError(
            explain(
                "`watch` cannot watch these optimizers.",
                received=f"optimizers={optimizers!r}",
                expected="a Keras optimizer; a list or dict of different ones; or None",
                fix="give each object whose `apply` trains the model, once",
            )
        )
    return named


def _as_list(optimizers: Any) -> list[Any]:
    is_list = isinstance(optimizers, (list, tuple))
    return list(optimizers) if is_list else [optimizers]


def _outer(model: Any, optimizer: Any) -> Any:
    """`compile` may have put loss scaling around an optimizer."""
    compiled = getattr(model, "optimizer", None)
    is_inside = any(one is optimizer for one in _optimizers.chain(compiled))
    return compiled if is_inside else optimizer
