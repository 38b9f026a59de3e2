"""Files in the layout of Keras 1 and 2, written with h5py alone."""

import h5py
import numpy as np


def write(path, layers, optimizer=None, is_model=False, parts=1, as_text=False):
    """Writes a file of weights, or of a whole model.

    Args:
        path: Where to.
        layers: Arrays by the weights' names, by the layers' names.
        optimizer: Arrays by name.
        is_model: Whether to write what `model.save` does.
        parts: Over how many attributes to split the lists of names.
        as_text: Whether names are strings of varying length, which go to the heap.
    """
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if is_model else file
        if is_model:
            file.attrs["model_config"] = '{"class_name": "Functional"}'
            file.attrs["training_config"] = '{"loss": "mse"}'
        root.attrs["keras_version"] = b"2.15.0"
        root.attrs["backend"] = b"tensorflow"
        put_names(root, "layer_names", list(layers), parts, as_text)
        for layer, weights in layers.items():
            group = root.create_group(layer)
            put_names(group, "weight_names", list(weights), parts, as_text)
            for name, values in weights.items():
                put_values(group, name, values)
        if optimizer:
            group = file.create_group("optimizer_weights")
            put_names(group, "weight_names", list(optimizer), parts, as_text)
            for name, values in optimizer.items():
                put_values(group, name, values)
    return path


def put_names(group, key, names, parts, as_text):
    encoded = names if as_text else [name.encode() for name in names]
    if parts == 1:
        group.attrs[key] = encoded
        return
    for number, part in enumerate(np.array_split(np.arange(len(names)), parts)):
        group.attrs[f"{key}{number}"] = [encoded[n] for n in part]


def put_values(group, name, values):
    values = np.asarray(values)
    dataset = group.create_dataset(name, values.shape, values.dtype)
    dataset[...] = values


def dense(name, seed=0, inputs=8, units=6):
    rng = np.random.default_rng(seed)
    return {
        f"{name}/kernel:0": rng.normal(size=(inputs, units)).astype("float32"),
        f"{name}/bias:0": rng.normal(size=units).astype("float32"),
    }
