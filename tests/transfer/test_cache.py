import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep.errors import (
    DataError,
    InvalidArgumentError,
    ModelError,
    TrainableFlagWarning,
)


def blocks():
    return tfdeep.models.dnn(
        (nets.INPUTS,), [6, 6, 6], nets.CLASSES, batch_norm=True, dropout_rate=0.3
    )


def convolutional():
    base = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
    )
    inputs = keras.Input((32, 32, 3))
    return keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(base(inputs)))


# By name: the model, what is frozen, where the boundary runs.
NETS = {
    "functional": (nets.functional, "hidden[12]", ["hidden2"]),
    "sequential": (nets.sequential, "hidden[12]", ["hidden2"]),
    "normalization and dropout inside": (
        nets.regularized,
        ["hidden[12]", "norm1"],
        ["hidden2"],
    ),
    "blocks": (blocks, "hidden[12]", ["hidden2"]),
    "residual": (nets.residual, ["hidden[12]", "norm1"], ["hidden2", "hidden1"]),
    "through an inner model": (nets.nested, "base/hidden[12]", ["hidden2"]),
    "a whole inner model": (nets.nested, "base", ["base"]),
}
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(0.01),
}


def pair(build):
    """Two equal models whose moving averages have moved."""
    keras.utils.set_random_seed(1)
    first = build()
    first.compile("sgd", nets.LOSS)
    first.fit(nets.dataset(), epochs=1, shuffle=False, verbose=0)
    made = []
    for _ in range(2):
        keras.utils.set_random_seed(2)
        model = build()
        model.set_weights(first.get_weights())
        made.append(model)
    return made


# Each net with each optimizer once and with and without weights; the rest is slow.
def is_quick(net, optimizer, weighted):
    places = list(NETS).index(net) + list(OPTIMIZERS).index(optimizer)
    return (places + weighted) % 2 == 0


@pytest.mark.parametrize(
    ("net", "optimizer", "weighted"),
    nets.slow_unless(is_quick, NETS, OPTIMIZERS, [False, True]),
)
def test_cached_training_equals_frozen_training(net, optimizer, weighted):
    build, include, boundary = NETS[net]
    uncached, model = pair(build)
    before = model.get_weights()
    data = nets.dataset(count=104, weighted=weighted)  # the last batch is a half one
    arguments = {"loss": nets.LOSS, "metrics": ["accuracy"]}

    tfdeep.freeze(uncached, include)
    uncached.compile(OPTIMIZERS[optimizer](), **arguments)
    nets.traced_once(uncached)
    uncached.fit(data, epochs=5, shuffle=False, verbose=0)

    tfdeep.freeze(model, include)
    head, features, report = tfdeep.cache_frozen(model, data)
    head.compile(OPTIMIZERS[optimizer](), **arguments)
    nets.traced_once(head)
    head.fit(features, epochs=5, shuffle=False, verbose=0)

    assert nets.largest_difference(model, uncached) <= 1e-6
    assert (
        max(
            np.abs(a - b).max()
            for a, b in zip(before, model.get_weights(), strict=True)
        )
        > 0.01
    )
    assert [tensor.layer for tensor in report.boundary] == boundary
    assert (report.examples, report.batches) == (104, 7)
    x, _ = nets.examples(32)
    np.testing.assert_allclose(model(x), uncached(x), atol=1e-5)


def test_the_head_shares_the_model_s_variables():
    model = nets.functional()
    tfdeep.freeze(model, "hidden1")
    head, _, _ = tfdeep.cache_frozen(model, nets.dataset())
    shared = {id(v) for v in model.weights}
    assert all(id(v) in shared for v in head.weights)
    assert [v.path for v in head.trainable_weights] == [
        v.path for v in model.trainable_weights
    ]


