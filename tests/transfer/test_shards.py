"""Entries of a cache: whole or not there, and damage is never read."""

import errno
import functools
import json
import os
import random
import shutil
import types
import zlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

import tfdeep
from tests.transfer import builder
from tfdeep._core import _files
from tfdeep.errors import (
    CacheError,
    CorruptCacheError,
    DiskFullError,
    InvalidArgumentError,
)
from tfdeep.transfer import _shards
from tfdeep.transfer._shards import Builder, Column, Entry, entries

KEY = "some-key_1"
_SYNC = _files._sync


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(_files, "_sync", lambda path, flags: None)


def open_entry(cache_dir, key, verify=True):
    return Entry(cache_dir, key).open(verify)


@pytest.fixture
def entry(tmp_path):
    """The directory of a whole entry."""
    builder.build(tmp_path, KEY)
    return tmp_path / KEY


def write_some(tmp_path, numbers):
    unfinished = builder.builder(tmp_path, KEY)
    for number in numbers:
        blocks = [builder.content(unfinished.shards[number])]
        unfinished.write(number, blocks, {"shard": number})
    return unfinished


class TestWholeEntries:
    def test_what_is_written_is_read(self, entry, tmp_path):
        table = open_entry(tmp_path, KEY)
        assert builder.wrong_rows(table) == 0
        assert table.columns == tuple(builder.COLUMNS)
        assert table.description == {"by": "a test"}
        assert [shard.extra["shard"] for shard in table.shards] == [0, 1, 2, 3]
        assert table.bytes == builder.ROWS * (60 + 8 + 7)
        assert not [n for n in os.listdir(entry) if n.endswith((".lock", ".tmp"))]

    @pytest.mark.parametrize("dtype", list(_shards._DTYPES))
    def test_dtypes_are_kept_to_the_bit(self, dtype, tmp_path):
        column = Column("any / name ☃", dtype, (2, 3))
        raw = np.random.default_rng(0).integers(0, 256, (5, column.row_bytes), "u1")
        if dtype == "bool":
            raw %= 2
        values = raw.view(getattr(ml_dtypes, dtype, dtype)).reshape(5, 2, 3)
        table = Builder(tmp_path, KEY, [column], 5, shard_bytes=1)
        for number in range(5):
            table.write(number, [[values[number : number + 1]]], {})
        table.finish({})
        found = open_entry(tmp_path, KEY)
        assert found.columns == (column,)
        assert b"".join(a.tobytes() for a in found.arrays[0]) == values.tobytes()
        assert found.arrays[0][0].dtype == values.dtype

    def test_blocks_need_not_be_contiguous(self, tmp_path):
        values = np.arange(12, dtype="int32").reshape(3, 4)
        table = Builder(tmp_path, KEY, [Column("x", "int32", (3,))], 4)
        table.write(0, [[values.T]], {})
        table.finish({})
        ((found,),) = open_entry(tmp_path, KEY).arrays
        np.testing.assert_array_equal(found, values.T)

    def test_nothing_is_there_before_the_end(self, tmp_path):
        unfinished = write_some(tmp_path, [0, 1, 3])
        assert open_entry(tmp_path, KEY) is None
        with pytest.raises(CacheError, match="3 of 4 shards"):
            unfinished.finish({})
        assert open_entry(tmp_path, KEY) is None
        assert open_entry(tmp_path, "another") is None
        assert open_entry(tmp_path / "nowhere", KEY) is None

    def test_finishing_again_changes_nothing(self, entry, tmp_path):
        before = (entry / "manifest.json").read_bytes()
        again = builder.builder(tmp_path, KEY)
        again.finish({})
        with again.claim(0) as is_wanted:
            assert not is_wanted
        assert (entry / "manifest.json").read_bytes() == before


