"""Keras nets filled from PyTorch's state dicts compute what the torch nets compute."""

import pathlib

import keras
import numpy as np
import pytest
from keras import layers

from tfdeep._keras import _internals, _variables
from tfdeep.checkpoints import _torch_layout
from tfdeep.checkpoints._readers._torch import TorchReader

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens" / "torch"


def owners(model, variable):
    """The layers from the model inwards, down to the one that owns a variable."""
    found = [model]
    for name in variable.path.split("/")[:-1]:
        inside = _internals.sublayers(found[-1])
        found.append(next(layer for layer in inside if layer.name == name))
    assert found[-1] is variable.layer
    return found


def recipes(model, path):
    variable = next(v for v in _variables.model_variables(model) if v.path == path)
    return _torch_layout.recipes(variable, owners(model, variable))


def fill(model, path, transforms=None):
    """Fills every variable by its first recipe that the file has the sources of."""
    with TorchReader(str(path)) as reader:
        names = {info.name.replace(".", "/"): info.name for info in reader.variables}
        unused = {name for name in names if not name.endswith("num_batches_tracked")}
        for variable in _variables.model_variables(model):
            for recipe in _torch_layout.recipes(variable, owners(model, variable)):
                if names.keys() >= set(recipe.sources):
                    break
            else:
                raise AssertionError(f"no recipe for {variable.path}")
            infos = [reader.info(names[source]) for source in recipe.sources]
            without_data = recipe.convert(
                *(np.broadcast_to(np.zeros((), i.dtype), i.shape) for i in infos)
            )
            assert without_data.shape == tuple(variable.variable.shape)
            values = recipe.convert(*(reader.read(info.name) for info in infos))
            assert values.dtype == infos[0].dtype
            transform = (transforms or {}).get(variable.path)
            variable.variable.assign(transform(values) if transform else values)
            unused -= set(recipe.sources)
    assert unused == set()


def channels_last(values):
    return np.moveaxis(values, 1, -1)


def agrees(net, model, is_image=False, transforms=None):
    fill(model, GOLDENS / f"{net}.pt", transforms)
    data = np.load(GOLDENS / f"{net}.npz")
    x, expected = data["x"], data["y"]
    if is_image:
        x = channels_last(x)
        expected = channels_last(expected) if expected.ndim > 2 else expected
    found = keras.ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def chain(inputs, *stack):
    return keras.Sequential([keras.Input(inputs), *stack])


@pytest.mark.parametrize("einsum", [False, True])
def test_mlp(einsum):
    def dense(units, **settings):
        if einsum:
            return layers.EinsumDense("ab,bc->ac", units, bias_axes="c", **settings)
        return layers.Dense(units, **settings)

    model = chain(
        (8,),
        dense(6, activation="relu", name="fc1"),
        dense(6, activation="relu", name="fc2"),
        dense(3, name="out"),
    )
    agrees("mlp", model)


def test_resnet():
    def conv(filters, size, name, strides=1):
        # PyTorch pads an image on all sides alike, also when the stride is 2.
        def apply(x):
            x = layers.ZeroPadding2D(size // 2)(x)
            return layers.Conv2D(filters, size, strides, use_bias=False, name=name)(x)

        return apply

    def norm(name):
        return layers.BatchNormalization(epsilon=1e-5, name=name)

    inputs = keras.Input((10, 8, 3))
    x = layers.ReLU()(norm("bn1")(conv(4, 3, "conv1")(inputs)))
    y = conv(6, 3, "layer1.0.conv1", strides=2)(x)
    y = layers.ReLU()(norm("layer1.0.bn1")(y))
    y = norm("layer1.0.bn2")(conv(6, 3, "layer1.0.conv2")(y))
    short = conv(6, 1, "layer1.0.downsample.0", strides=2)(x)
    x = layers.ReLU()(y + norm("layer1.0.downsample.1")(short))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="fc")(x))
    agrees("resnet", model, is_image=True)


def test_a_net_in_nets_of_the_same_names():
    block = keras.Sequential([layers.Dense(6, "relu", name="fc1")], name="encoder")
    model = chain((8,), block)
    (recipe,) = recipes(model, "encoder/fc1/kernel")
    assert recipe.sources == ("encoder/fc1/weight",)


def test_stacked_lstm():
    model = chain(
        (7, 5),
        layers.LSTM(4, return_sequences=True, name="rnn_l0"),
        layers.LSTM(4, name="rnn_l1"),
        layers.Dense(3, name="fc"),
    )
    agrees("lstm", model)


