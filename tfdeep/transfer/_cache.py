"""Runs the frozen part of a model once and trains the rest on what it gave."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeep._core import _keras_internals
from tfdeep._core._explain import explain, listing
from tfdeep._core._graph import graph_nodes
from tfdeep._core._records import Record, human_bytes, render_table
from tfdeep.errors import DataError, InvalidArgumentError, ModelError
from tfdeep.transfer import _graph
from tfdeep.transfer._inference_mode import acts_in_training


@dataclasses.dataclass(frozen=True)
class CachedTensor:
    """One tensor of the frozen boundary.

    Attributes:
        layer: Name of the layer that gives it.
        shape: Its shape for one example.
        dtype: Its dtype.
    """

    layer: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class CacheReport(Record):
    """What was cached, and what it cost.

    Attributes:
        frozen_layers: Names of the layers with weights that ran once.
        head_layers: Names of the layers with weights that are left to train or run.
        boundary: The tensors that are cached for each example.
        examples: Number of examples.
        batches: Number of batches.
        bytes: Size of the cached features, labels and weights, in bytes.
        seconds: Time that running the frozen part took, in seconds.
    """

    frozen_layers: tuple[str, ...]
    head_layers: tuple[str, ...]
    boundary: tuple[CachedTensor, ...]
    examples: int
    batches: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return render_table(
            f"Cached {self.examples:,} examples in {self.batches:,} batches: "
            f"{human_bytes(self.bytes)} in memory, {self.seconds:.2f} s",
            ["boundary", "shape", "dtype"],
            [(tensor.layer, tensor.shape, tensor.dtype) for tensor in self.boundary],
            notes=[
                f"ran once: {listing(self.frozen_layers, limit=8)}",
                f"left to train: {listing(self.head_layers, limit=8)}",
            ],
        )


def cache_frozen(
    model: Any,
    dataset: Any,
    cache_dir: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
) -> tuple[keras.Model, tf.data.Dataset, CacheReport]:
    """Runs a model's frozen part over a dataset once, and gives back the rest.

    Use it to fine-tune: frozen layers give the same outputs at every epoch, so they
    need to run only once. Training the head on the features gives the weights that
    training the whole model on the dataset gives, batch for batch. The head shares
    the model's variables: after training it, the model is trained.

    The boundary is found from the `trainable` flags. It may consist of several
    tensors, as within a residual block, and may run through an inner model.

    The dataset is read once, so the features keep the order of that reading: a
    dataset that is shuffled anew for each epoch is not shuffled anew any more.
    Shuffle `features` instead.

    Args:
        model: A Functional or Sequential model with frozen layers.
        dataset: A finite `tf.data.Dataset` of `(inputs, labels)` or `(inputs, labels,
            sample_weights)`, in batches or, with `batch_size`, of single examples.
        cache_dir: Not used yet: the cache is held in memory. Leave it at None.
        batch_size: Number of examples a batch. None keeps the dataset's batches.

    Returns:
        The head (a `keras.Model` to compile and fit), the features (a
        `tf.data.Dataset` of `(features, labels)` or `(features, labels,
        sample_weights)` for it) and a `tfdeep.transfer.CacheReport`.

    Raises:
        ModelError: If nothing or everything is frozen, the model is no graph of
            layers, or a layer before the boundary acts in training.
        DataError: If the dataset has no labels, no known end, or does not fit the
            model.
        InvalidArgumentError: If `cache_dir` is given, or `batch_size` is not a whole
            number > 0.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> _ = tfdeep.freeze(model, include="hidden1")
    >>> x, y = np.ones((10, 4), "float32"), np.zeros(10)
    >>> dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    >>> head, features, report = tfdeep.cache_frozen(model, dataset)
    >>> [layer.name for layer in head.layers[1:]], report.examples
    (['hidden2', 'outputs'], 10)
    """
    _check_arguments(cache_dir, batch_size)
    trunk, head, part, head_nodes = _cut(model)
    dataset = _checked_dataset(model, dataset, batch_size)

    started = time.perf_counter()
    batches = _run(trunk, dataset)
    seconds = time.perf_counter() - started
    features, size = _in_memory(batches)
    report = CacheReport(
        frozen_layers=_weighted(part.nodes),
        head_layers=_weighted(head_nodes),
        boundary=tuple(
            CachedTensor(_origin(t), tuple(t.shape[1:]), str(t.dtype))
            for t in part.boundary
        ),
        examples=sum(int(_rows(batch)) for batch in batches),
        batches=len(batches),
        bytes=size,
        seconds=seconds,
    )
    return head, features, report


def _cut(model: Any) -> tuple[keras.Model, keras.Model, _graph.FrozenPart, list[Any]]:
    model = _graph.flatten(model)
    part = _graph.frozen_part(model)
    nodes = graph_nodes(model)
    kept = {id(node) for node in part.nodes}
    head_nodes = [node for node in nodes if id(node) not in kept]
    if not part.weighted or not head_nodes:
        all_frozen = "everything is frozen" if part.weighted else "nothing is frozen"
        raise ModelError(
            explain(
                f"There is nothing to gain from caching in `{model.name}`: "
                f"{all_frozen} from the inputs on.",
                received=f"layers with weights: {listing(_weighted(nodes), limit=8)}",
                expected="frozen layers next to the inputs, and layers to train after "
                "them",
                fix="`tfdeep.freeze(model, include=...)` with the first layers' names; "
                "nothing was changed",
            )
        )
    acting = [n.operation.name for n in part.nodes if _acts_in_training(n.operation)]
    if acting:
        raise ModelError(
            explain(
                "The frozen part does not compute the same in training as at "
                "inference, so its outputs cannot be cached.",
                received=f"layers that act in training: {listing(acting)}",
                expected="a frozen part that is the same at every epoch",
                fix="`tfdeep.freeze(model, include=...)` makes frozen layers, and "
                "those between them, run as at inference; move augmentation and "
                "noise before them into the dataset; nothing was changed",
            )
        )
    masked = [
        _origin(tensor) for tensor in part.boundary if _keras_internals.has_mask(tensor)
    ]
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
    trunk = keras.Model(_graph.inputs_of(model), part.boundary, name="frozen")
    return trunk, _head(model, part, head_nodes), part, head_nodes


def _head(model: Any, part: _graph.FrozenPart, nodes: list[Any]) -> keras.Model:
    """The rest of the graph, from new inputs in the place of the boundary."""
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


def _acts_in_training(operation: Any) -> bool:
    return isinstance(operation, keras.Layer) and acts_in_training(operation)


def _run(trunk: keras.Model, dataset: tf.data.Dataset) -> list[tuple[Any, ...]]:
    """Each batch with its inputs replaced by the trunk's outputs."""
    run = tf.function(lambda x: trunk(x, training=False), reduce_retracing=True)
    batches = []
    for x, *rest in dataset:
        outputs = keras.tree.flatten(run(x))
        batches.append((tuple(outputs) if len(outputs) > 1 else outputs[0], *rest))
    return batches


