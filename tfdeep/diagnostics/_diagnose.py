"""Looks at a model before it is trained: one batch forward and back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _activations, _gradients
from tfdeep._core._explain import a_type, explain, listing
from tfdeep._keras import _architecture, _internals, _variables
from tfdeep._keras._layer_calls import LayerCall, LayerCalls
from tfdeep.diagnostics._diagnosis import Diagnosis, LayerDiagnosis
from tfdeep.diagnostics._examiner import in_order
from tfdeep.diagnostics._finding import Finding
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics.rules import Rule, default_rules
from tfdeep.diagnostics.rules._checked import checked
from tfdeep.errors import DataError, InvalidArgumentError, ModelError

_MOST_EXAMPLES = 256

# The rules ask that something lasts; what is seen once is taken to last so many steps.
_STEPS = 20


def diagnose(
    model: Any,
    x: Any,
    y: Any = None,
    loss: Any = None,
    rules: Sequence[Rule] | str | None = "default",
) -> Diagnosis:
    """Says before training how a signal goes through a model, and a gradient back.

    Use it on a new model, with a batch of the data it is to learn from. The batch is
    sent through the model once, as in training, and the loss back. Nothing is changed:
    no weight, no moving average, no metric, no optimizer. A model that is not built
    gets its first weights, as when it is first called. Where the batch itself holds NaN
    or infinite values that the model does not fill in, that alone is found.

    Args:
        model: A Keras model; it need not be compiled.
        x: A batch of inputs as `model` takes them, in arrays or tensors, or a
            `tf.data.Dataset`, of which the first batch is taken. At most 256 examples
            are used.
        y: The labels of the batch. Without labels a random gradient is sent back from
            the outputs, so that only ratios between layers mean anything.
        loss: A Keras loss or its name; for a model of several outputs one for all of
            them, or a list or dict, as `compile` takes it. Defaults to the one the
            model was compiled with.
        rules: A list of `tfdeep.diagnostics.rules.Rule`. "default" or None takes one
            of each kind.

    Returns:
        A `Diagnosis`, which prints as a table. `findings` holds what is wrong,
        `plot()` draws it.

    Raises:
        DataError: If `x` or `y` is no batch, the dataset is empty, or the model cannot
            take the batch.
        InvalidArgumentError: If labels are given and no loss is known, if the loss
            cannot be computed of them, or if `rules` are none.
        ModelError: If it is no Keras model, or has nothing to train.

    Example:

    >>> model = tfdeep.models.dnn((8,), [32] * 20, 3, activation="sigmoid")
    >>> x, y = np.random.default_rng(0).normal(size=(64, 8)), np.zeros(64)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> diagnosis = tfdeep.diagnose(model, x, y, loss)
    >>> diagnosis.findings[0].kind, diagnosis.findings[0].layer
    ('vanishing_gradient', 'hidden1')

    Reference: Glorot and Bengio, Understanding the difficulty of training deep
    feedforward neural networks, 2010.
    """
    _check_model(model)
    rules = _checked_rules(rules)
    x, y = _one_batch(x, y)
    compute_loss = _loss_function(model, x, y, loss)
    calls, value, gradients = _forward_and_back(model, x, compute_loss)
    infos = _architecture.describe(model)
    variables = _trainable(model)
    rows = _rows(infos, calls, variables, value, gradients)
    recording = Recording([v.path for v in variables], infos)
    for _ in range(_STEPS):
        recording.extend(rows)
    # Bad values in the batch make all that is measured bad: nothing else can be said.
    findings = _bad_values(x, y) if _is_broken(rows) else []
    findings = findings or [
        Finding(rule.kind, s.layer, s.severity, 0, s.evidence, s.remedy)
        for rule in rules
        for s in rule.look(recording)
    ]
    order = [info.path for info in infos]
    return Diagnosis(
        model.name,
        len(keras.tree.flatten(x)[0]),
        None if y is None else float(value),
        tuple(_layer_diagnoses(infos, rows, variables)),
        tuple(in_order(_once(findings), order)),
    )


def _is_broken(rows: dict[str, np.ndarray]) -> bool:
    """Whether NaN or infinity shows in the loss, in a gradient or in an output."""
    is_finite = np.isfinite(rows["loss"]).all() and not np.isinf(rows["norm"]).any()
    return not is_finite or bool((rows["nonfinite_output"] > 0).any())


def _bad_values(x: Any, y: Any) -> list[Finding]:
    """Says of the inputs, else of the labels, how many examples are not finite."""
    for values, what in ((x, "inputs"), (y, "labels")):
        parts = [] if values is None else keras.tree.flatten(values)
        bad = [
            ~np.isfinite(part.numpy().reshape(len(part), -1)).all(axis=1)
            for part in parts
            if part.dtype.is_floating
        ]
        count = np.count_nonzero(np.any(bad, axis=0))
        if count:
            return [
                Finding(
                    "nonfinite",
                    "",
                    "critical",
                    0,
                    "the batch holds NaN or infinite values, in the "
                    f"{what} of {count} of {len(parts[0])} examples",
                    "clean the data: np.isfinite finds such values; leave these "
                    "examples out, or fill the values in",
                )
            ]
    return []


def _once(findings: list[Finding]) -> list[Finding]:
    return list({(f.kind, f.layer): f for f in reversed(findings)}.values())


def _one_batch(x: Any, y: Any) -> tuple[Any, Any]:
    if isinstance(x, tf.data.Dataset):
        batch = next(iter(x.take(1)), None)
        if batch is None:
            raise DataError(
                explain(
                    "`diagnose` got no batch to look at.",
                    received="a tf.data.Dataset without elements",
                    expected="at least one batch",
                    fix="look at what filters the dataset; nothing was changed",
                )
            )
        x, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
        y = labels if y is None else y
    _check_counts({"x": x} if y is None else {"x": x, "y": y})
    return _first_examples("x", x), None if y is None else _first_examples("y", y)


def _check_counts(batch: dict[str, Any]) -> None:
    """Raises an error unless all parts of a batch hold equally many examples."""
    counts = {name: _counts(name, values) for name, values in batch.items()}
    if len(set().union(*counts.values())) > 1:
        found = [f"`{name}` of {listing(counts[name])}" for name in counts]
        raise DataError(
            explain(
                "`diagnose` got inputs and labels that do not belong together.",
                received=f"{' and '.join(found)} examples",
                expected="equally many examples in each array of the batch",
                fix="give the labels of the same batch; nothing was changed",
            )
        )


def _counts(name: str, values: Any) -> list[int]:
    """The different numbers of examples in the arrays of a structure."""
    counts = []
    for part in keras.tree.flatten(values) or [values]:
        shape = tuple(getattr(part, "shape", ()))
        if not shape or not shape[0]:
            raise _no_batch(name, values, part)
        counts.append(shape[0])
    return sorted(set(counts))


def _first_examples(name: str, values: Any) -> Any:
    def first(part: Any) -> Any:
        try:
            tensor = tf.convert_to_tensor(part)[:_MOST_EXAMPLES]
        except (ValueError, TypeError) as error:
            raise _no_batch(name, values, part) from error
        if tensor.dtype.is_floating:  # as `fit` does
            tensor = tf.cast(tensor, keras.config.floatx())
        return tensor

    return keras.tree.map_structure(first, values)


def _no_batch(name: str, values: Any, part: Any) -> DataError:
    """The error for `part` of what was given as `name`, which is no batch."""
    received = f"`{name}` is {a_type(values)}"
    if part is not values:
        received += f" that holds {a_type(part)}"
    if hasattr(part, "shape"):
        received += f" of shape {tuple(part.shape)}"
    return DataError(
        explain(
            "`diagnose` got no batch to look at.",
            received=received,
            expected="arrays or tensors whose first axis is the examples",
            fix="`x, y = next(iter(dataset))` takes a batch of what yields batches, "
            "`dataset.batch(32)` makes batches of examples, `np.asarray` makes an "
            "array of a list; nothing was changed",
        )
    )


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ModelError(
            explain(
                "`diagnose` looks at Keras models.",
                received=f"`model` is {a_type(model)}",
                expected="a keras.Model",
                fix="`keras.Sequential([layer])` makes a model of a layer; nothing was "
                "changed",
            )
        )


def _checked_rules(rules: Any) -> Sequence[Rule]:
    is_default = isinstance(rules, str) and rules == "default"
    if rules is None or is_default:
        return default_rules()
    return checked(rules, "diagnose")


def _loss_function(model: Any, x: Any, y: Any, loss: Any) -> Callable[[Any], Any]:
    """What computes the loss of the model's outputs."""
    if y is None:
        return _random_gradient
    if loss is None and not model.compiled:
        raise _no_loss()
    if loss is not None:
        # What a loss means for several outputs is known to `compile` alone.
        of_outputs = getattr(model, "output_names", None)
        model = keras.Model(name="loss")
        model.output_names = of_outputs
        model.compile(optimizer=None, loss=loss)

    def compute(outputs: Any) -> Any:
        try:
            value = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=None)
            return tf.reduce_mean(value)
        except (LookupError, ValueError, TypeError, tf.errors.OpError) as error:
            raise _no_value(y, outputs, error) from error

    return compute


