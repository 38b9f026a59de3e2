"""What makes a new cache entry, and what does not."""

import dataclasses
import functools
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep

FACTOR = 2.0


def doubled(x):
    return x * FACTOR


@keras.saving.register_keras_serializable(package="tests")
class Scaled(layers.Layer):
    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class ScaledOtherwise(Scaled):
    def call(self, x):
        return x / self.factor


@dataclasses.dataclass
class Case:
    """A model and a dataset; the tests change one thing of it."""

    activation: object = "relu"
    between: object = None  # makes a layer, or an operation, after the first one
    epsilon: float = 1e-3
    scale: float = 1.0
    offset: float = 0.0
    padding: str = "same"
    dilation: int = 1
    pooling: object = layers.MaxPooling2D
    norm_first: bool = True
    merge: object = layers.Add
    policy: str | None = None
    prefix: str = ""
    branches_swapped: bool = False
    initializer: str = "glorot_uniform"
    head_units: int = 4
    frozen: tuple[str, ...] = ("conv", "norm", "left", "right")
    seed: int = 3
    count: int = 24
    data: object = lambda parts: parts
    batch: int = 8
    change_model: object = lambda model, prefix: None
    options: dict = dataclasses.field(default_factory=dict)

    def model(self):
        keras.utils.set_random_seed(1)
        p = self.prefix
        inputs = keras.Input((6, 6, 1))
        x = layers.Rescaling(self.scale, self.offset)(inputs)
        x = layers.Conv2D(
            2,
            3,
            padding=self.padding,
            dilation_rate=self.dilation,
            kernel_initializer=self.initializer,
            name=p + "conv",
        )(x)
        if self.between is not None:
            x = self.between(x)
        norm = layers.BatchNormalization(epsilon=self.epsilon, name=p + "norm")
        activation = layers.Activation(self.activation, dtype=self.policy)
        x = activation(norm(x)) if self.norm_first else norm(activation(x))
        x = layers.Flatten()(self.pooling(2)(x))

        def left():
            return layers.Dense(3, dtype=self.policy, name=p + "left")(x)

        def right():
            return layers.Dense(3, dtype=self.policy, name=p + "right")(x)

        if self.branches_swapped:
            b = right()
            a = left()
        else:
            a = left()
            b = right()
        x = self.merge()([a, b])
        x = layers.Dense(self.head_units, activation="relu", name=p + "top")(x)
        model = keras.Model(inputs, layers.Dense(3, name=p + "outputs")(x))
        rng = np.random.default_rng(self.seed)
        for name in ("conv", "norm", "left", "right"):
            layer = model.get_layer(p + name)
            layer.set_weights([1 + rng.random(w.shape) for w in layer.get_weights()])
        self.change_model(model, p)
        return model

    def parts(self):
        rng = np.random.default_rng(2)
        x = rng.random((24, 6, 6, 1)).astype("float32")
        y = rng.integers(0, 3, 24)
        return x[: self.count], y[: self.count]

    def dataset(self):
        parts = self.data(self.parts())
        if isinstance(parts, tf.data.Dataset):
            return parts
        return tf.data.Dataset.from_tensor_slices(parts).batch(self.batch)

    def report(self, cache_dir):
        model = self.model()
        tfdeep.freeze(model, [self.prefix + name for name in self.frozen])
        return tfdeep.cache_frozen(
            model, self.dataset(), cache_dir, verify=True, **self.options
        )[2]


def one_ulp(layer, weight):
    def change(model, prefix):
        values = model.get_layer(prefix + layer).get_weights()
        flat = values[weight].reshape(-1)
        flat[-1] = np.nextafter(flat[-1], np.float32(np.inf))
        model.get_layer(prefix + layer).set_weights(values)

    return change


def set_activation(model, prefix):
    model.get_layer(prefix + "left").activation = keras.activations.tanh


