"""A model as the rules of `check_setup` see it: its layers, and which follows which."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfdeep._keras import _graph, _internals, _optimizers, _walk
from tfdeep._keras._walk import Call


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the rules look at.

    Attributes:
        model: The model.
        layers: Every layer once, with those inside layers, by path.
        calls: The calls in the model's graph, or in the graphs inside it, in order.
        outputs: The calls that make the model's outputs; empty without a graph.
        batch_size: Examples a step, of all replicas; None if unknown.
        replicas: Number of replicas.
    """

    model: Any
    layers: dict[str, Any]
    calls: list[Call]
    outputs: list[Call]
    batch_size: int | None
    replicas: int

    def runs(self, is_member: Callable[[Call], bool]) -> Iterator[list[Call]]:
        """Members that follow one another, without a normalization or a merge between.

        Calls without a kernel and with one input do not end a run.
        """
        ending: dict[int, list[Call]] = {}
        longest: dict[int, list[Call]] = {}
        for call in self.calls:
            run = ending.get(id(call.before[0]), []) if len(call.before) == 1 else []
            if call.has_kernel:
                run = [*run, call] if is_member(call) else []
            elif call.is_normalization:
                run = []
            ending[id(call)] = run
            if run and len(run) > len(longest.get(id(run[0]), [])):
                longest[id(run[0])] = run
        yield from longest.values()


def setup_of(model: Any, batch_size: int | None) -> Setup:
    """Looks at a built model; changes nothing."""
    layers = _walk.layers(model)
    calls: list[Call] = []
    outputs: list[Call] = []
    if _graph.is_graph(model):
        calls, outputs = _walk.calls(model)
    else:
        known: set[int] = set()
        for path, layer in layers.items():
            if _graph.is_graph(layer) and id(layer) not in known:
                known.update(map(id, _walk.layers(layer).values()))
                calls += _walk.calls(layer, f"{path}/")[0]
    return Setup(model, layers, calls, outputs, batch_size, _replicas(model))


def _replicas(model: Any) -> int:
    strategy = tf.distribute.get_strategy()
    for optimizer in _optimizers.chain(getattr(model, "optimizer", None)):
        strategy = _internals.strategy_of(optimizer)
    return int(strategy.num_replicas_in_sync)
