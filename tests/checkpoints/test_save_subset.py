"""Writing chosen variables: what is written, who reads it, what a failure leaves."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tests.checkpoints.test_round_trips import MODELS, built, values
from tfdeep.errors import CorruptFileError, InvalidArgumentError

SUFFIXES = [".weights.h5", ".safetensors", ".npz", ".ckpt"]
each_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


@pytest.mark.parametrize(("suffix", "build"), nets.latin(SUFFIXES, MODELS, [0, 1]))
def test_a_part_comes_back_and_no_more(suffix, build, tmp_path):
    written, model = built(build, 1), built(build, 2)
    chosen = "trunk/(lstm|both)" if build == "nested" else "lstm|both"
    path = tmp_path / f"part{suffix}"
    report = tfdeep.save_subset(written, path, include=chosen)
    assert len(report.saved) == 9
    with tfdeep.checkpoints.open(path) as reader:
        assert len(reader.variables) == 9
        assert reader.integrity == "verified"
    before = values(model)
    restored = tfdeep.restore(model, path, include=chosen)
    assert tuple(match.path for match in restored.restored) == report.saved
    wanted = values(written)
    for name, value in values(model).items():
        expected = wanted if name in report.saved else before
        assert value.tobytes() == expected[name].tobytes()


def test_keras_reads_the_weights_of_the_same_layers(tmp_path):
    written = nets.functional()
    path = tmp_path / "part.weights.h5"
    tfdeep.save_subset(written, path, include="hidden[23]")
    inputs = x = keras.Input((6,))
    for name in ("hidden2", "hidden3"):
        x = layers.Dense(6, activation="relu", name=name)(x)
    part = keras.Model(inputs, x)
    part.load_weights(path)
    for name in ("hidden2", "hidden3"):
        np.testing.assert_array_equal(
            part.get_layer(name).kernel, written.get_layer(name).kernel
        )


def test_others_read_what_it_wrote(tmp_path):
    from safetensors.numpy import load_file

    model = nets.functional()
    wanted = values(model)
    for suffix in (".safetensors", ".npz", ".ckpt"):
        tfdeep.save_subset(model, tmp_path / f"net{suffix}", include="hidden1")
    checkpoint = tf.train.load_checkpoint(str(tmp_path / "net.ckpt"))
    for found in (
        load_file(tmp_path / "net.safetensors"),
        dict(np.load(tmp_path / "net.npz")),
        {name: checkpoint.get_tensor(name) for name in wanted if "hidden1" in name},
    ):
        assert sorted(found) == ["hidden1/bias", "hidden1/kernel"]
        for name, value in found.items():
            np.testing.assert_array_equal(value, wanted[name])


def test_a_half_precision_model(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype="bfloat16")])
    for suffix in (".weights.h5", ".safetensors", ".ckpt"):
        path = tmp_path / f"net{suffix}"
        tfdeep.save_subset(model, path)
        assert tfdeep.checkpoints.compare(model, path).is_equal
    with pytest.raises(InvalidArgumentError, match="bfloat16"):
        tfdeep.save_subset(model, tmp_path / "net.npz")


def test_a_part_of_a_layer_does_not_go_into_keras_weights(tmp_path):
    with pytest.raises(InvalidArgumentError, match="whole layers"):
        tfdeep.save_subset(nets.functional(), tmp_path / "a.weights.h5", ".*/kernel")
    assert os.listdir(tmp_path) == []


def test_a_suffix_that_is_none_of_these(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"\.safetensors"):
        tfdeep.save_subset(nets.functional(), tmp_path / "net.bin")


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.weights.h5"])
def test_a_directory_that_is_missing_is_named(name, tmp_path):
    directory = tmp_path / "no" / "such"
    with pytest.raises(FileNotFoundError) as error:
        tfdeep.save_subset(nets.functional(), directory / name)
    assert f"Received: {str(directory / name)!r}" in str(error.value)
    assert f"Fix:      make the directory {str(directory)!r}" in str(error.value)
    assert os.listdir(tmp_path) == []


def test_one_variable_is_no_plural(tmp_path):
    report = tfdeep.save_subset(nets.functional(), tmp_path / "a.npz", "hidden1/bias")
    assert str(report).startswith("Saved 1 variable to")


@each_suffix
def test_damage_is_found(suffix, tmp_path):
    model = nets.functional()
    path = tmp_path / f"net{suffix}"
    tfdeep.save_subset(model, path)
    kernel = model.get_layer("hidden2").kernel.numpy().tobytes()
    (file,) = [path] if path.is_file() else path.glob("*.data-*")
    content = file.read_bytes()
    place = content.index(kernel)
    damaged = bytearray(content)
    damaged[place + 5] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(CorruptFileError):
        tfdeep.restore(model, path)


@each_suffix
@pytest.mark.parametrize("fails", ["os.replace", "os.fsync"])
def test_a_failure_leaves_what_was_there(suffix, fails, tmp_path, monkeypatch):
    old, new = built("sequential", 1), built("sequential", 2)
    path = tmp_path / f"net{suffix}"
    tfdeep.save_subset(old, path)
    there = sorted(os.listdir(tmp_path))

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, fail)
    with pytest.raises(OSError, match="No space"):
        tfdeep.save_subset(new, path)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == there
    assert tfdeep.checkpoints.compare(old, path).is_equal


@each_suffix
def test_saving_again_replaces_and_leaves_nothing_behind(suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    for seed in (1, 2, 3):
        model = built("sequential", seed)
        tfdeep.save_subset(model, path)
        assert tfdeep.checkpoints.compare(model, path).is_equal
    assert os.listdir(tmp_path) == [path.name]
    if path.is_dir():
        assert len(os.listdir(path)) == 3


class Named(layers.Layer):
    """A layer whose weight may have any name."""

    def __init__(self, weight, **arguments):
        super().__init__(**arguments)
        self.weight = weight

    def build(self, shape):
        self.w = self.add_weight(shape=shape[1:], name=self.weight)

    def call(self, x):
        return x * self.w


class Converted(Named):
    """A layer that saves something else than its weight."""

    def save_own_variables(self, store):
        store["weights"] = self.w.numpy()


def of(model_class, *arguments):
    return keras.Sequential([keras.Input((3,)), model_class(*arguments, name="own")])


def test_a_weight_that_keras_saves_otherwise_is_not_left_out(tmp_path):
    with pytest.raises(InvalidArgumentError, match="own/w"):
        tfdeep.save_subset(of(Converted, "w"), tmp_path / "net.weights.h5")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["file", "allow_pickle"])
def test_names_of_numpy_are_names_like_others(name, tmp_path):
    class Model(keras.Model):
        def build(self, shape):
            self.w = self.add_weight(shape=(3,), name=name)

        def call(self, x):
            return x * self.w

    model = Model()
    model(np.ones((1, 3)))
    tfdeep.save_subset(model, tmp_path / "net.npz")
    assert tfdeep.checkpoints.compare(model, tmp_path / "net.npz").is_equal


def test_keras_reads_a_part_of_any_list_of_layers(tmp_path):
    class Blocks(keras.Model):
        def __init__(self, names):
            super().__init__()
            self.blocks = [layers.Dense(3, name=name) for name in names]

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    written, part = Blocks("abcd"), Blocks("cd")
    for model in (written, part):
        model(np.ones((1, 3)))
    path = tmp_path / "part.weights.h5"
    tfdeep.save_subset(written, path, include="[cd]")
    part.load_weights(path)
    for block, other in zip(part.blocks, written.blocks[2:], strict=True):
        np.testing.assert_array_equal(block.kernel, other.kernel)


def test_a_checkpoint_leaves_other_files_alone(tmp_path):
    path = tmp_path / "net.ckpt"
    path.mkdir()
    others = ["weights-10.keras", "weights-2026-notes.txt"]
    for name in others:
        (path / name).write_text("mine")
    for _ in range(2):
        tfdeep.save_subset(nets.functional(), path)
    assert set(others) < set(os.listdir(path))


def test_compare_says_equal_different_and_absent(tmp_path):
    model = nets.functional()
    path = tmp_path / "net.safetensors"
    tfdeep.save_subset(model, path, include="hidden[12]")
    kernel = model.get_layer("hidden1").kernel
    kernel.assign(kernel + 0.5)
    report = tfdeep.checkpoints.compare(model, path, include="hidden[123]")
    state = {entry.path: entry.state for entry in report.variables}
    assert state == {
        "hidden1/kernel": "different",
        "hidden1/bias": "equal",
        "hidden2/kernel": "equal",
        "hidden2/bias": "equal",
        "hidden3/kernel": "absent",
        "hidden3/bias": "absent",
    }
    assert report.variables[0].difference == pytest.approx(0.5, rel=1e-6)
    assert not report.is_equal
    assert "3 of 6 variables equal" in str(report)
