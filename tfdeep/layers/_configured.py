"""The base of layers that keep their arguments and the shape of their input."""

from __future__ import annotations

from typing import Any, ClassVar

import keras


class ConfiguredLayer(keras.layers.Layer):
    """A layer whose config is its arguments, each kept in an attribute of its name.

    A mask goes through it. The outputs have the shape of the inputs.
    """

    arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        arguments = {name: getattr(self, name) for name in self.arguments}
        return {**super().get_config(), **arguments}
