"""What a step does on all replicas together: sums, and branches with updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfdeep._core._gradients import Gradient


def count() -> int:
    """The number of replicas that take part in a step."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def sum_over(gradients: Sequence[Gradient | None]) -> list[Gradient | None]:
    """Sums each gradient over all replicas; without a strategy, returns them as is.

    Keras divides the loss by the number of replicas, so this sum is the gradient of
    the loss over the global batch.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return list(gradients)
    present = [gradient for gradient in gradients if gradient is not None]
    reduced = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if gradient is None else next(reduced) for gradient in gradients]


def call_if(condition: tf.Tensor, update: Callable[..., object], *args: Any) -> None:
    """Calls `update(*args)` on every replica if `condition` holds.

    An update of mirrored variables may not stand in a branch of a single replica, so
    under a strategy the replicas meet first and branch together.

    Args:
        condition: Scalar bool with the same value on every replica.
        update: Changes variables; what it returns is dropped.
        *args: Arguments for `update`, of this replica.
    """

    def meet(strategy: Any, condition: Any, args: Any) -> None:
        def call_all() -> tf.Tensor:
            strategy.extended.call_for_each_replica(update, args=args)
            return tf.constant(0)

        same_everywhere = strategy.experimental_local_results(condition)[0]
        tf.cond(same_everywhere, call_all, lambda: tf.constant(0))

    def call() -> tf.Tensor:
        update(*args)
        return tf.constant(0)

    if tf.distribute.has_strategy():
        context = tf.distribute.get_replica_context()
        context.merge_call(meet, args=(condition, args))
    else:
        tf.cond(condition, call, lambda: tf.constant(0))
