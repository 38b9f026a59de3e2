"""TensorFlow checkpoints: as TensorFlow reads them, and safe where it aborts."""

import contextlib
import os
import pathlib
import struct

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import tensor_bundle_pb2, trackable_object_graph_pb2
from tensorflow.core.util import saved_tensor_slice_pb2

from tests import nets
from tests.checkpoints import files
from tfdeep.checkpoints._readers import _checks, _tf_checkpoint, _tf_index, _tf_table
from tfdeep.errors import (
    CorruptFileError,
    LimitError,
    TfdeepError,
    UnknownFormatError,
    UnsafeFileError,
)


def plain_crc32c(content):
    """Bit by bit, as the definition has it."""
    state = 0xFFFFFFFF
    for byte in content:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def checksum(content):
    crc = plain_crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number):
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


def row(key, value, shared=0, added=None, length=None):
    added = len(key) - shared if added is None else added
    length = len(value) if length is None else length
    return varint(shared) + varint(added) + varint(length) + key[shared:] + value


def block(content, restarts=(0,), count=None):
    count = len(restarts) if count is None else count
    return content + struct.pack(f"<{len(restarts)}II", *restarts, count)


def sealed(content, kind=0, crc=None):
    """A block with its trailer: the kind of compression and the checksum."""
    content += bytes([kind])
    return content + struct.pack("<I", checksum(content) if crc is None else crc)


def handle(offset, size):
    return varint(offset) + varint(size)


def footer(*handles):
    return b"".join(handles).ljust(40, b"\0") + _tf_table.MAGIC


def table_of(blocks, separators, places=None, kinds=None, crc=None):
    """A table of blocks that are given as bytes, with valid checksums."""
    content, found = b"", []
    for number, plain in enumerate(blocks):
        found.append(handle(len(content), len(plain)))
        content += sealed(plain, (kinds or {}).get(number, 0), crc)
    filters = handle(len(content), 8)
    content += sealed(block(b""))
    rows, restarts = b"", []
    for separator, place in zip(separators, places or found, strict=True):
        restarts.append(len(rows))
        rows += row(separator, place)
    listing = block(rows, restarts or [0])
    place = handle(len(content), len(listing))
    return content + sealed(listing) + footer(filters, place)


def table(rows):
    """A table of one block, the keys in the order they are given."""
    content = b"".join(row(key, value) for key, value in rows)
    # Entries after the first may share nothing, too.
    return table_of([block(content)], [max(key for key, _ in rows)])


DATA = np.arange(16, dtype="float32").tobytes()
EMPTY = b""


def header(num_shards=1, endianness=0, **version):
    proto = tensor_bundle_pb2.BundleHeaderProto(
        num_shards=num_shards, endianness=endianness
    )
    for name, value in version.items():
        setattr(proto.version, name, value)
    return proto.SerializeToString()


def entry(
    dtype=types_pb2.DT_FLOAT, shape=(4, 4), offset=0, size=64, data=DATA, slices=(), **x
):
    proto = tensor_bundle_pb2.BundleEntryProto(offset=offset, size=size, **x)
    # Open enums take any number, which is what a hostile file has.
    proto.MergeFromString(b"\x08" + varint(dtype))
    if "crc32c" not in x and 0 <= offset <= offset + size <= len(data):
        proto.crc32c = checksum(data[offset : offset + size])
    for n in shape:
        proto.shape.dim.add(size=n)
    for extents in slices:
        part = proto.slices.add()
        for start, length in extents:
            extent = part.extent.add(start=start)
            if length is not None:
                extent.length = length
    return proto.SerializeToString()


def index(*rows, head=None):
    return table([(b"", header() if head is None else head), *rows])


def one(**arguments):
    return index((b"w", entry(**arguments)))


def unknown_rank():
    proto = tensor_bundle_pb2.BundleEntryProto.FromString(entry(shape=()))
    proto.shape.unknown_rank = True
    return index((b"w", proto.SerializeToString()))


def in_parts(slices, *parts, shape=(4, 4), dtype=types_pb2.DT_FLOAT):
    """A tensor in parts; each of `parts` is where it is, its shape and its offset."""
    rows = [
        (
            _tf_index.slice_key("w", bounds),
            entry(shape=part, offset=offset, size=4 * int(np.prod(part))),
        )
        for bounds, part, offset in parts
    ]
    whole = entry(dtype, shape, size=0, slices=slices, crc32c=0)
    return index(*rows, (b"w", whole))


UPPER, LOWER = ((0, 2), (0, 4)), ((2, 2), (0, 4))
PARTS = (((0, 2, 0, 4), (2, 4), 0), ((2, 2, 0, 4), (2, 4), 32))


