"""The dataset that `cache_frozen` reads: checked, in batches, and told from others."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._digests import bytes_of
from tfdeep._core._explain import a_type, explain, listing
from tfdeep.errors import DataError

# Examples that share a digest. Shards hold whole blocks, so that what a builder reads
# can be compared with what was read before the shard is finished.
BLOCK = 64


def checked_dataset(
    model: Any, dataset: Any, batch_size: int | None
) -> tf.data.Dataset:
    """The dataset in batches, if it fits the model and ends."""
    if not isinstance(dataset, tf.data.Dataset):
        raise DataError(
            explain(
                "`cache_frozen` reads a dataset.",
                received=f"{a_type(dataset)}",
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


class UserDataset:
    """A dataset in batches, which is read once when it is asked what it holds.

    Attributes:
        batches: The dataset.
        spec: Its `element_spec`.
    """

    def __init__(self, batches: tf.data.Dataset) -> None:
        self.batches = batches
        self.spec = batches.element_spec

    @functools.cached_property
    def examples(self) -> Examples:
        """What it holds: this reads it, the first time."""
        examples = Examples()
        for batch in self.batches:
            examples.add(batch)
        examples.end()
        return examples

    def sizes(self, rows: int) -> Sequence[int]:
        """The number of examples in each batch, if there are so many in all.

        One batch is read if the others can be told from it.

        Raises:
            DataError: If there is another number of examples.
        """
        if "examples" not in vars(self):
            count = int(self.batches.cardinality())
            size = len(keras.tree.flatten(next(iter(self.batches.take(1))))[0])
            if (count - 1) * size < rows <= count * size:
                return [*[size] * (count - 1), rows - (count - 1) * size]
        if self.examples.rows != rows:
            found = f"{self.examples.rows} examples where the cache has {rows}"
            raise other_examples(found)
        return self.examples.sizes


class Examples:
    """How many examples a dataset gives, in which batches, and their digests.

    The digests do not depend on how the examples come in batches.

    Attributes:
        sizes: Number of examples in each batch that was seen.
        first: The first batch.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.first: Any = None
        self._blocks: list[bytes] = []
        self._parts: list[Any] = []  # a digest for each tensor of the open block
        self._count = 0  # examples in the open block

    @property
    def rows(self) -> int:
        """Number of examples."""
        return sum(self.sizes)

    def digest(self, rows: range | None = None) -> str:
        """One digest for some examples, which begin and end with a block, or all."""
        rows = range(self.rows) if rows is None else rows
        blocks = self._blocks[rows.start // BLOCK : -(-rows.stop // BLOCK)]
        return hashlib.sha256(b"".join(blocks)).hexdigest()

    def add(self, batch: Any) -> int:
        """Adds a batch of tensors; returns its number of examples."""
        self.first = batch if self.first is None else self.first
        leaves = [tensor.numpy() for tensor in keras.tree.flatten(batch)]
        start, rows = 0, len(leaves[0])
        self.sizes.append(rows)
        while start < rows:
            stop = min(rows, start + BLOCK - self._count)
            self._parts = self._parts or [hashlib.sha256() for _ in leaves]
            for part, leaf in zip(self._parts, leaves, strict=True):
                part.update(bytes_of(leaf[start:stop]))
            self._count += stop - start
            if self._count == BLOCK:
                self.end()
            start = stop
        return rows

    def end(self) -> None:
        """Ends the last block, which may be a short one."""
        if self._count:
            parts = b"".join(part.digest() for part in self._parts)
            self._blocks.append(hashlib.sha256(parts).digest())
        self._parts, self._count = [], 0


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
