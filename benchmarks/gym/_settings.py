"""Everything in which the nets of the gym differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a builder or a data set may be told; each reads what concerns it.

    `initializer`, `bias` and `trainable` hold for the layers named in `only`, and for
    all hidden layers if it is empty. An illness at one layer, and its remedy, are thus
    the same setting.
    """

    # The layers.
    depth: int = 4
    units: int = 64
    activation: str = "relu"
    initializer: Any = None  # a number is the deviation of a normal; None suits both
    bias: float | None = 0.0  # None: no bias
    trainable: bool = True
    only: tuple[str, ...] = ()
    normalization: str | None = None  # "batch" or "layer"
    gamma: str = "ones"  # first scale of the normalization that ends a branch
    residual: bool = False
    gate: bool = False  # ReZero: a learned factor of each branch, at first 0
    dropout: float = 0.0
    alpha_dropout: float = 0.0
    activity_l1: float = 0.0
    narrow: int | None = None  # units of the layer in the middle
    head_initializer: Any = "glorot_uniform"
    dtype: str = "float32"

    # What stands in the way of the signal.
    stop_gradient: bool = False
    scale: float = 1.0
    log_inputs: bool = False
    length: bool = False
    epsilon: float = 1e-6

    # Layers of one family only.
    depthwise: bool = False
    cell: str = "simple"
    recurrent_initializer: Any = "orthogonal"
    query_gain: float = 1.0
    feed_forward: bool = True

    # The training.
    optimizer: str = "sgd"
    learning_rate: Any = 0.1
    momentum: float = 0.0
    optimizer_epsilon: float = 1e-7
    clip_norm: float | None = None
    accumulate: int = 1
    loss: str | None = None  # None: the one that suits the target
    loss_weight: float = 1.0
    from_logits: bool = True
    loss_scale: bool = True
    steps_per_execution: int = 1

    # The data.
    rows: int = 4800
    target: str = "digit"  # or "even", "ink", "pixels", "topic"
    gain: float = 1.0
    offset: float = 0.0
    scale_inputs: bool = False
    bad_rows: tuple[int, int] = (0, 0)
    bad_gain: float = 1.0
    wrong_labels: float = 0.0
    rare: float = 1.0  # share of the examples of any class but 0 that is kept
    sequence: int = 40


def with_defaults(**defaults: Any) -> Callable[..., Callable[..., Any]]:
    """Lets a function of `Settings` be called with those that differ from defaults."""

    def decorate(function: Callable[[Settings], Any]) -> Callable[..., Any]:
        def call(**settings: Any) -> Any:
            return function(Settings(**{**defaults, **settings}))

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        return call

    return decorate
