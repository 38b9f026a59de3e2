"""The nets of the gym: one builder for each family, told by settings what to build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from benchmarks.gym._data import TOPICS, WORDS
from benchmarks.gym._settings import Settings, with_defaults
from tfdeep.optimizers import Accumulate, ClipByGlobalNorm

_BOUNDED = ("linear", "sigmoid", "softmax", "tanh")


class Gate(keras.layers.Layer):
    """A learned factor that is 0 at first."""

    def build(self, shape):
        self.gate = self.add_weight(shape=(), initializer="zeros", name="gate")

    def call(self, x):
        return x * self.gate


class Positions(keras.layers.Layer):
    """Adds a learned vector to each element of a sequence."""

    def build(self, shape):
        self.positions = self.add_weight(
            shape=shape[1:], initializer=_initializer(0.1), name="positions"
        )

    def call(self, x):
        return x + self.positions


class Log(keras.layers.Layer):
    """log(x + epsilon)"""

    def __init__(self, epsilon, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, x):
        return keras.ops.log(x + self.epsilon)


class Length(keras.layers.Layer):
    """Appends the length of the vector; without epsilon its gradient at 0 is NaN."""

    def __init__(self, epsilon, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, x):
        squares = keras.ops.sum(keras.ops.square(x), axis=-1, keepdims=True)
        length = keras.ops.sqrt(squares + self.epsilon)
        return keras.ops.concatenate([x, length], axis=-1)


def _builder(**defaults: Any) -> Callable[..., Callable[..., keras.Model]]:
    """Makes a compiled model of what builds the layers."""

    def decorate(layers: Callable[[Settings], keras.Model]):
        @with_defaults(**defaults)
        def build(settings: Settings) -> keras.Model:
            policy = keras.config.dtype_policy()
            keras.config.set_dtype_policy(settings.dtype)
            try:
                model = layers(settings)
                _compile(model, settings)
            finally:
                keras.config.set_dtype_policy(policy)
            return model

        build.__name__, build.__doc__ = layers.__name__, layers.__doc__
        return build

    return decorate


@_builder()
def dense(settings: Settings) -> keras.Model:
    """hidden1, hidden2, ... and logits (output if they are no logits)."""
    inputs = keras.Input((WORDS,) if settings.target == "topic" else (64,))
    x = inputs
    if settings.log_inputs:
        x = Log(settings.epsilon, name="log")(x)
    for i in range(1, settings.depth + 1):
        before = x
        x = _dense(settings, f"hidden{i}", _units(settings, i))(x)
        x = _after(settings, f"hidden{i}", x)
        if settings.residual and before.shape == x.shape:
            x = keras.layers.Add(name=f"add{i}")([before, x])
        if i == settings.depth // 2:
            x = _in_the_way(settings, x)
    return keras.Model(inputs, _head(settings)(x))


@_builder()
def subclassed(settings: Settings) -> keras.Model:
    """The layers of `dense` in a model with a call of its own."""

    class Stack(keras.Model):
        def __init__(self):
            super().__init__(name="stack")
            self.hidden = [
                _dense(settings, f"hidden{i}", settings.units)
                for i in range(1, settings.depth + 1)
            ]
            self.head = _head(settings)

        def call(self, x):
            for layer in self.hidden:
                x = layer(x)
            return self.head(x)

    model = Stack()
    model(keras.ops.zeros((1, 64)))
    return model


@_builder(depth=3)
def two_branches(settings: Settings) -> keras.Model:
    """A wide and a deep branch of the same inputs."""
    inputs = x = keras.Input((64,))
    for i in range(1, settings.depth + 1):
        x = _dense(settings, f"hidden{i}", settings.units)(x)
    wide = keras.layers.Dense(10, name="wide")(inputs)
    x = keras.layers.Concatenate(name="both")([wide, x])
    return keras.Model(inputs, _head(settings)(x))


@_builder(depth=1, optimizer="adam", learning_rate=0.01, target="topic")
def embedded(settings: Settings) -> keras.Model:
    """Words by their mean embedding."""
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(WORDS, 16, name="embedding")(inputs)
    x = keras.layers.GlobalAveragePooling1D(name="mean")(x)
    for i in range(1, settings.depth + 1):
        x = _dense(settings, f"hidden{i}", settings.units)(x)
    return keras.Model(inputs, _head(settings)(x))


@_builder(depth=3, units=16, optimizer="adam", learning_rate=0.01)
def convolutional(settings: Settings) -> keras.Model:
    """conv1, conv2, ...: with `depthwise`, each a depthwise one and a pointwise one."""
    inputs = keras.Input((64,))
    x = keras.layers.Reshape((8, 8, 1), name="image")(inputs)
    for i in range(1, settings.depth + 1):
        name = f"conv{i}"
        if settings.depthwise and i > 1:
            x = keras.layers.DepthwiseConv2D(
                3, padding="same", name=f"depthwise{i}", use_bias=False
            )(x)
            x = _after(settings, f"depthwise{i}", x)
            x = keras.layers.Conv2D(settings.units, 1, **_layer(settings, name))(x)
        else:
            x = keras.layers.Conv2D(
                settings.units, 3, padding="same", **_layer(settings, name)
            )(x)
        x = _after(settings, name, x)
        if i == 1:
            x = keras.layers.MaxPooling2D(name="pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, _head(settings)(x))


@_builder(
    units=32, activation="tanh", optimizer="adam", learning_rate=0.01, cell="simple"
)
def recurrent(settings: Settings) -> keras.Model:
    """One layer, recurrent, reads an image row by row, or a sequence to `recall`."""
    if settings.target == "topic":
        inputs = x = keras.Input((settings.sequence, TOPICS))
    else:
        inputs = keras.Input((64,))
        x = keras.layers.Reshape((8, 8), name="rows")(inputs)
    layer = {
        "simple": keras.layers.SimpleRNN,
        "lstm": keras.layers.LSTM,
        "gru": keras.layers.GRU,
    }[settings.cell]
    x = layer(
        settings.units,
        recurrent_initializer=_initializer(settings.recurrent_initializer),
        **_layer(settings, "recurrent"),
    )(x)
    return keras.Model(inputs, _head(settings)(x))


@_builder(depth=8, residual=True, optimizer="adam", learning_rate=0.003)
def residual(settings: Settings) -> keras.Model:
    """first, then blocks: the layers in1 and out1 make a branch around which x goes."""
    inputs = keras.Input((64,))
    x = keras.layers.Dense(settings.units, name="first")(inputs)
    for i in range(1, settings.depth + 1):
        branch = x
        if settings.normalization and settings.gamma == "ones":
            branch = _normalization(settings, f"norm{i}")(branch)
        branch = _dense(settings, f"in{i}", settings.units)(branch)
        branch = _dense(settings, f"out{i}", settings.units, activation="linear")(
            branch
        )
        if settings.normalization and settings.gamma != "ones":
            branch = _normalization(settings, f"norm{i}", settings.gamma)(branch)
        if settings.gate:
            branch = Gate(name=f"gate{i}")(branch)
        if settings.residual:
            x = keras.layers.Add(name=f"add{i}")([x, branch])
        else:
            x = branch
    if settings.normalization:
        x = _normalization(settings, "norm")(x)
    return keras.Model(inputs, _head(settings)(x))


@_builder(
    depth=2,
    units=32,
    activation="gelu",
    normalization="layer",
    residual=True,
    optimizer="adam",
    learning_rate=0.003,
)
def attention(settings: Settings) -> keras.Model:
    """Blocks of attention1 and the dense wide1 and narrow1 over the rows of images."""
    inputs = keras.Input((64,))
    x = keras.layers.Reshape((8, 8), name="rows")(inputs)
    x = keras.layers.Dense(settings.units, name="embedding")(x)
    x = Positions(name="positions")(x)

    def add(i: int, part: str, before: Any, branch: Any) -> Any:
        if settings.residual:
            return keras.layers.Add(name=f"{part}{i}")([before, branch])
        return branch

    for i in range(1, settings.depth + 1):
        name, y = f"attention{i}", x
        if settings.normalization:
            y = _normalization(settings, f"norm{i}a")(y)
        own = not settings.only or name in settings.only
        layer = keras.layers.MultiHeadAttention(
            2,
            settings.units // 2,
            kernel_initializer=_initializer(
                (settings.initializer if own else None) or "glorot_uniform"
            ),
            name=name,
        )
        y = layer(y, y)
        if own and settings.query_gain != 1:
            kernel = layer.query_dense.kernel
            kernel.assign(kernel * settings.query_gain)
        x = add(i, "add_attended", x, y)
        if not settings.feed_forward:
            continue
        y = x
        if settings.normalization:
            y = _normalization(settings, f"norm{i}b")(y)
        y = _dense(settings, f"wide{i}", settings.units * 2)(y)
        y = _dense(settings, f"narrow{i}", settings.units, activation="linear")(y)
        x = add(i, "add_dense", x, y)
    if settings.normalization:
        x = _normalization(settings, "norm")(x)
    x = keras.layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(inputs, _head(settings)(x))


def _layer(
    settings: Settings, name: str, activation: str | None = None
) -> dict[str, Any]:
    """The arguments that a layer with a kernel, a bias and an activation takes."""
    own = not settings.only or name in settings.only
    activation = activation or settings.activation
    suits = "glorot_uniform" if activation in _BOUNDED else "he_normal"
    if activation == "selu":
        suits = "lecun_normal"
    initializer = settings.initializer if own else None
    bias = settings.bias if own else 0.0
    return {
        "name": name,
        "activation": activation,
        "kernel_initializer": _initializer(
            suits if initializer is None else initializer
        ),
        "use_bias": bias is not None,
        "bias_initializer": keras.initializers.Constant(bias or 0.0),
        "activity_regularizer": (
            keras.regularizers.L1(settings.activity_l1)
            if settings.activity_l1
            else None
        ),
        "trainable": settings.trainable or not own,
    }


def _dense(
    settings: Settings, name: str, units: int, activation: str | None = None
) -> keras.layers.Layer:
    return keras.layers.Dense(units, **_layer(settings, name, activation))


def _units(settings: Settings, i: int) -> int:
    if settings.narrow and i == (settings.depth + 1) // 2:
        return settings.narrow
    return settings.units


def _initializer(wanted: Any) -> Any:
    if isinstance(wanted, (int, float)):
        return keras.initializers.RandomNormal(stddev=wanted)
    return keras.initializers.get(wanted)


def _normalization(settings: Settings, name: str, gamma: str = "ones") -> Any:
    if settings.normalization == "batch":
        return keras.layers.BatchNormalization(
            momentum=0.9, gamma_initializer=gamma, name=name
        )
    return keras.layers.LayerNormalization(gamma_initializer=gamma, name=name)


def _after(settings: Settings, name: str, x: Any) -> Any:
    if settings.normalization:
        x = _normalization(settings, f"{name}_norm")(x)
    if settings.dropout:
        x = keras.layers.Dropout(settings.dropout, name=f"{name}_dropout")(x)
    if settings.alpha_dropout:
        x = keras.layers.AlphaDropout(settings.alpha_dropout, name=f"{name}_dropout")(x)
    return x


def _in_the_way(settings: Settings, x: Any) -> Any:
    if settings.stop_gradient:
        x = keras.layers.Lambda(keras.ops.stop_gradient, name="stop")(x)
    if settings.scale != 1:
        x = keras.layers.Rescaling(settings.scale, name="rescaling")(x)
    if settings.length:
        x = Length(settings.epsilon, name="length")(x)
    return x


def _head(settings: Settings) -> keras.layers.Layer:
    units, activation = {
        "digit": (10, "linear" if settings.from_logits else "softmax"),
        "topic": (TOPICS, "linear" if settings.from_logits else "softmax"),
        "even": (1, "sigmoid"),
        "ink": (2, "linear"),
        "pixels": (64, "linear"),
    }[settings.target]
    return keras.layers.Dense(
        units,
        activation=activation,
        kernel_initializer=_initializer(settings.head_initializer),
        name="output" if activation == "sigmoid" else "logits",
        dtype="float32",
    )


def _compile(model: keras.Model, settings: Settings) -> None:
    classes = settings.target in ("digit", "topic")
    loss: Any = settings.loss
    if loss is None and classes:
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=settings.from_logits
        )
    elif loss is None:
        loss = "binary_crossentropy" if settings.target == "even" else "mse"
    if settings.optimizer == "adam":
        optimizer = keras.optimizers.Adam(
            settings.learning_rate, epsilon=settings.optimizer_epsilon
        )
    else:
        optimizer = keras.optimizers.SGD(settings.learning_rate, settings.momentum)
    if settings.clip_norm is not None:
        optimizer = ClipByGlobalNorm(optimizer, settings.clip_norm)
    if settings.accumulate > 1:
        optimizer = Accumulate(optimizer, settings.accumulate)
    model.compile(
        optimizer,
        loss,
        loss_weights=None if settings.loss_weight == 1 else [settings.loss_weight],
        auto_scale_loss=settings.loss_scale,
        steps_per_execution=settings.steps_per_execution,
    )
