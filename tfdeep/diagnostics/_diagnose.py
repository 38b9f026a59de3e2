"""Looks at a model before it is trained: one batch forward and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _gradients
from tfdeep._core._explain import a_type, explain
from tfdeep._core._gradients import Gradient
from tfdeep._keras import (
    _architecture,
    _batch_facts,
    _internals,
    _layer_outputs,
    _program,
)
from tfdeep._keras._architecture import LayerInfo
from tfdeep._keras._layer_calls import LayerCall
from tfdeep._keras._probe import Probe, probe
from tfdeep._quantities import OF_BATCH, OF_LAYERS, OF_OUTPUTS
from tfdeep.diagnostics._batch import (
    Batch,
    loss_function,
    one_batch,
    random_gradient,
    sum_of_losses,
)
from tfdeep.diagnostics._causes import explained
from tfdeep.diagnostics._diagnosis import Diagnosis, LayerDiagnosis
from tfdeep.diagnostics._finding import Finding
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import BadInput, BadLabels, OutputMismatch, Rule
from tfdeep.diagnostics.rules._checked import checked
from tfdeep.errors import InvalidArgumentError, ModelError

# Many rules ask that something lasts: what one batch shows is taken to last so long.
_STEPS_IT_STANDS_FOR = 20


def diagnose(
    model: Any,
    x: Any,
    y: Any = None,
    loss: Any = None,
    rules: Sequence[Rule] | str | None = "default",
    *,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    loss_weights: Any = None,
) -> Diagnosis:
    """Shows before training how a signal goes through a model, and a gradient back.

    Use it on a new model, with its training data. Some examples go through the model
    once, as in training, and the gradient of the loss goes back. The loss is that of
    training: it includes the penalties on weights and outputs, what layers pass to
    `add_loss`, and a `compute_loss` of the model's own class. Vanishing gradients are
    judged by the loss without the penalties on weights, which have gradients even where
    the data has none. Nothing is changed: no weight, moving average, metric or
    optimizer. A model that is not built gets its first weights, as when it is first
    called. If the examples hold NaN or infinite values that the model does not fill in,
    only that is reported.

    Args:
        model: A Keras model; it need not be compiled.
        x: Inputs as `model` takes them, in arrays or tensors, or a `tf.data.Dataset`
            of batches of `x`, `(x, y)` or `(x, y, sample_weight)`. Of arrays a random
            sample is used, which is the same at each call; of a dataset the first
            batches, together. At most 256 examples are used; of large images fewer,
            at least 32.
        y: The labels of `x`. Without labels, unless the model trains without, a random
            gradient goes back from the outputs, and only ratios between layers mean
            anything.
        loss: A Keras loss or its name; for a model of several outputs one for all of
            them, or a list or dict, as `compile` takes it. Defaults to the one the
            model was compiled with.
        rules: A list of `tfdeep.diagnostics.rules.Rule`. "default" or None takes one
            of each kind.
        sample_weight: How much each example counts, as `fit` takes it.
        class_weight: How much the examples of each class count, as `fit` takes it.
        loss_weights: How much each loss of `loss` counts, as `compile` takes it.

    Returns:
        A `Diagnosis`, which prints as a table. `findings` holds what is wrong,
        `plot()` draws it.

    Raises:
        DataError: If `x` or `y` is not a batch, the dataset is empty, or the model
            cannot take the batch.
        InvalidArgumentError: If labels are given and no loss is known, if the labels do
            not fit the loss, if `class_weight` or `loss_weights` do not go with the
            other arguments, or if `rules` is not a list of rules.
        ModelError: If `model` is not a Keras model, or has nothing to train.

    Example:

    >>> model = tfdeep.models.dnn((8,), [32] * 20, 3, activation="sigmoid")
    >>> x, y = np.random.default_rng(0).normal(size=(64, 8)), np.arange(64) % 3
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> diagnosis = tfdeep.diagnose(model, x, y, loss)
    >>> diagnosis.findings[0].kind, diagnosis.findings[0].layer
    ('vanishing_gradient', 'hidden1')

    Reference: Glorot and Bengio, Understanding the difficulty of training deep
    feedforward neural networks, 2010.
    """
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
    rules = checked("default" if rules is None else rules, "diagnose")
    batch_size = _internals.batch_size(model)
    batch = one_batch(x, y, sample_weight, class_weight, batch_size)
    compute_loss = loss_function(model, batch, loss, loss_weights)
    try:
        found = probe(model, batch.x, compute_loss or _random_loss(model))
    except InvalidArgumentError:
        # No loss can be computed; the labels may show why.
        findings = _of_labels(model, batch, loss)
        if not findings:
            raise
        return Diagnosis(model.name, batch.examples, None, (), explained(findings))
    layers = _architecture.describe(model)
    pairs = _batch_facts.pairs(batch.y, found.outputs)
    row = {**_row(found, layers), **_of_batch(batch.x, pairs)}
    recording = Recording(
        [v.path for v in found.variables],
        layers,
        stands_for=_STEPS_IT_STANDS_FOR,
        program=_program_of(model, loss, pairs),
    )
    recording.extend(row)
    recording.nonfinite_at = found.source.path
    recording.nonfinite_before = found.source.behind
    findings = []
    if _is_broken(row):
        # What is wrong with the batch spoils all that is measured.
        findings = _found([BadInput(), BadLabels()], recording)
    findings = findings or list(_broken_losses(found)) or _found(rules, recording)
    once = {(f.kind, f.layer): f for f in reversed(findings)}
    return Diagnosis(
        model.name,
        batch.examples,
        float(found.loss) if compute_loss else None,
        tuple(_layer_diagnoses(recording)),
        explained(list(once.values()), [layer.path for layer in layers]),
        layers,
    )


def _program_of(
    model: Any, loss: Any, pairs: Sequence[tuple[Any, Any]]
) -> _program.Program:
    outputs = [_program.seen_output(output, target) for target, output in pairs]
    return _program.describe(model, loss).seen(outputs)


def _of_labels(model: Any, batch: Batch, loss: Any) -> list[Finding]:
    """What is wrong with the labels, by themselves and beside the outputs."""
    pairs = _batch_facts.pairs(batch.y, model(batch.x, training=False))
    recording = Recording(
        [], _architecture.describe(model), program=_program_of(model, loss, pairs)
    )
    recording.extend({**_of_batch(batch.x, pairs), "norm": np.empty((1, 0))})
    return _found([BadLabels(), OutputMismatch()], recording)


def _found(rules: Sequence[Rule], recording: Recording) -> list[Finding]:
    return [
        Finding(rule.kind, s.layer, s.severity, 0, s.evidence, Remedy.of(s.remedy))
        for rule in rules
        for s in rule.look(recording)
    ]


def _of_batch(x: Any, pairs: Sequence[tuple[Any, Any]]) -> dict[str, np.ndarray]:
    """What a batch gives the model and the loss, as a recording of one step."""
    outputs = [_batch_facts.of_output(target, output) for target, output in pairs]
    rows = {
        name: [float(of_one.get(name, np.nan)) for of_one in outputs]
        for name in OF_OUTPUTS
    }
    batch = _batch_facts.of_batch(x)
    rows |= {name: [float(batch.get(name, np.nan))] for name in OF_BATCH}
    return {name: np.array([values], np.float32) for name, values in rows.items()}


def _random_loss(model: Any) -> Callable[[Any], Any]:
    """A loss with a random gradient, and with the penalties of the model."""
    return lambda outputs: random_gradient(outputs) + sum_of_losses(model)


def _broken_losses(found: Probe) -> Iterator[Finding]:
    """Finds layers of finite outputs that add NaN or infinity to the loss."""
    if found.source.path is not None or found.source.behind is not None:
        return
    for path, value in found.added_losses.items():
        if not np.isfinite(value):
            yield Finding(
                "nonfinite",
                path,
                "critical",
                0,
                f"what it adds to the loss is {value:g}, while all outputs are finite",
                Remedy(
                    "look for log, sqrt or a division by zero in its regularizers and "
                    "in what it passes to `add_loss` (add an epsilon)"
                ),
            )


def _is_broken(row: dict[str, np.ndarray]) -> bool:
    """Whether NaN or infinity shows in the loss, in a gradient or in an output."""
    is_finite = np.isfinite(row["loss"]).all() and not np.isinf(row["norm"]).any()
    return not is_finite or bool((row["nonfinite_output"] > 0).any())


def _row(found: Probe, layers: Sequence[LayerInfo]) -> dict[str, np.ndarray]:
    """The numbers of a probe as a recording of one step takes them."""
    row: dict[str, Any] = {
        "loss": [float(found.loss)],
        "data_norm": _norms(found.data_gradients),
        "data_loss": [float(found.data_loss)],
        **_of_variables(found),
        **_of_layers(found, layers),
    }
    first = next((c for c in found.calls.values() if c.layer.trainable_weights), None)
    if first is not None and first.input.dtype.is_floating:
        scale = _layer_outputs.scale_of_features(_layer_outputs.sample(first.input))
        row["input_offset"], row["input_spread"] = ([float(s)] for s in scale)
    return {name: np.array([values], np.float32) for name, values in row.items()}


def _of_variables(found: Probe) -> dict[str, Any]:
    count = len(found.variables)
    norm = _norms(found.gradients)
    largest, nonfinite, silent = np.full((3, count), np.nan, np.float32)
    for i, gradient in enumerate(found.gradients):
        if gradient is None:
            continue
        entries = np.asarray(getattr(gradient, "values", gradient))
        largest[i] = np.abs(entries).max(initial=0)
        nonfinite[i] = np.count_nonzero(~np.isfinite(entries))
        if found.variables[i].variable.name in ("bias", "beta"):
            silent[i] = np.mean(entries == 0)
    weights = [np.linalg.norm(np.ravel(v.variable.numpy())) for v in found.variables]
    return {
        "norm": norm,
        "clipped_norm": norm,
        "largest_entry": largest,
        "nonfinite_count": nonfinite,
        "silent_fraction": silent,
        "weight_norm": weights,
        "update_norm": np.full(count, np.nan),
    }


def _norms(gradients: Sequence[Gradient | None]) -> np.ndarray:
    """The norm of each gradient; NaN where there is none."""
    norms = np.full(len(gradients), np.nan, np.float32)
    for i, gradient in enumerate(gradients):
        if gradient is not None:
            size = _gradients.l2_norms([gradient])[0].numpy()
            norms[i] = size if np.isfinite(size) else np.inf
    return norms


def _of_layers(found: Probe, layers: Sequence[LayerInfo]) -> dict[str, list[float]]:
    measured = [
        _measured(found.calls[layer.path], found.output_gradients[layer.path])
        if layer.path in found.calls
        else {}
        for layer in layers
    ]
    return {
        name: [float(of_layer.get(name, np.nan)) for of_layer in measured]
        for name in (*OF_LAYERS, "gradient_std")
    }


def _measured(call: LayerCall, gradient: Any) -> dict[str, Any]:
    if call.output.shape.rank < 2:
        return {}
    found, is_active = _layer_outputs.measure(call)
    if is_active is not None:
        found["inactive_fraction"] = tf.reduce_mean(tf.cast(~is_active, tf.float32))
    if gradient is not None:
        axis = _layer_outputs.units_axis(call.layer)
        places = _layer_outputs.sample(gradient, axis)
        _, found["gradient_std"] = _layer_outputs.moments(places)
    return found


def _layer_diagnoses(recording: Recording) -> Iterator[LayerDiagnosis]:
    def of_kernel(name: str, layer: LayerInfo) -> float:
        column = recording.column(layer.kernel)
        return float("nan") if column is None else float(recording[name][0, column])

    for i, layer in enumerate(recording.layers):
        yield LayerDiagnosis(
            path=layer.path,
            kind=layer.kind,
            activation=layer.activation,
            output_mean=float(recording["output_mean"][0, i]),
            output_std=float(recording["output_std"][0, i]),
            gradient_std=float(recording["gradient_std"][0, i]),
            kernel_gradient_norm=of_kernel("norm", layer),
            kernel_norm=of_kernel("weight_norm", layer),
            saturated_fraction=float(recording["flat_fraction"][0, i]),
            inactive_fraction=float(recording["inactive_fraction"][0, i]),
            effective_rank=float(recording["effective_rank"][0, i]),
        )