def test_the_head_notices_what_is_frozen_later():
    model = nets.functional()
    tfdeep.freeze(model, "hidden1")
    head, features, _ = tfdeep.cache_frozen(model, nets.dataset())
    head.compile("adam", nets.LOSS)
    head.fit(features, verbose=0)
    tfdeep.freeze(model, "hidden2")
    before = model.get_layer("hidden2").get_weights()
    with pytest.warns(TrainableFlagWarning, match="frozen by hand: hidden2"):
        head.fit(features, verbose=0)
    for a, b in zip(before, model.get_layer("hidden2").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_frozen_part_runs_once():
    runs = []

    class Counting(layers.Layer):
        def call(self, x):
            tf.py_function(lambda: runs.append(1), [], [])
            return x

    inputs = keras.Input((nets.INPUTS,))
    x = Counting()(layers.Dense(6, name="hidden1")(inputs))
    x = layers.Dense(6, name="hidden2")(x)
    model = keras.Model(inputs, layers.Dense(nets.CLASSES)(x))
    tfdeep.freeze(model, "hidden[12]")
    head, features, _ = tfdeep.cache_frozen(model, nets.dataset())
    head.compile("sgd", nets.LOSS)
    head.fit(features, epochs=3, verbose=0, shuffle=False)
    assert len(runs) == 8  # and the first batch twice more, to see that it repeats


def test_features_labels_and_weights_are_passed_through_in_order():
    model = nets.functional()
    tfdeep.freeze(model, "hidden[12]")
    data = nets.dataset(weighted=True)
    _, features, report = tfdeep.cache_frozen(model, data)
    trunk = keras.Model(model.input, model.get_layer("hidden2").output)
    pairs = list(zip(data, features, strict=True))
    for (x, y, w), (f, label, weight) in pairs:
        np.testing.assert_array_equal(trunk(x), f)
        np.testing.assert_array_equal(y, label)
        np.testing.assert_array_equal(w, weight)
    assert report.bytes == 96 * (6 * 4 + 8 + 4)
    assert int(features.cardinality()) == 6


@pytest.mark.parametrize("sizes", [[4, 4, 2], [2, 4, 4], [5], [1, 7, 3, 7]])
def test_batches_of_any_sizes_are_kept(sizes):
    x, y = nets.examples(sum(sizes))
    ends = np.cumsum(sizes)
    spec = (
        tf.TensorSpec([None, nets.INPUTS], tf.float32),
        tf.TensorSpec([None], tf.int64),
    )
    data = tf.data.Dataset.from_generator(
        lambda: (
            (x[e - n : e], y[e - n : e]) for n, e in zip(sizes, ends, strict=True)
        ),
        output_signature=spec,
    ).apply(tf.data.experimental.assert_cardinality(len(sizes)))
    model = nets.functional()
    tfdeep.freeze(model, "hidden1")
    for _ in range(2):
        _, features, _ = tfdeep.cache_frozen(model, data)
        assert [len(label) for _, label in features] == sizes


def test_batch_size_makes_batches_of_single_examples_and_of_other_batches():
    model = nets.functional()
    tfdeep.freeze(model, "hidden1")
    single = tf.data.Dataset.from_tensor_slices(nets.examples(10))
    for data in (single, single.batch(3)):
        _, features, report = tfdeep.cache_frozen(model, data, batch_size=4)
        assert [len(label) for _, label in features] == [4, 4, 2]
        assert report.batches == 3


def test_several_inputs_and_outputs():
    image = keras.Input((4,), name="image")
    text = keras.Input((3,), name="text")
    first = layers.Dense(5, name="image_hidden")(image)
    second = layers.Dense(5, name="text_hidden")(text)
    both = layers.Concatenate()([first, second])
    outputs = {
        "a": layers.Dense(2, name="a")(both),
        "b": layers.Dense(1, name="b")(second),
    }
    model = keras.Model({"image": image, "text": text}, outputs)
    x = {"image": np.ones((8, 4), "float32"), "text": np.ones((8, 3), "float32")}
    y = {"a": np.zeros((8, 2), "float32"), "b": np.zeros((8, 1), "float32")}
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    tfdeep.freeze(model, "image_hidden")
    head, features, report = tfdeep.cache_frozen(model, data)
    # The other input is needed by what trains, so it is kept as it is.
    assert {tensor.layer for tensor in report.boundary} == {"image_hidden", "text"}
    head.compile("sgd", loss={"a": "mse", "b": "mse"})
    head.fit(features, epochs=1, verbose=0, shuffle=False)
    inputs, _ = next(iter(features))
    found, expected = head(inputs), model({k: v[:4] for k, v in x.items()})
    for name in outputs:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_a_layer_that_is_used_twice():
    shared = layers.Dense(6, activation="relu", name="shared")
    inputs = keras.Input((6,))
    x = layers.Dense(6, name="between")(shared(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="outputs")(shared(x)))
    tfdeep.freeze(model, "shared")
    data = tf.data.Dataset.from_tensor_slices(
        (np.ones((8, 6), "float32"), np.zeros((8, 2), "float32"))
    ).batch(4)
    head, features, report = tfdeep.cache_frozen(model, data)
    assert [tensor.layer for tensor in report.boundary] == ["shared"]
    feature, _ = next(iter(features))
    np.testing.assert_allclose(head(feature), model(np.ones((4, 6))), rtol=1e-5)


def test_an_image_network_with_its_normalization():
    keras.utils.set_random_seed(0)
    model = convolutional()
    base = model.layers[1]
    tfdeep.freeze(model, base.name)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 32, 32, 3)).astype("float32"), rng.integers(0, 3, 8)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    head, features, report = tfdeep.cache_frozen(model, data)
    assert report.boundary[0].shape == (1280,)
    np.testing.assert_allclose(head.predict(features, verbose=0), model(x), atol=1e-5)


