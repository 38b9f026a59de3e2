"""Does to a net of the gym what a finding says helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tfdeep.diagnostics import Finding

# What a remedy names, in the words of the findings, and the setting that does it.
_NAMED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("keras.initializers.HeNormal()", {"initializer": "he_normal"}),
    ("keras.initializers.GlorotUniform()", {"initializer": "glorot_uniform"}),
    ("keras.initializers.", {"query_gain": 1.0}),
    ("keras.initializers.LecunNormal()", {"initializer": "lecun_normal"}),
    ("GlorotUniform", {"initializer": "glorot_uniform"}),
    ('recurrent_initializer="orthogonal"', {"recurrent_initializer": "orthogonal"}),
    ("bias of zero", {"bias": 0.0}),
    ("keras.layers.BatchNormalization()", {"normalization": "batch"}),
    ("keras.layers.LayerNormalization()", {"normalization": "layer"}),
    ('activation="relu"', {"activation": "relu"}),
    ('activation="leaky_relu"', {"activation": "leaky_relu"}),
    ("keras.layers.Add", {"residual": True}),
    ("keras.layers.Normalization()", {"scale_inputs": True}),
    ("ClipByGlobalNorm", {"clip_norm": 1.0}),
    ("LossScaleOptimizer", {"loss_scale": True}),
    ("add an epsilon", {"epsilon": 1e-3}),
    ("add an epsilon", {"epsilon": 0.1}),
    ("the batch of that step", {"bad_gain": 1.0}),
    ("stop_gradient", {"stop_gradient": False}),
    (".trainable = True", {"trainable": True}),
    ("check what lies between", {"scale": 1.0}),
)
_FACTORS = (
    ("a tenth", 0.1),
    ("a hundredth", 0.01),
    ("a tenth", 0.001),  # and again
    ("raise it tenfold", 1e2),
    ("raise it tenfold", 1e3),
    ("raise it tenfold", 1e4),
    ("raise it tenfold", 1e5),
)


def named_by(finding: Finding, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings that a finding's remedy asks for: each alternative, then all.

    Args:
        finding: What was found.
        settings: The settings of the sick net.
    """
    text = finding.remedy
    found = [change for words, change in _NAMED if words in text]
    yield from found
    rate = settings.get("learning_rate", 0.1)
    for words, factor in _FACTORS:
        if words in text and isinstance(rate, float):
            yield {"learning_rate": rate * factor}
    # What is between two semicolons belongs together; then all of it.
    for part in (*text.split(";"), text):
        together: dict[str, Any] = {}
        for words, change in _NAMED:
            if words in part and not set(change) & set(together):
                together |= change
        if len(together) > 1:
            yield together
