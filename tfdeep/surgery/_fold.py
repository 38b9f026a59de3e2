"""Batch normalization folded into the layers around it, for faster inference."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import keras
import numpy as np

from tfdeep._core._explain import a_type
from tfdeep._core._records import Record, render_table, shorten
from tfdeep._keras import _internals
from tfdeep._keras._graph import graph_nodes, is_graph
from tfdeep._keras._walk import layers_of_kind
from tfdeep.surgery._affine import (
    AffineWeights,
    channel_axis,
    is_affine,
    is_linear,
    mixes_in_zeros,
)

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class NormFold:
    """What became of one batch normalization.

    Attributes:
        path: Its path in the model.
        into: Path of the layer that took it in; None if it was kept.
        reason: Why it was kept; empty if it was folded.
    """

    path: str
    into: str | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class FoldReport(Record):
    """Which batch normalizations were folded, and why the others were not.

    Attributes:
        model: Name of the model.
        folds: One entry for each batch normalization of the model.
        weights_before: Number of weights (single numbers) of the model.
        weights_after: The same of the new one.
    """

    model: str
    folds: tuple[NormFold, ...]
    weights_before: int
    weights_after: int

    @property
    def folded(self) -> tuple[str, ...]:
        """Paths of the batch normalizations that are gone."""
        return tuple(fold.path for fold in self.folds if fold.into is not None)

    @property
    def kept(self) -> tuple[str, ...]:
        """Paths of those that are left."""
        return tuple(fold.path for fold in self.folds if fold.into is None)

    def __str__(self) -> str:
        rows = [
            (fold.path, fold.into or "-", f"kept: {fold.reason}" if fold.reason else "")
            for fold in self.folds
        ]
        return render_table(
            f"{self.model}: {len(self.folded)} of {len(self.folds)} batch "
            f"normalizations folded, {self.weights_before:,} weights became "
            f"{self.weights_after:,}",
            ["batch normalization", "into", ""],
            shorten(rows, _MOST_ROWS),
        )


def fold_batch_norm(model: Any) -> tuple[keras.Model, FoldReport]:
    """Makes a model for inference whose batch normalizations are part of its kernels.

    Use it before serving: at inference a batch normalization is a scale and a shift
    for each channel, which the layer before it can take in:

        s = gamma / sqrt(var + epsilon),   t = beta - mean * s
        W <- W * s,    b <- b * s + t

    or else the layer after it, where that is exact: W <- s W, b <- b + W t. Layers
    that take one in: `Dense` and convolutions (plain, grouped, dilated, depthwise,
    separable and, of the layer before, transposed). Kept, with the reason in the
    report: what has an activation or another layer between, a layer that is called
    several times or read by several others, and a convolution after the normalization
    that pads with zeros, which the shift must not reach.

    The new model computes at inference what `model` does, to the rounding of its
    dtype. It is not for training: layers without change are the same objects in both
    models; those that took a normalization in are new, keep their names, and have
    neither regularizers nor constraints. `model` is not changed. After more training
    of it, fold it again.

    Args:
        model: A built Functional or Sequential model; inner models are folded too.

    Returns:
        A Functional `keras.Model`, not compiled, and a `tfdeep.surgery.FoldReport`,
        which prints as a table.

    Raises:
        ModelError: If the model is no graph of layers.

    Example:

    >>> model = tfdeep.models.dnn((4,), [3, 3], num_outputs=2, batch_norm=True)
    >>> folded, report = tfdeep.surgery.fold_batch_norm(model)
    >>> report.folds[0].path, report.folds[0].into
    ('hidden1/batch_norm', 'hidden1/dense')
    >>> x = np.ones((1, 4), "float32")
    >>> bool(np.allclose(model.predict(x, verbose=0), folded.predict(x, verbose=0)))
    True

    Reference:
        Jacob et al., 2018, https://arxiv.org/abs/1712.05877 (section 3.2).
    """
    plan = _Plan(model)
    folded = plan.build(model)
    return folded, FoldReport(
        model=model.name,
        folds=tuple(
            plan.folds.get(id(layer), NormFold(path, None, "inside a layer of its own"))
            for path, layer in layers_of_kind(
                model, keras.layers.BatchNormalization
            ).items()
        ),
        weights_before=model.count_params(),
        weights_after=folded.count_params(),
    )


class _Plan:
    """What is folded into what; nothing is built before all is decided."""

    def __init__(self, model: Any) -> None:
        self.folds: dict[int, NormFold] = {}
        self._weights: dict[int, AffineWeights] = {}  # by the layer that takes in
        self._dropped: dict[int, Any] = {}  # the input of a folded one by its output
        self._built: dict[int, Any] = {}
        self._graphs = _graphs(model)
        self._paths = {
            id(node.operation): prefix + node.operation.name
            for prefix, _, nodes in self._graphs
            for node in nodes
        }
        self._calls = collections.Counter(
            id(node.operation) for _, _, nodes in self._graphs for node in nodes
        )
        for _, graph, nodes in self._graphs:
            readers = _readers(graph, nodes)
            for node in nodes:
                if isinstance(node.operation, keras.layers.BatchNormalization):
                    self._decide(node, readers)

    def _decide(self, node: Any, readers: dict[int, list[Any]]) -> None:
        norm = node.operation
        path = self._paths[id(norm)]
        taker, reason = self._taker(node, readers)
        if taker is None:
            self.folds[id(norm)] = NormFold(path, None, reason)
            return
        self.folds[id(norm)] = NormFold(path, self._paths[id(taker)])
        self._dropped[id(node.output_tensors[0])] = node.input_tensors[0]

    def _taker(self, node: Any, readers: dict[int, list[Any]]) -> tuple[Any, str]:
        """The layer that takes a normalization in, or why there is none."""
        norm = node.operation
        if type(norm) is not keras.layers.BatchNormalization:
            return None, f"is {a_type(norm)}"
        if self._calls[id(norm)] > 1:
            return None, "is called several times"
        args, kwargs = _internals.call_arguments(node, _themselves(node))
        if any(given is True for given in [*args, kwargs.get("training")]):
            return None, "is called with training=True"
        scale, shift = _scale_and_shift(norm)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            return None, "its weights are not finite"
        before, not_before = self._layer_before(node, readers)
        if before is not None:
            self._weights_of(before).scale_outputs(scale, shift)
            return before, ""
        after, not_after = self._layer_after(node, readers)
        if after is not None:
            self._weights_of(after).scale_inputs(scale, shift)
            return after, ""
        return None, f"{not_before}; {not_after}"

    def _weights_of(self, layer: Any) -> AffineWeights:
        return self._weights.setdefault(id(layer), AffineWeights.of(layer))

    def _layer_before(
        self, node: Any, readers: dict[int, list[Any]]
    ) -> tuple[Any, str]:
        tensor = node.input_tensors[0]
        if len(readers[id(tensor)]) > 1:
            return None, "what it normalizes is read by others too"
        source = tensor
        while id(source) in self._dropped:
            source = self._dropped[id(source)]
        layer = _internals.producer(source).operation
        if not is_affine(layer):
            return None, f"{_described(layer)} before it"
        if not is_linear(layer):
            return None, f"the activation of {layer.name} before it"
        return self._checked(layer, node.operation, len(tensor.shape))

    def _layer_after(self, node: Any, readers: dict[int, list[Any]]) -> tuple[Any, str]:
        reading = readers[id(node.output_tensors[0])]
        if len(reading) > 1:
            return None, "several read it"
        if reading[0] is None:
            return None, "the output of the model after it"
        layer = reading[0].operation
        if not is_affine(layer):
            return None, f"{_described(layer)} after it"
        if mixes_in_zeros(layer):
            return None, f"the zero padding of {layer.name} after it"
        return self._checked(layer, node.operation, len(node.input_tensors[0].shape))

    def _checked(self, layer: Any, norm: Any, rank: int) -> tuple[Any, str]:
        if self._calls[id(layer)] > 1:
            return None, f"{layer.name} is shared"
        if channel_axis(layer, rank) != norm.axis % rank:
            return None, f"normalizes another axis than the channels of {layer.name}"
        return layer, ""

    def build(self, model: Any) -> keras.Model:
        """The model, or one inside it, with what was decided."""
        if id(model) in self._built:
            return self._built[id(model)]
        tensors = {id(tensor): tensor for tensor in model.inputs}
        for node in graph_nodes(model):
            operation = node.operation
            given = [tensors[id(tensor)] for tensor in node.input_tensors]
            if id(node.output_tensors[0]) in self._dropped:
                outputs = given
            elif id(operation) in self._weights:
                outputs = [self._weights[id(operation)].call(given[0])]
            else:
                if self._changes(operation):
                    operation = self.build(operation)
                args, kwargs = _internals.call_arguments(node, tensors)
                outputs = keras.tree.flatten(operation(*args, **kwargs))
            for old, new in zip(node.output_tensors, outputs, strict=True):
                tensors[id(old)] = new
        # A Sequential has one input and one output; its `input` is a list of it.
        is_sequential = isinstance(model, keras.Sequential)
        self._built[id(model)] = keras.Model(
            model.inputs[0] if is_sequential else model.input,
            keras.tree.map_structure(
                lambda tensor: tensors[id(tensor)],
                model.outputs[0] if is_sequential else model.output,
            ),
            name=model.name,
        )
        return self._built[id(model)]

    def _changes(self, operation: Any) -> bool:
        """Whether an operation is a model in which something is folded."""
        if not is_graph(operation):
            return False
        return any(
            id(node.operation) in self._weights or self._changes(node.operation)
            for node in graph_nodes(operation)
        )


def _graphs(model: Any) -> list[tuple[str, Any, list[Any]]]:
    """A model and those inside it, once each: prefix of its paths, graph and nodes."""
    found: dict[int, tuple[str, Any, list[Any]]] = {}

    def visit(graph: Any, prefix: str) -> None:
        nodes = graph_nodes(graph)
        found[id(graph)] = (prefix, graph, nodes)
        for node in nodes:
            inner = node.operation
            if is_graph(inner) and id(inner) not in found:
                visit(inner, f"{prefix}{inner.name}/")

    visit(model, "")
    return list(found.values())


def _readers(graph: Any, nodes: list[Any]) -> dict[int, list[Any]]:
    """The nodes that read each tensor; None means the outputs of the graph."""
    readers: dict[int, list[Any]] = collections.defaultdict(list)
    for node in nodes:
        for tensor in node.input_tensors:
            readers[id(tensor)].append(node)
    for tensor in graph.outputs:
        readers[id(tensor)].append(None)
    return readers


def _themselves(node: Any) -> dict[int, Any]:
    return {id(tensor): tensor for tensor in node.input_tensors}


def _scale_and_shift(norm: Any) -> tuple[Any, Any]:
    """A batch normalization at inference as y = x * s + t, in float64."""

    def values(variable: Any, default: float) -> Any:
        return default if variable is None else np.float64(variable.numpy())

    variance, mean = values(norm.moving_variance, 1.0), values(norm.moving_mean, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = values(norm.gamma, 1.0) / np.sqrt(variance + norm.epsilon)
    return scale, values(norm.beta, 0.0) - mean * scale


def _described(operation: Any) -> str:
    if isinstance(operation, keras.layers.InputLayer):
        return "the input"
    return f"{type(operation).__name__} {operation.name}"