def _no_loss() -> InvalidArgumentError:
    return InvalidArgumentError(
        explain(
            "`diagnose` does not know the loss.",
            received="labels, loss=None, and a model that is not compiled",
            expected="a Keras loss or its name",
            fix="`tfdeep.diagnose(model, x, y, loss=...)`; nothing was changed",
        )
    )


def _no_value(y: Any, outputs: Any, error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(
        explain(
            f"`diagnose` cannot compute the loss of these labels: {error}",
            received=f"labels of shape {_shapes(y)} for outputs of shape "
            f"{_shapes(outputs)}",
            expected="a loss as `model.compile` takes it, and labels that fit it",
            fix="name a loss of `keras.losses`, give one loss and one array of labels "
            "for each output, or look at the labels; nothing was changed",
        )
    )


def _shapes(tensors: Any) -> Any:
    return keras.tree.map_structure(lambda tensor: tuple(tensor.shape), tensors)


def _random_gradient(outputs: Any) -> Any:
    """A sum of the outputs whose gradient is standard normal noise."""
    rng = np.random.default_rng(0)
    return tf.add_n(
        [
            tf.reduce_sum(tf.cast(x, tf.float32) * rng.normal(size=x.shape))
            / float(x.shape[0])
            for x in keras.tree.flatten(outputs)
        ]
    )


def _build(model: Any, x: Any) -> None:
    """Has the model create its weights, and leaves them as they were created."""
    # The first call updates no moving average; some parts wait for the second.
    for training in (False, True):
        if not _is_built(model):
            with _state_kept(model):
                _call(model, x, training)


def _is_built(layer: Any) -> bool:
    return layer.built and all(map(_is_built, _internals.sublayers(layer)))


@contextlib.contextmanager
def _state_kept(model: Any) -> Iterator[None]:
    """Puts back at its end what variables and metrics held before."""
    metrics = model.metrics
    variables = [*model.variables, *(v for m in metrics for v in m.variables)]
    kept = [(v, v.numpy()) for v in variables]
    try:
        yield
    finally:
        for metric in model.metrics:
            if metric not in metrics:  # a loss makes some when it is first computed
                metric.reset_state()
        for variable, before in kept:
            variable.assign(before)


def _forward_and_back(
    model: Any, x: Any, compute_loss: Callable[[Any], Any]
) -> tuple[dict[str, LayerCall], Any, tuple[list[Any], dict[str, Any]]]:
    """One pass through the model; what it changes on the way is put back."""
    _build(model, x)
    calls_of = LayerCalls(_architecture.layers_of(model))
    with _state_kept(model):
        with tf.GradientTape() as tape, calls_of.watching():
            outputs = _call(model, x, training=True)
            value = compute_loss(outputs)
        calls = {
            path: call
            for path, call in calls_of.take().items()
            if call.output is not None and call.output.dtype.is_floating
        }
        variables = [v.variable for v in _trainable(model)]
        paths = list(calls)
        gradients = tape.gradient(
            value, [*variables, *(calls[path].output for path in paths)]
        )
    of_outputs = dict(zip(paths, gradients[len(variables) :], strict=True))
    return calls, value, (gradients[: len(variables)], of_outputs)


def _call(model: Any, x: Any, training: bool) -> Any:
    try:
        return model(x, training=training)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise DataError(
            explain(
                f"The model `{model.name}` cannot take this batch: {error}",
                received=f"inputs of shape {_shapes(x)}",
                expected="a batch as `model.fit` gets it",
                fix="add the batch axis, or cast the inputs; nothing was changed",
            )
        ) from error


def _trainable(model: Any) -> list[_variables.ModelVariable]:
    trained = {id(v) for v in model.trainable_variables}
    found = [v for v in _variables.model_variables(model) if id(v.variable) in trained]
    if not found:
        raise ModelError(
            explain(
                f"The model `{model.name}` has nothing to train.",
                received="a model without trainable weights",
                expected="at least one layer with weights",
                fix="unfreeze a layer with `tfdeep.unfreeze`; nothing was changed",
            )
        )
    return found


def _rows(
    infos: tuple[_architecture.LayerInfo, ...],
    calls: dict[str, LayerCall],
    variables: list[_variables.ModelVariable],
    value: Any,
    gradients: tuple[list[Any], dict[str, Any]],
) -> dict[str, np.ndarray]:
    """The numbers of the pass as the rows of one step."""
    of_weights, of_outputs = gradients
    norm, largest, nonfinite = np.full((3, len(variables)), np.nan, np.float32)
    for i, gradient in enumerate(of_weights):
        if gradient is not None:
            norm[i] = _finite_norm(_gradients.l2_norms([gradient])[0].numpy())
            entries = np.asarray(getattr(gradient, "values", gradient))
            largest[i] = np.abs(entries).max(initial=0)
            nonfinite[i] = np.count_nonzero(~np.isfinite(entries))
    weights = [np.linalg.norm(np.ravel(v.variable.numpy())) for v in variables]
    rows: dict[str, Any] = {
        "loss": [float(value)],
        "norm": norm,
        "clipped_norm": norm,
        "largest_entry": largest,
        "nonfinite_count": nonfinite,
        "weight_norm": weights,
        "update_norm": np.full(len(variables), np.nan),
        "silent_fraction": [
            _silent(v, g) for v, g in zip(variables, of_weights, strict=True)
        ],
    }
    measured = [
        _measured(calls.get(info.path), of_outputs.get(info.path)) for info in infos
    ]
    first = next((c for c in calls.values() if c.layer.trainable_weights), None)
    if first is not None and first.input.dtype.is_floating:
        scale = _activations.scale_of_features(_activations.sample(first.input))
        rows["input_offset"], rows["input_spread"] = ([float(s)] for s in scale)
    for name in measured[0]:
        rows[name] = [row[name] for row in measured]
    return {name: np.array([row], np.float32) for name, row in rows.items()}


def _finite_norm(norm: float) -> float:
    return norm if np.isfinite(norm) else np.inf


def _silent(variable: _variables.ModelVariable, gradient: Any) -> float:
    if variable.variable.name not in ("bias", "beta") or gradient is None:
        return float("nan")
    return float(np.mean(np.asarray(gradient) == 0))


def _measured(call: LayerCall | None, gradient: Any) -> dict[str, float]:
    unknown = dict.fromkeys(
        (
            "output_mean",
            "output_std",
            "gradient_std",
            "flat_fraction",
            "inactive_fraction",
            "effective_rank",
            "nonfinite_output",
        ),
        float("nan"),
    )
    if call is None or call.output.shape.rank < 2:
        return unknown
    axis = _activations.units_axis(call.layer)
    places = _activations.sample(call.output, axis)
    mean, std = _activations.moments(places)
    found = {
        "output_mean": mean,
        "output_std": std,
        "effective_rank": _activations.effective_rank(places),
        "nonfinite_output": tf.reduce_mean(
            tf.cast(~tf.math.is_finite(places), tf.float32)
        ),
    }
    if gradient is not None:
        found["gradient_std"] = _activations.moments(
            _activations.sample(gradient, axis)
        )[1]
    if _activations.is_element_wise(call.activation) and (
        call.before_activation is not None
    ):
        before = _activations.sample(call.before_activation, axis)
        flat = _activations.is_flat(call.activation, before)
        found["flat_fraction"] = tf.reduce_mean(tf.cast(flat, tf.float32))
        inactive = tf.reduce_all(flat, axis=0)
        found["inactive_fraction"] = tf.reduce_mean(tf.cast(inactive, tf.float32))
    return {**unknown, **{name: float(number) for name, number in found.items()}}


def _layer_diagnoses(
    infos: tuple[_architecture.LayerInfo, ...],
    rows: dict[str, np.ndarray],
    variables: list[_variables.ModelVariable],
) -> Iterator[LayerDiagnosis]:
    columns = {v.path: i for i, v in enumerate(variables)}
    for i, info in enumerate(infos):
        column = columns.get(info.kernel or "")
        yield LayerDiagnosis(
            path=info.path,
            kind=info.kind,
            activation=info.activation,
            output_mean=float(rows["output_mean"][0, i]),
            output_std=float(rows["output_std"][0, i]),
            gradient_std=float(rows["gradient_std"][0, i]),
            kernel_gradient_norm=float("nan")
            if column is None
            else float(rows["norm"][0, column]),
            kernel_norm=float("nan")
            if column is None
            else float(rows["weight_norm"][0, column]),
            saturated_fraction=float(rows["flat_fraction"][0, i]),
            inactive_fraction=float(rows["inactive_fraction"][0, i]),
            effective_rank=float(rows["effective_rank"][0, i]),
        )
