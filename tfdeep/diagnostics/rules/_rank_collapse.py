"""A layer gives the same output, or the same direction, for all examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom

_FEWEST = 8  # examples without which nothing is said


@dataclasses.dataclass(frozen=True)
class RankCollapse(Rule):
    """The outputs of a wide layer differ in one direction only, and the loss is high.

    A net that has learned to separate two classes may well end in one direction, so it
    is a problem only while the loss has not fallen. Of the input, or of some
    layer below, more directions must be left. Seen with
    `GradientMonitor(activations=True)`. Directions do not come back: where a later
    layer has more of them, the signal goes around this one.

    Args:
        rank: Effective rank (participation ratio), 1 being one direction.
        below: Effective rank that some layer below must have.
        units: Least number of units, and of inputs, of a layer that counts as wide.

    Reference: Dong, Cordonnier and Loukas, Attention is not all you need, 2021.
    """

    kind: ClassVar[str] = "rank_collapse"
    rank: float = 1.2
    below: float = 2.5
    units: int = 8

    def look(self, recording: Recording) -> Iterable[Symptom]:
        if recording.lasted < 10 or _measures.has_fallen(recording, 0.8):
            return
        remedy = Remedy(
            "skip connections (keras.layers.Add) and keras.layers.LayerNormalization() "
            "keep directions apart; keras.initializers.HeNormal() or GlorotUniform() "
            "gives each unit weights of its own",
            "skip_connections",
            after="Add, LayerNormalization",
        )
        yield from _alike_positions(recording, remedy)
        if "effective_rank" not in recording:
            return
        ranks = recording["effective_rank"]
        recent = _measures.measured_lately(recording)
        typical = np.array(
            [_measures.median(ranks[recent, i]) for i in range(len(recording.layers))]
        )
        is_measured = ~np.isnan(recording["output_mean"][recent]).all(axis=0)
        highest = 0.0
        behind_zeros: set[str] = set()
        for i, layer in enumerate(recording.layers):
            now = typical[i]
            if np.isnan(now) and is_measured[i]:
                behind_zeros.add(layer.path)  # its outputs are zero
            if layer.inputs and behind_zeros.issuperset(layer.inputs):
                behind_zeros.add(layer.path)
                continue  # its inputs do not differ: it is not to blame
            if np.isnan(now):
                continue
            behind = [
                rank
                for other, rank in zip(recording.layers[i:], typical[i:], strict=True)
                if not _measures.is_output(recording, other)
            ]
            goes_around = np.nan_to_num(behind).max(initial=0) > self.below
            is_wide = min(
                layer.units, layer.fan_in
            ) >= self.units and not _measures.is_output(recording, layer)
            if is_wide and now < self.rank and highest > self.below and not goes_around:
                if layer.is_symmetric:
                    continue
                seen = _measures.examples_of(recording, layer, recent[-1:])
                if 0 < seen < _FEWEST:
                    continue  # so few examples have few directions
                above = np.flatnonzero(~(ranks[:, i] < self.rank))
                first = min(int(above[-1]) + 1 if len(above) else 0, len(ranks) - 1)
                yield Symptom(
                    layer.path,
                    "warning",
                    int(recording.measured_steps[first]),
                    _evidence(layer.units, now, highest) + _measures.on_examples(seen),
                    remedy,
                )
            highest = max(highest, now)


def _evidence(units: int, rank: float, below: float) -> str:
    if rank < 0.5:  # of outputs that do not differ it is 0; one direction has 1
        return (
            "its outputs are the same for all examples; a layer below has an "
            f"effective rank of {below:.1f}"
        )
    return (
        f"its {units} units have an effective rank of {max(rank, 1.0):.1f}; a layer "
        f"below has {below:.1f}"
    )


def _alike_positions(recording: Recording, remedy: Remedy) -> Iterable[Symptom]:
    """Attention over positions that are all the same: queries and keys learn nothing.

    The gradient of both vanishes beside that of the values, although their weights are
    not so large that the softmax would be saturated.
    """
    size, layers = _measures.sensitivities(recording)
    by_path = {layer.path: (layer, size[i]) for i, layer in enumerate(layers)}
    for path, (_, of_values) in by_path.items():
        attention, _, name = path.rpartition("/")
        query, key = (by_path.get(f"{attention}/{x}") for x in ("query", "key"))
        if name != "value" or query is None or key is None or not of_values > 0:
            continue
        strongest = np.nan_to_num([query[1], key[1]]).max()
        if strongest < 1e-6 * of_values and max(query[0].gain, key[0].gain) < 5:
            yield Symptom(
                path,
                "critical",
                _measures.since(recording),
                "the positions it mixes are all alike: its queries and keys have no "
                "gradient beside its values",
                remedy,
            )
