"""Files made by hand to mislead, to exhaust or to escape a reader.

`CORPUS` has, by format and name, a function that writes one into a directory
and gives its path. The files are made when they are needed; none is in the tree.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib

import numpy as np

from tests.checkpoints import test_tf_table, test_torch

CORPUS: dict[str, dict[str, object]] = {}


def hostile(kind, suffix, contents):
    """Adds files of one kind from their contents."""

    def writer(name, content):
        def write(directory):
            path = directory / f"hostile{suffix}"
            path.write_bytes(content() if callable(content) else content)
            return path

        return write

    entries = CORPUS.setdefault(kind, {})
    for name, content in contents.items():
        assert name not in entries, name
        entries[name] = writer(name, content)


# safetensors


def safetensors(header, data=b"", length=None):
    """A file from its header, as text or as what JSON makes of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    return (length % 2**64).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def _nested(depth):
    return b'{"a":' * depth + b"1" + b"}" * depth


FOUR = bytes(4)
hostile(
    "safetensors",
    ".safetensors",
    {
        "empty": b"",
        "seven bytes": bytes(7),
        "length zero": bytes(8) + b"{",
        "length one less": safetensors({"a": entry()}, FOUR, length=10),
        "length of the file": (12).to_bytes(8, "little") + b"{}  ",
        "length 2^63": safetensors({"a": entry()}, FOUR, length=2**63),
        "length 2^64 - 1": safetensors({"a": entry()}, FOUR, length=2**64 - 1),
        "length beyond the header limit": lambda: (
            (100_000_001).to_bytes(8, "little") + b"{" + bytes(1000)
        ),
        "no JSON": safetensors(b"{nonsense", FOUR),
        "a list": safetensors(b"[1, 2]", FOUR),
        "a number": safetensors(b"{1}", FOUR),
        "cut JSON": safetensors(b'{"a": {"dtype": "F32"', FOUR),
        "not UTF-8": safetensors(b'{"\xff\xfe": 1}', FOUR),
        "a byte order mark": safetensors(b"\xef\xbb\xbf{}", FOUR),
        "white space in front": safetensors(b"  {}", b""),
        "trailing text": safetensors(b"{} {}", b""),
        "nested deep": lambda: safetensors(_nested(50_000)),
        "nested lists": lambda: safetensors(b'{"a":' + b"[" * 90_000 + b"}"),
        "a key twice": safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            FOUR,
        ),
        "a key twice within": safetensors(
            b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
            FOUR,
        ),
        "no dtype": safetensors({"a": {"shape": [1], "data_offsets": [0, 4]}}, FOUR),
        "no shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, FOUR),
        "no offsets": safetensors({"a": {"dtype": "F32", "shape": [1]}}, FOUR),
        "an entry more": safetensors({"a": entry(code="import os")}, FOUR),
        "an entry is text": safetensors({"a": "F32"}, FOUR),
        "an entry is a list": safetensors({"a": [1]}, FOUR),
        "an entry is null": safetensors({"a": None}, FOUR),
        "unknown dtype": safetensors({"a": entry("F31")}, FOUR),
        "dtype object": safetensors({"a": entry("O")}, FOUR),
        "dtype a number": safetensors({"a": entry(7)}, FOUR),
        "dtype a list": safetensors({"a": entry(["F32"])}, FOUR),
        "dtype of code": safetensors({"a": entry("__import__('os')")}, FOUR),
        "dtype with NUL": safetensors({"a": entry("F32\0")}, FOUR),
        "shape text": safetensors({"a": entry() | {"shape": "1"}}, FOUR),
        "shape a number": safetensors({"a": entry() | {"shape": 1}}, FOUR),
        "shape negative": safetensors({"a": entry(shape=(-1,))}, FOUR),
        "shape twice negative": safetensors({"a": entry(shape=(-1, -1))}, FOUR),
        "shape of fractions": safetensors({"a": entry(shape=(1.0,))}, FOUR),
        "shape of true": safetensors({"a": entry(shape=(True,))}, FOUR),
        "shape of text": safetensors({"a": entry(shape=("1",))}, FOUR),
        "shape null": safetensors({"a": entry() | {"shape": None}}, FOUR),
        "shape overflows": safetensors({"a": entry(shape=(2**33, 2**33))}, FOUR),
        "shape overflows to four bytes": safetensors(
            {"a": entry(shape=(2**62, 4, 2**62))}, FOUR
        ),
        "shape of 2^70": safetensors({"a": entry(shape=(2**70,))}, FOUR),
        "shape of zero times infinity": safetensors(
            {"a": entry(shape=(0, 2**63), offsets=(0, 0))}
        ),
        "rank 33": safetensors({"a": entry(shape=(1,) * 33)}, FOUR),
        "rank 100000": lambda: safetensors({"a": entry(shape=(1,) * 100_000)}, FOUR),
        "four terabytes": safetensors(
            {"a": entry(shape=(2**40,), offsets=(0, 2**42))}, FOUR
        ),
        "sixteen gigabytes": safetensors(
            {"a": entry(shape=(2**32,), offsets=(0, 2**34))}, FOUR
        ),
        "offsets swapped": safetensors({"a": entry(offsets=(4, 0))}, FOUR),
        "offsets negative": safetensors({"a": entry(offsets=(-4, 0))}, FOUR),
        "offsets beyond the end": safetensors({"a": entry(offsets=(4, 8))}, FOUR),
        "one offset": safetensors({"a": entry(offsets=(4,))}, FOUR),
        "three offsets": safetensors({"a": entry(offsets=(0, 2, 4))}, FOUR),
        "offsets text": safetensors({"a": entry() | {"data_offsets": "04"}}, FOUR),
        "offsets of fractions": safetensors({"a": entry(offsets=(0.0, 4.0))}, FOUR),
        "offsets of 2^80": safetensors({"a": entry(offsets=(2**80, 2**80 + 4))}, FOUR),
        "offsets that do not fit the shape": safetensors(
            {"a": entry(shape=(2,), offsets=(0, 4))}, FOUR
        ),
        "overlap": safetensors({"a": entry(), "b": entry()}, FOUR),
        "overlap in part": safetensors(
            {"a": entry(offsets=(0, 4)), "b": entry(offsets=(2, 6))}, bytes(6)
        ),
        "a hole": safetensors({"a": entry(offsets=(4, 8))}, bytes(8)),
        "a tail": safetensors({"a": entry()}, bytes(5)),
        "cut data": safetensors({"a": entry()}, bytes(3)),
        "no data": safetensors({"a": entry()}),
        "metadata a number": safetensors({"__metadata__": 3, "a": entry()}, FOUR),
        "metadata of numbers": safetensors(
            {"__metadata__": {"x": 3}, "a": entry()}, FOUR
        ),
        "checksums no JSON": safetensors(
            {"__metadata__": {"tfdeep.crc32": "x"}, "a": entry()}, FOUR
        ),
        "checksums a list": safetensors(
            {"__metadata__": {"tfdeep.crc32": "[1]"}, "a": entry()}, FOUR
        ),
        "checksums of others": safetensors(
            {"__metadata__": {"tfdeep.crc32": '{"b": 1}'}, "a": entry()}, FOUR
        ),
        "a wrong checksum": safetensors(
            {"__metadata__": {"tfdeep.crc32": '{"a": 1}'}, "a": entry()}, FOUR
        ),
        "a checksum of text": safetensors(
            {"__metadata__": {"tfdeep.crc32": '{"a": "x"}'}, "a": entry()}, FOUR
        ),
        "an empty name": safetensors({"": entry()}, FOUR),
        "a name with NUL": safetensors({"a\0b": entry()}, FOUR),
        "a name of half a character": safetensors(
            b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR
        ),
        "a long name": lambda: safetensors({"a" * 5000: entry()}, FOUR),
        "many tensors of nothing": lambda: safetensors(
            {str(i): entry(shape=(0,), offsets=(0, 0)) for i in range(1_000_001)}
        ),
        "numbers without end": lambda: safetensors(
            b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b"]}}", FOUR
        ),
        "infinite numbers": safetensors(
            b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', FOUR
        ),
        "not a number": safetensors(
            b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', FOUR
        ),
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:",
        "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
        "a pickle": b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix.",
    },
)