def graph_data(content, length=None, crc=None):
    """A text as a checkpoint keeps it, and the checksum of all of it."""
    length = len(content) if length is None else length
    plain = struct.pack("<I", length & 0xFFFFFFFF)
    inner = struct.pack("<I", checksum(plain) if crc is None else crc)
    return varint(length) + inner + content, checksum(plain + inner + content)


def with_graph(content, dtype=types_pb2.DT_STRING, shape=(), crc32c=None, **arguments):
    data, crc = graph_data(content, **arguments)
    graph = entry(
        dtype,
        shape,
        offset=64,
        size=len(data),
        crc32c=crc if crc32c is None else crc32c,
    )
    rows = [(b"_CHECKPOINTABLE_OBJECT_GRAPH", graph), (b"w", entry())]
    return index(*rows), DATA + data


def graph_of(keys=(("w", "hidden1/kernel"),), slots=()):
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    for key, name in keys:
        node = graph.nodes.add()
        node.attributes.add(name="VARIABLE_VALUE", full_name=name, checkpoint_key=key)
    for original, slot_name, slot in slots:
        graph.nodes[0].slot_variables.add(
            original_variable_node_id=original,
            slot_name=slot_name,
            slot_variable_node_id=slot,
        )
    return graph.SerializeToString()


def patched(content, at, new):
    return content[:at] + new + content[at + len(new) :]


GOOD = one()
START = row(b"", header())
W = row(b"w", entry())
SIZES = [(b"", header()), (b"w", entry())]

