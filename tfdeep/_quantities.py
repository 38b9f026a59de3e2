"""Every quantity that is measured: what it is, of what, when, and how it is shown.

A new quantity is one line here, and the line that computes it.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import numpy as np


class Of(enum.Enum):
    """Whose numbers the columns of a quantity are."""

    NET = "net"
    VARIABLE = "variable"
    LAYER = "layer"
    OUTPUT = "output"


class When(enum.Enum):
    """At which steps a quantity is known."""

    EACH_STEP = "at every step"
    MEASURED = "at the steps that are measured in detail"
    ALONGSIDE = "at every step, and kept for the measured ones"
    PROBE = "in the one step of `diagnose`"
    DERIVED = "wherever the quantities that it is computed from are"


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One quantity.

    Attributes:
        name: Its key in a recording, and in the file of a run.
        of: Whose numbers its columns are.
        when: At which steps it is known.
        label: What people read: the title of a chart, the label of an axis.
        unit: What it counts.
        page: The page of TensorBoard's custom scalars that shows it; empty if none.
        tag: The first part of its TensorBoard tags. Defaults to its name.
        is_log: Whether it is best seen on a logarithmic scale.
    """

    name: str
    of: Of
    when: When
    label: str
    unit: str
    page: str = ""
    tag: str = ""
    is_log: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tag", self.tag or self.name)


_NET, _VARIABLE, _LAYER, _OUTPUT = Of.NET, Of.VARIABLE, Of.LAYER, Of.OUTPUT
_EACH_STEP, _MEASURED = When.EACH_STEP, When.MEASURED
_FRACTION = "fraction"
_GRADIENTS, _UPDATES, _LAYERS = "Gradients", "Updates", "Layers"

# The order is that of the charts on their pages.
QUANTITIES = (
    Quantity("norm", _VARIABLE, _EACH_STEP, "Gradient norm", "L2 norm of the gradient",
             _GRADIENTS, "gradient_norm", is_log=True),
    Quantity("data_norm", _VARIABLE, _MEASURED, "Gradient norm without penalties",
             "L2 norm of the gradient", is_log=True),
    Quantity("clipped_norm", _VARIABLE, _EACH_STEP, "Gradient norm after clipping",
             "L2 norm of the gradient", _GRADIENTS, "gradient_norm_after_clipping",
             is_log=True),
    Quantity("largest_entry", _VARIABLE, _MEASURED, "Largest gradient entry",
             "gradient", _GRADIENTS, "largest_gradient_entry", is_log=True),
    Quantity("mean", _VARIABLE, _MEASURED, "Mean gradient entry", "gradient",
             _GRADIENTS, "gradient_mean"),
    Quantity("zero_fraction", _VARIABLE, _MEASURED, "Gradient entries that are zero",
             _FRACTION, _GRADIENTS, "gradient_zero_fraction"),
    Quantity("silent_fraction", _VARIABLE, _MEASURED, "Units without a gradient",
             _FRACTION, _GRADIENTS),
    Quantity("nonfinite_count", _VARIABLE, _MEASURED,
             "NaN or infinite gradient entries", "entries", _GRADIENTS,
             "gradient_nonfinite_count"),
    Quantity("update_ratio", _VARIABLE, When.DERIVED, "Update norm / weight norm",
             "norm of the update / norm of the weights", _UPDATES,
             "update_to_weight_ratio", is_log=True),
    Quantity("update_norm", _VARIABLE, _MEASURED, "Update norm",
             "L2 norm of the update", _UPDATES, is_log=True),
    Quantity("weight_norm", _VARIABLE, _MEASURED, "Weight norm",
             "L2 norm of the weights", _UPDATES, is_log=True),
    Quantity("is_frozen", _VARIABLE, When.ALONGSIDE, "Frozen weights", "1 if frozen"),
    Quantity("inactive_fraction", _LAYER, _MEASURED, "Units that are never active",
             _FRACTION, _LAYERS),
    Quantity("flat_fraction", _LAYER, _MEASURED,
             "Outputs where the activation is flat", _FRACTION, _LAYERS,
             "saturated_fraction"),
    Quantity("output_std", _LAYER, _MEASURED, "Standard deviation of the outputs",
             "outputs", _LAYERS, is_log=True),
    Quantity("output_mean", _LAYER, _MEASURED, "Mean of the outputs", "outputs",
             _LAYERS),
    Quantity("effective_rank", _LAYER, _MEASURED, "Effective rank of the outputs",
             "directions", _LAYERS),
    Quantity("nonfinite_output", _LAYER, _MEASURED, "Outputs that are not finite",
             _FRACTION, _LAYERS),
    Quantity("gradient_std", _LAYER, When.PROBE,
             "Standard deviation of the gradient by the outputs", "gradient",
             is_log=True),
    Quantity("input_offset", _NET, _MEASURED, "Offset of the input", "inputs",
             _LAYERS),
    Quantity("input_spread", _NET, _MEASURED, "Spread of the input", "inputs",
             _LAYERS),
    Quantity("loss", _NET, _EACH_STEP, "Loss", "loss", "Optimizer"),
    Quantity("data_loss", _NET, _EACH_STEP, "Loss without penalties", "loss"),
    Quantity("examples", _NET, _MEASURED, "Examples of the batch", "examples"),
    Quantity("input_nonfinite", _NET, _MEASURED,
             "Examples with NaN or infinite inputs", _FRACTION),
    Quantity("nonfinite_feature", _NET, _MEASURED,
             "First input that is NaN or infinite", "place in the example"),
    *(
        Quantity(f"{of}_{name}", _OUTPUT, _MEASURED, f"{of.title()}s: {label}", unit)
        for of, unit in (("target", "targets"), ("prediction", "outputs"))
        for name, label in (
            ("min", "smallest"),
            ("max", "largest"),
            ("offset", "offset"),
            ("spread", "spread over the examples"),
            ("sum_min", "smallest sum of a row"),
            ("sum_max", "largest sum of a row"),
        )
    ),
    Quantity("target_inner_spread", _OUTPUT, _MEASURED,
             "Targets: spread within an example", "targets"),
    Quantity("target_nonfinite", _OUTPUT, _MEASURED,
             "Examples with NaN or infinite targets", _FRACTION),
    Quantity("target_fractional", _OUTPUT, _MEASURED,
             "Targets that are not whole numbers", _FRACTION),
)  # fmt: skip

BY_NAME = {quantity.name: quantity for quantity in QUANTITIES}

EACH_STEP = tuple(q.name for q in QUANTITIES if q.when is When.EACH_STEP)

# What the train step itself computes of each variable, layer and output.
OF_VARIABLES, OF_LAYERS, OF_OUTPUTS = (
    tuple(
        quantity.name
        for quantity in QUANTITIES
        if quantity.of is of and quantity.when in (_EACH_STEP, _MEASURED)
    )
    for of in (_VARIABLE, _LAYER, _OUTPUT)
)

OF_BATCH = ("examples", "input_nonfinite", "nonfinite_feature")


def is_measured(name: str) -> bool:
    """Whether a step at which this quantity is known was measured in detail.

    A quantity that is not in the table counts as measured.
    """
    quantity = BY_NAME.get(name)
    return quantity is None or quantity.when not in (_EACH_STEP, When.ALONGSIDE)


def update_ratio(rows: Any) -> np.ndarray | None:
    """`update_norm / weight_norm` of rows by quantity; None unless both are there."""
    if "update_norm" not in rows or "weight_norm" not in rows:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(rows["update_norm"] / rows["weight_norm"])
