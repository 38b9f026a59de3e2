"""The rules of SageMaker Debugger with their published thresholds, as a yardstick.

They are written from their public documentation, over plain arrays. `trace` records
those in a loop of its own, so that nothing of tfdeep's monitor is judged by itself.

Of the twenty built-in rules these cannot fire on one training run without validation
data: Overfit and Overtraining (need the validation loss), SimilarAcrossRuns (a second
run), StalledTraining (half an hour without tensors), NLPSequenceRatio (asks for token
0 in text), and the rules for XGBoost. Confusion judges what the net predicts, not why.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.gym._case import Case, prepare

Found = list[tuple[str | None, str]]  # kind and layer; "" is the whole net


@dataclasses.dataclass
class Trace:
    """What a training run was, step by step; a weight has one value more, the last."""

    gradients: dict[str, list[np.ndarray]]
    weights: dict[str, list[np.ndarray]]
    activations: dict[str, list[np.ndarray]]
    activation_inputs: dict[str, list[np.ndarray]]
    activation_names: dict[str, str]  # of layers
    layers: dict[str, str]  # of weights
    losses: list[float]
    inputs: list[np.ndarray]
    labels: list[np.ndarray]


def trace(case: Case, steps: int = 50, **changes: Any) -> Trace:
    """Trains the net of a case for some steps and keeps all tensors."""
    model, x, y = prepare(case, **changes)
    variables = model.trainable_variables
    layers = {v.path: layer.name for layer in model.layers for v in layer.variables}
    outputs: dict[str, Any] = {}
    activation_inputs: dict[str, Any] = {}
    activation_names: dict[str, str] = {}
    for layer in model.layers:
        _tap(layer, outputs, activation_inputs, activation_names)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), training=True)
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in variables])
        pairs = [
            (g, v) for g, v in zip(gradients, variables, strict=True) if g is not None
        ]
        model.optimizer.apply(*zip(*pairs, strict=True))
        arrays = {v.path: tf.convert_to_tensor(g) * (loss / scaled) for g, v in pairs}
        return loss, arrays, dict(outputs), dict(activation_inputs)

    kept = Trace(
        *(collections.defaultdict(list) for _ in range(4)),
        activation_names=activation_names,
        layers=layers,
        losses=[],
        inputs=[],
        labels=[],
    )
    callbacks = keras.callbacks.CallbackList(case.callbacks(model), model=model)
    callbacks.on_train_begin()
    for i in range(steps):
        rows = slice(i * case.batch_size, (i + 1) * case.batch_size)
        for v in variables:
            kept.weights[v.path].append(v.numpy())
        callbacks.on_train_batch_begin(i)
        loss, *tensors = step(x[rows], y[rows])
        callbacks.on_train_batch_end(i, {"loss": float(loss)})
        kept.losses.append(float(loss))
        kept.inputs.append(x[rows])
        kept.labels.append(y[rows])
        series = (kept.gradients, kept.activations, kept.activation_inputs)
        for lists, found in zip(series, tensors, strict=True):
            for name, tensor in found.items():
                lists[name].append(tensor.numpy().astype("float32"))
    callbacks.on_train_end()
    for v in variables:
        kept.weights[v.path].append(v.numpy())
    return kept


def _tap(
    layer: keras.layers.Layer,
    outputs: dict[str, Any],
    activation_inputs: dict[str, Any],
    activation_names: dict[str, str],
) -> None:
    """Makes a layer leave its outputs, and what its activation is told."""
    call = layer.call
    # Keras looks at the signature of `call`, which is hence kept.

    @functools.wraps(call)
    def tapped(*args, **kwargs):
        result = call(*args, **kwargs)
        if tf.is_tensor(result):
            outputs[layer.name] = result
        return result

    layer.call = tapped
    activation = getattr(layer, "activation", None)
    if activation is None:
        return
    activation_names[layer.name] = activation.__name__
    # A recurrent layer calls it inside a loop, out of which no tensor may be kept.
    if isinstance(layer, keras.layers.RNN):
        return

    @functools.wraps(activation)
    def tapped_activation(x):
        activation_inputs[layer.name] = x
        return activation(x)

    layer.activation = tapped_activation


def dead_relu(
    trace: Trace, threshold_layer: float = 50.0, threshold_inactivity: float = 1.0
) -> Found:
    """More than half of the units are active for less than 1 % of the examples."""
    found: Found = []
    for layer, steps in trace.activations.items():
        if "relu" not in trace.activation_names.get(layer, ""):
            continue
        for values in steps:
            active = 100 * _by_unit(values > 0).mean(axis=0)
            if 100 * (active < threshold_inactivity).mean() > threshold_layer:
                found.append(("dead_units", layer))
                break
    return found


def exploding_tensor(trace: Trace) -> Found:
    """NaN or infinity in any tensor.

    The name of the rule claims more than it looks at; a gradient with NaN or infinity
    counts for it as an explosion, too.
    """
    found: Found = []
    for layer, steps in _tensors(trace):
        if not all(np.isfinite(values).all() for values in steps):
            found.append(("nonfinite", layer))
    for name, steps in trace.gradients.items():
        if not all(np.isfinite(values).all() for values in steps):
            found.append(("exploding_gradient", trace.layers[name]))
    if not np.isfinite(trace.losses).all():
        found.append(("nonfinite", ""))
    return _once(found)


def poor_weight_initialization(
    trace: Trace,
    threshold: float = 10.0,
    distribution_range: float = 0.001,
    patience: int = 5,
    steps: int = 10,
) -> Found:
    """In the first steps: uneven variances, narrow gradients or a flat loss.

    Of the two accounts of the variances in the documentation, inputs of activations
    and weights, this is the first: the second is of no use where layers differ in size.
    """
    kind = "poor_initialization"
    found: Found = []
    for i in range(min(steps, len(trace.losses))):
        variances = {
            layer: float(values[i].var())
            for layer, values in trace.activation_inputs.items()
        }
        if variances:
            low = min(variances, key=variances.__getitem__)
            high = max(variances, key=variances.__getitem__)
            if variances[high] > threshold * variances[low]:
                found += [(kind, low), (kind, high)]
        for name, values in trace.gradients.items():
            low_end, high_end = np.percentile(values[i], (5, 95))
            if _is_kernel(name) and high_end - low_end < distribution_range:
                found.append((kind, trace.layers[name]))
    start = trace.losses[:steps]
    flat = 0
    for earlier, later in itertools.pairwise(start):
        flat = 0 if later < earlier else flat + 1
        if flat >= patience:
            found.append((kind, ""))
    return _once(found)


def saturated_activation(
    trace: Trace,
    threshold_tanh: float = 9.4999,
    threshold_sigmoid: tuple[float, float] = (-23.0, 16.99999),
    threshold_inactivity: float = 1.0,
    threshold_layer: float = 50.0,
) -> Found:
    """More than half of the units are told what is out of range."""
    ranges = {
        "tanh": (-threshold_tanh, threshold_tanh),
        "sigmoid": threshold_sigmoid,
    }
    found: Found = []
    for layer, steps in trace.activation_inputs.items():
        if trace.activation_names[layer] not in ranges:
            continue
        low, high = ranges[trace.activation_names[layer]]
        for values in steps:
            inside = 100 * _by_unit((values > low) & (values < high)).mean(axis=0)
            if 100 * (inside < threshold_inactivity).mean() > threshold_layer:
                found.append(("saturated_units", layer))
                break
    return found


def vanishing_gradient(trace: Trace, threshold: float = 1e-7) -> Found:
    """The mean of the absolute values of a gradient is below a threshold."""
    return _once(
        ("vanishing_gradient", trace.layers[name])
        for name, steps in trace.gradients.items()
        if any(np.abs(values).mean() < threshold for values in steps)
    )


def weight_update_ratio(
    trace: Trace,
    large_threshold: float = 10.0,
    small_threshold: float = 1e-8,
    epsilon: float = 1e-9,
) -> Found:
    """The update is too large or too small beside the weights, without the biases."""
    found: Found = []
    for name, steps in trace.weights.items():
        if not _is_kernel(name):
            continue
        for before, after in itertools.pairwise(steps):
            update = np.linalg.norm(after - before)
            ratio = update / (np.linalg.norm(before) + epsilon)
            if ratio > large_threshold:
                found.append(("update_too_large", trace.layers[name]))
            elif ratio < small_threshold:
                found.append(("update_too_small", trace.layers[name]))
    return _once(found)


def all_zero(trace: Trace, threshold: float = 100.0) -> Found:
    """A gradient or the outputs of a layer are all zero.

    The rule has to be told which tensors to look at; of biases, which begin at zero,
    it would always fire.
    """
    found: Found = []
    for name, steps in trace.gradients.items():
        if any(100 * (values == 0).mean() >= threshold for values in steps):
            found.append(("no_gradient", trace.layers[name]))
    for layer, steps in trace.activations.items():
        if any(100 * (values == 0).mean() >= threshold for values in steps):
            found.append(("dead_units", layer))
    return _once(found)


def loss_not_decreasing(
    trace: Trace, num_steps: int = 10, diff_percent: float = 0.0
) -> Found:
    """The loss is not lower than it was some steps before."""
    losses = trace.losses[::num_steps]
    for earlier, later in itertools.pairwise(losses):
        if not later < earlier * (1 - diff_percent / 100):
            return [("stalled", "")]
    return []


def unchanged_tensor(
    trace: Trace, num_steps: int = 3, rtol: float = 1e-5, atol: float = 1e-8
) -> Found:
    """A weight is the same at several steps; which tensors to take is not said."""
    found: Found = []
    for name, steps in trace.weights.items():
        same = 0
        for before, after in itertools.pairwise(steps):
            same = same + 1 if np.allclose(before, after, rtol, atol) else 0
            if same >= num_steps:
                found.append(("update_too_small", trace.layers[name]))
                break
    return _once(found)


def tensor_variance(trace: Trace) -> Found:
    """The variance of a tensor is out of a range, which by default is unbounded."""
    return []


def check_input_images(
    trace: Trace, threshold_mean: float = 0.2, threshold_samples: int = 500
) -> Found:
    """The mean of the inputs is not near zero; words have no mean."""
    inputs = np.concatenate(trace.inputs)[:threshold_samples]
    if len(inputs) < threshold_samples or inputs.dtype.kind != "f":
        return []
    return [("input_scale", "")] if abs(inputs.mean()) > threshold_mean else []


def class_imbalance(
    trace: Trace, threshold_imbalance: float = 10.0, samples: int = 500
) -> Found:
    """A class is ten times as frequent as another; none of the illnesses is that."""
    labels = np.concatenate(trace.labels)
    if len(labels) < samples or labels.dtype.kind != "i":
        return []
    counts = np.unique(labels, return_counts=True)[1]
    return [(None, "")] if counts.max() > threshold_imbalance * counts.min() else []


RULES: dict[str, Callable[[Trace], Found]] = {
    "DeadRelu": dead_relu,
    "ExplodingTensor": exploding_tensor,
    "PoorWeightInitialization": poor_weight_initialization,
    "SaturatedActivation": saturated_activation,
    "VanishingGradient": vanishing_gradient,
    "WeightUpdateRatio": weight_update_ratio,
    "AllZero": all_zero,
    "LossNotDecreasing": loss_not_decreasing,
    "UnchangedTensor": unchanged_tensor,
    "TensorVariance": tensor_variance,
    "CheckInputImages": check_input_images,
    "ClassImbalance": class_imbalance,
}


def _tensors(trace: Trace) -> Iterator[tuple[str, list[np.ndarray]]]:
    for series in (trace.gradients, trace.weights):
        for name, steps in series.items():
            yield trace.layers[name], steps
    yield from trace.activations.items()


def _by_unit(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1])


def _is_kernel(name: str) -> bool:
    return name.endswith(("kernel", "embeddings"))


def _once(found: Any) -> Found:
    return list(dict.fromkeys(found))
