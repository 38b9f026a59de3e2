"""The callback that sees the gradients which train the model."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _paths
from tfdeep._core._arguments import flag, whole_number
from tfdeep._core._explain import explain
from tfdeep._core._paths import Patterns
from tfdeep._keras import _architecture, _internals, _optimizers, _program, _variables
from tfdeep._keras._architecture import LayerInfo
from tfdeep._keras._train_step import TrainSteps
from tfdeep._quantities import OF_VARIABLES
from tfdeep.callbacks._recorder import StepRecorder
from tfdeep.callbacks._run_writer import RunWriter
from tfdeep.diagnostics import (
    Finding,
    MonitorReport,
    Recording,
    plot_run,
    summarize,
)
from tfdeep.diagnostics._causes import causes, explained
from tfdeep.diagnostics._examiner import Examiner
from tfdeep.diagnostics._finding import group_text, grouped
from tfdeep.diagnostics.rules import Rule, default_rules
from tfdeep.diagnostics.rules._checked import checked
from tfdeep.diagnostics.rules._measures import has_fallen
from tfdeep.errors import (
    InvalidArgumentError,
    ModelError,
    SickLayerError,
    SickLayerWarning,
)
from tfdeep.optimizers import OptimizerWrapper, Telemetry

OnFinding = str | Callable[[Finding], object] | None

# The rules are asked often while most goes wrong, then rarely; in steps.
_EARLY, _EARLY_PERIOD, _LATE_PERIOD = 50, 10, 100


class GradientMonitor(keras.callbacks.Callback):
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
        super().__init__()
        self.include = include
        self.exclude = exclude
        self.flush_every = whole_number(
            flush_every,
            "flush_every",
            "GradientMonitor",
            at_least=1,
            unit="steps",
            example=100,
        )
        self.activations = flag(activations, "activations", "GradientMonitor")
        self.histograms = flag(histograms, "histograms", "GradientMonitor")
        if histograms and log_dir is None:
            raise InvalidArgumentError(
                explain(
                    "`GradientMonitor` has no place for the histograms.",
                    received="histograms=True, log_dir=None",
                    expected="a `log_dir`, where TensorBoard finds them",
                    fix='`GradientMonitor("logs", histograms=True)`',
                )
            )
        self.rules = _checked_rules(rules)
        self.on_finding = _checked_on_finding(on_finding)
        self._writer = None if log_dir is None else RunWriter(_checked_log_dir(log_dir))
        self.reset = flag(reset, "reset", "GradientMonitor")
        self._recorder: StepRecorder | None = None
        self._steps: TrainSteps | None = None
        self._history_of: weakref.ref[Any] | None = None
        self._keys: list[str] = []
        self._variables: list[_variables.ModelVariable] = []
        self._wrappers: list[OptimizerWrapper] = []
        self._batch_begin = 0
        self._has_trained = False
        self._can_write = False
        self._forget()

    def _forget(self) -> None:
        """Begins a new history."""
        self._recording: Recording | None = None
        self._examiner = Examiner(self.rules)
        self._findings: list[Finding] = []
        self._next_examination = _next_examination(0)
        self._pending = 0

    # What users read.

    @property
    def recording(self) -> Recording:
        """Everything that was recorded of the current or the last fit."""
        if self._pending:
            self._flush()
        return self._recording or Recording([v.path for v in self._variables])

    @property
    def history(self) -> dict[str, dict[str, np.ndarray]]:
        """What was recorded: `history[variable.path][quantity]`, one value a step.

        The quantities, in float32:

        * `norm`: L2 norm of the gradient, in gradient units (loss per unit of
          weight), before clipping;
        * `clipped_norm`: the same after clipping;

        and, at the first ten steps, every tenth, and from step 1,000 on every fiftieth,
        NaN between:

        * `largest_entry`: the largest absolute entry before clipping;
        * `mean`: the mean entry;
        * `zero_fraction`: the fraction of entries that are zero;
        * `nonfinite_count`: how many are NaN or infinite (counted at every step that
          has one);
        * `silent_fraction`: of a bias, the fraction of units without a gradient at
          the last five measured steps;
        * `update_norm` and `weight_norm`: `||w_after - w_before||` of the step, and
          `||w_before||`, at every tenth or fiftieth step;
        * `update_ratio`: the one over the other.

        Infinity stands for a gradient with a NaN or infinite entry; NaN where a
        step had no gradient for the variable, or did not apply it. The numbers of the
        steps are `recording.steps`: a long run keeps its first and last steps, and
        ever fewer of those between.
        """
        recording = self.recording
        if not recording.total_steps:
            return {key: {} for key in self._keys}
        recorded = {name: recording.at_steps(name) for name in OF_VARIABLES}
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = recorded["update_norm"] / recorded["weight_norm"]
        recorded["update_ratio"] = ratio
        return {
            key: {name: values[:, i] for name, values in recorded.items()}
            for i, key in enumerate(self._keys)
        }

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the rules have found: each cause, then what follows from it.

        What was critical and was not seen again is left out once the loss has come
        down to a half.
        """
        recording = self.recording
        standing = [f for f in self._findings if not self._is_over(f, recording)]
        return explained(standing, [layer.path for layer in recording.layers])

    def _is_over(self, finding: Finding, recording: Recording) -> bool:
        if finding.severity != "critical" or self._examiner.stands(finding):
            return False
        return bool(recording.total_steps) and has_fallen(recording, 0.5)

    @property
    def causes(self) -> tuple[Finding, ...]:
        """Those of the findings that follow from no other, the likeliest first."""
        return causes(self.findings)

    def report(self) -> MonitorReport:
        """What the rules found, and the recorded numbers of each variable.

        Below it stands what each of tfdeep's optimizer wrappers has done.
        """
        recording = self.recording
        history = self.history.values()
        by_path = dict(zip(recording.variables, history, strict=True))
        wrappers = tuple(f"{telemetry}." for telemetry in self.telemetry)
        report = summarize(by_path, recording.steps)
        return dataclasses.replace(
            report,
            findings=self.findings,
            remarks=report.remarks + wrappers,
            _layers=recording.layers,
        )

    def plot(self) -> Any:
        """Draws the run: gradients, updates, and what became of the layers.

        Returns:
            A `matplotlib.figure.Figure`; `figure.savefig("run.png")` writes it.

        Raises:
            MissingDependencyError: If matplotlib is not installed.
        """
        return plot_run(self.recording, self.findings)

    @property
    def telemetry(self) -> list[Telemetry]:
        """What each optimizer wrapper has done, from the outside in."""
        return [wrapper.telemetry for wrapper in self._wrappers]

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
        self._watch(None)

    def _watch(self, variables: list[keras.Variable] | None) -> None:
        """Has the steps to come recorded.

        Args:
            variables: What to record; None chooses.
        """
        model = self.model
        self._wrappers = [
            optimizer
            for optimizer in _optimizers.chain(model.optimizer)
            if isinstance(optimizer, OptimizerWrapper)
        ]
        self._steps = TrainSteps.of(model)
        if model.built and variables is None:
            variables = self._begin_recording()
        # The rings are read every ten steps at first.
        capacity = self.flush_every + max(model.steps_per_execution, 64)
        trainable = [id(v) for v in model.trainable_variables]
        settings = (capacity, self.activations, self.histograms, trainable)

        def is_like(recorder: StepRecorder) -> bool:
            return (
                variables is not None
                and recorder.settings == settings
                and recorder.is_ready
                and [*map(id, recorder.variables)] == [*map(id, variables)]
            )

        def make() -> StepRecorder:
            return StepRecorder(
                model,
                (lambda: variables) if variables else self._begin_recording,
                lambda: _architecture.layers_of(model),
                lambda: len(_program.describe(model).outputs),
                capacity=capacity,
                activations=self.activations,
                copies=self.histograms,
                settings=settings,
            )

        self._recorder = self._steps.observer(is_like, make)
        self._steps.observe([*self._steps.observers, self._recorder])
        if model.built:
            self._recorder.prepare()
            self._recorder.resume(self._recording, self.recording.total_steps)

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

    def _begin_recording(self) -> list[keras.Variable]:
        """Chooses the variables; begins a recording of them or goes on with it."""
        trainable = {id(variable) for variable in self.model.trainable_variables}
        if not trainable:
            raise ModelError(
                explain(
                    "`GradientMonitor` has no gradients to watch.",
                    received=f"model {self.model.name!r} without a trainable variable",
                    expected="at least one",
                    fix="`tfdeep.unfreeze(model)`, if all of it is frozen; nothing "
                    "was changed",
                )
            )
        variables = [
            v
            for v in _variables.model_variables(self.model)
            if id(v.variable) in trainable
        ]
        paths = [v.path for v in variables]
        chosen = set(
            _paths.select(paths, self.include, self.exclude, what="trainable variable")
        )
        recorded = [v for v in variables if v.path in chosen]
        # What the history has of other fits stays in it.
        known = {*chosen, *(self._recording.variables if self._recording else ())}
        self._variables = [
            v for v in _variables.model_variables(self.model) if v.path in known
        ]
        keras_paths = [v.variable.path for v in self._variables]
        # Two inner models may hold variables that Keras gives the same path.
        unique = len(set(keras_paths)) == len(keras_paths)
        paths = [v.path for v in self._variables]
        self._keys = keras_paths if unique else paths
        if self._recording is None:
            self._recording = Recording(
                paths,
                _architecture.describe(self.model),
                program=_program.describe(self.model),
            )
        elif self._recording.variables != tuple(paths):
            self._recording.widen(paths)
        self._recording.layers = self._with_frozen_too_late(self._recording.layers)
        if self._writer is not None:
            try:
                self._writer.begin(self._recording)
            except (OSError, tf.errors.OpError) as error:
                raise InvalidArgumentError(
                    explain(
                        "`GradientMonitor` cannot write to its `log_dir`.",
                        received=f"{self._writer.log_dir!r}: {error}",
                        expected="a directory that can be written to, or made",
                        fix="give another `log_dir`; nothing was trained",
                    )
                ) from error
        return [v.variable for v in recorded]

    def _with_frozen_too_late(
        self, layers: tuple[LayerInfo, ...]
    ) -> tuple[LayerInfo, ...]:
        """Marks the layers that were frozen when it was too late to take effect."""
        model = self.model
        flags = _internals.trainable_when_compiled(model)
        if flags is None or not (self._steps and self._steps.was_traced):
            return layers
        # What `tfdeep.freeze` freezes, the optimizer does not hold any more.
        optimizer = _optimizers.chain(model.optimizer)[-1]
        held = {id(v) for v in _internals.built_for(optimizer)}
        by_path = _architecture.layers_of(model)

        def is_too_late(layer: Any) -> bool:
            was_trainable = layer in flags and flags[layer]
            return bool(was_trainable) and any(
                id(v) in held and not v.trainable for v in layer.weights
            )

        return tuple(
            dataclasses.replace(info, frozen_too_late=is_too_late(by_path[info.path]))
            for info in layers
        )

    def _end_watch(self) -> None:
        if self._recorder is not None and self._steps is not None:
            others = [o for o in self._steps.observers if o is not self._recorder]
            self._steps.observe(others)
        self._recorder = None

    def _flush(self, last: bool = False) -> None:
        self._pending = 0
        recording = self._recording
        if self._recorder is None or not self._recorder.is_ready or recording is None:
            return
        rows = self._in_columns(self._recorder.drain())
        count = len(rows["loss"])
        rows["is_frozen"] = np.full_like(rows["norm"], np.nan)
        rows["is_frozen"][:, [not v.variable.trainable for v in self._variables]] = 1
        if self._recorder.seen_outputs:
            seen = recording.program.seen(self._recorder.seen_outputs)
            recording.program = seen
        first_step = recording.total_steps
        recording.extend(rows)
        new: list[Finding] = []
        if recording.total_steps >= self._next_examination or (last and count):
            self._next_examination = _next_examination(recording.total_steps)
            new = self._examiner.examine(recording)
            self._findings += new
        if count:
            self._write(rows, first_step, new)
        if new:
            self._tell(new)

    def _in_columns(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows of what is recorded now, in the columns of the whole history."""
        places = self._places()
        if places == list(range(len(self._variables))):
            return rows
        wide = dict(rows)
        for name in OF_VARIABLES:
            if name in rows:
                shape = len(rows[name]), len(self._variables)
                wide[name] = np.full(shape, np.nan, np.float32)
                wide[name][:, places] = rows[name]
        return wide

    def _places(self) -> list[int]:
        """The columns of the history that are recorded now."""
        column = {id(v.variable): i for i, v in enumerate(self._variables)}
        recorder = self._recorder
        return [column[id(v)] for v in recorder.variables] if recorder else []

    def _write(self, rows: Any, first_step: int, new: list[Finding]) -> None:
        with self._writing() as writer:
            if writer is None or self._recorder is None or self._recording is None:
                return
            last_step = self._recording.total_steps - 1
            writer.write(rows, first_step)
            writer.write_findings(new)
            writer.write_telemetry(self.telemetry, last_step)
            if self.histograms:
                gradients = self._recorder.latest_gradients()
                paths = [self._variables[i].path for i in self._places()]
                by_path = zip(paths, gradients, strict=True)
                writer.write_histograms(dict(by_path), last_step)

    def _close(self) -> None:
        with self._writing() as writer:
            if writer is not None:
                writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[RunWriter | None]:
        """Gives the writer; a disk that is full ends the writing, not the training."""
        try:
            yield self._writer if self._can_write else None
        except (OSError, tf.errors.OpError) as error:
            self._can_write = False
            place = self._writer and self._writer.log_dir
            warnings.warn(
                explain(
                    "`GradientMonitor` cannot write to its `log_dir` any more.",
                    received=f"{place!r}: {type(error).__name__}: {error}",
                    expected="a directory that can be written to, and space on it",
                    fix="make space before the next fit; this one goes on without "
                    "files, and `monitor.report()` has all of it",
                ),
                stacklevel=2,
            )

    def _tell(self, new: list[Finding]) -> None:
        if callable(self.on_finding):
            for finding in new:
                self.on_finding(finding)
        elif self.on_finding == "raise":
            self._close()
            finding = new[0]
            raise SickLayerError(
                explain(
                    f"{finding.layer or 'The net'} does not train: {finding.kind}.",
                    received=f"{finding.evidence}, since step {finding.first_step}",
                    expected="none of the illnesses that `rules` look for",
                    fix=str(finding.remedy),
                ),
                finding,
            )
        elif self.on_finding is not None:
            layers = self._recording.layers if self._recording else ()
            # What follows from a cause that was told already is left to the report.
            known = explained(self._findings, [layer.path for layer in layers])
            told = {finding.place for finding in new}
            causes_now = [f for f in causes(known) if f.place in told]
            for group in grouped(causes_now):
                text = group_text(group, layers)
                warnings.warn(text, SickLayerWarning, stacklevel=2)
            if self.on_finding == "stop":
                self.model.stop_training = True


def _next_examination(done: int) -> int:
    """The number of steps after which the rules are asked again."""
    period = _EARLY_PERIOD if done < _EARLY else _LATE_PERIOD
    return (done // period + 1) * period


def _checked_log_dir(log_dir: Any) -> str:
    try:
        path: str = os.fspath(log_dir)
    except TypeError as error:
        raise InvalidArgumentError(
            explain(
                "`GradientMonitor` cannot write there.",
                received=f"log_dir={log_dir!r}",
                expected="the path of a directory, or None",
                fix='`GradientMonitor("logs")`',
            )
        ) from error
    return path


def _checked_rules(rules: Any) -> tuple[Rule, ...]:
    if isinstance(rules, str) and rules == "default":
        return tuple(default_rules())
    return () if rules is None else checked(rules, "GradientMonitor")


def _checked_on_finding(on_finding: Any) -> OnFinding:
    if on_finding is None:
        return None
    if callable(on_finding):
        function: Callable[[Finding], object] = on_finding
        return function
    if on_finding not in ("warn", "stop", "raise"):
        raise InvalidArgumentError(
            explain(
                "`GradientMonitor` does not know what to do with a finding.",
                received=f"on_finding={on_finding!r}",
                expected='"warn", "stop", "raise", a callable, or None',
                fix='leave `on_finding` at its default of "warn"',
            )
        )
    return str(on_finding)
