"""Files of `torch.save`, as torch wrote them and as nobody should have."""

import pathlib
import pickletools
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tfdeep.checkpoints._readers import _torch
from tfdeep.checkpoints._readers._checks import Limits
from tfdeep.checkpoints._readers._torch import TorchReader
from tfdeep.errors import (
    CorruptFileError,
    LimitError,
    TfdeepError,
    UnknownFormatError,
    UnsafeFileError,
)

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens" / "torch"
NETS = sorted(
    path.stem for path in GOLDENS.glob("*.npz") if path.stem not in ("values",)
)


def contents(path):
    with TorchReader(str(path)) as reader:
        return {info.name: reader.read(info.name) for info in reader.variables}


class TestFilesOfTorch:
    def test_every_dtype_and_view_has_torchs_values(self):
        expected = np.load(GOLDENS / "values.npz")
        with TorchReader(str(GOLDENS / "values.pt")) as reader:
            assert reader.integrity == "verified"
            assert {info.name for info in reader.variables} == set(expected)
            for info in reader.variables:
                values = reader.read(info.name)
                assert values.flags.c_contiguous
                assert (values.shape, values.dtype.name) == (info.shape, info.dtype)
                if info.name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
                    assert values.dtype == expected[info.name].dtype
                np.testing.assert_array_equal(
                    values.astype(expected[info.name].dtype), expected[info.name]
                )

    def test_bfloat16_is_that_of_ml_dtypes(self):
        assert contents(GOLDENS / "values.pt")["bfloat16"].dtype == ml_dtypes.bfloat16

    def test_a_state_dict_keeps_its_dots(self):
        names = contents(GOLDENS / "resnet.pt")
        assert names["layer1.0.conv1.weight"].shape == (6, 4, 3, 3)
        assert names["layer1.0.downsample.1.running_var"].shape == (6,)
        assert names["bn1.num_batches_tracked"] == 3

    @pytest.mark.parametrize("protocol", [3, 4, 5])
    def test_protocols(self, protocol):
        expected = contents(GOLDENS / "mlp.pt")
        found = contents(GOLDENS / f"mlp_protocol{protocol}.pt")
        assert found.keys() == expected.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name])

    def test_it_has_the_values_of_the_safetensors_file(self):
        from tfdeep.checkpoints._readers._safetensors import SafetensorsReader

        found = contents(GOLDENS / "mlp.pt")
        with SafetensorsReader(str(GOLDENS / "mlp.safetensors")) as reader:
            assert {info.name for info in reader.variables} == found.keys()
            for name, values in found.items():
                np.testing.assert_array_equal(values, reader.read(name))

    def test_what_a_training_script_keeps(self):
        found = contents(GOLDENS / "nested.pt")
        for name, values in contents(GOLDENS / "mlp.pt").items():
            np.testing.assert_array_equal(found[f"model/{name}"], values)
        assert found["optimizer/state/0/exp_avg"].shape == (6, 8)
        assert found["optimizer/state/0/step"] == 1
        assert found["history/2/loss"] == 0.25
        others = {name.split("/")[0] for name in found}
        assert others == {"model", "optimizer", "history"}

    def test_a_file_that_is_one_tensor(self):
        assert contents(GOLDENS / "one_tensor.pt")["tensor"].shape == (4, 6)

    def test_a_file_without_checksums_is_unverified(self):
        with TorchReader(str(GOLDENS / "without_checksum.pt")) as reader:
            assert reader.integrity == "unverified"
            assert reader.read("w").sum() == 276

    @pytest.mark.parametrize("net", NETS)
    def test_every_net_is_verified(self, net):
        with TorchReader(str(GOLDENS / f"{net}.pt")) as reader:
            assert reader.integrity == "verified"

    @pytest.mark.parametrize(
        ("name", "error", "message"),
        [
            ("whole_module", UnsafeFileError, "torch.nn.modules.linear.Linear"),
            ("script", UnknownFormatError, "TorchScript"),
        ],
    )
    def test_programs_are_refused(self, name, error, message):
        with pytest.raises(error, match=message) as caught:
            TorchReader(str(GOLDENS / f"{name}.pt"))
        assert "save `model.state_dict()` with torch.save" in str(caught.value)
        assert "nothing was changed" in str(caught.value)

    def test_the_format_of_before_torch_1_6_is_named(self):
        path = str(GOLDENS / "legacy.pt")
        start = pathlib.Path(path).read_bytes()[:8]
        assert _torch.is_legacy_torch(start)
        assert not _torch.is_legacy_torch(b"PK\x03\x04\0\0\0\0")
        error = _torch.legacy_torch_error(path)
        assert isinstance(error, UnknownFormatError)
        assert "torch >= 1.6" in str(error)

    def test_torch_and_pickle_are_not_imported(self):
        source = pathlib.Path(_torch.__file__).read_text()
        assert "import torch" not in source
        assert "import pickle\n" not in source


