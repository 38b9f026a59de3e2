"""HDF5 files that the library would hang on, allocate for, or follow elsewhere."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest

import tfdeep
from tests import nets
from tests.checkpoints import files, legacy
from tfdeep.checkpoints._readers import _hdf5
from tfdeep.checkpoints._readers._checks import Limits
from tfdeep.errors import (
    CheckpointError,
    CorruptFileError,
    LimitError,
    TfdeepError,
    UnknownFormatError,
    UnsafeFileError,
)

VARIABLES = "layers/dense/vars"


def keras_file(path, make):
    """A file of one layer `hidden1`, whose variables `make` writes."""
    with h5py.File(path, "w") as file:
        group = file.create_group(VARIABLES)
        group.attrs["name"] = "hidden1"
        make(group)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.weights.h5"


def refused(path, error, match=".", **limits):
    with pytest.raises(error, match=match) as caught:
        tfdeep.checkpoints.open(path, Limits(**limits))
    assert "nothing was changed" in str(caught.value)
    assert path.name in str(caught.value)


# Damage.


def zeroed(content, begin):
    return content[:begin] + bytes(64) + content[begin + 64 :]


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_no_damage_makes_it_hang(step, tmp_path):
    """Some blocks of the heap, zeroed, have the library run in circles for ever."""
    layers = {f"hidden{n}": legacy.dense(f"hidden{n}", n) for n in range(6)}
    path = legacy.write(tmp_path / "net.h5", layers, is_model=True, as_text=True)
    content = path.read_bytes()
    right = {}
    with tfdeep.checkpoints.open(path) as reader:
        for info in reader.variables:
            right[info.name] = reader.read(info.name)
    heap = content.find(b"GCOL")
    assert heap > 0
    positions = sorted(
        {
            *range(heap, heap + 1024, 64),
            *range(heap + 1024, heap + 4096, 256),
            *range(0, len(content), len(content) // 40),
        }
    )
    positions = positions[::step]
    assert len(positions) >= 60 // step
    outcomes = []
    for position in positions:
        path.write_bytes(zeroed(content, position))
        start = files.processor_time()
        try:
            with tfdeep.checkpoints.open(path, Limits(seconds=1)) as reader:
                for info in reader.variables:
                    values = reader.read(info.name)
                    assert values.shape == right[info.name].shape
            outcomes.append("read")
        except CheckpointError as error:
            outcomes.append(type(error).__name__)
        assert files.processor_time() - start < 5
    assert "LimitError" in outcomes and "CorruptFileError" in outcomes


def test_a_file_cut_short_anywhere(path, tmp_path):
    files.weights_h5(nets.functional(), tmp_path)
    content = path.read_bytes()
    for size in range(0, len(content), len(content) // 12):
        path.write_bytes(content[:size])
        refused(path, CorruptFileError)


def test_random_damage_of_a_listing_gives_errors_of_tfdeep(path, tmp_path):
    files.weights_h5(nets.functional(), tmp_path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(content)
        for at in rng.integers(len(content), size=8):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        with (
            contextlib.suppress(TfdeepError),
            tfdeep.checkpoints.open(path) as reader,
        ):
            for info in reader.variables:
                reader.read(info.name)


# Bombs.


def test_a_small_file_of_zeros_that_declares_gigabytes(path):
    def make(group):
        group.create_dataset(
            "0", (1 << 30,), "f4", chunks=(1 << 22,), compression="gzip"
        )[:4] = 1

    keras_file(path, make)
    assert path.stat().st_size < 50_000
    refused(path, CorruptFileError, "declares more values than it can hold")


def test_values_that_were_never_written(path):
    keras_file(path, lambda group: group.create_dataset("0", (1 << 30,), "f4"))
    assert path.stat().st_size < 20_000
    refused(path, CorruptFileError, "declares more values than it can hold")


def test_a_chunk_that_is_larger_than_its_values(path):
    """One chunk that unpacks to a gigabyte, for a kilobyte of values."""

    def make(group):
        dataset = group.create_dataset(
            *("0", (256,), "f4"),
            chunks=(1 << 28,),
            maxshape=(None,),
            compression="gzip",
        )
        packed = zlib.compress(bytes(100_000))
        dataset.id.write_direct_chunk((0,), packed)

    keras_file(path, make)
    refused(path, CorruptFileError, "a part of 1073741824 bytes")


def test_more_than_the_limits(path):
    keras_file(path, lambda group: group.create_dataset("0", data=np.zeros(1000)))
    refused(path, LimitError, "tensor_bytes", tensor_bytes=7999)
    refused(path, LimitError, "members", members=3)
    refused(path, LimitError, "tensors", tensors=0)
    assert tfdeep.checkpoints.open(path, Limits(tensor_bytes=8000)).variables


# Elsewhere.


@pytest.mark.parametrize("link", ["soft", "external", "inner external"])
def test_links(link, path, tmp_path):
    other = tmp_path / "other.weights.h5"
    keras_file(other, lambda group: group.create_dataset("0", data=np.ones(3)))

    def make(group):
        if link == "soft":
            group.create_dataset("1", data=np.ones(3))
            group["0"] = h5py.SoftLink(f"/{VARIABLES}/1")
        elif link == "external":
            group["0"] = h5py.ExternalLink(str(other), f"/{VARIABLES}/0")
        else:
            group.file["layers/dense_1"] = h5py.ExternalLink(str(other), "layers")

    keras_file(path, make)
    refused(path, UnsafeFileError, "a link to another place")


def test_storage_in_another_file(path, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(64))
    keras_file(
        path,
        lambda group: group.create_dataset(
            "0", (4,), "f4", external=[(str(secret), 0, 64)]
        ),
    )
    refused(path, UnsafeFileError, "values kept in another file")


def test_virtual_values(path, tmp_path):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.ones(4)
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "x", shape=(4,))
    keras_file(path, lambda group: group.create_virtual_dataset("0", layout))
    refused(path, UnsafeFileError, "values kept in another file")


def test_circles_and_things_in_two_places(path):
    def circle(group):
        group.create_dataset("0", data=np.ones(3))
        group.file["layers/dense/again"] = group.file["layers"]

    keras_file(path, circle)
    refused(path, UnsafeFileError, "one object in two places")

    def twice(group):
        group["1"] = group.create_dataset("0", data=np.ones(3))

    keras_file(path, twice)
    refused(path, UnsafeFileError, "one object in two places")


def test_groups_nested_too_deep(path):
    keras_file(path, lambda group: group.file.create_group("/".join("a" * 64)))
    assert tfdeep.checkpoints.open(path).variables == ()
    keras_file(path, lambda group: group.file.create_group("/".join("a" * 65)))
    refused(path, UnsafeFileError, "nested too deep")


# Kinds of values.


class TestDtypes:
    @pytest.mark.parametrize(
        "dtype",
        [
            *("bool", "i1", "u1", "<i2", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"),
            *(">i2", ">u4", ">i8", ">f2", ">f4", ">f8"),
        ],
    )
    @pytest.mark.parametrize("storage", ["contiguous", "chunked", "compact"])
    def test_read_bit_for_bit(self, dtype, storage, path):
        values = np.arange(35).reshape(5, 7).astype(dtype)
        if dtype == "bool":
            values = np.arange(35).reshape(5, 7) % 2 == 0

        def make(group):
            if storage == "contiguous":
                group.create_dataset("0", data=values)
            elif storage == "chunked":
                group.create_dataset(
                    "0",
                    data=values,
                    chunks=(2, 3),
                    compression="gzip",
                    shuffle=True,
                    fletcher32=True,
                )
            else:
                compact(group, "0", values)

        keras_file(path, make)
        native = values.astype(values.dtype.newbyteorder("<"))
        with tfdeep.checkpoints.open(path) as reader:
            (info,) = reader.variables
            read = reader.read("hidden1/0")
            assert (info.shape, info.dtype) == ((5, 7), native.dtype.name)
        assert read.dtype == native.dtype
        assert read.tobytes() == native.tobytes()

    @pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
    @pytest.mark.parametrize("chunks", [None, (2,)])
    def test_kept_as_bytes(self, name, chunks, path):
        dtype = np.dtype(getattr(ml_dtypes, name))
        values = np.arange(6).astype(dtype)

        def make(group):
            raw = values.view(f"V{dtype.itemsize}")
            group.create_dataset("0", data=raw, chunks=chunks).attrs["dtype"] = name

        keras_file(path, make)
        with tfdeep.checkpoints.open(path) as reader:
            read = reader.read("hidden1/0")
        assert read.dtype == dtype
        assert read.tobytes() == values.tobytes()

    def test_bfloat16_as_keras_writes_it(self, path):
        layer = keras.layers.Dense(3, dtype="bfloat16", name="hidden1")
        model = keras.Sequential([keras.Input((4,)), layer])
        model.save_weights(path)
        with tfdeep.checkpoints.open(path) as reader:
            np.testing.assert_array_equal(
                reader.read("hidden1/0"), np.asarray(layer.kernel.numpy())
            )

    def test_half_of_an_old_file_that_hdf5_describes(self, path):
        """A floating point type of HDF5 itself, with the bits of a bfloat16."""
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_size(2)
        kind.set_ebias(127)
        values = np.arange(6).astype(ml_dtypes.bfloat16)

        def make(group):
            space = h5py.h5s.create_simple((6,))
            dataset = h5py.h5d.create(group.id, b"0", kind, space)
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values.view("u2"), kind)

        keras_file(path, make)
        with tfdeep.checkpoints.open(path) as reader:
            np.testing.assert_array_equal(reader.read("hidden1/0"), values)

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 1, 3)])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_shapes(self, shape, chunked, path):
        values = np.full(shape, 7, "float32")
        if chunked and (not shape or 0 in shape):
            pytest.skip("HDF5 has none")
        keras_file(
            path,
            lambda group: group.create_dataset(
                "0", data=values, chunks=shape if chunked else None
            ),
        )
        with tfdeep.checkpoints.open(path) as reader:
            np.testing.assert_array_equal(reader.read("hidden1/0"), values)

    def test_values_that_were_never_written_are_what_hdf5_says(self, path):
        keras_file(
            path, lambda group: group.create_dataset("0", (5,), "f4", fillvalue=2.5)
        )
        with tfdeep.checkpoints.open(path) as reader:
            np.testing.assert_array_equal(reader.read("hidden1/0"), np.full(5, 2.5))

    @pytest.mark.parametrize("is_large", [False, True])
    def test_many_blocks(self, is_large, path):
        rows = 3_000 if is_large else 30
        values = np.random.default_rng(0).integers(0, 9, (rows, 7001), "int32")
        keras_file(
            path,
            lambda group: group.create_dataset(
                "0", data=values, chunks=(7, 7001), compression=1
            ),
        )
        with tfdeep.checkpoints.open(path) as reader:
            np.testing.assert_array_equal(reader.read("hidden1/0"), values)

    def test_a_bool_that_is_neither(self, path):
        def make(group):
            dataset = group.create_dataset("0", data=np.array([True, False] * 4))
            offsets.append(dataset.id.get_offset())

        offsets = []
        keras_file(path, make)
        content = bytearray(path.read_bytes())
        content[offsets[0]] = 3
        path.write_bytes(content)
        with (
            tfdeep.checkpoints.open(path) as reader,
            pytest.raises(CorruptFileError, match="true or false"),
        ):
            reader.read("hidden1/0")

    STRANGE = {  # noqa: RUF012 - a table
        "text": np.array([b"ab"]),
        "varying text": np.array(["a", "bc"], dtype=h5py.string_dtype()),
        "compound": np.zeros(3, [("a", "f4"), ("b", "i4")]),
        "complex": np.zeros(3, "complex64"),
        "bytes": np.zeros(3, "V4"),
        "enum": np.array([0, 1], h5py.enum_dtype({"A": 0, "B": 1}, "i1")),
        "array": np.zeros(3, [("a", "f4", (2,))]),
    }

    @pytest.mark.parametrize("kind", [*STRANGE, "lists", "reference", "x87"])
    def test_kinds_that_no_weight_has(self, kind, path):
        def make(group):
            if kind == "lists":
                group.create_dataset("0", (2,), h5py.vlen_dtype("f4"))
            elif kind == "reference":
                data = np.array([group.ref], dtype=h5py.ref_dtype)
                group.create_dataset("0", data=data, dtype=h5py.ref_dtype)
            elif kind == "x87":
                group.create_dataset("0", data=np.zeros(3, np.longdouble))
            else:
                values = self.STRANGE[kind]
                group.create_dataset("0", data=values, dtype=values.dtype)

        keras_file(path, make)
        refused(path, UnknownFormatError, "values that cannot be weights")

    def test_no_values_at_all(self, path):
        keras_file(path, lambda group: group.create_dataset("0", data=h5py.Empty("f4")))
        refused(path, CorruptFileError, "has no values")


def compact(group, name, values):
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(values.shape)
    kind = h5py.h5t.py_create(values.dtype, logical=True)
    dataset = h5py.h5d.create(group.id, name.encode(), kind, space, created)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values)


def test_filters_that_would_load_a_plugin(path):
    keras_file(
        path,
        lambda group: group.create_dataset("0", data=np.ones(64), compression="lzf"),
    )
    refused(path, UnsafeFileError, "packed by the filters")

    def unknown(group):
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk((64,))
        created.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((64,))
        h5py.h5d.create(group.id, b"0", h5py.h5t.IEEE_F32LE, space, created)

    keras_file(path, unknown)
    refused(path, UnsafeFileError, "32015")


def test_a_damaged_chunk(path):
    keras_file(
        path,
        lambda group: group.create_dataset(
            "0", data=np.arange(999), chunks=(99,), compression="gzip", fletcher32=True
        ),
    )
    content = bytearray(path.read_bytes())
    at = content.find(b"\x78\x5e")
    content[at + 20 : at + 40] = bytes(20)
    path.write_bytes(content)
    with tfdeep.checkpoints.open(path) as reader, pytest.raises(CorruptFileError):
        reader.read("hidden1/0")


def test_an_hdf5_file_of_something_else(path):
    with h5py.File(path, "w") as file:
        file["data/x"] = np.ones(3)
    refused(path, UnknownFormatError, "not one that Keras writes")


def test_layers_of_one_name_are_told_apart_by_their_place(path):
    def make(group):
        group.create_dataset("0", data=np.ones(3))
        other = group.file.create_group("layers/dense_1/vars")
        other.attrs["name"] = "hidden1"
        other.create_dataset("0", data=np.zeros(3))

    keras_file(path, make)
    with tfdeep.checkpoints.open(path) as reader:
        names = [info.name for info in reader.variables]
    assert names == ["layers/dense/vars/0", "layers/dense_1/vars/0"]


# Checksums.


def test_checksums_of_the_values_are_checked(path):
    values = np.arange(6, dtype=">f4")
    little = zlib.crc32(values.astype("<f4").tobytes())

    def make(group):
        group.create_dataset("0", data=values).attrs["crc32"] = little
        group.create_dataset("1", data=values).attrs["crc32"] = little + 1

    keras_file(path, make)
    with tfdeep.checkpoints.open(path) as reader:
        assert reader.integrity == "verified"
        np.testing.assert_array_equal(reader.read("hidden1/0"), values)
        with pytest.raises(CorruptFileError, match="match its checksum"):
            reader.read("hidden1/1")
    with h5py.File(path, "a") as file:
        del file[VARIABLES]["1"].attrs["crc32"]
    assert tfdeep.checkpoints.open(path).integrity == "unverified"


# Archives and shards.


class TestArchive:
    @pytest.fixture
    def path(self, tmp_path):
        return files.keras_archive(nets.functional(), tmp_path)

    def test_its_checksum_is_checked_before_values_are_used(self, path):
        content = bytearray(path.read_bytes())
        with tfdeep.checkpoints.open(path) as reader:
            kernel = reader.read("hidden1/0").tobytes()
        content[content.find(kernel)] ^= 1
        path.write_bytes(content)
        with tfdeep.checkpoints.open(path) as reader:
            assert len(reader.variables) == 8
            for name in ("outputs/0", "hidden1/0"):
                with pytest.raises(CorruptFileError, match="match its checksum"):
                    reader.read(name)

    def test_compressed_or_twice(self, path):
        with zipfile.ZipFile(path) as archive:
            weights = archive.read("model.weights.h5")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model.weights.h5", weights)
        refused(path, UnsafeFileError, "is compressed")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.weights.h5", weights)
            with pytest.warns(UserWarning):
                archive.writestr("model.weights.h5", weights)
        refused(path, UnsafeFileError, "two members called")

    def test_other_weights(self, path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.npz", b"")
        refused(path, UnknownFormatError, "unpack 'model.weights.npz'")

    def test_weights_that_are_no_hdf5(self, path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.weights.h5", b"hello" * 99)
        refused(path, CorruptFileError, "does not begin like such a file")

    def test_values_outside_the_member(self, path):
        """The end of the HDF5 file is that of the member, not of the archive."""
        with zipfile.ZipFile(path) as archive:
            weights = archive.read("model.weights.h5")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.weights.h5", weights[:-40])
            archive.writestr("more", bytes(9999))
        refused(path, CorruptFileError)


@pytest.mark.skipif(not files.WRITES_SHARDS, reason="this Keras writes no shards")
class TestShards:
    @pytest.fixture
    def model(self):
        return nets.functional()

    @pytest.fixture
    def path(self, model, tmp_path):
        path = tmp_path / "net.weights.json"
        model.save_weights(path, max_shard_size=300 / 2**30)
        assert len(list(tmp_path.glob("net_*.weights.h5"))) >= 3
        return path

    def change(self, path, **weight_map):
        content = json.loads(path.read_text())
        content["weight_map"].update(weight_map)
        path.write_text(json.dumps(content))

    def test_read(self, model, path):
        with tfdeep.checkpoints.open(path) as reader:
            names = {info.name for info in reader.variables}
            for layer in model.layers:
                for n, weight in enumerate(layer.weights):
                    assert f"{layer.name}/{n}" in names
                    read = reader.read(f"{layer.name}/{n}")
                    np.testing.assert_array_equal(read, weight.numpy())
        assert len(names) == 8

    @pytest.mark.parametrize(
        "name", ["../x.h5", "/x.h5", "a/b.h5", "..", "x\\y.h5", "c:x.h5", 3, None]
    )
    def test_files_elsewhere(self, name, path):
        self.change(path, **{"/layers/dense/vars": name})
        refused(path, UnsafeFileError, "not beside it")

    def test_a_shard_that_is_not_there(self, path):
        next(path.parent.glob("net_00001*")).unlink()
        refused(path, CorruptFileError, "is not there")

    def test_a_shard_of_another_model(self, path):
        first, second = sorted(path.parent.glob("net_0000[12]*"))
        shutil.copy(first, second)
        with pytest.raises(CorruptFileError, match="differ"):
            tfdeep.checkpoints.open(path)

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 9999]
    )
    def test_a_list_that_is_none(self, text, path):
        path.write_text(text)
        refused(path, CorruptFileError)


# The child.


def fake_child(tmp_path, monkeypatch, code):
    script = tmp_path / "child.py"
    script.write_text(code)
    monkeypatch.setattr(_hdf5, "_CHILD", str(script))


ANSWERS = {
    "nothing": "",
    "garbage": "print('hello')",
    "a number": "print(3)",
    "no line": "import sys; sys.stdout.write('{}')",
    "no groups": "print('{}')",
    "strange groups": """print('{"groups": 3, "datasets": []}')""",
    "strange fault": """print('{"fault": {"kind": "x", "y": 2}}')""",
    "crash": "import os; os.abort()",
    "memory": "raise MemoryError",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_whatever_the_child_does_is_an_error_about_the_file(
    answer, tmp_path, path, monkeypatch
):
    files.weights_h5(nets.functional(), tmp_path)
    fake_child(tmp_path, monkeypatch, ANSWERS[answer])
    refused(path, CorruptFileError)


SLOW = {
    "start": "time.sleep(4)",
    "disk": (
        "pread = os.pread\n"
        "os.pread = lambda *place: (time.sleep(0.2), pread(*place))[1]"
    ),
    "imports": "while time.process_time() < 4: pass",
}


@pytest.mark.parametrize("what", SLOW)
def test_a_slow_machine_is_not_taken_for_a_bad_file(what, tmp_path, path, monkeypatch):
    """Only processor time counts, and that from when h5py is imported."""
    files.weights_h5(nets.functional(), tmp_path)
    run = f"runpy.run_path({_hdf5._CHILD!r}, run_name='__main__')"
    fake_child(tmp_path, monkeypatch, f"import os, runpy, time\n{SLOW[what]}\n{run}")
    monkeypatch.setattr(_hdf5, "_PATIENCE", 30, raising=False)
    start = time.monotonic()
    with tfdeep.checkpoints.open(path, Limits(seconds=1)) as reader:
        assert len(reader.variables) == 8
    assert time.monotonic() - start > 3.5


def test_progress_keeps_a_child_alive(tmp_path, path, monkeypatch):
    """Every sign of progress starts the clock anew."""
    files.weights_h5(nets.functional(), tmp_path)
    run = f"runpy.run_path({_hdf5._CHILD!r}, run_name='__main__')"
    code = f"import os, runpy, time\n{SLOW['disk']}\n{run}"
    fake_child(tmp_path, monkeypatch, code)
    monkeypatch.setattr(_hdf5, "_PATIENCE", 3)
    start = time.monotonic()
    with tfdeep.checkpoints.open(path) as reader:
        assert len(reader.variables) == 8
    assert time.monotonic() - start > 3.5


@pytest.mark.parametrize("first", ["", """print('{"progress": true}', flush=True)"""])
def test_a_child_that_sleeps_is_ended(first, tmp_path, path, monkeypatch):
    files.weights_h5(nets.functional(), tmp_path)
    fake_child(tmp_path, monkeypatch, f"{first}\nimport time; time.sleep(60)")
    monkeypatch.setattr(_hdf5, "_PATIENCE", 2)
    start = time.monotonic()
    refused(path, LimitError, "no progress for 2 s")
    assert time.monotonic() - start < 30


def test_a_child_that_takes_too_much_processor_time_is_ended(
    tmp_path, path, monkeypatch
):
    files.weights_h5(nets.functional(), tmp_path)
    run = f"runpy.run_path({_hdf5._CHILD!r}, run_name='__main__')"
    endless = (
        "import os, runpy\n"
        "def pread(*place):\n    while True: pass\n"
        f"os.pread = pread\n{run}"
    )
    fake_child(tmp_path, monkeypatch, endless)
    refused(path, LimitError, "at most 1 s of processor time", seconds=1)


def test_a_child_that_never_stops_writing_is_ended(tmp_path, path, monkeypatch):
    files.weights_h5(nets.functional(), tmp_path)
    code = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    fake_child(tmp_path, monkeypatch, code)
    refused(path, CorruptFileError)


def test_without_a_python_to_start(tmp_path, path, monkeypatch):
    files.weights_h5(nets.functional(), tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    refused(path, CheckpointError, "cannot be started")


def test_the_child_needs_neither_tensorflow_nor_tfdeep(tmp_path, path):
    """And it does not look at the environment, or into the working directory."""
    files.weights_h5(nets.functional(), tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    code = (
        "import runpy, sys; sys.argv[1:] = [sys.argv[2]]\n"
        "sys.modules['tensorflow'] = sys.modules['tfdeep'] = None\n"
        f"runpy.run_path({_hdf5._CHILD!r}, run_name='__main__')"
    )
    request = {
        **{"begin": 0, "size": path.stat().st_size, "seconds": 9, "memory": 2 << 30},
        **{"members": 99, "tensors": 99, "paths": list(_hdf5._paths())},
    }
    with path.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, "", json.dumps(request)],
            stdin=file,
            capture_output=True,
            cwd=tmp_path,
            env=_hdf5._environment(),
            check=True,
        )
    progress, answer = map(json.loads, done.stdout.splitlines())
    assert progress == {"progress": True}
    assert len(answer["datasets"]) == 8


def test_a_file_that_changes_while_it_is_read(path, tmp_path):
    model = nets.functional()
    files.weights_h5(model, tmp_path)
    with tfdeep.checkpoints.open(path) as reader:
        reader.read("hidden1/0")
        os.utime(path, (1, 1))
        with pytest.raises(CorruptFileError, match="was changed"):
            reader.read("hidden1/0")


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def children():
    task = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
    return task.read_text().split()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("count", [41, pytest.param(200, marks=pytest.mark.slow)])
def test_nothing_is_left_behind(count, tmp_path, path, monkeypatch):
    """No descriptor, process or temporary file, whether it goes well or not."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    files.weights_h5(nets.functional(), tmp_path)
    whole = path.read_bytes()
    archive = files.keras_archive(nets.functional(), tmp_path)
    before = None
    for n in range(count):
        if n == 1:
            before = open_descriptors(), children()
        path.write_bytes(whole if n % 2 else whole[:3000])
        with (
            contextlib.suppress(CheckpointError),
            tfdeep.checkpoints.open(path) as reader,
        ):
            reader.read("hidden1/0")
        if n % 20 == 0:
            with tfdeep.checkpoints.open(archive) as reader:
                reader.read("hidden1/0")
    assert (open_descriptors(), children()) == before
    assert list(temporary.iterdir()) == []
