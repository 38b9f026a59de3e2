"""What every public initializer does, whatever it draws.

The classes are found in the package: a new one is tested here without being named,
unless its constructor needs arguments.
"""

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import nets
from tfdeep import initializers
from tfdeep._core._records import Record

PUBLIC = [getattr(initializers, name) for name in initializers.__all__]
CLASSES = [
    item
    for item in PUBLIC
    if inspect.isclass(item) and issubclass(item, keras.initializers.Initializer)
]
ARGUMENTS = {initializers.Fixup: {"num_branches": 8}}

SHAPES = {initializers.DeltaOrthogonal: (3, 16, 16)}  # it is for convolutions only


def make(cls, seed=1):
    return cls(**ARGUMENTS.get(cls, {}), seed=seed)


def draw(initializer, dtype="float32"):
    return initializer(SHAPES.get(type(initializer), (16, 16)), dtype)


def net():
    """A convolution for each class, each adding to the signal; any batch size."""
    inputs = x = keras.Input((6, 8))
    for cls in CLASSES:
        convolution = layers.Conv1D(
            8, 3, padding="same", kernel_initializer=make(cls), name=cls.__name__
        )
        x = layers.Add()([x, 0.1 * convolution(x)])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x))


def kernels(model):
    return [
        keras.ops.convert_to_numpy(model.get_layer(cls.__name__).kernel)
        for cls in CLASSES
    ]


def train(model, **arguments):
    """The last batch is smaller, so the batch size is not known beforehand."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6, 8)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, 0, :2])).batch(8)
    before = kernels(model)
    model.compile(keras.optimizers.SGD(0.1), "mse", **arguments)
    model.fit(data, verbose=0)
    for old, new in zip(before, kernels(model), strict=True):
        assert np.isfinite(new.astype("float32")).all()
        assert not np.array_equal(old, new)


each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def test_all_public_classes_are_initializers_or_records():
    others = {item for item in PUBLIC if inspect.isclass(item)} - set(CLASSES)
    assert len(CLASSES) >= 10
    assert all(issubclass(item, Record) or is_row(item) for item in others)


def is_row(item):
    return hasattr(item, "__dataclass_fields__")


@each_class
def test_its_config_makes_it_again(cls):
    initializer = make(cls)
    config = json.loads(json.dumps(keras.initializers.serialize(initializer)))
    assert config["registered_name"] == f"tfdeep>{cls.__name__}"
    back = keras.initializers.deserialize(config)
    assert type(back) is cls
    assert back.get_config() == initializer.get_config()
    assert set(back.get_config()) == set(inspect.signature(cls).parameters)
    np.testing.assert_array_equal(draw(back), draw(initializer))


def test_a_saved_model_comes_back(tmp_path):
    model = net()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")  # no custom_objects
    for old, new in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    for cls in CLASSES:
        again = loaded.get_layer(cls.__name__).kernel_initializer
        assert type(again) is cls
        assert again.get_config() == make(cls).get_config()


@each_class
def test_eager_graph_and_xla(cls):
    eager = draw(make(cls)).numpy()
    graph = tf.function(draw)(make(cls)).numpy()
    np.testing.assert_allclose(graph, eager, atol=1e-6)
    # XLA has generators of its own: other values, of the same scale.
    compiled = tf.function(draw, jit_compile=True)(make(cls)).numpy()
    assert compiled.std() == pytest.approx(eager.std(), rel=0.2)


@each_class
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_every_float_dtype(cls, dtype):
    values = keras.ops.convert_to_numpy(draw(make(cls), dtype))
    assert str(values.dtype) == dtype
    exact = draw(make(cls)).numpy()
    if dtype == "float64":
        assert values.std() == pytest.approx(exact.std(), rel=0.2)
    else:
        np.testing.assert_array_equal(values, exact.astype(values.dtype))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_model_trains(jit_compile):
    model = net()
    assert model.input_shape[0] is None
    train(model, jit_compile=jit_compile)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_a_model_trains_in_16_bits(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = net()
    finally:
        keras.config.set_dtype_policy("float32")
    dtype = "bfloat16" if policy == "bfloat16" else "float32"
    assert {str(kernel.dtype) for kernel in kernels(model)} == {dtype}
    train(model)


def test_replicas_start_alike():
    with nets.two_replicas().scope():
        model = net()
        for cls in CLASSES:
            first, second = model.get_layer(cls.__name__).kernel.value.values
            np.testing.assert_array_equal(first, second)
        train(model)


@each_class
def test_layers_that_share_it_differ_and_a_seed_makes_them_again(cls):
    def pair(seed):
        initializer, found = make(cls, seed), []
        for _ in range(2):
            layer = layers.Conv1D(8, 3, kernel_initializer=initializer)
            layer.build((None, 6, 8))
            found.append(layer.kernel.numpy())
        return found

    first, second = pair(1)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(pair(1), [first, second])
    assert not np.allclose(pair(2)[0], first)