def _in_memory(batches: Sequence[tuple[Any, ...]]) -> tuple[tf.data.Dataset, int]:
    """A dataset that gives the batches again, and its size in bytes."""
    table = keras.tree.map_structure(lambda *rows: tf.concat(rows, 0), *batches)
    size = sum(
        int(tf.size(rows)) * rows.dtype.size for rows in keras.tree.flatten(table)
    )
    sizes = [int(_rows(batch)) for batch in batches]
    is_regular = all(n == sizes[0] for n in sizes[:-1]) and sizes[-1] <= sizes[0]
    if is_regular:
        return tf.data.Dataset.from_tensor_slices(table).batch(sizes[0]), size

    ends = tf.cumsum(tf.constant(sizes, tf.int64))
    starts = ends - sizes

    def batch(i: tf.Tensor) -> Any:
        return keras.tree.map_structure(lambda rows: rows[starts[i] : ends[i]], table)

    return tf.data.Dataset.range(len(batches)).map(batch), size


def _check_arguments(cache_dir: Any, batch_size: Any) -> None:
    if cache_dir is not None:
        raise InvalidArgumentError(
            explain(
                "`cache_frozen` cannot write to disk yet.",
                received=f"cache_dir={os.fspath(cache_dir)!r}",
                expected="cache_dir=None; the cache is held in memory",
                fix="leave `cache_dir` out; nothing was written",
            )
        )
    is_whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if batch_size is not None and (not is_whole or batch_size < 1):
        raise InvalidArgumentError(
            explain(
                "`cache_frozen` cannot make batches of this size.",
                received=f"batch_size={batch_size!r}",
                expected="a whole number > 0, in examples, or None to keep the "
                "dataset's batches",
                fix="for example `batch_size=32`",
            )
        )


