"""The variables of a model to fill, and the names to look for."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfdeep._core import _paths
from tfdeep._core._explain import explain, listing
from tfdeep._core._paths import Patterns
from tfdeep._keras import _internals, _variables
from tfdeep._keras._variables import ModelVariable
from tfdeep.checkpoints._invalid import invalid
from tfdeep.checkpoints._matching import Target, Transform
from tfdeep.checkpoints._readers._tensors import TensorInfo, path_of
from tfdeep.checkpoints._report import RestoreReport, Steps
from tfdeep.checkpoints._torch_layout import Conversion, recipes
from tfdeep.errors import ModelError

_OPTIMIZER = "optimizer/"


@dataclasses.dataclass(frozen=True)
class Targets:
    """The variables to fill, and those of the model that are not wanted.

    `variables` has the `keras.Variable`s of the whole model, by path.
    """

    wanted: tuple[Target, ...]
    variables: dict[str, Any]
    others: tuple[Target, ...] = ()

    def for_tensors(self, tensors: Sequence[TensorInfo]) -> tuple[Target, ...]:
        """The wanted ones, for a file with these tensors.

        Keras 3 numbers the variables of an optimizer. The numbers mean the same only
        if the file is of the same model: as many of the optimizer, all the others, and
        the layers of each kind in the model's order.
        """
        numbered = [t for t in tensors if t.path.startswith(_OPTIMIZER)]
        slots = [t for t in (*self.wanted, *self.others) if t.slot is not None]
        is_same = (
            len(numbered) == len(slots)
            and len(tensors) == len(self.variables)
            and _are_in_order(tensors, list(self.variables))
        )
        if not is_same:
            return self.wanted
        return tuple(
            dataclasses.replace(
                t,
                names=(*t.names, f"{_OPTIMIZER}{t.slot}"),
                layer_variables=len(slots),
            )
            if t.slot is not None
            else t
            for t in self.wanted
        )

    def as_planned(self, entries: Mapping[str, Planned]) -> Targets:
        """The wanted ones, by the names in the file that a plan gives."""
        by_path = {target.path: target for target in self.wanted}
        unknown = [path for path in entries if path not in by_path]
        if unknown:
            raise invalid(
                "The plan fills variables that the model lacks or that are not "
                "selected.",
                received=listing(unknown),
                expected="variables of the model",
                fix="make a new plan with `plan_restore`",
            )
        wanted = [
            dataclasses.replace(
                by_path[path],
                names=planned.sources if len(planned.sources) == 1 else (),
                recipes=tuple(
                    dataclasses.replace(recipe, sources=planned.sources)
                    for recipe in by_path[path].recipes
                    if len(recipe.sources) == len(planned.sources)
                    and recipe.conversion == planned.steps.conversion
                ),
            )
            for path, planned in entries.items()
        ]
        return dataclasses.replace(self, wanted=tuple(wanted))


def _are_in_order(tensors: Sequence[TensorInfo], paths: Sequence[str]) -> bool:
    """Whether a Keras 3 file numbers its layers in the order of the model.

    `layers/dense`, `layers/dense_1`, ... are the dense layers in their order.
    """
    place: dict[str, int] = {}
    for path in paths:
        place.setdefault(path_of(path).rpartition("/")[0], len(place))
    counted: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    for tensor in tensors:
        layer = tensor.path.rpartition("/")[0]
        kind, _, number = tensor.location.rpartition("/vars/")[0].rpartition("_")
        if not (kind and number.isdigit()):
            kind, number = tensor.location.rpartition("/vars/")[0], "0"
        if layer in place:
            counted[kind].append((int(number), place[layer]))
    orders = [[at for _, at in sorted(layers)] for layers in counted.values()]
    return all(order == sorted(order) for order in orders)


@dataclasses.dataclass(frozen=True)
class Planned:
    """How a plan fills one variable: from which paths in the file, by which steps."""

    sources: tuple[str, ...]
    steps: Steps


def planned_entries(plan: RestoreReport | str) -> dict[str, Planned]:
    """What a plan says of each variable, by its path."""
    try:
        values = json.loads(plan) if isinstance(plan, str) else plan.to_dict()
        found = {}
        for entry in values["restored"]:
            steps = Steps(**entry["steps"])
            steps = dataclasses.replace(steps, conversion=Conversion(steps.conversion))
            found[entry["path"]] = Planned(tuple(map(path_of, entry["sources"])), steps)
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise invalid(
            f"This is not a plan: {error!r}.",
            received=f"plan={str(plan)[:60]!r}",
            expected="what `tfdeep.plan_restore` returned, or its `to_json()`",
            fix="make one with `plan_restore`",
        ) from error


def find_targets(
    model: Any,
    include: Patterns,
    exclude: Patterns,
    transform: Transform = None,
    layout: str | None = None,
    optimizer: bool = False,
) -> Targets:
    """The variables of a model that patterns select."""
    if layout not in (None, "torch"):
        raise invalid(
            "This layout is not known.",
            received=f"layout={layout!r}",
            expected='None or "torch"',
            fix='pass layout="torch" for a file that PyTorch wrote',
        )
    variables = _variables.model_variables(model)
    targets = _layer_targets(model, variables, layout)
    by_path = {v.path: v.variable for v in variables}
    if optimizer:
        for target, variable in _slots(model):
            targets.append(target)
            by_path[target.path] = variable
    _check_unique([target.path for target in targets])
    paths = [target.path for target in targets]
    chosen = set(_paths.select(paths, include, exclude))
    functions = _transforms(paths, transform)
    wanted = [
        dataclasses.replace(t, transform=functions.get(t.path))
        for t in targets
        if t.path in chosen
    ]
    others = [t for t in targets if t.path not in chosen]
    return Targets(tuple(wanted), by_path, tuple(others))


def _layer_targets(
    model: Any, variables: Sequence[ModelVariable], layout: str | None
) -> list[Target]:
    storage: dict[int, dict[int, str]] = {}
    paths = {v.path for v in variables}
    count = collections.Counter(v.variable.path for v in variables)
    owners = _owners(model) if layout == "torch" else {}
    targets = []
    for v in variables:
        if id(v.layer) not in storage:
            storage[id(v.layer)] = _storage_keys(v.layer)
        keys = storage[id(v.layer)]
        names = [v.path]
        if count[v.variable.path] == 1:  # Keras leaves out the names of inner models
            names.append(v.variable.path)
            names.append(v.variable.path.removeprefix(f"{model.name}/"))
        names = [name for name in names if name == v.path or name not in paths]
        if id(v.variable) in keys:
            names.append(f"{v.layer_path}/{keys[id(v.variable)]}".lstrip("/"))
        targets.append(
            Target(
                path=v.path,
                names=tuple(dict.fromkeys(map(path_of, names))),
                shape=tuple(v.variable.shape),
                dtype=str(v.variable.dtype),
                layer_class=type(v.layer).__name__,
                layer_variables=len(keys) or None,
                recipes=recipes(v, owners[id(v.layer)]) if owners else (),
            )
        )
    return targets


def _owners(model: Any) -> dict[int, tuple[Any, ...]]:
    """The layers from the model inwards to each layer, by the layer's id."""
    owners: dict[int, tuple[Any, ...]] = {}

    def visit(layer: Any, above: tuple[Any, ...]) -> None:
        if id(layer) not in owners:
            owners[id(layer)] = (*above, layer)
            for child in _internals.sublayers(layer):
                visit(child, owners[id(layer)])

    visit(model, ())
    return owners


