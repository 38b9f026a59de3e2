"""Learning rates by layer, against Keras optimizers of their own for each rate."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep.errors import InvalidArgumentError, SelectionError
from tfdeep.optimizers import ClipByGlobalNorm, LayerRates, layer_decay

# Powers of two: a product with them is not rounded.
RATES = {"hidden1": 0.125, "hidden[23]": 0.5, "outputs/bias": 2.0}
FACTORS = {"hidden1": 0.125, "hidden2": 0.5, "hidden3": 0.5}


def factor_of(path):
    layer, name = path.split("/")
    return 2.0 if (layer, name) == ("outputs", "bias") else FACTORS.get(layer, 1.0)


OPTIMIZERS = {
    name: lambda rate, name=name: getattr(keras.optimizers, name)(rate)
    for name in (
        "SGD",
        "Adam",
        "Adamax",
        "Nadam",
        "Adagrad",
        "Adadelta",
        "RMSprop",
        "Ftrl",
        "Lion",
        "Lamb",
        "Adafactor",
        "Muon",
    )
    if hasattr(keras.optimizers, name)
}
OPTIMIZERS |= {
    "momentum and decay": lambda rate: keras.optimizers.SGD(
        rate, momentum=0.9, weight_decay=0.5
    ),
    "AdamW": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.5),
    "EMA": lambda rate: keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.5),
    "EMA overwrites": lambda rate: keras.optimizers.Adam(
        rate, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
}


def fit(optimizer, weights=None, epochs=1, callbacks=None, **arguments):
    model = nets.functional()
    if weights is not None:
        model.set_weights(weights)
    model.compile(optimizer, nets.LOSS, **arguments)
    history = model.fit(nets.dataset(), epochs=epochs, verbose=0, callbacks=callbacks)
    return model, history


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_variable_trains_as_with_an_optimizer_of_its_own(name):
    """The reference is Keras' own: one optimizer for each variable."""
    make = OPTIMIZERS[name]
    rng = np.random.default_rng(0)
    model, other = nets.functional(), nets.functional()
    other.set_weights(model.get_weights())
    optimizer = LayerRates(make(0.25), RATES)
    model.compile(optimizer)
    own = [make(0.25 * factor_of(v.path)) for v in other.trainable_variables]
    for _ in range(4):
        gradients = [
            tf.constant(rng.normal(size=v.shape), tf.float32)
            for v in model.trainable_variables
        ]
        optimizer.apply(gradients, model.trainable_variables)
        for one, gradient, variable in zip(
            own, gradients, other.trainable_variables, strict=True
        ):
            one.apply([gradient], [variable])
    assert nets.largest_difference(model, other) == 0
    if "EMA" in name:
        optimizer.finalize_variable_values(model.trainable_variables)
        for one, variable in zip(own, other.trainable_variables, strict=True):
            one.finalize_variable_values([variable])
        assert nets.largest_difference(model, other) == 0


def test_sparse_gradients():
    table = keras.Variable(np.zeros((3, 2)), name="embeddings")
    slices = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]), (3, 2))
    optimizer = LayerRates(keras.optimizers.SGD(1.0), {"embeddings": 0.25})
    optimizer.apply([slices], [table])
    np.testing.assert_array_equal(table.numpy(), [[0, 0], [-0.5, -0.5], [0, 0]])


def assert_next_step_is_scaled(model, optimizer):
    """The next step against that of the plain optimizer, variable by variable."""
    weights = model.get_weights()
    plain = nets.functional()
    plain.set_weights(weights)
    plain.compile(optimizer, nets.LOSS)
    x, y = nets.examples(16)
    for m in (model, plain):
        m.train_on_batch(x, y)
    for ours, theirs, before, v in zip(
        model.get_weights(), plain.get_weights(), weights, model.weights, strict=True
    ):
        assert (ours != before).any()
        np.testing.assert_allclose(
            ours - before, (theirs - before) * factor_of(v.path), atol=1e-6
        )


