"""The frozen part of a model, and what it gives for the examples of a dataset."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._explain import explain, listing
from tfdeep.errors import DataError, ModelError
from tfdeep.transfer._cut import Cut
from tfdeep.transfer._dataset import Examples
from tfdeep.transfer._shards import Builder

_WAIT = 0.1  # seconds between two looks at what other builders have finished


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


def features_in_memory(
    dataset: tf.data.Dataset, frozen: FrozenPart
) -> Iterator[list[np.ndarray]]:
    """Gives the columns (features, labels, weights) of one batch after the other."""
    reading = _Pass(dataset, frozen)
    while reading.next_batch():
        yield reading.columns()


def build(
    builder: Builder,
    dataset: tf.data.Dataset,
    frozen: FrozenPart,
    expected: Examples | None,
    worker: int = 0,
    workers: int = 1,
) -> Iterator[int]:
    """Builds the shards that are missing; yields the number of each that is there.

    Each worker begins with its own share of the shards; then it takes what nobody is
    at, so that nothing is lost with a worker that dies.

    Args:
        builder: Writes the shards.
        dataset: The dataset, in batches.
        frozen: The frozen part.
        expected: The examples that the dataset should give; None if that is not known.
        worker: The number of this worker.
        workers: How many there are.
    """
    numbers = range(len(builder.shards))
    wanted: Sequence[int] = numbers[worker::workers]
    seen: set[int] = set()
    while not builder.is_complete():
        finished = builder.finished()
        for number, shard in finished.items():
            told = shard.extra.get("examples")
            if expected and told not in (None, expected.digest(shard.rows)):
                raise other_examples("a part of the cache that was made of others")
            if number not in seen:
                yield number
        seen |= set(finished)
        if len(finished) == len(numbers):
            break
        missing = [number for number in wanted if number not in finished]
        if not _build_in_one_pass(builder, dataset, frozen, expected, missing):
            wanted = numbers
            time.sleep(_WAIT)


def _build_in_one_pass(
    builder: Builder,
    dataset: tf.data.Dataset,
    frozen: FrozenPart,
    expected: Examples | None,
    numbers: Sequence[int],
) -> bool:
    """Builds those shards that no other is at; whether there were any."""
    reading: _Pass | None = None
    for number in numbers:
        with builder.claim(number) as is_wanted:
            if is_wanted:
                reading = reading or _Pass(dataset, frozen, Examples())
                extra: dict[str, Any] = {}
                blocks = reading.shard(builder.shards[number], expected, extra)
                builder.write(number, blocks, extra)
    return reading is not None


class _Pass:
    """One pass over a dataset, given out in pieces of any number of examples.

    Args:
        dataset: The dataset, in batches.
        frozen: The frozen part.
        examples: Where to note the examples that were read, for `check`.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        frozen: FrozenPart,
        examples: Examples | None = None,
    ) -> None:
        self._frozen = frozen
        self._examples = examples
        self._batches = iter(dataset)
        self._batch: tuple[Any, ...] = ()
        self._columns: list[np.ndarray] = []  # of the batch, once they are asked for
        self._start = self._stop = 0  # the examples of the batch
        self._position = 0
        self._shapes: list[tuple[int, ...]] = []

    def next_batch(self) -> bool:
        """Goes on to the next batch; False if there is none."""
        self._columns = []
        try:
            self._batch = next(self._batches)
        except StopIteration:
            if self._examples is not None:
                self._examples.end()
            return False
        if self._examples is not None:
            self._examples.add(self._batch)
        rows = len(keras.tree.flatten(self._batch)[0])
        self._start, self._stop = self._stop, self._stop + rows
        return True

    def columns(self) -> list[np.ndarray]:
        """The columns (features, labels, weights) of the batch."""
        if self._columns:
            return self._columns
        x, *rest = self._batch
        tensors = [*self._frozen(x), *keras.tree.flatten(rest)]
        self._columns = [tensor.numpy() for tensor in tensors]
        shapes = [column.shape[1:] for column in self._columns]
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
        return self._columns

    def shard(
        self, rows: range, expected: Examples | None, extra: dict[str, Any]
    ) -> Iterator[list[np.ndarray]]:
        """Gives the columns of some examples, which must be those expected.

        On the examples before them the frozen part is not run.

        Args:
            rows: Which examples; none of them was given before.
            expected: What the dataset should give, if that is known.
            extra: Filled with what to keep with the shard.
        """
        before = self._frozen.seconds
        while self._stop <= rows.start and self.next_batch():
            pass
        row = rows.start
        while row < rows.stop and (row < self._stop or self.next_batch()):
            stop = min(rows.stop, self._stop)
            part = slice(row - self._start, stop - self._start)
            yield [column[part] for column in self.columns()]
            row = stop
        self._check(rows, expected)
        extra["seconds"] = self._frozen.seconds - before
        extra["rounding"] = self._frozen.rounding
        if expected is not None:
            extra["examples"] = expected.digest(rows)

    def _check(self, rows: range, expected: Examples | None) -> None:
        """Compares the examples that were read with those expected."""
        found = self._examples
        if expected is not None and rows.stop == expected.rows:
            while self.next_batch():  # there should be no more
                pass
        is_same = (
            found is None
            or expected is None
            or (
                found.digest(rows) == expected.digest(rows)
                and (rows.stop < expected.rows or found.rows == expected.rows)
            )
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


def other_examples(received: str) -> DataError:
    """The error for a `dataset_id` that stands for other examples."""
    return DataError(
        explain(
            "`dataset_id` names a cache of other examples.",
            received=received,
            expected="the same examples in the same order under one dataset_id",
            fix="another dataset_id, or None to have the examples compared; nothing "
            "was changed",
        )
    )


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