class TestOtherTools:
    """What a user may do with the features of an entry."""

    def test_the_library_reads_a_shard(self, entry):
        for number, start in enumerate((0, 20, 40, 60)):
            found = safetensors.numpy.load_file(
                entry / f"shard-{number:05d}.safetensors"
            )
            expected = builder.content(range(start, min(start + 20, builder.ROWS)))
            assert set(found) == {column.name for column in builder.COLUMNS}
            for column, values in zip(builder.COLUMNS, expected, strict=True):
                np.testing.assert_array_equal(found[column.name], values)
                assert found[column.name].dtype == values.dtype

    def test_so_does_tfdeep(self, entry):
        path = str(entry / "shard-00003.safetensors")
        with tfdeep.checkpoints.open(path) as reader:
            labels = reader.read("labels")
        np.testing.assert_array_equal(labels, builder.content(range(60, 70))[1])

    def test_complex_numbers_are_pairs(self, tmp_path):
        values = np.array([[1 + 2j], [3 - 4j]], "complex64")
        table = Builder(tmp_path, KEY, [Column("x", "complex64", (1,))], 2)
        table.write(0, [[values]], {})
        path = tmp_path / KEY / "shard-00000.safetensors"
        found = safetensors.numpy.load_file(path)["x"]
        np.testing.assert_array_equal(found, [[[1, 2]], [[3, -4]]])

    @pytest.mark.parametrize("rows", [1, 5, 63, 64, 100])
    def test_the_largest_column_begins_where_tensorflow_can_use_it(
        self, rows, tmp_path
    ):
        columns = [Column("a", "int64", ()), Column("b", "float32", (9,))]
        table = Builder(tmp_path, KEY, columns, rows)
        values = np.arange(rows), np.ones((rows, 9), "float32")
        table.write(0, [values], {})
        table.finish({})
        (_,), (features,) = open_entry(tmp_path, KEY).arrays
        assert features.ctypes.data % 64 == 0
        np.testing.assert_array_equal(features, 1)


class TestResuming:
    def test_finished_shards_are_kept(self, tmp_path):
        write_some(tmp_path, [2])
        unfinished = builder.builder(tmp_path, KEY)
        (shard,) = unfinished.finished().values()
        assert shard.extra == {"shard": 2}
        with unfinished.claim(2) as is_wanted:
            assert not is_wanted
        builder.build(tmp_path, KEY)
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0

    def test_shards_keep_the_size_they_began_with(self, tmp_path):
        begun = write_some(tmp_path, [1]).shards
        other = builder.builder(tmp_path, KEY, shard_bytes=10**6)
        assert other.shards == begun
        other = builder.builder(tmp_path, KEY, shard_bytes=10**6, rows_multiple=64)
        assert len(other.shards[0]) == builder.ROWS

    def test_a_shard_of_another_table_is_not_finished(self, tmp_path):
        write_some(tmp_path, [1])
        columns = [Column("other", "float32", (4,))]
        other = Builder(tmp_path, KEY, columns, 50, shard_bytes=100)
        assert other.finished() == {}
        values = np.ones((50, 4), "float32")
        for number, rows in enumerate(other.shards):
            with other.claim(number) as is_wanted:
                assert is_wanted
                other.write(number, [[values[rows.start : rows.stop]]], {})
        other.finish({})
        assert open_entry(tmp_path, KEY).rows == 50

    @pytest.mark.parametrize("damage", ["cut", "header", "empty"])
    def test_a_damaged_shard_is_a_missing_one(self, damage, tmp_path):
        write_some(tmp_path, [0, 1])
        path = tmp_path / KEY / "shard-00001.safetensors"
        content = bytearray(path.read_bytes())
        if damage == "header":
            content[100] ^= 1
        path.write_bytes({"cut": content[:-1], "empty": b""}.get(damage, content))
        assert set(builder.builder(tmp_path, KEY).finished()) == {0}
        builder.build(tmp_path, KEY)
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0

    @pytest.mark.parametrize("rows", [0, 5, 19, 21])
    def test_a_shard_with_other_rows_is_not_kept(self, rows, tmp_path):
        unfinished = builder.builder(tmp_path, KEY)
        with pytest.raises(CacheError, match=f"Received: {rows} rows"):
            unfinished.write(0, [builder.content(range(rows))], {})
        self.check_nothing_is_left(unfinished, tmp_path)

    def test_an_error_of_the_caller_keeps_nothing(self, tmp_path):
        def blocks():
            yield builder.content(range(20))
            raise ZeroDivisionError

        unfinished = builder.builder(tmp_path, KEY)
        with pytest.raises(ZeroDivisionError), unfinished.claim(0):
            unfinished.write(0, blocks(), {})
        self.check_nothing_is_left(unfinished, tmp_path)

    def check_nothing_is_left(self, unfinished, tmp_path):
        assert unfinished.finished() == {}
        assert set(os.listdir(tmp_path / KEY)) <= {"shard-00000.lock"}

    @pytest.mark.parametrize(
        "change",
        [
            lambda arrays: [arrays[0].astype("float64"), *arrays[1:]],
            lambda arrays: [arrays[0][:, :2], *arrays[1:]],
            lambda arrays: [arrays[0][:3], *arrays[1:]],
        ],
        ids=["dtype", "shape", "rows"],
    )
    def test_rows_of_another_kind(self, change, tmp_path):
        unfinished = builder.builder(tmp_path, KEY)
        with pytest.raises(InvalidArgumentError, match="rows do not fit the column"):
            unfinished.write(0, [change(builder.content(range(4)))], {})
        self.check_nothing_is_left(unfinished, tmp_path)

    def test_there_are_never_more_shards_than_a_process_opens_files(self, tmp_path):
        columns = [Column("x", "int8", ())]
        table = Builder(tmp_path, KEY, columns, 10**6, shard_bytes=1, rows_multiple=64)
        assert 200 < len(table.shards) <= 256
        assert sum(map(len, table.shards)) == 10**6

    @pytest.mark.parametrize("key", ["", "../up", "a/b", ".", "a" * 129, "é", None])
    def test_keys(self, key, tmp_path):
        with pytest.raises(InvalidArgumentError, match="key of a cache entry"):
            builder.builder(tmp_path, key)
        with pytest.raises(InvalidArgumentError, match="key of a cache entry"):
            Entry(tmp_path, key)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        ("columns", "rows"),
        [([], 3), ([Column("x", "int8", (0,))], 3), (builder.COLUMNS, 0)],
    )
    def test_tables_of_nothing(self, columns, rows, tmp_path):
        with pytest.raises(InvalidArgumentError, match="at least one byte"):
            Builder(tmp_path, KEY, columns, rows)


