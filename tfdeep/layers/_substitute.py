"""A call of a layer with other values in place of its variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


def call_with(
    layer: keras.layers.Layer,
    values: Sequence[tuple[keras.Variable, Any]],
    *args: Any,
    **kwargs: Any,
) -> tuple[Any, list[Any]]:
    """Calls a layer as if some of its variables had other values.

    The values are tensors that may depend on other variables, and gradients flow
    through them. What the layer assigns in the call (seeds, states) is kept.

    Args:
        layer: A layer that is built.
        values: Pairs of a variable of the layer and a tensor of its shape.
        *args: Arguments of the call.
        **kwargs: Arguments of the call.

    Returns:
        The outputs, and the losses that the layer added in the call.
    """
    variables = layer.variables
    # All of them: this scope hides the values of an outer one.
    mapping = [(v, v.value) for v in variables] + list(values)
    with keras.StatelessScope(mapping, collect_losses=True) as scope:
        before = [scope.get_current_value(v) for v in variables]
        outputs = layer(*args, **kwargs)
        after = [scope.get_current_value(v) for v in variables]
        losses = list(scope.losses)
    for variable, old, new in zip(variables, before, after, strict=True):
        if new is not old:
            variable.assign(new)
    return outputs, losses
