"""What `tf.distribute` needs so that Keras' `fit` runs on several workers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["MultiWorkerMirroredStrategy"]


class MultiWorkerMirroredStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """TensorFlow's strategy for several workers, with which Keras 3 can `fit`.

    Use it in place of `tf.distribute.MultiWorkerMirroredStrategy`, with the same
    arguments and the same `TF_CONFIG`. Keras asks a strategy to reduce a nest of
    values, and to reduce scalars along their first axis; TensorFlow's refuses both, so
    `fit` ends with "Attempt to convert a value (PerReplica:...)".

    Wrapped in tfdeep's optimizers, the workers clip the gradient that they have
    summed. Batch sizes are those of all workers together and must divide evenly;
    `steps_per_execution` must stay 1.

    Example:

        # in each process, with its own "task" in TF_CONFIG
        strategy = tfdeep.distribute.MultiWorkerMirroredStrategy()
        with strategy.scope():
            model = ...
            model.compile(tfdeep.optimizers.ClipByGlobalNorm("adam", 1.0), loss)
        model.fit(dataset, epochs=3)
    """

    def reduce(self, reduce_op: Any, value: Any, axis: int | None) -> Any:
        def reduce_one(item: Any) -> Any:
            local = self.experimental_local_results(item)[0]
            is_scalar = len(getattr(local, "shape", ())) == 0
            along = None if is_scalar else axis
            return super(MultiWorkerMirroredStrategy, self).reduce(
                reduce_op, item, along
            )

        return tf.nest.map_structure(reduce_one, value)