class TestLocks:
    def test_a_shard_that_another_writes_is_left_to_it(self, tmp_path):
        one, other = (builder.builder(tmp_path, KEY) for _ in range(2))
        with one.claim(0) as is_wanted:
            assert is_wanted
            with other.claim(0) as is_wanted:
                assert not is_wanted
            with other.claim(1) as is_wanted:
                assert is_wanted
                other.write(1, builder.blocks(other.shards[1]), {})
            one.write(0, builder.blocks(one.shards[0]), {})
        assert set(other.finished()) == {0, 1}

    def test_of_two_that_write_a_shard_the_first_counts(self, tmp_path, monkeypatch):
        """As it may be where locks do not work; the two may differ in a last bit."""
        one, other = (builder.builder(tmp_path, KEY) for _ in range(2))
        own = Builder._is_finished

        def late(self, number):
            found = own(self, number)
            if self is one:  # the other writes between the look and the renaming
                other.write(0, builder.blocks(other.shards[0]), {"by": "other"})
            return found

        monkeypatch.setattr(Builder, "_is_finished", late)
        one.write(0, builder.blocks(one.shards[0]), {"by": "one"})
        monkeypatch.undo()
        assert other.finished()[0].extra == {"by": "other"}
        assert not [n for n in os.listdir(tmp_path / KEY) if n.endswith(".tmp")]
        builder.build(tmp_path, KEY)
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0

    def test_a_whole_entry_is_left_to_its_readers(self, tmp_path):
        """A builder that has cut the rows otherwise comes too late."""
        one = builder.builder(tmp_path, KEY)
        other = builder.builder(tmp_path, KEY, shard_bytes=10**6)
        assert one.shards != other.shards
        builder.build(tmp_path, KEY)
        other.write(0, builder.blocks(range(builder.ROWS)), {})
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0

    def test_a_system_without_locks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_files, "fcntl", None)
        builder.build(tmp_path, KEY)
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0

    def test_a_system_without_links(self, tmp_path, monkeypatch):
        def link(source, target):
            raise PermissionError(errno.EPERM, "no links")

        monkeypatch.setattr(os, "link", link)
        builder.build(tmp_path, KEY)
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0


