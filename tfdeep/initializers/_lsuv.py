"""Layer-sequential unit variance: scales that are measured on a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdeep._core import _paths
from tfdeep._core._arguments import number
from tfdeep._core._explain import a_type, explain, listing
from tfdeep._core._paths import Patterns
from tfdeep._core._records import Record, render_table, shorten
from tfdeep._keras import _internals, _variables
from tfdeep._keras._patches import replaced
from tfdeep._keras._walk import layers_of_kind
from tfdeep.errors import DataError, ModelError
from tfdeep.initializers._orthogonal import Orthogonal
from tfdeep.initializers._owner import drawing_for

_MOST_ROWS = 40
_MOST_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class LsuvLayer:
    """A layer that was brought to unit variance.

    Attributes:
        path: The layer's path in its model.
        found: Variance of its output, before the activation, with orthogonal weights
            (or those it had) and with the layers before it scaled.
        variance: The same after its kernel was scaled.
        factor: What its kernel was multiplied with.
        signal: Share of the variance that lies between examples; the rest is between
            units, the same for each example. Near 0 the layer does not see its input.
        later: Variance in each further call, of a layer that is called several times:
            the first call decides.
    """

    path: str
    found: float
    variance: float
    factor: float
    signal: float
    later: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class LsuvReport(Record):
    """What `tfdeep.initializers.lsuv` has done.

    Attributes:
        model: Name of the model.
        layers: The scaled layers in the order of their calls.
        skipped: Path of each other layer with weights, and why it was left as it is.
    """

    model: str
    layers: tuple[LsuvLayer, ...]
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        rows = [
            (
                layer.path,
                f"{layer.found:.3g}",
                f"{layer.variance:.4f}",
                f"{layer.factor:.3g}",
                f"{layer.signal:.0%}",
            )
            for layer in self.layers
        ]
        notes = []
        if blind := [layer.path for layer in self.layers if layer.signal < 0.01]:
            notes.append(
                f"nearly the same for every example (signal below 1%): {listing(blind)}"
            )
        notes += [f"left as it is: {path} ({why})" for path, why in self.skipped]
        notes += [
            f"{layer.path} is called {len(layer.later) + 1} times; later variances "
            f"{min(layer.later):.3g} to {max(layer.later):.3g}"
            for layer in self.layers
            if layer.later
        ]
        return render_table(
            f"{self.model}: {len(self.layers)} layers at unit variance",
            ["layer", "found", "variance", "factor", "signal"],
            shorten(rows, _MOST_ROWS),
            notes=notes,
            align="lrrrr",
        )


def lsuv(
    model: Any,
    batch: Any,
    include: Patterns = None,
    exclude: Patterns = None,
    orthogonal: bool = True,
    tolerance: float = 0.01,
    seed: int | None = None,
) -> LsuvReport:
    """Scales each layer so that what it computes of a batch has unit variance.

    Use it once, before training, for deep nets without normalization, or with
    activations for which no initializer is made. Each kernel starts orthogonal; then,
    layer by layer from the input,

        W  <-  W / sqrt(Var(W x + b))

    The variance is that of all entries, before the activation. The model is called
    once: each layer is scaled when it is reached, and what follows sees its new output.
    It does not make a net see its input: with the logistic function nearly all of the
    variance soon lies between units. The report says how much does not (`signal`).

    Dense layers, `EinsumDense` (so also attention), convolutions of every kind and
    those inside other layers and models are scaled, by their last kernel if they have
    two. Left as they are, and named in the report: recurrent layers, layers inside
    wrappers that compute the kernel (spectral or weight normalization), embeddings,
    frozen kernels, and kernels that are all zero, as at the end of residual branches.
    Batch normalization computes as in training and keeps its moving averages; dropout
    is off. A shared layer is scaled in its first call.

    Args:
        model: A built model.
        batch: Inputs as the model is called with: an array, or a list or dict of them;
            some hundred examples, scaled as in training.
        include: A pattern or a list of patterns: the kernels to scale. None takes all.
        exclude: A pattern or a list of patterns: the kernels to leave as they are.
        orthogonal: Whether kernels start orthogonal, as in the paper, or as they are.
        tolerance: Float > 0: how far from 1 a variance may be.
        seed: Int, or None: for the orthogonal matrices.

    Returns:
        A `tfdeep.initializers.LsuvReport`, which prints as a table.

    Raises:
        SelectionError: If a pattern selects no kernel.
        InvalidArgumentError: If the tolerance is not a number > 0.
        DataError: If the batch is a dataset.
        ModelError: If the model has no weights yet, hides what it computes in a
            `tf.function`, or a layer cannot be brought to unit variance. The weights
            are then as they were.

    Example:

    >>> model = tfdeep.models.dnn((8,), [16] * 3, 2, activation="tanh")
    >>> batch = np.random.default_rng(0).normal(size=(256, 8))
    >>> report = tfdeep.initializers.lsuv(model, batch, include="hidden.*")
    >>> [round(layer.variance, 2) for layer in report.layers]
    [1.0, 1.0, 1.0]

    Reference:
        Mishkin and Matas, 2016, https://arxiv.org/abs/1511.06422 (algorithm 1).
    """
    tolerance = number(tolerance, "tolerance", "lsuv", above=0, example=0.01)
    if isinstance(batch, tf.data.Dataset):
        raise DataError(
            explain(
                "The scales are measured on one batch.",
                received="a tf.data.Dataset",
                expected="the inputs of one batch, as the model is called with",
                fix="pass its inputs: `x, _ = next(iter(dataset))`",
            )
        )
    kernels, skipped = _kernels(model)
    chosen = _paths.select([k.path for k in kernels], include, exclude, "kernel")
    skipped += [
        (k.layer_path, "not selected") for k in kernels if k.path not in set(chosen)
    ]
    kernels = [k for k in kernels if k.path in set(chosen)]
    before = [(v, keras.ops.convert_to_numpy(v)) for v in model.weights]
    try:
        if orthogonal:
            draw = Orthogonal(seed=seed)
            for k in kernels:
                with drawing_for(k.layer, k.variable):
                    k.variable.assign(draw(k.variable.shape, k.variable.dtype))
        sweep = _Sweep(kernels, tolerance)
        sweep.run(model, batch)
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise
    scaled = {id(k.variable) for k in kernels}
    for variable, value in before:  # moving averages and states of seeds
        if id(variable) not in scaled:
            variable.assign(value)
    unseen = [k.layer_path for k in kernels if k.layer_path not in sweep.results]
    return LsuvReport(
        model=model.name,
        layers=tuple(sweep.results.values()),
        skipped=(*skipped, *((path, "not called") for path in unseen)),
    )


def _kernels(
    model: Any,
) -> tuple[list[_variables.ModelVariable], list[tuple[str, str]]]:
    """The kernels that can be scaled, and the layers that cannot, with the reason."""
    kernels, skipped = [], {}
    remade = _remade(model)
    for v in _variables.model_variables(model):
        layer, path = v.layer, v.layer_path
        if id(layer) in remade:
            skipped[path] = remade[id(layer)]
        elif isinstance(layer, keras.layers.Embedding):
            skipped[path] = "a table"
        elif v.variable.name not in ("kernel", "pointwise_kernel"):
            pass
        elif not _is_linear(layer):
            skipped[path] = f"what {a_type(layer)} computes is not known"
        elif not v.variable.trainable:
            skipped[path] = "frozen"
        elif not keras.ops.any(v.variable):
            skipped[path] = "all zero"
        else:
            kernels.append(v)
    return kernels, list(skipped.items())


def _is_linear(layer: Any) -> bool:
    kinds = (keras.layers.Dense, keras.layers.EinsumDense)
    return isinstance(layer, kinds) or hasattr(layer, "kernel_size")


def _remade(model: Any) -> dict[int, str]:
    """Layers inside layers that do not just call them, by `id`."""
    found: dict[int, str] = {}
    waiting = [(model, "")]
    while waiting:
        layer, why = waiting.pop()
        if isinstance(layer, keras.layers.RNN):
            why = "recurrent"
        elif isinstance(layer, keras.layers.Wrapper) and not isinstance(
            layer, keras.layers.TimeDistributed
        ):
            why = why or f"inside {a_type(layer)}"
        if why:
            found[id(layer)] = why
        waiting += [(inner, why) for inner in _internals.sublayers(layer)]
    return found


class _Sweep:
    """One call of the model in which each layer is scaled when it is reached."""

    def __init__(
        self, kernels: list[_variables.ModelVariable], tolerance: float
    ) -> None:
        self.results: dict[str, LsuvLayer] = {}
        # Raised after the call: Keras rewrites what is raised inside a layer.
        self.failure: ModelError | None = None
        self._kernels = kernels
        self._tolerance = tolerance
        self._before_activation: Any = None

    def run(self, model: Any, batch: Any) -> None:
        with contextlib.ExitStack() as stack:
            for kernel in self._kernels:
                around = functools.partial(self._scaled, kernel)
                stack.enter_context(replaced(kernel.layer, "call", around))
                if getattr(kernel.layer, "activation", None) is not None:
                    stack.enter_context(
                        replaced(kernel.layer, "activation", self._seen)
                    )
            norms = layers_of_kind(model, keras.layers.BatchNormalization)
            for norm in norms.values():
                stack.enter_context(replaced(norm, "call", _as_in_training))
            model(batch, training=False)
        if self.failure is not None:
            raise self.failure

    def _seen(self, activation: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def seen(x: Any) -> Any:
            self._before_activation = x
            return activation(x)

        return seen

    def _scaled(
        self, kernel: _variables.ModelVariable, call: Callable[..., Any]
    ) -> Callable[..., Any]:
        path = kernel.layer_path

        def measured(*args: Any, **kwargs: Any) -> tuple[Any, float, float]:
            self._before_activation = None
            output = call(*args, **kwargs)
            z = self._before_activation
            return output, *_variance(output if z is None else z)

        @functools.wraps(call)
        def scaled(*args: Any, **kwargs: Any) -> Any:
            if self.failure is not None:
                return call(*args, **kwargs)
            if not tf.executing_eagerly():
                self.failure = _hidden(path)
                return call(*args, **kwargs)
            output, variance, signal = measured(*args, **kwargs)
            done = self.results.get(path)
            if done is not None:
                later = (*done.later, variance)
                self.results[path] = dataclasses.replace(done, later=later)
                return output
            found, factor = variance, 1.0
            for _ in range(_MOST_ATTEMPTS):
                is_done = abs(variance - 1) <= self._tolerance
                if is_done or not (math.isfinite(variance) and variance > 0):
                    break
                factor /= math.sqrt(variance)
                kernel.variable.assign(kernel.variable / math.sqrt(variance))
                output, variance, signal = measured(*args, **kwargs)
            if abs(variance - 1) <= self._tolerance:
                self.results[path] = LsuvLayer(path, found, variance, factor, signal)
            else:
                self.failure = _cannot(path, variance)
            return output

        return scaled


def _variance(tensor: Any) -> tuple[float, float]:
    """The variance of all entries, and the share of it that is between examples."""
    z = tf.cast(tensor, tf.float64)
    total = float(tf.math.reduce_variance(z))
    between = float(tf.reduce_mean(tf.math.reduce_variance(z, axis=0)))
    return total, between / total if total > 0 else 0.0


def _hidden(path: str) -> ModelError:
    return ModelError(
        explain(
            f"What the layer `{path}` computes cannot be seen.",
            received="a `call` that runs inside a `tf.function`",
            expected="a model that runs eagerly when it is called",
            fix="take `@tf.function` away from `call`: `fit` compiles the step "
            "anyway; nothing was changed",
        )
    )


def _cannot(path: str, variance: float) -> ModelError:
    return ModelError(
        explain(
            f"The layer `{path}` cannot be brought to unit variance.",
            received=f"a variance of {variance:.3g}",
            expected="one that follows the scale of the kernel",
            fix="look for inputs that are not finite or all the same, dead units "
            f"before the layer, or a large bias; or leave it out: exclude={path!r}; "
            "nothing was changed",
        )
    )


def _as_in_training(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def as_in_training(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **{**kwargs, "training": True})

    return as_in_training