def swap_branches(model, prefix):
    a, b = (model.get_layer(prefix + name) for name in ("left", "right"))
    a_weights, b_weights = a.get_weights(), b.get_weights()
    a.set_weights(b_weights)
    b.set_weights(a_weights)


def changed(parts, i, where, value):
    parts = [part.copy() for part in parts]
    parts[i][where] = value
    return tuple(parts)


def in_order(parts, order):
    return tuple(part[order] for part in parts)


BACKWARDS = np.arange(24)[::-1]

CHANGES = {
    "one bit of a kernel": Case(change_model=one_ulp("conv", 0)),
    "one bit of a bias": Case(change_model=one_ulp("left", 1)),
    "one bit of gamma": Case(change_model=one_ulp("norm", 0)),
    "one bit of a moving average": Case(change_model=one_ulp("norm", 2)),
    "one bit of a moving variance": Case(change_model=one_ulp("norm", 3)),
    "all weights": Case(seed=4),
    "another activation": Case(activation="elu"),
    "an activation set later": Case(change_model=set_activation),
    "an activation of one's own": Case(activation=doubled),
    "an operation between": Case(between=lambda x: x * 2.0),
    "another operation between": Case(between=lambda x: x * 3.0),
    "an operation the other way round": Case(between=lambda x: 2.0 - x),
    "a lambda": Case(between=layers.Lambda(lambda x: x + 1.0, name="f")),
    "a slope": Case(between=layers.LeakyReLU(negative_slope=0.1)),
    "another slope": Case(between=layers.LeakyReLU(negative_slope=0.2)),
    "a layer of one's own": Case(between=Scaled()),
    "its config": Case(between=Scaled(3.0)),
    "its code": Case(between=ScaledOtherwise()),
    "the epsilon of a normalization": Case(epsilon=2e-3),
    "preprocessing: scale": Case(scale=0.5),
    "preprocessing: offset": Case(offset=0.5),
    "padding": Case(padding="valid"),
    "dilation": Case(dilation=2),
    "pooling": Case(pooling=layers.AveragePooling2D),
    "order of two layers": Case(norm_first=False),
    "how branches are merged": Case(merge=layers.Multiply),
    "which branch is which": Case(
        merge=layers.Subtract, change_model=swap_branches, frozen=Case.frozen
    ),
    "subtracted instead of added": Case(merge=layers.Subtract),
    "dtype policy": Case(policy="mixed_bfloat16"),
    "another boundary": Case(frozen=("conv", "norm")),
    "the dtype of storage": Case(options={"storage_dtype": "float16"}),
    "augmented passes": Case(options={"variants": 2}),
    "one pixel": Case(data=lambda p: changed(p, 0, (23, 5, 5, 0), 0.25)),
    "one label": Case(data=lambda p: changed(p, 1, 7, 99)),
    "the order of examples": Case(data=lambda p: in_order(p, BACKWARDS)),
    "two examples swapped": Case(
        data=lambda p: in_order(p, [1, 0, *range(2, 24)]),
    ),
    "fewer examples": Case(count=23),
    "examples twice": Case(data=lambda p: in_order(p, [*range(24)] * 2)),
    "the dtype of inputs": Case(data=lambda p: (p[0].astype("float64"), p[1])),
    "the dtype of labels": Case(data=lambda p: (p[0], p[1].astype("int32"))),
    "weights of examples": Case(data=lambda p: (*p, np.ones(24, "float32"))),
    "a name for the examples": Case(options={"dataset_id": "mine"}),
    "another name for them": Case(options={"dataset_id": "yours"}),
}


def batched(size):
    return lambda p: tf.data.Dataset.from_tensor_slices(p).batch(size).prefetch(2)


def from_generator(parts):
    spec = tuple(tf.TensorSpec(p.shape[1:], p.dtype) for p in parts)
    data = tf.data.Dataset.from_generator(
        lambda: zip(*parts, strict=True), output_signature=spec
    )
    return data.apply(tf.data.experimental.assert_cardinality(24)).batch(8)


