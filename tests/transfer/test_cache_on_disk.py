"""Features that outlive the process: found, built, resumed, refused."""

import errno
import itertools
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from safetensors.numpy import load_file

import tfdeep
from tests import nets
from tests.transfer import test_cache
from tfdeep._core import _files
from tfdeep.errors import CorruptCacheError, DataError, DiskFullError, ModelError
from tfdeep.transfer import _frozen

ROW_BYTES = 6 * 4 + 8  # hidden2's outputs and a label


def frozen(build=nets.functional, include="hidden[12]"):
    keras.utils.set_random_seed(1)
    model = build()
    tfdeep.freeze(model, include)
    return model


def elements(features):
    return [keras.tree.map_structure(np.asarray, element) for element in features]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "sample weights"])
@pytest.mark.parametrize("net", ["residual", "through an inner model"])
def test_what_is_on_disk_is_what_would_be_in_memory(net, weighted, tmp_path):
    build, include, _ = test_cache.NETS[net]
    model = frozen(build, include)
    data = nets.dataset(count=104, weighted=weighted)
    _, in_memory, first = tfdeep.cache_frozen(model, data)
    expected = elements(in_memory)
    for found in (False, True):
        _, features, report = tfdeep.cache_frozen(
            model, data, tmp_path, shard_bytes=64 * ROW_BYTES
        )
        assert report.found == found
        assert features.element_spec == in_memory.element_spec
        assert_same(elements(features), expected)
        assert (report.examples, report.batches, report.bytes) == (104, 7, first.bytes)
    assert len(list(tmp_path.glob("*/shard-*.safetensors"))) == 2


@pytest.mark.parametrize("optimizer", test_cache.OPTIMIZERS)
def test_training_from_disk_is_training_without_a_cache(optimizer, tmp_path):
    uncached, model = test_cache.pair(nets.residual)
    for m in (uncached, model):
        tfdeep.freeze(m, ["hidden[12]", "norm1"])
    data = nets.dataset(count=104, weighted=True)
    class_weight = {0: 0.5, 1: 1.0, 2: 2.0}
    # Keras takes class weights or sample weights, not both.
    for weights, chosen in ((None, data), (class_weight, nets.dataset(count=104))):
        uncached.compile(test_cache.OPTIMIZERS[optimizer](), nets.LOSS)
        uncached.fit(chosen, epochs=3, class_weight=weights, verbose=0)
        head, features, report = tfdeep.cache_frozen(model, chosen, tmp_path)
        head.compile(test_cache.OPTIMIZERS[optimizer](), nets.LOSS)
        head.fit(features, epochs=3, class_weight=weights, verbose=0)
        assert nets.largest_difference(model, uncached) <= 1e-6
        assert report.check(batches=7) <= 1e-6


def test_the_check_sees_a_frozen_part_that_has_changed(tmp_path):
    model = frozen()
    _, _, report = tfdeep.cache_frozen(model, nets.dataset(), tmp_path)
    assert report.check() <= 1e-6
    model.get_layer("hidden1").kernel.assign_add(tf.ones((8, 6)))
    with pytest.raises(ModelError, match="does not give what the model gives"):
        report.check()


def test_shuffled_examples_come_once_each_in_a_new_order_every_epoch(tmp_path):
    model, data = frozen(), nets.dataset(count=100)
    _, plain, _ = tfdeep.cache_frozen(model, data, tmp_path)
    rows = [row.tobytes() for f, _ in plain for row in f.numpy()]
    labels = dict(zip(rows, (int(y) for _, ys in plain for y in ys), strict=True))
    for cache_dir in (None, tmp_path):
        _, features, _ = tfdeep.cache_frozen(model, data, cache_dir, shuffle=True)
        orders = []
        for _ in range(3):
            given = [
                (r.tobytes(), int(y))
                for f, ys in features
                for r, y in zip(f.numpy(), ys, strict=True)
            ]
            assert sorted(r for r, _ in given) == sorted(rows)
            assert all(labels[r] == y for r, y in given)
            orders.append([r for r, _ in given])
        assert len({tuple(order) for order in orders}) == 3
        assert [len(y) for _, y in features] == [16] * 6 + [4]


def augmented():
    inputs = keras.Input((nets.INPUTS,))
    x = layers.GaussianNoise(0.1, name="noise")(inputs)
    x = layers.Dense(6, activation="relu", name="hidden1")(x)
    return keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))


