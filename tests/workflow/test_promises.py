"""The promises of the design, each with what plain Keras does in the same place.

Every promise is one function that asks something of an implementation. tfdeep keeps
it; plain Keras, put in its place, does not.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets


def broken(promise, *implementation):
    """Asserts that an implementation does not keep a promise."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        promise(*implementation)


class TestRestoreNeverMisloads:
    """1. Matched by name and shape, whole or not at all, and never nothing."""

    @staticmethod
    def inserted_layer(path, restore):
        """A layer inserted in front of others must not get its neighbour's weights."""
        source = nets.sequential()
        source.save_weights(path)
        model = keras.Sequential(
            [
                keras.Input((nets.INPUTS,)),
                layers.Dense(nets.INPUTS, name="inserted"),
                *[layers.Dense(6, name=f"hidden{i}") for i in (1, 2, 3)],
                layers.Dense(nets.CLASSES, name="outputs"),
            ]
        )
        restore(model, path)
        for name in ("hidden2", "hidden3"):
            restored = model.get_layer(name).get_weights()
            for a, b in zip(
                restored, source.get_layer(name).get_weights(), strict=True
            ):
                np.testing.assert_array_equal(a, b)

    @staticmethod
    def failed_load(path, restore):
        """A load that fails must leave every variable as it was."""
        nets.sequential().save_weights(path)
        model = keras.Sequential(
            [
                keras.Input((nets.INPUTS,)),
                layers.Dense(6, name="hidden1"),
                layers.Dense(6, name="hidden2"),
                layers.Dense(7, name="hidden3"),
                layers.Dense(nets.CLASSES, name="outputs"),
            ]
        )
        before = model.get_weights()
        with pytest.raises(Exception):  # noqa: B017
            restore(model, path)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    @staticmethod
    def nothing_matches(path, restore):
        """A file of other layers must not be taken for a success."""
        nets.sequential().save_weights(path)
        model = keras.Sequential([keras.Input((2,)), layers.Dense(9, name="other")])
        with pytest.raises(tfdeep.errors.TfdeepError):
            restore(model, path)

    PROMISES = pytest.mark.parametrize(
        "promise", ["inserted_layer", "failed_load", "nothing_matches"]
    )

    @PROMISES
    def test_kept_by_tfdeep(self, promise, tmp_path):
        def restore(model, path):
            include = "hidden[23]" if promise == "inserted_layer" else None
            tfdeep.restore(model, path, include=include)

        getattr(self, promise)(tmp_path / "net.weights.h5", restore)

    @PROMISES
    @pytest.mark.filterwarnings("ignore:A total of")
    def test_broken_by_keras(self, promise, tmp_path):
        def load(model, path):
            model.load_weights(path, skip_mismatch=promise != "failed_load")

        broken(getattr(self, promise), tmp_path / "net.weights.h5", load)


