"""Dropout of whole squares of a feature map."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfdeep._core._arguments import number, one_of, whole_number
from tfdeep.layers._configured import ConfiguredLayer
from tfdeep.layers._uniform import uniform


@keras.saving.register_keras_serializable("tfdeep")
class DropBlock2D(ConfiguredLayer):
    """Drops squares of a feature map while training, in each channel separately.

    Use it instead of dropout after convolutions: neighbors in a feature map are alike,
    so that dropping single places removes little information. Squares of b x b places
    are dropped; their centers lie where the square fits into the map, each with the
    probability

        gamma = rate / b^2 * (h w) / ((h - b + 1) (w - b + 1))

    in a map of h x w places. Squares may overlap, so that a little less than `rate`
    of the map is dropped. What is kept is multiplied by (number of places) /
    (number kept), counted over the whole batch. At inference nothing happens.

    Args:
        rate: Float in [0, 0.999]. The share of places to drop. The paper raises it
            linearly from 0 to 0.1 in the course of the training.
        block_size: Integer > 0. The side b of the squares, in places; of a smaller
            map, its shorter side. 1 is plain dropout. The paper uses 7.
        seed: Integer, or None for a new random sequence in each run.
        data_format: `"channels_last"` or `"channels_first"`; the default is Keras'.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, height, width, channels)`, or with the channels first.

    Output shape:
        That of the input.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:

    >>> layer = tfdeep.layers.DropBlock2D(rate=0.2, block_size=3, seed=0)
    >>> y = layer(np.ones((1, 8, 8, 1)), training=True).numpy()
    >>> bool((y == 0).sum() >= 9 and np.isclose(y.mean(), 1))
    True

    Reference:
        Ghiasi et al., 2018, https://arxiv.org/abs/1810.12890 (algorithm 1).
    """

    arguments = ("rate", "block_size", "seed", "data_format")

    def __init__(
        self,
        rate: float,
        block_size: int = 7,
        seed: int | None = None,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rate = number(
            rate, "rate", "DropBlock2D", at_least=0, at_most=0.999, example=0.1
        )
        self.block_size = whole_number(
            block_size, "block_size", "DropBlock2D", above=0, example=7
        )
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.data_format = one_of(
            data_format or keras.config.image_data_format(),
            ("channels_last", "channels_first"),
            "data_format",
            "DropBlock2D",
        )
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training or self.rate == 0:
            return inputs
        first = self.data_format == "channels_first"
        x = ops.transpose(inputs, (0, 2, 3, 1)) if first else inputs
        kept = self._kept(x)
        share = ops.sum(kept) / ops.cast(ops.size(kept), kept.dtype)
        scale = ops.cast(ops.divide_no_nan(kept, share), x.dtype)
        y = x * scale
        return ops.transpose(y, (0, 3, 1, 2)) if first else y

    def _kept(self, x: Any) -> Any:
        """1 where a place is kept and 0 where it is dropped, as (b, h, w, c)."""
        batch, height, width, channels = ops.shape(x)
        known = [side for side in x.shape[1:3] if side is not None]
        block = min(self.block_size, *known) if known else self.block_size
        rows, columns = height - block + 1, width - block + 1
        places = ops.cast(height * width, "float32")
        gamma = self.rate / block**2 * places / ops.cast(rows * columns, "float32")
        shape = (batch, rows, columns, channels)
        drawn = uniform(self.seed_generator, shape, 0, 1, "float32")
        corners = ops.cast(drawn < gamma, "float32")
        # A place is dropped if the corner of a square lies less than b before it.
        around = ((0, 0), (block - 1, block - 1), (block - 1, block - 1), (0, 0))
        dropped = ops.max_pool(
            ops.pad(corners, around),
            block,
            strides=1,
            padding="valid",
            data_format="channels_last",
        )
        return 1 - dropped
