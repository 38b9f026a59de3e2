"""What is known of losses: what they take for targets and for predictions."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


class Targets(enum.Enum):
    """What a loss takes for targets."""

    ANY = "any numbers"
    FRACTION = "numbers from 0 to 1, one for each output"
    DISTRIBUTION = "one-hot rows, or rows of probabilities that add up to 1"
    CLASS = "the number of the class, from 0"
    SIGN = "-1 and 1, or 0 and 1"
    POSITIVE = "numbers that are not negative"
    UNKNOWN = "not known"


class Predictions(enum.Enum):
    """What a loss takes for predictions."""

    ANY = "any numbers"
    FRACTION = "a probability for each output"
    DISTRIBUTION = "probabilities that add up to 1"
    LOGIT = "a logit for each output"
    LOGITS = "the logits of a distribution"
    POSITIVE = "numbers above 0"
    UNKNOWN = "not known"


@dataclasses.dataclass(frozen=True)
class Loss:
    """What is known of a loss.

    Attributes:
        name: Keras' name of the function; its own for one that Keras does not have.
        targets: What it takes for targets.
        predictions: What it takes for predictions.
        compares_all: Whether it compares each of a row of targets with each of a
            column of predictions.
    """

    name: str = ""
    targets: Targets = Targets.UNKNOWN
    predictions: Predictions = Predictions.UNKNOWN
    compares_all: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether it compares numbers of any size."""
        return self.targets is Targets.ANY

    @property
    def takes_logits(self) -> bool:
        """Whether it takes logits for predictions."""
        return self.predictions in (Predictions.LOGIT, Predictions.LOGITS)

    @property
    def takes_probabilities(self) -> bool:
        """Whether it takes probabilities for predictions."""
        return self.predictions in (Predictions.FRACTION, Predictions.DISTRIBUTION)

    @property
    def is_crossentropy(self) -> bool:
        """Whether it is the negative log-likelihood of classes."""
        return self.name.endswith("crossentropy")


_LOGITS = {
    Predictions.FRACTION: Predictions.LOGIT,
    Predictions.DISTRIBUTION: Predictions.LOGITS,
}

_KNOWN = {
    loss.name: loss
    for loss in (
        Loss("mean_squared_error", Targets.ANY, Predictions.ANY),
        Loss("mean_absolute_error", Targets.ANY, Predictions.ANY),
        Loss("huber", Targets.ANY, Predictions.ANY),
        Loss("log_cosh", Targets.ANY, Predictions.ANY),
        Loss("mean_squared_logarithmic_error", Targets.POSITIVE, Predictions.POSITIVE),
        Loss("mean_absolute_percentage_error", Targets.POSITIVE, Predictions.ANY),
        Loss("poisson", Targets.POSITIVE, Predictions.POSITIVE),
        Loss("hinge", Targets.SIGN, Predictions.ANY),
        Loss("squared_hinge", Targets.SIGN, Predictions.ANY),
        Loss("binary_crossentropy", Targets.FRACTION, Predictions.FRACTION),
        Loss("binary_focal_crossentropy", Targets.FRACTION, Predictions.FRACTION),
        Loss("dice", Targets.FRACTION, Predictions.FRACTION),
        Loss("tversky", Targets.FRACTION, Predictions.FRACTION),
        Loss("categorical_crossentropy", Targets.DISTRIBUTION,
             Predictions.DISTRIBUTION),
        Loss("categorical_focal_crossentropy", Targets.DISTRIBUTION,
             Predictions.DISTRIBUTION),
        Loss("kl_divergence", Targets.DISTRIBUTION, Predictions.DISTRIBUTION),
        Loss("sparse_categorical_crossentropy", Targets.CLASS,
             Predictions.DISTRIBUTION),
    )
}  # fmt: skip

# A function that Keras does not have may call one of these.
_OFTEN_WRAPPED = (
    "mean_squared_error",
    "mean_absolute_error",
    "binary_crossentropy",
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
)


