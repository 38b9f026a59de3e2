"""Unfreezing layer after layer while a model is fitted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfdeep._core import _paths
from tfdeep._core._arguments import is_number, is_whole_number
from tfdeep._core._explain import explain
from tfdeep._core._paths import Patterns
from tfdeep._keras import _optimizers, _patches, _variables
from tfdeep._keras._optimizer_state import fits
from tfdeep.errors import InvalidArgumentError, ModelError, TfdeepError
from tfdeep.transfer import FreezeReport
from tfdeep.transfer._freeze import notice_flags_set_by_hand, unfreeze


class GradualUnfreeze(keras.callbacks.Callback):
    """Unfreezes layers at the start of given epochs of one `fit`.

    Use it to fine-tune a pretrained model from the outputs inwards: freeze it up to
    its head, let the head settle, then let deeper layers follow. The fit goes on as
    it was: the optimizer keeps its moments, step count and schedule, other callbacks
    and the history know nothing of it. At each stage the train step is traced anew.

    A fit that starts at a later epoch (`initial_epoch`, or a restored one) first
    unfreezes all that should be unfrozen by then. Stages in epochs that are not
    reached do nothing. With `keras.callbacks.BackupAndRestore` before or after it in
    the list, a fit that was interrupted goes on from its last backup, moments
    included, if the program is run again from the start. (Keras itself drops the
    state of an optimizer that was saved at a later stage.)

    Args:
        stages: By epoch, counted from 0 as in `fit`: a pattern or a list of patterns
            of the variables to unfreeze at its start. Nothing is frozen by this
            callback; see `tfdeep.freeze`.
        exclude: A pattern or a list of patterns; the variables to leave as they are
            at every stage, such as those of batch normalization.
        rate_factor: Float > 0. What to multiply the optimizer's learning rate by as a
            stage begins; 0.5 halves it each time. Stages that a later start catches up
            with leave the rate alone. None never changes it.

    Raises:
        InvalidArgumentError: If an argument cannot work as given; at the start of
            `fit`, if a `rate_factor` meets a learning rate schedule.
        ModelError: At the start of `fit`, if the model has no weights yet, or if the
            optimizer's state in a backup is that of none of the stages.
        SelectionError: At the start of `fit`, before the first step, if a pattern of
            any stage selects nothing.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[8, 8], num_outputs=2)
    >>> _ = tfdeep.freeze(model, include="hidden[12]")
    >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    >>> stages = tfdeep.callbacks.GradualUnfreeze({2: "hidden2", 4: "hidden1"})
    >>> x, y = np.random.normal(size=(32, 4)), np.zeros(32)
    >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[stages])
    >>> stages.reports[2].changed
    ('hidden2/kernel', 'hidden2/bias')

    Reference:
        Howard and Ruder, 2018, https://arxiv.org/abs/1801.06146 (section 3.3).
    """

    def __init__(
        self,
        stages: Mapping[int, Patterns],
        exclude: Patterns = None,
        rate_factor: float | None = None,
    ) -> None:
        super().__init__()
        self.stages = _checked_stages(stages)
        self.exclude = exclude
        self.rate_factor = _checked_factor(rate_factor)
        self._reports: dict[int, FreezeReport] = {}

    @property
    def reports(self) -> dict[int, FreezeReport]:
        """By stage, what it changed in the current or the last fit."""
        return dict(self._reports)

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self._reports = {}
        # `fit` calls this before any `on_train_begin`, where backups are loaded.
        _patches.install(
            model, "load_weights", self._load_weights, "unfreezes what a backup trained"
        )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not _patches.is_installed(self.model, "load_weights"):
            self.set_model(self.model)  # a `CallbackList` is used again
        try:
            self._check()
        except TfdeepError:
            self._leave_loading_alone()
            raise
        if not fits(self.model):
            # Of a model that `tfdeep.freeze` was not called on, nobody else notices.
            notice_flags_set_by_hand(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._leave_loading_alone()
        for stage, patterns in self.stages.items():
            if stage <= epoch and stage not in self._reports:
                self._reports[stage] = unfreeze(self.model, patterns, self.exclude)
                if stage == epoch and self.rate_factor is not None:
                    for optimizer in _rated(self.model):
                        optimizer.learning_rate *= self.rate_factor

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._leave_loading_alone()

    def _leave_loading_alone(self) -> None:
        _patches.remove(self.model, "load_weights")

    def _check(self) -> None:
        """Raises if the stages cannot work with this model."""
        paths = [v.path for v in _variables.model_variables(self.model)]
        for patterns in self.stages.values():
            _paths.select(paths, patterns, self.exclude)
        if self.rate_factor is not None:
            _check_rate(self.model)

    def _load_weights(
        self, filepath: Any, skip_mismatch: bool = False, **arguments: Any
    ) -> None:
        """What `load_weights` of the model is until the first epoch begins.

        The state of an optimizer fits one that has the same variables, so what was
        unfrozen when it was saved is unfrozen first.
        """

        def fill() -> None:
            type(self.model).load_weights(
                self.model, filepath, skip_mismatch=skip_mismatch, **arguments
            )

        try:
            if skip_mismatch:
                fill()
            elif not self._fills_optimizer(fill):
                raise ModelError(
                    explain(
                        "The optimizer's state in this file is that of none of the "
                        "stages of `GradualUnfreeze`.",
                        received=f"{str(filepath)!r}, loaded at the start of `fit`",
                        expected="a backup of a fit of this model, with this optimizer "
                        "and these stages, and the model frozen as it was when that "
                        "fit began",
                        fix="run the program again from where the model is built and "
                        "frozen, or delete the backup; no step was trained",
                    )
                )
        except BaseException:
            self._leave_loading_alone()
            raise

    def _fills_optimizer(self, fill: Callable[[], None]) -> bool:
        """Loads, and unfreezes stage by stage until the optimizer's state fits."""
        if _loads_optimizer(self.model, fill):
            return True
        for stage, patterns in self.stages.items():
            self._reports[stage] = unfreeze(self.model, patterns, self.exclude)
            if _loads_optimizer(self.model, fill):
                return True
        return False