# The ways in which an index can lie, with checksums that are right.
HOSTILE = {
    "no bytes": lambda: EMPTY,
    "less than a footer": lambda: GOOD[-47:],
    "only a footer": lambda: GOOD[-48:],
    "another magic number": lambda: patched(GOOD, len(GOOD) - 1, b"\0"),
    "cut in the middle": lambda: GOOD[: len(GOOD) // 2] + GOOD[-48:],
    "listing outside of the file": lambda: (
        GOOD[:-48] + footer(handle(0, 0), handle(1 << 40, 20))
    ),
    "listing of a huge size": lambda: (
        GOOD[:-48] + footer(handle(0, 0), handle(0, 1 << 62))
    ),
    "handle without an end": lambda: GOOD[:-48] + b"\xff" * 40 + _tf_table.MAGIC,
    "wrong checksum": lambda: table_of([block(START + W)], [b"w"], crc=1),
    "unknown compression": lambda: table_of([block(START + W)], [b"w"], kinds={0: 7}),
    "no restarts": lambda: table_of([block(START + W, ())], [b"w"]),
    "more restarts than bytes": lambda: table_of(
        [block(START + W, count=1 << 31)], [b"w"]
    ),
    "restart outside of the block": lambda: table_of(
        [block(START + W, (0, 5000))], [b"w"]
    ),
    "restart within an entry": lambda: table_of([block(START + W, (0, 3))], [b"w"]),
    "first restart is not the first": lambda: table_of(
        [block(START + W, (len(START),))], [b"w"]
    ),
    "restart of an entry that shares": lambda: table_of(
        [block(START + W + row(b"wx", entry(), 1), (0, len(START + W)))], [b"wx"]
    ),
    "first entry shares": lambda: table_of([block(row(b"w", entry(), 1))], [b"w"]),
    "shares more than there is": lambda: table_of(
        [block(START + W + row(b"wxyz", entry(), 3))], [b"wxyz"]
    ),
    "key longer than the block": lambda: table_of(
        [block(START + row(b"w", entry(), added=5000))], [b"w"]
    ),
    "key of 2^60 bytes": lambda: table_of(
        [block(START + row(b"w", entry(), added=1 << 60))], [b"w"]
    ),
    "value longer than the block": lambda: table_of(
        [block(START + row(b"w", entry(), length=5000))], [b"w"]
    ),
    "value of 2^63 bytes": lambda: table_of(
        [block(START + row(b"w", entry(), length=1 << 63))], [b"w"]
    ),
    "entry cut short": lambda: table_of([block(START + b"\xff")], [b"w"]),
    "number of eleven bytes": lambda: table_of(
        [block(START + b"\xff" * 10 + b"\1")], [b"w"]
    ),
    "keys out of order": lambda: index((b"w", entry()), (b"a", entry(size=0))),
    "a key twice": lambda: index((b"w", entry()), (b"w", entry())),
    "key beyond its separator": lambda: table_of([block(START + W)], [b"v"]),
    "key before its separator": lambda: table_of(
        [block(START), block(row(b"a", entry()))], [b"b", b"w"]
    ),
    "separators out of order": lambda: table_of([block(START), block(W)], [b"w", b"a"]),
    "a block twice": lambda: table_of(
        [block(START + W)], [b"w", b"x"], [handle(0, len(block(START + W)))] * 2
    ),
    "block outside of the file": lambda: table_of(
        [block(START + W)], [b"w"], [handle(1 << 50, 8)]
    ),
    "block without entries": lambda: table_of([block(b""), block(W)], [b"", b"w"]),
    "no blocks": lambda: table_of([], []),
    "handle with more after it": lambda: table_of(
        [block(START + W)], [b"w"], [handle(0, len(block(START + W))) + b"\0"]
    ),
    "no header": lambda: table([(b"w", entry())]),
    "header that is none": lambda: index(head=b"\xff\xff\xff"),
    "no files": lambda: index((b"w", entry()), head=header(0)),
    "less than no files": lambda: index((b"w", entry()), head=header(-1)),
    "unknown order of bytes": lambda: index(
        (b"w", entry()), head=header() + b"\x10" + varint(7)
    ),
    "entry that is none": lambda: index((b"w", b"\xff\xff\xff\xff\xff")),
    "entry cut short in itself": lambda: index((b"w", entry()[:-2])),
    "entry of a megabyte": lambda: index((b"w", entry() + b"\x12\0" * 600_000)),
    "dtype 0": lambda: one(dtype=0),
    "dtype 999": lambda: one(dtype=999),
    "dtype 101, a reference": lambda: one(dtype=101),
    "dtype of 64 bits": lambda: one(dtype=(1 << 64) - 1),
    "text of more elements than bytes": lambda: one(
        dtype=types_pb2.DT_STRING, shape=(1 << 40,)
    ),
    "variants of more elements than bytes": lambda: one(
        dtype=types_pb2.DT_VARIANT, shape=(65,)
    ),
    "shape product overflows": lambda: one(shape=(1 << 33, 1 << 33)),
    "shape product overflows to its size": lambda: one(
        shape=(1 << 32, 1 << 32), size=0
    ),
    "shape overflows before a zero": lambda: one(shape=(1 << 33, 1 << 33, 0), size=0),
    "dimension -1": lambda: one(shape=(-1,)),
    "dimension -5": lambda: one(shape=(4, -5)),
    "two negative dimensions": lambda: one(shape=(-4, -4)),
    "dimension 2^40": lambda: one(shape=(1 << 40,)),
    "dimension 2^62": lambda: one(shape=(1 << 62,)),
    "dimension 2^62 and a size of 2^62": lambda: one(
        dtype=types_pb2.DT_INT8, shape=(1 << 48,), size=1 << 48
    ),
    "unknown rank": unknown_rank,
    "text of a huge shape": lambda: one(
        dtype=types_pb2.DT_STRING, shape=(1 << 40, 1 << 40)
    ),
    "another file than there are": lambda: one(shard_id=1),
    "file -1": lambda: one(shard_id=-1),
    "a file that is missing": lambda: index((b"w", entry()), head=header(2)),
    "offset -1": lambda: one(offset=-1),
    "offset beyond the data": lambda: one(offset=1, size=64),
    "offset of 2^62": lambda: one(offset=1 << 62),
    "offset and size overflow": lambda: one(offset=(1 << 63) - 1),
    "size -1": lambda: one(size=-1),
    "size 0": lambda: one(size=0),
    "size too small": lambda: one(size=60),
    "size too large": lambda: one(shape=(2, 4)),
    "values overlap": lambda: index(
        (b"v", entry(shape=(8,), size=32, offset=4)), (b"w", entry())
    ),
    "values shared": lambda: index((b"v", entry()), (b"w", entry())),
    "name of other bytes": lambda: index((b"\xff\xfe", entry())),
    "name with NUL": lambda: index((b"a\0b", entry())),
    "wrong checksum of the values": lambda: one(crc32c=7),
    "no parts": lambda: in_parts((UPPER, LOWER)),
    "a part missing": lambda: in_parts((UPPER, LOWER), PARTS[0]),
    "parts do not make a whole": lambda: in_parts((UPPER,), PARTS[0]),
    "part of nothing": lambda: in_parts((UPPER,), *PARTS),
    "parts alone": lambda: index((_tf_index.slice_key("w", (0, 4)), entry())),
    "one part twice": lambda: in_parts((UPPER, UPPER), PARTS[0]),
    "parts overlap": lambda: in_parts(
        (UPPER, ((1, 2), (0, 4))), PARTS[0], ((1, 2, 0, 4), (2, 4), 32)
    ),
    "part outside": lambda: in_parts((((3, 4), (0, 4)),), ((3, 4, 0, 4), (4, 4), 0)),
    "part at -1": lambda: in_parts((((-1, 4), (0, 4)),)),
    "part of length -1": lambda: in_parts((((0, -1), (0, 4)),)),
    "part of length 0": lambda: in_parts((((0, 0), (0, 4)),), shape=(0, 4)),
    "part of 2^63 - 1": lambda: in_parts(((((1 << 63) - 1, 1), (0, 4)),)),
    "part of another rank": lambda: in_parts((((0, 16),),), ((0, 16), (16,), 0)),
    "part of another shape": lambda: in_parts(
        (UPPER, LOWER), ((0, 2, 0, 4), (4, 2), 0), PARTS[1]
    ),
    "part that has parts": lambda: index(
        (
            _tf_index.slice_key("w", (0, 4)),
            entry(shape=(4,), size=0, slices=((((0, 4),)),), crc32c=0),
        ),
        (b"w", entry(shape=(4,), size=0, slices=(((0, 4),),), crc32c=0)),
    ),
    "graph of numbers": lambda: index(
        (b"_CHECKPOINTABLE_OBJECT_GRAPH", entry(types_pb2.DT_STRING, (16,)))
    ),
    "graph with another checksum": lambda: with_graph(graph_of(), crc32c=1),
    "graph with another checksum of lengths": lambda: with_graph(graph_of(), crc=1),
    "graph longer than its entry": lambda: with_graph(graph_of(), length=1 << 40),
    "graph shorter than its entry": lambda: with_graph(graph_of(), length=1),
    "graph whose length has no end": lambda: with_graph(b"", length=(1 << 70) - 1),
    "graph that is none": lambda: with_graph(b"\xff" * 30),
    "graph cut short": lambda: with_graph(graph_of()[:-3]),
    "graph of numbers at the top": lambda: with_graph(b"\x08\x01"),
    "graph with a node that is none": lambda: with_graph(b"\x0a\x03\xff\xff\xff"),
    "graph with a name of other bytes": lambda: with_graph(
        graph_of((("w", "xx"),)).replace(b"xx", b"\xff\xff")
    ),
    "graph with a name with NUL": lambda: with_graph(graph_of((("w", "a\0"),))),
    "graph with a slot of no variable": lambda: with_graph(
        graph_of(slots=((99, "m", 0),))
    ),
    "graph with a slot at -1": lambda: with_graph(graph_of(slots=((0, "m", -1),))),
}

UNKNOWN = {
    "compressed with Snappy": lambda: table_of(
        [block(START + W)], [b"w"], kinds={0: 1}
    ),
    "most significant byte first": lambda: index((b"w", entry()), head=header(1, 1)),
    "a later version": lambda: index((b"w", entry()), head=header(min_consumer=2)),
    "a version that is bad": lambda: index(
        (b"w", entry()), head=header() + b"\x1a\x03\x1a\x01\x01"
    ),
    "quantized numbers": lambda: one(dtype=types_pb2.DT_QINT8, shape=(64,)),
    "text in parts": lambda: in_parts((UPPER, LOWER), dtype=types_pb2.DT_STRING),
}

TOO_MUCH = {
    "300 dimensions": lambda: one(shape=(1,) * 300),
    "33 dimensions": lambda: one(shape=(1,) * 33),
    "2^31 - 1 files": lambda: index((b"w", entry()), head=header((1 << 31) - 1)),
    "a name of 5000 bytes": lambda: index((b"w" * 5000, entry())),
    "a key of 20000 bytes": lambda: index((b"w" * 20_000, entry())),
    "a name of 5000 bytes in the graph": lambda: with_graph(
        graph_of((("w", "a" * 5000),))
    ),
}


def written(content, directory):
    """The prefix of a checkpoint of this index, with the data it is about."""
    index_bytes, data = content if isinstance(content, tuple) else (content, DATA)
    prefix = os.path.join(directory, "net")
    pathlib.Path(f"{prefix}.index").write_bytes(index_bytes)
    pathlib.Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    return prefix


def every_value(prefix, limits=None):
    with _tf_checkpoint.TFCheckpointReader(prefix, prefix, limits) as reader:
        return {info.name: reader.read(info.name) for info in reader.variables}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_that_lies(name, tmp_path):
    prefix = written(HOSTILE[name](), tmp_path)
    with pytest.raises(CorruptFileError, match="nothing was changed"):
        every_value(prefix)


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_index_of_another_kind(name, tmp_path):
    prefix = written(UNKNOWN[name](), tmp_path)
    with pytest.raises(UnknownFormatError, match="nothing was changed"):
        every_value(prefix)


@pytest.mark.parametrize("name", TOO_MUCH)
def test_an_index_that_declares_too_much(name, tmp_path):
    prefix = written(TOO_MUCH[name](), tmp_path)
    with pytest.raises(LimitError, match=r"Limits\("):
        every_value(prefix)


class TestWhatTheHostileOnesAreMadeFrom:
    """The same, without the lie: so it is the lie that is refused."""

    def test_one_tensor(self, tmp_path):
        prefix = written(GOOD, tmp_path)
        expected = tf.train.load_checkpoint(prefix).get_tensor("w")
        np.testing.assert_array_equal(every_value(prefix)["w"], expected)

    def test_two_blocks(self, tmp_path):
        prefix = written(table_of([block(START), block(W)], [b"a", b"x"]), tmp_path)
        expected = tf.train.load_checkpoint(prefix).get_tensor("w")
        np.testing.assert_array_equal(every_value(prefix)["w"], expected)

    def test_keys_that_share_and_a_restart(self, tmp_path):
        rows = START + row(b"w", entry(shape=(8,), size=32))
        last = row(b"wx", entry(shape=(8,), offset=32, size=32), 1)
        prefix = written(table_of([block(rows + last)], [b"wx"]), tmp_path)
        expected = tf.train.load_checkpoint(prefix)
        for name, value in every_value(prefix).items():
            np.testing.assert_array_equal(value, expected.get_tensor(name))
        last = row(b"wx", entry(shape=(8,), offset=32, size=32))
        content = table_of([block(rows + last, (0, len(rows)))], [b"wx"])
        assert list(every_value(written(content, tmp_path))) == ["w", "wx"]

    def test_parts(self, tmp_path):
        prefix = written(in_parts((UPPER, LOWER), *PARTS), tmp_path)
        expected = tf.train.load_checkpoint(prefix).get_tensor("w")
        np.testing.assert_array_equal(every_value(prefix)["w"], expected)

    def test_a_graph(self, tmp_path):
        prefix = written(with_graph(graph_of()), tmp_path)
        assert list(every_value(prefix)) == ["hidden1/kernel"]

    def test_a_graph_names_the_slots_of_an_optimizer(self, tmp_path):
        keys = (("v", "hidden1/kernel"), ("w", ""))
        content = with_graph(graph_of(keys, slots=((0, "m", 1),)))
        assert list(every_value(written(content, tmp_path))) == ["hidden1/kernel/m"]


LIMITS = {
    "tensor_bytes": 63,
    "total_bytes": 63,
    "tensors": 0,
    "rank": 1,
    "name_bytes": 0,
    "header_bytes": 30,
    "members": 0,
}


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit(name, tmp_path):
    prefix = written(GOOD, tmp_path)
    limits = _checks.Limits(**{name: LIMITS[name]})
    with pytest.raises(LimitError, match=name):
        every_value(prefix, limits)
    every_value(prefix, _checks.Limits(**{name: LIMITS[name] + 1000}))


@pytest.mark.parametrize("size", [*range(70), 255, 256, 257, 65_535, 65_536, 200_003])
def test_crc32c(size):
    content = np.random.RandomState(size).bytes(size)
    assert _tf_table.crc32c(content) == plain_crc32c(content)


def test_crc32c_of_the_standard():
    assert _tf_table.crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("bounds", [(), (0, -1), (63, 64), (8191, 8192), (2**62, 1)])
def test_slice_keys_are_in_the_order_of_their_numbers(bounds):
    key = _tf_index.slice_key("w", bounds)
    assert key.startswith(b"\0w\0\x01")
    for at in range(0, len(bounds), 2):
        after = [*bounds]
        after[at] += 1
        assert _tf_index.slice_key("w", after) > key


DTYPES = (
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"),
    *("uint16", "bool", "complex64", "complex128"),
)
NEW_DTYPES = ("bfloat16", "float8_e5m2", "float8_e4m3fn", "uint32", "uint64")


def saved_in_tf1(directory, make, **saver_arguments):
    """Saves variables that `make` makes with a TF1 `Saver`."""
    path = os.path.join(directory, "tf1.ckpt")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = make()
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables, **saver_arguments)
        saver.save(session, path, write_meta_graph=False, write_state=False)
        return path, {v.op.name: np.asarray(session.run(v)) for v in variables}


