"""A branch of the step that is rarely run, and costs little when it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf


def sometimes(
    predicate: tf.Tensor,
    then: Callable[[], tf.Tensor],
    otherwise: tf.Tensor,
    is_whole: bool,
) -> tf.Tensor:
    """`tf.cond(predicate, then, lambda: otherwise)`, where `then` is rarely run.

    TensorFlow takes a `tf.cond` apart. At every step it then visits one operation for
    each tensor that the branch takes from outside, and the step has branches, which
    slows down the bookkeeping of all its operations. A step of a small net has a few
    hundred operations, and both are felt. An `If` that is left whole is one operation.

    Args:
        predicate: Scalar bool.
        then: The branch.
        otherwise: What comes out if the branch is not run.
        is_whole: Whether to leave the branch whole. All its operations then have one
            place, and so must all variables that it uses: see `are_on_one_cpu`.
    """
    if tf.executing_eagerly():
        return tf.cond(predicate, then, lambda: otherwise)
    if not is_whole:
        as_one = tf.function(
            then, autograph=False, experimental_attributes={"_noinline": True}
        )
        return tf.cond(predicate, as_one, lambda: otherwise)

    spec = tf.TensorSpec(otherwise.shape, otherwise.dtype)
    then_branch = tf.function(lambda otherwise: then(), autograph=False)
    branch = then_branch.get_concrete_function(spec)
    taken = branch.captured_inputs
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in taken]
    else_branch = tf.function(lambda otherwise, *others: otherwise, autograph=False)
    (result,) = tf.raw_ops.If(
        cond=predicate,
        input=[otherwise, *taken],
        Tout=[otherwise.dtype],
        then_branch=branch,
        else_branch=else_branch.get_concrete_function(spec, *specs),
        output_shapes=[otherwise.shape],
    )
    return result


def nothing() -> tf.Tensor:
    """What a branch gives back that is there for what it writes."""
    return tf.constant(0)


def are_on_one_cpu(variables: Iterable[Any]) -> bool:
    """Whether one and the same CPU holds all variables.

    Of operations on other devices only TensorFlow's placer knows which of them must
    stay on the host.
    """
    if tf.distribute.has_strategy():
        return False
    devices = {variable.device for variable in variables}
    parsed = [tf.DeviceSpec.from_string(device) for device in devices]
    return len(parsed) == 1 and parsed[0].device_type == "CPU"
