"""The batch that `diagnose` was given, and the loss of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._explain import a_type, explain, listing
from tfdeep.diagnostics._finding import Finding
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.errors import DataError, InvalidArgumentError

_MOST_EXAMPLES = 256


def one_batch(x: Any, y: Any) -> tuple[Any, Any]:
    """The inputs and labels (or None) of a batch as tensors, cut to 256 examples.

    Raises:
        DataError: If they are no batch.
    """
    if isinstance(x, tf.data.Dataset):
        batch = next(iter(x.take(1)), None)
        if batch is None:
            raise DataError(
                explain(
                    "`diagnose` got no batch to look at.",
                    received="a tf.data.Dataset without elements",
                    expected="at least one batch",
                    fix="look at what filters the dataset; nothing was changed",
                )
            )
        x, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
        y = labels if y is None else y
    _check_counts({"x": x} if y is None else {"x": x, "y": y})
    return _first_examples("x", x), None if y is None else _first_examples("y", y)


def _check_counts(batch: dict[str, Any]) -> None:
    """Raises an error unless all parts of a batch hold equally many examples."""
    counts = {name: _counts(name, values) for name, values in batch.items()}
    if len(set().union(*counts.values())) > 1:
        found = [f"`{name}` of {listing(counts[name])}" for name in counts]
        raise DataError(
            explain(
                "`diagnose` got inputs and labels that do not belong together.",
                received=f"{' and '.join(found)} examples",
                expected="equally many examples in each array of the batch",
                fix="give the labels of the same batch; nothing was changed",
            )
        )


def _counts(name: str, values: Any) -> list[int]:
    """The different numbers of examples in the arrays of a structure."""
    counts = []
    for part in keras.tree.flatten(values) or [values]:
        shape = tuple(getattr(part, "shape", ()))
        if not shape or not shape[0]:
            raise _not_a_batch(name, values, part)
        counts.append(shape[0])
    return sorted(set(counts))


def _first_examples(name: str, values: Any) -> Any:
    def first(part: Any) -> Any:
        try:
            tensor = tf.convert_to_tensor(part)[:_MOST_EXAMPLES]
        except (ValueError, TypeError) as error:
            raise _not_a_batch(name, values, part) from error
        if tensor.dtype.is_floating:  # as `fit` does
            tensor = tf.cast(tensor, keras.config.floatx())
        return tensor

    return keras.tree.map_structure(first, values)


def _not_a_batch(name: str, values: Any, part: Any) -> DataError:
    """The error for `part` of what was given as `name`."""
    received = f"`{name}` is {a_type(values)}"
    if part is not values:
        received += f" that holds {a_type(part)}"
    if hasattr(part, "shape"):
        received += f" of shape {tuple(part.shape)}"
    return DataError(
        explain(
            "`diagnose` got no batch to look at.",
            received=received,
            expected="arrays or tensors whose first axis is the examples",
            fix="`x, y = next(iter(dataset))` takes a batch of what yields batches, "
            "`dataset.batch(32)` makes batches of examples, `np.asarray` makes an "
            "array of a list; nothing was changed",
        )
    )


def bad_values(x: Any, y: Any) -> list[Finding]:
    """Finds NaN and infinity in the inputs, or else in the labels."""
    for values, what in ((x, "inputs"), (y, "labels")):
        parts = [] if values is None else keras.tree.flatten(values)
        bad = [
            ~np.isfinite(part.numpy().reshape(len(part), -1)).all(axis=1)
            for part in parts
            if part.dtype.is_floating
        ]
        count = np.count_nonzero(np.any(bad, axis=0))
        if count:
            return [
                Finding(
                    "nonfinite",
                    "",
                    "critical",
                    0,
                    "the batch holds NaN or infinite values, in the "
                    f"{what} of {count} of {len(parts[0])} examples",
                    Remedy(
                        "clean the data: np.isfinite finds such values; leave these "
                        "examples out, or fill in the values",
                        "data",
                    ),
                )
            ]
    return []


def loss_function(model: Any, x: Any, y: Any, loss: Any) -> Callable[[Any], Any]:
    """What computes the loss of the model's outputs.

    Raises:
        InvalidArgumentError: If there are labels and no loss is known; when it is
            called, if the labels do not fit the loss.
    """
    if y is None:
        return _random_gradient
    if loss is not None:
        # Only `compile` knows what a loss means for several outputs.
        output_names = getattr(model, "output_names", None)
        model = keras.Model(name="loss")
        model.output_names = output_names
        model.compile(optimizer=None, loss=loss)
    elif not model.compiled:
        raise InvalidArgumentError(
            explain(
                "`diagnose` does not know the loss.",
                received="labels, loss=None, and a model that is not compiled",
                expected="a Keras loss or its name",
                fix="`tfdeep.diagnose(model, x, y, loss=...)`; nothing was changed",
            )
        )

    def compute(outputs: Any) -> Any:
        try:
            value = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=None)
            return tf.reduce_mean(value)
        except (LookupError, ValueError, TypeError, tf.errors.OpError) as error:
            raise _labels_do_not_fit(y, outputs, error) from error

    return compute


def _labels_do_not_fit(y: Any, outputs: Any, error: Exception) -> InvalidArgumentError:
    labels, made = (
        keras.tree.map_structure(lambda tensor: tuple(tensor.shape), tensors)
        for tensors in (y, outputs)
    )
    return InvalidArgumentError(
        explain(
            f"`diagnose` cannot compute the loss of these labels: {error}",
            received=f"labels of shape {labels} for outputs of shape {made}",
            expected="a loss as `model.compile` takes it, and labels that fit it",
            fix="name a loss of `keras.losses`, give one loss and one array of labels "
            "for each output, or look at the labels; nothing was changed",
        )
    )


def _random_gradient(outputs: Any) -> Any:
    """A sum of the outputs whose gradient is standard normal noise."""
    rng = np.random.default_rng(0)
    return tf.add_n(
        [
            tf.reduce_sum(tf.cast(x, tf.float32) * rng.normal(size=x.shape))
            / float(x.shape[0])
            for x in keras.tree.flatten(outputs)
        ]
    )