class TestWhatTheDeadLeave:
    def leave(self, tmp_path):
        """A file as a builder leaves it that is killed while it writes a shard."""
        return _files._new_file(str(tmp_path / KEY), "shard-00000.safetensors")

    def test_it_is_removed(self, tmp_path):
        builder.builder(tmp_path, KEY)
        path, descriptor = self.leave(tmp_path)
        os.close(descriptor)  # as the kernel does
        builder.builder(tmp_path, KEY)
        assert not os.path.exists(path)

    def test_the_living_keep_theirs(self, tmp_path):
        builder.builder(tmp_path, KEY)
        path, descriptor = self.leave(tmp_path)
        builder.builder(tmp_path, KEY)
        builder.build(tmp_path, KEY)
        assert os.path.exists(path)
        os.close(descriptor)

    @pytest.mark.parametrize("why", ["no locks", "another machine"])
    def test_where_a_lock_says_nothing_it_stays_for_a_day(
        self, why, tmp_path, monkeypatch
    ):
        builder.builder(tmp_path, KEY)
        path, descriptor = self.leave(tmp_path)
        os.close(descriptor)
        if why == "no locks":
            monkeypatch.setattr(_files, "_take_lock", lambda descriptor: True)
        else:
            monkeypatch.setattr(_files, "_HOST", "00000000")
        builder.builder(tmp_path, KEY)
        assert os.path.exists(path)
        past = os.stat(path).st_mtime - 25 * 3600
        os.utime(path, (past, past))
        builder.builder(tmp_path, KEY)
        assert not os.path.exists(path)


class TestDamage:
    def check(self, tmp_path, name, verify=True):
        with pytest.raises(CorruptCacheError) as error:
            open_entry(tmp_path, KEY, verify)
        message = str(error.value)
        assert name in message and "tfdeep cache rm" in message and KEY in message

    def names(self, entry):
        return sorted(n for n in os.listdir(entry) if n.endswith(".safetensors"))

    def test_a_flipped_bit_anywhere(self, entry, tmp_path, request):
        rng = random.Random(0)
        for name in [*self.names(entry), "manifest.json"]:
            path = entry / name
            whole = path.read_bytes()
            for _ in range(200 if request.config.getoption("--slow") else 20):
                changed = bytearray(whole)
                changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
                path.write_bytes(changed)
                self.check(tmp_path, name)
            path.write_bytes(whole)
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0

    @pytest.mark.parametrize("verify", [True, False])
    def test_files_cut_between_rows(self, verify, entry, tmp_path):
        for name in self.names(entry):
            path = entry / name
            whole = path.read_bytes()
            row = 60 + 8 + 7
            for kept in (0, row, len(whole) - row, len(whole) - 1):
                path.write_bytes(whole[:kept])
                self.check(tmp_path, name, verify)
            path.write_bytes(whole + whole[:row])
            self.check(tmp_path, name, verify)
            path.write_bytes(whole)

    @pytest.mark.parametrize("verify", [True, False])
    def test_missing_files(self, verify, entry, tmp_path):
        for name in self.names(entry):
            (entry / name).rename(tmp_path / "aside")
            self.check(tmp_path, name, verify)
            (tmp_path / "aside").rename(entry / name)

    def test_files_that_changed_places(self, entry, tmp_path):
        first, second = self.names(entry)[:2]
        (entry / first).rename(tmp_path / "aside")
        (entry / second).rename(entry / first)
        (tmp_path / "aside").rename(entry / second)
        self.check(tmp_path, first)

    def test_a_link_in_the_place_of_a_file(self, entry, tmp_path):
        name = self.names(entry)[0]
        (entry / name).rename(tmp_path / "aside")
        (entry / name).symlink_to(tmp_path / "aside")
        self.check(tmp_path, name)

    def test_a_half_entry_is_verified_too(self, tmp_path):
        write_some(tmp_path, [0, 1])
        Entry(tmp_path, KEY).verify()
        assert Entry(tmp_path, KEY).describe().state == "partial"
        name = self.names(tmp_path / KEY)[0]
        path = tmp_path / KEY / name
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(CorruptCacheError, match=name):
            Entry(tmp_path, KEY).verify()


def set_to(*path):
    *path, value = path

    def change(content):
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    return change


