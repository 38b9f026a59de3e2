"""The dataset that `cache_frozen` reads: checked, and in batches."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._explain import a_type, explain, listing
from tfdeep.errors import DataError


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


def rows(batch: tuple[Any, ...]) -> tf.Tensor:
    return tf.shape(keras.tree.flatten(batch)[0])[0]
