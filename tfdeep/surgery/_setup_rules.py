"""The rules of `check_setup`: combinations known to be bad, with the source.

A rule looks at a `Setup` and yields the paths of the layers it objects to, and the
problem. It must stay silent where it is not sure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tfdeep._keras import _architecture, _layer_facts, _optimizers, _variables
from tfdeep._keras._walk import Call
from tfdeep.surgery._setup import Setup

Objection = tuple[list[str], str]  # paths of layers, what is wrong
_Check = Callable[[Setup], Iterator[Objection]]

# Up to these depths either initialization trains. Glorot's scale under ReLU takes the
# root of a half from the signal at each layer: a thirtieth is left after ten.
_DEEP = 5
_DEEP_RECTIFIED = 10
_SIGMOIDS_IN_A_ROW = 4  # each passes on a quarter of the gradient at most
_SMALL_BATCH = 16

_DROPOUTS = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)
_CONVOLUTIONS = (
    *_layer_facts.CONVOLUTIONS,
    *_layer_facts.SEPARABLE,
    *_layer_facts.DEPTHWISE,
)


@dataclasses.dataclass(frozen=True)
class SetupRule:
    """One bad combination, and what to do about it."""

    name: str
    check: _Check
    remedy: str
    source: str


RULES: list[SetupRule] = []


def _rule(remedy: str, source: str) -> Callable[[_Check], _Check]:
    """Makes a rule of a function, under the name of the function."""

    def add(check: _Check) -> _Check:
        RULES.append(SetupRule(check.__name__, check, remedy, source))
        return check

    return add


def _is_batch_norm(call: Call) -> bool:
    return isinstance(call.layer, keras.layers.BatchNormalization)


@_rule(
    "use_bias=False: beta does its work",
    "Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.2",
)
def bias_before_batch_norm(setup: Setup) -> Iterator[Objection]:
    found = [
        call.path
        for call in setup.calls
        if call.activation == "linear"
        and getattr(call.layer, "use_bias", False)
        and call.after
        and call not in setup.outputs
        and all(_is_batch_norm(after) and after.layer.center for after in call.after)
    ]
    if found:
        yield found, "the bias is taken out again by the batch normalization after it"


@_rule(
    "convolution without activation, BatchNormalization, then Activation",
    "Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.2",
)
def batch_norm_after_activation(setup: Setup) -> Iterator[Objection]:
    found = []
    for call in filter(_is_batch_norm, setup.calls):
        before = call.before[0] if len(call.before) == 1 else None
        if before is not None and before.activation not in (None, "linear"):
            layer = before.layer
            if not before.has_kernel and len(before.before) == 1:
                layer = before.before[0].layer
            if isinstance(layer, _CONVOLUTIONS):
                found.append(call.path)
    if found:
        yield found, "normalizes after the activation of a convolution, not before it"


@_rule(
    "keras.layers.LayerNormalization",
    "Ba et al. 2016, arXiv:1607.06450",
)
def batch_norm_in_recurrent_net(setup: Setup) -> Iterator[Objection]:
    found = [
        path
        for path, layer in setup.layers.items()
        if isinstance(layer, keras.layers.BatchNormalization)
        and any(
            isinstance(setup.layers.get(outer), keras.layers.RNN)
            for outer in _outer_paths(path)
        )
    ]
    found += [
        call.path
        for call in filter(_is_batch_norm, setup.calls)
        if any(_gives_sequences(before.layer) for before in call.before)
    ]
    if found:
        yield found, "statistics over the steps of sequences, which differ by length"


def _outer_paths(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _gives_sequences(layer: Any) -> bool:
    kinds = (keras.layers.RNN, keras.layers.Bidirectional)
    return isinstance(layer, kinds) and bool(layer.return_sequences)


@_rule(
    "larger batches, BatchNormalization(synchronized=True) on several replicas, or "
    "keras.layers.GroupNormalization",
    "Wu and He 2018, arXiv:1803.08494, figure 1",
)
def small_batch(setup: Setup) -> Iterator[Objection]:
    if setup.batch_size is None:
        return
    found: dict[int, list[str]] = {}
    for path, layer in setup.layers.items():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            parts = 1 if layer.synchronized else setup.replicas
            found.setdefault(setup.batch_size // parts, []).append(path)
    for size, paths in found.items():
        if size < _SMALL_BATCH:
            yield paths, f"statistics of {size} examples at a time are mostly noise"


@_rule(
    'kernel_initializer="lecun_normal"',
    "Klambauer et al. 2017, arXiv:1706.02515",
)
def selu_without_lecun(setup: Setup) -> Iterator[Objection]:
    found = [
        call.path
        for call in setup.calls
        if call.has_kernel
        and call.next_activation() == "selu"
        and _scaling(call.layer) not in (None, (1.0, "fan_in"))
    ]
    if found:
        yield found, "SELU keeps mean 0 and variance 1 only from LeCun's initial scale"


@_rule(
    "keras.layers.AlphaDropout",
    "Klambauer et al. 2017, arXiv:1706.02515, section 3",
)
def selu_with_dropout(setup: Setup) -> Iterator[Objection]:
    found = [
        call.path
        for call in setup.calls
        if isinstance(call.layer, _DROPOUTS)
        and call.layer.rate
        and len(call.before) == 1
        and call.before[0].activation == "selu"
    ]
    if found:
        yield found, "dropout sets to zero, which moves the mean and variance of SELU"


@_rule(
    "dropout only after the last BatchNormalization",
    "Li et al. 2018, arXiv:1801.05134",
)
def dropout_before_batch_norm(setup: Setup) -> Iterator[Objection]:
    found = []
    for call in setup.calls:
        if not isinstance(call.layer, _DROPOUTS) or not call.layer.rate:
            continue
        if getattr(call.layer, "noise_shape", None) is not None:
            continue  # whole branches are dropped: stochastic depth
        after = call.after
        while len(after) == 1 and len(after[0].before) == 1:
            if _is_batch_norm(after[0]):
                found.append(call.path)
            if after[0].is_normalization:
                break
            after = after[0].after
    if found:
        yield found, "its noise is in the variance of training, not of inference"


@_rule(
    'activation="relu" with "he_normal", or BatchNormalization before each',
    "Glorot and Bengio 2010, proceedings.mlr.press/v9/glorot10a.html",
)
def sigmoid_in_deep_net(setup: Setup) -> Iterator[Objection]:
    def is_sigmoid(call: Call) -> bool:
        return call not in setup.outputs and call.next_activation() == "sigmoid"

    for run in setup.runs(is_sigmoid):
        if len(run) >= _SIGMOIDS_IN_A_ROW:
            yield (
                [call.path for call in run],
                f"{len(run)} sigmoid layers in a row: each passes on at most 1/4 of "
                "the gradient",
            )


def _fitting(call: Call) -> str:
    """The initializer that fits the activation after a call."""
    return _layer_facts.activation(call.next_activation() or "").initializer


@_rule(
    '"he_normal" for the ReLU family, "glorot_normal" for tanh and sigmoid',
    "He et al. 2015, arXiv:1502.01852",
)
def initializer_mismatch(setup: Setup) -> Iterator[Objection]:
    def has_too_little(call: Call) -> bool:
        scale, mode = _scaling(call.layer) or (0.0, "")
        is_glorot = (scale, mode) == (1.0, "fan_avg")
        return is_glorot and _fitting(call) == "he_normal"

    def has_too_much(call: Call) -> bool:
        activation = _layer_facts.activation(call.next_activation() or "")
        return _scaling(call.layer) == (2.0, "fan_in") and activation.saturates

    for run in setup.runs(has_too_little):
        if len(run) >= _DEEP_RECTIFIED:
            yield (
                [call.path for call in run],
                f"Glorot's scale with units that cut off one side, {len(run)} in a "
                "row: the signal shrinks with each",
            )
    for run in setup.runs(has_too_much):
        if len(run) >= _DEEP:
            yield (
                [call.path for call in run],
                f"He's scale with saturating units, {len(run)} in a row",
            )


def _scaling(layer: Any) -> tuple[float, str] | None:
    """Scale and mode of Keras' own variance scaling; None of anything else."""
    initializer = getattr(layer, "kernel_initializer", None)
    if not type(initializer).__module__.startswith("keras."):
        return None
    if not isinstance(initializer, keras.initializers.VarianceScaling):
        return None
    return float(initializer.scale), str(initializer.mode)