# zip and npz


def npy(shape="(1,)", descr="'<f4'", order="False", data=FOUR, version=b"\x01\x00"):
    """An array's member, its header given as text."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    return npy_of(header.encode("latin1"), data, version)


def npy_of(header, data=FOUR, version=b"\x01\x00", length=None):
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    size = 2 if version[0] == 1 else 4
    length = len(header) if length is None else length
    return b"\x93NUMPY" + version + length.to_bytes(size, "little") + header + data


def archive(members, method=zipfile.ZIP_STORED):
    """An archive of (name, content) pairs."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as target:
        for name, content in members:
            target.writestr(name, content)
    return file.getvalue()


def one(content, name="a.npy", **arguments):
    return archive([(name, content)], **arguments)


def central(content, **fields):
    """An archive with numbers in its table of contents changed, in the first entry.

    Fields: their offset in the entry is in `_CENTRAL`.
    """
    data = bytearray(content)
    place = data.index(b"PK\x01\x02")
    for field, value in fields.items():
        offset, kind = _CENTRAL[field]
        struct.pack_into(kind, data, place + offset, value)
    return bytes(data)


_CENTRAL = {
    "flags": (8, "<H"),
    "method": (10, "<H"),
    "crc": (16, "<I"),
    "compressed": (20, "<I"),
    "size": (24, "<I"),
    "name_length": (28, "<H"),
    "extra_length": (30, "<H"),
    "disk": (34, "<H"),
    "offset": (42, "<I"),
}


