"""What holds for every public layer of tfdeep."""

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep.layers
from tests import nets

PUBLIC = {
    name: item
    for name, item in vars(tfdeep.layers).items()
    if inspect.isclass(item)
    and issubclass(item, keras.layers.Layer)
    and name in tfdeep.layers.__all__
}

# For each class: its arguments, and the shapes of its inputs without the batch. The
# wrapped layers are made anew for each test.
CASES = {
    "DropBlock2D": [
        (lambda: {"rate": 0.2, "block_size": 3, "seed": 1}, [(6, 5, 4)]),
    ],
    "LocalResponseNormalization": [
        (lambda: {}, [(4, 4, 8)]),
        (lambda: {"alpha": 0.5, "data_format": "channels_first"}, [(8, 4, 4)]),
        (lambda: {"depth_radius": 1, "alpha_over_n": True}, [(8,)]),
    ],
    "MCAlphaDropout": [(lambda: {"rate": 0.3, "seed": 1}, [(8,)])],
    "MCDropout": [(lambda: {"rate": 0.3, "seed": 1}, [(5, 8)])],
    "Maxout": [
        (lambda: {"num_units": 3}, [(12,)]),
        (lambda: {"num_units": 2, "axis": 1}, [(4, 3)]),
    ],
    "NormalizedBlock": [
        (lambda: {"layer": layers.Dense(4, "relu", name="inner")}, [(8,)]),
        (
            lambda: {
                "layer": layers.Conv2D(4, 3, name="inner"),
                "normalization": layers.GroupNormalization(2, name="normalization"),
                "activation": "elu",
            },
            [(5, 5, 3)],
        ),
    ],
    "RReLU": [
        (lambda: {"seed": 1}, [(8,)]),
        (
            lambda: {"draw": "divisor", "inference": "paper", "lower": 0.2},
            [(4, 4, 3)],
        ),
    ],
    "StochasticDepth": [
        (lambda: {"survival_probability": 0.8, "seed": 2}, [(8,), (8,)]),
        (lambda: {"per": "example"}, [(4, 4, 3), (4, 4, 3)]),
    ],
    "WeightNormalization": [
        (lambda: {"layer": layers.Dense(4, name="inner")}, [(8,)]),
        (lambda: {"layer": layers.SeparableConv2D(4, 3, name="inner")}, [(5, 5, 3)]),
        (lambda: {"layer": layers.LSTM(4, name="inner")}, [(5, 3)]),
    ],
}
IN_NOISE = {"MCAlphaDropout", "MCDropout"}  # at inference too
EACH = [(name, i) for name, cases in CASES.items() for i in range(len(cases))]
each_case = pytest.mark.parametrize(
    ("name", "number"), EACH, ids=[f"{name}-{i}" for name, i in EACH]
)


def test_every_public_layer_has_a_case():
    assert sorted(PUBLIC) == sorted(CASES)


def make(name, number, /, **arguments):
    return PUBLIC[name](**CASES[name][number][0](), **arguments)


def inputs_of(name, number, batch=4, dtype="float32"):
    rng = np.random.default_rng(0)
    arrays = [
        tf.constant(rng.normal(size=(batch, *shape)), dtype)
        for shape in CASES[name][number][1]
    ]
    return arrays if len(arrays) > 1 else arrays[0]


def network(layer, name, number):
    inputs = [keras.Input(shape) for shape in CASES[name][number][1]]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    return keras.Model(inputs, layer(inputs))


def reseed(*models):
    """The draws of the models start alike."""
    for model in models:
        for variable in model.variables:
            if "seed" in variable.path:
                variable.assign(np.ones(variable.shape, "int64"))


@each_case
def test_its_config_makes_it_again(name, number):
    layer = make(name, number, name="its_name")
    config = layer.get_config()
    arguments = inspect.signature(PUBLIC[name].__init__).parameters
    assert set(arguments) - {"self", "kwargs"} <= set(config)
    again = PUBLIC[name].from_config(json.loads(json.dumps(config)))
    assert json.dumps(again.get_config()) == json.dumps(config)
    assert again.name == "its_name"


@each_case
def test_it_is_saved_and_loaded_without_custom_objects(name, number, tmp_path):
    model = network(make(name, number), name, number)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    configs = [m.layers[-1].get_config() for m in (loaded, model)]
    assert json.dumps(configs[0]) == json.dumps(configs[1])
    reseed(model, loaded)
    x = inputs_of(name, number)
    np.testing.assert_array_equal(loaded(x), model(x))


@each_case
@pytest.mark.parametrize("training", [False, True])
def test_eager_graph_and_xla_compute_the_same(name, number, training):
    model = network(make(name, number), name, number)
    x = inputs_of(name, number)
    reseed(model)
    eager = model(x, training=training)
    for jit in (False, True):
        reseed(model)
        call = tf.function(
            lambda x: model(x, training=training), jit_compile=jit, autograph=False
        )
        y = call(x)
        assert y.shape == eager.shape
        if jit and (training or name in IN_NOISE):
            assert np.isfinite(y).all()  # XLA draws other numbers from a seed
        else:
            np.testing.assert_allclose(y, eager, rtol=1e-5, atol=1e-5)


