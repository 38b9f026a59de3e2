"""The batch that `diagnose` was given, and the loss of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._explain import a_type, explain, listing
from tfdeep._keras import _internals
from tfdeep.diagnostics._finding import Finding
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.errors import DataError, InvalidArgumentError

_MOST_EXAMPLES = 256


@dataclasses.dataclass(frozen=True)
class Batch:
    """What goes through the model, in tensors.

    Attributes:
        x: The inputs.
        y: The labels; None if there are none.
        sample_weight: How much each example counts; None if all count the same.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(keras.tree.flatten(self.x)[0])

    @property
    def parts(self) -> dict[str, Any]:
        """What there is of the three, by name."""
        parts = {field.name: getattr(self, field.name) for field in _FIELDS}
        return {k: v for k, v in parts.items() if v is not None or k == "x"}


_FIELDS = dataclasses.fields(Batch)


def one_batch(
    x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None
) -> Batch:
    """The inputs, labels and weights of up to 256 examples as tensors.

    Raises:
        DataError: If they are no batch.
        InvalidArgumentError: If the weights do not fit the labels.
    """
    batch = Batch(x, y, sample_weight)
    if isinstance(x, tf.data.Dataset):
        batch = _of_dataset(batch)
    _check_counts(batch.parts)
    batch = Batch(**{n: _sample(n, values) for n, values in batch.parts.items()})
    if class_weight is None:
        return batch
    return dataclasses.replace(batch, sample_weight=_by_class(batch, class_weight))


def _of_dataset(given: Batch) -> Batch:
    """The first batches of a dataset, together; labels given beside it replace its."""
    found: list[Batch] = []
    for element in given.x:
        batch = Batch(*keras.utils.unpack_x_y_sample_weight(element))
        if found and not _continue(found[0], batch):
            break
        found.append(batch)
        _check_counts(batch.parts)
        is_enough = sum(b.examples for b in found) >= _MOST_EXAMPLES
        if is_enough or {"y", "sample_weight"} & given.parts.keys():
            break
    if not found:
        raise DataError(
            explain(
                "`diagnose` got no batch to look at.",
                received="a tf.data.Dataset without elements",
                expected="at least one batch",
                fix="look at what filters the dataset; nothing was changed",
            )
        )
    parts = {
        name: keras.tree.map_structure(
            lambda *parts: tf.concat(parts, 0), *(b.parts[name] for b in found)
        )
        for name in found[0].parts
    }
    return Batch(**{**parts, **{k: v for k, v in given.parts.items() if k != "x"}})


def _continue(first: Batch, batch: Batch) -> bool:
    """Whether a batch can be put behind another."""

    def shapes(parts: dict[str, Any]) -> Any:
        return keras.tree.map_structure(lambda part: tuple(part.shape[1:]), parts)

    return bool(shapes(first.parts) == shapes(batch.parts))


def _by_class(batch: Batch, class_weight: Any) -> tf.Tensor:
    """The weight of each example by its label, as `fit` makes it."""
    labels = batch.y
    is_one = tf.is_tensor(labels)
    if batch.sample_weight is not None or not is_one:
        labels_are = "labels" if is_one else f"labels in {a_type(labels)}"
        raise InvalidArgumentError(
            explain(
                "`diagnose` cannot weigh these examples by their class.",
                received="class_weight and "
                + (labels_are if batch.sample_weight is None else "sample_weight"),
                expected="class_weight with one array of labels and no sample_weight",
                fix="give `sample_weight` alone, one number for each example; nothing "
                "was changed",
            )
        )
    classes = labels.numpy()
    if classes.ndim > 1:
        is_one_hot = classes.shape[-1] != 1
        classes = classes.argmax(-1) if is_one_hot else classes.squeeze(-1)
    weights = np.ones(classes.shape, keras.config.floatx())
    for label, weight in class_weight.items():
        weights[np.round(classes) == label] = weight
    return tf.constant(weights)


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
        if part is None and name == "sample_weight":  # of one of several outputs
            continue
        shape = tuple(getattr(part, "shape", ()))
        if not shape or not shape[0]:
            raise _not_a_batch(name, values, part)
        counts.append(shape[0])
    return sorted(set(counts))