def losses_of(given: Any, names: Sequence[str] | None, outputs: int) -> list[Loss]:
    """What is known of the loss of each output of a model.

    Args:
        given: The losses as `compile` takes them.
        names: The names of the outputs, if they have any.
        outputs: How many there are.
    """
    if isinstance(given, dict) and names and set(given).issubset(names):
        given = [given.get(name) for name in names]
    if isinstance(given, (list, tuple, dict)):
        flat = keras.tree.flatten(given)
        flat = flat * outputs if len(flat) == 1 else flat
    else:
        flat = [given] * outputs
    if len(flat) != outputs:
        return [Loss()] * outputs
    return [facts(loss) for loss in flat]


def facts(loss: Any) -> Loss:
    """What is known of a loss, be it a name, a function or an object.

    A function that Keras does not have is asked for its value on a few numbers, and
    taken for the loss of Keras that gives the same.
    """
    if loss is None:
        return Loss()
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return Loss(loss)
    from_logits = False
    if isinstance(loss, functools.partial):
        from_logits = bool(loss.keywords.get("from_logits"))
        loss = loss.func
    is_object = isinstance(loss, keras.losses.Loss)
    if is_object:
        from_logits = bool(_config(loss).get("from_logits"))
        function = getattr(loss, "fn", None)
        loss = loss if function is None else function
        from_logits |= bool(getattr(loss, "from_logits", False))
    name = getattr(loss, "__name__", type(loss).__name__)
    if getattr(loss, "__module__", "").startswith("keras."):
        found = _KNOWN.get(name, Loss(name))
    else:
        found = _recognized(loss) or Loss(name)
        # Keras gives a function targets of the shape of the predictions.
        if is_object:
            found = dataclasses.replace(found, compares_all=_compares_all(loss))
    if from_logits and found.predictions in _LOGITS:
        return dataclasses.replace(found, predictions=_LOGITS[found.predictions])
    return found


def _config(loss: Any) -> dict[str, Any]:
    try:
        return dict(loss.get_config())
    except (NotImplementedError, TypeError, ValueError):
        return {}


def _recognized(function: Any) -> Loss | None:
    """The loss of Keras that gives the same values as a function."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 3))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    one_hot, classes = np.eye(3)[[0, 2, 1, 0]], np.array([[0], [2], [1], [0]])
    for name in _OFTEN_WRAPPED:
        targets = classes if _KNOWN[name].targets is Targets.CLASS else one_hot
        for given in (probabilities, scores):
            logits = {} if given is probabilities else {"from_logits": True}
            if logits and _KNOWN[name].predictions not in _LOGITS:
                continue
            known = functools.partial(getattr(keras.losses, name), **logits)
            values = [_mean(f, targets, given) for f in (known, function)]
            if not math.isclose(*values, rel_tol=1e-4):
                continue
            found = _KNOWN[name]
            return (
                dataclasses.replace(found, predictions=_LOGITS[found.predictions])
                if logits
                else found
            )
    return None


def _compares_all(loss: Any) -> bool:
    """Whether a loss of a row of targets and a column of predictions is another one."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (5, 1))
    column = rng.uniform(0.1, 0.9, (5, 1))
    of_column, of_row = (_mean(loss, y, column) for y in (targets, targets[:, 0]))
    if math.isnan(of_column) or math.isnan(of_row):
        return False
    return not math.isclose(of_column, of_row, rel_tol=1e-4)


def _mean(function: Any, targets: np.ndarray, predictions: np.ndarray) -> float:
    arguments = [np.asarray(a, np.float32) for a in (targets, predictions)]
    try:
        value = function(*map(keras.ops.convert_to_tensor, arguments))
        return float(np.mean(keras.ops.convert_to_numpy(value)))
    except Exception:  # the function is the user's, and made for other numbers
        return math.nan
