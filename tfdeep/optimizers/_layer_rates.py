"""Learning rates by layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfdeep._core import _paths
from tfdeep._core._arguments import number
from tfdeep._core._explain import explain, listing
from tfdeep._core._gradients import Gradient
from tfdeep._core._records import Record, render_table, shorten
from tfdeep._keras import _internals, _optimizers, _variables
from tfdeep.errors import InvalidArgumentError, SelectionError
from tfdeep.optimizers._wrapper import OptimizerWrapper

_MOST_ROWS = 60


@dataclasses.dataclass(frozen=True)
class RateTable(Record):
    """Which variable is trained with which learning rate.

    Attributes:
        learning_rate: The learning rate of the optimizer now.
        multipliers: By the path of each trainable variable, what multiplies it.
    """

    learning_rate: float
    multipliers: dict[str, float]

    def __str__(self) -> str:
        rows = [
            (path, f"{factor:.4g}", f"{factor * self.learning_rate:.4g}")
            for path, factor in self.multipliers.items()
        ]
        return render_table(
            f"{len(rows)} variables train, at a learning rate of "
            f"{self.learning_rate:.4g}",
            ["variable", "multiplier", "learning rate"],
            shorten(rows, _MOST_ROWS),
            align="lrr",
        )


@keras.saving.register_keras_serializable("tfdeep")
class LayerRates(OptimizerWrapper):
    """Trains chosen layers with a multiple of the learning rate.

    Use it to fine-tune: pretrained layers need smaller steps than a new head. With
    m_v the multiplier of variable v and eta_t the learning rate, which a schedule or
    a callback may change for all at once, the inner optimizer updates v with

        eta_(t,v)  =  m_v * eta_t

    It is the update that is scaled, never the gradient: Adam and its kin undo a
    scaled gradient. Weight decay is scaled as well, being a part of the update that is
    proportional to the learning rate. A variable that no pattern selects has m_v = 1.

    Clipping and other wrappers may stand outside or inside. Keras'
    `MultiOptimizer` (from 3.15) trains the same, without a common learning rate to
    schedule.

    Args:
        inner_optimizer: Any Keras optimizer, or its name.
        rates: By pattern, the multiplier: a float > 0. In `fit`, patterns of paths
            within the model, such as `{"hidden[12]": 0.1}`; in a loop of one's own,
            of `variable.path`. No variable may be selected by two. `layer_decay`
            makes such a dictionary.
        name: Name of the wrapper.

    Raises:
        InvalidArgumentError: If `rates` is not a dictionary from patterns to finite
            numbers > 0, or `inner_optimizer` cannot work inside a wrapper.
        SelectionError: At the first step and from `table`, if a pattern selects no
            variable, or two select the same.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3], num_outputs=2)
    >>> sgd = keras.optimizers.SGD(learning_rate=0.5)
    >>> optimizer = tfdeep.optimizers.LayerRates(sgd, {"hidden1": 0.1})
    >>> print(optimizer.table(model))  # before training
    4 variables train, at a learning rate of 0.5
    <BLANKLINE>
     variable         multiplier   learning rate
     ───────────────────────────────────────────
     hidden1/kernel          0.1            0.05
     hidden1/bias            0.1            0.05
     outputs/kernel            1             0.5
     outputs/bias              1             0.5
    <BLANKLINE>

    Reference:
        Howard and Ruder, 2018, https://arxiv.org/abs/1801.06146 (section 3.2).
    """

    def __init__(
        self,
        inner_optimizer: Any,
        rates: Mapping[str, float],
        name: str | None = None,
    ) -> None:
        rates = _checked_rates(rates)
        super().__init__(inner_optimizer, name=name)
        self.rates = rates

    def table(self, model: Any) -> RateTable:
        """Which variable of a model is, or would be, trained with which rate.

        Args:
            model: A built model; it need not be compiled.

        Raises:
            SelectionError: If a pattern selects no variable, or two select the same.
        """
        variables = _variables.model_variables(model)
        multipliers = _multipliers([v.path for v in variables], self.rates)
        trained = {id(variable) for variable in model.trainable_variables}
        [first, *_] = _optimizers.groups(_optimizers.chain(self)[-1])
        return RateTable(
            float(keras.ops.convert_to_numpy(first.learning_rate)),
            {
                v.path: multipliers[v.path]
                for v in variables
                if id(v.variable) in trained
            },
        )

    def build_state(self, variables: list[keras.Variable]) -> None:
        # Looked up in the first step: only then is it known whose optimizer this is.
        self._factors: dict[int, float] = {}

    def transform(
        self, gradients: list[Gradient], variables: list[keras.Variable]
    ) -> list[Gradient]:
        if any(id(variable) not in self._factors for variable in variables):
            self._factors = self._find_factors(_internals.built_for(self))
        for optimizer in _optimizers.groups(_optimizers.chain(self)[-1]):
            built_for = _internals.built_for(optimizer)
            _internals.multiply_rates(
                optimizer, self, [(v, self._factors[id(v)]) for v in built_for]
            )
        self.record()
        return gradients

    def _find_factors(self, variables: list[keras.Variable]) -> dict[int, float]:
        paths = {id(v): v.path for v in variables}
        model = self._bound_model()
        if model is not None:
            paths.update(
                {id(v.variable): v.path for v in _variables.model_variables(model)}
            )
        multipliers = _multipliers(list(paths.values()), self.rates)
        return {key: multipliers[path] for key, path in paths.items()}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rates": dict(self.rates)}


def layer_decay(
    model: Any, decay: float = 0.9, blocks: Sequence[str] | None = None
) -> dict[str, float]:
    """Multipliers for `LayerRates` that fall from the outputs to the inputs.

    Use it to fine-tune a whole pretrained model: the first layers have learned what
    most tasks share, and should move least. Of L layers, layer l has

        m_l  =  decay^(L - l)

    so that the last one has the full learning rate.

    Args:
        model: A built model.
        decay: Float > 0 and <= 1. The ratio of one layer to the next.
        blocks: Patterns, from the inputs to the outputs, each of which stands for one
            layer in the equation; together they must select every variable, each
            once. Name the blocks of a model that has branches, or that has other
            layers (such as normalization) between its main ones. None takes each
            layer that has weights, in the order of the model.

    Returns:
        A dictionary from patterns to multipliers.

    Raises:
        InvalidArgumentError: If `decay` is out of its range.
        ModelError: If the model has no weights yet.
        SelectionError: If a block selects nothing, two select the same variable, or
            no block selects some variable.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> tfdeep.optimizers.layer_decay(model, decay=0.5)
    {'hidden1': 0.25, 'hidden2': 0.5, 'outputs': 1.0}

    Reference:
        Clark et al., 2020, https://arxiv.org/abs/2003.10555 (appendix A).
    """
    decay = number(decay, "decay", "layer_decay", above=0, at_most=1, example=0.9)
    variables = _variables.model_variables(model)
    if blocks is None:
        blocks = _layer_patterns(variables)
    rates = {block: decay ** (len(blocks) - 1 - i) for i, block in enumerate(blocks)}
    paths = [v.path for v in variables]
    left = set(paths) - set(_selected(paths, rates))
    if left:
        raise SelectionError(
            explain(
                "Some variables are in no block.",
                received=listing(p for p in paths if p in left),
                expected="blocks that together select every variable of the model",
                fix="add a pattern for these to `blocks`",
            )
        )
    return rates


def _layer_patterns(variables: list[_variables.ModelVariable]) -> list[str]:
    """A pattern for each layer that has weights of its own."""
    names: dict[str, list[str]] = {}
    for v in variables:
        names.setdefault(v.layer_path, []).append(re.escape(v.variable.name))
    patterns = []
    for layer, own in names.items():
        pattern = re.escape(layer)
        if any(other.startswith(f"{layer}/") for other in names) or not layer:
            # A layer around others: its own weights only.
            pattern = (pattern + "/" if layer else "") + f"(?:{'|'.join(own)})"
        patterns.append(pattern)
    return patterns


def _multipliers(paths: list[str], rates: Mapping[str, float]) -> dict[str, float]:
    """The multiplier of each path."""
    selected = _selected(paths, rates)
    return {path: rates[selected[path]] if path in selected else 1.0 for path in paths}


def _selected(paths: list[str], patterns: Mapping[str, float]) -> dict[str, str]:
    """By path, the one pattern that selects it."""
    found: dict[str, str] = {}
    for pattern in patterns:
        for path in dict.fromkeys(_paths.select(paths, pattern)):
            if path in found:
                raise SelectionError(
                    explain(
                        "Two patterns select the same variable.",
                        received=f"{found[path]!r} and {pattern!r}, which both select "
                        f"{path}",
                        expected="at most one pattern for each variable",
                        fix="make one of them narrower; nothing was changed",
                    )
                )
            found[path] = pattern
    return found


def _checked_rates(rates: Any) -> dict[str, float]:
    if not isinstance(rates, Mapping) or not rates:
        raise InvalidArgumentError(
            explain(
                "`LayerRates` needs to know which layers to train at which rate.",
                received=f"rates={rates!r}",
                expected="a dictionary from patterns to multipliers",
                fix='for example `rates={"hidden[12]": 0.1}`',
            )
        )
    for pattern in rates:
        _paths.compile_pattern(pattern)
    return {
        pattern: number(rate, f"rates[{pattern!r}]", "LayerRates", above=0, example=0.1)
        for pattern, rate in rates.items()
    }
