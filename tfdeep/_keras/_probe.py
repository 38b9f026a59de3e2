"""Runs one batch through a model and its gradient back, and leaves no trace of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._explain import explain
from tfdeep._core._gradients import Gradient
from tfdeep._keras import _architecture, _internals, _variables
from tfdeep._keras._layer_calls import LayerCall, LayerCalls
from tfdeep._keras._variables import ModelVariable
from tfdeep.errors import DataError, ModelError


@dataclasses.dataclass(frozen=True)
class Probe:
    """What one batch did in a model.

    Attributes:
        loss: The loss.
        variables: The weights that are trained.
        gradients: The gradient of each of them; None where there is none.
        calls: The last call of each layer that computes floats, in order, by path.
        output_gradients: The gradient of each call's output, by path.
    """

    loss: tf.Tensor
    variables: list[ModelVariable]
    gradients: list[Gradient | None]
    calls: dict[str, LayerCall]
    output_gradients: dict[str, Gradient | None]


def probe(model: Any, x: Any, compute_loss: Callable[[Any], Any]) -> Probe:
    """Calls a model on a batch as in training, and differentiates the loss.

    Weights, moving averages and metrics are as before afterwards. A model that is not
    built keeps the first weights that it gets.

    Args:
        model: A Keras model.
        x: The inputs of one batch.
        compute_loss: Makes the loss of the outputs.

    Raises:
        DataError: If the model cannot take the batch.
        ModelError: If it has nothing to train.
    """
    _build(model, x)
    layer_calls = LayerCalls(_architecture.layers_of(model))
    with _state_kept(model):
        with tf.GradientTape() as tape, layer_calls.watching():
            loss = compute_loss(_call(model, x, training=True))
        calls = {
            path: call
            for path, call in layer_calls.take().items()
            if call.output is not None and call.output.dtype.is_floating
        }
        variables = _trained(model)
        gradients, output_gradients = tape.gradient(
            loss,
            ([v.variable for v in variables], {p: c.output for p, c in calls.items()}),
        )
    return Probe(loss, variables, gradients, calls, output_gradients)


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
