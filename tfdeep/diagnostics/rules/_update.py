"""The relative size of updates, for the rules about it."""

from __future__ import annotations

import numpy as np

from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics.rules import _measures


def relative_updates(
    recording: Recording,
) -> tuple[np.ndarray, np.ndarray, list[LayerInfo]]:
    """`||update|| / ||weight||` of each weighted layer at the steps it was measured.

    A weight that started at or near zero is compared with the norm it would have with
    a gain of 0.5, so that its first steps are not infinitely large.

    Returns:
        The ratios, of shape (measured, layers); the steps; and the layers.
    """
    weighted = _measures.weighted_layers(recording)
    columns = [column for _, column in weighted]
    update = recording["update_norm"][:, columns]
    weight = recording["weight_norm"][:, columns]
    known = ~np.isnan(update).all(axis=1)
    floor = [0.5 * np.sqrt(layer.units) for layer, _ in weighted]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = update[known] / np.maximum(weight[known], floor)
    return ratio, recording.measured_steps[known], [layer for layer, _ in weighted]
