"""One small sound file of each format, to be damaged."""

import pathlib
import shutil

import keras
import numpy as np

from tests import nets
from tests.checkpoints import files

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def model():
    keras.utils.set_random_seed(5)
    return nets.functional()


def _copied(name):
    def write(directory):
        source = GOLDENS / name
        return shutil.copy(source, pathlib.Path(directory) / source.name)

    return write


def _written(write):
    return lambda directory: write(model(), directory)


# By format: how to write it, which file of it to damage, whether it has checksums.
FORMATS = {
    "weights_h5": (_written(files.weights_h5), "", False),
    "keras": (_written(files.keras_archive), "", True),
    "legacy_h5": (_copied("tf215/dense_weights.h5"), "", False),
    "tf_v1": (_written(files.tf1_saver_v1), "", True),
    "tf_v2_index": (_written(files.tf1_saver), ".index", True),
    "tf_v2_data": (_written(files.tf1_saver), ".data-00000-of-00001", True),
    "object_based_index": (_written(files.object_checkpoint), ".index", True),
    "torch": (_copied("torch/mlp.pt"), "", True),
    "safetensors": (_written(files.safetensors_by_its_owner), "", False),
    "safetensors_of_tfdeep": (_written(files.subset(".safetensors")), "", True),
    "npz": (_written(files.npz), "", True),
    "compressed_npz": (_written(files.compressed_npz), "", True),
}


def contents(path, limits=None):
    """All values of a file by name, its integrity and its tensors' descriptions."""
    import tfdeep

    with tfdeep.checkpoints.open(path, limits=limits) as reader:
        values = {info.name: reader.read(info.name) for info in reader.variables}
        return values, reader.integrity


def same(one, other):
    """Whether two dictionaries of arrays are equal to the last bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes()
        for name in one
    )