def test_variants_are_passes_of_augmentation_in_turn(tmp_path):
    model, data = frozen(augmented, "hidden1"), nets.dataset()
    exact = keras.Model(model.input, model.get_layer("hidden1").output)
    for cache_dir in (None, tmp_path, tmp_path):
        _, features, report = tfdeep.cache_frozen(model, data, cache_dir, variants=3)
        epochs = [np.concatenate([f for f, _ in features]) for _ in range(4)]
        assert report.variants == 3
        np.testing.assert_array_equal(epochs[0], epochs[3])
        for a, b in itertools.combinations(epochs[:3], 2):
            assert 0.02 < np.abs(a - b).mean() < 0.5
        for epoch in epochs:
            labels = np.concatenate([y for _, y in features])
            np.testing.assert_array_equal(labels, nets.examples()[1])
            assert np.abs(epoch - exact(nets.examples()[0])).max() < 2
    assert report.found
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ModelError, match="cannot be compared"):
        report.check()


def test_augmentation_in_the_dataset_needs_a_name(tmp_path):
    model = frozen()
    generator = tf.random.Generator.from_seed(0)
    data = nets.dataset().map(
        lambda x, y: (x + generator.normal(tf.shape(x), stddev=0.1), y)
    )
    with pytest.raises(DataError, match="in the same order each time it is read"):
        tfdeep.cache_frozen(model, data, tmp_path, variants=2)
    _, features, _ = tfdeep.cache_frozen(
        model, data, tmp_path, variants=2, dataset_id="noisy"
    )
    first, second = (np.concatenate([f for f, _ in features]) for _ in range(2))
    assert np.abs(first - second).max() > 0.02


@pytest.mark.parametrize("way", ["shuffled", "random"])
def test_a_dataset_that_does_not_repeat_itself_is_refused(way, tmp_path):
    generator = tf.random.Generator.from_seed(0)
    data = {
        "shuffled": tf.data.Dataset.from_tensor_slices(nets.examples()).shuffle(96),
        "random": tf.data.Dataset.from_tensor_slices(nets.examples()).map(
            lambda x, y: (x + generator.normal([8]), y)
        ),
    }[way].batch(16)
    model = frozen()
    with pytest.raises(DataError, match="in the same order each time it is read"):
        tfdeep.cache_frozen(model, data, tmp_path)
    assert not list(tmp_path.glob("*/shard-*.safetensors"))
    tfdeep.cache_frozen(model, data)  # in memory it is read once only


class TestRefused:
    def check(self, error, message, build, data, *cache_dir, **arguments):
        model = frozen(build, "hidden1")
        before = model.get_weights()
        with pytest.raises(error, match=message) as caught:
            tfdeep.cache_frozen(model, data, *cache_dir, **arguments)
        for part in ("Received:", "Expected:", "Fix:"):
            assert part in str(caught.value)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    @staticmethod
    def custom(layer):
        def build():
            inputs = keras.Input((nets.INPUTS,))
            x = layer(layers.Dense(4, name="hidden1")(inputs))
            return keras.Model(inputs, layers.Dense(3, name="outputs")(x))

        return build

    @pytest.mark.parametrize("where", ["memory", "disk"])
    def test_random_numbers_at_inference(self, where, tmp_path):
        class Noisy(layers.Layer):
            def call(self, x):
                return x + keras.random.normal(keras.ops.shape(x))

        cache_dir = [tmp_path] if where == "disk" else []
        self.check(
            ModelError,
            "not deterministic",
            self.custom(Noisy()),
            nets.dataset(),
            *cache_dir,
        )

    def test_weights_that_change_at_inference(self):
        class Counting(layers.Layer):
            def build(self, shape):
                self.count = self.add_weight(
                    shape=(), initializer="zeros", trainable=False, name="count"
                )

            def call(self, x):
                self.count.assign_add(1.0)
                return x

        self.check(
            ModelError,
            "changes its own weights",
            self.custom(Counting()),
            nets.dataset(),
        )

    @pytest.mark.parametrize("where", ["memory", "disk"])
    def test_elements_that_change_shape(self, where, tmp_path):
        inputs = keras.Input((None, 2))
        x = layers.Dense(2)(layers.Dense(3, name="hidden1")(inputs))
        model = keras.Model(inputs, layers.GlobalMaxPooling1D()(x))
        shapes = [(4, 5, 2), (4, 6, 2)]
        data = tf.data.Dataset.from_generator(
            lambda: ((np.ones(s, "float32"), np.zeros(4)) for s in shapes),
            output_signature=(tf.TensorSpec((None, None, 2)), tf.TensorSpec((None,))),
        ).apply(tf.data.experimental.assert_cardinality(2))
        cache_dir = [tmp_path] if where == "disk" else []
        self.check(DataError, "another shape", lambda: model, data, *cache_dir)

    def test_text(self, tmp_path):
        x, y = nets.examples()
        data = tf.data.Dataset.from_tensor_slices((x, y.astype(str))).batch(8)
        self.check(DataError, "Text cannot be cached", nets.functional, data, tmp_path)

    def test_features_too_large_for_the_storage(self):
        def build():
            model = nets.functional()
            model.get_layer("hidden1").kernel.assign(1e6 * tf.ones((8, 6)))
            return model

        data = nets.dataset()
        self.check(
            DataError, "do not fit float16", build, data, storage_dtype="float16"
        )

    @pytest.mark.parametrize(
        "argument",
        [
            {"variants": 0},
            {"variants": True},
            {"shuffle": 1},
            {"verify": "yes"},
            {"storage_dtype": "int8"},
            {"shard_bytes": -1},
            {"cache_dir": 3},
        ],
        ids=str,
    )
    def test_arguments(self, argument):
        self.check(
            tfdeep.errors.InvalidArgumentError,
            f"cannot work with this `{next(iter(argument))}`",
            nets.functional,
            nets.dataset(),
            **argument,
        )


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 5e-4), ("bfloat16", 4e-3)])
def test_features_in_half_the_bytes(dtype, limit, tmp_path):
    model, data = frozen(), nets.dataset()
    for cache_dir in (None, tmp_path, tmp_path):
        _, features, report = tfdeep.cache_frozen(
            model, data, cache_dir, storage_dtype=dtype
        )
        assert report.bytes == 96 * (6 * 2 + 8)
        assert 0 < report.rounding <= limit
        assert features.element_spec[0].dtype == tf.float32
        assert report.check() <= 100 * limit
        assert report.boundary[0].dtype == dtype


