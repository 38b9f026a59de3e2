"""Files of weights in each format, written by the program that owns the format."""

import pathlib

import keras
import tensorflow as tf


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
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(name, initializer=value)
            for name, value in values.items()
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables, **saver_arguments)
        saver.save(session, str(path), write_meta_graph=False)
    return str(path)


WRITERS = {
    "weights_h5": weights_h5,
    "keras": keras_archive,
    "object_checkpoint": object_checkpoint,
    "managed_checkpoint": managed_checkpoint,
    "saved_model": saved_model,
    "tf1_saver": tf1_saver,
}


def trained(build):
    """A model with weights, moving averages and optimizer state that say something."""
    from tests import nets

    keras.utils.set_random_seed(11)
    model = build()
    model.compile("adam", nets.LOSS)
    model.fit(nets.dataset(), epochs=1, shuffle=False, verbose=0)
    return model
