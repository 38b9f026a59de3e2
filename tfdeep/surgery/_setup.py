"""A model as the rules of `check_setup` see it: its layers, and which follows which."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdeep._keras import _architecture, _graph, _internals, _optimizers

_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
)


@dataclasses.dataclass(eq=False)
class Step:
    """One call of a layer or operation in a graph.

    Attributes:
        path: Names of the layers from the model inwards.
        layer: The layer or operation.
        before: The steps whose outputs it reads.
        after: The steps that read its output.
    """

    path: str
    layer: Any
    before: list[Step]
    after: list[Step] = dataclasses.field(default_factory=list)

    @property
    def activation(self) -> str | None:
        """The name of the function it ends with; "linear" for none of a kernel's."""
        if not isinstance(self.layer, keras.layers.Layer):
            return None
        if isinstance(self.layer, keras.layers.Softmax):
            return "softmax"
        return _architecture.activation_name(self.layer)

    @property
    def has_kernel(self) -> bool:
        """Whether it multiplies by a kernel."""
        return getattr(self.layer, "kernel", None) is not None

    @property
    def is_normalization(self) -> bool:
        """Whether it brings what it is given to a fixed scale."""
        return isinstance(self.layer, _NORMALIZATIONS)

    def next_activation(self) -> str | None:
        """The first activation function from this step on, if only one can follow."""
        step = self
        while step.activation in (None, "linear"):
            if len(step.after) != 1:
                return step.activation
            step = step.after[0]
            if step.has_kernel or len(step.before) != 1:
                return "linear"
        return step.activation


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the rules look at.

    Attributes:
        model: The model.
        layers: Every layer once, with those inside layers, by path.
        steps: The calls in the model's graph, or in the graphs inside it, in order.
        outputs: The steps that make the model's outputs; empty without a graph.
        batch_size: Examples a step, of all replicas; None if unknown.
        replicas: Number of replicas.
    """

    model: Any
    layers: dict[str, Any]
    steps: list[Step]
    outputs: list[Step]
    batch_size: int | None
    replicas: int

    def runs(self, is_member: Callable[[Step], bool]) -> Iterator[list[Step]]:
        """Members that follow one another, without a normalization or a merge between.

        Steps without a kernel and with one input do not end a run.
        """
        ending: dict[int, list[Step]] = {}
        longest: dict[int, list[Step]] = {}
        for step in self.steps:
            run = ending.get(id(step.before[0]), []) if len(step.before) == 1 else []
            if step.has_kernel:
                run = [*run, step] if is_member(step) else []
            elif step.is_normalization:
                run = []
            ending[id(step)] = run
            if run and len(run) > len(longest.get(id(run[0]), [])):
                longest[id(run[0])] = run
        yield from longest.values()


def setup_of(model: Any, batch_size: int | None) -> Setup:
    """Looks at a built model; changes nothing."""
    layers = _all_layers(model)
    steps: list[Step] = []
    outputs: list[Step] = []
    if _graph.is_graph(model):
        outputs = _walk(model, "", {}, steps)
    else:
        known: set[int] = set()
        for path, layer in layers.items():
            if _graph.is_graph(layer) and id(layer) not in known:
                known.update(map(id, _all_layers(layer).values()))
                _walk(layer, f"{path}/", {}, steps)
    return Setup(model, layers, steps, outputs, batch_size, _replicas(model))


def _all_layers(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(layer: Any, prefix: str) -> None:
        for child in _internals.sublayers(layer):
            if id(child) not in seen:
                seen.add(id(child))
                found[prefix + child.name] = child
                visit(child, f"{prefix}{child.name}/")

    visit(model, "")
    return found


def _walk(
    graph: Any, prefix: str, entering: dict[int, list[Step]], steps: list[Step]
) -> list[Step]:
    """Adds the calls in a graph to `steps`; returns those that make its outputs."""
    sources = dict(entering)
    for node in _graph.graph_nodes(graph):
        operation = node.operation
        into = [sources.get(id(tensor), []) for tensor in node.input_tensors]
        if _graph.is_graph(operation):
            inside = {id(t): x for t, x in zip(operation.inputs, into, strict=True)}
            path = f"{prefix}{operation.name}/"
            made = _walk(operation, path, inside, steps)
            for tensor, last in zip(node.output_tensors, made, strict=False):
                sources[id(tensor)] = [last]
            continue
        before = [earlier for steps_of_one in into for earlier in steps_of_one]
        step = Step(prefix + operation.name, operation, before)
        for earlier in before:
            earlier.after.append(step)
        steps.append(step)
        sources.update((id(tensor), [step]) for tensor in node.output_tensors)
    return [step for t in graph.outputs for step in sources.get(id(t), [])]


def _replicas(model: Any) -> int:
    strategy = tf.distribute.get_strategy()
    for optimizer in _optimizers.chain(getattr(model, "optimizer", None)):
        strategy = _internals.strategy_of(optimizer)
    return int(strategy.num_replicas_in_sync)