def test_it_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    model, data = frozen(), nets.dataset(count=300)
    ran = []
    own = _frozen.FrozenPart._on_replicas

    def counted(self, x):
        ran.append(len(x))
        if len(ran) == 13:  # in the fourth of five shards
            raise KeyboardInterrupt
        return own(self, x)

    monkeypatch.setattr(_frozen.FrozenPart, "_on_replicas", counted)
    arguments = {"cache_dir": tmp_path, "shard_bytes": 64 * ROW_BYTES}
    with pytest.raises(KeyboardInterrupt):
        tfdeep.cache_frozen(model, data, **arguments)
    assert len(list(tmp_path.glob("*/shard-*.safetensors"))) == 3
    ran[:] = [0] * 100
    _, features, report = tfdeep.cache_frozen(model, data, **arguments)
    assert sum(ran) == 300 - 192  # only what was missing
    assert not report.found
    assert_same(elements(features), elements(tfdeep.cache_frozen(model, data)[1]))


@pytest.mark.parametrize("damage", ["flip", "cut", "row", "gone", "manifest"])
def test_damage_is_an_error(damage, tmp_path):
    model, data = frozen(), nets.dataset()
    tfdeep.cache_frozen(model, data, tmp_path)
    file = max(tmp_path.glob("*/*.safetensors"), key=lambda path: path.stat().st_size)
    if damage == "manifest":
        file = next(tmp_path.glob("*/manifest.json"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage in ("cut", "row"):
        content = content[: -1 if damage == "cut" else -24]
    file.write_bytes(content)
    if damage == "gone":
        file.unlink()
    with pytest.raises(CorruptCacheError, match="tfdeep cache rm") as caught:
        tfdeep.cache_frozen(model, data, tmp_path)
    assert file.name in str(caught.value)
    shutil.rmtree(file.parent)
    assert not tfdeep.cache_frozen(model, data, tmp_path)[2].found


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(_files.Directory, "free", lambda self: 100)
    with pytest.raises(DiskFullError, match="does not fit the disk") as caught:
        tfdeep.cache_frozen(frozen(), nets.dataset(), tmp_path)
    assert not list(tmp_path.glob("*/*.safetensors"))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_replicas_run_the_frozen_part_and_train_the_head(where, tmp_path):
    data = nets.dataset(count=100)
    alone, _ = test_cache.pair(nets.regularized)
    include = ["hidden[12]", "norm1"]
    tfdeep.freeze(alone, include)
    strategy = nets.two_replicas()
    with strategy.scope():
        keras.utils.set_random_seed(2)
        model = nets.regularized()
        model.set_weights(alone.get_weights())
    tfdeep.freeze(model, include)
    cache_dir = tmp_path if where == "disk" else None
    _, expected, _ = tfdeep.cache_frozen(alone, data)
    head, features, _ = tfdeep.cache_frozen(model, data, cache_dir)
    for (a, _), (b, _) in zip(expected, features, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    with strategy.scope():
        head.compile(keras.optimizers.SGD(0.1, momentum=0.9), nets.LOSS)
    assert head.distribute_strategy is strategy
    head.fit(features, epochs=2, verbose=0)
    # Batch normalization in the head sees the examples of a replica, so no more:
    assert nets.largest_difference(alone, model) > 0.01


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_replicas_train_as_one_device_does(where, tmp_path):
    data = nets.dataset(count=96)
    alone, _ = test_cache.pair(nets.functional)
    strategy = nets.two_replicas()
    with strategy.scope():
        model = nets.functional()
        model.set_weights(alone.get_weights())
    for m, scope in ((alone, tf.distribute.get_strategy()), (model, strategy)):
        tfdeep.freeze(m, "hidden[12]")
        cache_dir = tmp_path if where == "disk" else None
        head, features, _ = tfdeep.cache_frozen(m, data, cache_dir)
        with scope.scope():
            head.compile(keras.optimizers.SGD(0.1, momentum=0.9), nets.LOSS)
        head.fit(features, epochs=3, verbose=0)
    assert nets.largest_difference(alone, model) <= 1e-6


class TestHowOftenTheDatasetIsRead:
    """Beside what is read to know the examples, one pass builds an entry."""

    @pytest.fixture
    def read(self):
        """A dataset, and the numbers of the examples that were read from it."""
        numbers = []
        x, y = nets.examples(100)

        def one(i):
            numbers.append(int(i))
            return x[i], y[i]

        spec = [tf.float32, tf.int64]

        def load(i):
            features, label = tf.numpy_function(one, [i], spec)
            return tf.ensure_shape(features, [8]), tf.ensure_shape(label, [])

        return tf.data.Dataset.range(100).map(load).batch(10), numbers

    @pytest.mark.parametrize(
        ("arguments", "first", "again"),
        [
            ({}, 2, 1),
            ({"shuffle": True, "shard_bytes": 1}, 2, 1),
            ({"dataset_id": "mine"}, 2, "a batch"),
            ({"variants": 3}, 4, 1),
        ],
        ids=str,
    )
    def test_on_disk(self, arguments, first, again, read, tmp_path):
        model, (data, numbers) = frozen(), read
        for found, passes in ((False, first), (True, again)):
            numbers.clear()
            report = tfdeep.cache_frozen(model, data, tmp_path, **arguments)[2]
            assert report.found == found
            if passes == "a batch":
                assert 10 <= len(numbers) < 50  # tf.data may read ahead
            else:
                assert len(numbers) == 100 * passes

    def test_in_memory(self, read):
        model, (data, numbers) = frozen(), read
        _, features, _ = tfdeep.cache_frozen(model, data)
        for _ in features:
            pass
        assert numbers == list(range(100))

    def test_unknown_shapes_cost_no_reading(self, read, tmp_path):
        data, numbers = read
        inputs = keras.Input((None, 2))
        x = layers.Dense(3, name="hidden1")(inputs)
        x = layers.Dense(2, name="outputs")(layers.GlobalMaxPooling1D()(x))
        model = keras.Model(inputs, x)
        tfdeep.freeze(model, "hidden1")
        data = data.map(lambda x, y: (tf.reshape(x, [-1, 4, 2]), y))
        tfdeep.cache_frozen(model, data, tmp_path)
        assert len(numbers) == 200


def test_a_cache_dir_that_gfile_knows():
    model, data = frozen(), nets.dataset(count=104)
    _, in_memory, _ = tfdeep.cache_frozen(model, data)
    cache_dir = "ram://features/of a net"
    for found in (False, True):
        _, features, report = tfdeep.cache_frozen(
            model, data, cache_dir, shard_bytes=64 * ROW_BYTES
        )
        assert report.found == found
        assert report.path == f"{cache_dir}/{report.key}"
        assert_same(elements(features), elements(in_memory))
        assert report.check() <= 1e-6
    names = tf.io.gfile.listdir(report.path)
    assert sum(name.endswith(".safetensors") for name in names) == 2
    (entry,) = tfdeep.transfer.verify_cache(cache_dir).entries
    assert (entry.state, entry.rows) == ("complete", 104)
    tfdeep.transfer.remove_cache(cache_dir)
    assert tfdeep.transfer.list_cache(cache_dir).entries == ()


def test_a_feature_that_the_head_takes_twice(tmp_path):
    """Two equal layers give one column, which a model with one of them finds."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8,))
    twins = [layers.Dense(4, name=f"hidden{i}") for i in range(2)]
    both = layers.Concatenate()([twin(inputs) for twin in twins])
    model = keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(both))
    twins[1].set_weights(twins[0].get_weights())
    tfdeep.freeze(model, ["hidden0", "hidden1"])
    model.get_layer("outputs").trainable = True
    _, _, report = tfdeep.cache_frozen(model, nets.dataset(), tmp_path)
    assert report.check() <= 1e-6
    (path,) = tmp_path.glob("*/*.safetensors")
    assert set(load_file(path)) == {"features", "labels"}
