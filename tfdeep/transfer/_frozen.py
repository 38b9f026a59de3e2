"""The frozen part of a model, as it is run to cache what it gives."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._explain import explain, listing
from tfdeep.errors import DataError, ModelError
from tfdeep.transfer._cut import Cut


class FrozenPart:
    """The frozen part of a model, run on all replicas that this process has.

    Args:
        cut: The model, cut where its frozen part ends.
        in_training: Whether the frozen part acts as in training. If not, and it has
            layers that are not Keras' own, the first batch runs twice to see that it
            gives the same each time.
        storage_dtype: What features of floating dtypes are rounded to, if anything.

    Attributes:
        order: Which tensors of the boundary to give, in which order.
        seconds: How long it has run.
        rounding: Largest difference that `storage_dtype` has made to a feature,
            relative to the largest feature.
    """

    def __init__(self, cut: Cut, in_training: bool, storage_dtype: str | None) -> None:
        self.order: Sequence[int] = range(len(cut.part.boundary))
        self.seconds = 0.0
        self.rounding = 0.0
        self._model = cut.frozen
        self._dtype = storage_dtype
        self._strategy = cut.model.distribute_strategy
        self._to_check = not in_training and not cut.is_of_keras
        self._run = tf.function(
            lambda x: keras.tree.flatten(cut.frozen(x, training=in_training)),
            reduce_retracing=True,
        )

    def __call__(self, x: Any) -> list[tf.Tensor]:
        """The features of a batch, one tensor for each of `order`.

        Raises:
            ModelError: If the frozen part gives something else the second time, or
                changes its own weights. They are put back.
            DataError: If a feature is too large for the storage dtype.
        """
        if self._to_check:
            self._check_repeats(x)
            self._to_check = False
        started = time.perf_counter()
        outputs = self._on_replicas(x)
        features = [self._stored(outputs[i]) for i in self.order]
        self.seconds += time.perf_counter() - started
        return features

    def stored_dtype(self, dtype: Any) -> str:
        """Name of the dtype in which features of a dtype are stored."""
        dtype = tf.as_dtype(dtype)
        is_rounded = self._dtype is not None and dtype.is_floating
        return str(self._dtype) if is_rounded else dtype.name

    def _check_repeats(self, x: Any) -> None:
        before = [w.numpy() for w in self._model.weights]
        first, second = self._on_replicas(x), self._on_replicas(x)
        changed = []
        for weight, value in zip(self._model.weights, before, strict=True):
            if not np.array_equal(weight.numpy(), value, equal_nan=_floats(value)):
                weight.assign(value)
                changed.append(weight.path)
        if changed:
            raise ModelError(
                explain(
                    "The frozen part changes its own weights when it runs, so its "
                    "outputs cannot be cached.",
                    received=f"weights that changed at inference: {listing(changed)}",
                    expected="layers that only read their weights at inference",
                    fix="leave these layers to the head, or freeze up to the layer "
                    "before them; the weights were put back",
                )
            )
        if not all(map(_same, first, second)):
            raise ModelError(
                explain(
                    "The frozen part is not deterministic: the same batch gave other "
                    "features the second time.",
                    received="a layer that draws random numbers at inference",
                    expected="the same features for the same examples",
                    fix="`variants=n` stores n passes of it; nothing was changed",
                )
            )

    def _on_replicas(self, x: Any) -> list[tf.Tensor]:
        strategy = self._strategy
        rows = int(tf.shape(keras.tree.flatten(x)[0])[0])
        places = strategy.experimental_local_results(
            strategy.experimental_distribute_values_from_function(
                lambda context: context.replica_id_in_sync_group
            )
        )
        if len(places) == 1:
            return list(self._run(x))
        edges = np.linspace(0, rows, len(places) + 1).astype(int)
        pieces = [
            keras.tree.map_structure(lambda t, a=a, b=b: t[a:b], x)
            for a, b in itertools.pairwise(edges)
        ]
        first = min(int(place) for place in places)
        values = strategy.experimental_distribute_values_from_function(
            lambda context: pieces[context.replica_id_in_sync_group - first]
        )
        outputs = strategy.run(self._run, (values,))
        return [
            tf.concat(strategy.experimental_local_results(output), 0)
            for output in outputs
        ]

    def _stored(self, tensor: tf.Tensor) -> tf.Tensor:
        if self._dtype is None or not tensor.dtype.is_floating:
            return tensor
        stored = tf.cast(tensor, self._dtype)
        largest = float(tf.reduce_max(abs(tensor)))
        if not bool(tf.reduce_all(tf.math.is_finite(stored))):
            raise DataError(
                explain(
                    f"Features do not fit {self._dtype}.",
                    received=f"features up to {largest:.3g}",
                    expected=f"at most {float(stored.dtype.max):.3g}",
                    fix="storage_dtype='bfloat16', or None to store them as they are",
                )
            )
        if largest > 0:
            error = float(tf.reduce_max(abs(tf.cast(stored, tensor.dtype) - tensor)))
            self.rounding = max(self.rounding, error / largest)
        return stored


def _same(first: tf.Tensor, second: tf.Tensor) -> bool:
    """Equal but for the order in which a device may sum."""
    a, b = first.numpy(), second.numpy()
    if not _floats(a):
        return np.array_equal(a, b)
    a, b = a.astype("float64"), b.astype("float64")
    scale = np.abs(a).max(initial=0.0)
    return np.allclose(a, b, rtol=0.0, atol=1e-3 * scale, equal_nan=True)


def _floats(values: np.ndarray) -> bool:
    return bool(tf.dtypes.as_dtype(values.dtype).is_floating)
