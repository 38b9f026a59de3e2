"""What watches the steps of one optimizer of a model, whoever calls them."""

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
from tfdeep._core._guard import Guard
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
from tfdeep.diagnostics._monitor_report import judgment_of
from tfdeep.diagnostics.rules import Rule, default_rules
from tfdeep.diagnostics.rules._checked import checked
from tfdeep.diagnostics.rules._measures import has_learned
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


class Monitored:
    """Records the steps of one optimizer, asks the rules, writes, and tells.

    Args:
        owner: The public name of what the user has made, for messages.
        log_dir: As for `GradientMonitor`, and so are all that follow.
        include: The variables to record.
        exclude: The variables to leave out.
        flush_every: How many steps are kept on the device at most.
        activations: Whether to look at the outputs of the layers.
        histograms: Whether to write histograms.
        rules: The rules, or "default".
        on_finding: What to do when a rule finds something.
    """

    model: Any
    # Whether the model has other optimizers, which train other variables of it.
    _is_one_of_several = False

    @property
    def _optimizer(self) -> Any:
        return self.model.optimizer

    def __init__(
        self,
        owner: str,
        log_dir: str | os.PathLike[str] | None,
        include: Patterns,
        exclude: Patterns,
        flush_every: int,
        activations: bool,
        histograms: bool,
        rules: Sequence[Rule] | str | None,
        on_finding: OnFinding,
    ) -> None:
        self._owner = owner
        self.include = include
        self.exclude = exclude
        self.flush_every = whole_number(
            flush_every,
            "flush_every",
            owner,
            at_least=1,
            unit="steps",
            example=100,
        )
        self.activations = flag(activations, "activations", owner)
        self.histograms = flag(histograms, "histograms", owner)
        if histograms and log_dir is None:
            raise InvalidArgumentError(
                explain(
                    f"`{owner}` has no place for the histograms.",
                    received="histograms=True, log_dir=None",
                    expected="a `log_dir`, where TensorBoard finds them",
                    fix=f'`{owner}(..., log_dir="logs", histograms=True)`',
                )
            )
        self.rules = _checked_rules(rules, owner)
        self.on_finding = _checked_on_finding(on_finding, owner)
        self._writer = (
            None if log_dir is None else RunWriter(_checked_log_dir(log_dir, owner))
        )
        self._recorder: StepRecorder | None = None
        self._history_of: weakref.ref[Any] | None = None
        self._variables: list[_variables.ModelVariable] = []
        self._wrappers: list[OptimizerWrapper] = []
        self._guard = Guard(owner)
        self._left_out: dict[str, str] = {}  # of the recorder
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
        """What was recorded: `history[path][quantity]`, one value a step.

        A path is that of a variable relative to its model: "hidden1/kernel".

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
            return {path: {} for path in recording.variables}
        recorded = {name: recording.at_steps(name) for name in OF_VARIABLES}
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = recorded["update_norm"] / recorded["weight_norm"]
        recorded["update_ratio"] = ratio
        return {
            path: {name: values[:, i] for name, values in recorded.items()}
            for i, path in enumerate(recording.variables)
        }

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the rules have found: each cause, then what follows from it.

        What was not seen again is left out once the net has learned, to half of the
        loss that knowing nothing gives.
        """
        recording = self.recording
        standing = [f for f in self._findings if not self._is_over(f, recording)]
        return explained(standing, [layer.path for layer in recording.layers])

    def _is_over(self, finding: Finding, recording: Recording) -> bool:
        if self._examiner.stands(finding):
            return False
        return bool(recording.total_steps) and has_learned(recording, 0.5)

    @property
    def causes(self) -> tuple[Finding, ...]:
        """Those of the findings that follow from no other, the likeliest first."""
        return causes(self.findings)

    def report(self) -> MonitorReport:
        """What the rules found, and the recorded numbers of each variable.

        Below it stands what each of tfdeep's optimizer wrappers has done.
        """
        recording = self.recording
        wrappers = tuple(f"{telemetry}." for telemetry in self.telemetry)
        report = summarize(self.history, recording.steps)
        left_out = {**self._guard.left_out, **self._left_out}
        if left_out:
            wrappers += (f"Not measured: {', '.join(left_out)}.",)
        return dataclasses.replace(
            report,
            findings=self.findings,
            remarks=report.remarks + wrappers,
            judgment=judgment_of(recording.total_steps, bool(self.rules)),
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

    # How it does it.

    def _watch(self, variables: list[keras.Variable] | None) -> None:
        """Has the steps to come recorded.

        Args:
            variables: What to record; None chooses.
        """
        self._wrappers = [
            optimizer
            for optimizer in _optimizers.chain(self._optimizer)
            if isinstance(optimizer, OptimizerWrapper)
        ]
        if self.model.built and variables is None and self._knows_what_trains():
            variables = self._begin_recording()
        self._recorder = self._chosen_recorder(variables)
        self._left_out = self._recorder.guard.left_out
        self._recorder.log_dir = self._writer.log_dir if self._writer else None
        if variables:
            self._recorder.prepare()
            self._recorder.resume(self._recording, self.recording.total_steps)

    def _chosen_recorder(self, variables: list[keras.Variable] | None) -> StepRecorder:
        """What records these variables; or, if they are None, what it chooses."""
        return self._new_recorder(variables)

    def _new_recorder(self, variables: list[keras.Variable] | None) -> StepRecorder:
        return StepRecorder(
            self.model,
            (lambda: variables) if variables else self._begin_recording,
            self._recorded_layers,
            self._count_outputs,
            capacity=self._settings[0],
            activations=self.activations,
            copies=self.histograms,
            settings=self._settings,
            optimizer=self._optimizer,
            owner=self._owner,
            waits=not self._knows_what_trains(),
        )

    @property
    def _settings(self) -> tuple[Any, ...]:
        """What distinguishes the recorders of a model."""
        model = self.model
        # The rings are read every ten steps at first.
        capacity = self.flush_every + max(model.steps_per_execution, 64)
        trainable = [id(v) for v in model.trainable_variables]
        return capacity, self.activations, self.histograms, trainable

    def _taken(self) -> list[str]:
        """The directories that others write to at the same time."""
        others = TrainSteps.onlookers(self.model)
        return [
            other.log_dir
            for other in others
            if other is not self._recorder and other.log_dir is not None
        ]

    @property
    def _was_traced(self) -> bool:
        """Whether a train step was traced before, and keeps what it trained then."""
        return False

    def _knows_what_trains(self) -> bool:
        return not self._is_one_of_several or self._optimizer.built

    def _trained(self) -> set[int]:
        """The `id` of each variable that the optimizer trains."""
        trainable = {id(variable) for variable in self.model.trainable_variables}
        if self._is_one_of_several:
            inner = _optimizers.chain(self._optimizer)[-1]
            given = [] if self._recorder is None else self._recorder.given
            trainable &= {*given, *map(id, _internals.built_for(inner))}
        return trainable

    def _begin_recording(self) -> list[keras.Variable]:
        """Chooses the variables; begins a recording of them or goes on with it."""
        if not self.model.trainable_variables:
            raise ModelError(
                explain(
                    f"`{self._owner}` has no gradients to watch.",
                    received=f"model {self.model.name!r} without a trainable variable",
                    expected="at least one",
                    fix="`tfdeep.unfreeze(model)`, if all of it is frozen; nothing "
                    "was changed",
                )
            )
        variables = [
            v for v in _variables.model_variables(self.model) if v.variable.trainable
        ]
        paths = [v.path for v in variables]
        chosen = set(
            _paths.select(paths, self.include, self.exclude, what="trainable variable")
        )
        trained = self._trained()
        recorded = [
            v for v in variables if v.path in chosen and id(v.variable) in trained
        ]
        chosen = {v.path for v in recorded}
        # What the history has of other fits stays in it.
        known = {*chosen, *(self._recording.variables if self._recording else ())}
        self._variables = [
            v for v in _variables.model_variables(self.model) if v.path in known
        ]
        paths = [v.path for v in self._variables]
        if self._recording is None:
            layers = self._guard(
                "the layers", _architecture.describe, self.model, otherwise=()
            )
            program = self._guard(
                "the loss and the outputs", _program.describe, self.model
            )
            if self._is_one_of_several:
                layers = _beside(layers, paths)
            self._recording = Recording(paths, layers, program=program)
        elif self._recording.variables != tuple(paths):
            self._recording.widen(paths)
        self._recording.layers = self._with_frozen_too_late(self._recording.layers)
        if self._writer is not None:
            try:
                self._writer.begin(self._recording, self._taken())
                if self._recorder is not None:
                    self._recorder.log_dir = self._writer.log_dir
            except (OSError, tf.errors.OpError) as error:
                raise InvalidArgumentError(
                    explain(
                        f"`{self._owner}` cannot write to its `log_dir`.",
                        received=f"{self._writer.log_dir!r}: {error}",
                        expected="a directory that can be written to, or made",
                        fix="give another `log_dir`; nothing was trained",
                    )
                ) from error
        return [v.variable for v in recorded]

    def _recorded_layers(self) -> dict[str, Any]:
        if self._recording is None or not self._recording.layers:
            return {}
        layers = _architecture.layers_of(self.model)
        return {info.path: layers[info.path] for info in self._recording.layers}

    def _count_outputs(self) -> int:
        return len(self._recording.program.outputs) if self._recording else 0

    def _with_frozen_too_late(
        self, layers: tuple[LayerInfo, ...]
    ) -> tuple[LayerInfo, ...]:
        """Marks the layers that were frozen when it was too late to take effect."""
        model = self.model
        flags = _internals.trainable_when_compiled(model)
        if flags is None or not self._was_traced:
            return layers
        # What `tfdeep.freeze` freezes, the optimizer does not hold any more.
        optimizer = _optimizers.chain(self._optimizer)[-1]
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

    def _flush(self, last: bool = False) -> None:
        self._pending = 0
        recording = self._recording
        if self._recorder is None or not self._recorder.is_ready or recording is None:
            return
        new = self._guard("what was recorded", self._read, last, otherwise=())
        if new:
            self._tell(new)

    def _read(self, last: bool) -> list[Finding]:
        """Takes what was recorded since the last time; returns what is found in it."""
        recorder, recording = self._recorder, self._recording
        if recorder is None or recording is None:
            return []
        rows = self._in_columns(recorder.drain())
        count = len(rows["loss"])
        rows["is_frozen"] = np.full_like(rows["norm"], np.nan)
        rows["is_frozen"][:, [not v.variable.trainable for v in self._variables]] = 1
        if recorder.seen_outputs:
            recording.program = recording.program.seen(recorder.seen_outputs)
        first_step = recording.total_steps
        recording.extend(rows)
        new: list[Finding] = []
        if recording.total_steps >= self._next_examination or (last and count):
            self._next_examination = _next_examination(recording.total_steps)
            new = self._examiner.examine(recording)
            self._findings += new
        if count:
            self._write(rows, first_step, new)
        return new

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

    def _close(self, is_complete: bool = True) -> None:
        with self._writing() as writer:
            if writer is not None:
                writer.close(is_complete)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[RunWriter | None]:
        """Gives the writer; a disk that is full ends the writing, not the training."""
        try:
            yield self._writer if self._can_write else None
        except Exception as error:
            self._can_write = False
            place = self._writer and self._writer.log_dir
            warnings.warn(
                explain(
                    f"`{self._owner}` cannot write to its `log_dir` any more.",
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
            self._close(is_complete=False)
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


def _beside(
    layers: Sequence[LayerInfo], variables: Sequence[str]
) -> tuple[LayerInfo, ...]:
    """The layers that own some variables, and the activations right after them."""
    kept: list[LayerInfo] = []
    is_after = False
    for layer in layers:
        owns = any(path.startswith(f"{layer.path}/") for path in variables)
        has_weights = layer.kernel or layer.bias or not layer.has_known_weights
        is_after = owns or (is_after and not has_weights)
        if is_after:
            kept.append(layer)
    paths = {layer.path for layer in kept}
    return tuple(
        dataclasses.replace(
            layer, inputs=tuple(path for path in layer.inputs if path in paths)
        )
        for layer in kept
    )


def _next_examination(done: int) -> int:
    """The number of steps after which the rules are asked again."""
    period = _EARLY_PERIOD if done < _EARLY else _LATE_PERIOD
    return (done // period + 1) * period


def _checked_log_dir(log_dir: Any, owner: str) -> str:
    try:
        path: str = os.fspath(log_dir)
    except TypeError as error:
        raise InvalidArgumentError(
            explain(
                f"`{owner}` cannot write there.",
                received=f"log_dir={log_dir!r}",
                expected="the path of a directory, or None",
                fix=f'`{owner}(..., log_dir="logs")`',
            )
        ) from error
    return path


def _checked_rules(rules: Any, owner: str) -> tuple[Rule, ...]:
    if isinstance(rules, str) and rules == "default":
        return tuple(default_rules())
    return () if rules is None else checked(rules, owner)


def _checked_on_finding(on_finding: Any, owner: str) -> OnFinding:
    if on_finding is None:
        return None
    if callable(on_finding):
        function: Callable[[Finding], object] = on_finding
        return function
    if on_finding not in ("warn", "stop", "raise"):
        raise InvalidArgumentError(
            explain(
                f"`{owner}` does not know what to do with a finding.",
                received=f"on_finding={on_finding!r}",
                expected='"warn", "stop", "raise", a callable, or None',
                fix='leave `on_finding` at its default of "warn"',
            )
        )
    return str(on_finding)
