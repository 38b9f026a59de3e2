"""Batch normalization statistics that are those of the dataset, exactly."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import nets
from tfdeep._demo._data import load_tasks
from tfdeep.errors import (
    DataError,
    InvalidArgumentError,
    ModelError,
    SelectionError,
)
from tfdeep.surgery import recalibrate_batch_norm


def data(count=50, batch=16, shape=(8,)):
    """The last batch is smaller than the others."""
    x = np.random.default_rng(0).normal(1.0, 3.0, size=(count, *shape))
    x = x.astype("float32")
    return x, tf.data.Dataset.from_tensor_slices(x).batch(batch)


def deep():
    inputs = x = keras.Input((8,))
    for i in (1, 2, 3):
        x = layers.Dense(6, activation="relu", name=f"hidden{i}")(x)
        x = layers.BatchNormalization(name=f"norm{i}")(x)
    return keras.Model(inputs, layers.Dense(3, name="outputs")(x))


def given_to(model, name, x, axes=0):
    """What a layer is given for `x` at inference, in float64, and its moments."""
    layer = model.get_layer(name)
    seen = keras.Model(model.inputs, layer.input)(x, training=False)
    values = np.asarray(tf.cast(seen, tf.float64))
    return values.mean(axes), values.var(axes)


def assert_exact(model, names, x, axes=0, rtol=1e-5):
    for name in names:
        layer = model.get_layer(name)
        mean, variance = given_to(model, name, x, axes)
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=rtol, atol=1e-6)
        np.testing.assert_allclose(
            layer.moving_variance, variance, rtol=rtol, atol=1e-9
        )


@pytest.mark.parametrize("batch", [1, 7, 16, 50])
def test_each_layer_has_the_statistics_of_the_whole_dataset(batch):
    model = deep()
    x, dataset = data(batch=batch)
    report = recalibrate_batch_norm(model, dataset)
    assert_exact(model, ["norm1", "norm2", "norm3"], x)
    assert report.examples == 50
    assert [layer.path for layer in report.layers] == ["norm1", "norm2", "norm3"]
    assert {layer.values for layer in report.layers} == {50}


def test_the_report_says_what_was_before_and_is_now():
    model = deep()
    x, dataset = data()
    mean, variance = given_to(model, "norm1", x)
    first = recalibrate_batch_norm(model, dataset).layers[0]
    assert (first.mean_before, first.variance_before) == (0, 1)
    assert first.mean_after == pytest.approx(mean.mean(), rel=1e-5)
    assert first.variance_after == pytest.approx(variance.mean(), rel=1e-5)
    shift = np.abs(mean / np.sqrt(variance + 1e-3)).max()
    assert first.shift == pytest.approx(shift, rel=1e-4)
    again = recalibrate_batch_norm(model, dataset)
    assert max(layer.shift for layer in again.layers) < 1e-5
    assert "3 batch normalizations measured over 50 examples" in str(again)
    assert max(map(len, str(again).splitlines())) <= 80


def test_large_means_do_not_cost_the_variance():
    """Sums of squares in float32 would give a variance of 0 or less here."""
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 0.5, size=(600, 1)).astype("float32")
    model = keras.Sequential([keras.Input((1,)), layers.BatchNormalization()])
    recalibrate_batch_norm(model, tf.data.Dataset.from_tensor_slices(x).batch(7))
    expected = x.astype("float64").var()
    np.testing.assert_allclose(model.layers[0].moving_variance, expected, rtol=1e-6)


def test_images_channels_first_and_labels():
    x = np.random.default_rng(0).normal(2, 3, size=(10, 3, 4, 5)).astype("float32")
    model = keras.Sequential(
        [keras.Input((3, 4, 5)), layers.BatchNormalization(axis=1)]
    )
    dataset = tf.data.Dataset.from_tensor_slices((x, np.zeros(10))).batch(4)
    report = recalibrate_batch_norm(model, dataset)
    np.testing.assert_allclose(
        model.layers[0].moving_variance, x.var(axis=(0, 2, 3)), rtol=1e-5
    )
    assert report.layers[0].values == 10 * 4 * 5


def test_masked_steps_have_no_weight():
    x = np.random.default_rng(0).normal(1, 2, size=(6, 5, 2)).astype("float32")
    x[:, 3:] = 0
    inputs = keras.Input((5, 2))
    outputs = layers.BatchNormalization(name="norm")(layers.Masking()(inputs))
    model = keras.Model(inputs, outputs)
    report = recalibrate_batch_norm(model, [x[:4], x[4:]])
    kept = x[:, :3].reshape(-1, 2)
    np.testing.assert_allclose(model.get_layer("norm").moving_mean, kept.mean(0), 1e-5)
    np.testing.assert_allclose(
        model.get_layer("norm").moving_variance, kept.var(0), 1e-5
    )
    assert report.layers[0].values == 18


def test_inner_subclassed_and_sequential_models():
    inner = deep()
    inner.name = "inner"
    outer_input = keras.Input((8,))
    outer = keras.Model(outer_input, inner(outer_input))
    x, dataset = data()
    report = recalibrate_batch_norm(outer, dataset)
    assert [c.path for c in report.layers] == [f"inner/norm{i}" for i in (1, 2, 3)]
    assert_exact(inner, ["norm1", "norm2", "norm3"], x)

    class Wrapped(keras.Model):
        def __init__(self):
            super().__init__()
            self.late = deep()
            self.early = layers.BatchNormalization(name="early")

        def call(self, x):
            return self.late(self.early(x))

    model = Wrapped()
    model(x)
    report = recalibrate_batch_norm(model, dataset)
    assert report.layers[0].path == "early"
    np.testing.assert_allclose(model.early.moving_mean, x.mean(0), rtol=1e-4)
    assert_exact(model.late, ["norm1", "norm2", "norm3"], model.early(x))


def test_a_layer_called_twice_is_measured_over_both():
    shared = layers.BatchNormalization(name="norm")
    a, b = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([a, b], [shared(a), shared(b)])
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (9, 2)), rng.normal(5, 2, (9, 2))
    recalibrate_batch_norm(
        model, tf.data.Dataset.from_tensor_slices(((x, y),)).batch(4)
    )
    both = np.concatenate([x, y])
    np.testing.assert_allclose(shared.moving_mean, both.mean(0), rtol=1e-5)
    np.testing.assert_allclose(shared.moving_variance, both.var(0), rtol=1e-5)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = deep()
    finally:
        keras.config.set_dtype_policy("float32")
    x, dataset = data()
    recalibrate_batch_norm(model, dataset)
    assert model.get_layer("norm1").moving_mean.dtype == "float32"
    assert_exact(model, ["norm1", "norm2", "norm3"], x, rtol=1e-3)


@pytest.mark.parametrize("synchronized", [False, True])
def test_every_replica_gets_the_same_statistics(synchronized):
    x, dataset = data()
    with nets.two_replicas().scope():
        model = keras.Sequential(
            [
                keras.Input((8,)),
                layers.Dense(4),
                layers.BatchNormalization(synchronized=synchronized, name="norm"),
                layers.Dense(1),
            ]
        )
        model.compile("sgd", "mse")
    model.fit(x, np.ones((50, 1)), batch_size=10, verbose=0)
    recalibrate_batch_norm(model, dataset)
    norm = model.get_layer("norm")
    assert_exact(model, ["norm"], x)
    mean, _ = given_to(model, "norm", x)
    copies = nets.two_replicas().run(lambda: norm.moving_mean.value + 0)
    for copy in nets.two_replicas().experimental_local_results(copies):
        np.testing.assert_allclose(copy, mean, rtol=1e-5)
    model.fit(x, np.ones((50, 1)), batch_size=10, verbose=0)  # and it trains on


def test_steps_bound_what_is_read():
    model = deep()
    x, dataset = data()
    report = recalibrate_batch_norm(model, dataset.repeat(), steps=2)
    assert (report.batches, report.examples) == (2, 32)
    assert_exact(model, ["norm1", "norm2", "norm3"], x[:32])


def test_selected_layers_only():
    model = deep()
    x, dataset = data()
    recalibrate_batch_norm(model, dataset, include="norm[23]", exclude="norm3")
    np.testing.assert_array_equal(model.get_layer("norm1").moving_mean, np.zeros(6))
    np.testing.assert_array_equal(model.get_layer("norm3").moving_mean, np.zeros(6))
    assert_exact(model, ["norm2"], x)
    with pytest.raises(SelectionError):
        recalibrate_batch_norm(model, dataset, include="hidden1")


class BreaksOn:
    """Batches whose reading ends in an error, the n-th time they are read."""

    def __init__(self, batch, reading):
        self.batch, self.left = batch, reading

    def __iter__(self):
        self.left -= 1
        yield self.batch
        if self.left == 0:
            raise OSError("the disk is gone")


def test_a_failure_on_the_way_leaves_everything_as_it_was():
    model = deep()
    x, _ = data()
    before = model.get_weights()
    with pytest.raises(OSError, match="gone"):  # `norm1` is set by then
        recalibrate_batch_norm(model, BreaksOn(x, reading=3))
    model.get_layer("hidden3").bias.assign([np.inf] * 6)
    with pytest.raises(DataError, match="norm3"):
        recalibrate_batch_norm(model, [x])
    model.get_layer("hidden3").bias.assign([0] * 6)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert "call" not in vars(model.get_layer("norm1"))


def test_a_normalization_in_a_loop_is_refused_by_name():
    class NormCell(layers.Layer):
        state_size = 3
        output_size = 3

        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNormalization(name="norm")

        def build(self, shape):
            self.norm.build((None, 3))

        def call(self, x, states, training=None):
            x = self.norm(x, training=training)
            return x, [x]

    model = keras.Sequential([keras.Input((None, 3)), layers.RNN(NormCell())])
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
    before = model.get_weights()
    with pytest.raises(ModelError, match="inside a loop"):
        recalibrate_batch_norm(model, [x])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_cannot_be_measured_is_refused():
    _, dataset = data()
    with pytest.raises(ModelError, match="no batch normalization"):
        recalibrate_batch_norm(nets.functional(), dataset)
    with pytest.raises(DataError, match="no end"):
        recalibrate_batch_norm(deep(), dataset.repeat())
    with pytest.raises(DataError, match="empty"):
        recalibrate_batch_norm(deep(), dataset.take(0))
    x, _ = data()
    distributed = nets.two_replicas().experimental_distribute_dataset(dataset)
    for given in (iter(dataset), x, (x, x), distributed, None):
        with pytest.raises(DataError, match="several times"):
            recalibrate_batch_norm(deep(), given)
    for steps in (0, -1, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="steps"):
            recalibrate_batch_norm(deep(), dataset, steps=steps)


def test_digits_after_a_short_training():
    """16 steps with momentum .99 leave the averages behind: .58 becomes .88."""
    source, _ = load_tasks("digits")
    keras.utils.set_random_seed(42)
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(3):
        model.add(layers.Dense(100, use_bias=False, kernel_initializer="he_normal"))
        model.add(layers.BatchNormalization())
        model.add(layers.Activation("relu"))
    model.add(layers.Dense(5))
    model.compile(keras.optimizers.SGD(0.05), nets.LOSS, metrics=["accuracy"])
    model.fit(
        source.x_train, source.y_train, batch_size=50, steps_per_epoch=16, verbose=0
    )
    before = model.evaluate(source.x_test, source.y_test, verbose=0)[1]
    dataset = tf.data.Dataset.from_tensor_slices(source.x_train).batch(200)
    recalibrate_batch_norm(model, dataset)
    after = model.evaluate(source.x_test, source.y_test, verbose=0)[1]
    assert after > before + 0.2
