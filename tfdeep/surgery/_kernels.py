"""The kernels of a built model, and the settings that layers keep for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfdeep._core import _paths
from tfdeep._core._explain import explain
from tfdeep._core._paths import Patterns
from tfdeep._keras import _internals, _variables
from tfdeep._keras._graph import is_graph
from tfdeep._keras._variables import ModelVariable
from tfdeep.errors import ModelError

# Layers whose own configuration holds that of the layers inside.
_CONTAINERS = (
    keras.Sequential,
    keras.layers.Wrapper,
    keras.layers.Bidirectional,
    keras.layers.RNN,
    keras.layers.StackedRNNCells,
)


def select_kernels(
    model: Any, include: Patterns, exclude: Patterns
) -> list[ModelVariable]:
    """The weights of two axes and more that multiply something, and are selected."""
    kernels = [v for v in _variables.model_variables(model) if _is_kernel(v.variable)]
    if not kernels:
        raise ModelError(
            explain(
                f"The model `{model.name}` has no kernels.",
                received="weights of one axis only",
                expected="at least one layer with a kernel",
                fix="leave the call out; nothing was changed",
            )
        )
    chosen = _paths.select([v.path for v in kernels], include, exclude, what="kernel")
    by_path = {v.path: v for v in kernels}
    return [by_path[path] for path in chosen]


def _is_kernel(variable: Any) -> bool:
    name = variable.name
    is_other = "bias" in name or name in (
        "alpha",
        "gamma",
        "beta",
        "seed_generator_state",
    )
    return len(variable.shape) >= 2 and not is_other


def give(
    model: Any, kernels: Sequence[ModelVariable], kind: str, value: Any
) -> list[bool]:
    """Gives kernels of a model a regularizer or a constraint, and has it used.

    Args:
        model: The model.
        kernels: Some of its kernels.
        kind: "regularizer" or "constraint".
        value: What to give; None takes away what there is.

    Returns:
        For each kernel, whether `model.save` keeps it.
    """
    in_config = _layers_in_config(model)
    saved = []
    for kernel in kernels:
        setting = _setting_of(kernel, kind)
        setattr(kernel.variable, kind, value)
        if setting is not None:
            setattr(kernel.layer, setting, value)
        saved.append(setting is not None and id(kernel.layer) in in_config)
    _forget_compiled_steps(model)
    return saved


def _setting_of(kernel: ModelVariable, kind: str) -> str | None:
    """The attribute in which its layer keeps a kernel's regularizer or constraint."""
    stems = [kernel.variable.name.removesuffix("_kernel"), "depthwise"]
    names = [f"{stem}_{kind}" for stem in stems]
    return next((name for name in names if hasattr(kernel.layer, name)), None)


def _layers_in_config(model: Any) -> set[int]:
    """The ids of the layers whose settings are saved with the model."""
    found: set[int] = set()

    def visit(layer: Any) -> None:
        found.add(id(layer))
        if isinstance(layer, _CONTAINERS) or is_graph(layer):
            for child in _internals.sublayers(layer):
                visit(child)

    visit(model)
    return found


def _forget_compiled_steps(model: Any) -> None:
    """Makes a compiled model trace its steps again: they use what was set before."""
    if model.train_function is not None:
        model.make_train_function(force=True)
    if model.test_function is not None:
        model.make_test_function(force=True)