def end(content, **fields):
    data = bytearray(content)
    place = data.rindex(b"PK\x05\x06")
    offsets = {"entries": (10, "<H"), "size": (12, "<I"), "offset": (16, "<I")}
    for field, value in fields.items():
        offset, kind = offsets[field]
        struct.pack_into(kind, data, place + offset, value)
    return bytes(data)


def overlapping(count=50, size=100_000):
    """Many entries of the table that all mean the same compressed bytes."""
    content = one(npy(f"({size},)", data=bytes(4 * size)), method=zipfile.ZIP_DEFLATED)
    begin, last = content.index(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
    first = content[begin:last]
    table = b"".join(
        first.replace(b"a.npy", f"{i:05}"[:5].encode()) for i in range(count)
    )
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(table), begin, 0)
    return content[:begin] + table + tail


def bomb():
    """Four gigabytes of zeros in four megabytes."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    block, size = bytes(1 << 24), 1 << 32
    header = npy(f"({size // 4},)", data=b"")
    packed = pack.compress(header) + pack.flush(zlib.Z_FULL_FLUSH)
    # After a full flush a block does not refer to what stands before it.
    packed += (pack.compress(block) + pack.flush(zlib.Z_FULL_FLUSH)) * (size >> 24)
    packed += pack.flush()
    crc = zlib.crc32(header)
    for _ in range(size >> 24):
        crc = zlib.crc32(block, crc)
    total = (len(header) + size) & 0xFFFFFFFF
    local = struct.pack(
        "<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(packed), total, 5, 0
    )
    entry_ = struct.pack(
        "<4s6H3I5H2I",
        *(b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(packed), total),
        *(5, 0, 0, 0, 0, 0, 0),
    )
    content = local + b"a.npy" + packed
    table = entry_ + b"a.npy"
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(table), len(content), 0)
    return content + table + tail


SOUND = one(npy())
hostile(
    "npz",
    ".npz",
    {
        "empty": b"",
        "only a signature": b"PK\x03\x04",
        "only an end": b"PK\x05\x06" + bytes(18),
        "no array": one(b"text", name="a.txt"),
        "no magic": one(b"NUMPY" + bytes(100)),
        "version 9": one(npy(version=b"\x09\x00")),
        "version 3": one(npy(version=b"\x03\x00")),
        "header cut": one(npy()[:20]),
        "header longer than the member": one(npy_of(b"{}", length=60_000)),
        "header of 100 kB": lambda: one(npy_of(b"{" + b" " * 50_000 + b"}")),
        "header is code": one(npy_of(b"__import__('os').system('true')")),
        "header is a call": one(npy_of(b"{'descr': str(), 'shape': (1,)}")),
        "header is a list": one(npy_of(b"[1, 2]")),
        "header is no Python": one(npy_of(b"{{{")),
        "header lacks the shape": one(npy_of(b"{'descr': '<f4'}")),
        "header has a key more": one(
            npy_of(b"{'descr':'<f4','fortran_order':False,'shape':(1,),'x':1}")
        ),
        "header nested deep": lambda: one(npy_of(b"(" * 5000 + b")" * 5000)),
        "objects": one(npy(descr="'|O'", data=b"\x80\x04N.")),
        "objects that are a pickle": one(
            npy(descr="'|O'", data=b"cos\nsystem\n(S'true'\ntR.")
        ),
        "records": one(npy(descr="[('a', '<f4')]")),
        "records of objects": one(npy(descr="[('a', '|O')]")),
        "records in records": one(npy(descr="[('a', [('b', '<f4')])]")),
        "text": one(npy(descr="'<U1'")),
        "bytes": one(npy(descr="'|S4'")),
        "dates": one(npy(descr="'<M8[s]'", data=bytes(8))),
        "void": one(npy(descr="'|V4'")),
        "long doubles": one(npy(descr="'<f16'", data=bytes(16))),
        "unknown dtype": one(npy(descr="'<q9'")),
        "dtype a number": one(npy(descr="7")),
        "shape negative": one(npy("(-1,)")),
        "shape overflows": one(npy("(8589934592, 8589934592)")),
        "shape of 2^70": one(npy(f"({2**70},)")),
        "shape of four terabytes": one(npy("(1099511627776,)")),
        "shape of eight gigabytes": one(npy("(2147483648,)")),
        "shape of text": one(npy("('1',)")),
        "shape of fractions": one(npy("(1.0,)")),
        "shape a number": one(npy("1")),
        "shape of true": one(npy("(True,)")),
        "rank 65": one(npy("(" + "1," * 65 + ")")),
        "rank 33": one(npy("(" + "1," * 33 + ")")),
        "zero times infinity": one(npy("(0, 9223372036854775807, 2)", data=b"")),
        "too little data": one(npy("(2,)")),
        "too much data": one(npy("(1,)", data=bytes(8))),
        "order a number": one(npy(order="3")),
        "a member twice": lambda: _twice("a.npy"),
        "a name twice, with and without suffix": archive(
            [("a.npy", npy()), ("a.npy.npy", npy()), ("b", b"")]
        ),
        "an absolute name": central(one(npy(), name="/etc/passwd.txt")),
        "a name of two dots": one(npy(), name="../../a"),
        "a member that is a directory": archive([("a/", b"")]),
        "a name with NUL": one(npy(), name="a.npy").replace(b"a.npy", b"a\0npy"),
        "a wrong CRC": central(SOUND, crc=1),
        "encrypted": central(SOUND, flags=1),
        "strongly encrypted": central(SOUND, flags=0x41),
        "method 99": central(SOUND, method=99),
        "bzip2": one(npy(), method=zipfile.ZIP_BZIP2),
        "lzma": one(npy(), method=zipfile.ZIP_LZMA),
        "size 0": central(SOUND, size=0),
        "size 4 GB": central(SOUND, size=2**32 - 2),
        "stored 4 GB": central(SOUND, compressed=2**32 - 2, size=2**32 - 2),
        "stored less than its size": central(SOUND, compressed=1),
        "begins behind the end": central(SOUND, offset=2**31),
        "begins at the table": lambda: central(SOUND, offset=SOUND.index(b"PK\1\2")),
        "begins in the middle": central(SOUND, offset=7),
        "another disk": central(SOUND, disk=7),
        "claims 65535 members": end(SOUND, entries=65_535),
        "claims no members": end(SOUND, entries=0),
        "the table begins behind the end": end(SOUND, offset=2**31),
        "the table is longer than the file": end(SOUND, size=2**31),
        "cut in the middle": SOUND[: len(SOUND) // 2],
        "cut in the end record": SOUND[:-5],
        "the table missing": SOUND[: SOUND.index(b"PK\1\2")],
        "fifty names for one compressed member": overlapping,
        "a bomb of four gigabytes": bomb,
        "deflated nonsense": lambda: central(SOUND, method=8),
        "100001 members": lambda: archive([(f"{i}", b"") for i in range(100_001)]),
    },
)


def _twice(name):
    file = io.BytesIO()
    import warnings

    with zipfile.ZipFile(file, "w") as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target.writestr(name, npy())
        target.writestr(name, npy(data=np.ones(1, "<f4").tobytes()))
    return file.getvalue()


# Archives that should be a Keras model

hostile(
    "keras",
    ".keras",
    {
        "no weights": one(b"{}", name="config.json"),
        "weights are no HDF5": one(b"text" * 30, name="model.weights.h5"),
        "weights are empty": one(b"", name="model.weights.h5"),
        "weights compressed": one(
            bytes(1000), name="model.weights.h5", method=zipfile.ZIP_DEFLATED
        ),
        "weights twice": lambda: _twice("model.weights.h5"),
        "weights encrypted": central(one(bytes(99), name="model.weights.h5"), flags=1),
        "weights of 4 GB": central(
            one(bytes(99), name="model.weights.h5"), size=2**32 - 2
        ),
        "weights begin elsewhere": central(
            one(bytes(99), name="model.weights.h5"), offset=3
        ),
        "weights with a wrong CRC": central(
            one(bytes(99), name="model.weights.h5"), crc=3
        ),
        "weights in a directory above": one(bytes(99), name="../model.weights.h5"),
        "a signature and nothing more": one(
            b"\x89HDF\r\n\x1a\n", name="model.weights.h5"
        ),
        "a signature and zeros": one(
            b"\x89HDF\r\n\x1a\n" + bytes(2000), name="model.weights.h5"
        ),
        "a signature and ones": one(
            b"\x89HDF\r\n\x1a\n" + b"\xff" * 2000, name="model.weights.h5"
        ),
        "cut": one(bytes(99), name="model.weights.h5")[:-30],
        "empty": b"",
        "only an end": b"PK\x05\x06" + bytes(18),
        "weights of NumPy": one(SOUND, name="model.weights.npz"),
        "method 99": central(one(bytes(99), name="model.weights.h5"), method=99),
        "a web page": b"<html>404</html>",
    },
)


# Lists of shards


_MAPS = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "no map": b"{}",
    "the map a list": b'{"weight_map": []}',
    "the map text": b'{"weight_map": "x"}',
    "a file a number": b'{"weight_map": {"a": 3}}',
    "a file above": b'{"weight_map": {"a": "../secret"}}',
    "a file far above": b'{"weight_map": {"a": "../../../../etc/passwd"}}',
    "an absolute file": b'{"weight_map": {"a": "/etc/passwd"}}',
    "a file in a directory": b'{"weight_map": {"a": "x/y"}}',
    "a file of another system": b'{"weight_map": {"a": "C:\\\\secret"}}',
    "the directory itself": b'{"weight_map": {"a": "."}}',
    "the directory above": b'{"weight_map": {"a": ".."}}',
    "no name": b'{"weight_map": {"a": ""}}',
    "a name with NUL": b'{"weight_map": {"a": "x\\u0000y"}}',
    "a URL": b'{"weight_map": {"a": "http://localhost/x"}}',
    "a file that is missing": b'{"weight_map": {"a": "missing.safetensors"}}',
    "a key twice": b'{"weight_map": {"a": "x"}, "weight_map": {"a": "y"}}',
    "nested deep": b'{"weight_map":' * 20_000 + b"1" + b"}" * 20_000,
    "not UTF-8": b'{"weight_map": {"\xff": "x"}}',
    "a very long name": b'{"weight_map": {"a": "' + b"x" * 100_000 + b'"}}',
}
hostile("safetensors index", ".safetensors.index.json", _MAPS)
hostile("keras shards", ".weights.json", _MAPS)


# TensorFlow checkpoints and pickles, whose makers stand beside the tests of the readers


def _tf_index(make):
    return lambda directory: test_tf_table.written(make(), directory)


def _pickle(content):
    def write(directory):
        path = directory / "net.pt"
        with zipfile.ZipFile(path, "w") as target:
            target.writestr("net/data.pkl", b"\x80\x02" + content + b".")
            target.writestr("net/data/0", bytes(16))
        return path

    return write


_TF = test_tf_table.HOSTILE | test_tf_table.UNKNOWN | test_tf_table.TOO_MUCH
CORPUS["tf index"] = {name: _tf_index(make) for name, make in _TF.items()}
hostile("tf v1", ".ckpt", test_tf_table.V1_HOSTILE)
_CALLS = (
    *("os.system", "posix.system", "builtins.eval", "builtins.exec", "numpy.load"),
    *("subprocess.Popen", "torch.load", "runpy.run_path", "builtins.getattr"),
    *("pkgutil.resolve_name", "importlib.import_module", "webbrowser.open"),
)
CORPUS["torch"] = {
    **{name: _pickle(content) for name, content in test_torch.DAMAGED.items()},
    **{
        f"calls {name}": _pickle(test_torch.call(name, test_torch.text("true")))
        for name in _CALLS
    },
}
