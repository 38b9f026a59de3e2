"""What the layers and initializers cost, as ratios to what Keras and TensorFlow have.

    python benchmarks/layers.py
    python benchmarks/layers.py --layer RReLU --rounds 51

Each layer stands where it does in a net: `RReLU` against `keras.layers.LeakyReLU`
behind a dense layer and behind a convolution, and by itself; `WeightNormalization`
against the layer that it wraps ("many": a dense layer on 1,024 examples at once);
`LocalResponseNormalization` against `tf.nn.local_response_normalization`. "forward" is
inference; "train" is a gradient step of SGD, with the gradient at the inputs, in one
`tf.function`. In each round the two, and the plain one once more ("again": what it
differs from 1 is the noise), run one after the other in a random order; printed are
medians, of the ratios over the rounds.

"least" is the plain layer with the one operation beside it that the other cannot do
without, in TensorFlow's fastest form, its result unused: for `RReLU`, 16 random bits
for each element; for `WeightNormalization`, the norms of the kernel.

At last, the kernels of ResNet50 are drawn with `VarianceScaling(activation="relu")` and
with "he_normal".
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfdeep

SECONDS = 0.02  # that each one runs in a round, at least
DENSE, MANY, IMAGES = (128, 1024), (1024, 1024), (16, 32, 32, 64)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A layer, what it is compared to, and the most that the ratio may be.

    `needed` is what the layer cannot do without: called with the plain layer, its
    inputs, and whether it is compiled with XLA; `always`, at inference too.
    """

    layer: str
    place: str
    shape: tuple[int, ...]
    ours: Callable[[], keras.layers.Layer]
    plain: Callable[[], keras.layers.Layer]
    limit: float
    needed: Callable[[keras.layers.Layer, tf.Tensor, bool], tf.Tensor] | None = None
    always: bool = True


def dense():
    return layers.Dense(1024)


def convolution():
    return layers.Conv2D(64, 3, padding="same")


def leaky():
    return layers.LeakyReLU(negative_slope=0.2292)


def behind(first, second):
    return lambda: keras.Sequential([first(), second()])


def drawn(layer, x, jit):
    """Random bits for the elements of `x`; two share a number of 32 bits."""
    seed = tf.cast(tf.reshape(x, [-1])[:2], tf.int32)  # or it is drawn once for all
    count = tf.size(x) // 2
    return tf.random.stateless_uniform(
        [count], seed, None, None, tf.int32, alg="philox"
    )


def norms(layer, x, jit):
    """Those of the columns of a dense kernel."""
    kernel = layer.kernel.value
    if jit:  # XLA fuses the two, and lacks the other
        return tf.reduce_sum(tf.square(kernel), axis=0)
    return tf.math.reduce_euclidean_norm(kernel, axis=0)


class PlainResponse(layers.Layer):
    """The operation that `LocalResponseNormalization` uses, and nothing else."""

    def call(self, inputs):
        return tf.nn.local_response_normalization(inputs, 2, 2.0, 1e-4, 0.75)


own = tfdeep.layers
WN, LRN = own.WeightNormalization, own.LocalResponseNormalization
PAIRS = (
    Pair("RReLU", "Dense", DENSE, behind(dense, own.RReLU), behind(dense, leaky), 1.3),
    Pair(
        "RReLU",
        "Conv2D",
        IMAGES,
        behind(convolution, own.RReLU),
        behind(convolution, leaky),
        1.3,
    ),
    Pair("RReLU", "alone", IMAGES, own.RReLU, leaky, 1.3, drawn, always=False),
    Pair(
        "WeightNormalization", "Dense", DENSE, lambda: WN(dense()), dense, 1.15, norms
    ),
    Pair("WeightNormalization", "many", MANY, lambda: WN(dense()), dense, 1.15, norms),
    Pair(
        "WeightNormalization",
        "Conv2D",
        IMAGES,
        lambda: WN(convolution()),
        convolution,
        1.15,
    ),
    Pair("LocalResponseNorm.", "alone", IMAGES, LRN, PlainResponse, 1.05),
)