@each_case
@pytest.mark.parametrize("training", [False, True])
def test_the_batch_size_may_be_unknown(name, number, training):
    layer = make(name, number)
    model = network(layer, name, number)
    shapes = [(None, *shape) for shape in CASES[name][number][1]]
    shape = layer.compute_output_shape(shapes if len(shapes) > 1 else shapes[0])
    assert tuple(shape) == model.output_shape
    spec = tf.nest.map_structure(
        lambda x: tf.TensorSpec((None, *x.shape[1:])), inputs_of(name, number)
    )
    call = tf.function(lambda x: model(x, training=training), input_signature=[spec])
    for batch in (1, 5):
        y = call(inputs_of(name, number, batch))
        assert tuple(y.shape) == (batch, *shape[1:])
        assert np.isfinite(y).all()


@each_case
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_it_follows_its_dtype_policy(name, number, policy):
    keras.config.set_dtype_policy(policy)
    try:
        layer = make(name, number)
        x = inputs_of(name, number)
        outputs = {t: layer(x, training=t) for t in (True, False)}
    finally:
        keras.config.set_dtype_policy("float32")
    compute = keras.dtype_policies.get(policy).compute_dtype
    wide = "float64" if policy == "float64" else "float32"
    for y in outputs.values():
        assert keras.backend.standardize_dtype(y.dtype) == compute
        assert np.isfinite(tf.cast(y, "float32")).all()
    floats = [v.dtype for v in layer.variables if "float" in v.dtype]
    assert set(floats) <= {wide}
    assert layer.compute_dtype == compute
    if name not in IN_NOISE:
        plain = make(name, number)
        plain(x)
        plain.set_weights(layer.get_weights())
        tolerance = {"mixed_float16": 1e-2, "mixed_bfloat16": 8e-2, "float64": 1e-5}
        np.testing.assert_allclose(
            tf.cast(outputs[False], "float32"), plain(x), rtol=0, atol=tolerance[policy]
        )


@each_case
def test_gradients_under_xla_in_mixed_precision(name, number):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = make(name, number)
        x = inputs_of(name, number, dtype="float16")
        layer(x)
    finally:
        keras.config.set_dtype_policy("float32")

    @tf.function(jit_compile=True)
    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_mean(tf.cast(y, "float32") ** 2)
        weights = [v.value for v in layer.trainable_variables]
        return tape.gradient(loss, [*tf.nest.flatten(x), *weights])

    for gradient in gradients(x):
        assert np.isfinite(gradient).all()
        assert np.any(gradient)


# One network with a branch for each case trains them all: tracing takes the time.


each_set_of_cases = pytest.mark.parametrize(
    "cases",
    [
        pytest.param([case for case in EACH if case[1] == 0], id="one of each class"),
        pytest.param(EACH, id="all", marks=pytest.mark.slow),
    ],
)


def branches(cases):
    inputs, outputs = {}, []
    for name, number in cases:
        branch = f"{name}_{number}"
        model = network(make(name, number, name=branch), name, number)
        for i, tensor in enumerate(model.inputs):
            inputs[f"{branch}_{i}"] = tensor
        flat = layers.Flatten()(model.output)
        outputs.append(layers.Dense(3, name=f"{branch}_outputs")(flat))
    return keras.Model(inputs, layers.Concatenate()(outputs))


def fit(model, cases, **arguments):
    """Trains each branch and sees that it moved; returns the weights."""
    x = {}
    for name, number in cases:
        for i, array in enumerate(tf.nest.flatten(inputs_of(name, number, 16))):
            x[f"{name}_{number}_{i}"] = array
    y = np.random.default_rng(1).normal(size=(16, 3 * len(cases)))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    # The mean is over all branches: a large rate makes up for it.
    model.compile(keras.optimizers.SGD(1.0), "mean_squared_error", **arguments)
    before = nets.weights_of(model)
    model.fit(dataset, epochs=2, verbose=0)
    after = nets.weights_of(model)
    for path, value in before.items():
        assert np.isfinite(after[path]).all(), path
        assert (after[path] != value).any(), path
    return after


@each_set_of_cases
def test_they_train_under_xla(cases):
    fit(branches(cases), cases, jit_compile=True)


@each_set_of_cases
def test_they_train_on_two_replicas(cases):
    with nets.two_replicas().scope():
        model = branches(cases)
    alone = branches(cases)
    alone.set_weights(model.get_weights())
    weights, expected = fit(model, cases), fit(alone, cases)
    # Replicas draw for themselves, and take the moments of their part of the batch.
    apart = [n for n in PUBLIC if "seed" in inspect.signature(PUBLIC[n]).parameters]
    apart.append("NormalizedBlock_0")
    compared = [path for path in expected if not path.startswith(tuple(apart))]
    assert len(compared) >= 9
    for path in compared:
        np.testing.assert_allclose(weights[path], expected[path], atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["LocalResponseNormalization", "MCAlphaDropout", "MCDropout", "Maxout", "RReLU"],
)
def test_a_mask_goes_through(name):
    embedded = layers.Embedding(5, 6, mask_zero=True)(np.array([[1, 2, 0]]))
    y = PUBLIC[name](*{"Maxout": [3]}.get(name, [0.2] if "Drop" in name else []))(
        embedded
    )
    np.testing.assert_array_equal(y._keras_mask, [[True, True, False]])


def test_a_mask_goes_through_layers_of_layers():
    embedded = layers.Embedding(5, 6, mask_zero=True)(np.array([[1, 2, 0]]))
    block = tfdeep.layers.NormalizedBlock(layers.Dense(4, activation="relu"))
    depth = tfdeep.layers.StochasticDepth()
    normed = tfdeep.layers.WeightNormalization(layers.Dense(4))
    for y in (block(embedded), depth([embedded, embedded]), normed(embedded)):
        np.testing.assert_array_equal(y._keras_mask, [[True, True, False]])
