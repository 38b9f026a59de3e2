"""Files of Keras 1 and 2, and the names that their weights get."""

import pathlib

import h5py
import keras
import numpy as np
import pytest
from keras import layers as keras_layers

import tfdeep
from tests import nets
from tests.checkpoints import legacy
from tfdeep.errors import CorruptFileError, LimitError, UnknownFormatError

F = np.float32


def weights(model):
    """Layers with weights named as Keras 2 did, in a functional model."""
    return {
        layer.name: {
            f"{layer.name}/{weight.name}:0": weight.numpy() for weight in layer.weights
        }
        for layer in model.layers
    }


@pytest.mark.parametrize("is_model", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("as_text", [False, True])
def test_weights_of_keras_2_are_restored_by_name(is_model, parts, as_text, tmp_path):
    keras.utils.set_random_seed(1)
    written, model = nets.functional(), nets.functional()
    path = legacy.write(
        tmp_path / "net.h5", weights(written), None, is_model, parts, as_text
    )
    report = tfdeep.restore(model, path)
    assert report.format == "Keras 1/2 HDF5 (.h5)"
    assert report.integrity == "unverified"
    assert not report.missing and not report.unused
    for a, b in zip(written.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_that_this_keras_writes_as_h5(tmp_path):
    path = tmp_path / "net.h5"
    written, model = nets.functional(), nets.functional()
    written.compile("adam", nets.LOSS)
    written.fit(nets.dataset(), epochs=1, shuffle=False, verbose=0)
    written.save(path)
    report = tfdeep.restore(model, path)
    assert all(name.startswith("optimizer/") for name in report.unused)
    assert report.unused
    for a, b in zip(written.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_layers_within_layers_find_their_place(tmp_path):
    def build():
        inputs = keras.Input((5, 4))
        x = keras_layers.LSTM(3, return_sequences=True, name="lstm")(inputs)
        x = keras_layers.Bidirectional(
            keras_layers.GRU(3, return_sequences=True, name="gru"), name="both"
        )(x)
        x = keras_layers.MultiHeadAttention(2, 4, name="attention")(x, x)
        return keras.Model(inputs, x)

    written, model = build(), build()
    groups = {}
    for layer in written.layers:
        groups[layer.name] = {}
        for weight in layer.weights:
            # Keras 2 put the scope in front, and counted the cells.
            name = weight.path.replace("_cell/", "_cell_7/")
            groups[layer.name][f"{name}:0"] = weight.numpy()
    path = legacy.write(tmp_path / "net.h5", groups)
    report = tfdeep.restore(model, path)
    assert len(report.restored) == len(written.weights) and not report.unused
    for a, b in zip(written.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


NAMES = [
    ("hidden1", ["hidden1/kernel:0"], ["hidden1/kernel"]),
    ("hidden1", ["hidden1/kernel"], ["hidden1/kernel"]),
    ("hidden1", ["dnn/hidden1/kernel:0"], ["hidden1/kernel"]),
    ("hidden1", ["dense_3/kernel:0", "dense_3/bias:0"], None),
    ("a/b", ["a/b/kernel:0"], ["a/b/kernel"]),
    (
        "encoder",
        ["dense/kernel:0", "dense_1/kernel:0"],
        ["encoder/dense/kernel", "encoder/dense_1/kernel"],
    ),
    (
        "encoder",
        ["encoder/dense/kernel:0", "dense_1/kernel:0"],
        ["encoder/dense/kernel", "encoder/dense_1/kernel"],
    ),
    ("lstm", ["lstm/lstm_cell_2/kernel:0"], ["lstm/lstm_cell/kernel"]),
    ("renamed", ["lstm/lstm_cell_2/kernel:0"], ["renamed/lstm_cell/kernel"]),
    (
        "both",
        ["both/forward_gru/gru_cell_4/bias:0", "both/backward_gru/gru_cell_5/bias:0"],
        ["both/forward_gru/gru_cell/bias", "both/backward_gru/gru_cell/bias"],
    ),
    ("block1", ["block1_W_1:0", "block1_b_1:0"], ["block1/kernel", "block1/bias"]),
    ("norm", ["norm_running_std:0"], ["norm/moving_variance"]),
    ("thin", ["thin/depthwise_kernel:0"], ["thin/kernel"]),
    (
        "split",
        ["split/depthwise_kernel:0", "split/pointwise_kernel:0"],
        ["split/depthwise_kernel", "split/pointwise_kernel"],
    ),
    ("odd", ["weight:0", "other:0"], ["odd/weight", "odd/other"]),
    ("twice", ["twice/a:0", "x/twice/a:0"], ["twice/twice/a", "twice/x/twice/a"]),
]


@pytest.mark.parametrize(("layer", "old", "new"), NAMES)
def test_names(layer, old, new, tmp_path):
    if new is None:
        new = [f"{layer}/kernel", f"{layer}/bias"]
    groups = {layer: {name: F([n]) for n, name in enumerate(old)}}
    path = legacy.write(tmp_path / "net.h5", groups)
    with tfdeep.checkpoints.open(path) as reader:
        assert [info.name for info in reader.variables] == new
        for n, name in enumerate(new):
            np.testing.assert_array_equal(reader.read(name), F([n]))


def test_optimizer_and_the_models_own_weights(tmp_path):
    optimizer = {"iteration:0": np.int64(5), "Adam/m/hidden1/kernel:0": F([1, 2])}
    groups = {"hidden1": legacy.dense("hidden1"), "dropout": {}}
    path = legacy.write(tmp_path / "net.h5", groups, optimizer, is_model=True)
    with h5py.File(path, "a") as file:
        group = file["model_weights"].create_group("top_level_model_weights")
        legacy.put_names(group, "weight_names", ["scale:0"], 1, False)
        legacy.put_values(group, "scale:0", F(3))
    with tfdeep.checkpoints.open(path) as reader:
        names = [info.name for info in reader.variables]
        assert names == [
            *("hidden1/kernel", "hidden1/bias", "scale"),
            *("optimizer/iteration", "optimizer/Adam/m/hidden1/kernel"),
        ]
        assert reader.read("optimizer/iteration") == 5
        assert reader.read("scale") == 3
        assert reader.info("scale").layer_variables is None


def test_the_configuration_is_never_read(tmp_path):
    """It may be anything: here, the heap that holds its text is destroyed."""
    groups = {"hidden1": legacy.dense("hidden1")}
    path = legacy.write(tmp_path / "net.h5", groups, is_model=True)
    content = path.read_bytes()
    at = content.find(b'{"class_name"')
    path.write_bytes(content[:at] + b"\xff" * 20 + content[at + 20 :])
    with tfdeep.checkpoints.open(path) as reader:
        assert len(reader.variables) == 2


def damage(path, change):
    with h5py.File(path, "a") as file:
        change(file)


CHANGES = {
    "a layer is not there": lambda file: file.__delitem__("hidden1"),
    "a weight is not there": lambda file: file.__delitem__("hidden1/hidden1/bias:0"),
    "names are numbers": lambda file: file.attrs.__setitem__("layer_names", [1, 2]),
    "a layer twice": lambda file: file.attrs.__setitem__(
        "layer_names", [b"hidden1", b"hidden1"]
    ),
    "a weight twice": lambda file: file["hidden1"].attrs.__setitem__(
        "weight_names", [b"hidden1/bias:0", b"hidden1/bias:0"]
    ),
    "outside the group": lambda file: file["hidden1"].attrs.__setitem__(
        "weight_names", [b"../hidden1/hidden1/bias:0"]
    ),
    "not utf-8": lambda file: file.attrs.__setitem__("layer_names", [b"\xff\xfe"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_lists_that_do_not_fit_the_file(change, tmp_path):
    groups = {"hidden1": legacy.dense("hidden1")}
    path = legacy.write(tmp_path / "net.h5", groups)
    damage(path, CHANGES[change])
    with pytest.raises(CorruptFileError, match="nothing was changed"):
        tfdeep.checkpoints.open(path)


def test_limits(tmp_path):
    groups = {f"layer{n}": legacy.dense(f"layer{n}") for n in range(5)}
    path = legacy.write(tmp_path / "net.h5", groups)
    limits = tfdeep.checkpoints._readers._checks.Limits
    with pytest.raises(LimitError, match="tensors"):
        tfdeep.checkpoints.open(path, limits(tensors=9))
    with pytest.raises(LimitError, match="members"):
        tfdeep.checkpoints.open(path, limits(members=5))
    with pytest.raises(LimitError, match="tensor_bytes"):
        tfdeep.checkpoints.open(path, limits(tensor_bytes=100))
    assert len(tfdeep.checkpoints.open(path, limits(tensors=10)).variables) == 10


def test_each_reader_refuses_the_files_of_the_other(tmp_path):
    from tfdeep.checkpoints._readers._keras import KerasWeightsReader
    from tfdeep.checkpoints._readers._keras_legacy import LegacyKerasReader

    old = legacy.write(tmp_path / "old.h5", {"hidden1": legacy.dense("hidden1")})
    with pytest.raises(UnknownFormatError, match="HDF5 file of Keras 1 or 2"):
        KerasWeightsReader(str(old))
    new = tmp_path / "new.weights.h5"
    nets.functional().save_weights(new)
    with pytest.raises(CorruptFileError, match="layer_names"):
        LegacyKerasReader(str(new))


# What Keras 2.15 itself wrote.

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "tf215"


def dense():
    hidden = [
        keras_layers.Dense(6, activation="elu", name=f"hidden{n}") for n in (1, 2, 3)
    ]
    last = keras_layers.Dense(3, name="outputs")
    return keras.Sequential([keras.Input((8,)), *hidden, last])


def convolutional():
    inputs = keras.Input((8, 8, 3))
    x = keras_layers.Conv2D(4, 3, name="conv1")(inputs)
    x = keras_layers.BatchNormalization(name="norm1")(x)
    x = keras_layers.DepthwiseConv2D(3, name="depthwise1")(x)
    x = keras_layers.SeparableConv2D(5, 2, name="separable1")(x)
    x = keras_layers.BatchNormalization(name="norm2")(keras_layers.ReLU()(x))
    x = keras_layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras_layers.Dense(3, name="outputs")(x))


def recurrent():
    inputs = keras.Input((5, 4))
    x = keras_layers.LSTM(4, return_sequences=True, name="lstm1")(inputs)
    inner = keras_layers.LSTM(3, return_sequences=True, name="lstm")
    x = keras_layers.Bidirectional(inner, name="bidirectional1")(x)
    x = keras_layers.GRU(4, name="gru1")(x)
    return keras.Model(inputs, keras_layers.Dense(3, name="outputs")(x))


def attention():
    inputs = keras.Input((6,), dtype="int32")
    x = keras_layers.Embedding(11, 8, name="embedding1")(inputs)
    x = keras_layers.MultiHeadAttention(2, 4, name="attention1")(x, x)
    x = keras_layers.LayerNormalization(name="norm1")(x)
    x = keras_layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras_layers.Dense(3, name="outputs")(x))


def nested():
    inner = keras.Sequential(
        [
            keras.Input((8,)),
            keras_layers.Dense(6, activation="elu", name="hidden1"),
            keras_layers.BatchNormalization(name="norm1"),
            keras_layers.Dense(6, activation="elu", name="hidden2"),
        ],
        name="features",
    )
    inputs = keras.Input((8,))
    x = keras_layers.Dense(8, activation="elu", name="hidden0")(inputs)
    return keras.Model(inputs, keras_layers.Dense(3, name="outputs")(inner(x)))


BUILDERS = {
    "dense": dense,
    "conv": convolutional,
    "rnn": recurrent,
    "text": attention,
    "nested": nested,
}


@pytest.mark.parametrize("kind", ["weights", "model"])
@pytest.mark.parametrize("name", BUILDERS)
def test_what_keras_2_15_wrote_computes_the_same(name, kind):
    truth = np.load(GOLDENS / f"{name}.npz")
    keras.utils.set_random_seed(1)
    model = BUILDERS[name]()
    report = tfdeep.restore(model, GOLDENS / f"{name}_{kind}.h5")
    assert len(report.restored) == len(model.weights) == len(truth["names"])
    assert all(unused.startswith("optimizer/") for unused in report.unused)
    output = model(truth["probe"], training=False)
    np.testing.assert_allclose(output, truth["output"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["weights", "model"])
@pytest.mark.parametrize("name", [*BUILDERS, "weight_norm"])
def test_the_values_that_keras_2_15_wrote(name, kind):
    truth = np.load(GOLDENS / f"{name}.npz")
    values = [truth[f"value_{n:03d}"] for n in range(len(truth["names"]))]
    with tfdeep.checkpoints.open(GOLDENS / f"{name}_{kind}.h5") as reader:
        found = [i for i in reader.variables if not i.name.startswith("optimizer/")]
        assert len(found) == len(values)
        for info in found:
            read = reader.read(info.name)
            assert any(
                read.dtype == value.dtype and np.array_equal(read, value)
                for value in values
            )


def test_an_archive_of_keras_2_keeps_no_names():
    with pytest.raises(UnknownFormatError, match=r"a Keras older than 3\.6"):
        tfdeep.checkpoints.open(GOLDENS / "dense_model.keras")
