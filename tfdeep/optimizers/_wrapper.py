"""The one mechanism that all gradient transforms share."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core import _gradients
from tfdeep._core._gradients import Gradient
from tfdeep._keras import _internals, _owners, _replicas
from tfdeep.optimizers import _refusals
from tfdeep.optimizers._telemetry import Telemetry


def _of_inner(name: str) -> property:
    """An attribute of Keras optimizers that a wrapper has from its inner optimizer."""

    def get(self: Any) -> Any:
        # Keras sets and reads these before there is an inner optimizer.
        inner = vars(self).get("inner_optimizer")
        return None if inner is None else getattr(inner, name)

    def set_(self: Any, value: Any) -> None:
        if "inner_optimizer" in vars(self):
            setattr(self.inner_optimizer, name, value)

    return property(get, set_)


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
        _refusals.check_surroundings(type(self).__name__)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = _refusals.checked_inner(
            inner_optimizer, type(self).__name__
        )
        self._is_loss_scaled = False
        self._model: weakref.ref[Any] | None = None
        self._asked_for: tuple[int, ...] = ()

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
        return gradients

    def build_state(self, variables: list[keras.Variable]) -> None:
        """Creates the rule's own variables with `self.add_variable`; may be left out.

        Args:
            variables: All the variables that the optimizer may be asked to train.
        """

    def record(
        self,
        norm: Any = np.nan,
        clipped_norm: Any = np.nan,
        threshold: Any = np.nan,
        skipped: Any = False,
    ) -> None:
        """Counts a step for `telemetry`; call it once in `transform`, or leave it out.

        Args:
            norm: Scalar. Joint norm of the gradients before the rule.
            clipped_norm: Scalar. The same after it; less than `norm` counts as
                clipped.
            threshold: Scalar. The bound in force.
            skipped: Scalar bool. Whether the step is not passed on.
        """
        latest = [tf.cast(x, tf.float32) for x in (norm, clipped_norm, threshold)]
        count = [True, latest[1] < latest[0], skipped]
        self._counts.assign_add(tf.cast(tf.stack(count), self._counts.dtype))
        self._latest.assign(tf.stack(latest))

    @property
    def telemetry(self) -> Telemetry:
        """What this wrapper has done so far."""
        steps, clipped, skipped = self._counts.numpy() if self.built else (0, 0, 0)
        latest = self._latest.numpy() if self.built else [np.nan] * 3
        return Telemetry(
            type(self).__name__,
            int(steps),
            int(clipped),
            int(skipped),
            *map(float, latest),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(
                self.inner_optimizer
            ),
        }

    # What it must know of the model.

    def bind(self, model: Any) -> None:
        """Tells the wrapper, and those inside it, which model it trains.

        `fit` and `train_step` do so by themselves. Call it before the first step of
        your own loop if a rule needs the layers: patterns then select paths within the
        model, and `AdaptiveClip` knows what a unit of each kernel is.

        Args:
            model: A built model.
        """
        _owners.tell(model)
        self._model = weakref.ref(model)
        if isinstance(self.inner_optimizer, OptimizerWrapper):
            self.inner_optimizer.bind(model)

    def _bound_model(self) -> Any:
        """The model that this wrapper was told it trains; None if it was not told."""
        return None if self._model is None else self._model()

    def _ask_callers(self) -> None:
        """Binds the wrapper to the model in whose step it is called, if any."""
        model = _owners.model_in_training(self)
        if model is not None:
            self.bind(model)

    # The step.

    # The rules are no part of a user's graph function, to be read and rewritten.
    @tf.autograph.experimental.do_not_convert
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
            variables = _internals.built_for(self)
        else:
            variables = list(trainable_variables)
        wanted = tuple(map(id, variables))
        if wanted != self._asked_for or not tf.executing_eagerly():
            self._asked_for = wanted
            self._ask_callers()
        _refusals.check_step(self, self._bound_model())
        if trainable_variables is not None and not self.built:
            with keras.name_scope(self.name):
                self.build(variables)
        gradients = list(grads)
        places = trained(gradients, variables)
        if not places:  # Keras has its own words for that
            self.inner_optimizer.apply(gradients, trainable_variables=variables)
            return
        reduced = _replicas.sum_over([gradients[i] for i in places])
        if self.loss_scale_factor is not None:
            unscale = 1.0 / self.loss_scale_factor
            reduced = [_gradients.scale(gradient, unscale) for gradient in reduced]
        gradients = _with(gradients, places, reduced)
        if _replicas.count() > 1 and self._is_loss_scaled:
            # The loss scaling around this wrapper has looked at the first replica
            # only.
            finite = tf.reduce_all(tf.math.is_finite(_gradients.l2_norms(reduced)))
            self._counts.assign_add(
                tf.cast(tf.stack([False, False, ~finite]), self._counts.dtype)
            )
            _replicas.call_if(
                finite, lambda g: self.apply_reduced(g, variables), gradients
            )
        else:
            self.apply_reduced(gradients, variables)

    def apply_reduced(
        self,
        gradients: list[Gradient | None],
        variables: list[keras.Variable],
    ) -> None:
        """Applies gradients that are already summed over replicas and unscaled.

        Override it for a rule that decides whether a step is made at all.

        Args:
            gradients: One for each variable, or None where there is none.
            variables: The variables.
        """
        places = trained(gradients, variables)
        transformed = self.transform(
            [gradients[i] for i in places], [variables[i] for i in places]
        )
        self.pass_on(_with(gradients, places, transformed), variables)

    def pass_on(
        self,
        gradients: list[Gradient | None],
        variables: list[keras.Variable],
    ) -> None:
        """Hands the transformed gradients to the inner optimizer.

        Args:
            gradients: One for each variable, or None where there is none.
            variables: The variables.
        """
        inner = self.inner_optimizer
        if isinstance(inner, OptimizerWrapper):
            inner.apply_reduced(gradients, variables)
            return
        if self.loss_scale_factor is not None:
            # The inner optimizer takes the loss scale out once more; of a sparse
            # gradient it cannot.
            places = trained(gradients, variables)
            scaled = [
                tf.convert_to_tensor(gradients[i]) * self.loss_scale_factor
                for i in places
            ]
            gradients = _with(gradients, places, scaled)
        if _replicas.count() > 1:
            _internals.apply_reduced(inner, gradients, variables)
        else:
            inner.apply(gradients, trainable_variables=variables)

    # What callers expect of any Keras optimizer.

    def build(self, variables: Sequence[keras.Variable]) -> None:
        # A `LossScaleOptimizer` builds its inner optimizer. Under a strategy its steps
        # run in other threads than the model's, where neither is among the callers.
        self._is_loss_scaled |= _owners.has_loss_scaling_around(self)
        self._ask_callers()
        if self.built:
            return
        _refusals.check_surroundings(type(self).__name__)
        variables = list(variables)
        self._counts = self.add_variable((3,), dtype="int", name="counts")
        self._latest = self.add_variable(
            (3,), initializer=keras.initializers.Constant(np.nan), name="latest"
        )
        self.build_state(variables)
        self.inner_optimizer.build(variables)
        # A `MultiOptimizer` may have asked for its optimizers only now.
        _refusals.check_arguments(self.inner_optimizer, type(self).__name__)
        super().build(variables)

    @property
    def variables(self) -> list[keras.Variable]:
        return [*super().variables, *self.inner_optimizer.variables]

    learning_rate = _of_inner("learning_rate")
    iterations = _of_inner("iterations")
    weight_decay = _of_inner("weight_decay")
    ema_momentum = _of_inner("ema_momentum")
    ema_overwrite_frequency = _of_inner("ema_overwrite_frequency")
    loss_scale_factor = _of_inner("loss_scale_factor")

    @property
    def use_ema(self) -> bool:
        # While it builds this wrapper, Keras must not give it averages of its own.
        return self.built and bool(self.inner_optimizer.use_ema)

    @use_ema.setter
    def use_ema(self, use_ema: bool) -> None:
        if "inner_optimizer" in vars(self):
            self.inner_optimizer.use_ema = use_ema

    def __getattr__(self, name: str) -> Any:
        # What only some optimizers have, such as the `optimizers` of a
        # `MultiOptimizer` or the averages that `SwapEMAWeights` looks for.
        inner = vars(self).get("inner_optimizer")
        if name.startswith("_") and name != "_model_variables_moving_average":
            inner = None
        if inner is None:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
            )
        return getattr(inner, name)

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
        own = super().variables
        if len(store.keys()) != len(own):  # saved before its first step; as in Keras
            warnings.warn(
                f"The state of `{self.name}` is not loaded: it has {len(own)} "
                f"variables, the saved one has {len(store.keys())}.",
                stacklevel=2,
            )
            return
        for i, variable in enumerate(own):
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


def trained(gradients: list[Gradient | None], variables: list[Any]) -> list[int]:
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