def _loads_optimizer(model: Any, fill: Callable[[], None]) -> bool:
    """Loads weights; whether Keras loaded the optimizer's state as well.

    If that does not fit, Keras only warns. Its step count then stays what it was.
    """
    counts = [optimizer.iterations for optimizer in _rated(model)]
    before = [int(count.numpy()) for count in counts]
    for count in counts:
        count.assign(-1)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fill()
    finally:
        pairs = list(zip(counts, before, strict=True))
        skipped = [(count, was) for count, was in pairs if count.numpy() < 0]
        for count, was in skipped:
            count.assign(was)
    if not skipped:
        for one in told:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return not skipped


def _checked_stages(stages: Any) -> dict[int, Patterns]:
    is_mapping = isinstance(stages, Mapping) and len(stages) > 0
    if not is_mapping or not all(
        is_whole_number(epoch) and epoch >= 0 and _paths.as_patterns(patterns)
        for epoch, patterns in stages.items()
    ):
        raise InvalidArgumentError(
            explain(
                "`GradualUnfreeze` cannot follow these stages.",
                received=f"stages={stages!r}",
                expected="a dictionary from epochs (whole numbers >= 0) to patterns",
                fix="for example `GradualUnfreeze({5: 'hidden3', 10: 'hidden[12]'})`",
            )
        )
    for patterns in stages.values():
        for pattern in _paths.as_patterns(patterns):
            _paths.compile_pattern(pattern)
    return {int(epoch): stages[epoch] for epoch in sorted(stages)}


def _checked_factor(factor: Any) -> float | None:
    if factor is None or (is_number(factor) and 0 < factor < float("inf")):
        return None if factor is None else float(factor)
    raise InvalidArgumentError(
        explain(
            "`GradualUnfreeze` cannot multiply the learning rate by this.",
            received=f"rate_factor={factor!r}",
            expected="a finite number > 0, or None",
            fix="`rate_factor=0.5` halves the learning rate at each stage",
        )
    )


def _check_rate(model: Any) -> None:
    for optimizer in _rated(model):
        if not isinstance(optimizer.learning_rate, keras.Variable):
            raise InvalidArgumentError(
                explain(
                    "`GradualUnfreeze` cannot change a learning rate that a schedule "
                    "gives.",
                    received=f"rate_factor, and {type(optimizer).__name__} with a "
                    "learning rate that is no number",
                    expected="an optimizer with a number as its learning rate",
                    fix="leave `rate_factor` out, or lower the rate in the schedule",
                )
            )


def _rated(model: Any) -> list[Any]:
    """The optimizers that have a learning rate of their own."""
    last = _optimizers.chain(model.optimizer)[-1:]
    return _optimizers.groups(last[0]) if last else []