HOSTILE_MANIFESTS = {
    "another format": set_to("format", 99),
    "a format that is text": set_to("format", "2"),
    "another key": set_to("key", "another"),
    "shards that are text": set_to("shards", "abc"),
    "no shards": set_to("shards", []),
    "many shards": set_to("shards", [[1, 1]] * 1000),
    "a shard that is null": set_to("shards", 0, None),
    "a shard that is empty": set_to("shards", 0, []),
    "a size that is text": set_to("shards", 0, 0, "1200"),
    "a size that is true": set_to("shards", 0, 0, True),
    "a huge size": set_to("shards", 0, 0, 10**300),
    "a negative size": set_to("shards", 0, 0, -1),
    "another checksum": set_to("shards", 0, 1, 7),
    "a negative checksum": set_to("shards", 0, 1, -1),
    "a fractional checksum": set_to("shards", 0, 1, 0.5),
    "the shards reversed": lambda m: m["shards"].reverse(),
    "a shard twice": lambda m: m["shards"].__setitem__(1, m["shards"][0]),
    "a shard less": lambda m: m["shards"].pop(),
    "no description": set_to("description", None),
    "a date that is text": set_to("created", "now"),
}


@pytest.mark.parametrize("change", HOSTILE_MANIFESTS.values(), ids=HOSTILE_MANIFESTS)
def test_a_manifest_that_a_hostile_hand_has_signed(change, entry, tmp_path):
    content = json.loads((entry / "manifest.json").read_text())
    del content["digest"]
    change(content)
    content["digest"] = _shards._digest(content)
    (entry / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CorruptCacheError, match=KEY):
        open_entry(tmp_path, KEY)
    (listed,) = entries(tmp_path)
    assert listed.state == "damaged"
    Entry(tmp_path, KEY).remove()
    assert os.listdir(tmp_path) == []


TENSOR = ("tensors", "features")
HOSTILE_SHARDS = {
    "another format": set_to("format", 99),
    "another key": set_to("key", "another"),
    "another number": set_to("shard", 1),
    "a number that is text": set_to("shard", "0"),
    "no rows": set_to("rows", [0, 0, 70]),
    "rows that are null": set_to("rows", None),
    "rows that are true": set_to("rows", [False, 20, 70]),
    "rows before the first": set_to("rows", [-20, 0, 70]),
    "huge rows": set_to("rows", [0, 20, 10**30]),
    "other rows": set_to("rows", [1, 21, 70]),
    "fewer rows": set_to("rows", [0, 19, 70]),
    "more rows than the table": set_to("rows", [0, 20, 10]),
    "another table": set_to("rows", [0, 20, 71]),
    "no columns": set_to("columns", []),
    "text for columns": set_to("columns", "abc"),
    "a column less": lambda m: m["columns"].pop(),
    "a column twice": lambda m: m["columns"].append(m["columns"][0]),
    "another column": set_to("columns", 0, "name", "other"),
    "an unknown dtype": set_to("columns", 0, "dtype", "object"),
    "a dtype that is no text": set_to("columns", 0, "dtype", ["f4"]),
    "another dtype": set_to("columns", 0, "dtype", "int32"),
    "a dtype of the same numbers": set_to("columns", 0, "dtype", "complex64"),
    "no checksums": set_to("crc32", []),
    "a checksum that is text": set_to("crc32", 0, "1"),
    "extra that is a list": set_to("extra", []),
    "a tensor that is null": set_to(*TENSOR, None),
    "a tensor more": set_to("tensors", "more", {"dtype": "U8", "shape": [0]}),
    "a huge shape": set_to(*TENSOR, "shape", [10**18] * 30),
    "a negative shape": set_to(*TENSOR, "shape", [20, -3, -5]),
    "a fractional shape": set_to(*TENSOR, "shape", [20, 3.0, 5]),
    "many axes": set_to(*TENSOR, "shape", [20, 3, 5] + [1] * 50),
    "another shape": set_to(*TENSOR, "shape", [20, 3, 4]),
    "no place": set_to(*TENSOR, "data_offsets", None),
    "a place outside": set_to(*TENSOR, "data_offsets", [10**9, 10**9 + 1200]),
    "a place before": set_to(*TENSOR, "data_offsets", [-1200, 0]),
    "a place of another": set_to(*TENSOR, "data_offsets", [0, 1200]),
    "a place that goes back": set_to(*TENSOR, "data_offsets", [1200, 0]),
}


