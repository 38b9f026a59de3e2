"""Does to a net of the gym what a remedy says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfdeep.diagnostics import Remedy

# What somebody finds who looks where a finding says, if the net has it.
_LOOKED_FOR: dict[str, Any] = {
    "stop_gradient": False,
    "scale": 1.0,
    "bad_gain": 1.0,
    "epsilon": 0.1,
    "loss_scale": True,
}


def applied(remedy: Remedy, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a net that a remedy changes; empty if it cannot be done.

    Args:
        remedy: The remedy of a finding.
        settings: The settings of the sick net.
    """
    after = remedy.after
    if remedy.change == "initializer":
        # The first weights, and all that stands for them in a net of the gym.
        changes = {"initializer": after, "bias": 0.0, "query_gain": 1.0}
        if after == "orthogonal":
            changes |= {
                "initializer": "glorot_uniform",
                "recurrent_initializer": "orthogonal",
            }
        return {name: value for name, value in changes.items() if name in settings}
    if remedy.change == "learning_rate":
        rate = settings.get("learning_rate", 0.1)
        if isinstance(after, str):
            after = rate * float(after.removeprefix("x "))
        return {"learning_rate": after}
    if remedy.change in ("look", "data"):
        return {name: _LOOKED_FOR[name] for name in _LOOKED_FOR if name in settings}
    others: dict[str, dict[str, Any]] = {
        "activation": {"activation": after, "initializer": "he_normal"},
        "normalization": {"normalization": _normalization(after)},
        "skip_connections": {"residual": True},
        "inputs": {"scale_inputs": True},
        "clipping": {"clip_norm": after},
        "trainable": {"trainable": True},
    }
    changes = others.get(remedy.change, {})
    if remedy.change == "skip_connections" and "Normalization" in after:
        changes |= {"normalization": _normalization(after)}
    return changes


def _normalization(name: str) -> str:
    return "layer" if "LayerNormalization" in name else "batch"