@pytest.mark.parametrize(
    "callback",
    [
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.5**epoch),
        lambda: keras.callbacks.ReduceLROnPlateau(
            monitor="loss", factor=0.5, patience=1, min_delta=100.0, cooldown=0
        ),
    ],
    ids=["scheduler", "plateau"],
)
def test_callbacks_that_change_the_rate_keep_the_ratios(callback):
    optimizer = LayerRates(keras.optimizers.SGD(1.0), RATES)
    model, _ = fit(optimizer, epochs=3, callbacks=[callback()])
    assert float(optimizer.learning_rate) == 0.25
    assert_next_step_is_scaled(model, keras.optimizers.SGD(0.25))


def test_a_schedule_goes_on_for_all():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)
    weight, other = keras.Variable([0.0], name="a"), keras.Variable([0.0], name="b")
    optimizer = LayerRates(keras.optimizers.SGD(schedule), {"a": 0.5})
    for _ in range(3):
        optimizer.apply([tf.ones(1), tf.ones(1)], [weight, other])
    assert float(weight.numpy()[0]) == 0.5 * float(other.numpy()[0]) != 0


def test_a_clip_around_it_bounds_the_norm_of_all_layers():
    sgd = keras.optimizers.SGD(1.0)
    model, _ = fit(ClipByGlobalNorm(LayerRates(sgd, RATES), 0.1))
    assert_next_step_is_scaled(model, ClipByGlobalNorm(keras.optimizers.SGD(1.0), 0.1))


def test_one_inside_another_multiplies():
    weight = keras.Variable([0.0], name="a")
    inner = LayerRates(keras.optimizers.SGD(1.0), {"a": 0.5})
    optimizer = LayerRates(inner, {"a": 0.25})
    optimizer.apply([tf.ones(1)], [weight])
    assert weight.numpy() == [-0.125]


def test_replicas_train_the_same():
    weights = nets.functional().get_weights()
    single, _ = fit(LayerRates(OPTIMIZERS["AdamW"](0.01), RATES), weights, epochs=2)
    with nets.two_replicas().scope():
        model, _ = fit(LayerRates(OPTIMIZERS["AdamW"](0.01), RATES), weights, epochs=2)
    assert nets.largest_difference(model, single) < 1e-5


def test_freezing_and_unfreezing():
    model, _ = fit(LayerRates(keras.optimizers.SGD(0.5), RATES))
    tfdeep.freeze(model, "hidden1")
    model.fit(nets.dataset(), verbose=0)
    tfdeep.unfreeze(model, "hidden1")
    assert_next_step_is_scaled(model, keras.optimizers.SGD(0.5))


def test_the_inner_optimizer_is_itself_again_without_the_wrapper():
    weight = keras.Variable([0.0], name="a")
    sgd = keras.optimizers.SGD(1.0)
    optimizer = LayerRates(sgd, {"a": 0.5})
    optimizer.apply([tf.ones(1)], [weight])
    del optimizer
    sgd.apply([tf.ones(1)], [weight])
    assert weight.numpy() == [-1.5]