@pytest.mark.parametrize("change", HOSTILE_SHARDS.values(), ids=HOSTILE_SHARDS)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "partial"])
def test_a_shard_that_a_hostile_hand_has_signed(whole, change, entry, tmp_path):
    path, manifest = entry / "shard-00000.safetensors", entry / "manifest.json"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + size])
    content = json.loads(tensors.pop("__metadata__")["tfdeep.cache"])
    del content["digest"]
    content["tensors"] = tensors
    change(content)
    tensors = content.pop("tensors")
    content["digest"] = _shards._digest(content)
    metadata = {"tfdeep.cache": json.dumps(content)}
    header = json.dumps({"__metadata__": metadata, **tensors}).encode()
    header = len(header).to_bytes(8, "little") + header
    path.write_bytes(header + data[8 + size :])
    told = json.loads(manifest.read_text())
    del told["digest"]
    told["shards"][0] = [path.stat().st_size, zlib.crc32(header)]
    told["digest"] = _shards._digest(told)
    manifest.write_text(json.dumps(told))
    if whole:
        with pytest.raises(CorruptCacheError, match=r"shard-0000[01]"):
            open_entry(tmp_path, KEY)
        (listed,) = entries(tmp_path)
        assert listed.state == "damaged"
    else:
        manifest.unlink()
        assert set(builder.builder(tmp_path, KEY).finished()) == {1, 2, 3}
        builder.build(tmp_path, KEY)
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0


@pytest.mark.parametrize("size", [0, 1, 8, 1 << 30, 1 << 63, (1 << 64) - 1])
def test_a_header_of_another_length(size, entry, tmp_path):
    path = entry / "shard-00000.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(CorruptCacheError, match="shard-00000"):
        open_entry(tmp_path, KEY)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b"9" * 9999,
    ],
    ids=["empty", "list", "null", "cut", "binary", "deep", "deeper", "digits"],
)
def test_a_manifest_that_is_none(text, entry, tmp_path):
    (entry / "manifest.json").write_bytes(text)
    with pytest.raises(CorruptCacheError, match=r"manifest\.json"):
        open_entry(tmp_path, KEY)


class TestEntries:
    def test_listing(self, entry, tmp_path):
        write_some(tmp_path / "b", [0])
        (tmp_path / "b" / KEY).rename(tmp_path / "half")
        (tmp_path / "notes").mkdir()
        (tmp_path / "file").write_text("")
        shutil.copytree(entry, tmp_path / "broken")
        found = {item.key: item for item in entries(tmp_path)}
        assert set(found) == {KEY, "half", "broken"}
        assert found[KEY].state == "complete"
        assert (found[KEY].rows, found[KEY].shards) == (builder.ROWS, 4)
        assert found[KEY].description == {"by": "a test"} and found[KEY].created > 1e9
        assert found["half"].state == "partial"
        assert found["broken"].state == "damaged"  # its manifest is of another key
        assert entries(tmp_path / "nowhere") == ()
        json.loads(found[KEY].to_json())

    def test_removing(self, entry, tmp_path):
        Entry(tmp_path, KEY).remove()
        assert os.listdir(tmp_path) == []
        write_some(tmp_path, [0])
        Entry(tmp_path, KEY).remove()
        assert os.listdir(tmp_path) == []
        for function in (Entry.remove, Entry.verify):
            with pytest.raises(CacheError, match="no cache entry"):
                function(Entry(tmp_path, KEY))

    def test_what_is_not_ours_is_not_removed(self, entry, tmp_path):
        (entry / "thesis.tex").write_text("years of work")
        before = sorted(os.listdir(entry))
        with pytest.raises(CacheError, match=r"thesis\.tex"):
            Entry(tmp_path, KEY).remove()
        assert sorted(os.listdir(entry)) == before
        (tmp_path / "link").symlink_to(entry)
        with pytest.raises(CacheError, match="no cache entry"):
            Entry(tmp_path, "link").remove()

    def test_removing_begins_with_the_manifest(self, entry, tmp_path, monkeypatch):
        def remove(path):
            unlink(path)
            raise OSError(errno.EIO, "interrupted")

        unlink = os.remove
        monkeypatch.setattr(os, "remove", remove)
        with pytest.raises(OSError, match="interrupted"):
            Entry(tmp_path, KEY).remove()
        assert open_entry(tmp_path, KEY) is None

    def test_verifying(self, entry, tmp_path):
        Entry(tmp_path, KEY).verify()
        assert Entry(tmp_path, KEY).describe().state == "complete"


class Died(BaseException):
    """The process is no more."""