def _checked_dataset(
    model: Any, dataset: Any, batch_size: int | None
) -> tf.data.Dataset:
    """The dataset in batches, if it fits the model and ends."""
    if not isinstance(dataset, tf.data.Dataset):
        raise DataError(
            explain(
                "`cache_frozen` reads a dataset.",
                received=f"a {type(dataset).__name__}",
                expected="a `tf.data.Dataset` of (inputs, labels)",
                fix="`tf.data.Dataset.from_tensor_slices((x, y)).batch(32)`",
            )
        )
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise DataError(
            explain(
                "The dataset has no labels; the head could not be trained on it.",
                received=f"elements of {_described(spec)}",
                expected="tuples of (inputs, labels) or (inputs, labels, "
                "sample_weights)",
                fix="`tf.data.Dataset.zip((inputs, labels))`; nothing was changed",
            )
        )
    if int(dataset.cardinality()) < 0:
        endless = int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY
        raise DataError(
            explain(
                "The dataset does not say where it ends.",
                received="a dataset without end" if endless else "an unknown length",
                expected="a dataset of known length",
                fix="`dataset.take(n)`"
                if endless
                else "`dataset.apply(tf.data.experimental.assert_cardinality(n))`, "
                "where n counts its elements",
            )
        )
    if int(dataset.cardinality()) == 0:
        raise DataError(
            explain(
                "The dataset is empty.",
                received="0 elements",
                expected="at least one",
                fix="check the files or filters it is made of; nothing was changed",
            )
        )
    return _in_batches(model, dataset, batch_size)


def _in_batches(
    model: Any, dataset: tf.data.Dataset, batch_size: int | None
) -> tf.data.Dataset:
    given = [tuple(s.shape) for s in keras.tree.flatten(dataset.element_spec[0])]
    wanted = [tuple(tensor.shape) for tensor in model.inputs]
    if len(given) == len(wanted):
        if all(map(_fits, given, wanted)):
            if batch_size is None:
                return dataset
            return dataset.unbatch().batch(batch_size)
        if all(map(_fits, [(None, *shape) for shape in given], wanted)):
            if batch_size is not None:
                return dataset.batch(batch_size)
            raise DataError(
                explain(
                    "The dataset gives single examples.",
                    received=f"inputs of shape {listing(given)}",
                    expected=f"batches of shape {listing(wanted)}",
                    fix="`dataset.batch(32)`, or pass `batch_size=32`",
                )
            )
    raise DataError(
        explain(
            "The dataset does not fit the model.",
            received=f"inputs of shape {listing(given)}",
            expected=f"inputs of shape {listing(wanted)}",
            fix="check the dataset's `element_spec` against `model.inputs`; nothing "
            "was changed",
        )
    )


def _fits(given: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(given) == len(wanted) and all(
        g is None or w is None or g == w for g, w in zip(given, wanted, strict=True)
    )


def _described(spec: Any) -> str:
    if isinstance(spec, tuple):
        return f"{len(spec)} parts"
    if isinstance(spec, dict):
        return f"a dict of {listing(spec)}"
    return f"one tensor of shape {getattr(spec, 'shape', '?')}"


def _rows(batch: tuple[Any, ...]) -> tf.Tensor:
    return tf.shape(keras.tree.flatten(batch)[0])[0]


def _weighted(nodes: Sequence[Any]) -> tuple[str, ...]:
    names = [n.operation.name for n in nodes if _graph.has_weights(n)]
    return tuple(dict.fromkeys(names))


def _origin(tensor: Any) -> str:
    return str(_keras_internals.producer(tensor).operation.name)