class TestTable:
    def test_it_says_what_each_variable_gets(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        model = nets.functional()
        tfdeep.freeze(model, "hidden2")
        table = LayerRates(keras.optimizers.SGD(0.5), RATES).table(model)
        assert table.learning_rate == 0.5
        assert table.multipliers == {
            v.path: factor_of(v.path) for v in model.trainable_variables
        }
        rows = [line.split() for line in str(table).splitlines()]
        assert ["hidden1/kernel", "0.125", "0.0625"] in rows
        assert ["outputs/bias", "2", "1"] in rows
        assert max(map(len, str(table).splitlines())) <= 80

    def test_a_pattern_that_selects_nothing(self):
        optimizer = LayerRates(keras.optimizers.SGD(), {"hidden1": 0.5, "hidden7": 0.5})
        with pytest.raises(SelectionError, match="'hidden7' selects no variable"):
            optimizer.table(nets.functional())
        with pytest.raises(SelectionError, match="'hidden7' selects no variable"):
            fit(optimizer)

    def test_patterns_that_overlap(self):
        rates = {"hidden1": 0.5, ".*/bias": 0.1}
        with pytest.raises(SelectionError, match="both select hidden1/bias"):
            LayerRates(keras.optimizers.SGD(), rates).table(nets.functional())
        with pytest.raises(SelectionError, match="both select hidden1/bias"):
            fit(LayerRates(keras.optimizers.SGD(), rates))

    def test_a_pattern_may_select_what_is_frozen(self):
        model = nets.functional()
        tfdeep.freeze(model, "hidden1")
        model.compile(LayerRates(keras.optimizers.SGD(0.5), RATES), nets.LOSS)
        model.fit(nets.dataset(), verbose=0)


@pytest.mark.parametrize(
    "rates", [None, {}, "hidden1", {"a": 0}, {"a": -1.0}, {"a": True}, {"a": np.nan}]
)
def test_rates_that_cannot_work_are_refused(rates):
    with pytest.raises(InvalidArgumentError, match="LayerRates"):
        LayerRates(keras.optimizers.SGD(), rates)


class TestLayerDecay:
    def test_from_the_outputs_inwards(self):
        assert layer_decay(nets.sequential(), 0.5) == {
            "hidden1": 0.125,
            "hidden2": 0.25,
            "hidden3": 0.5,
            "outputs": 1.0,
        }

    def test_by_blocks(self):
        blocks = [".*1", "hidden2", ".*3", "outputs"]
        rates = layer_decay(nets.regularized(), 0.5, blocks=blocks)
        assert rates == dict(zip(blocks, [0.125, 0.25, 0.5, 1.0], strict=True))

    def test_layers_inside_layers_and_names_with_signs(self):
        class Block(layers.Layer):
            def build(self, shape):
                self.gate = self.add_weight(shape=(), name="gate")
                self.inner = layers.Dense(4, name="dense.1")
                self.inner.build(shape)

            def call(self, x):
                return self.gate * self.inner(x)

        inputs = keras.Input((4,))
        model = keras.Model(inputs, layers.Dense(2, name="o")(Block(name="b")(inputs)))
        rates = layer_decay(model, 0.5)
        table = LayerRates(keras.optimizers.SGD(1.0), rates).table(model)
        assert table.multipliers == {
            "b/gate": 0.25,
            "b/dense.1/kernel": 0.5,
            "b/dense.1/bias": 0.5,
            "o/kernel": 1.0,
            "o/bias": 1.0,
        }

    def test_what_is_refused(self):
        model = nets.functional()
        with pytest.raises(SelectionError, match="in no block"):
            layer_decay(model, blocks=["hidden[123]"])
        with pytest.raises(SelectionError, match="both select hidden1/kernel"):
            layer_decay(model, blocks=["hidden1", "hidden[123]", "outputs"])
        with pytest.raises(SelectionError, match="selects no variable"):
            layer_decay(model, blocks=["hidden[4]", ".*"])
        for decay in (0, 1.5, "a"):
            with pytest.raises(InvalidArgumentError, match="decay"):
                layer_decay(model, decay)


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="new in Keras 3.15"
)
def test_keras_groups_train_the_same():
    def group(factor):
        return keras.optimizers.AdamW(0.25 * factor, weight_decay=0.5)

    groups = keras.optimizers.OptimizerMap(
        group(1.0), {"hidden1/.*": group(0.125), "hidden[23]/.*": group(0.5)}
    )
    weights = nets.functional().get_weights()
    theirs, _ = fit(keras.optimizers.MultiOptimizer(groups), weights)
    rates = {"hidden1": 0.125, "hidden[23]": 0.5}
    ours, _ = fit(LayerRates(group(1.0), rates), weights)
    assert nets.largest_difference(theirs, ours) < 1e-6
