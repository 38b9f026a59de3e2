"""What a dataset holds: how many examples, in which batches, and their digests."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Examples that share a digest. Shards hold whole blocks, so a builder can compare
# what it read with what was surveyed before it commits a shard.
BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Survey:
    """One pass over a dataset.

    Attributes:
        sizes: Number of examples in each batch.
        blocks: The digest of each `BLOCK` examples in turn; it does not depend on how
            they came in batches.
    """

    sizes: tuple[int, ...]
    blocks: tuple[bytes, ...]

    @property
    def rows(self) -> int:
        """Number of examples."""
        return sum(self.sizes)

    @property
    def digest(self) -> str:
        """One digest for all the examples and their order."""
        return self.digest_of(range(self.rows))

    def digest_of(self, rows: range) -> str:
        """One digest for some examples; they begin and end with a block."""
        blocks = self.blocks[rows.start // BLOCK : -(-rows.stop // BLOCK)]
        return hashlib.sha256(b"".join(blocks)).hexdigest()


def survey(dataset: tf.data.Dataset) -> Survey:
    """Reads a batched dataset once."""
    blocks, sizes = BlockDigests(), []
    for batch in dataset:
        sizes.append(blocks.update(batch))
    blocks.finish()
    return Survey(tuple(sizes), tuple(blocks.digests))


class BlockDigests:
    """Digests of every `BLOCK` examples, fed with batches of any sizes."""

    def __init__(self) -> None:
        self.digests: list[bytes] = []
        self._parts: list[Any] = []
        self._count = 0

    def update(self, batch: Any) -> int:
        """Adds a batch of tensors; returns its number of examples."""
        leaves = [tensor.numpy() for tensor in keras.tree.flatten(batch)]
        start, rows = 0, len(leaves[0])
        while start < rows:
            stop = min(rows, start + BLOCK - self._count)
            self._parts = self._parts or [hashlib.sha256() for _ in leaves]
            for part, leaf in zip(self._parts, leaves, strict=True):
                part.update(_bytes(leaf[start:stop]))
            self._count += stop - start
            if self._count == BLOCK:
                self.finish()
            start = stop
        return rows

    def finish(self) -> None:
        """Ends the last block, which may be a short one."""
        if self._count:
            parts = b"".join(part.digest() for part in self._parts)
            self.digests.append(hashlib.sha256(parts).digest())
        self._parts, self._count = [], 0


def _bytes(values: np.ndarray) -> Any:
    if values.dtype != object:
        return np.ascontiguousarray(values).tobytes()
    texts = [bytes(text) for text in values.ravel()]  # strings, of any lengths
    return b"".join(len(text).to_bytes(8, "little") + text for text in texts)