V1 = tf.compat.v1.train.SaverDef.V1


def of_every_dtype(names):
    def make():
        rng = np.random.RandomState(3)
        return [
            tf.compat.v1.get_variable(
                f"layer/{name}",
                initializer=np.asarray(
                    rng.randint(0, 2, (5, 3)) * 96.0, tf.as_dtype(name).as_numpy_dtype
                ),
            )
            for name in names
        ]

    return make


def in_two_files():
    found = []
    for number in range(4):
        with tf.device(f"/cpu:{number % 2}"):
            value = np.random.RandomState(number).rand(number, 7).astype("float32")
            found.append(tf.compat.v1.get_variable(f"w{number}", initializer=value))
    return found


CHECKPOINTS = {
    "object": lambda d: files.object_checkpoint(files.trained(nets.regularized), d),
    "managed": lambda d: os.path.join(
        files.managed_checkpoint(nets.functional(), d), "ckpt-1"
    ),
    "saved model": lambda d: os.path.join(
        files.saved_model(nets.functional(), d), "variables", "variables"
    ),
    "tf1": lambda d: files.tf1_saver(nets.functional(), d),
    "tf1 in two files": lambda d: saved_in_tf1(d, in_two_files, sharded=True)[0],
    "tf1 of every dtype": lambda d: saved_in_tf1(
        d, of_every_dtype(DTYPES + NEW_DTYPES)
    )[0],
    "v1": lambda d: files.tf1_saver_v1(nets.functional(), d),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_values_are_those_that_tensorflow_reads(kind, tmp_path):
    prefix = CHECKPOINTS[kind](tmp_path)
    assert _tf_checkpoint.checkpoint_prefix(prefix) == prefix
    theirs = tf.train.load_checkpoint(prefix)
    dtypes = theirs.get_variable_to_dtype_map()
    with _tf_checkpoint.TFCheckpointReader(prefix, prefix) as reader:
        assert reader.integrity == "verified"
        found = {info.location for info in reader.variables}
        left_out = {key for key in dtypes if key not in found}
        assert all(
            dtypes[key] == tf.string or key.startswith("_all_variables/")
            for key in left_out
        )
        for info in reader.variables:
            expected = theirs.get_tensor(info.location)
            values = reader.read(info.name)
            assert (values.shape, values.dtype) == (info.shape, info.dtype)
            assert dtypes[info.location].name == info.dtype
            np.testing.assert_array_equal(values, expected)
    assert found


@pytest.mark.parametrize("version", [None, V1])
@pytest.mark.parametrize("axis", [0, 1])
def test_variables_that_were_saved_in_parts(version, axis, tmp_path):
    def make():
        with tf.compat.v1.variable_scope(
            "dnn", partitioner=tf.compat.v1.fixed_size_partitioner(3, axis)
        ):
            return list(tf.compat.v1.get_variable("kernel", (70, 130)))

    arguments = {} if version is None else {"write_version": version}
    prefix, parts = saved_in_tf1(tmp_path, make, **arguments)
    found = every_value(prefix)
    expected = np.concatenate([*parts.values()], axis)
    np.testing.assert_array_equal(found["dnn/kernel"], expected)


def test_a_v1_file_of_every_dtype(tmp_path):
    """TensorFlow's own reader reads only some of these."""
    path, expected = saved_in_tf1(tmp_path, of_every_dtype(DTYPES), write_version=V1)
    found = every_value(path)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.dtype == expected[name].dtype
        np.testing.assert_array_equal(values, expected[name])


def test_a_v1_file_lists_its_names(tmp_path):
    path = files.tf1_saver_v1(nets.functional(), tmp_path)
    assert "hidden1/kernel" in every_value(path)


GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "tf215"


@pytest.mark.parametrize(
    "name",
    [
        *("tf1_dense_v1", "tf1_dense_v2", "tf1_contrib_v1", "tf1_contrib_v2"),
        *("dense_object", "weight_norm_object"),
    ],
)
def test_files_that_tensorflow_2_15_wrote(name):
    found = every_value(str(GOLDENS / f"{name}.ckpt"))
    with np.load(GOLDENS / f"{name.rpartition('_')[0]}.npz") as truth:
        for number, variable in enumerate(truth["names"]):
            expected = truth[f"value_{number:03d}"]
            np.testing.assert_array_equal(found[str(variable)], expected)
    if name == "dense_object":
        assert "Adam/m/hidden1/kernel" in found


def v1_table(change=None, values=None):
    slices = saved_tensor_slice_pb2.SavedTensorSlices()
    meta = slices.meta.tensor.add(name="w", type=types_pb2.DT_INT8)
    meta.shape.dim.add(size=3)
    meta.slice.add().extent.add()
    data = saved_tensor_slice_pb2.SavedTensorSlices()
    data.data.name = "w"
    data.data.data.int_val.extend([1, 2, -3] if values is None else values)
    if change is not None:
        change(slices, meta, data)
    key = _tf_index.slice_key("w", (0, -1))
    return table([(b"", slices.SerializeToString()), (key, data.SerializeToString())])


def _set(message, name, value):
    setattr(message, name, value)


V1_HOSTILE = {
    "no list": lambda: table([(b"w", b"")]),
    "empty": lambda: table([(b"", b""), (b"x", b"")])[:-50],
    "list that is none": lambda: table([(b"", b"\xff\xff\xff")]),
    "list with values": lambda: v1_table(lambda s, m, d: _set(s.data, "name", "w")),
    "tensor that is none": lambda: table([(b"", b"\x0a\x05\x0a\x03\xff\xff\xff")]),
    "fewer values": lambda: v1_table(values=[1, 2]),
    "more values": lambda: v1_table(values=[1, 2, 3, 4]),
    "no values": lambda: v1_table(values=[]),
    "values beyond the dtype": lambda: v1_table(values=[1, 2, 1000]),
    "values of another tensor": lambda: v1_table(
        lambda s, m, d: _set(d.data, "name", "v")
    ),
    "values of another dtype": lambda: v1_table(lambda s, m, d: _set(m, "type", 1)),
    "dtype 0": lambda: v1_table(lambda s, m, d: _set(m, "type", 0)),
    "dtype 101": lambda: v1_table(lambda s, m, d: _set(m, "type", 101)),
    "dimension -1": lambda: v1_table(lambda s, m, d: _set(m.shape.dim[0], "size", -1)),
    "dimension 2^30": lambda: v1_table(
        lambda s, m, d: _set(m.shape.dim[0], "size", 1 << 30)
    ),
    "dimension 2^62": lambda: v1_table(
        lambda s, m, d: _set(m.shape.dim[0], "size", 1 << 62)
    ),
    "unknown rank": lambda: v1_table(
        lambda s, m, d: _set(m.shape, "unknown_rank", True)
    ),
    "no slice": lambda: v1_table(lambda s, m, d: m.ClearField("slice")),
    "slice of another rank": lambda: v1_table(lambda s, m, d: m.slice[0].extent.add()),
    "slice that is missing": lambda: v1_table(
        lambda s, m, d: _set(m.slice[0].extent[0], "length", 3)
    ),
    "a name twice": lambda: v1_table(lambda s, m, d: s.meta.tensor.add().CopyFrom(m)),
    "no name": lambda: v1_table(lambda s, m, d: _set(m, "name", "")),
    "a name with NUL": lambda: v1_table(lambda s, m, d: _set(m, "name", "w\0")),
}


@pytest.mark.parametrize("name", V1_HOSTILE)
def test_a_v1_file_that_lies(name, tmp_path):
    path = tmp_path / "old.ckpt"
    path.write_bytes(V1_HOSTILE[name]())
    with pytest.raises(CorruptFileError, match="nothing was changed"):
        every_value(str(path))


def test_what_the_hostile_v1_files_are_made_from(tmp_path):
    path = tmp_path / "old.ckpt"
    path.write_bytes(v1_table())
    expected = np.array([1, 2, -3], "int8")
    np.testing.assert_array_equal(every_value(str(path))["w"], expected)
    path.write_bytes(v1_table(lambda s, m, d: _set(s.meta.versions, "min_consumer", 9)))
    with pytest.raises(UnknownFormatError):
        every_value(str(path))
    path.write_bytes(
        v1_table(lambda s, m, d: m.shape.dim.extend([m.shape.dim[0]] * 40))
    )
    with pytest.raises(LimitError):
        every_value(str(path))


def changed(content, rng):
    """One random change of a file: of a bit, a byte, a block, or its length."""
    at = rng.randint(len(content))
    count = rng.randint(1, 65)
    kind = rng.randint(7)
    if kind == 0:
        return patched(content, at, bytes([content[at] ^ 1 << rng.randint(8)]))
    if kind == 1:
        return patched(content, at, rng.bytes(1))
    if kind == 2:
        return content[:at]
    if kind == 3:
        return patched(content, at, bytes(min(count, len(content) - at)))
    if kind == 4:
        number = rng.choice([-1, 0, 1, 2**31 - 1, 2**62])
        return patched(content, at, struct.pack("<q", number))
    if kind == 5:
        return content[:at] + content[at + count :]
    return content[:at] + rng.bytes(count) + content[at:]


each_count = pytest.mark.parametrize(
    "count", [300, pytest.param(3000, marks=pytest.mark.slow)]
)


@pytest.mark.parametrize(
    "kind", ["object", "saved model", "tf1", "tf1 in two files", "v1"]
)
@each_count
def test_random_damage_gives_an_error_or_the_same_values(kind, count, tmp_path):
    prefix = CHECKPOINTS[kind](tmp_path)
    right = every_value(prefix)
    parent = pathlib.Path(prefix).parent
    parts = sorted(parent.glob(pathlib.Path(prefix).name + "*"))
    rng = np.random.RandomState(5)
    same = 0
    for number in range(count):
        path = parts[number % len(parts)]
        whole = path.read_bytes()
        path.write_bytes(changed(whole, rng))
        try:
            found = every_value(prefix)
        except TfdeepError:
            continue
        finally:
            path.write_bytes(whole)
        same += 1
        assert list(found) == list(right)
        for name, values in found.items():
            np.testing.assert_array_equal(values, right[name])
    assert same < number


@pytest.mark.parametrize("kind", ["object", "tf1", "tf1 in two files", "v1"])
@each_count
def test_random_lies_with_right_checksums(kind, count, tmp_path):
    """Changes in the entries, before their checksums are taken."""
    prefix = CHECKPOINTS[kind](tmp_path)
    path = prefix if kind == "v1" else f"{prefix}.index"
    with _tf_table.Table(
        path, _checks.Checks(path, "table", _checks.Limits())
    ) as content:
        rows = list(content)
    refused, rng = 0, np.random.RandomState(6)
    for _ in range(count):
        at = rng.randint(len(rows))
        key, value = rows[at]
        if rng.randint(8):
            value = changed(value, rng) if value else b"\x08"
        else:
            key = changed(key, rng) if key else b"\x01"
        pathlib.Path(path).write_bytes(
            table(sorted([*rows[:at], (key, value), *rows[at + 1 :]]))
        )
        try:
            every_value(prefix)
        except TfdeepError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("part", [".index", ".data-00000-of-00001"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_that_is_a_directory_or_missing(part, is_there, tmp_path):
    prefix = written(GOOD, tmp_path)
    os.remove(prefix + part)
    if is_there:
        os.mkdir(prefix + part)
    with pytest.raises(CorruptFileError):
        every_value(prefix)


def test_values_that_go_missing_after_they_were_listed(tmp_path):
    prefix = written(GOOD, tmp_path)
    with _tf_checkpoint.TFCheckpointReader(prefix, prefix) as reader:
        pathlib.Path(f"{prefix}.data-00000-of-00001").write_bytes(DATA[:-1])
        with pytest.raises(CorruptFileError):
            reader.read("w")
        os.remove(f"{prefix}.data-00000-of-00001")
        with pytest.raises(CorruptFileError):
            reader.read("w")


def test_two_objects_whose_attributes_differ_by_an_underscore(tmp_path):
    names = ("_x/.ATTRIBUTES/VARIABLE_VALUE", "a/_x", "a/x")
    rows = [
        (name.encode(), entry(shape=(1,), size=4, offset=4 * number))
        for number, name in enumerate(names)
    ]
    graph, crc = graph_data(graph_of(()))
    head = (
        b"_CHECKPOINTABLE_OBJECT_GRAPH",
        entry(types_pb2.DT_STRING, (), offset=64, size=len(graph), crc32c=crc),
    )
    prefix = written((index(*sorted([head, *rows])), DATA + graph), tmp_path)
    assert sorted(every_value(prefix)) == ["_x", "a/_x", "a/x"]


class TestTheCheckpointFile:
    @pytest.fixture
    def directory(self, tmp_path):
        return pathlib.Path(files.managed_checkpoint(nets.functional(), tmp_path))

    def named(self, directory, path):
        (directory / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n')

    def test_it_names_the_latest(self, directory):
        found = _tf_checkpoint.checkpoint_prefix(str(directory))
        assert found == str(directory / "ckpt-1")
        self.named(directory, directory / "ckpt-1")
        assert _tf_checkpoint.checkpoint_prefix(str(directory)) == found

    def test_it_is_found_from_a_relative_path(self, directory, monkeypatch):
        monkeypatch.chdir(directory.parent)
        found = _tf_checkpoint.checkpoint_prefix(directory.name)
        assert found == os.path.join(directory.name, "ckpt-1")

    def test_a_directory_that_was_moved_is_read_where_it_is(self, directory):
        self.named(directory, "/of/another/machine/ckpt-1")
        found = _tf_checkpoint.checkpoint_prefix(str(directory))
        assert found == str(directory / "ckpt-1")

    @pytest.mark.parametrize("path", ["../net", "/etc/passwd", "../managed2/ckpt-2"])
    def test_it_names_one_elsewhere(self, directory, path):
        files.object_checkpoint(nets.functional(), directory.parent)
        self.named(directory, path)
        with pytest.raises(UnsafeFileError, match="another directory"):
            _tf_checkpoint.checkpoint_prefix(str(directory))

    def test_it_names_one_elsewhere_through_a_link(self, directory):
        files.object_checkpoint(nets.functional(), directory.parent)
        (directory / "link").symlink_to(directory.parent)
        self.named(directory, "link/net")
        with pytest.raises(UnsafeFileError, match="another directory"):
            _tf_checkpoint.checkpoint_prefix(str(directory))

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"model", b"\0" * 100])
    def test_it_is_something_else(self, directory, content):
        (directory / "checkpoint").write_bytes(content)
        with contextlib.suppress(TfdeepError):
            assert _tf_checkpoint.checkpoint_prefix(str(directory)) is None

    @pytest.mark.parametrize("name", ["gone", r"a\000b", "*"])
    def test_it_names_none(self, directory, name):
        self.named(directory, name)
        with contextlib.suppress(TfdeepError):
            assert _tf_checkpoint.checkpoint_prefix(str(directory)) is None
