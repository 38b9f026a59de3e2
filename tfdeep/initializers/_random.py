"""What the initializers have in common: seeds, dtypes, and the layer they draw for."""

from __future__ import annotations

import collections
import hashlib
import random
import re
from collections.abc import Sequence
from typing import Any

import keras

from tfdeep._core._arguments import whole_number
from tfdeep._core._explain import explain
from tfdeep.errors import InvalidArgumentError
from tfdeep.initializers import _owner
from tfdeep.initializers._owner import Owner


class _Config(dict[str, Any]):
    """A config that knows the counts of the instance it describes.

    An attention layer copies its initializer for each of its kernels, by its config.
    Copies continue the count of the original; a config from a file starts at zero.
    """

    counts: collections.Counter[str]


class RandomInitializer(keras.initializers.Initializer):
    """Base of the initializers that draw.

    Each tensor has a seed of its own, made of the initializer's seed, the variable's
    path without the numbers that Keras counts up (`dense_3` is `dense`), and how
    often the instance or a copy has drawn for that path. So layers that share an
    instance differ, and a program that makes the net again makes the same net.

    Args:
        seed: Int, or None for one from Python's `random`, as in Keras.
        input_axes: The axes of the kernel that one output sums over.
        output_axes: The axes through which one input is seen. Both or neither; the
            layer is asked if they are None.
    """

    def __init__(
        self,
        seed: int | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        if seed is not None:
            seed = whole_number(
                seed,
                "seed",
                type(self).__name__,
                fix="pass an int or None: layers that share the initializer get "
                "different values without a `SeedGenerator`",
            )
        if (input_axes is None) != (output_axes is None):
            raise InvalidArgumentError(
                explain(
                    "`input_axes` and `output_axes` must be given together.",
                    received=f"input_axes={input_axes!r}, output_axes={output_axes!r}",
                    expected="both or neither",
                    fix="for a plain 2-D convolution: input_axes=(0, 1, 2), "
                    "output_axes=(0, 1, 3)",
                )
            )
        self.seed = seed
        self.input_axes = None if input_axes is None else list(input_axes)
        self.output_axes = None if output_axes is None else list(output_axes)
        self._base_seed = random.randint(1, 10**9) if seed is None else seed
        self.counts: collections.Counter[str] = collections.Counter()

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        shape = tuple(shape)
        name = keras.backend.standardize_dtype(dtype or keras.config.floatx())
        if not keras.backend.is_float_dtype(name):
            raise InvalidArgumentError(
                explain(
                    f"`{type(self).__name__}` cannot draw numbers of this dtype.",
                    received=f"dtype={name!r}",
                    expected="a floating-point dtype",
                    fix='pass dtype="float32"',
                )
            )
        owner = _owner.current()
        # In 16 bits the tails are cut short, and there is no QR decomposition.
        precise = "float64" if name == "float64" else "float32"
        values = self.draw(shape, precise, self._next_seed(owner), owner)
        return keras.ops.cast(values, name)

    def draw(self, shape: tuple[int, ...], dtype: str, seed: int, owner: Owner) -> Any:
        """The values for one tensor, in float32 or float64."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        config = _Config(
            seed=self.seed, input_axes=self.input_axes, output_axes=self.output_axes
        )
        config.counts = self.counts
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        initializer = cls(**config)
        if isinstance(config, _Config):
            initializer.counts = config.counts
        return initializer

    def _next_seed(self, owner: Owner) -> int:
        label = re.sub(r"_\d+(?=/|$)", "", owner.path)
        self.counts[label] += 1
        text = f"{self._base_seed}:{label}:{self.counts[label]}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