# An assembler for pickles, to write what no pickler writes.
def text(value):
    value = value.encode()
    return b"X" + struct.pack("<I", len(value)) + value


def number(value):
    content = value.to_bytes(max(1, value.bit_length() // 8 + 1), "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def symbol(name):
    module, _, name = name.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key="0", kind="torch.FloatStorage", count=4, word="storage"):
    parts = (text(word), symbol(kind), text(key), text("cpu"), number(count))
    return b"(" + b"".join(parts) + b"tQ"


def tensor(of=None, offset=0, shape=(2, 2), strides=(2, 1), more=b""):
    hooks = symbol("collections.OrderedDict") + b")R"
    rest = number(offset) + numbers(shape) + numbers(strides) + b"\x89" + hooks + more
    return (
        symbol("torch._utils._rebuild_tensor_v2")
        + b"("
        + (storage() if of is None else of)
        + rest
        + b"tR"
    )


def entries(*pairs):
    """A dictionary of these keys and values, both as opcodes."""
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def call(name, *arguments):
    return symbol(name) + b"(" + b"".join(arguments) + b"tR"


FLOATS = np.arange(4, dtype="float32")


@pytest.fixture
def write(tmp_path):
    def write(pickled, storages=None, protocol=2, end=b".", deflated=(), **members):
        path = tmp_path / "net.pt"
        content = bytes([0x80, protocol]) + pickled + end
        storages = {"0": FLOATS.tobytes()} if storages is None else storages
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", content)
            for name, member in members.items():
                archive.writestr(f"net/{name}", member)
            for key, values in storages.items():
                method = zipfile.ZIP_DEFLATED if key in deflated else zipfile.ZIP_STORED
                archive.writestr(f"net/data/{key}", values, method)
        return str(path)

    return write


def test_the_assembler_writes_what_the_reader_reads(write):
    found = contents(write(entries((text("w"), tensor()))))
    np.testing.assert_array_equal(found["w"], FLOATS.reshape(2, 2))


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


class TestNothingIsRun:
    @pytest.mark.parametrize(
        "name",
        [
            *("os.system", "posix.system", "builtins.eval", "builtins.exec"),
            *("subprocess.Popen", "torch.load", "torch.hub.load", "builtins.getattr"),
            *("torch._utils._rebuild_sparse_tensor", "numpy.load", "runpy.run_path"),
            *("collections.defaultdict", "torch.FloatStorage", "torch.float32"),
        ],
    )
    @pytest.mark.parametrize("is_value", [True, False])
    def test_a_call(self, name, is_value, canary, write):
        command = f"open({str(canary)!r}, 'w')"
        if "system" in name:
            command = f"touch {canary}"
        called = call(name, text(command))
        pickled = entries((text("w"), called)) if is_value else called + b"0" + b"}"
        with pytest.raises(UnsafeFileError, match=name.replace(".", r"\.")):
            TorchReader(write(pickled))

    def test_a_call_whose_name_comes_from_the_stack(self, canary, write):
        name = text("os") + text("system") + b"\x93"
        pickled = name + b"(" + text(f"touch {canary}") + b"tR"
        with pytest.raises(UnsafeFileError, match=r"os\.system"):
            TorchReader(write(pickled, protocol=4))

    @pytest.mark.parametrize(
        "opcodes",
        {
            "NEWOBJ": symbol("subprocess.Popen") + b"(" + text("true") + b"t\x81",
            "NEWOBJ_EX": symbol("subprocess.Popen") + b")}\x92",
            "INST": b"(" + text("true") + b"ios\nsystem\n",
            "OBJ": b"(" + symbol("os.system") + text("true") + b"o",
            "EXT1": b"\x82\x01",
            "PERSID": b"Pstorage\n",
            "POP": b"N0N",
            "DUP": b"N2",
            "INT": b"I1\n",
            "LONG4": b"\x8b\x01\x00\x00\x00\x01",
            "STRING": b"S'a'\n",
            "FROZENSET": b"(N\x91",
            "EMPTY_SET": b"\x8f",
            "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1) + b"a",
            "NEXT_BUFFER": b"\x97",
        }.items(),
        ids=lambda item: item[0],
    )
    def test_an_opcode_that_no_state_dict_needs(self, opcodes, write):
        name, pickled = opcodes
        with pytest.raises(UnsafeFileError, match="Popen|" + name):
            TorchReader(write(pickled, protocol=5))

    @pytest.mark.parametrize(
        "target",
        [
            *(b"}", b"]", b")", symbol("os.environ"), tensor(), text("a")),
            symbol("collections.OrderedDict"),
        ],
    )
    def test_attributes_of_something_odd(self, target, write):
        pickled = target + entries((text("__class__"), text("a"))) + b"b"
        with pytest.raises(UnsafeFileError, match="attributes for"):
            TorchReader(write(pickled))

    def test_attributes_that_are_no_dictionary(self, write):
        pickled = call("collections.OrderedDict") + b"(NNtb"
        with pytest.raises(UnsafeFileError, match="attributes for"):
            TorchReader(write(pickled))

    def test_a_name_that_is_not_called_is_only_a_name(self, canary, write):
        pickled = entries((text("f"), symbol("os.system")), (text("w"), tensor()))
        assert list(contents(write(pickled))) == ["w"]

    @pytest.mark.parametrize(
        "of", [storage(kind="os.system"), storage(kind="torch.QInt8Storage")]
    )
    def test_a_storage_of_another_kind(self, of, write):
        with pytest.raises(UnknownFormatError, match=r"os\.system|QInt8"):
            TorchReader(write(tensor(of)))


DAMAGED = {
    "items of a list": b"](NNu",
    "item of a list": b"]NNs",
    "items of a tensor": tensor() + b"(NNu",
    "an odd number of items": b"}(Nu",
    "a list that is a dictionary": b"}Na",
    "a key twice": entries((text("w"), tensor()), (text("w"), tensor())),
    "a key twice, in two opcodes": b"}" + (text("w") + b"Ns") * 2,
    "1 and True": entries((number(1), b"N"), (b"\x88", b"N")),
    "one name in two ways": entries((text("1"), tensor()), (number(1), tensor())),
    "a list as key": entries((b"]", b"N")),
    "a tuple as key": entries((b")", b"N")),
    "a huge number as key": entries((number(1 << 61), b"N")),
    "no mark": b"t",
    "an unused mark": b"N(N",
    "an empty stack": b"",
    "two values": b"NN",
    "nothing to recall": b"h\x05",
    "nothing to remember": b"q\x00",
    "nothing to append to": b"(Ne",
    "another call": b"]" + b")R",
    "a call without a tuple": symbol("torch.Size") + b"]R",
    "a call with too much": call("torch.Size", b"N", b"N"),
    "a call with too little": call("torch._utils._rebuild_tensor_v2", b"N"),
    "an OrderedDict of something": call("collections.OrderedDict", b"]"),
    "a parameter of nothing": call("torch._utils._rebuild_parameter", b"N\x89}"),
    "no storage": tensor(b"N"),
    "a module for a storage": tensor(storage(word="module")),
    "a storage that is a text": tensor(text("storage") + b"Q"),
    "a storage that is missing": tensor(storage(key="9")),
    "a storage elsewhere": tensor(storage(key="../data.pkl")),
    "a storage that is longer": tensor(storage(count=3), shape=(3,), strides=(1,)),
    "a storage that is shorter": tensor(storage(count=5)),
    "a storage of negative size": tensor(storage(count=-4)),
    "a storage of huge size": tensor(storage(count=1 << 64)),
    "two dtypes": b"(" + tensor() + tensor(storage(kind="torch.IntStorage")) + b"t",
    "a storage without dtype": tensor(
        storage(kind="torch.storage.UntypedStorage", count=16)
    ),
    "out of bounds": tensor(offset=1),
    "out of bounds by shape": tensor(shape=(3, 2)),
    "out of bounds by stride": tensor(strides=(3, 1)),
    "out of bounds, one value": tensor(offset=4, shape=(), strides=()),
    "out of bounds, empty": tensor(offset=5, shape=(0,), strides=(1,)),
    "a negative offset": tensor(offset=-1),
    "a negative stride": tensor(offset=3, strides=(-2, -1)),
    "a negative dimension": tensor(shape=(-2, -2)),
    "fewer strides": tensor(strides=(2,)),
    "a list of strides": tensor(strides=()).replace(numbers(()), b"]", 1),
    "a size that overflows": tensor(shape=(1 << 62, 1 << 62), strides=(0, 0)),
    "a size that overflows, empty": tensor(shape=(0, 1 << 62), strides=(0, 0)),
    "more values than the file": tensor(shape=(1 << 30,), strides=(0,)),
    "a dtype that is none": call(
        "torch._utils._rebuild_tensor_v3",
        *(storage(), number(0), numbers([4]), numbers([1]), b"\x89}", b"N"),
    ),
    "a dtype that is another": call(
        "torch._utils._rebuild_tensor_v3",
        *(storage(), number(0), numbers([4]), numbers([1]), b"\x89}"),
        symbol("torch.uint16"),
    ),
    "deep lists": b"]" * 65 + tensor() + b"a" * 65,
    "a list in itself": b"]q\x00h\x00a",
    "text that is cut short": b"X\xff\xff\xff\x7fabc",
    "an opcode that is none": b"\xff",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_malformed_pickle(name, write):
    with pytest.raises(CorruptFileError) as caught:
        TorchReader(write(DAMAGED[name]))
    assert "nothing was changed" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_pickle_of_another_protocol_or_end(write):
    for end in (b"", b".N", b"..", b"N."):
        with pytest.raises(CorruptFileError):
            TorchReader(write(b"}", end=end))
    with pytest.raises(CorruptFileError):
        TorchReader(write(b"\x80\x02}"))


def test_a_pickle_cut_short_anywhere(write):
    whole = entries((text("w"), tensor()))
    for length in range(len(whole)):
        with pytest.raises(TfdeepError):
            TorchReader(write(whole[:length], end=b""))


def test_views_that_lie_inside(write):
    views = {
        "column": tensor(offset=1, shape=(2,), strides=(2,)),
        "same": tensor(offset=2, shape=(2, 3), strides=(1, 0)),
        "one": tensor(offset=3, shape=(1, 1), strides=(1 << 70, 1 << 70)),
        "scalar": tensor(offset=3, shape=(), strides=()),
        "empty": tensor(offset=4, shape=(3, 0), strides=(1 << 70, 5)),
    }
    path = write(entries(*((text(name), view) for name, view in views.items())))
    found = contents(path)
    np.testing.assert_array_equal(found["column"], [1, 3])
    np.testing.assert_array_equal(found["same"], [[2, 2, 2], [3, 3, 3]])
    np.testing.assert_array_equal(found["one"], [[3]])
    assert found["scalar"].shape == () and found["scalar"] == 3
    assert found["empty"].shape == (3, 0)


def test_values_to_be_negated_later_are_refused(write):
    lazy = tensor(more=entries((text("neg"), b"\x88")))
    with pytest.raises(UnsafeFileError, match="metadata"):
        TorchReader(write(lazy))


def test_lists_that_share_lists_do_not_take_forever(write, monkeypatch):
    doubled = (b"h%c\x86q%c" % (n, n + 1) for n in range(50))
    monkeypatch.setattr(_torch, "_OPCODES", 10_000)
    with pytest.raises(LimitError, match="more values"):
        TorchReader(write(b"]q\x00" + b"".join(doubled)))


class TestArchives:
    def test_a_deflated_storage(self, write):
        path = write(tensor(), {"0": bytes(16)}, deflated=("0",))
        with pytest.raises(UnsafeFileError, match="compressed storage"):
            TorchReader(path)

    def test_damaged_values(self, write):
        path = pathlib.Path(write(tensor()))
        content = bytearray(path.read_bytes())
        content[bytes(content).find(FLOATS.tobytes()) + 6] ^= 1
        path.write_bytes(content)
        with (
            TorchReader(str(path)) as reader,
            pytest.raises(CorruptFileError, match="checksum"),
        ):
            reader.read("tensor")

    def test_a_damaged_pickle(self, write):
        path = pathlib.Path(write(entries((text("weight"), tensor()))))
        path.write_bytes(path.read_bytes().replace(b"weight", b"weighs"))
        with pytest.raises(CorruptFileError, match="checksum"):
            TorchReader(str(path))

    def test_byte_orders(self, write):
        assert contents(write(tensor(), byteorder=b"little"))
        with pytest.raises(UnknownFormatError, match="big-endian"):
            TorchReader(write(tensor(), byteorder=b"big"))
        with pytest.raises(CorruptFileError, match="byteorder"):
            TorchReader(write(tensor(), byteorder=b"middle"))

    def test_another_archive(self, tmp_path):
        path = tmp_path / "other.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/b/data.pkl", b"")
        with pytest.raises(UnknownFormatError, match=r"0 members 'data\.pkl'"):
            TorchReader(str(path))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", b"")
            archive.writestr("b/data.pkl", b"")
        with pytest.raises(UnknownFormatError, match=r"2 members 'data\.pkl'"):
            TorchReader(str(path))

    def test_no_archive(self, tmp_path):
        path = tmp_path / "net.pt"
        path.write_bytes(b"")
        with pytest.raises(CorruptFileError, match="the file is empty"):
            TorchReader(str(path))

    def test_limits(self, write, monkeypatch):
        path = write(entries(*((text(f"{n}"), tensor()) for n in range(5))))
        for name, value in [
            *(("header_bytes", 50), ("tensors", 4), ("rank", 1), ("name_bytes", 0)),
            *(("tensor_bytes", 15), ("total_bytes", 79), ("members", 1)),
        ]:
            with pytest.raises(LimitError, match=name):
                TorchReader(path, Limits(**{name: value}))
        monkeypatch.setattr(_torch, "_OPCODES", 20)
        with pytest.raises(LimitError, match="more opcodes"):
            TorchReader(path)
        monkeypatch.setattr(_torch, "_PICKLE_BYTES", 20)
        with pytest.raises(LimitError, match=r"data\.pkl"):
            TorchReader(path)


@pytest.mark.parametrize("net", ["mlp", "nested", "values"])
def test_random_damage_gives_one_kind_of_error_or_the_right_values(net, tmp_path):
    whole = (GOLDENS / f"{net}.pt").read_bytes()
    right = contents(GOLDENS / f"{net}.pt")
    path = tmp_path / "net.pt"
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged[: rng.choice([len(whole), rng.integers(len(whole))])])
        try:
            found = contents(path)
        except TfdeepError:
            continue
        assert found.keys() == right.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(values, right[name])


def test_random_pickles_give_one_kind_of_error(write):
    """Damage below the checksum, which a hostile file has right."""
    rng = np.random.default_rng(0)
    whole = entries((text("w"), tensor()), (text("v"), tensor(offset=1, shape=(1, 1))))
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(whole))] = rng.integers(256)
        try:
            contents(write(bytes(damaged)))
        except TfdeepError:
            continue


def test_every_known_opcode_is_one_of_pickle():
    names = {opcode.name for opcode in pickletools.opcodes}
    machine = _torch._Machine("", "", {})
    assert set(machine._steps) <= names
