"""The images of the demo, split into a source and a target task."""

from __future__ import annotations

import dataclasses
import importlib.resources
from typing import Any

import keras
import numpy as np

from tfdeep._core._explain import explain
from tfdeep.errors import DataError

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")

# Of the target task only this many training images are used: labels are what is
# scarce where layers are reused.
_TARGET_EXAMPLES = {"digits": 200}
_TARGET_EXAMPLES_ELSE = 2000


@dataclasses.dataclass(frozen=True)
class Task:
    """Images of five classes, labelled 0 to 4, and what they are."""

    classes: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_tasks(dataset: str) -> tuple[Task, Task]:
    """The source task (classes 0-4) and the target task (classes 5-9).

    Args:
        dataset: One of `DATASETS`. All but "digits" are downloaded by Keras.
    """
    (x_train, y_train), (x_test, y_test) = _load(dataset)
    source = _task(x_train, y_train, x_test, y_test, classes=range(5))
    target = _task(x_train, y_train, x_test, y_test, classes=range(5, 10))
    few = _TARGET_EXAMPLES.get(dataset, _TARGET_EXAMPLES_ELSE)
    return source, dataclasses.replace(
        target, x_train=target.x_train[:few], y_train=target.y_train[:few]
    )


def _load(dataset: str) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    if dataset != "digits":
        (x_train, y_train), (x_test, y_test) = _download(dataset)
        return (
            (x_train.astype("float32") / 255, y_train.ravel()),
            (x_test.astype("float32") / 255, y_test.ravel()),
        )
    digits = importlib.resources.files(__package__) / "digits.npz"
    with digits.open("rb") as file, np.load(file) as arrays:
        images = arrays["images"].reshape(-1, 64).astype("float32") / 16
        labels = arrays["labels"]
    # The images come in order of their writers; a third of them is for testing.
    order = np.random.RandomState(0).permutation(len(images))
    train, test = order[600:], order[:600]
    return (images[train], labels[train]), (images[test], labels[test])


def _download(dataset: str) -> Any:
    try:
        return getattr(keras.datasets, dataset).load_data()
    except Exception as error:  # Keras raises nothing more special
        raise DataError(
            explain(
                f"Keras could not get the images of {dataset}.",
                received=str(error),
                expected="a connection, or the files in ~/.keras/datasets",
                fix="`tfdeep demo` with the digits that ship with it",
            )
        ) from error


def _task(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    classes: range,
) -> Task:
    in_train, in_test = np.isin(y_train, classes), np.isin(y_test, classes)
    return Task(
        classes=f"{classes[0]}-{classes[-1]}",
        x_train=x_train[in_train],
        y_train=y_train[in_train].astype("int64") - classes[0],
        x_test=x_test[in_test],
        y_test=y_test[in_test].astype("int64") - classes[0],
    )
