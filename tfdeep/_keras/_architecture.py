"""Describes a model in plain values: its layers, their weights, their order."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tfdeep._keras import _graph, _layer_facts, _variables, _walk


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """A layer that has weights or is an activation.

    Attributes:
        path: Names of the layers from the model inwards.
        kind: Name of its class.
        activation: Name of its activation function; "linear" if it has none.
        kernel: Path of the weight that multiplies its input, if it has one.
        recurrent_kernel: Path of the weight that multiplies its state, if any.
        bias: Path of its bias (of a normalization, beta), if it has one.
        units: Number of its outputs (of a convolution, its channels); 0 if unknown.
        fan_in: Number of inputs that each unit of the kernel sums over.
        gain: `sqrt(fan_in * mean(kernel**2))`: by what factor the kernel alone scales
            inputs that are independent and of zero mean.
        recurrent_gain: The same of the recurrent kernel.
        has_known_weights: Whether its weights are a kernel, a bias, or those of a
            normalization.
        is_trainable: Whether any of its weights is trained.
        is_untouched: Whether its weights look as they do before any training: the
            bias has one value for all units (of an LSTM, two), or the scale that its
            random initializer gives.
        is_symmetric: Whether all units of its kernel have the same weights, other than
            zero.
        inputs: Paths of the listed layers right before it; empty for the first.
        makes_output: Whether its output is one of the model's, by the model's graph.
        inputs_add_up: Whether, by the model's graph, only sums, reshaping, pooling and
            dropout come between `inputs` and it. Without a graph `inputs` is the layer
            before it in the order of the model's attributes.
        frozen_too_late: Whether it was frozen after the train step that Keras keeps
            was made, which goes on training it.
    """

    path: str
    kind: str
    activation: str = "linear"
    kernel: str | None = None
    recurrent_kernel: str | None = None
    bias: str | None = None
    units: int = 0
    fan_in: int = 0
    gain: float = float("nan")
    recurrent_gain: float = float("nan")
    has_known_weights: bool = True
    is_trainable: bool = True
    is_untouched: bool = False
    is_symmetric: bool = False
    inputs: tuple[str, ...] = ()
    inputs_add_up: bool = False
    makes_output: bool = False
    frozen_too_late: bool = False

    @property
    def has_own_rule(self) -> bool:
        """Whether it has weights whose names do not show what they do."""
        name = (self.kernel or "kernel").rpartition("/")[2]
        return not self.has_known_weights or not name.endswith(("kernel", "embeddings"))

    @property
    def is_embedding(self) -> bool:
        """Whether its kernel is a table, of which each input picks a row."""
        return self.kind.endswith("Embedding")

    @property
    def is_normalization(self) -> bool:
        """Whether it brings its input to a fixed scale."""
        return _layer_facts.is_normalization(self.kind)


def layers_of(model: Any) -> dict[str, Any]:
    """The layers of a model that have weights of their own or are activations.

    Returns:
        The layers by their path, in the order of the model's graph, or else of its
        attributes.
    """
    found = _walk.layers(model, is_closed=_is_recurrent)
    return {path: layer for path, layer in found.items() if _counts(layer)}


def _is_recurrent(layer: Any) -> bool:
    """Whether a layer runs others in a loop, into which nobody sees from outside."""
    return isinstance(layer, keras.layers.RNN)


def _counts(layer: Any) -> bool:
    if _is_recurrent(layer) or _variables.own_weights(layer):
        return True
    return _layer_facts.activation_name(layer) is not None and not isinstance(
        layer, keras.layers.Softmax
    )


def describe(model: Any) -> tuple[LayerInfo, ...]:
    """Describes the layers of a built model, in order, with the weights they have now.

    Args:
        model: A Keras model that has its weights.
    """
    layers = layers_of(model)
    owned: dict[str, list[_variables.ModelVariable]] = {path: [] for path in layers}
    for variable in _variables.model_variables(model):
        path = variable.layer_path
        while path and path not in owned:  # a cell's weights belong to its layer
            path = path.rpartition("/")[0]
        if path:
            owned[path].append(variable)
    inputs, add_up, outputs = _inputs(model, layers)
    return tuple(
        dataclasses.replace(
            _described(path, layer, owned[path]),
            inputs=inputs[path],
            inputs_add_up=path in add_up,
            makes_output=path in outputs,
        )
        for path, layer in layers.items()
    )


def _described(
    path: str,
    layer: Any,
    variables: list[_variables.ModelVariable],
) -> LayerInfo:
    matrices = [v for v in variables if len(v.variable.shape) >= 2]
    recurrent = [v for v in matrices if "recurrent" in v.variable.name]
    kernels = [v for v in matrices if v not in recurrent]
    biases = [v for v in variables if v.variable.name in ("bias", "beta")]
    kernel = kernels[0] if kernels else None
    facts: dict[str, Any] = {}
    if kernel is not None:
        facts = _facts(kernel)
    if recurrent:
        facts["units"] = int(recurrent[0].variable.shape[0])  # not those of each gate
        facts["recurrent_gain"] = _facts(recurrent[0]).get("gain", math.nan)
    return LayerInfo(
        path=path,
        kind=type(layer).__name__,
        activation=_layer_facts.activation_name(layer) or "linear",
        kernel=kernel.path if kernel else None,
        recurrent_kernel=recurrent[0].path if recurrent else None,
        bias=biases[0].path if biases else None,
        has_known_weights=kernel is not None
        or not variables
        or _layer_facts.is_normalization(type(layer).__name__),
        is_trainable=not variables or any(v.variable.trainable for v in variables),
        is_untouched=bool(biases) and all(_is_as_made(b) for b in biases),
        **facts,
    )


def _is_as_made(bias: _variables.ModelVariable) -> bool:
    values = np.unique(bias.variable.numpy())
    is_constant = len(values) == 1 and math.prod(bias.variable.shape) > 1
    is_lstm = bool(len(values) == 2 and {0.0, 1.0}.issuperset(values.tolist()))
    return is_constant or is_lstm or not values.any() or _is_as_drawn(bias)


_RANDOM = (
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.VarianceScaling,
)


def _is_as_drawn(bias: _variables.ModelVariable) -> bool:
    """Whether a bias has the scale that its random initializer gives."""
    initializer = getattr(bias.layer, f"{bias.variable.name}_initializer", None)
    if not isinstance(initializer, _RANDOM):
        return False
    drawn, found = (
        float(np.sqrt(np.mean(np.square(values))))
        for values in (
            initializer(bias.variable.shape),
            bias.variable.numpy(),
        )
    )
    return 0.5 * drawn < found < 2 * drawn


def _facts(kernel: _variables.ModelVariable) -> dict[str, Any]:
    """What the values of a weight say."""
    values = np.asarray(kernel.variable.numpy()).astype(np.float32)
    if values.shape != tuple(kernel.variable.shape):
        return {}  # a model that is built inside a traced step has no values yet
    name, rank = kernel.variable.name, values.ndim
    known = _layer_facts.kernel_axes(name, rank, kernel.layer)
    if known is not None and known.is_embedding:  # its rows are inputs, not units
        axes = known.separate
    else:
        axes = _layer_facts.unit_axes(kernel.variable, kernel.layer)
    fan_in = math.prod(values.shape[i] for i in axes)
    by_unit = np.moveaxis(values, axes, range(len(axes))).reshape(fan_in, -1)
    return {
        "fan_in": fan_in,
        "units": by_unit.shape[1],
        "gain": float(np.sqrt(fan_in * np.mean(np.square(values)))),
        "is_symmetric": bool(by_unit.any() and (by_unit == by_unit[:, :1]).all()),
    }


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a tensor comes from: the last listed layers, and what came after them."""

    layers: tuple[str, ...] = ()
    adds_up: bool = True


