"""Runs one batch through a model and its gradient back, and leaves no trace of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _gradients as _core_gradients
from tfdeep._core._explain import explain
from tfdeep._core._gradients import Gradient
from tfdeep._keras import _architecture, _internals, _optimizers, _variables, _walk
from tfdeep._keras._layer_calls import LayerCall, LayerCalls
from tfdeep._keras._variables import ModelVariable
from tfdeep.errors import DataError, ModelError

# What Keras starts with in float16, and by how much it is divided when it overflows.
_FIRST_LOSS_SCALE = 2.0**15
_SMALLER = 32.0


@dataclasses.dataclass(frozen=True)
class Probe:
    """What one batch did in a model.

    Attributes:
        loss: The loss.
        data_loss: The loss without the penalties on weights.
        variables: The weights that are trained.
        gradients: The gradient of each of them; None where there is none.
        data_gradients: The same of the loss without the penalties on weights.
        added_losses: What each layer adds to the loss, by path: penalties on its
            weights or outputs, and what it gave to `add_loss`.
        calls: The last call of each layer that computes floats, in order, by path.
        output_gradients: The gradient of each call's output, by path.
    """

    loss: tf.Tensor
    data_loss: tf.Tensor
    variables: list[ModelVariable]
    gradients: list[Gradient | None]
    data_gradients: list[Gradient | None]
    added_losses: dict[str, float]
    calls: dict[str, LayerCall]
    output_gradients: dict[str, Gradient | None]


def probe(model: Any, x: Any, compute_loss: Callable[[Any], Any]) -> Probe:
    """Calls a model on a batch as in training, and differentiates the loss.

    Weights, moving averages and metrics are as before afterwards. A model that is not
    built keeps the first weights that it gets.

    In float16 the loss is scaled before it is differentiated, as its optimizer would.

    Args:
        model: A Keras model.
        x: The inputs of one batch.
        compute_loss: Makes the loss of the outputs, and of the model's `losses`.

    Raises:
        DataError: If the model cannot take the batch.
        ModelError: If it has nothing to train.
    """
    _build(model, x)
    layer_calls = LayerCalls(_architecture.layers_of(model))
    with _state_kept(model):
        with tf.GradientTape(persistent=True) as tape, layer_calls.watching():
            outputs = _call(model, x, training=True)
            loss = data_loss = compute_loss(outputs)
            penalized = [v for v in model.trainable_weights if v.regularizer]
            if penalized:
                with _without_penalties(penalized):
                    data_loss = compute_loss(outputs)
        calls = {
            path: call
            for path, call in layer_calls.take().items()
            if call.output is not None and call.output.dtype.is_floating
        }
        variables = _trained(model)
        added_losses = _added_losses(model, variables)
    weights = [v.variable for v in variables]
    scale = _loss_scale(model)
    made = {path: call.output for path, call in calls.items()}
    data_gradients, of_outputs = _gradients(tape, data_loss, [weights, made], scale)
    gradients = data_gradients
    if penalized:
        (gradients,) = _gradients(tape, loss, [weights], scale)
    return Probe(
        loss,
        data_loss,
        variables,
        gradients,
        data_gradients,
        added_losses,
        calls,
        of_outputs,
    )


@contextlib.contextmanager
def _without_penalties(weights: list[Any]) -> Iterator[None]:
    """Takes the regularizers off weights while it is open."""
    regularizers = [weight.regularizer for weight in weights]
    try:
        for weight in weights:
            weight.regularizer = None
        yield
    finally:
        for weight, regularizer in zip(weights, regularizers, strict=True):
            weight.regularizer = regularizer


def _added_losses(model: Any, variables: list[ModelVariable]) -> dict[str, float]:
    added: dict[str, list[Any]] = {}
    for path, layer in {"": model, **_walk.layers(model)}.items():
        added[path] = _internals.own_losses(layer)
    for v in variables:
        if v.variable.regularizer:
            penalty = v.variable.regularizer(v.variable)
            added.setdefault(v.layer_path, []).append(penalty)
    return {
        path: float(sum(float(tf.reduce_sum(loss)) for loss in losses))
        for path, losses in added.items()
        if losses
    }


def _loss_scale(model: Any) -> float:
    """The factor by which the optimizer would multiply the loss."""
    for optimizer in _optimizers.chain(getattr(model, "optimizer", None)):
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            is_built = optimizer.built
            return float(
                optimizer.dynamic_scale if is_built else optimizer.initial_scale
            )
    is_scaled = not model.compiled and model.dtype_policy.name == "mixed_float16"
    return _FIRST_LOSS_SCALE if is_scaled else 1.0


def _gradients(
    tape: tf.GradientTape, loss: tf.Tensor, sources: list[Any], scale: float
) -> Any:
    """The gradients of a scaled loss, divided by its scale.

    A scale at which they are not finite is made smaller, as it is in training.
    """
    while True:
        scaled = tf.fill(loss.shape, tf.cast(scale, loss.dtype))
        gradients = tape.gradient(loss, sources, output_gradients=scaled)
        if scale <= 1 or not np.isfinite(loss) or _are_finite(gradients):
            break
        scale = max(scale / _SMALLER, 1.0)
    if scale == 1:
        return gradients
    return keras.tree.map_structure(lambda g: _unscaled(g, scale), gradients)


def _unscaled(gradient: Gradient | None, scale: float) -> Gradient | None:
    if gradient is None:
        return None
    if gradient.dtype == tf.float16:
        gradient = tf.cast(gradient, tf.float32)
    return _core_gradients.scale(gradient, 1 / scale)


def _are_finite(gradients: Any) -> bool:
    entries = (getattr(g, "values", g) for g in keras.tree.flatten(gradients))
    return all(np.isfinite(e).all() for e in entries if e is not None)


def _build(model: Any, x: Any) -> None:
    """Makes the model create its weights, and leaves them as they were created."""
    # The first call updates no moving average; some parts wait for the second.
    for training in (False, True):
        if not _is_built(model):
            with _state_kept(model):
                _call(model, x, training)


def _is_built(layer: Any) -> bool:
    return layer.built and all(map(_is_built, _internals.sublayers(layer)))


@contextlib.contextmanager
def _state_kept(model: Any) -> Iterator[None]:
    """Restores the values of variables and metrics when it closes."""
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
        _internals.clear_losses(model)


def _call(model: Any, x: Any, training: bool) -> Any:
    try:
        return model(x, training=training)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        shapes = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), x)
        raise DataError(
            explain(
                f"The model `{model.name}` cannot take this batch: {error}",
                received=f"inputs of shape {shapes}",
                expected="a batch as `model.fit` gets it",
                fix="add the batch axis, or cast the inputs; nothing was changed",
            )
        ) from error


def _trained(model: Any) -> list[ModelVariable]:
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
