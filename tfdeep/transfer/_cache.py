"""Runs the frozen part of a model once and trains the rest on what it gave."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdeep._core._arguments import flag, one_of, whole_number
from tfdeep._core._explain import explain, listing
from tfdeep._core._records import Record, human_bytes, render_table
from tfdeep.errors import InvalidArgumentError, ModelError
from tfdeep.transfer._cut import cut, origin
from tfdeep.transfer._dataset import UserDataset, checked_dataset
from tfdeep.transfer._features import Table, features_of, largest_difference, packing
from tfdeep.transfer._freeze import watch_flags
from tfdeep.transfer._frozen import FrozenPart
from tfdeep.transfer._passes import passes_in_memory, passes_on_disk

_STORAGE = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class CachedTensor:
    """One tensor of the frozen boundary.

    Attributes:
        layer: Name of the layer that gives it.
        shape: Its shape for one example.
        dtype: The dtype in which it is passes.
    """

    layer: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class CacheReport(Record):
    """What was cached, and what it cost.

    Attributes:
        frozen_layers: Names of the layers with weights that ran once.
        head_layers: Names of the layers with weights that are left to train or run.
        boundary: The tensors that are cached for each example.
        examples: Number of examples.
        batches: Number of batches.
        variants: Number of passes that are passes.
        bytes: Size of the cached features, labels and weights, in bytes.
        seconds: Time that this call took, in seconds.
        frozen_seconds: Time that the frozen part takes for one epoch, in seconds.
        rounding: Largest difference that `storage_dtype` made to a feature, relative
            to the largest feature.
        key: What the entry on disk is called, or None in memory.
        path: Where the entry is, or None in memory.
        found: Whether the entry was there already, whole.
    """

    frozen_layers: tuple[str, ...]
    head_layers: tuple[str, ...]
    boundary: tuple[CachedTensor, ...]
    examples: int
    batches: int
    variants: int
    bytes: int
    seconds: float
    frozen_seconds: float
    rounding: float
    key: str | None
    path: str | None
    found: bool
    _compare: Callable[[int], float] = dataclasses.field(repr=False, compare=False)

    @property
    def epochs_to_break_even(self) -> float:
        """After how many epochs the time that this call took is won back."""
        return self.seconds / self.frozen_seconds if self.frozen_seconds else 0.0

    def check(self, batches: int = 1) -> float:
        """Proves that the head, on the features, gives what the model gives.

        Use it after training: the model has the head's weights, so the outputs are
        equal but for rounding.

        Args:
            batches: Number of batches to compare.

        Returns:
            The largest difference, relative to the largest output.

        Raises:
            ModelError: If the outputs differ by more than 1e-4, or by more than the
                rounding of `storage_dtype` explains; or if passes of augmentation
                were cached, which the model does not repeat.
        """
        if self.variants > 1:
            raise ModelError(
                explain(
                    "Augmented features cannot be compared with the model's outputs.",
                    received=f"variants={self.variants}",
                    expected="a cache of one pass without augmentation",
                    fix="`model.evaluate` on data that is not augmented",
                )
            )
        difference = self._compare(batches)
        limit = max(1e-4, 100 * self.rounding)
        if not difference <= limit:
            raise ModelError(
                explain(
                    "The head does not give what the model gives.",
                    received=f"outputs that differ by {difference:.2g} of the largest",
                    expected=f"at most {limit:.2g}",
                    fix="if frozen layers were unfrozen and trained after "
                    "`cache_frozen`, call it again: the features are of the old ones",
                )
            )
        return difference

    def __str__(self) -> str:
        notes = [
            f"ran once: {listing(self.frozen_layers, limit=8)}",
            f"left to train: {listing(self.head_layers, limit=8)}",
        ]
        if self.rounding:
            notes.append(f"rounded by at most {self.rounding:.1g} of the largest")
        if self.path is not None:
            where = "found whole in" if self.found else "written to"
            notes.append(f"{where} {self.path}")
        notes.append(f"won back after {self.epochs_to_break_even:.1f} epochs")
        passes = f" x {self.variants} variants" if self.variants > 1 else ""
        place = "in memory" if self.path is None else "on disk"
        return render_table(
            f"Cached {self.examples:,} examples{passes} in {self.batches:,} batches: "
            f"{human_bytes(self.bytes)} {place}, {self.seconds:.2f} s",
            ["boundary", "shape", "dtype"],
            [(tensor.layer, tensor.shape, tensor.dtype) for tensor in self.boundary],
            notes=notes,
        )


def cache_frozen(
    model: Any,
    dataset: Any,
    cache_dir: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    shuffle: bool = False,
    variants: int = 1,
    storage_dtype: str | None = None,
    shard_bytes: int = 128_000_000,
    verify: bool = True,
    dataset_id: str | None = None,
    progress: bool | None = None,
) -> tuple[keras.Model, tf.data.Dataset, CacheReport]:
    """Runs a model's frozen part over a dataset once, and gives back the rest.

    Use it to fine-tune: frozen layers give the same outputs at every epoch, so they
    need to run only once. Training the head on the features gives the weights that
    training the whole model on the dataset gives, batch for batch. The head shares
    the model's variables: after training it, the model is trained.

    The boundary is found from the `trainable` flags. It may consist of several
    tensors, as within a residual block, and may run through an inner model.

    With `cache_dir` the features outlive the process, in `.safetensors` files that any
    tool can open. An entry is found again by a digest of all it depends on: the frozen
    part's operations and the last bit of its weights, dtypes, the examples and their
    order, the versions of TensorFlow and Keras (major and minor). Layer names, batch
    sizes and what the head looks like do not count. An interrupted call goes on at the
    first shard that is missing, several processes may build one entry at once, and a
    damaged entry is an error.

    On this machine a file of an entry is there whole or not at all, and locks keep two
    processes from computing the same shard. Where a file system has no locks or does
    not rename atomically, this rests on less: temporary names are unique, a key stands
    for one content, and the manifest, without which nothing is read, comes last.
    What is not on this machine is read from a copy in its temporary directory.

    To know the examples, a call with `cache_dir` reads the dataset once without
    running the model, and once more to build. `dataset_id` spares the first reading of
    an entry that is there.

    Args:
        model: A Functional or Sequential model with frozen layers.
        dataset: A finite `tf.data.Dataset` of `(inputs, labels)` or `(inputs, labels,
            sample_weights)`, in batches or, with `batch_size`, of single examples. On
            disk it has to give the same examples in the same order each time it is
            read: shuffle with `shuffle=True` instead of in the dataset.
        cache_dir: Directory of the cache, which is made if need be: a local path, or
            one that `tf.io.gfile` knows, such as `gs://bucket/cache`. None holds the
            features in memory.
        batch_size: Number of examples a batch. None keeps the dataset's batches.
        shuffle: Whether the features come in a new order of all examples each epoch.
        variants: Number of passes to cache. With more than one, augmentation before
            the frozen part acts, and epoch `e` gives pass `e mod variants`.
        storage_dtype: "float16" or "bfloat16" to store features in half the bytes;
            they are given out in the boundary's own dtype. None stores that.
        shard_bytes: Size of the files on disk, in bytes: what a killed call loses, and
            what is held in memory to write one. An entry has 256 files at most.
        verify: Whether to check every byte of an entry before it is used, at some
            gigabytes a second, or sizes and headers only.
        dataset_id: A name for the examples and their order, in place of their digest.
            It is for you to change it when they change.
        progress: Whether to show a progress bar on standard error. None shows it in a
            terminal only.

    Returns:
        The head (a `keras.Model` to compile and fit), the features (a
        `tf.data.Dataset` of `(features, labels)` or `(features, labels,
        sample_weights)` for it) and a `tfdeep.transfer.CacheReport`.

    Raises:
        ModelError: If nothing or everything is frozen, the model is no graph of
            layers, or the frozen part is not the same at every epoch.
        DataError: If the dataset has no labels, no known end, examples of several
            shapes, another order each time, or does not fit the model.
        CacheError: If the entry on disk is damaged, or the disk is full.
        InvalidArgumentError: If an argument cannot work as given.

    Example:

    >>> model = tfdeep.models.dnn((4,), hidden_units=[3, 3], num_outputs=2)
    >>> _ = tfdeep.freeze(model, include="hidden1")
    >>> x, y = np.ones((10, 4), "float32"), np.zeros(10)
    >>> dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    >>> head, features, report = tfdeep.cache_frozen(model, dataset, tmp_path)
    >>> [layer.name for layer in head.layers[1:]], report.examples, report.found
    (['hidden2', 'outputs'], 10, False)
    >>> tfdeep.cache_frozen(model, dataset, tmp_path)[2].found
    True
    """
    _check_directory(cache_dir)
    if batch_size is not None:
        batch_size = _count(batch_size, "batch_size", "examples, or None", 32)
    variants = _count(variants, "variants", "passes to cache", 4)
    shard_bytes = _count(shard_bytes, "shard_bytes", "bytes", 128_000_000)
    one_of(storage_dtype, (None, *_STORAGE), "storage_dtype", "cache_frozen")
    shuffle = flag(shuffle, "shuffle", "cache_frozen")
    verify = flag(verify, "verify", "cache_frozen")
    started = time.perf_counter()
    parts = cut(model, in_training=variants > 1)
    watch_flags(parts.head)
    dataset = checked_dataset(parts.model, dataset, batch_size)
    data = UserDataset(dataset)
    frozen = FrozenPart(parts, variants > 1, storage_dtype)
    if cache_dir is None:
        passes = passes_in_memory(parts, data, frozen, variants, progress)
    else:
        passes = passes_on_disk(
            parts,
            data,
            frozen,
            cache_dir=os.fspath(cache_dir),
            variants=variants,
            storage_dtype=storage_dtype,
            shard_bytes=shard_bytes,
            verify=verify,
            dataset_id=dataset_id,
            progress=progress,
        )
    boundary = parts.part.boundary
    pack = packing(data.spec, boundary)
    tables = [Table(columns) for columns in passes.tables]
    sizes = passes.sizes or data.sizes(tables[0].rows)
    features = features_of(tables, sizes, shuffle, passes.seed, pack)
    report = CacheReport(
        frozen_layers=parts.frozen_layers,
        head_layers=parts.head_layers,
        boundary=tuple(
            CachedTensor(origin(t), tuple(t.shape[1:]), frozen.stored_dtype(t.dtype))
            for t in boundary
        ),
        examples=tables[0].rows,
        batches=len(sizes),
        variants=variants,
        bytes=passes.bytes,
        seconds=time.perf_counter() - started,
        frozen_seconds=passes.frozen_seconds,
        rounding=passes.rounding,
        key=passes.key,
        path=passes.path,
        found=passes.found,
        _compare=lambda batches: largest_difference(
            dataset.take(batches), model, parts.head, tables[0], pack
        ),
    )
    return parts.head, features, report


def _check_directory(cache_dir: Any) -> None:
    is_path = isinstance(cache_dir, (str, os.PathLike)) and cache_dir != ""
    if cache_dir is not None and not is_path:
        raise InvalidArgumentError(
            explain(
                "`cache_frozen` cannot work with this `cache_dir`.",
                received=f"cache_dir={cache_dir!r}",
                expected="a directory, or None to hold the features in memory",
                fix="pass, for example, `cache_dir='cache'`; nothing was changed",
            )
        )


def _count(value: Any, argument: str, unit: str, example: int) -> int:
    return whole_number(
        value, argument, "cache_frozen", at_least=1, unit=unit, example=example
    )
