"""Files that are something else, cut short or damaged, or reach outside themselves."""

import pathlib
import shutil
import zipfile

import h5py
import numpy as np
import pytest

import tfdeep
from tests import nets
from tests.checkpoints import files
from tfdeep.errors import (
    CheckpointError,
    CorruptFileError,
    LimitError,
    TfdeepError,
    UnknownFormatError,
    UnsafeFileError,
)


def refused(path, error, *messages):
    """Restoring from `path` fails with `error`, and changes nothing."""
    model = nets.functional()
    before = model.get_weights()
    with pytest.raises(error) as caught:
        tfdeep.restore(model, path)
    for message in (*messages, "nothing was changed"):
        assert message in str(caught.value)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


NOT_WEIGHTS = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello\n" * 100, ""),
    "web page": (b"<!DOCTYPE html><html>404</html>", "it is a web page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "zeros": (bytes(5000), ""),
}


@pytest.mark.parametrize("name", ["net.weights.h5", "net.keras", "net.h5"])
@pytest.mark.parametrize("content", NOT_WEIGHTS)
def test_a_file_that_is_something_else(name, content, tmp_path):
    data, message = NOT_WEIGHTS[content]
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, CorruptFileError, message, name)


def test_a_path_that_does_not_exist(tmp_path):
    refused(tmp_path / "none.weights.h5", UnknownFormatError, "there is no such file")
    refused(tmp_path, UnknownFormatError, "a directory without a checkpoint")
    (tmp_path / "data.bin").write_bytes(b"1234")
    refused(tmp_path / "data.bin", UnknownFormatError, "an unknown kind of file")


def test_a_directory_of_checkpoints_that_no_file_lists(tmp_path):
    for name in ("b.ckpt", "a.ckpt-10"):
        (tmp_path / f"{name}.index").write_bytes(b"")
    refused(
        tmp_path,
        UnknownFormatError,
        "without a file `checkpoint`",
        f"Fix:      pass one of these: {str(tmp_path / 'a.ckpt-10')!r}, "
        f"{str(tmp_path / 'b.ckpt')!r};",
    )
    (tmp_path / "b.ckpt.index").unlink()
    refused(
        tmp_path,
        UnknownFormatError,
        f"Fix:      pass {str(tmp_path / 'a.ckpt-10')!r};",
    )


def every_file(kind, directory):
    """The path to restore from, and the files that hold the data."""
    path = files.WRITERS[kind](nets.functional(), directory)
    if kind == "saved_model":
        data = [pathlib.Path(path) / "variables" / "variables"]
    else:
        data = [pathlib.Path(path)]
    if data[0].is_file():
        return path, data
    return path, sorted(data[0].parent.glob(data[0].name + ".*"))


@pytest.mark.parametrize(
    "kind", ["weights_h5", "keras", "object_checkpoint", "tf1_saver"]
)
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_file_that_is_cut_short(kind, part, tmp_path):
    path, data = every_file(kind, tmp_path)
    for file in data:
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * part)])
        refused(path, CorruptFileError)
        file.write_bytes(whole)
    tfdeep.restore(nets.functional(), path)


@pytest.mark.parametrize("kind", ["keras", "object_checkpoint", "tf1_saver"])
def test_damaged_values_are_found_where_the_format_has_checksums(kind, tmp_path):
    path, data = every_file(kind, tmp_path)
    model = nets.functional()
    report = tfdeep.restore(model, path, dry_run=True)
    assert report.integrity == "verified"
    largest = max(data, key=lambda file: file.stat().st_size)
    whole = bytearray(largest.read_bytes())
    kernel = tfdeep.checkpoints.open(path).read(report.restored[0].source).tobytes()
    at = bytes(whole).find(kernel)
    assert at >= 0
    whole[at + 5] ^= 1
    largest.write_bytes(whole)
    refused(path, CorruptFileError)