class TestFrozenMeansFrozen:
    """2. Before or after a fit, without losing the optimizer's moments."""

    @staticmethod
    def after_a_fit(freeze):
        model = nets.functional()
        model.compile("adam", nets.LOSS)
        model.fit(*nets.examples(), epochs=1, verbose=0)
        freeze(model)
        before = model.get_layer("hidden1").get_weights()
        model.fit(*nets.examples(), epochs=1, verbose=0)
        for a, b in zip(before, model.get_layer("hidden1").get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    @staticmethod
    def unfrozen_again(freeze, unfreeze):
        model = nets.functional()
        freeze(model)
        optimizer = keras.optimizers.Adam(0.01)
        model.compile(optimizer, nets.LOSS)
        model.fit(*nets.examples(), epochs=1, verbose=0)
        moments = _slots(optimizer, "hidden2")
        unfreeze(model)
        before = model.get_layer("hidden1").get_weights()
        try:
            # The first step after unfreezing continues from the moments.
            model.fit(*nets.examples(16), epochs=1, verbose=0)
        except (ValueError, NotImplementedError) as error:
            # "Unknown variable", or what Keras 3.8 makes of saying so.
            raise AssertionError(str(error)) from error
        after = model.get_layer("hidden1").get_weights()
        assert any((a != b).any() for a, b in zip(before, after, strict=True))
        assert int(model.optimizer.iterations) == 3 + 1
        assert set(moments) <= set(_slots(model.optimizer, "hidden2"))

    def test_kept_by_tfdeep(self):
        self.after_a_fit(lambda model: tfdeep.freeze(model, "hidden1"))
        self.unfrozen_again(
            lambda model: tfdeep.freeze(model, "hidden1"),
            lambda model: tfdeep.unfreeze(model, "hidden1"),
        )

    def test_broken_by_keras(self):
        def set_flag(value):
            return lambda model: setattr(model.get_layer("hidden1"), "trainable", value)

        broken(self.after_a_fit, set_flag(False))
        broken(self.unfrozen_again, set_flag(False), set_flag(True))

        def retraced(model):
            set_flag(True)(model)
            model.make_train_function(force=True)

        broken(self.unfrozen_again, set_flag(False), retraced)  # "Unknown variable"


def _slots(optimizer, layer):
    return {v.name: v.numpy() for v in optimizer.variables if layer in v.name}


class TestCacheIsNeverStale:
    """3. Features are keyed by what made them (here, in memory: made when asked)."""

    @staticmethod
    def after_the_weights_change(features_of):
        model = nets.functional()
        for name in ("hidden1", "hidden2"):
            model.get_layer(name).trainable = False
        data = nets.dataset()
        features_of(model, data)
        kernel = model.get_layer("hidden1").kernel
        kernel.assign(kernel * 2)
        x = np.concatenate([x for x, _ in data])
        expected = keras.Model(model.input, model.get_layer("hidden2").output)(x)
        found = np.concatenate([x for x, _ in features_of(model, data)])
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_kept_by_tfdeep(self):
        self.after_the_weights_change(
            lambda model, data: tfdeep.cache_frozen(model, data)[1]
        )

    def test_broken_by_keras(self, tmp_path):
        def cached_by_tf_data(model, data):
            trunk = keras.Model(model.input, model.get_layer("hidden2").output)
            mapped = data.map(lambda x, y: (trunk(x), y)).cache(str(tmp_path / "cache"))
            list(mapped)
            return mapped

        broken(self.after_the_weights_change, cached_by_tf_data)


def _sgd(**arguments):
    return keras.optimizers.SGD(1.0, **arguments)


_OUR_CLIPPING = {
    "clip": lambda: tfdeep.optimizers.ClipByGlobalNorm(_sgd(), clip_norm=0.5),
    "accumulate": lambda: tfdeep.optimizers.Accumulate(_sgd(), steps=2),
}
_KERAS_CLIPPING = {
    "clip": lambda: _sgd(global_clipnorm=0.5),
    "accumulate": lambda: _sgd(gradient_accumulation_steps=2),
}


class TestClippingMeansWhatItSays:
    """4. On replicas, with accumulation, sparse gradients and non-finite values."""

    @staticmethod
    def on_replicas(optimizers):
        with nets.two_replicas().scope():
            model = nets.functional()
            model.compile(optimizers["clip"](), nets.LOSS)
        before = model.get_weights()
        x, y = nets.examples(16)
        model.fit(x * 10, y, batch_size=16, verbose=0)
        steps = [a - b for a, b in zip(before, model.get_weights(), strict=True)]
        norm = np.sqrt(sum((step.astype("float64") ** 2).sum() for step in steps))
        np.testing.assert_allclose(norm, 0.5, rtol=1e-5)

    @staticmethod
    def with_accumulation(optimizers):
        with nets.two_replicas().scope():
            model = nets.functional()
            model.compile(optimizers["accumulate"](), nets.LOSS)
        try:
            model.fit(nets.dataset(), verbose=0)
        except RuntimeError as error:  # "merge_call called while defining a new graph"
            raise AssertionError(str(error)) from error

    @staticmethod
    def of_sparse_gradients(optimizers):
        table = keras.Variable(np.zeros((2, 2)), name="embeddings")
        rows = tf.constant([[3.0, 0.0], [-3.0, 0.0], [0.3, 0.4]])
        gradient = tf.IndexedSlices(rows, tf.constant([0, 0, 1]), (2, 2))
        optimizer = optimizers["clip"]()
        optimizer.apply([gradient], [table])  # of norm .5 once the rows are summed
        np.testing.assert_allclose(table.numpy(), [[0, 0], [-0.3, -0.4]], atol=1e-6)

    @staticmethod
    def of_values_that_are_not_finite(optimizers):
        first, second = keras.Variable([0.0, 0.0]), keras.Variable([0.0])
        gradients = [tf.constant([np.nan, 0.3]), tf.constant([0.4])]
        optimizers["clip"]().apply(gradients, [first, second])
        assert np.isnan(first.numpy()[0])
        np.testing.assert_allclose([first.numpy()[1], *second.numpy()], [-0.3, -0.4])

    @pytest.mark.parametrize(
        "promise",
        [
            on_replicas.__func__,
            with_accumulation.__func__,
            of_sparse_gradients.__func__,
            of_values_that_are_not_finite.__func__,
        ],
    )
    def test_kept_by_tfdeep_and_broken_by_keras(self, promise):
        promise(_OUR_CLIPPING)
        broken(promise, _KERAS_CLIPPING)


class TestMonitorTellsTheTruth:
    """5. The gradients that train the model: unscaled, every step, inside the step."""

    @staticmethod
    def every_step(norms_of, compile_arguments):
        x, y = nets.examples()
        expected = _reference_norms(x, y)
        model = nets.functional()
        model.set_weights(_initial_weights())
        model.compile(nets_sgd(), nets.LOSS, **compile_arguments)
        found = norms_of(model, x, y)
        assert len(found) == len(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    WAYS = pytest.mark.parametrize(
        "arguments",
        [{"steps_per_execution": 3}, {"jit_compile": True}, {"loss_scale": True}],
        ids=lambda a: next(iter(a)),
    )

    @WAYS
    def test_kept_by_tfdeep(self, arguments):
        def monitored(model, x, y):
            _scale_loss(model, arguments)
            monitor = tfdeep.callbacks.GradientMonitor()
            _fit(model, x, y, monitor)
            return monitor.history["hidden1/kernel"]["norm"]

        self.every_step(monitored, _keras_arguments(arguments))

    @WAYS
    def test_broken_by_keras(self, arguments, tmp_path):
        """The usual recipe: write a summary from an overridden `train_step`."""
        writer = tf.summary.create_file_writer(str(tmp_path))

        def by_train_step(model, x, y):
            _scale_loss(model, arguments)
            model.__class__ = type("Logging", (LogsNorms, type(model)), {})
            model.norms = norms = []
            collect = keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: norms.append(logs["norm"])
            )
            try:
                with writer.as_default():
                    _fit(model, x, y, collect)
            except tf.errors.InvalidArgumentError as error:
                raise AssertionError(str(error)) from error
            return np.array(norms)

        broken(self.every_step, by_train_step, _keras_arguments(arguments))


class LogsNorms:
    """What people write to log a gradient norm from `fit`."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
            loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, self.trainable_weights)
        tf.summary.scalar("norm", tf.norm(gradients[0]), step=0)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss, "norm": tf.norm(gradients[0])}


def nets_sgd():
    return keras.optimizers.SGD(0.1)


def _keras_arguments(arguments):
    return {k: v for k, v in arguments.items() if k != "loss_scale"}


def _scale_loss(model, arguments):
    if arguments.get("loss_scale"):
        optimizer = keras.optimizers.LossScaleOptimizer(nets_sgd(), initial_scale=64.0)
        model.compile(optimizer, nets.LOSS)


def _initial_weights():
    keras.utils.set_random_seed(7)
    return nets.functional().get_weights()


def _fit(model, x, y, callback):
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[callback])


def _reference_norms(x, y):
    """The norms by an eager loop over the same batches."""
    model = nets.functional()
    model.set_weights(_initial_weights())
    optimizer = nets_sgd()
    norms = []
    for i in range(0, len(x), 16):
        with tf.GradientTape() as tape:
            loss = nets.LOSS(y[i : i + 16], model(x[i : i + 16], training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        norms.append(np.linalg.norm(gradients[0]))
        optimizer.apply(gradients, model.trainable_variables)
    return norms
