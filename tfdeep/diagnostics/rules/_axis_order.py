"""Images whose channels are not where the convolution expects them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from tfdeep.diagnostics._recording import Recording
from tfdeep.diagnostics._remedy import Remedy
from tfdeep.diagnostics.rules._rule import Rule, Symptom

_CHANNELS = (1, 3, 4)


@dataclasses.dataclass(frozen=True)
class AxisOrder(Rule):
    """A convolution takes the rows or columns of images for their channels.

    Said where the axis that it takes for channels is as long as a side of the image,
    and one that it takes for a side has 1, 3 or 4 entries.

    Args:
        side: From how many entries on an axis is taken for the side of an image.
    """

    kind: ClassVar[str] = "axis_order"
    patience: ClassVar[int] = 1
    side: int = 8

    def look(self, recording: Recording) -> Iterable[Symptom]:
        for image in recording.program.images:
            shape, axis = image.shape, image.channels
            if len(shape) != 3 or None in shape:
                continue
            other = 0 if axis == 2 else 2
            sides = [size or 0 for i, size in enumerate(shape) if i != other]
            if shape[other] not in _CHANNELS or min(sides) < self.side:
                continue
            is_first = other == 0
            yield Symptom(
                image.layer,
                "critical",
                0,
                f"images of shape {shape}, of which it takes {shape[axis]} for the "
                f"channels; {shape[other]} is likely their number",
                Remedy(
                    "`np.moveaxis(x, 1, -1)` puts the channels last"
                    if is_first
                    else "`np.moveaxis(x, -1, 1)` puts the channels first, or "
                    'data_format="channels_last"',
                    "inputs",
                    image.layer,
                    "channels_first" if is_first else "channels_last",
                    "channels_last" if is_first else "channels_first",
                ),
            )
