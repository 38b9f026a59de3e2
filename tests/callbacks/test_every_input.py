"""A monitor never harms a fit, whatever it is given to train on."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep.callbacks import GradientMonitor

COUNT, BATCH, FEATURES = 16, 4, 5


@pytest.fixture(autouse=True)
def nothing_is_fused():
    """TensorFlow fuses operations unless someone looks between: one rounding less."""
    tf.config.optimizer.set_experimental_options({"remapping": False})
    yield
    tf.config.optimizer.set_experimental_options({"remapping": True})


def numbers(*shape, dtype="float32"):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


X, Y, WEIGHTS = numbers(COUNT, FEATURES), numbers(COUNT, 2), np.arange(COUNT) / COUNT
CLASS = np.arange(COUNT) % 2
INTEGERS = np.arange(COUNT * FEATURES).reshape(COUNT, FEATURES) % 7
TEXTS = np.array(["a b", "b c", "c", "d a"] * (COUNT // 4))


def dense(**arguments):
    inputs = keras.Input((FEATURES,), **arguments)
    x = layers.Dense(4, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, layers.Dense(2, name="outputs")(x))


def of_two(as_dict=False):
    a, b = keras.Input((FEATURES,), name="a"), keras.Input((FEATURES,), name="b")
    x = layers.Dense(4, activation="tanh", name="hidden")(layers.Add()([a, b]))
    inputs = {"a": a, "b": b} if as_dict else [a, b]
    return keras.Model(inputs, layers.Dense(2, name="outputs")(x))


def embedding():
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(7, 4)(inputs)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2, name="outputs")(x))


def ragged():
    inputs = keras.Input((None,), dtype="int64", ragged=True)
    return keras.Model(inputs, layers.Dense(2, name="outputs")(Ragged()(inputs)))


class Ragged(layers.Layer):
    """A table of vectors that takes and gives ragged tensors, then their means."""

    def build(self, shape):
        self.table = self.add_weight(shape=(7, 4), name="table")

    def call(self, x):
        if isinstance(x, tf.RaggedTensor):
            table = tf.convert_to_tensor(self.table)
            rows = tf.ragged.map_flat_values(lambda i: tf.gather(table, i), x)
            return tf.reduce_mean(rows, axis=1)
        return tf.reduce_mean(tf.gather(self.table, x), axis=1)

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, 4))


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return COUNT // BATCH

    def __getitem__(self, i):
        here = slice(i * BATCH, (i + 1) * BATCH)
        return X[here], Y[here]


def generator():
    while True:
        yield from (Sequence()[i] for i in range(COUNT // BATCH))


def dataset(*parts):
    return tf.data.Dataset.from_tensor_slices(parts).batch(BATCH)


def of_text(layer):
    layer.adapt(TEXTS)
    data = dataset(TEXTS[:, np.newaxis], Y)
    return data.map(lambda x, y: (layer(x), y))


def scipy_sparse():
    return pytest.importorskip("scipy.sparse").csr_matrix(X)


@dataclasses.dataclass
class Case:
    make: object = dense
    data: object = lambda: (X, Y)
    fit: dict = dataclasses.field(default_factory=dict)
    compile: dict = dataclasses.field(default_factory=dict)
    warns: str | None = None


CASES = {
    "numpy": Case(),
    "lists": Case(of_two, lambda: ([X, X], Y)),
    "dicts": Case(lambda: of_two(as_dict=True), lambda: ({"a": X, "b": X}, Y)),
    "tensors": Case(data=lambda: (tf.constant(X), tf.constant(Y))),
    "tf.data": Case(data=lambda: (dataset(X, Y),)),
    "batches of unknown size": Case(
        data=lambda: (dataset(X, Y).filter(lambda x, y: True),)
    ),
    "PyDataset": Case(data=lambda: (Sequence(),)),
    "generator": Case(data=lambda: (generator(),), fit={"steps_per_epoch": 4}),
    "tf.SparseTensor": Case(
        lambda: dense(sparse=True),
        lambda: (tf.sparse.from_dense(X), Y),
        warns="the input",
    ),
    "scipy.sparse": Case(
        lambda: dense(sparse=True), lambda: (scipy_sparse(), Y), warns="the input"
    ),
    "ragged": Case(
        ragged,
        lambda: (
            tf.data.Dataset.from_tensor_slices(
                (tf.RaggedTensor.from_row_lengths(np.arange(40) % 7, [1, 4] * 8), Y)
            ).batch(BATCH),
        ),
    ),
    "ragged, eager": Case(
        ragged,
        lambda: (tf.RaggedTensor.from_row_lengths(np.arange(40) % 7, [1, 4] * 8), Y),
        compile={"run_eagerly": True},
    ),
    "StringLookup": Case(
        embedding, lambda: (of_text(layers.StringLookup(max_tokens=7)),)
    ),
    "TextVectorization": Case(
        embedding, lambda: (of_text(layers.TextVectorization(max_tokens=7)),)
    ),
    "integers": Case(embedding, lambda: (INTEGERS, Y)),
    "integers into Dense": Case(dense, lambda: (INTEGERS, Y)),
    "float64": Case(data=lambda: (X.astype("float64"), Y.astype("float64"))),
    "float16": Case(data=lambda: (X.astype("float16"), Y.astype("float16"))),
    "sample weights": Case(data=lambda: (X, Y, WEIGHTS)),
    "sample weights in tf.data": Case(data=lambda: (dataset(X, Y, WEIGHTS),)),
    "class weights": Case(
        data=lambda: (X, CLASS),
        fit={"class_weight": {0: 0.2, 1: 3.0}},
        compile={"loss": nets.LOSS},
    ),
    "steps_per_epoch": Case(
        data=lambda: (dataset(X, Y).repeat(),), fit={"steps_per_epoch": 4}
    ),
    "steps_per_execution": Case(compile={"steps_per_execution": 3}),
    "run_eagerly": Case(compile={"run_eagerly": True}),
    "jit_compile": Case(compile={"jit_compile": True}),
    "validation": Case(fit={"validation_split": 0.25}),
}


def fitted(case, *callbacks):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    model = case.make()
    model.compile(**{"optimizer": "adam", "loss": "mse", **case.compile})
    data = [*case.data(), None, None]
    arguments = {"sample_weight": data[2]} if data[1] is not None else {}
    if data[1] is not None:  # a dataset has batches of its own
        arguments["batch_size"] = BATCH
    nets.traced_once(model)
    model.fit(
        *data[:2],
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks],
        **arguments,
        **case.fit,
    )
    return model


@pytest.mark.parametrize("name", CASES)
def test_training_is_the_same_for_every_input(name):
    case = CASES[name]
    plain = nets.values(fitted(case))
    monitor = GradientMonitor(activations=True, on_finding=None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        watched = nets.values(fitted(case, monitor))
    for path, value in plain.items():
        np.testing.assert_array_equal(watched[path], value, err_msg=path)
    told = [str(w.message) for w in seen if "cannot measure" in str(w.message)]
    if case.warns is None:
        assert told == []
    else:
        [text] = told
        assert f"cannot measure {case.warns}, and leaves it out" in text
    assert monitor.recording.total_steps in (3, 4)  # 3 beside a validation split
    assert np.isfinite(monitor.recording["loss"]).all()
    assert (monitor.history["outputs/kernel"]["norm"] > 0).all()


RESULTS = {
    "one number each": lambda x: x[:, 0],
    "a number": lambda x: tf.reduce_sum(x),
    "nothing": lambda x: None,
    "sparse": lambda x: tf.sparse.from_dense(x),
    "ragged": lambda x: tf.RaggedTensor.from_tensor(x),
    "text": lambda x: tf.strings.as_string(x),
    "keys that cannot be sorted": lambda x: {"a": x, 1: x},
    "an object": lambda x: object(),
    "no examples": lambda x: x[:0],
    "no units": lambda x: x[:, :0],
    "an unknown shape": lambda x: tf.reshape(x, tf.where([x[0, 0] > -99.0])[0] - 1),
}


class Odd(keras.Model):
    """Layers that give what cannot be measured."""

    def __init__(self):
        super().__init__()
        self.parts = [Gives(f"gives{i}", f) for i, f in enumerate(RESULTS.values())]
        self.outputs_layer = layers.Dense(2, name="outputs")

    def call(self, x):
        for part in self.parts:
            part(x)
        return self.outputs_layer(x * self.parts[0].scale)


class Gives(layers.Layer):
    def __init__(self, name, function):
        super().__init__(name=name)
        self.function = function

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return self.function(x * self.scale)


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_what_cannot_be_measured_is_one_warning_each(run_eagerly):
    def fit(*callbacks):
        keras.utils.set_random_seed(1)
        model = Odd()
        model(X[:1])
        model.compile("sgd", "mse", run_eagerly=run_eagerly)
        model.fit(
            X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[*callbacks]
        )
        return nets.values(model)

    plain = fit()
    monitor = GradientMonitor(activations=True, on_finding=None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        watched = fit(monitor)
    for path, value in plain.items():
        np.testing.assert_array_equal(watched[path], value, err_msg=path)
    told = [str(w.message).splitlines()[0] for w in seen]
    told = [text for text in told if "cannot measure" in text]
    names = ("sparse", "ragged", "keys that cannot be sorted")
    sick = [list(RESULTS).index(name) for name in names]
    assert sorted(told) == [
        f"`GradientMonitor` cannot measure the outputs of gives{i}, and leaves it out."
        for i in sick
    ]
    assert monitor.recording.total_steps == COUNT // BATCH
    remarks = monitor.report().remarks
    assert any(remark.startswith("Not measured: the outputs of") for remark in remarks)


class TestTheUsersOwnErrors:
    def test_pass_unchanged(self):
        class Fails(layers.Layer):
            def call(self, x):
                raise ZeroDivisionError("my own")

        model = keras.Sequential([layers.Dense(3), Fails()])
        model.compile("sgd", "mse")
        monitor = GradientMonitor(activations=True)
        with pytest.raises(ZeroDivisionError, match="my own"):
            model.fit(X, Y, verbose=0, callbacks=[monitor])

    def test_of_what_is_called_with_a_finding_too(self):
        def fail(finding):
            raise ZeroDivisionError("my own")

        model = keras.Sequential([layers.Dense(2)])
        model.compile("sgd", "mse")
        model.build((None, FEATURES))
        monitor = GradientMonitor(on_finding=fail)
        with pytest.raises(ZeroDivisionError, match="my own"):
            model.fit(X * np.nan, Y, verbose=0, epochs=30, callbacks=[monitor])


@pytest.mark.parametrize(
    "where",
    [
        "tfdeep.callbacks._recorder.StepRecorder.drain",
        "tfdeep.callbacks._recorder.StepRecorder._record_seen",
        "tfdeep.callbacks._recorder.StepRecorder._measure",
        "tfdeep.callbacks._recorder.StepRecorder._record_loss",
        "tfdeep.callbacks._layer_recorder.LayerRecorder.seen",
        "tfdeep.callbacks._ring.Ring.write",
        "tfdeep.callbacks._ring.Ring.take",
        "tfdeep.callbacks._run_writer.RunWriter.write",
        "tfdeep.callbacks._run_writer.RunWriter.close",
        "tfdeep.diagnostics._recording.Recording.extend",
        "tfdeep.diagnostics._examiner.Examiner.examine",
        "tfdeep._keras._architecture.describe",
        "tfdeep._keras._architecture.layers_of",
        "tfdeep._keras._train_step._build",
    ],
)
def test_an_error_of_the_monitor_itself_does_not_end_the_fit(
    where, monkeypatch, tmp_path
):
    plain = nets.values(fitted(Case()))

    def fail(*args, **kwargs):
        raise AssertionError("a fault of ours")

    monkeypatch.setattr(where, fail)
    monitor = GradientMonitor(tmp_path, activations=True, on_finding=None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        watched = nets.values(fitted(Case(), monitor))
    for path, value in plain.items():
        np.testing.assert_array_equal(watched[path], value, err_msg=path)
    told = [str(w.message) for w in seen if "a fault of ours" in str(w.message)]
    assert 0 < len(told) <= 6 or where.endswith("_build")
    tfdeep.diagnostics.plot_run(monitor.recording)
    str(monitor.report())
