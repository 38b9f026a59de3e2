"""Calls of TensorFlow's classes are heard while a block is open, and not after."""

import threading

import tensorflow as tf

from tfdeep._keras import _hooks


def test_gradients_are_heard_until_the_last_block_ends():
    before = vars(tf.GradientTape)["gradient"]
    x = tf.Variable(2.0)
    heard = []

    def differentiate():
        with tf.GradientTape() as tape:
            y = x**2
        return float(tape.gradient(y, x))

    first = _hooks.gradients(lambda tape, target, sources: heard.append("first"))
    second = _hooks.gradients(lambda tape, target, sources: heard.append("second"))
    with first:
        with second:
            assert differentiate() == 4
        assert heard == ["first", "second"]
        assert differentiate() == 4
    assert heard == ["first", "second", "first"]
    assert vars(tf.GradientTape)["gradient"] is before
    differentiate()
    assert len(heard) == 3


def test_functions_are_heard():
    function = tf.function(lambda x: x + 1)
    heard = []
    with _hooks.functions(lambda *args, **kwargs: heard.append(tf.executing_eagerly())):
        assert int(function(tf.constant(1))) == 2
    function(tf.constant(1))
    assert heard == [True]


def test_blocks_of_several_threads_do_not_disturb_one_another():
    before = vars(tf.GradientTape)["gradient"]
    barrier = threading.Barrier(4)

    def open_and_close():
        for _ in range(200):
            with _hooks.gradients(lambda *args: None):
                pass
        barrier.wait(60)

    threads = [threading.Thread(target=open_and_close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vars(tf.GradientTape)["gradient"] is before