def compiled(make, shape, train, jit, needed=None):
    """A function that runs the layer once on data of its own."""
    keras.utils.set_random_seed(0)
    layer, optimizer = make(), keras.optimizers.SGD(1e-6)
    x = tf.random.normal(shape)
    layer(x)
    variables = layer.trainable_variables
    optimizer.build(variables)

    def beside(x):
        return () if needed is None else needed(layer, x, jit)

    @tf.function(jit_compile=jit)
    def forward(x):
        return layer(x, training=False), beside(x)

    @tf.function(jit_compile=jit)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) ** 2)
        watched = [v.value for v in variables]
        gradients, upstream = tape.gradient(loss, (watched, x))
        if variables:
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return upstream, beside(x)

    function = step if train else forward
    return lambda: function(x)[0].numpy()


def measure(actions, rounds):
    """Seconds of each action, by round."""
    for action in actions.values():
        action()  # traces
    begin = time.perf_counter()
    actions["plain"]()
    times = max(1, round(SECONDS / (time.perf_counter() - begin)))
    seconds = {name: [] for name in actions}
    for i in range(rounds + 1):
        for name in random.sample(list(actions), len(actions)):
            begin = time.perf_counter()
            for _ in range(times):
                actions[name]()
            if i > 0:  # the first round warms up
                seconds[name].append((time.perf_counter() - begin) / times)
    return seconds


def row(name, place, jit, step, seconds, limit):
    plain = statistics.median(seconds["plain"]) * 1000
    print(f"{name:<20} {place:<9} {jit:<4} {step:<8} {plain:>9.2f}", end="")
    for way in ("again", "least", "ours"):
        if way in seconds:
            ratio = statistics.median(np.divide(seconds[way], seconds["plain"]))
            print(f" {ratio:>6.3f}", end="")
        else:
            print(f" {'-':>6}", end="")
    print(f" {limit:>8.2f}", flush=True)


def resnet50():
    """What to build each layer of ResNet50 that has a kernel: layer, input channels."""
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3))
    found = []
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            found.append((layer.filters, layer.kernel_size, layer.input.shape[-1]))
        elif isinstance(layer, layers.Dense):
            found.append((layer.units, None, layer.input.shape[-1]))
    return found


def build(shapes, initializer):
    """Makes the layers, each with an initializer of its own."""
    for outputs, window, inputs in shapes:
        if window is None:
            layer = layers.Dense(outputs, kernel_initializer=initializer())
            layer.build((None, inputs))
        else:
            layer = layers.Conv2D(outputs, window, kernel_initializer=initializer())
            layer.build((None, 64, 64, inputs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    names = [*dict.fromkeys(pair.layer for pair in PAIRS), "VarianceScaling"]
    parser.add_argument("--layer", choices=names, action="append")
    options = parser.parse_args()
    chosen = options.layer or names
    print(f"tensorflow {tf.__version__}, keras {keras.__version__}, ", end="")
    print(f"{os.cpu_count()} cores, {options.rounds} rounds")
    print(f"dense layers 1024 x 1024 on {DENSE}; convolutions 3 x 3 x 64 on {IMAGES}\n")
    print(f"{'layer':<20} {'place':<9} {'jit':<4} {'step':<8} {'plain, ms':>9}", end="")
    print(f" {'again':>6} {'least':>6} {'ratio':>6} {'at most':>8}")
    for pair in PAIRS:
        if pair.layer not in chosen:
            continue
        for jit in (False, True):
            for train in (False, True):
                makers = {"plain": pair.plain, "again": pair.plain, "ours": pair.ours}
                actions = {
                    name: compiled(make, pair.shape, train, jit)
                    for name, make in makers.items()
                }
                if pair.needed is not None and (train or pair.always):
                    actions["least"] = compiled(
                        pair.plain, pair.shape, train, jit, pair.needed
                    )
                seconds = measure(actions, options.rounds)
                words = ("yes" if jit else "no", "train" if train else "forward")
                row(pair.layer, pair.place, *words, seconds, pair.limit)
    if "VarianceScaling" in chosen:
        shapes = resnet50()
        ours = tfdeep.initializers.VarianceScaling
        makers = {
            "plain": lambda: "he_normal",
            "again": lambda: "he_normal",
            "ours": lambda: ours(activation="relu"),
        }
        actions = {
            name: lambda maker=maker: build(shapes, maker)
            for name, maker in makers.items()
        }
        seconds = measure(actions, max(options.rounds // 3, 3))
        row("VarianceScaling", "ResNet50", "-", "build", seconds, 1.2)


if __name__ == "__main__":
    main()