@pytest.mark.parametrize(
    "kind", ["weights_h5", "keras", "object_checkpoint", "tf1_saver"]
)
def test_random_damage_gives_one_kind_of_error_or_the_right_values(kind, tmp_path):
    """A short run; a file without checksum may also give other values, unverified."""
    path, data = every_file(kind, tmp_path)
    rng = np.random.default_rng(0)
    right = {v.path: v.numpy() for v in restored(path).weights}
    for _ in range(40):
        file = data[rng.integers(len(data))]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(whole))] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            model = restored(path)
        except TfdeepError:
            continue
        finally:
            file.write_bytes(whole)
        if kind != "weights_h5":
            for variable in model.weights:
                np.testing.assert_array_equal(variable.numpy(), right[variable.path])


def restored(path):
    model = nets.functional()
    tfdeep.restore(model, path)
    return model


class TestHDF5ThatReachesOutside:
    @pytest.fixture
    def path(self, tmp_path):
        return files.weights_h5(nets.functional(), tmp_path)

    @pytest.fixture
    def secret(self, tmp_path):
        path = tmp_path / "secret.bin"
        path.write_bytes(np.float32(np.arange(48)).tobytes())
        return path

    def replace_kernel(self, path, make):
        with h5py.File(path, "a") as file:
            group = file["layers/dense/vars"]
            del group["0"]
            make(group)

    def test_external_storage(self, path, secret):
        self.replace_kernel(
            path,
            lambda group: group.create_dataset(
                "0", (8, 6), "f4", external=[(str(secret), 0, 192)]
            ),
        )
        refused(path, UnsafeFileError, "values kept in another file")

    @pytest.mark.parametrize("link", [h5py.SoftLink("/layers/dense_1/vars/1")])
    def test_soft_link(self, path, link):
        with h5py.File(path, "a") as file:
            file["layers/dense/vars/9"] = link
        with pytest.raises(CheckpointError):
            tfdeep.restore(nets.functional(), path)

    def test_external_link(self, path, tmp_path):
        other = tmp_path / "other.weights.h5"
        shutil.copy(path, other)
        with h5py.File(path, "a") as file:
            del file["layers/dense"]
            file["layers/dense"] = h5py.ExternalLink(str(other), "/layers/dense")
        refused(path, UnsafeFileError, "a link to another place")

    def test_virtual_dataset(self, path, tmp_path):
        other = tmp_path / "other.h5"
        with h5py.File(other, "w") as file:
            file["x"] = np.zeros((8, 6), "f4")
        layout = h5py.VirtualLayout((8, 6), "f4")
        layout[:] = h5py.VirtualSource(str(other), "x", shape=(8, 6))
        self.replace_kernel(
            path, lambda group: group.create_virtual_dataset("0", layout)
        )
        refused(path, UnsafeFileError, "values kept in another file")

    def test_a_huge_declared_shape_is_refused_before_it_is_read(self, path):
        self.replace_kernel(
            path,
            lambda group: group.create_dataset(
                "0", (2**20, 2**20), "f4", chunks=(64, 64)
            ),
        )
        refused(path, LimitError, "tensor_bytes")


class TestArchives:
    def test_without_weights(self, tmp_path):
        path = tmp_path / "net.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
        refused(path, UnknownFormatError, "without one 'model.weights.h5'")

    def test_with_two_members_of_one_name(self, tmp_path):
        path = files.keras_archive(nets.functional(), tmp_path)
        with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as archive:
            archive.writestr("model.weights.h5", b"other")
        refused(path, UnsafeFileError, "two members called")

    def test_with_compressed_weights(self, tmp_path):
        path = files.keras_archive(nets.functional(), tmp_path)
        with zipfile.ZipFile(path) as archive:
            weights = archive.read("model.weights.h5")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model.weights.h5", weights)
        refused(path, UnsafeFileError, "is compressed")


def test_hdf5_of_keras_2_whose_layers_are_not_there(tmp_path):
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"hidden1"]
    refused(path, CorruptFileError, "Keras 1/2 HDF5", "'hidden1' is not there")


def test_weights_without_names_are_named_as_such(tmp_path):
    path = files.weights_h5(nets.functional(), tmp_path)
    with h5py.File(path, "a") as file:
        for group in file["layers"].values():
            group["vars"].attrs.clear()
    refused(path, UnknownFormatError, "a Keras older than 3.6 wrote it")
