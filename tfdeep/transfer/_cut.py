"""A model in two: the frozen part, and a head that shares the other variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._explain import explain, listing
from tfdeep._keras import _internals
from tfdeep._keras._graph import graph_nodes
from tfdeep._keras._inference_mode import acts_in_training
from tfdeep.errors import ModelError
from tfdeep.transfer import _graph, _key


@dataclasses.dataclass(frozen=True)
class Cut:
    """A model cut where its frozen part ends.

    Attributes:
        model: The model, with inner models spelled out where the cut runs through one.
        frozen: The frozen part, from the inputs to the boundary.
        head: The rest, from new inputs in the place of the boundary.
        part: The frozen part in the model's graph.
        head_nodes: The calls that the head repeats.
    """

    model: Any
    frozen: keras.Model
    head: keras.Model
    part: _graph.FrozenPart
    head_nodes: list[Any]

    @property
    def frozen_layers(self) -> tuple[str, ...]:
        """Names of the layers with weights in the frozen part."""
        return _weighted(self.part.nodes)

    @property
    def head_layers(self) -> tuple[str, ...]:
        """Names of the layers with weights in the head."""
        return _weighted(self.head_nodes)

    @property
    def is_of_keras(self) -> bool:
        """Whether all operations of the frozen part are Keras' own."""
        return all(_is_of_keras(node.operation) for node in self.part.nodes)

    def digests(self) -> list[str]:
        """For each tensor of the boundary, a digest of what it is computed from.

        Raises:
            ModelError: If a layer does not say what it computes.
        """
        digests = _key.of_tensors(self.model.inputs, self.part.nodes)
        return [digests[id(tensor)] for tensor in self.part.boundary]


def cut(model: Any, in_training: bool = False) -> Cut:
    """Cuts a model where its frozen part ends.

    Args:
        model: A Functional or Sequential model.
        in_training: Whether the frozen part may act in training, as augmentation does.

    Raises:
        ModelError: If nothing or everything is frozen, the model is no graph of layers,
            a layer before the boundary acts in training, or the boundary has a mask.
    """
    # A head made outside its scope would not be trained by the model's strategy.
    with getattr(model, "distribute_strategy", tf.distribute.get_strategy()).scope():
        return _cut(model, in_training)


def _cut(model: Any, in_training: bool) -> Cut:
    model = _graph.flatten(model)
    part = _graph.frozen_part(model)
    nodes = graph_nodes(model)
    kept = {id(node) for node in part.nodes}
    head_nodes = [node for node in nodes if id(node) not in kept]
    if not part.weighted or not head_nodes:
        what, call, which = "nothing", "freeze", "first"
        if part.weighted:
            what, call, which = "everything", "unfreeze", "last"
        raise ModelError(
            explain(
                f"There is nothing to gain from caching in `{model.name}`: {what} is "
                "frozen from the inputs on.",
                received=f"layers with weights: {listing(_weighted(nodes), limit=8)}",
                expected="frozen layers next to the inputs, and layers to train after "
                "them",
                fix=f"`tfdeep.{call}(model, include=...)` with the {which} layers' "
                "names; nothing was changed",
            )
        )
    acting = [n.operation.name for n in part.nodes if _acts_in_training(n.operation)]
    if acting and not in_training:
        raise ModelError(
            explain(
                "The frozen part does not compute the same in training as at "
                "inference, so its outputs cannot be cached.",
                received=f"layers that act in training: {listing(acting)}",
                expected="a frozen part that is the same at every epoch",
                fix="`variants=n` stores n passes of augmentation, or augment in the "
                "dataset; dropout and batch normalization among frozen layers run as "
                "at inference once `tfdeep.freeze(model, include=...)` has frozen "
                "those; nothing was changed",
            )
        )
    masked = [origin(tensor) for tensor in part.boundary if _internals.has_mask(tensor)]
    if masked:
        raise ModelError(
            explain(
                "What the frozen part gives carries a mask, which a cache would lose.",
                received=f"masked outputs of {listing(masked)}",
                expected="a boundary behind the layers that use the mask",
                fix="freeze up to the layer that ends the sequence, or build the "
                "embedding with mask_zero=False; nothing was changed",
            )
        )
    frozen = keras.Model(_graph.inputs_of(model), part.boundary, name="frozen")
    return Cut(model, frozen, _head(model, part, head_nodes), part, head_nodes)


def origin(tensor: Any) -> str:
    """Name of the layer that gives a tensor."""
    return str(_internals.producer(tensor).operation.name)


def _head(model: Any, part: _graph.FrozenPart, nodes: list[Any]) -> keras.Model:
    """The rest of the graph, from new inputs in the place of the boundary.

    `keras.Model(boundary, outputs)` fails where a layer that gives the boundary is
    called again behind it: Keras takes each of its calls for an input.
    """
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
        for tensor in part.boundary
    ]
    tensors = {id(t): x for t, x in zip(part.boundary, inputs, strict=True)}
    tensors = _graph.replay(nodes, tensors)
    outputs = keras.tree.map_structure(
        lambda t: tensors[id(t)], _graph.outputs_of(model)
    )
    return keras.Model(
        inputs if len(inputs) > 1 else inputs[0], outputs, name=f"{model.name}_head"
    )


def _is_of_keras(operation: Any) -> bool:
    if isinstance(operation, keras.layers.Lambda):
        return False
    is_known = type(operation).__module__.startswith("keras.")
    if not isinstance(operation, keras.Layer):
        return is_known
    return is_known and all(map(_is_of_keras, _internals.sublayers(operation)))


def _acts_in_training(operation: Any) -> bool:
    return isinstance(operation, keras.Layer) and acts_in_training(operation)


def _weighted(nodes: Sequence[Any]) -> tuple[str, ...]:
    names = [n.operation.name for n in nodes if _graph.has_weights(n)]
    return tuple(dict.fromkeys(names))