def test_gru():
    agrees("gru", chain((7, 5), layers.GRU(4, name="rnn"), layers.Dense(3, name="fc")))


def test_simple_rnn():
    agrees(
        "simple_rnn",
        chain((7, 5), layers.SimpleRNN(4, return_sequences=True, name="rnn")),
    )


@pytest.mark.parametrize(
    ("outer", "inner", "fc"),
    [
        ("rnn", "lstm", layers.Dense(3, name="fc")),
        ("both", "rnn", layers.TimeDistributed(layers.Dense(3), name="fc")),
    ],
)
def test_bidirectional(outer, inner, fc):
    lstm = layers.LSTM(4, return_sequences=True, name=inner)
    model = chain((7, 5), layers.Bidirectional(lstm, name=outer), fc)
    agrees("bidirectional", model)


def test_a_cell():
    cell = layers.LSTMCell(4, name="cell")
    model = chain((7, 5), layers.RNN(cell, name="rnn"))
    sources = [r.sources for r in recipes(model, "rnn/cell/kernel")]
    assert ("rnn/weight_ih_l0",) in sources
    assert ("rnn/cell/weight_ih",) in sources


def test_gru_that_resets_before_has_no_recipe():
    model = chain((7, 5), layers.GRU(4, reset_after=False, name="rnn"))
    for name in ("kernel", "recurrent_kernel", "bias"):
        assert recipes(model, f"rnn/gru_cell/{name}") == ()


def test_attention():
    inputs = keras.Input((6,), dtype="int64")
    x = layers.Embedding(20, 8, name="embed")(inputs)
    x = x + layers.MultiHeadAttention(2, 4, name="mha")(x, x)
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(x)
    agrees("attention", keras.Model(inputs, layers.Dense(3, name="fc")(x)))


def test_attention_to_values_of_another_size():
    inputs = keras.Input((6, 8))
    other = np.linspace(-1, 1, 60, dtype="float32").reshape(3, 4, 5)
    attention = layers.MultiHeadAttention(2, 4, name="mha")
    outputs = attention(inputs, keras.ops.convert_to_tensor(other))
    agrees("cross_attention", keras.Model(inputs, outputs))


def test_attention_of_linear_layers():
    inputs = keras.Input((6, 8))
    outputs = layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    model = keras.Model(inputs, outputs)
    found = [r.sources[0] for r in recipes(model, "mha/key/kernel")]
    assert found == [
        *("mha/in_proj_weight", "mha/k_proj_weight", "mha/k_proj/weight"),
        "mha/key/weight",
    ]
    linear = recipes(model, "mha/key/kernel")[2]
    values = np.arange(64).reshape(8, 8)
    x = np.arange(8)
    expected = (values @ x).reshape(2, 4)
    np.testing.assert_array_equal(
        np.einsum("c,cde->de", x, linear.convert(values)), expected
    )


