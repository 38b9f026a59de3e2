"""Looks at a model before it is trained: one batch forward and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _activations, _architecture, _gradients, _paths
from tfdeep._core._explain import explain
from tfdeep._core._layer_calls import LayerCall, LayerCalls
from tfdeep.diagnostics._diagnosis import Diagnosis, LayerDiagnosis
from tfdeep.diagnostics._examiner import in_order
from tfdeep.diagnostics._finding import Finding
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics.rules import Rule, default_rules
from tfdeep.errors import DataError, InvalidArgumentError, ModelError

_MOST_EXAMPLES = 256

# The rules ask that something lasts; what is seen once is taken to last so many steps.
_STEPS = 20


def diagnose(
    model: Any,
    x: Any,
    y: Any = None,
    loss: Any = None,
    rules: list[Rule] | None = None,
) -> Diagnosis:
    """Says before training how a signal goes through a model, and a gradient back.

    Use it on a new model, with a batch of the data it is to learn from. The batch is
    sent through the model once, as in training, and the loss back. Nothing is changed:
    no weight, no moving average, no optimizer. Where the batch itself holds NaN or
    infinite values that the model does not fill in, that alone is found.

    Args:
        model: A Keras model; it need not be compiled.
        x: A batch of inputs as `model` takes them, or a `tf.data.Dataset`, of which the
            first batch is taken. At most 256 examples are used.
        y: The labels of the batch. Without labels a random gradient is sent back from
            the outputs, so that only ratios between layers mean anything.
        loss: A Keras loss or its name. Defaults to the one the model was compiled with.
        rules: The rules to ask. Defaults to those of `GradientMonitor`.

    Returns:
        A `Diagnosis`, which prints as a table. `findings` holds what is wrong,
        `plot()` draws it.

    Raises:
        DataError: If the dataset is empty, or the model cannot take the batch.
        InvalidArgumentError: If labels are given and no loss is known.
        ModelError: If the model has no layer with weights.

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
    x, y = _one_batch(x, y)
    compute_loss = _loss_function(model, y, loss)
    calls, value, gradients = _forward_and_back(model, x, y, compute_loss)
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
        for rule in (default_rules() if rules is None else rules)
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

    def first(values: Any) -> Any:
        tensor = tf.convert_to_tensor(values)[:_MOST_EXAMPLES]
        if tensor.dtype.is_floating:  # as `fit` does
            tensor = tf.cast(tensor, keras.config.floatx())
        return tensor

    return keras.tree.map_structure(first, x), (
        None if y is None else keras.tree.map_structure(first, y)
    )


def _loss_function(model: Any, y: Any, loss: Any) -> Callable[[Any, Any], Any]:
    if y is None:
        return _random_gradient
    if loss is not None:
        function: Callable[[Any, Any], Any] = keras.losses.get(loss)
        return lambda labels, outputs: tf.reduce_mean(function(labels, outputs))
    if getattr(model, "compiled", False):
        return lambda labels, outputs: model.compute_loss(y=labels, y_pred=outputs)
    raise InvalidArgumentError(
        explain(
            "`diagnose` does not know the loss.",
            received="labels, loss=None, and a model that is not compiled",
            expected="a Keras loss or its name",
            fix="`tfdeep.diagnose(model, x, y, loss=...)`; nothing was changed",
        )
    )


def _random_gradient(_: Any, outputs: Any) -> Any:
    """A sum of the outputs whose gradient is standard normal noise."""
    rng = np.random.default_rng(0)
    return tf.add_n(
        [
            tf.reduce_sum(tf.cast(x, tf.float32) * rng.normal(size=x.shape))
            / float(x.shape[0])
            for x in keras.tree.flatten(outputs)
        ]
    )


def _forward_and_back(
    model: Any, x: Any, y: Any, compute_loss: Callable[[Any, Any], Any]
) -> tuple[dict[str, LayerCall], Any, tuple[list[Any], dict[str, Any]]]:
    """One pass through the model; what it changes on the way is put back."""
    if not model.built:
        _call(model, x)
    calls_of = LayerCalls(_architecture.layers_of(model))
    kept = [(v, v.numpy()) for v in model.non_trainable_variables]
    try:
        with tf.GradientTape() as tape, calls_of.watching():
            outputs = _call(model, x)
            value = compute_loss(y, outputs)
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
    finally:
        for variable, before in kept:
            variable.assign(before)
    of_outputs = dict(zip(paths, gradients[len(variables) :], strict=True))
    return calls, value, (gradients[: len(variables)], of_outputs)


def _call(model: Any, x: Any) -> Any:
    try:
        return model(x, training=True)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        shapes = keras.tree.map_structure(lambda t: tuple(t.shape), x)
        raise DataError(
            explain(
                f"The model `{model.name}` cannot take this batch: {error}",
                received=f"inputs of shape {shapes}",
                expected="a batch as `model.fit` gets it",
                fix="add the batch axis, or cast the inputs; nothing was changed",
            )
        ) from error


def _trainable(model: Any) -> list[_paths.ModelVariable]:
    trained = {id(v) for v in model.trainable_variables}
    found = [v for v in _paths.model_variables(model) if id(v.variable) in trained]
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
    variables: list[_paths.ModelVariable],
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


def _silent(variable: _paths.ModelVariable, gradient: Any) -> float:
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
    variables: list[_paths.ModelVariable],
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
