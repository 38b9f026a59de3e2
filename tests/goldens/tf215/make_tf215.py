"""Writes files of weights with TensorFlow 2.15 and Keras 2.15, as old programs do.

pip install tensorflow-cpu==2.15.1 tensorflow-addons==0.23.0 "numpy<2"
python tests/goldens/tf215/make_tf215.py
"""

import os
import pathlib

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa
from tensorflow import keras
from tensorflow.keras import layers

HERE = pathlib.Path(__file__).parent
V1 = tf.compat.v1.train.SaverDef.V1


def tf1_dense(x, units, name, activation=None):
    """The variables of `tf.layers.dense`."""
    with tf.compat.v1.variable_scope(name):
        kernel = tf.compat.v1.get_variable("kernel", (x.shape[1], units))
        bias = tf.compat.v1.get_variable(
            "bias", units, initializer=tf.compat.v1.random_normal_initializer()
        )
    return x @ kernel + bias if activation is None else activation(x @ kernel + bias)


def tf1_fully_connected(x, units, name, activation=None):
    """The variables of `tf.contrib.layers.fully_connected`."""
    with tf.compat.v1.variable_scope(name):
        weights = tf.compat.v1.get_variable("weights", (x.shape[1], units))
        biases = tf.compat.v1.get_variable(
            "biases", units, initializer=tf.compat.v1.random_normal_initializer()
        )
    return (
        x @ weights + biases if activation is None else activation(x @ weights + biases)
    )


def tf1(name, layer, scope):
    """A graph of `hidden1` to `hidden3` and `outputs`, saved in both formats."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.set_random_seed(42)
        inputs = tf.compat.v1.placeholder(tf.float32, (None, 8), "X")
        with tf.compat.v1.variable_scope(scope):
            x = inputs
            for number in (1, 2, 3):
                x = layer(x, 6, f"hidden{number}", tf.nn.elu)
            outputs = layer(x, 3, "outputs")
        tf.compat.v1.train.get_or_create_global_step()
        session.run(tf.compat.v1.global_variables_initializer())
        variables = tf.compat.v1.global_variables()
        probe = np.random.RandomState(0).normal(size=(5, 8)).astype("float32")
        keep(
            name,
            [(v.op.name, session.run(v)) for v in variables],
            probe,
            session.run(outputs, {inputs: probe}),
        )
        for suffix, arguments in (("v2", {}), ("v1", {"write_version": V1})):
            saver = tf.compat.v1.train.Saver(**arguments)
            path = str(HERE / f"{name}_{suffix}.ckpt")
            saver.save(session, path, write_meta_graph=False, write_state=False)


def dense():
    model = keras.Sequential(name="dense_net")
    model.add(keras.Input((8,), name="X"))
    for number in (1, 2, 3):
        model.add(layers.Dense(6, activation="elu", name=f"hidden{number}"))
    model.add(layers.Dense(3, name="outputs"))
    return model


def convolutional():
    inputs = keras.Input((8, 8, 3), name="X")
    x = layers.Conv2D(4, 3, name="conv1")(inputs)
    x = layers.BatchNormalization(name="norm1")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise1")(x)
    x = layers.SeparableConv2D(5, 2, name="separable1")(x)
    x = layers.BatchNormalization(name="norm2")(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="outputs")(x), name="conv_net")


def recurrent():
    inputs = keras.Input((5, 4), name="X")
    x = layers.LSTM(4, return_sequences=True, name="lstm1")(inputs)
    x = layers.Bidirectional(
        layers.LSTM(3, return_sequences=True), name="bidirectional1"
    )(x)
    x = layers.GRU(4, name="gru1")(x)
    return keras.Model(inputs, layers.Dense(3, name="outputs")(x), name="rnn_net")


def attention():
    inputs = keras.Input((6,), dtype="int32", name="X")
    x = layers.Embedding(11, 8, name="embedding1")(inputs)
    x = layers.MultiHeadAttention(2, 4, name="attention1")(x, x)
    x = layers.LayerNormalization(name="norm1")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="outputs")(x), name="text_net")


def nested():
    inner = keras.Sequential(name="features")
    inner.add(keras.Input((8,)))
    inner.add(layers.Dense(6, activation="elu", name="hidden1"))
    inner.add(layers.BatchNormalization(name="norm1"))
    inner.add(layers.Dense(6, activation="elu", name="hidden2"))
    inputs = keras.Input((8,), name="X")
    x = layers.Dense(8, activation="elu", name="hidden0")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="outputs")(inner(x)), name="nested")


def weight_normalized():
    model = keras.Sequential(name="weight_normalized")
    model.add(keras.Input((8,), name="X"))
    for number in (1, 2):
        inner = layers.Dense(6, activation="elu", name=f"inner{number}")
        wrapper = tfa.layers.WeightNormalization
        model.add(wrapper(inner, data_init=False, name=f"hidden{number}"))
    model.add(layers.Dense(3, name="outputs"))
    return model


BUILDERS = {
    "dense": dense,
    "conv": convolutional,
    "rnn": recurrent,
    "text": attention,
    "nested": nested,
    "weight_norm": weight_normalized,
}


def probe_of(model, count, seed):
    rng = np.random.RandomState(seed)
    shape = (count, *model.input_shape[1:])
    if model.input.dtype == tf.int32:
        return rng.randint(0, 11, shape).astype("int32")
    return rng.normal(size=shape).astype("float32")


def trained(build):
    """A model after a short fit, so that no weight is as it was initialized."""
    # Adam's state would make the files of the larger models large.
    is_small = build in (dense, nested, weight_normalized)
    learning_rate, momentum = 0.01, 0.9
    optimizer = (
        keras.optimizers.Adam(learning_rate)
        if is_small
        else keras.optimizers.SGD(learning_rate, momentum)
    )
    keras.backend.clear_session()
    keras.utils.set_random_seed(42)
    model = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    labels = np.random.RandomState(2).randint(0, 3, 32)
    model.fit(probe_of(model, 32, 1), labels, 8, epochs=2, shuffle=False, verbose=0)
    return model


def keep(name, variables, probe, output):
    """Writes the names and values of the variables, in order, an input, an output."""
    arrays = {f"value_{i:03d}": np.asarray(v) for i, (_, v) in enumerate(variables)}
    names = np.array([name for name, _ in variables])
    np.savez_compressed(
        HERE / f"{name}.npz", names=names, probe=probe, output=output, **arrays
    )


def main():
    tf1("tf1_dense", tf1_dense, "dnn")
    tf1("tf1_contrib", tf1_fully_connected, "")
    for name, build in BUILDERS.items():
        model = trained(build)
        probe = probe_of(model, 5, 0)
        variables = [(v.name.removesuffix(":0"), v.numpy()) for v in model.weights]
        keep(name, variables, probe, model(probe, training=False).numpy())
        model.save_weights(HERE / f"{name}_weights.h5")
        model.save(HERE / f"{name}_model.h5")
        if name in ("dense", "weight_norm"):
            model.save_weights(str(HERE / f"{name}_object.ckpt"), save_format="tf")
        if name == "dense":
            model.save(HERE / "dense_model.keras")
    (HERE / "checkpoint").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
