"""Which steps are measured in detail.

What costs more than a norm is measured at the first steps, when most goes wrong, then
at every tenth, and at every fiftieth once a thousand steps have gone well: the update
of a weight takes a copy of the weights, which at every step costs 6 to 19 percent of
the training time.
"""

from __future__ import annotations

import tensorflow as tf

EVERY = 10
LATER = 1000  # the step from which on it is measured more rarely
RARER = 5  # times

# A unit is silent, or inactive, if it was so at this many measured steps in a row.
_IN_A_ROW = 5


def every(step: tf.Tensor, period: int = EVERY) -> tf.Tensor:
    """The period at a step of what has this period at first."""
    first = tf.constant(period, step.dtype)
    return tf.where(step < LATER, first, RARER * first)


def is_due(step: tf.Tensor) -> tf.Tensor:
    """Whether a step is measured in detail."""
    return (step < EVERY) | (step % every(step) == 0)


def is_long_ago(last: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Whether what was seen at `last`, or never (-1), has been absent for a while."""
    return last <= tf.maximum(step - _IN_A_ROW * every(step), -1)
