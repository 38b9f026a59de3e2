"""What cannot give right steps, refused with the reason and the remedy."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._explain import explain
from tfdeep._keras import _internals, _optimizers, _replicas
from tfdeep.errors import InvalidArgumentError


def checked_inner(inner: Any, wrapper: str) -> Any:
    """The inner optimizer, if it can work inside a wrapper."""
    if isinstance(inner, str):
        inner = keras.optimizers.get(inner)
    if not isinstance(inner, keras.optimizers.Optimizer):
        raise InvalidArgumentError(
            explain(
                f"`{wrapper}` needs an optimizer to pass the gradients to.",
                received=f"inner_optimizer={inner!r} ({type(inner).__name__})",
                expected="a Keras optimizer, or the name of one",
                fix=f"`{wrapper}(keras.optimizers.Adam(1e-3), ...)`",
            )
        )
    if isinstance(inner, keras.optimizers.LossScaleOptimizer):
        raise InvalidArgumentError(
            explain(
                f"`{wrapper}` cannot stand outside a `LossScaleOptimizer`: gradients "
                "would be unscaled twice.",
                received="inner_optimizer=LossScaleOptimizer(...)",
                expected="the optimizer without loss scaling",
                fix=f"`LossScaleOptimizer({wrapper}(optimizer, ...))`, or let "
                "`compile` add the loss scaling under a mixed_float16 policy",
            )
        )
    check_arguments(inner, wrapper)
    return inner


def fix_for(value: Any, wrapper: str, example: str) -> str:
    """What to do about an argument that a wrapper cannot use.

    Args:
        value: What was given for the argument that follows `inner_optimizer`.
        wrapper: The class of the wrapper.
        example: The argument with a value that works.
    """
    if _is_optimizer(value):
        return f"the arguments are swapped: write `{wrapper}(optimizer, {example})`"
    return f"pass, for example, `{example}`, or leave the wrapper out"


def _is_optimizer(value: Any) -> bool:
    """Whether `value` is an optimizer or the name of one."""
    if isinstance(value, str):
        try:
            value = keras.optimizers.get(value)
        except ValueError:
            return False
    return isinstance(value, keras.optimizers.Optimizer)


def check_arguments(inner: Any, wrapper: str) -> None:
    """Refuses what the optimizers inside would do to gradients by themselves."""
    for optimizer in _optimizers.groups(inner):
        for argument, (consequence, instead) in _NOT_INSIDE.items():
            value = getattr(optimizer, argument, None)
            if value is not None:
                kind = type(optimizer).__name__
                raise InvalidArgumentError(
                    explain(
                        f"The inner optimizer of `{wrapper}` must not use "
                        f"`{argument}`: {consequence}.",
                        received=f"{kind}(..., {argument}={value!r})",
                        expected=f"{argument}=None in the inner optimizer",
                        fix=f"leave `{argument}` out of `{kind}(...)`; to have it too, "
                        f"`tfdeep.optimizers.{instead.format(kind, value)}`",
                    )
                )


_PER_REPLICA = "Keras clips each replica before the gradients are summed"
_NOT_INSIDE = {
    "clipvalue": (_PER_REPLICA, "ClipByValue({}(...), clip_value={})"),
    "clipnorm": (_PER_REPLICA, "ClipByNorm({}(...), clip_norm={})"),
    "global_clipnorm": (_PER_REPLICA, "ClipByGlobalNorm({}(...), clip_norm={})"),
    "gradient_accumulation_steps": (
        "each micro-batch would be clipped by itself",
        "Accumulate({}(...), steps={})",
    ),
}


def check_surroundings(wrapper: str) -> None:
    """Refuses the ways to distribute in which no wrapper can be right."""
    if isinstance(tf.distribute.get_strategy(), _PARAMETER_SERVER):
        raise InvalidArgumentError(
            explain(
                f"`{wrapper}` cannot work under a `ParameterServerStrategy`: Keras 3 "
                "cannot `fit` there, and in a loop of one's own the workers overwrite "
                "each other's counters.",
                received="a ParameterServerStrategy in scope",
                expected="one device, `MirroredStrategy`, "
                "`tfdeep.distribute.MultiWorkerMirroredStrategy` or `TPUStrategy`",
                fix="make model and optimizer in the scope of one of these",
            )
        )
    if keras.distribution.distribution() is not None:
        raise InvalidArgumentError(
            explain(
                "`keras.distribution` does nothing on the TensorFlow backend: training "
                "would run on one device without a word.",
                received=f"{type(keras.distribution.distribution()).__name__} set by "
                "`keras.distribution.set_distribution`",
                expected="no keras.distribution",
                fix="`keras.distribution.set_distribution(None)`, and the scope of a "
                "`tf.distribute` strategy",
            )
        )


_PARAMETER_SERVER = (
    tf.distribute.ParameterServerStrategy,
    tf.distribute.experimental.ParameterServerStrategy,
)


def check_step(wrapper: Any, model: Any) -> None:
    """Refuses a step that cannot be right under the strategy it runs in."""
    strategy = tf.distribute.get_strategy()
    inside = _optimizers.chain(wrapper)
    for optimizer in [*inside, *_optimizers.groups(inside[-1])]:
        if _internals.strategy_of(optimizer) is not strategy:
            raise InvalidArgumentError(
                explain(
                    f"`{type(optimizer).__name__}` was not made in the scope of the "
                    "strategy that it trains in: its steps would be counted once for "
                    "each replica, or not be applied at all.",
                    received=f"an optimizer made under "
                    f"{_name(_internals.strategy_of(optimizer))}, used under "
                    f"{_name(strategy)}",
                    expected="model, optimizer and wrappers made in `strategy.scope()`",
                    fix="move the lines that make them, and `compile`, into "
                    "`with strategy.scope():`; nothing was changed",
                )
            )
    if _replicas.count() > 1 and not tf.executing_eagerly():
        for optimizer in _optimizers.groups(inside[-1]):
            _check_average(optimizer)
        if model is not None:
            _check_compiled(model, strategy)


def _check_average(optimizer: Any) -> None:
    if optimizer.use_ema and optimizer.ema_overwrite_frequency is not None:
        raise InvalidArgumentError(
            explain(
                "Keras cannot overwrite weights by their average in a compiled step "
                "of several replicas.",
                received=f"{type(optimizer).__name__}(..., use_ema=True, "
                f"ema_overwrite_frequency={optimizer.ema_overwrite_frequency})",
                expected="ema_overwrite_frequency=None",
                fix="leave it out: the average is written to the weights when `fit` "
                "ends, or in between by `keras.callbacks.SwapEMAWeights`",
            )
        )


def _check_compiled(model: Any, strategy: Any) -> None:
    if model.jit_compile is True:
        raise InvalidArgumentError(
            explain(
                "XLA cannot compile a step of several replicas: the variables lie on "
                "other devices than the step.",
                received=f"model {model.name!r} compiled with jit_compile=True under "
                f"{_name(strategy)}",
                expected='jit_compile="auto" or False under a strategy',
                fix='`model.compile(..., jit_compile="auto")`; nothing was changed',
            )
        )
    if model.steps_per_execution > 1 and _loops_break(strategy):
        raise InvalidArgumentError(
            explain(
                "The collective all-reduce of this strategy fails inside the loop "
                "that `steps_per_execution` makes of several steps.",
                received=f"steps_per_execution={model.steps_per_execution} under "
                f"{_name(strategy)}",
                expected="steps_per_execution=1, or another all-reduce",
                fix="leave `steps_per_execution` out, or on one machine "
                "`tf.distribute.MirroredStrategy(cross_device_ops="
                "tf.distribute.ReductionToOneDevice())`; nothing was changed",
            )
        )


def _loops_break(strategy: Any) -> bool:
    all_reduce = _internals.all_reduce_of(strategy)
    return all_reduce is not None and not isinstance(all_reduce, _WORKS_IN_LOOPS)


_WORKS_IN_LOOPS = (
    tf.distribute.ReductionToOneDevice,
    tf.distribute.HierarchicalCopyAllReduce,
    tf.distribute.NcclAllReduce,
)


def _name(strategy: Any) -> str:
    name = type(strategy).__name__
    return "no strategy" if name == "_DefaultDistributionStrategy" else name
