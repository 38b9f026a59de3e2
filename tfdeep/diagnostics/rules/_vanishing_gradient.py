"""The gradient does not reach the layers near the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from tfdeep._keras._layer_facts import activation as activation_facts
from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules import _measures
from tfdeep.diagnostics.rules._rule import Rule, Symptom

_DEEP = 12  # layers, from which on the first weights alone do not carry a signal


@dataclasses.dataclass(frozen=True)
class VanishingGradient(Rule):
    """All layers up to some place have a far smaller gradient than those above it.

    Layers are compared by `||gradient|| * ||weight||`, which does not depend on their
    sizes, with the layers above them in the same step. There is no absolute threshold:
    gradients that are small everywhere, as late in training, are not a problem.

    Args:
        ratio: Largest `s` of the layers below over largest `s` of those above, under
            which the gradient has vanished. Healthy nets of the gym stay above 0.1.

    Reference: Glorot and Bengio, Understanding the difficulty of training deep
    feedforward neural networks, 2010.
    """

    kind: ClassVar[str] = "vanishing_gradient"
    ratio: float = 1e-3

    def look(self, recording: Recording) -> Iterable[Symptom]:
        size, layers = _measures.sensitivities(recording)
        size = np.nan_to_num(size)
        if len(layers) < 2:
            return
        for i, layer in enumerate(layers[:-1]):
            above = size[i + 1 :].max()
            if not 0 < size[i] < self.ratio * above:
                continue
            if layer.is_embedding or size[: i + 1].max() >= self.ratio * above:
                continue  # the gradient goes around it
            strongest = layers[i + 1 + int(size[i + 1 :].argmax())]
            yield Symptom(
                layer.path,
                "critical" if size[i] < 1e-6 * above else "warning",
                _measures.since(recording),
                f"gradient {_measures.times(above / size[i])} smaller than that of "
                f"{strongest.path}, for weights of the same size",
                _remedy(recording, layers, size, i),
            )


def _remedy(recording: Recording, layers: list, size: np.ndarray, i: int) -> Remedy:  # type: ignore[type-arg]
    if layers[i].recurrent_kernel is not None:
        return Remedy(
            'recurrent_initializer="orthogonal", keras.layers.LSTM or keras.layers.GRU '
            "carry it through time",
            "initializer",
            layers[i].path,
            after="orthogonal",
        )
    # One sudden drop is something between two layers; a steady one is the layers.
    with np.errstate(divide="ignore", invalid="ignore"):
        drops = np.log10(size[1:] / size[:-1])
    drops = np.where(np.isfinite(drops), drops, 0)
    place = int(drops.argmax())
    if drops[place] > 3 and drops[place] > 0.8 * drops.sum():
        return Remedy(
            f"check what lies between {layers[place].path} and "
            f"{layers[place + 1].path} (a small factor, a saturated function)",
            "look",
            layers[place].path,
        )
    activation = _measures.activation_of(recording, layers[i])
    if len(layers) > _DEEP:
        return Remedy(
            "keras.layers.BatchNormalization() before each activation; or "
            'activation="relu" with keras.initializers.HeNormal(); or skip connections '
            "(keras.layers.Add)",
            "normalization",
            after="BatchNormalization",
        )
    if activation_facts(activation).saturates:
        return Remedy(
            'activation="relu" with keras.initializers.HeNormal(); or '
            "keras.layers.BatchNormalization() before each activation; or skip "
            "connections (keras.layers.Add)",
            "activation",
            before=activation,
            after="relu",
        )
    return Remedy(
        "keras.initializers.HeNormal(); or keras.layers.BatchNormalization() before "
        "each activation; or skip connections (keras.layers.Add)",
        "initializer",
        after="he_normal",
    )