class TestRefused:
    def check(self, error, message, model, data, **arguments):
        with pytest.raises(error, match=message) as caught:
            tfdeep.cache_frozen(model, data, **arguments)
        for part in ("Received:", "Expected:", "Fix:"):
            assert part in str(caught.value)

    def frozen(self, include="hidden1"):
        model = nets.functional()
        tfdeep.freeze(model, include)
        return model

    def test_nothing_or_everything_frozen(self):
        self.check(ModelError, "nothing is frozen", nets.functional(), nets.dataset())
        self.check(
            ModelError, "nothing is frozen", self.frozen("outputs"), nets.dataset()
        )
        self.check(
            ModelError, "everything is frozen", self.frozen(None), nets.dataset()
        )

    def test_a_subclassed_model(self):
        model = nets.subclassed()
        tfdeep.freeze(model, "hidden1")
        self.check(ModelError, "no graph that could be cut", model, nets.dataset())

    def test_a_model_that_is_not_built(self):
        model = keras.Sequential([layers.Dense(3)])
        self.check(ModelError, "a Sequential that is not built", model, nets.dataset())

    def test_dropout_that_still_acts(self):
        model = nets.regularized()
        for name in ("hidden1", "norm1", "hidden2"):
            model.get_layer(name).trainable = False
        self.check(ModelError, "act in training: dropout1", model, nets.dataset())
        tfdeep.freeze(model, ["hidden[12]", "norm1"])
        tfdeep.cache_frozen(model, nets.dataset())

    def test_augmentation_before_the_frozen_part(self):
        inputs = keras.Input((nets.INPUTS,))
        x = layers.GaussianNoise(0.1, name="noise")(inputs)
        x = layers.Dense(4, name="hidden1")(x)
        model = keras.Model(inputs, layers.Dense(nets.CLASSES)(x))
        tfdeep.freeze(model, "hidden1")
        self.check(ModelError, "act in training: noise", model, nets.dataset())

    def test_a_mask_across_the_boundary(self):
        inputs = keras.Input((5,), dtype="int32")
        x = layers.Embedding(9, 4, mask_zero=True, name="table")(inputs)
        x = layers.LSTM(4, name="lstm")(x)
        model = keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))
        data = tf.data.Dataset.from_tensors((np.ones((4, 5), "int32"), np.zeros(4)))
        tfdeep.freeze(model, "table")
        self.check(ModelError, "masked outputs of table", model, data)
        tfdeep.freeze(model, "lstm")
        tfdeep.cache_frozen(model, data)

    def test_a_dataset_without_labels(self):
        x, y = nets.examples()
        for data in (x, (x,), {"x": x, "y": y}):
            dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
            self.check(DataError, "has no labels", self.frozen(), dataset)

    def test_a_dataset_without_end(self):
        endless = nets.dataset().repeat()
        self.check(DataError, "a dataset without end", self.frozen(), endless)
        unknown = nets.dataset().filter(lambda x, y: True)
        self.check(DataError, "an unknown length", self.frozen(), unknown)

    def test_a_dataset_with_nothing_in_it(self):
        self.check(DataError, "empty", self.frozen(), nets.dataset().take(0))

    def test_a_dataset_that_does_not_fit(self):
        dataset = tf.data.Dataset.from_tensors((np.ones((4, 5)), np.zeros(4)))
        self.check(DataError, "does not fit the model", self.frozen(), dataset)

    def test_single_examples(self):
        dataset = tf.data.Dataset.from_tensor_slices(nets.examples())
        self.check(DataError, "single examples", self.frozen(), dataset)

    def test_something_else_than_a_dataset(self):
        self.check(DataError, "reads a dataset", self.frozen(), nets.examples())

    @pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", True])
    def test_a_batch_size(self, batch_size):
        self.check(
            InvalidArgumentError,
            "cannot work with this `batch_size`",
            self.frozen(),
            nets.dataset(),
            batch_size=batch_size,
        )


def test_the_model_itself_can_be_used_and_saved_after_caching(tmp_path):
    model = nets.nested()
    before = model(nets.examples()[0])
    tfdeep.freeze(model, "base/hidden[12]")
    tfdeep.cache_frozen(model, nets.dataset())
    np.testing.assert_array_equal(model(nets.examples()[0]), before)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(nets.examples()[0]), before, rtol=1e-6)


def test_the_report_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model = nets.residual()
    tfdeep.freeze(model, ["hidden[12]", "norm1"])
    text = str(tfdeep.cache_frozen(model, nets.dataset())[2])
    assert max(map(len, text.splitlines())) <= 80
    assert "ran once: hidden1, norm1, hidden2" in text
    assert "left to train: hidden3, outputs" in text