def after_other_layers(model, prefix):
    for _ in range(3):
        layers.Dense(2)(keras.Input((2,)))


def compiled(model, prefix):
    model.compile("adam", "mse")


def trained_head(model, prefix):
    model.get_layer(prefix + "outputs").kernel.assign_add(
        np.ones((4, 3), "float32"),
    )


NEUTRAL = {
    "nothing": Case(),
    "other batches": Case(batch=5),
    "other batches, prefetched": Case(data=batched(24)),
    "a batch size": Case(options={"batch_size": 3}),
    "the size of shards": Case(options={"shard_bytes": 1}),
    "names of layers": Case(prefix="my_"),
    "other layers built before": Case(change_model=after_other_layers),
    "the order of building": Case(branches_swapped=True),
    "how weights were first drawn": Case(initializer="zeros"),
    "the optimizer": Case(change_model=compiled),
    "the head's weights": Case(change_model=trained_head),
    "another head": Case(head_units=7),
    "examples from a generator": Case(data=from_generator),
    "in another order each epoch": Case(options={"shuffle": True}),
    "not verified": Case(),
}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A cache that has the entry of the plain case."""
    cache_dir = tmp_path_factory.mktemp("cache")
    return cache_dir, Case().report(cache_dir).key


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_a_new_entry(change, known):
    cache_dir, key = known
    report = CHANGES[change].report(cache_dir)
    assert report.key != key
    assert not report.found


def test_changes_differ_from_one_another(known):
    keys = [case.report(known[0]).key for case in CHANGES.values()]
    assert len(set(keys)) == len(CHANGES)


@pytest.mark.parametrize("change", NEUTRAL)
def test_what_makes_no_difference_finds_the_entry(change, known):
    cache_dir, key = known
    report = NEUTRAL[change].report(cache_dir)
    assert (report.key, report.found) == (key, True)


@pytest.mark.parametrize(
    ("versions", "same"),
    [((3, 0, 9), True), ((3, 1, 0), False), ((4, 0, 0), False)],
)
@pytest.mark.parametrize("module", [tf, keras])
def test_versions_count_by_major_and_minor(
    module, versions, same, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "__version__", "3.0.0")
    key = Case().report(tmp_path).key
    monkeypatch.setattr(module, "__version__", ".".join(map(str, versions)))
    assert (Case().report(tmp_path).key == key) == same


def test_what_a_function_calls_counts(tmp_path, monkeypatch):
    case = Case(activation=doubled)
    key = case.report(tmp_path).key
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert case.report(tmp_path).key != key


def test_where_code_stands_does_not_count(tmp_path):
    source = "def act(x):\n    return x * 2.0\n"
    keys = []
    for text, name in ((source, "a.py"), ("\n\n# moved\n" + source, "b/c.py")):
        namespace = {"__name__": "somewhere"}
        exec(compile(text, name, "exec"), namespace)
        keys.append(Case(activation=namespace["act"]).report(tmp_path).key)
    assert keys[0] == keys[1]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_finds_it(hash_seed, known):
    cache_dir, key = known
    program = f"""
        from tests.transfer.test_key import Case
        report = Case(between=None).report({str(cache_dir)!r})
        print(report.key, report.found)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [key, "True"]


def test_a_layer_without_a_config_is_refused(tmp_path):
    class Nameless(layers.Layer):
        def __init__(self, thing):
            super().__init__()
            self.thing = thing

        def call(self, x):
            return x

    with pytest.raises(tfdeep.errors.ModelError, match="does not say what it computes"):
        Case(between=Nameless(object())).report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_dataset_id_stands_for_the_examples(tmp_path):
    named = functools.partial(Case, options={"dataset_id": "digits"})
    first = named().report(tmp_path)
    again = named(data=lambda p: changed(p, 0, (0, 0, 0, 0), 0.5)).report(tmp_path)
    assert again.key == first.key
    assert again.found
    with pytest.raises(tfdeep.errors.DataError, match="other examples"):
        named(count=10).report(tmp_path)