class FailingSystem(types.SimpleNamespace):
    """`os` for files, whose call number `at` of one kind fails or ends the process."""

    COUNTED = (
        *("open", "write", "fsync", "replace", "link", "remove", "listdir"),
        "makedirs",
    )

    def __init__(self, kind, at, how):
        super().__init__(**{k: v for k, v in vars(os).items() if k != "close"})
        self.kind, self.at, self.how = kind, at, how
        self.calls, self.is_dead, self.descriptors = 0, False, set()
        for name in self.COUNTED:
            setattr(self, name, functools.partial(self._call, name))

    def _call(self, name, *arguments, **named):
        if self.is_dead:
            raise Died
        self.calls += name == self.kind
        if name == self.kind and self.calls == self.at:
            if name == "write" and self.how in ("short", "death"):
                descriptor, data = arguments
                os.write(descriptor, data[: len(data) // 2])
            if self.how == "death":
                self.is_dead = True
                raise Died
            code = errno.ENOSPC if self.how in ("ENOSPC", "short") else errno.EIO
            raise OSError(code, os.strerror(code))
        if name == "fsync":
            return None
        result = getattr(os, name)(*arguments, **named)
        if name == "open":
            self.descriptors.add(result)
        return result

    def close(self, descriptor):
        if self.is_dead:
            raise Died
        os.close(descriptor)
        self.descriptors.discard(descriptor)

    def bury(self):
        """What the kernel does with the dead."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()


def count_calls(tmp_path, kind, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_files, "os", system := FailingSystem(kind, 0, "EIO"))
        builder.build(tmp_path / f"count-{kind}", KEY)
    return system.calls


@pytest.fixture
def syncing(monkeypatch):
    """Undoes `_no_waiting_for_the_disk`: these tests have an `fsync` of their own."""
    monkeypatch.setattr(_files, "_sync", _SYNC)


@pytest.mark.parametrize("how", ["EIO", "ENOSPC", "short", "death"])
@pytest.mark.parametrize("kind", FailingSystem.COUNTED)
def test_any_call_may_fail(kind, how, tmp_path, monkeypatch, syncing):
    calls = count_calls(tmp_path, kind, monkeypatch)
    assert calls > 0
    for at in range(1, calls + 1):
        cache_dir = tmp_path / f"{at}"
        with monkeypatch.context() as patch:
            patch.setattr(_files, "os", system := FailingSystem(kind, at, how))
            try:
                builder.build(cache_dir, KEY)
            except DiskFullError as error:
                assert how in ("ENOSPC", "short") and error.errno == errno.ENOSPC
            except OSError as error:
                assert error.errno == errno.EIO or kind in ("remove", "listdir")
            except Died:
                assert how == "death"
            system.bury()
        table = open_entry(cache_dir, KEY)
        assert table is None or builder.wrong_rows(table) == 0
        done = set(builder.builder(cache_dir, KEY).finished())
        said = []
        builder.build(cache_dir, KEY, lambda *words, said=said: said.append(words))
        begun = {words[1] for words in said if words[0] == "begun"}
        assert not begun & done  # what was finished is kept
        assert builder.wrong_rows(open_entry(cache_dir, KEY)) == 0


class WatchedSystem(FailingSystem):
    """Knows what a power cut would lose."""

    def __init__(self):
        super().__init__("", 0, "")
        self.paths, self.unsynced, self.named = {}, set(), []

    def _call(self, name, *arguments, **named):
        if name == "fsync":
            self.unsynced.discard(self.paths[arguments[0]])
        if name == "write":
            self.unsynced.add(self.paths[arguments[0]])
        if name in ("link", "replace"):
            source, target = arguments
            assert source not in self.unsynced
            directory = os.path.dirname(target)
            if target.endswith(_shards.MANIFEST):
                assert directory not in self.unsynced  # the shards are there to stay
            self.named.append(target)
            self.unsynced.add(directory)
        result = super()._call(name, *arguments, **named)
        if name == "open":
            self.paths[result] = arguments[0]
            if arguments[1] & os.O_EXCL:
                self.unsynced.add(arguments[0])
        return result


def test_a_power_cut_finds_no_name_before_its_content(tmp_path, monkeypatch, syncing):
    monkeypatch.setattr(_files, "os", system := WatchedSystem())
    builder.build(tmp_path, KEY)
    assert len(system.named) == 5
    assert system.unsynced & set(system.named) == set()
    assert str(tmp_path / KEY) not in system.unsynced


def test_writes_that_take_a_part_only(tmp_path, monkeypatch):
    system = FailingSystem("", 0, "")
    system.write = lambda file, data: os.write(file, data[: max(1, len(data) // 3)])
    monkeypatch.setattr(_files, "os", system)
    builder.build(tmp_path, KEY)
    assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0


class TestFullDisks:
    def test_room_is_looked_for_before_a_shard(self, tmp_path, monkeypatch):
        unfinished = write_some(tmp_path, [0])
        monkeypatch.setattr(_files.Directory, "free", lambda self: 1_000_000)
        with pytest.raises(DiskFullError) as error, unfinished.claim(1):
            raise AssertionError("it should not get here")
        assert "1.0 MB free" in str(error.value)
        assert "for 3.8 kB until the cache is whole" in str(error.value)
        assert "finished shards are kept" in str(error.value)
        assert error.value.errno == errno.ENOSPC
        assert set(unfinished.finished()) == {0}

    def test_it_is_an_os_error_too(self):
        assert issubclass(DiskFullError, OSError)


def test_checksums_are_those_of_the_file(entry, tmp_path):
    listed = json.loads((entry / "manifest.json").read_text())["shards"]
    for shard, (size, header_crc32) in zip(
        open_entry(tmp_path, KEY).shards, listed, strict=True
    ):
        content = (entry / shard.name).read_bytes()
        begin = 8 + int.from_bytes(content[:8], "little")
        assert (len(content), zlib.crc32(content[:begin])) == (size, header_crc32)
        tensors = safetensors.numpy.load(content)
        for column, told in zip(shard.columns, shard.crc32, strict=True):
            assert zlib.crc32(tensors[column.name].tobytes()) == told


class TestElsewhere:
    """On a file system that only `tf.io.gfile` knows."""

    @pytest.fixture
    def cache_dir(self, request):
        path = f"ram://{request.node.name}/cache"
        yield path
        if tf.io.gfile.exists(path):
            tf.io.gfile.rmtree(path)

    def test_an_entry(self, cache_dir):
        assert open_entry(cache_dir, KEY) is None
        assert entries(cache_dir) == ()
        builder.build(cache_dir, KEY)
        assert builder.wrong_rows(open_entry(cache_dir, KEY)) == 0
        (entry,) = entries(cache_dir)
        assert (entry.state, entry.rows) == ("complete", builder.ROWS)
        names = tf.io.gfile.listdir(f"{cache_dir}/{KEY}")
        assert sorted(names) == ["manifest.json"] + [
            f"shard-{i:05d}.safetensors" for i in range(4)
        ]
        Entry(cache_dir, KEY).verify()
        Entry(cache_dir, KEY).remove()
        assert entries(cache_dir) == ()

    def test_it_goes_on_where_it_was_interrupted(self, cache_dir):
        write_some(cache_dir, [0, 2])
        assert entries(cache_dir)[0].state == "partial"
        said = []
        builder.build(cache_dir, KEY, lambda *words: said.append(words))
        assert [words[1] for words in said if words[0] == "begun"] == [1, 3]
        assert builder.wrong_rows(open_entry(cache_dir, KEY)) == 0

    @pytest.mark.parametrize("at", [0, 20, -1])
    def test_damage(self, at, cache_dir):
        builder.build(cache_dir, KEY)
        path = f"{cache_dir}/{KEY}/shard-00001.safetensors"
        with tf.io.gfile.GFile(path, "rb") as file:
            content = bytearray(file.read())
        content[at] ^= 1
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(bytes(content))
        with pytest.raises(CorruptCacheError, match="shard-00001"):
            open_entry(cache_dir, KEY)

    def test_a_write_that_fails_leaves_nothing(self, cache_dir, monkeypatch):
        unfinished = builder.builder(cache_dir, KEY)

        def rename(*arguments, **named):
            raise tf.errors.ResourceExhaustedError(None, None, "quota")

        monkeypatch.setattr(tf.io.gfile, "rename", rename)
        with pytest.raises(DiskFullError, match="quota"):
            unfinished.write(0, builder.blocks(unfinished.shards[0]), {})
        monkeypatch.undo()
        assert tf.io.gfile.listdir(f"{cache_dir}/{KEY}") == []
        assert unfinished.finished() == {}