def test_images():
    inputs = keras.Input((6, 5, 4))
    x = layers.Conv2D(6, 3, padding="same", groups=2, name="grouped")(inputs)
    x = layers.PReLU(shared_axes=[1, 2], name="slope")(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(
        x
    )
    x = layers.GroupNormalization(3, epsilon=1e-5, name="norm")(x)
    x = layers.SeparableConv2D(
        5, 3, padding="same", depth_multiplier=2, name="separable"
    )(layers.ReLU()(x))
    x = layers.Conv2DTranspose(3, 2, 2, name="up")(x)
    agrees("images", keras.Model(inputs, x), is_image=True)


@pytest.mark.parametrize("shared_axes", [None, [1], [1, 2]])
def test_signals(shared_axes):
    model = chain(
        (12, 3),
        layers.Conv1D(4, 3, name="conv"),
        layers.PReLU(shared_axes=shared_axes, name="slope"),
        layers.DepthwiseConv1D(3, depth_multiplier=2, name="depthwise"),
        layers.Conv1DTranspose(2, 4, 2, name="up"),
    )
    agrees("signals", model, is_image=True)


def test_volumes():
    model = chain(
        (5, 4, 3, 2),
        layers.Conv3D(4, (3, 2, 1), name="conv"),
        layers.Conv3DTranspose(3, (1, 2, 3), name="up"),
    )
    agrees("volumes", model, is_image=True)


def test_a_dense_layer_behind_images():
    def model():
        return chain(
            (6, 5, 2),
            layers.Conv2D(3, 3, name="conv"),
            layers.Flatten(),
            layers.Dense(5, name="fc"),
        )

    reorder = _torch_layout.flattened((4, 3, 3))
    agrees("flat", model(), is_image=True, transforms={"fc/kernel": reorder})
    with pytest.raises(AssertionError, match="Not equal"):
        agrees("flat", model(), is_image=True)
    with pytest.raises(ValueError, match="36 rows"):
        reorder(np.zeros((35, 5)))


@pytest.mark.skipif(
    not hasattr(layers, "RMSNormalization"), reason="this Keras does not have it"
)
def test_rms_normalization():
    agrees("rms", chain((6,), layers.RMSNormalization(epsilon=1e-6, name="norm")))


@pytest.mark.parametrize(
    ("equation", "shape", "out", "weight"),
    [
        ("abc,cd->abd", (2, 3), (None, 4), (4, 3)),
        ("...x,xy->...y", (2, 3), 4, (4, 3)),
        ("abc,cde->abde", (2, 6), (None, 2, 3), (6, 6)),
        ("abcd,cde->abe", (2, 2, 3), (None, 5), (5, 6)),
    ],
)
def test_einsum_dense_that_is_linear(equation, shape, out, weight):
    model = chain(shape, layers.EinsumDense(equation, out, name="fc"))
    (recipe,) = recipes(model, "fc/kernel")
    values = np.random.default_rng(0).normal(size=weight).astype("float32")
    model.weights[0].assign(recipe.convert(values))
    x = np.random.default_rng(1).normal(size=(1, *shape)).astype("float32")
    expected = x.reshape(-1, weight[1]) @ values.T
    np.testing.assert_allclose(
        np.ravel(model(x)), np.ravel(expected), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("equation", "shape", "out"),
    [
        ("ab,cb->ac", (3,), 4),
        ("abc,bd->adc", (2, 3), (4, 3)),
        ("abc,bcd->abd", (2, 3), (2, 4)),
    ],
)
def test_einsum_dense_that_is_something_else(equation, shape, out):
    model = chain(shape, layers.EinsumDense(equation, out, name="fc"))
    assert recipes(model, "fc/kernel") == ()


@pytest.mark.parametrize(
    ("layer", "inputs", "path", "shapes"),
    [
        (layers.Dense(3), (8,), "kernel", [(3,)]),
        (layers.Dense(3), (8,), "kernel", [()]),
        (layers.Conv2D(3, 2), (8, 8, 2), "kernel", [(3, 2, 2)]),
        (layers.DepthwiseConv2D(3), (8, 8, 2), "kernel", [(3, 1, 3, 3)]),
        (layers.DepthwiseConv2D(3), (8, 8, 2), "kernel", [(2, 2, 3, 3)]),
        (layers.DepthwiseConv2D(3), (8, 8, 2), "kernel", [()]),
        (layers.PReLU(), (8,), "alpha", [(3,)]),
        (layers.PReLU(), (8,), "alpha", [()]),
        (layers.GRU(3), (5, 2), "gru_cell/kernel", [(10, 2)]),
        (layers.GRU(3), (5, 2), "gru_cell/kernel", [(9,)]),
        (layers.GRU(3), (5, 2), "gru_cell/bias", [(9,), (6,)]),
        (layers.GRU(3), (5, 2), "gru_cell/bias", [(), ()]),
        (layers.LSTM(3), (5, 2), "lstm_cell/kernel", [(12,)]),
        (layers.LSTM(3), (5, 2), "lstm_cell/bias", [(12,), (1,)]),
        (layers.EinsumDense("ab,bc->ac", 3), (8,), "kernel", [(8, 3)]),
    ],
)
def test_shapes_that_cannot_be(layer, inputs, path, shapes):
    layer = type(layer).from_config({**layer.get_config(), "name": "it"})
    model = chain(inputs, layer)
    for recipe in recipes(model, f"it/{path}"):
        with pytest.raises(ValueError):
            recipe.convert(*(np.zeros(shape) for shape in shapes))


def test_attention_of_shapes_that_cannot_be():
    inputs = keras.Input((6, 8))
    outputs = layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    model = keras.Model(inputs, outputs)
    for name, shape in (("kernel", (23, 8)), ("kernel", (48, 4)), ("bias", (12,))):
        with pytest.raises(ValueError):
            recipes(model, f"mha/query/{name}")[0].convert(np.zeros(shape))


def test_what_pytorch_does_not_have():
    model = chain((8,), layers.Normalization(name="norm"), layers.Dense(2, name="fc"))
    assert recipes(model, "norm/mean") == ()


def test_variables_of_the_model_itself():
    layer = layers.Dense(3, name="fc")
    layer.build((None, 8))
    found = recipes(layer, "kernel")
    assert [recipe.sources for recipe in found] == [("weight",)]