def _joined(sources: Iterable[_Source]) -> _Source:
    sources = list(sources)
    paths = dict.fromkeys(path for source in sources for path in source.layers)
    return _Source(tuple(paths), all(source.adds_up for source in sources))


def _inputs(
    model: Any, layers: dict[str, Any]
) -> tuple[dict[str, tuple[str, ...]], set[str], tuple[str, ...]]:
    """The listed layers right before each; those whose inputs add up; the last ones."""
    paths = {id(layer): path for path, layer in layers.items()}
    before: dict[str, tuple[str, ...]] = {}
    add_up: set[str] = set()
    last: tuple[str, ...] = ()
    for path in layers:  # without a graph: one after the other
        before[path] = last
        last = (path,)

    if not _graph.is_graph(model):
        return before, add_up, ()

    def enter(names: list[str], source: _Source) -> None:
        before.update(dict.fromkeys(names, source.layers))
        if source.adds_up:
            add_up.update(names)
        else:
            add_up.difference_update(names)  # of a layer that is called again

    calls, outputs = _walk.calls(model)
    sources: dict[_walk.Call, _Source] = {}
    for call in calls:
        source = _joined(sources[earlier] for earlier in call.before)
        if id(call.layer) in paths:
            enter([paths[id(call.layer)]], source)
            source = _Source((paths[id(call.layer)],))
        elif inside := _listed_inside(call.layer, paths):
            if isinstance(call.layer, keras.layers.MultiHeadAttention):
                enter(inside[:-1], source)
                add_up.add(inside[-1])  # it averages the values
            else:  # a layer of layers: in order
                before[inside[0]] = source.layers
            source = _Source((inside[-1],))
        elif not _only_adds_up(call.layer):
            source = dataclasses.replace(source, adds_up=False)
        sources[call] = source
    return before, add_up, _joined(sources[call] for call in outputs).layers


def _listed_inside(operation: Any, paths: dict[int, str]) -> list[str]:
    """The paths of the listed layers inside a layer, in the order of the list."""
    if not isinstance(operation, keras.layers.Layer):
        return []
    inner = {id(layer) for layer in _walk.layers(operation).values()}
    return [path for key, path in paths.items() if key in inner]


# Keras' own layers and operations that leave a signal at about its scale.
_ADDS_UP = re.compile(
    r"Add|Subtract|Mean|Max|GetItem|Cast|Identity|Masking"
    r"|InputLayer|Flatten|Reshape|Permute|Transpose|Squeeze|ExpandDims|RepeatVector"
    r"|(Cropping|ZeroPadding|UpSampling|(Global)?(Max|Average)Pooling)[123]D|Resizing"
    r"|\w*Dropout(1D|2D|3D)?|GaussianNoise|ActivityRegularization|Random\w+"
    r"|Relu|Gelu|Silu"
)


def _only_adds_up(operation: Any) -> bool:
    kind = type(operation)
    is_own = kind.__module__.startswith("keras.")
    return is_own and _ADDS_UP.fullmatch(kind.__name__) is not None