@_rule(
    'an initializer for each layer, for example by name: "he_normal"',
    "Keras: an initializer with a seed gives the same values at each call",
)
def same_initial_values(setup: Setup) -> Iterator[Objection]:
    groups: dict[tuple[Any, ...], list[str]] = {}
    for v in _variables.model_variables(setup.model):
        if len(v.variable.shape) < 2 or "kernel" not in v.variable.name:
            continue
        values = np.asarray(v.variable.numpy())
        if values.size < 2 or np.isin(values, (0, 1)).all():
            continue
        if (values == values.flat[0]).all():
            continue
        groups.setdefault((values.shape, values.tobytes()), []).append(v.path)
    for (shape, _), paths in groups.items():
        if len(paths) > 1:
            yield paths, f"the same {shape} numbers: one initializer for several layers"


@_rule(
    'random initial weights, such as "glorot_uniform"',
    "Goodfellow et al. 2016, Deep Learning, section 8.4",
)
def equal_units(setup: Setup) -> Iterator[Objection]:
    found = [
        info.kernel
        for info in _architecture.describe(setup.model)
        if info.is_symmetric and info.units > 1 and info.kernel and info.is_trainable
    ]
    if found:
        yield found, "all units start with the same weights and learn the same"


@_rule(
    "a linear last layer with from_logits=True",
    "Keras: keras.losses, argument from_logits",
)
def activation_and_loss(setup: Setup) -> Iterator[Objection]:
    if not getattr(setup.model, "compiled", False):
        return
    losses = keras.tree.flatten(getattr(setup.model, "loss", None))
    if len(losses) == 1:
        losses = losses * len(setup.outputs)
    if len(losses) != len(setup.outputs):
        return
    for call, loss in zip(setup.outputs, losses, strict=True):
        takes_logits = _takes_logits(loss)
        if takes_logits is None:
            continue
        ends_with = call.activation
        if takes_logits and ends_with in ("softmax", "sigmoid"):
            yield [call.path], f"{ends_with} twice: the loss has from_logits=True"
        if not takes_logits and ends_with == "linear":
            yield [call.path], "logits given to a loss with from_logits=False"


