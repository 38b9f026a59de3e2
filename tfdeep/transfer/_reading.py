"""One pass of a dataset through the frozen part."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._explain import explain, listing
from tfdeep.errors import DataError, ModelError
from tfdeep.transfer._cut import Cut
from tfdeep.transfer._survey import BlockDigests, Survey


class Trunk:
    """Runs the frozen part of a model, on all replicas that this process has.

    Args:
        cut: The model and its frozen part.
        in_training: Whether the frozen part acts as in training. If not, and it has
            layers that are not Keras' own, the first batch runs twice to see that it
            gives the same each time.
        storage_dtype: What features of floating dtypes are rounded to, if anything.

    Attributes:
        seconds: How long it has run.
        rounding: Largest difference that `storage_dtype` has made to a feature,
            relative to the largest feature.
    """

    def __init__(self, cut: Cut, in_training: bool, storage_dtype: str | None) -> None:
        self.seconds = 0.0
        self.rounding = 0.0
        self._model = cut.trunk
        self._dtype = storage_dtype
        self._strategy = cut.model.distribute_strategy
        self._to_check = not in_training and not cut.is_of_keras
        self._run = tf.function(
            lambda x: keras.tree.flatten(cut.trunk(x, training=in_training)),
            reduce_retracing=True,
        )

    def __call__(self, x: Any) -> list[tf.Tensor]:
        """The features of a batch, one tensor for each tensor of the boundary.

        Raises:
            ModelError: If the frozen part gives something else the second time, or
                changes its own weights. They are put back.
            DataError: If a feature is too large for the storage dtype.
        """
        if self._to_check:
            self._check_repeats(x)
            self._to_check = False
        started = time.perf_counter()
        features = [self._stored(tensor) for tensor in self._on_replicas(x)]
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


class Reading:
    """A pass over a dataset, given out in pieces of any number of examples.

    Args:
        dataset: The dataset, in batches.
        trunk: The frozen part.
        digests: Whether to take digests of the examples, for `check`.
    """

    def __init__(
        self, dataset: tf.data.Dataset, trunk: Trunk, digests: bool = True
    ) -> None:
        self.position = 0
        self.blocks = BlockDigests()
        self._digests = digests
        self._trunk = trunk
        self._batches = iter(dataset)
        self._batch: tuple[Any, ...] = ()
        self._columns: list[np.ndarray] = []  # of the batch, once they are asked for
        self._start = self._stop = 0  # where the batch lies
        self._shapes: list[tuple[int, ...]] = []

    def skip_to(self, row: int) -> None:
        """Passes over examples without running the frozen part on them."""
        while self._stop < row and self._next():
            pass
        self.position = row

    def read_to(self, row: int) -> Iterator[list[np.ndarray]]:
        """Gives the columns (features, labels, weights) of the examples up to `row`."""
        while self.position < row:
            if self.position >= self._stop and not self._next():
                return
            if not self._columns:
                self._columns = self._run()
            stop = min(row, self._stop)
            part = slice(self.position - self._start, stop - self._start)
            yield [column[part] for column in self._columns]
            self.position = stop

    def read(self) -> Iterator[list[np.ndarray]]:
        """Gives the columns of one batch after the other."""
        while self._next():
            yield self._run()

    def check(self, rows: range, expected: Survey | None) -> None:
        """Compares examples that were read, or passed over, with those surveyed.

        Raises:
            DataError: If they are others, or not all there.
        """
        if expected is not None and rows.stop == expected.rows:
            while self._next():  # there should be no more
                pass
        found = Survey((self._stop,), tuple(self.blocks.digests))
        is_same = expected is None or (
            found.digest_of(rows) == expected.digest_of(rows)
            and (rows.stop < expected.rows or found.rows == expected.rows)
        )
        if self._stop < rows.stop or not is_same:
            raise DataError(
                explain(
                    "The dataset does not give the same examples in the same order "
                    "each time it is read.",
                    received=f"others for examples {rows.start} to {rows.stop - 1}",
                    expected="a dataset that repeats itself",
                    fix="cache_frozen(..., shuffle=True) instead of "
                    "`dataset.shuffle(...)`; `variants=n` with a `dataset_id` for "
                    "augmentation; `.map(..., deterministic=True)`; shards that "
                    "differ were not kept",
                )
            )

    def _next(self) -> bool:
        try:
            self._batch = next(self._batches)
        except StopIteration:
            self.blocks.finish()
            return False
        if self._digests:
            self.blocks.update(self._batch)
        rows = len(keras.tree.flatten(self._batch)[0])
        self._start, self._stop = self._stop, self._stop + rows
        self._columns = []
        return True

    def _run(self) -> list[np.ndarray]:
        x, *rest = self._batch
        tensors = [*self._trunk(x), *keras.tree.flatten(rest)]
        columns = [tensor.numpy() for tensor in tensors]
        shapes = [column.shape[1:] for column in columns]
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            raise DataError(
                explain(
                    "An element of the dataset has another shape than those before it.",
                    received=f"features and labels of shape {listing(shapes)} in the "
                    f"batch of examples {self._start} to {self._stop - 1}",
                    expected=f"shape {listing(self._shapes)} for every example",
                    fix="pad or crop the examples to one shape in the dataset; nothing "
                    "was changed",
                )
            )
        return columns


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
