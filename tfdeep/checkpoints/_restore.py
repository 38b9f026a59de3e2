"""Restores chosen variables of a model from a file, all of them or none."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from tfdeep._core._explain import explain, listing
from tfdeep._core._paths import Patterns
from tfdeep.checkpoints._apply import Restore
from tfdeep.checkpoints._matching import Transform
from tfdeep.checkpoints._names import Rename
from tfdeep.checkpoints._readers._checks import Limits
from tfdeep.checkpoints._report import RestoreReport
from tfdeep.checkpoints._request import Request
from tfdeep.errors import MismatchError


@dataclasses.dataclass(frozen=True)
class RestorePlan(RestoreReport):
    """What `tfdeep.plan_restore` would restore; `apply()` does it.

    It prints as a table. It holds the model and the name of the file, and neither
    values nor an open file. `to_json()` is what `restore(plan=...)` follows in another
    process.

    Attributes:
        source: The file.
        format: What kind of file it is.
        integrity: "verified" if the file carries checksums, else "unverified".
        restored: The variables that would be filled.
        missing: Paths of selected variables that the file has no tensor for.
        mismatched: Selected variables whose tensor does not fit.
        unused: Names of tensors that no selected variable uses.
        dry_run: True, as nothing was changed.
        probe: None.
        failure: Why `apply()` would be refused; empty if it would not.
    """

    _request: Request = dataclasses.field(kw_only=True, repr=False, compare=False)

    def apply(
        self, *, allow_nonfinite: bool = False, probe: Any = None
    ) -> RestoreReport:
        """Fills the variables as planned: all of them or none.

        The file is opened and listed again, and the values are those that it holds
        now. If the file or the model has changed so that another plan would result,
        that is an error. A plan may be applied any number of times.

        Args:
            allow_nonfinite: Whether NaN and infinity may be among the values.
            probe: A batch of inputs. The report says how the model's outputs changed.

        Returns:
            The report of what was restored.

        Raises:
            MismatchError: If the plan has a `failure`, or is not what would be planned
                now. Nothing is changed then.
        """
        with Restore.opened(self._request) as ready:
            self._check_current(ready.report())
            return ready.apply(allow_nonfinite, probe)

    def _check_current(self, now: RestoreReport) -> None:
        planned, current = _outcomes(self), _outcomes(now)
        names = [*planned, *(name for name in current if name not in planned)]
        changed = [n for n in names if planned.get(n) != current.get(n)]
        if changed:
            raise MismatchError(
                explain(
                    "The file or the model has changed since this plan was made.",
                    received=f"{listing(changed)} in {self.source!r}",
                    expected="the same variables and tensors as then",
                    fix="make a new plan with `plan_restore`; nothing was changed",
                ),
                now,
            )


def _outcomes(report: RestoreReport) -> dict[str, object]:
    """What a report says of each variable, and of each tensor that is not used."""
    return {
        **{match.path: match for match in report.restored},
        **{mismatch.path: mismatch for mismatch in report.mismatched},
        **dict.fromkeys(report.missing, "missing"),
        **dict.fromkeys(report.unused, "unused"),
    }


def plan_restore(
    model: Any,
    source: str | os.PathLike[str],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    rename: Rename = None,
    transform: Transform = None,
    layout: str | None = None,
    on_missing: str = "error",
    on_mismatch: str = "error",
    min_restored: int = 1,
    cast: bool = False,
    optimizer: bool = False,
    plan: RestoreReport | str | None = None,
    limits: Limits | None = None,
    allow_remote: bool = False,
) -> RestorePlan:
    """Plans which tensors of a file fill which variables of a model; changes nothing.

    Print the plan to see what would go where, what is missing and what does not fit,
    then call its `apply()`. `tfdeep.restore` does both in one call.

    Args:
        model: A built model.
        source: A file or directory of weights; see `tfdeep.checkpoints.open`.
        include: As in `tfdeep.restore`, like the rest.
        exclude: See `tfdeep.restore`.
        rename: See `tfdeep.restore`.
        transform: See `tfdeep.restore`.
        layout: See `tfdeep.restore`.
        on_missing: See `tfdeep.restore`.
        on_mismatch: See `tfdeep.restore`.
        min_restored: See `tfdeep.restore`.
        cast: See `tfdeep.restore`.
        optimizer: See `tfdeep.restore`.
        plan: See `tfdeep.restore`.
        limits: See `tfdeep.restore`.
        allow_remote: See `tfdeep.restore`.

    Returns:
        A `tfdeep.checkpoints.RestorePlan`. Its `failure` says why `apply()` would be
        refused.

    Raises:
        SelectionError: If a pattern selects nothing.
        InvalidArgumentError: If an argument cannot work as given.
        ModelError: If the model has no weights yet.
        UnknownFormatError, CorruptFileError, UnsafeFileError, LimitError: If the file
            cannot be read.

    Example:

    >>> source = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> source.save_weights(tmp_path / "net.weights.h5")
    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3, 3], num_outputs=5)
    >>> path = tmp_path / "net.weights.h5"
    >>> plan = tfdeep.plan_restore(model, path, include="hidden[12]")
    >>> len(plan.restored), plan.failure
    (4, '')
    >>> plan.apply().dry_run
    False
    """
    request = Request(
        model=model,
        source=source,
        include=include,
        exclude=exclude,
        rename=rename,
        transform=transform,
        layout=layout,
        on_missing=on_missing,
        on_mismatch=on_mismatch,
        min_restored=min_restored,
        cast=cast,
        optimizer=optimizer,
        plan=plan,
        limits=limits,
        allow_remote=allow_remote,
    )
    with Restore.opened(request) as ready:
        report = ready.report()
    values = {f.name: getattr(report, f.name) for f in dataclasses.fields(report)}
    return RestorePlan(**values, _request=request)


def restore(
    model: Any,
    source: str | os.PathLike[str],
    include: Patterns = None,
    exclude: Patterns = None,
    rename: Rename = None,
    transform: Transform = None,
    layout: str | None = None,
    on_missing: str = "error",
    on_mismatch: str = "error",
    min_restored: int = 1,
    cast: bool = False,
    optimizer: bool = False,
    allow_nonfinite: bool = False,
    probe: Any = None,
    plan: RestoreReport | str | None = None,
    dry_run: bool = False,
    limits: Limits | None = None,
    allow_remote: bool = False,
) -> RestoreReport:
    """Fills chosen variables of a model from a file of weights, or none at all.

    Use it to reuse pretrained layers. Variables are matched by the names of their
    layers and checked for shape, dtype and class of layer; position never decides. A
    selected variable that the file lacks or that does not fit is an error, which
    leaves every variable as it was.

    Args:
        model: A built model.
        source: A file or directory of weights, of any format that
            `tfdeep.checkpoints.open` reads. No code in it is run.
        include: A pattern or a list of patterns over the model's paths, such as
            `"hidden[123]"`; the variables to restore. None restores all.
        exclude: A pattern or a list of patterns; the variables to leave alone.
        rename: How names in the file become names of the model: a dict from regular
            expressions, which match leading whole components, to what replaces them
            (`{"encoder": ""}`, `{r"fc(\\d)": r"hidden\\1"}`), or a function of a name.
            Components are separated by "/"; patterns may have dots, as PyTorch does.
        transform: A dict from patterns over the model's paths to functions of an
            array, which make the values that fit from those in the file. Each is
            first called with ones of the same shape.
        layout: "torch" for a file that PyTorch's modules wrote: kernels are transposed,
            gates reordered, and parameters looked up by PyTorch's names.
        on_missing: "error", or "skip" to leave alone, and report, selected variables
            that the file lacks.
        on_mismatch: The same for variables whose tensor does not fit.
        min_restored: The least number of variables that must be filled.
        cast: Whether values may be converted to the variable's dtype, numbers to
            floating point numbers. What becomes infinite is an error.
        optimizer: Whether to fill the variables of the model's optimizer too: its
            moments, step counter and learning rate. They are called `optimizer/...` in
            patterns.
        allow_nonfinite: Whether NaN and infinity may be among the values.
        probe: A batch of inputs. The report says how the model's outputs changed.
        plan: A plan or a report of an earlier call, or its JSON: what goes where is
            taken from there, and must be possible as it stands.
        dry_run: True to report what would be restored, is missing or does not fit, and
            change nothing. No values are read.
        limits: The most that the file may declare; see `tfdeep.checkpoints.Limits`.
        allow_remote: Whether `source` may be a URL that `tf.io.gfile` reads. It is
            copied first.

    Returns:
        A `tfdeep.checkpoints.RestoreReport`, which prints as a table.

    Raises:
        SelectionError: If a pattern selects nothing.
        InvalidArgumentError: If an argument cannot work as given.
        MismatchError: If a selected variable is missing in the file or does not fit.
            Its `report` lists all of them.
        ModelError: If the model has no weights yet.
        UnknownFormatError, CorruptFileError, UnsafeFileError, LimitError: If the file
            cannot be read.

    Example:

    >>> source = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> source.save_weights(tmp_path / "net.weights.h5")
    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3, 3], num_outputs=5)
    >>> report = tfdeep.restore(model, tmp_path / "net.weights.h5", "hidden[12]")
    >>> [match.path for match in report.restored]
    ['hidden1/kernel', 'hidden1/bias', 'hidden2/kernel', 'hidden2/bias']
    """
    request = Request(
        model=model,
        source=source,
        include=include,
        exclude=exclude,
        rename=rename,
        transform=transform,
        layout=layout,
        on_missing=on_missing,
        on_mismatch=on_mismatch,
        min_restored=min_restored,
        cast=cast,
        optimizer=optimizer,
        plan=plan,
        limits=limits,
        allow_remote=allow_remote,
    )
    with Restore.opened(request) as ready:
        return ready.report() if dry_run else ready.apply(allow_nonfinite, probe)