def _slots(model: Any) -> list[tuple[Target, Any]]:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        raise ModelError(
            explain(
                "The optimizer has no variables to restore yet.",
                received=f"optimizer={optimizer!r}",
                expected="a compiled model with a built optimizer",
                fix="`model.compile(...)`, then "
                "`model.optimizer.build(model.trainable_variables)`; nothing was "
                "changed",
            )
        )
    return [
        (
            Target(
                path=_OPTIMIZER + variable.path,
                names=tuple(
                    path_of(name)
                    for name in (
                        _OPTIMIZER + variable.path,
                        variable.path,
                        *_names_in_keras_2(variable, model),
                    )
                ),
                shape=tuple(variable.shape),
                dtype=str(variable.dtype),
                layer_class=type(optimizer).__name__,
                layer_variables=None,
                slot=number,
            ),
            variable,
        )
        for number, variable in enumerate(optimizer.variables)
    ]


def _names_in_keras_2(slot: Any, model: Any) -> list[str]:
    """What Keras 2 called an optimizer's variable: `Adam/m/hidden1/kernel`."""
    name = slot.path.rpartition("/")[2]
    if name == "iteration":
        return [_OPTIMIZER + name, name]
    names = []
    for v in _variables.model_variables(model):
        flat = v.variable.path.replace("/", "_")
        old = _SLOTS_IN_KERAS_2.get(name.removeprefix(f"{flat}_"))
        if name.startswith(f"{flat}_") and old is not None:
            kind = type(model.optimizer).__name__
            names += [f"{_OPTIMIZER}{kind}/{old}/{v.path}", f"{kind}/{old}/{v.path}"]
    return names


_SLOTS_IN_KERAS_2 = {"momentum": "m", "velocity": "v"}


def _transforms(
    paths: Sequence[str], transform: Transform
) -> dict[str, Callable[[np.ndarray], Any]]:
    """The function for each path; where two patterns match, the first one's."""
    functions: dict[str, Callable[[np.ndarray], Any]] = {}
    for pattern, function in (transform or {}).items():
        for path in _paths.select(paths, pattern):
            functions.setdefault(path, function)
    return functions


def _storage_keys(layer: Any) -> dict[int, str]:
    """The keys under which a layer saves its variables, by the variables' ids."""
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    return {id(variable): key for key, variable in store.items()}


def _check_unique(paths: Sequence[str]) -> None:
    count = collections.Counter(paths)
    repeated = [path for path, n in count.items() if n > 1]
    if repeated:
        raise invalid(
            "Two variables of the model have the same path; a file cannot say "
            "which is meant.",
            received=listing(repeated),
            expected="a different path for each variable",
            fix="give the layers different names",
        )
