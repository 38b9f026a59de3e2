"""Files of weights in each format, written by the program that owns the format."""

import inspect
import os
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeep
from tfdeep._keras._variables import model_variables

SAVE_ARGUMENTS = inspect.signature(keras.Model.save_weights).parameters
WRITES_SHARDS = "max_shard_size" in SAVE_ARGUMENTS  # Keras 3.8 does not


def weights_h5(model, directory):
    path = pathlib.Path(directory) / "net.weights.h5"
    model.save_weights(path)
    return path


def keras_archive(model, directory):
    path = pathlib.Path(directory) / "net.keras"
    model.save(path)
    return path


def object_checkpoint(model, directory):
    path = str(pathlib.Path(directory) / "net")
    tf.train.Checkpoint(model=model).write(path)
    return path


def managed_checkpoint(model, directory):
    """A directory with a `checkpoint` file that names the latest."""
    path = str(pathlib.Path(directory) / "managed")
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(model), path, max_to_keep=1
    )
    manager.save()
    return path


def saved_model(model, directory):
    path = str(pathlib.Path(directory) / "saved_model")
    model.export(path, verbose=False)
    return path


def tf1_saver(model, directory, scope=""):
    """What a TF1 program with the same layers' names writes."""
    return _save_in_tf1(model, pathlib.Path(directory) / "tf1.ckpt", scope)


def tf1_saver_v1(model, directory):
    """The single-file format that TF1 wrote before 2016."""
    v1 = tf.compat.v1.train.SaverDef.V1
    path = pathlib.Path(directory) / "old.ckpt"
    return _save_in_tf1(model, path, write_version=v1)


def _save_in_tf1(model, path, scope="", **saver_arguments):
    values = {
        f"{scope}{layer.name}/{weight.name}": weight.numpy()
        for layer in model.layers
        for weight in layer.weights
    }
    return _save_values_in_tf1(values, path, **saver_arguments)


def _save_values_in_tf1(values, path, **saver_arguments):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(name, initializer=value)
            for name, value in values.items()
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables, **saver_arguments)
        saver.save(session, str(path), write_meta_graph=False)
    return str(path)


def subset(suffix):
    """What `tfdeep.save_subset` writes of a whole model."""

    def write(model, directory):
        path = pathlib.Path(directory) / f"subset{suffix}"
        tfdeep.save_subset(model, path)
        return path

    return write


def safetensors_by_its_owner(model, directory):
    """What the package `safetensors` writes, with the model's paths as names."""
    from safetensors.numpy import save_file

    path = pathlib.Path(directory) / "owner.safetensors"
    save_file({v.path: v.variable.numpy() for v in model_variables(model)}, str(path))
    return path


def npz(model, directory):
    path = pathlib.Path(directory) / "net.npz"
    np.savez(path, **{v.path: v.variable.numpy() for v in model_variables(model)})
    return path


def compressed_npz(model, directory):
    path = pathlib.Path(directory) / "small.npz"
    arrays = {v.path: v.variable.numpy() for v in model_variables(model)}
    np.savez_compressed(path, **arrays)
    return path


def sharded_weights(model, directory):
    if not WRITES_SHARDS:
        pytest.skip("this Keras writes no shards")
    path = pathlib.Path(directory) / "net.weights.json"
    model.save_weights(path, max_shard_size=1e-5)
    return path


def tf1_saver_of_paths(model, directory):
    """A TF1 `Saver`, for models of layers within layers."""
    path = pathlib.Path(directory) / "paths.ckpt"
    values = {v.path: v.variable.numpy() for v in model_variables(model)}
    return _save_values_in_tf1(values, path)


WRITERS = {
    "weights_h5": weights_h5,
    "keras": keras_archive,
    "object_checkpoint": object_checkpoint,
    "managed_checkpoint": managed_checkpoint,
    "saved_model": saved_model,
    "tf1_saver": tf1_saver,
    "safetensors": subset(".safetensors"),
    "npz": npz,
}

# Those that keep the names of layers within layers.
NAMED_WRITERS = {
    "weights_h5": weights_h5,
    "sharded_weights": sharded_weights,
    "keras": keras_archive,
    "tf1_saver": tf1_saver_of_paths,
    "safetensors": subset(".safetensors"),
    "safetensors_by_its_owner": safetensors_by_its_owner,
    "npz": npz,
    "compressed_npz": compressed_npz,
    "subset_weights_h5": subset(".weights.h5"),
    "subset_npz": subset(".npz"),
    "subset_checkpoint": subset(".ckpt"),
}


def trained(build):
    """A model with weights, moving averages and optimizer state that say something."""
    from tests import nets

    keras.utils.set_random_seed(11)
    model = build()
    model.compile("adam", nets.LOSS)
    model(nets.examples(16)[0], training=True)
    nets.apply_random_gradients(model.optimizer, model.trainable_variables, steps=2)
    return model


def processor_time():
    """Of this process and its children, in seconds: a busy machine is not a fault."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
