"""One of the workers of `test_workers.py`, in a process of its own.

    python tests/transfer/worker.py CACHE_DIR OUTPUT trains|builds DIES_AFTER

Builds a cache with the others and trains the head with them. It is killed after
DIES_AFTER batches of the frozen part, if that is not 0. Without TF_CONFIG it is alone.
"""

import os
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

import tfdeep
from tests import nets
from tfdeep.transfer import _frozen

COUNT, BATCH, SHARD = 640, 16, 64 * (6 * 4 + 8)  # SHARD: bytes of 64 examples


def strategy():
    if "TF_CONFIG" in os.environ:
        return tfdeep.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def work(cache_dir, trains=True, dies_after=None):
    """What this worker ran and, if it trains, the weights that it ends with."""
    with (here := strategy()).scope():
        keras.utils.set_random_seed(1)
        model = nets.functional()
    tfdeep.freeze(model, "hidden[12]")
    ran = []
    own = _frozen.FrozenPart._on_replicas

    def counted(self, x):
        ran.append(len(x))
        if dies_after is not None and len(ran) > dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(self, x)

    _frozen.FrozenPart._on_replicas = counted
    try:
        head, features, report = tfdeep.cache_frozen(
            model, nets.dataset(COUNT, BATCH), cache_dir, shard_bytes=SHARD
        )
    finally:
        _frozen.FrozenPart._on_replicas = own
    found = {"ran": sum(ran), "examples": report.examples}
    if trains:
        with here.scope():
            head.compile(keras.optimizers.SGD(0.1, momentum=0.9), nets.LOSS)
        head.fit(features, epochs=3, verbose=0)
        found |= {w.path.replace("/", "|"): w.numpy() for w in model.weights}
    return found


if __name__ == "__main__":
    cache_dir, output, trains, dies_after = sys.argv[1:]
    found = work(cache_dir, trains == "trains", int(dies_after) or None)
    np.savez(output, **found)
    os._exit(0)  # whoever lost its partner would wait for it at the end
