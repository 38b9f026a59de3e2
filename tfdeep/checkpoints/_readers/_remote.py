"""Reads files of weights wherever `tf.io.gfile` can, through a local copy."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfdeep._core._explain import explain
from tfdeep.checkpoints._readers._reader import Reader
from tfdeep.errors import UnknownFormatError, UnsafeFileError


class RemoteReader(Reader):
    """Reads a copy of a remote file, which is removed when the reader is closed.

    Args:
        source: The URL.
        is_allowed: Whether the caller asked for remote files.
        open_copy: Opens a local path.
    """

    def __init__(
        self, source: str, is_allowed: bool, open_copy: Callable[[str], Reader]
    ) -> None:
        self.source = source
        if not is_allowed:
            raise UnsafeFileError(
                explain(
                    "This file is not on this machine.",
                    received=repr(source),
                    expected="a local path",
                    fix="`allow_remote=True` copies it here first; nothing was changed",
                )
            )
        self._directory = tempfile.TemporaryDirectory(prefix="tfdeep-")
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._directory.cleanup)
            self._reader = open_copy(_copy(source, self._directory.name))
            on_error.pop_all()
        self.format = self._reader.format
        self.integrity = self._reader.integrity
        self.variables = self._reader.variables
        self._by_name = {info.name: info for info in self.variables}

    def read(self, name: str) -> np.ndarray:
        return self._reader.read(name)

    def close(self) -> None:
        self._reader.close()
        self._directory.cleanup()


def _copy(source: str, directory: str) -> str:
    """Copies a file, a checkpoint's files or a directory; returns the copy's path."""
    copy = os.path.join(directory, os.path.basename(source.rstrip("/")))
    try:
        if tf.io.gfile.isdir(source):
            for folder, _, names in tf.io.gfile.walk(source):
                inside = os.path.relpath(folder, source)
                tf.io.gfile.makedirs(os.path.join(copy, inside))
                for name in names:
                    tf.io.gfile.copy(
                        os.path.join(folder, name), os.path.join(copy, inside, name)
                    )
            return copy
        source = source.removesuffix(".index")  # what has one is a checkpoint
        copy = copy.removesuffix(".index")
        if tf.io.gfile.exists(source):
            tf.io.gfile.copy(source, copy)
            if copy.endswith(".json"):
                _copy_shards(os.path.dirname(source), copy)
            return copy
        parts = tf.io.gfile.glob(f"{source}.index") + tf.io.gfile.glob(
            f"{source}.data-*"
        )
        for part in parts:
            tf.io.gfile.copy(part, os.path.join(directory, os.path.basename(part)))
    except (tf.errors.OpError, OSError) as error:
        raise _missing(source, str(error).strip().split("\n")[0]) from error
    if not parts:
        raise _missing(source, "there is no such file")
    return copy


def _copy_shards(place: str, listing: str) -> None:
    """Copies the files that a copied list names, if they lie beside it.

    The reader of the list reports what is wrong with it.
    """
    with open(listing, "rb") as file:
        text = file.read()
    for name in tf.io.gfile.listdir(place):
        here = os.path.join(os.path.dirname(listing), name)
        if json.dumps(name).encode() in text and not os.path.exists(here):
            tf.io.gfile.copy(f"{place}/{name}", here)


def _missing(source: str, reason: str) -> UnknownFormatError:
    return UnknownFormatError(
        explain(
            "This remote file cannot be copied.",
            received=f"{source!r}: {reason}",
            expected="a file, a directory or the prefix of a checkpoint that "
            "`tf.io.gfile` reads",
            fix="check the address and your permissions; nothing was changed",
        )
    )