def _sample(name: str, values: Any) -> Any:
    """The same examples of each array: a random sample, for data may be sorted."""

    def of_part(part: Any) -> Any:
        rows = _rows(part.shape[0])
        try:
            if isinstance(part, np.ndarray):  # it may be a large file
                tensor = tf.convert_to_tensor(part if rows is None else part[rows])
            else:
                tensor = tf.convert_to_tensor(part)
                tensor = tensor if rows is None else tf.gather(tensor, rows)
        except (ValueError, TypeError) as error:
            raise _not_a_batch(name, values, part) from error
        if tensor.dtype.is_floating:  # as `fit` does
            tensor = tf.cast(tensor, keras.config.floatx())
        return tensor

    return keras.tree.map_structure(
        lambda part: None if part is None else of_part(part), values
    )


def _rows(count: int) -> np.ndarray | None:
    """The rows of the sample; None if all are."""
    if count <= _MOST_EXAMPLES:
        return None
    rng = np.random.default_rng(0)
    return np.sort(rng.choice(count, _MOST_EXAMPLES, replace=False))


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


def loss_function(
    model: Any, batch: Batch, loss: Any = None, loss_weights: Any = None
) -> Callable[[Any], Any] | None:
    """What computes the training loss of the model's outputs.

    It counts in what the last call of the model left in `model.losses`.

    Returns:
        The function; None if there are no labels, and the model does not train
        without.

    Raises:
        InvalidArgumentError: If there are labels and no loss is known; when it is
            called, if the labels do not fit the loss.
    """
    if loss is None and loss_weights is not None:
        raise InvalidArgumentError(
            explain(
                "`diagnose` does not know which losses to weigh.",
                received="loss_weights and loss=None",
                expected="loss_weights beside the losses that they weigh",
                fix="give `loss` too, or neither: a compiled model has its own; "
                "nothing was changed",
            )
        )
    x, y, sample_weight = batch.x, batch.y, batch.sample_weight
    if loss is not None and y is not None:
        # Only `compile` knows what a loss means for several outputs.
        only_loss = keras.Model(name="loss")
        only_loss.output_names = getattr(model, "output_names", None)
        only_loss.compile(optimizer=None, loss=loss, loss_weights=loss_weights)
    elif y is None and not _trains_without_labels(model):
        return None
    elif not model.compiled and not _internals.computes_its_own_loss(model):
        raise InvalidArgumentError(
            explain(
                "`diagnose` does not know the loss.",
                received="labels, loss=None, and a model that is not compiled",
                expected="a Keras loss or its name",
                fix="`tfdeep.diagnose(model, x, y, loss=...)`; nothing was changed",
            )
        )
    else:
        only_loss = None

    def compute(outputs: Any) -> Any:
        try:
            value = _internals.compute_loss(
                only_loss or model, x, y, outputs, sample_weight
            )
        except (LookupError, ValueError, TypeError, tf.errors.OpError) as error:
            raise _labels_do_not_fit(y, outputs, error) from error
        value = tf.reduce_mean(value)
        return value if only_loss is None else value + sum_of_losses(model)

    return compute


def _trains_without_labels(model: Any) -> bool:
    """Whether `fit` needs no labels: the model makes its loss of what it computes."""
    has_no_loss = model.compiled and getattr(model, "loss", None) is None
    return has_no_loss or _internals.computes_its_own_loss(model)


def sum_of_losses(model: Any) -> tf.Tensor:
    """What the layers of a model add to the loss after its last call."""
    return tf.add_n(
        [tf.zeros([])]
        + [tf.cast(tf.reduce_sum(loss), tf.float32) for loss in model.losses]
    )


def _labels_do_not_fit(y: Any, outputs: Any, error: Exception) -> InvalidArgumentError:
    labels, made = (
        keras.tree.map_structure(lambda t: tuple(getattr(t, "shape", ())), tensors)
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


def random_gradient(outputs: Any) -> Any:
    """A sum of the outputs whose gradient is standard normal noise."""
    rng = np.random.default_rng(0)
    return tf.add_n(
        [
            tf.reduce_sum(tf.cast(x, tf.float32) * rng.normal(size=x.shape))
            / float(x.shape[0])
            for x in keras.tree.flatten(outputs)
        ]
    )