def _takes_logits(loss: Any) -> bool | None:
    """Whether a cross-entropy takes logits; None of any other loss."""
    if isinstance(loss, keras.losses.Loss):
        config = loss.get_config()
        return bool(config["from_logits"]) if "from_logits" in config else None
    if isinstance(loss, str) and loss.lower().endswith("crossentropy"):
        return False
    return None


@_rule(
    'units=1 with activation="sigmoid", or units=2 with softmax',
    "the definition of softmax",
)
def softmax_of_one(setup: Setup) -> Iterator[Objection]:
    found = [
        path
        for path, layer in setup.layers.items()
        if isinstance(layer, keras.layers.Dense)
        and layer.units == 1
        and _layer_facts.activation_name(layer) == "softmax"
    ]
    if found:
        yield found, "softmax over one unit is always 1"


@_rule(
    "tfdeep.optimizers.ClipByValue, ClipByNorm or ClipByGlobalNorm",
    "docs/clipping.md",
)
def clipped_by_replica(setup: Setup) -> Iterator[Objection]:
    if setup.replicas < 2:
        return
    for outer in _optimizers.chain(getattr(setup.model, "optimizer", None)):
        for optimizer in _optimizers.groups(outer):
            for name in ("clipvalue", "clipnorm", "global_clipnorm"):
                value = getattr(optimizer, name, None)
                if value is not None:
                    yield (
                        [type(optimizer).__name__],
                        f"{name}={value} clips each of {setup.replicas} replicas by "
                        "itself, before their gradients are summed",
                    )
