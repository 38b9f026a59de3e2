"""`diagnose` names the layer that makes the first NaN, and not the one after it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfdeep
from tests import nets


@keras.saving.register_keras_serializable()
def bad(x):
    return ops.log(ops.sum(x - x, keepdims=True)) * 0 + x


class Attention(layers.Layer):
    """Attention of layers, with a mask that leaves nothing."""

    def __init__(self, **options):
        super().__init__(**options)
        self.query, self.key, self.value, self.out = (layers.Dense(4) for _ in "qkvo")

    def call(self, x):
        scores = ops.matmul(self.query(x), ops.swapaxes(self.key(x), 1, 2))
        weights = ops.softmax(scores + ops.log(ops.zeros_like(scores)))
        return self.out(ops.matmul(weights, self.value(x)))


class Bad(layers.Layer):
    def call(self, x):
        return bad(x)

    def compute_output_shape(self, input_shape):
        return input_shape


class Block(layers.Layer):
    """A block in which one layer is bad."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.bad = layers.Dense(4, name="first"), Bad(name="bad")
        self.last = layers.Dense(4, name="last")

    def call(self, x):
        return self.last(self.bad(self.first(x)))


def inner_model():
    x = keras.Input((5, 4))
    return keras.Model(x, layers.Dense(4)(Bad(name="bad")(x)), name="sick")


SICK = {
    "attention": (lambda: Attention(name="sick"), "sick"),
    "a layer in a block": (lambda: Block(name="block"), "block/bad"),
    "a model in the model": (inner_model, "sick/bad"),
    "lambda": (lambda: layers.Lambda(bad, name="sick"), "sick"),
    "time distributed": (
        lambda: layers.TimeDistributed(Bad(name="bad"), name="each"),
        "each/bad",
    ),
    "bidirectional": (
        lambda: layers.Bidirectional(
            layers.SimpleRNN(4, activation=bad, return_sequences=True, name="loop"),
            name="both",
        ),
        "both/forward_loop",
    ),
    "self-attention": (
        lambda: layers.MultiHeadAttention(1, 4, name="sick", use_bias=False),
        "sick",
    ),
}


@pytest.mark.parametrize(("make", "path"), SICK.values(), ids=SICK)
def test_the_layer_is_named(make, path):
    keras.utils.set_random_seed(0)
    x = keras.Input((5, 4))
    before, sick = layers.Dense(4, "relu", name="before")(x), make()
    given = [before] * (2 if isinstance(sick, layers.MultiHeadAttention) else 1)
    y = layers.Dense(3, "softmax", name="after")(layers.Flatten()(sick(*given)))
    model = keras.Model(x, y)
    if isinstance(sick, layers.MultiHeadAttention):  # the scores overflow
        for layer in (sick.query_dense, sick.key_dense):
            layer.kernel.assign(1e30 * layer.kernel)
    inputs = np.random.default_rng(0).normal(size=(16, 5, 4))
    diagnosis = tfdeep.diagnose(
        model, inputs, np.zeros(16), "sparse_categorical_crossentropy"
    )
    found = [f.layer for f in diagnosis.findings if f.kind == "nonfinite"]
    assert found == [path]


def test_an_infinity_that_a_layer_takes_away_again_is_none():
    keras.utils.set_random_seed(0)
    hide = layers.Lambda(lambda x: tf.where(x < 10, np.float32(np.inf), x))
    show = layers.Lambda(lambda x: tf.where(tf.math.is_inf(x), tf.zeros_like(x), x))
    model = keras.Sequential(
        [hide, show, layers.Dense(8, "relu"), layers.Dense(nets.CLASSES)]
    )
    x, y = nets.examples()
    assert "nonfinite" not in {
        f.kind for f in tfdeep.diagnose(model, x, y, nets.LOSS).findings
    }


def test_an_operation_between_layers_is_found_behind_one():
    x = keras.Input((nets.INPUTS,))
    hidden = bad(layers.Dense(8, "relu", name="before")(x))
    model = keras.Model(x, layers.Dense(nets.CLASSES, name="after")(hidden))
    finding = tfdeep.diagnose(model, *nets.examples(), nets.LOSS).findings[0]
    assert (finding.kind, finding.layer) == ("nonfinite", "after")
    assert finding.evidence.startswith("its input is NaN or infinite")
