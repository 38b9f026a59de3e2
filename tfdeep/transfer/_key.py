"""The key of an entry: a digest of all that the cached features depend on.

That is what the frozen part computes (its operations, their order, its weights), the
examples and their order, and how the features are stored.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeep._core._digests import digest, digest_of
from tfdeep._core._explain import a_type, explain
from tfdeep._keras import _internals, _variables
from tfdeep._keras._graph import graph_nodes, is_graph
from tfdeep.errors import ModelError

_FORMAT = "2"  # raised when what goes into a key, or what an entry holds, changes
_LENGTH = 40  # characters of a key

# What a config says that the outputs of a built layer do not depend on.
_NO_MATTER = ("name", "trainable")
_NO_MATTER_TO_KERAS = (*_NO_MATTER, "seed")
_ENDINGS = ("_initializer", "_regularizer", "_constraint")

# Code that the versions of TensorFlow and Keras in the key stand for.
_KNOWN_CODE = ("keras", "tensorflow", "numpy", "builtins")


def entry_keys(
    features: Sequence[str],
    examples: Sequence[str],
    spec: Any,
    storage_dtype: str | None,
    variants: int,
) -> list[str]:
    """The keys of the entries for each pass over a dataset.

    Args:
        features: The digest of each tensor of the boundary; see `of_tensors`.
        examples: The digest of the examples, or the name that stands for it.
        spec: The `element_spec` of the dataset, in batches.
        storage_dtype: What features are rounded to.
        variants: Number of passes.
    """
    # What may round otherwise in the next version, major or minor.
    versions = [v.rsplit(".", 1)[0] for v in (tf.__version__, keras.__version__)]
    example = keras.tree.map_structure(
        lambda tensor: (tensor.dtype.name, tuple(tensor.shape[1:])), spec
    )
    parts = [_FORMAT, *versions, str(storage_dtype), str(variants > 1), repr(example)]
    parts += [*examples, *sorted(set(features))]
    return [digest(*parts, str(variant))[:_LENGTH] for variant in range(variants)]


def of_tensors(inputs: Iterable[Any], nodes: Iterable[Any]) -> dict[int, str]:
    """For each tensor of a graph, a digest of all that it is computed from.

    Two graphs that compute the same have the same digests, whatever their layers are
    called and in whichever order they were built.

    Args:
        inputs: The symbolic tensors that the graph starts from.
        nodes: The calls of its operations, each after those it needs.

    Returns:
        The digests by the ids of the tensors.

    Raises:
        ModelError: If a layer does not say what it computes.
    """
    digests = {
        id(tensor): digest("input", str(i), str(tensor.dtype))
        for i, tensor in enumerate(inputs)
    }
    operations: dict[int, str] = {}
    for node in nodes:
        operation = node.operation
        if id(operation) not in operations:
            operations[id(operation)] = _of_operation(operation)
        given = {id(t): _Input(digests[id(t)]) for t in node.input_tensors}
        arguments = _internals.call_arguments(node, given)
        call = digest(operations[id(operation)], _plain(arguments, operation.name))
        for i, tensor in enumerate(node.output_tensors):
            digests[id(tensor)] = digest(call, str(i))
    return digests


class _Input:
    """Stands for a tensor among the arguments of a call."""

    def __init__(self, digest: str) -> None:
        self.digest = digest


def _of_operation(operation: Any) -> str:
    if is_graph(operation):
        digests = of_tensors(operation.inputs, graph_nodes(operation))
        return digest("graph", *(digests[id(t)] for t in operation.outputs))
    kind = type(operation)
    parts = [f"{kind.__module__}.{kind.__qualname__}", *_code_of_class(kind)]
    parts += [
        f"{name}:{_of_function(function)}"
        for name, function in sorted(_own_functions(operation).items())
    ]
    if not isinstance(operation, keras.layers.Lambda):  # its config holds file names
        parts.append(_plain(_config(operation), operation.name))
    if isinstance(operation, keras.Layer):
        parts += [digest_of(w.numpy()) for w in _variables.own_weights(operation)]
        parts += map(_of_operation, _internals.sublayers(operation))
    return digest(*parts)


def _config(operation: Any) -> dict[str, Any]:
    try:
        config = operation.get_config()
    except NotImplementedError as error:
        raise ModelError(
            explain(
                "A layer of the frozen part does not say what it computes, so its "
                "outputs cannot be told from those of another.",
                received=f"`{operation.name}`, {a_type(operation)} without "
                "`get_config`",
                expected="layers whose `get_config` gives all that they were made of",
                fix="add `get_config` to the class, or cache in memory "
                "(cache_dir=None); nothing was changed",
            )
        ) from error
    return _what_matters(config, type(operation).__module__)


def _what_matters(config: dict[str, Any], module: str | None) -> dict[str, Any]:
    if not _is_known(module):
        return {k: v for k, v in config.items() if k not in _NO_MATTER}
    return {
        k: v
        for k, v in config.items()
        if k not in _NO_MATTER_TO_KERAS and not str(k).endswith(_ENDINGS)
    }


def _own_functions(operation: Any) -> dict[str, types.FunctionType]:
    """Functions that were given to this one object, such as an activation."""
    set_by_keras = ("build", "call", "quantize")
    return {
        name: value
        for name, value in vars(operation).items()
        if isinstance(value, types.FunctionType) and name not in set_by_keras
    }


def _code_of_class(kind: type) -> list[str]:
    """Digests of the methods of a class that is neither Keras' nor TensorFlow's."""
    digests = []
    for base in kind.__mro__:
        if not _is_known(base.__module__):
            for name, member in sorted(vars(base).items()):
                member = getattr(member, "fget", None) or member
                function = getattr(member, "__func__", member)
                if isinstance(function, types.FunctionType):
                    digests.append(f"{name}:{_of_function(function)}")
    return digests


def _is_known(module: str | None) -> bool:
    return str(module).partition(".")[0] in _KNOWN_CODE


def _of_function(function: Any, seen: frozenset[int] = frozenset()) -> str:
    """A digest of a function's code, its defaults and the functions it calls.

    Where the code stands (file, line) makes no difference.
    """
    function = inspect.unwrap(function)
    if _is_known(function.__module__) or id(function) in seen:
        return f"{function.__module__}.{function.__qualname__}"
    seen |= {id(function)}
    values = [function.__defaults__, function.__kwdefaults__]
    values += [cell.cell_contents for cell in function.__closure__ or ()]
    values += [
        function.__globals__[name]
        for name in _names(function.__code__)
        if name in function.__globals__
    ]
    return digest(_of_code(function.__code__), *(_of_value(v, seen) for v in values))


def _names(code: types.CodeType) -> list[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [*code.co_names, *(name for c in inner for name in _names(c))]


def _of_code(code: types.CodeType) -> str:
    constants = [
        _of_code(c)
        if isinstance(c, types.CodeType)
        else repr(sorted(map(repr, c)) if isinstance(c, frozenset) else c)
        for c in code.co_consts
    ]
    return digest(code.co_code, *constants, *code.co_names, *code.co_varnames)


def _of_value(value: Any, seen: frozenset[int]) -> str:
    """What a function refers to: told apart where that can be done."""
    if isinstance(value, types.FunctionType):
        return _of_function(value, seen)
    try:
        return _plain(value, "")
    except ModelError:
        return type(value).__qualname__


def _plain(value: Any, owner: str) -> str:
    """A value as text that is the same in every process."""
    return json.dumps(_sorted(value, owner), sort_keys=True)


def _sorted(value: Any, owner: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, _Input):
        return {"tensor": value.digest}
    if isinstance(value, dict):
        if "class_name" in value and isinstance(value.get("config"), dict):
            value = _of_serialized(value)
        return {str(k): _sorted(v, owner) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sorted(item, owner) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, types.FunctionType):
        return {"function": _of_function(value)}
    if isinstance(value, (slice, type(Ellipsis), np.dtype, type)):
        return repr(value)
    if isinstance(value, keras.DTypePolicy):
        return {"policy": value.name}
    if hasattr(value, "numpy") or isinstance(value, (np.ndarray, np.generic)):
        return {"array": digest_of(value.numpy() if hasattr(value, "numpy") else value)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    raise ModelError(
        explain(
            "What the frozen part computes depends on a value that cannot be written "
            "down, so its outputs cannot be told from those of another.",
            received=f"{a_type(value)} in the config of `{owner}`",
            expected="numbers, text, arrays, functions, and lists and dicts of them",
            fix="let `get_config` give plain values, or cache in memory "
            "(cache_dir=None); nothing was changed",
        )
    )


def _of_serialized(value: dict[str, Any]) -> dict[str, Any]:
    """An object as Keras serializes it, without what its outputs do not depend on."""
    config, kind = value["config"], str(value["class_name"])
    if "DTypePolicy" not in kind:  # its name is what it is
        config = _what_matters(config, value.get("module"))
    return {"class_name": kind, "module": value.get("module"), "config": config}
