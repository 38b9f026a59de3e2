"""What does not fit together in a program: output, loss, targets, inputs, rate.

Each fault is a program that differs in one thing from one that is well. Both the
monitor and `diagnose` must name it, first, and say nothing of the program that is well.
"""

import functools

import keras
import numpy as np
import pytest

import tfdeep
from tfdeep.callbacks import GradientMonitor

layers, losses = keras.layers, keras.losses
RNG = np.random.default_rng(0)
X = RNG.normal(size=(256, 8)).astype("float32")
CLASS = (X[:, :3].argmax(axis=1)).astype("int64")
ONE_HOT = np.eye(3, dtype="float32")[CLASS]
BINARY = (X[:, :1] > 0).astype("float32")
SEVERAL = (X[:, :3] > 0).astype("float32")
REAL = X[:, :1] * 2 + X[:, 1:2]
FRACTION = 1 / (1 + np.exp(-REAL))


def net(units, activation=None, last=None, shape=(8,), hidden="relu"):
    """A net with one hidden layer whose last layer is `output`."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.Dense(16, hidden, kernel_initializer="he_normal"),
            layers.Dense(units, activation, name="output"),
        ]
    )
    if last is not None:
        model.add(last)
    return model


class Subclass(keras.Model):
    """A model that is not a graph."""

    def __init__(self, units, activation=None):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.hidden = layers.Dense(16, "relu", kernel_initializer="he_normal")
        self.out = layers.Dense(units, activation, name="out")

    def call(self, x):
        return self.out(self.hidden(x))


def found(model, loss, y, x=X, optimizer="adam", way="monitor", **arguments):
    """What is found in a program: the causes, as (kind, layer)."""
    model.compile(optimizer, loss, **arguments)
    if way == "diagnose":
        return [f.place for f in tfdeep.diagnose(model, x, y).causes]
    monitor = GradientMonitor(on_finding=None)
    model.fit(x, y, batch_size=32, epochs=3, verbose=0, callbacks=[monitor])
    return [f.place for f in monitor.causes]


def own_squares(y, p):
    return keras.ops.mean(keras.ops.square(y - p), axis=-1)


def own_dice(y, p):
    y, p = keras.ops.reshape(y, (-1,)), keras.ops.reshape(p, (-1,))
    both = keras.ops.sum(y * p)
    return 1 - (2 * both + 1) / (keras.ops.sum(y) + keras.ops.sum(p) + 1)


def own_crossentropy(y, p):
    return losses.categorical_crossentropy(y, p)


def own_sparse_crossentropy(y, p):
    return losses.sparse_categorical_crossentropy(keras.ops.reshape(y, (-1,)), p)


MISMATCHES = {
    "softmax of one": (net, 1, "softmax", "binary_crossentropy", BINARY),
    "softmax of one, squared error": (net, 1, "softmax", "mse", FRACTION),
    "a crossentropy of one class": (net, 1, "sigmoid", "categorical_crossentropy",
                                    BINARY),
    "logits, by name": (net, 3, None, "categorical_crossentropy", ONE_HOT),
    "logits, by function": (net, 3, None, losses.categorical_crossentropy, ONE_HOT),
    "logits, by a function of one's own": (net, 3, None, own_crossentropy, ONE_HOT),
    "logits, by object": (net, 3, None, losses.SparseCategoricalCrossentropy(), CLASS),
    "logits of two classes": (net, 1, None, "binary_crossentropy", BINARY),
    "softmax twice": (net, 3, "softmax",
                      losses.SparseCategoricalCrossentropy(from_logits=True), CLASS),
    "softmax twice, by a partial": (
        net, 3, "softmax",
        functools.partial(losses.categorical_crossentropy, from_logits=True), ONE_HOT),
    "sigmoid twice": (net, 1, "sigmoid", losses.BinaryCrossentropy(from_logits=True),
                      BINARY),
    "sigmoid for one class of three": (net, 3, "sigmoid", "categorical_crossentropy",
                                       ONE_HOT),
    "softmax for each class": (net, 3, "softmax", "binary_crossentropy", ONE_HOT),
    "softmax for several labels": (net, 3, "softmax", "binary_crossentropy", SEVERAL),
    "softmax for several labels, squared": (net, 3, "softmax", "mse", SEVERAL),
    "softmax and squared error": (net, 3, "softmax", "mse", ONE_HOT),
    "relu and a crossentropy": (net, 3, "relu", "categorical_crossentropy", ONE_HOT),
    "tanh and a crossentropy": (net, 1, "tanh", "binary_crossentropy", BINARY),
    "relu and logits": (net, 1, "relu", losses.BinaryCrossentropy(from_logits=True),
                        BINARY),
    "relu for labels": (net, 1, "relu", own_dice, BINARY),
    "sigmoid for any number": (net, 1, "sigmoid", "mse", REAL),
    "relu for negative numbers": (net, 1, "relu", "mae", REAL),
    "tanh for -7 to 7": (net, 1, "tanh", own_squares, REAL * 2),
    "logits of a model that is not a graph": (Subclass, 3, None,
                                              "categorical_crossentropy", ONE_HOT),
    "softmax of softmax": (net, 3, "softmax", "categorical_crossentropy", ONE_HOT,
                           layers.Softmax()),
    "a logarithm of any number": (net, 1, None, "poisson", np.abs(REAL)),
    "one target against three outputs": (net, 3, None, "mse", REAL),
}  # fmt: skip

FITTING = {
    "softmax": (net, 3, "softmax", "categorical_crossentropy", ONE_HOT),
    "sigmoid": (net, 1, "sigmoid", "binary_crossentropy", BINARY),
    "several labels": (net, 3, "sigmoid", "binary_crossentropy", SEVERAL),
    "sigmoid for one-hot rows": (net, 3, "sigmoid", "binary_crossentropy", ONE_HOT),
    "logits": (net, 3, None, losses.CategoricalCrossentropy(from_logits=True), ONE_HOT),
    "class numbers": (net, 3, "softmax", "sparse_categorical_crossentropy", CLASS),
    "a column of class numbers": (net, 3, "softmax", "sparse_categorical_crossentropy",
                                  CLASS[:, None]),
    "class numbers, by a function of one's own": (net, 3, "softmax",
                                                  own_sparse_crossentropy, CLASS),
    "regression": (net, 1, None, "mse", REAL),
    "a row of targets": (net, 1, None, "mse", REAL[:, 0]),
    "sigmoid and squared error": (net, 1, "sigmoid", "mse", BINARY),
    "tanh within its range": (net, 1, "tanh", "mse", np.tanh(REAL)),
    "relu for counts": (net, 1, "relu", "mse", np.round(np.abs(REAL) * 3)),
    "dice": (net, 1, "sigmoid", own_dice, BINARY),
    "hinge": (net, 1, None, "hinge", 2 * BINARY - 1),
    "soft labels": (net, 3, "softmax", "categorical_crossentropy", 
                    ONE_HOT * 0.9 + 1 / 30),
    "not a graph": (Subclass, 3, "softmax", "categorical_crossentropy", ONE_HOT),
}  # fmt: skip

both_ways = pytest.mark.parametrize("way", ["monitor", "diagnose"])


@both_ways
@pytest.mark.parametrize("name", MISMATCHES)
def test_an_output_that_does_not_fit_is_named_first(name, way):
    make, units, activation, loss, y, *last = MISMATCHES[name]
    first, *_ = found(make(units, activation, *last), loss, y, way=way)
    assert first[0] == "output_mismatch"
    assert first[1] in ("output", "out")


@both_ways
@pytest.mark.parametrize("name", FITTING)
def test_nothing_is_said_of_an_output_that_fits(name, way):
    make, units, activation, loss, y = FITTING[name]
    assert found(make(units, activation), loss, y, way=way) == []


@pytest.mark.parametrize(
    "last",
    [
        layers.Activation("softmax"),
        layers.Softmax(),
        layers.Reshape((1,)),
        layers.Activation("softmax", dtype="float32"),
    ],
    ids=lambda layer: layer.name,
)
def test_an_activation_may_be_a_layer(last):
    activation = "softmax" if isinstance(last, layers.Reshape) else None
    first, *_ = found(net(1, activation, last), "mse", FRACTION)
    assert first[0] == "output_mismatch"


def test_it_names_the_output_among_several():
    x = keras.Input((8,))
    hidden = layers.Dense(16, "relu")(x)
    good = layers.Dense(3, "softmax", name="good")(hidden)
    bad = layers.Dense(1, "softmax", name="bad")(hidden)
    model = keras.Model(x, [good, bad])
    loss = ["categorical_crossentropy", "binary_crossentropy"]
    for way in ("monitor", "diagnose"):
        assert found(model, loss, [ONE_HOT, BINARY], way=way)[0] == (
            "output_mismatch",
            "bad",
        )


def test_a_target_that_is_repeated_asks_for_flatten():
    x = RNG.normal(size=(64, 12, 4)).astype("float32")
    y = np.broadcast_to(x.mean(axis=(1, 2))[:, None, None] > 0, (64, 12, 1)) * 1.0
    model = net(1, "sigmoid", shape=(12, 4))
    first, *_ = found(model, "binary_crossentropy", y, x)
    assert first == ("output_mismatch", "output")
    remedy = tfdeep.diagnose(model, x, y).causes[0].remedy
    assert "Flatten" in str(remedy)


BAD_LABELS = {
    "three classes for one sigmoid": (1, "sigmoid", "binary_crossentropy",
                                      CLASS[:, None]),
    "-1 and 1": (1, "sigmoid", "binary_crossentropy", 2 * BINARY - 1),
    "divided by 255": (1, "sigmoid", "binary_crossentropy", BINARY / 255),
    "class numbers divided by 255": (3, "softmax", "sparse_categorical_crossentropy",
                                     CLASS / 255),
    "one-hot rows divided by 255": (3, "softmax", "categorical_crossentropy",
                                    ONE_HOT / 255),
    "class numbers as fractions": (3, "softmax", "sparse_categorical_crossentropy",
                                   CLASS + 0.5),
    "class numbers in three columns": (3, "softmax", "categorical_crossentropy",
                                       np.repeat(CLASS[:, None], 3, axis=1)),
    "one class only": (1, "sigmoid", "binary_crossentropy", np.ones_like(BINARY)),
    "one class only, one-hot": (3, "softmax", "categorical_crossentropy",
                                np.eye(3)[np.zeros(256, int)]),
    "targets that never differ": (1, None, "mse", np.full((256, 1), 2.0)),
    "NaN": (1, None, "mse", np.where(np.arange(256)[:, None] == 70, np.nan, REAL)),
}  # fmt: skip


@both_ways
@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_are_named_first(name, way):
    units, activation, loss, y = BAD_LABELS[name]
    first, *_ = found(net(units, activation), loss, y, way=way)
    assert first == ("bad_labels", "output")


def test_labels_of_more_classes_than_there_are():
    model = net(3, "softmax")
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=True)
    monitor = GradientMonitor(on_finding=None)
    y = CLASS + 1  # a GPU and XLA give NaN, and no error
    model.fit(X, y, batch_size=32, epochs=1, verbose=0, callbacks=[monitor])
    first = monitor.causes[0]
    assert first.place == ("bad_labels", "output")
    assert "1 to 3 for 3 classes" in first.evidence


@pytest.mark.parametrize(
    ("units", "activation", "loss", "y"),
    [
        (3, "softmax", "sparse_categorical_crossentropy", CLASS + 1),
        (3, "softmax", "sparse_categorical_crossentropy", ONE_HOT),
        (3, "softmax", "categorical_crossentropy", CLASS),
        (3, "softmax", "categorical_crossentropy", CLASS[:, None]),
    ],
)
def test_labels_of_which_no_loss_can_be_computed(units, activation, loss, y):
    model = net(units, activation)
    model.compile("adam", loss)
    diagnosis = tfdeep.diagnose(model, X, y)
    (cause,) = diagnosis.causes
    assert cause.place == ("bad_labels", "output")
    assert diagnosis.loss is None and "bad_labels at output" in str(diagnosis)


def test_a_loss_that_compares_each_with_each():
    class Squares(losses.Loss):
        def call(self, y, p):
            return keras.ops.square(y - p)

    for y, is_well in ((REAL, True), (REAL[:, 0], False)):
        for way in ("monitor", "diagnose"):
            causes = found(net(1), Squares(), y, way=way)
            assert causes == ([] if is_well else [("output_mismatch", "output")])


def test_the_range_of_bad_labels_is_told_with_what_mends_it():
    def remedy(units, activation, loss, y):
        model = net(units, activation)
        model.compile("adam", loss)
        return tfdeep.diagnose(model, X, y).causes[0].remedy

    signs = remedy(1, "sigmoid", "binary_crossentropy", 2 * BINARY - 1)
    assert (signs.change, signs.before, signs.after) == ("labels", "-1 to 1", "0 and 1")
    assert "(y + 1) / 2" in str(signs)
    classes = remedy(1, "sigmoid", "binary_crossentropy", CLASS[:, None])
    assert 'Dense(3, activation="softmax")' in str(classes)


@both_ways
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_inputs_are_named_with_batch_and_feature(value, way):
    x = X.copy()
    x[70, 5] = value
    model = net(3, "softmax")
    model.compile("adam", "categorical_crossentropy")
    if way == "diagnose":
        cause, step = tfdeep.diagnose(model, x, ONE_HOT).causes[0], 0
    else:
        monitor = GradientMonitor(on_finding=None)
        model.fit(
            x, ONE_HOT, batch_size=32, verbose=0, callbacks=[monitor], shuffle=False
        )
        cause, step = monitor.causes[0], 2
        assert monitor.report().causes == (cause,)
    assert (cause.kind, cause.first_step) == ("bad_input", step)
    assert f"of batch {step}, the first at feature 5" in cause.evidence


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_bad_inputs_in_mixed_precision(dtype):
    x = X.copy()
    x[70] = np.nan
    keras.config.set_dtype_policy(dtype)
    try:
        model = net(3)
        model.add(layers.Activation("softmax", dtype="float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    assert found(model, "categorical_crossentropy", ONE_HOT, x)[0][0] == "bad_input"


RATES = {
    "negative": (keras.optimizers.Adam, -0.01, True),
    "zero": (keras.optimizers.SGD, 0.0, True),
    "1 for Adam": (keras.optimizers.Adam, 1.0, True),
    "10 for RMSprop": (keras.optimizers.RMSprop, 10.0, True),
    "1 for Adadelta": (keras.optimizers.Adadelta, 1.0, False),
    "0.1 for SGD": (keras.optimizers.SGD, 0.1, False),
    "0.01 for Adam": (keras.optimizers.Adam, 0.01, False),
}


@both_ways
@pytest.mark.parametrize("name", RATES)
def test_a_rate_that_cannot_be_meant(name, way):
    make, rate, is_wrong = RATES[name]
    places = found(net(1), "mse", REAL, optimizer=make(rate), way=way)
    assert places[:1] == ([("learning_rate", "")] if is_wrong else [])


def test_what_ails_the_structure_of_a_net():
    def images(shape, **arguments):
        return keras.Sequential(
            [
                keras.Input(shape),
                layers.Conv2D(4, 3, activation="relu", name="first", **arguments),
                layers.GlobalAveragePooling2D(),
                layers.Dense(1),
            ]
        )

    def causes(model, x):
        y = RNG.normal(size=(len(x), 1))
        return [f.place for f in tfdeep.diagnose(model, x, y, "mse").causes]

    channels_first = RNG.normal(size=(64, 3, 16, 16))
    assert causes(images((3, 16, 16)), channels_first) == [("axis_order", "first")]
    channels_last = np.moveaxis(channels_first, 1, -1)
    assert causes(images((16, 16, 3)), channels_last) == []
    assert causes(images((16, 16, 1)), channels_last[..., :1]) == []

    linear = [layers.Dense(16, name=f"dense{i}") for i in range(3)]
    model = keras.Sequential([keras.Input((8,)), *linear, layers.Dense(1)])
    assert causes(model, X) == [("linear_net", "dense0")]
    model = keras.Sequential([keras.Input((8,)), layers.Dense(1)])
    assert causes(model, X) == []  # a linear regression is meant
    model = net(1)
    model.layers[0].activation = keras.activations.get("linear")
    assert causes(model, X) == [("linear_net", model.layers[0].name)]

    model = net(1)
    model.add(layers.Dropout(0.9, name="drop"))
    assert causes(model, X) == [("heavy_dropout", "drop")]

    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, "relu", kernel_initializer="ones", name="equal"),
            layers.Dense(1),
        ]
    )
    assert causes(model, X)[0] == ("equal_units", "equal")


@both_ways
def test_targets_out_of_reach(way):
    def causes(optimizer, y):
        return found(net(1), "mse", y, optimizer=optimizer, way=way)[:1]

    assert causes("adam", REAL * 1e4 + 2e5) == [("target_scale", "output")]
    assert causes("rmsprop", REAL + 500) == [("target_scale", "output")]
    assert causes("sgd", REAL * 1e4) == [("target_scale", "output")]
    assert causes("adam", REAL) == []
    assert causes("sgd", REAL) == []


def test_pixels_lead_and_what_they_do_follows():
    x = np.clip(X * 60 + 120, 0, 255)
    model = net(3, "softmax")
    model.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy")
    monitor = GradientMonitor(on_finding=None)
    model.fit(x, ONE_HOT, batch_size=32, epochs=6, verbose=0, callbacks=[monitor])
    cause, *others = monitor.causes
    assert cause.kind == "input_scale" and cause.explains
    assert others == []
    assert {f.explained_by for f in monitor.findings[1:]} == {cause.place}
    text = str(monitor.report())
    assert text.startswith("warning: input_scale at")
    assert "From it follows" in text


def lstm():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((12, 1)), layers.LSTM(16), layers.Dense(1, name="output")]
    )


@both_ways
@pytest.mark.parametrize("offset", [0, 300])
def test_a_recurrent_net_whose_targets_are_far(way, offset):
    x = RNG.normal(size=(256, 12, 1)).astype("float32")
    y = 140 * x[:, :3].sum(axis=1) + offset
    assert found(lstm(), "mse", y, x, way=way)[0] == ("target_scale", "output")
    assert found(lstm(), "mse", (y - y.mean()) / y.std(), x, way=way) == []


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        (lambda: keras.optimizers.Adam(1.0), "learning_rate"),
        (lambda: keras.optimizers.SGD(1.0), "update_too_large"),
    ],
)
def test_a_convolutional_net_at_a_rate_of_one(optimizer, kind):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", name="output"),
        ]
    )
    x = 2 * RNG.normal(size=(256, 12, 12, 1)).astype("float32")
    model.compile(optimizer(), "categorical_crossentropy")
    monitor = GradientMonitor(on_finding=None)
    model.fit(x, ONE_HOT, batch_size=32, epochs=5, verbose=0, callbacks=[monitor])
    first = monitor.causes[0]
    assert first.kind == kind
    assert first.remedy.change == "learning_rate" and first.remedy.after <= 0.1
    if kind == "learning_rate":  # Adam undoes a clipping
        assert "AdaptiveClip" not in str(first.remedy)
