"""The one mechanism that all gradient transforms share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeep._core import _gradients, _keras_internals
from tfdeep._core._explain import explain
from tfdeep._core._gradients import Gradient
from tfdeep.errors import InvalidArgumentError


class OptimizerWrapper(keras.optimizers.Optimizer):
    """Changes the gradients on their way to another optimizer.

    Use one of the ready wrappers, or subclass this one for a rule of your own:
    override `transform`, and `get_config` if the rule has arguments. Wrappers nest;
    the gradient passes them from the outside in.

    `transform` sees the gradients that train the model: summed over all replicas
    and free of any loss scale.

        all-reduce -> unscale -> transform -> inner optimizer

    Args:
        inner_optimizer: Any Keras optimizer, or its name. It must not clip or
            accumulate by itself, and must not be a `LossScaleOptimizer`
            (`keras.Model.compile` puts that one around the wrapper).
        name: Name of the wrapper. Defaults to its class name in snake case.

    Raises:
        InvalidArgumentError: If `inner_optimizer` cannot work inside a wrapper.

    Example:

    >>> class Reverse(tfdeep.optimizers.OptimizerWrapper):
    ...     def transform(self, gradients, variables):
    ...         return [-gradient for gradient in gradients]
    >>> weight = keras.Variable([1.0, 2.0])
    >>> optimizer = Reverse(keras.optimizers.SGD(learning_rate=0.5))
    >>> optimizer.apply([keras.ops.array([1.0, 1.0])], [weight])
    >>> print(weight.numpy())
    [1.5 2.5]
    """

    def __init__(self, inner_optimizer: Any, name: str | None = None) -> None:
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = _checked(inner_optimizer, type(self).__name__)

    # What a rule overrides.

    def transform(
        self, gradients: list[Gradient], variables: list[keras.Variable]
    ) -> list[Gradient]:
        """Returns the gradients to pass on; override it.

        Args:
            gradients: Dense tensors or `tf.IndexedSlices`, one for each variable,
                summed over replicas and unscaled. Variables without a gradient are
                left out.
            variables: The variables, in the same order.
        """
        raise NotImplementedError

    def build_state(self, variables: list[keras.Variable]) -> None:
        """Creates the rule's own variables with `self.add_variable`; may be left out.

        Args:
            variables: All the variables that the optimizer may be asked to train.
        """

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(
                self.inner_optimizer
            ),
        }

    # The step.

    def apply(
        self,
        grads: Sequence[Gradient | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        if tf.distribute.in_cross_replica_context():
            raise ValueError("apply() must be called in a replica context.")
        if len(grads) == 0:
            return
        if trainable_variables is None:
            variables = _keras_internals.built_for(self)
        else:
            variables = list(trainable_variables)
            if not self.built:
                with keras.name_scope(self.name):
                    self.build(variables)
        gradients = list(grads)
        trained = _trained(gradients, variables)
        reduced = _gradients.replica_sum([gradients[i] for i in trained])
        if self.loss_scale_factor is not None:
            unscale = 1.0 / self.loss_scale_factor
            reduced = [_gradients.scale(gradient, unscale) for gradient in reduced]
        self.apply_reduced(_with(gradients, trained, reduced), variables)

    def apply_reduced(
        self,
        gradients: list[Gradient | None],
        variables: list[keras.Variable],
    ) -> None:
        """Applies gradients that are already summed over replicas and unscaled.

        Args:
            gradients: One for each variable, or None where there is none.
            variables: The variables.
        """
        trained = _trained(gradients, variables)
        transformed = self.transform(
            [gradients[i] for i in trained], [variables[i] for i in trained]
        )
        if isinstance(self.inner_optimizer, OptimizerWrapper):
            gradients = _with(gradients, trained, transformed)
            self.inner_optimizer.apply_reduced(gradients, variables)
            return
        # The inner optimizer sums over the replicas once more and takes the loss
        # scale out once more: give it what makes both come out right.
        factor = (self.loss_scale_factor or 1.0) / _gradients.num_replicas()
        if factor != 1.0:
            transformed = [_gradients.scale(g, factor) for g in transformed]
        gradients = _with(gradients, trained, transformed)
        self.inner_optimizer.apply(gradients, trainable_variables=variables)

    # What callers expect of any Keras optimizer.

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        variables = list(variables)
        self.build_state(variables)
        self.inner_optimizer.build(variables)
        super().build(variables)

    @property
    def variables(self) -> list[keras.Variable]:
        return [*super().variables, *self.inner_optimizer.variables]

    @property
    def learning_rate(self) -> Any:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self) -> float | None:
        # Keras sets this before there is an inner optimizer.
        inner = getattr(self, "inner_optimizer", None)
        return None if inner is None else inner.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        if hasattr(self, "inner_optimizer"):
            self.inner_optimizer.loss_scale_factor = factor

    def scale_loss(self, loss: Any) -> Any:
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        self.inner_optimizer.finalize_variable_values(var_list)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        self.inner_optimizer.exclude_from_weight_decay(*args, **kwargs)

    def set_weights(self, weights: Sequence[Any]) -> None:
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

    def save_own_variables(self, store: Any) -> None:
        # Keras saves the inner optimizer by itself, as a part of this one.
        for i, variable in enumerate(super().variables):
            store[str(i)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        for i, variable in enumerate(super().variables):
            variable.assign(store[str(i)])

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> OptimizerWrapper:
        config = dict(config)
        inner = keras.saving.deserialize_keras_object(
            config.pop("inner_optimizer"), custom_objects=custom_objects
        )
        return cls(inner, **config)


def _trained(gradients: list[Gradient | None], variables: list[Any]) -> list[int]:
    """The places that have a gradient (what Keras hands on for float8 is none)."""
    return [
        i
        for i, (gradient, variable) in enumerate(zip(gradients, variables, strict=True))
        if gradient is not None
        and not getattr(variable, "overwrite_with_gradient", False)
    ]


def _with(
    gradients: list[Gradient | None], places: list[int], values: list[Gradient]
) -> list[Gradient | None]:
    """A copy of `gradients` with `values` in `places`."""
    replaced = list(gradients)
    for i, value in zip(places, values, strict=True):
        replaced[i] = value
    return replaced


def check_positive(value: Any, argument: str, wrapper: str, unit: str) -> float:
    """Returns `value` as a float if it is a finite number greater than zero."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and value > 0:
        return float(value)
    raise InvalidArgumentError(
        explain(
            f"`{wrapper}` cannot clip to this {argument}.",
            received=f"{argument}={value!r} ({type(value).__name__})",
            expected=f"a finite number > 0, in {unit}",
            fix=f"pass for example `{argument}=1.0`, or leave the wrapper out to train "
            "unclipped",
        )
    )


def _checked(inner: Any, wrapper: str) -> Any:
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
    for argument, consequence in _NOT_INSIDE.items():
        value = getattr(inner, argument, None)
        if value is not None:
            raise InvalidArgumentError(
                explain(
                    f"The inner optimizer of `{wrapper}` must not use `{argument}`: "
                    f"{consequence}.",
                    received=f"{type(inner).__name__}(..., {argument}={value!r})",
                    expected=f"{argument}=None in the inner optimizer",
                    fix=f"leave `{argument}` out and wrap with a tfdeep optimizer that "
                    "does the same",
                )
            )
    return inner


_PER_REPLICA = "Keras clips each replica before the gradients are summed"
_NOT_INSIDE = {
    "clipvalue": _PER_REPLICA,
    "clipnorm": _PER_REPLICA,
    "global_clipnorm": _PER_REPLICA,
    "gradient_accumulation_steps": "each micro-batch would be clipped by itself",
}
