"""Tables on disk: whole or not there, and damage is never read."""

import errno
import json
import os
import pathlib
import random
import shutil
import zlib

import ml_dtypes
import numpy as np
import pytest

from tests.transfer import builder
from tfdeep.errors import (
    CacheError,
    CorruptCacheError,
    DiskFullError,
    InvalidArgumentError,
)
from tfdeep.transfer import _disk, _store
from tfdeep.transfer._build import Builder
from tfdeep.transfer._store import (
    Column,
    entries,
    open_entry,
    remove_entry,
    verify_entry,
)

KEY = "some-key_1"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(_disk.disk, "fsync", lambda descriptor: None)


@pytest.fixture
def entry(tmp_path):
    """The directory of a whole entry."""
    builder.build(tmp_path, KEY)
    return tmp_path / KEY


def write_some(tmp_path, numbers):
    unfinished = builder.builder(tmp_path, KEY)
    for number in numbers:
        with unfinished.writer(number, {"shard": number}) as writer:
            writer.append(builder.content(unfinished.shards[number]))
    return unfinished


class TestWholeEntries:
    def test_what_is_written_is_read(self, entry, tmp_path):
        table = open_entry(tmp_path, KEY)
        assert builder.wrong_rows(table) == 0
        assert table.layout.columns == tuple(builder.COLUMNS)
        assert table.description == {"by": "a test"}
        assert [shard.extra["shard"] for shard in table.shards] == [0, 1, 2, 3]
        assert table.bytes == builder.ROWS * (60 + 8 + 7)
        assert not [n for n in os.listdir(entry) if n.endswith((".lock", ".tmp"))]

    @pytest.mark.parametrize("dtype", list(_store._DTYPES))
    def test_dtypes_are_kept_to_the_bit(self, dtype, tmp_path):
        column = Column("any / name ☃", dtype, (2, 3))
        raw = np.random.default_rng(0).integers(0, 256, (5, column.row_bytes), "u1")
        if dtype == "bool":
            raw %= 2
        values = raw.view(getattr(ml_dtypes, dtype, dtype)).reshape(5, 2, 3)
        table = Builder(tmp_path, KEY, [column], 5, {}, shard_bytes=1)
        for number in range(5):
            with table.writer(number) as writer:
                writer.append([values[number : number + 1]])
        table.finish()
        found = open_entry(tmp_path, KEY)
        assert found.layout.columns == (column,)
        read = b"".join(pathlib.Path(path).read_bytes() for path in found.paths(0))
        assert read == values.tobytes()

    def test_blocks_need_not_be_contiguous(self, tmp_path):
        values = np.arange(12, dtype="int32").reshape(3, 4)
        table = Builder(tmp_path, KEY, [Column("x", "int32", (3,))], 4, {})
        with table.writer(0) as writer:
            writer.append([values.T])
        table.finish()
        (path,) = open_entry(tmp_path, KEY).paths(0)
        np.testing.assert_array_equal(np.fromfile(path, "<i4"), values.T.ravel())

    def test_nothing_is_there_before_the_end(self, tmp_path):
        unfinished = write_some(tmp_path, [0, 1, 3])
        assert open_entry(tmp_path, KEY) is None
        with pytest.raises(CacheError, match="3 of 4 shards"):
            unfinished.finish()
        assert open_entry(tmp_path, KEY) is None
        assert open_entry(tmp_path, "another") is None
        assert open_entry(tmp_path / "nowhere", KEY) is None

    def test_finishing_again_changes_nothing(self, entry, tmp_path):
        before = (entry / "manifest.json").read_bytes()
        again = builder.builder(tmp_path, KEY)
        again.finish()
        with again.writer(0) as writer:
            assert writer is None
        assert (entry / "manifest.json").read_bytes() == before


class TestResuming:
    def test_finished_shards_are_kept(self, tmp_path):
        write_some(tmp_path, [2])
        unfinished = builder.builder(tmp_path, KEY)
        (shard,) = unfinished.committed().values()
        assert shard.extra == {"shard": 2}
        with unfinished.writer(2) as writer:
            assert writer is None
        builder.build(tmp_path, KEY)
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0

    def test_shards_keep_the_size_they_began_with(self, tmp_path):
        begun = write_some(tmp_path, [1]).layout
        other = builder.builder(tmp_path, KEY, shard_bytes=10**6)
        assert other.layout == begun
        other = builder.builder(tmp_path, KEY, shard_bytes=10**6, rows_multiple=64)
        assert other.layout.rows_per_shard % 64 == 0

    def test_a_shard_of_another_table_is_not_finished(self, tmp_path):
        write_some(tmp_path, [1])
        columns = [Column("other", "float32", (4,))]
        other = Builder(tmp_path, KEY, columns, 50, {}, shard_bytes=100)
        assert other.committed() == {}

    def test_a_damaged_record_is_a_missing_shard(self, tmp_path):
        write_some(tmp_path, [0, 1])
        (tmp_path / KEY / "shard-00001.json").write_text('{"format": 1}')
        assert set(builder.builder(tmp_path, KEY).committed()) == {0}

    @pytest.mark.parametrize("rows", [0, 5, 19])
    def test_a_shard_with_too_few_rows_is_not_kept(self, rows, tmp_path):
        unfinished = builder.builder(tmp_path, KEY)
        with (
            pytest.raises(CacheError, match=f"Received: {rows} rows"),
            unfinished.writer(0) as writer,
        ):
            writer.append(builder.content(range(rows)))
        self.check_nothing_is_left(unfinished)

    def test_a_shard_with_too_many_rows_is_not_kept(self, tmp_path):
        unfinished = builder.builder(tmp_path, KEY)
        with (
            pytest.raises(CacheError, match="Received: 21 rows"),
            unfinished.writer(0) as writer,
        ):
            writer.append(builder.content(range(21)))
        self.check_nothing_is_left(unfinished)

    def test_an_error_of_the_caller_keeps_nothing(self, tmp_path):
        unfinished = builder.builder(tmp_path, KEY)
        with pytest.raises(ZeroDivisionError), unfinished.writer(0) as writer:
            writer.append(builder.content(range(20)))
            raise ZeroDivisionError
        self.check_nothing_is_left(unfinished)

    def check_nothing_is_left(self, unfinished):
        assert unfinished.committed() == {}
        assert os.listdir(unfinished.directory) == ["shard-00000.lock"]

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
        with (
            pytest.raises(InvalidArgumentError, match="no rows of the column"),
            unfinished.writer(0) as writer,
        ):
            writer.append(change(builder.content(range(4))))
        self.check_nothing_is_left(unfinished)

    @pytest.mark.parametrize("key", ["", "../up", "a/b", ".", "a" * 129, "é", None])
    def test_keys(self, key, tmp_path):
        with pytest.raises(InvalidArgumentError, match="key of a cache entry"):
            builder.builder(tmp_path, key)
        for function in (open_entry, remove_entry, verify_entry):
            with pytest.raises(InvalidArgumentError, match="key of a cache entry"):
                function(tmp_path, key)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        ("columns", "rows"),
        [([], 3), ([Column("x", "int8", (0,))], 3), (builder.COLUMNS, 0)],
    )
    def test_tables_of_nothing(self, columns, rows, tmp_path):
        with pytest.raises(InvalidArgumentError, match="at least one byte"):
            Builder(tmp_path, KEY, columns, rows, {})


class TestLocks:
    def test_a_shard_that_another_writes_is_left_to_it(self, tmp_path):
        one, other = (builder.builder(tmp_path, KEY) for _ in range(2))
        with one.writer(0) as writer:
            with other.writer(0) as refused:
                assert refused is None
            with other.writer(1) as second:
                second.append(builder.content(other.shards[1]))
            writer.append(builder.content(one.shards[0]))
        assert set(other.committed()) == {0, 1}

    def test_a_shard_can_be_written_in_spite_of_it(self, tmp_path):
        one, other = (builder.builder(tmp_path, KEY) for _ in range(2))
        with one.writer(0) as writer:
            with other.writer(0, {"by": "other"}, force=True) as second:
                second.append(builder.content(other.shards[0]))
            writer.append(builder.content(one.shards[0]))
        assert other.committed()[0].extra == {"by": "other"}
        builder.build(tmp_path, KEY)
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0

    def test_a_system_without_locks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_disk, "fcntl", None)
        builder.build(tmp_path, KEY)
        assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0


class TestWhatTheDeadLeave:
    def leave(self, tmp_path):
        """A file as a builder leaves it that is killed while it writes a shard."""
        file = _disk.NewFile(str(tmp_path / KEY), "shard-00000-0", ".bin")
        file.write(memoryview(b"half a shard"))
        return file

    def test_it_is_removed(self, tmp_path):
        builder.builder(tmp_path, KEY)
        file = self.leave(tmp_path)
        file.close()  # as the kernel does
        builder.builder(tmp_path, KEY)
        assert not os.path.exists(file.path)

    def test_the_living_keep_theirs(self, tmp_path):
        builder.builder(tmp_path, KEY)
        file = self.leave(tmp_path)
        builder.builder(tmp_path, KEY)
        builder.build(tmp_path, KEY)
        assert os.path.exists(file.path)
        file.discard()

    def test_a_shard_finished_in_that_moment_is_kept(self, tmp_path, monkeypatch):
        write_some(tmp_path, [0, 1])
        names = [n for n in os.listdir(tmp_path / KEY) if n.endswith(".bin")]
        monkeypatch.setattr(_store, "left_by_writers", lambda *arguments: names)
        builder.builder(tmp_path, KEY)
        assert {n for n in os.listdir(tmp_path / KEY) if n.endswith(".bin")} == {*names}

    @pytest.mark.parametrize("why", ["no locks", "another machine"])
    def test_where_a_lock_says_nothing_it_stays_for_a_day(
        self, why, tmp_path, monkeypatch
    ):
        builder.builder(tmp_path, KEY)
        file = self.leave(tmp_path)
        file.close()
        if why == "no locks":
            monkeypatch.setattr(_disk.disk, "lock", lambda descriptor: True)
        else:
            monkeypatch.setattr(_disk, "_HOST", "00000000")
        builder.builder(tmp_path, KEY)
        assert os.path.exists(file.path)
        past = os.stat(file.path).st_mtime - 25 * 3600
        os.utime(file.path, (past, past))
        builder.builder(tmp_path, KEY)
        assert not os.path.exists(file.path)


class TestDamage:
    def check(self, tmp_path, name, verify=True):
        with pytest.raises(CorruptCacheError) as error:
            open_entry(tmp_path, KEY, verify)
        message = str(error.value)
        assert name in message and "tfdeep cache rm" in message and KEY in message

    def names(self, entry):
        return sorted(n for n in os.listdir(entry) if n.endswith(".bin"))

    def test_a_flipped_bit_anywhere(self, entry, tmp_path, request):
        rng = random.Random(0)
        for name in [*self.names(entry), "manifest.json"]:
            path = entry / name
            whole = path.read_bytes()
            for _ in range(200 if request.config.getoption("--long") else 20):
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
            row = len(whole) // (20 if "-00003-" not in name else 10)
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
        first, second = (n for n in self.names(entry)[:4] if "-0-" in n)
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
        assert verify_entry(tmp_path, KEY).state == "partial"
        name = self.names(tmp_path / KEY)[0]
        path = tmp_path / KEY / name
        path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(CorruptCacheError, match=name):
            verify_entry(tmp_path, KEY)


def set_to(*path):
    *path, value = path

    def change(manifest):
        for step in path[:-1]:
            manifest = manifest[step]
        manifest[path[-1]] = value

    return change


FIRST = ("shards", 0, "files", 0)
HOSTILE = {
    "another format": set_to("format", 99),
    "a format that is text": set_to("format", "1"),
    "another key": set_to("key", "another"),
    "no layout": set_to("layout", None),
    "a list for a layout": set_to("layout", []),
    "no columns": set_to("layout", "columns", []),
    "text for columns": set_to("layout", "columns", "abc"),
    "an unknown dtype": set_to("layout", "columns", 0, "dtype", "object"),
    "a dtype that is no text": set_to("layout", "columns", 0, "dtype", ["f4"]),
    "a huge shape": set_to("layout", "columns", 0, "shape", [10**18] * 30),
    "a negative shape": set_to("layout", "columns", 0, "shape", [-3, -5]),
    "a fractional shape": set_to("layout", "columns", 0, "shape", [3.0, 5]),
    "many axes": set_to("layout", "columns", 0, "shape", [3, 5] + [1] * 50),
    "another shape": set_to("layout", "columns", 0, "shape", [3, 4]),
    "huge rows": set_to("layout", "rows", 10**30),
    "no rows": set_to("layout", "rows", 0),
    "rows that are true": set_to("layout", "rows", True),
    "fewer rows": set_to("layout", "rows", 69),
    "more rows": set_to("layout", "rows", 80),
    "no rows a shard": set_to("layout", "rows_per_shard", 0),
    "one row a shard": set_to("layout", "rows_per_shard", 1),
    "no shards": set_to("shards", []),
    "a shard that is null": set_to("shards", 0, None),
    "no files": set_to("shards", 0, "files", []),
    "a file that is a number": set_to("shards", 0, "files", 0, 7),
    "a file outside": set_to(*FIRST, "name", "../../secret"),
    "an absolute file": set_to(*FIRST, "name", "/etc/passwd"),
    "a name with an end": set_to(*FIRST, "name", "shard-00000-0-x.bin\n"),
    "a size that is text": set_to(*FIRST, "bytes", "1200"),
    "a huge size": set_to(*FIRST, "bytes", 10**300),
    "a negative checksum": set_to(*FIRST, "crc32", -1),
    "a huge checksum": set_to(*FIRST, "crc32", 1 << 32),
    "the file of another column": lambda m: m["shards"][0]["files"].reverse(),
    "the file of another shard": lambda m: m["shards"].insert(0, m["shards"].pop(1)),
    "a shard twice": lambda m: m["shards"].__setitem__(1, m["shards"][0]),
    "a shard less": lambda m: m["shards"].pop(),
    "no description": set_to("description", None),
    "a date that is text": set_to("created", "now"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("part", ["manifest", "record"])
def test_what_a_hostile_hand_has_signed(part, change, entry, tmp_path, monkeypatch):
    outside = tmp_path / "secret"
    outside.write_bytes(bytes(1200))
    path = entry / ("manifest.json" if part == "manifest" else "shard-00000.json")
    content = json.loads(path.read_text())
    del content["digest"]
    if part == "record":
        content = {**content, "shards": [content["shard"]] * 2}
        content |= {"description": {}, "created": 0.0}
    try:
        change(content)
    except IndexError:
        pytest.skip("has no such part")
    if part == "record":
        content["shard"] = content["shards"][0] if content["shards"] else None
    path.write_text(json.dumps(_store.signed(content)))
    opened, own = [], open

    def watched(path, *arguments, **more):
        opened.append(str(path))
        return own(path, *arguments, **more)

    monkeypatch.setattr("builtins.open", watched)
    if part == "manifest":
        with pytest.raises(CorruptCacheError, match=r"manifest\.json"):
            open_entry(tmp_path, KEY)
        (listed,) = entries(tmp_path)
        assert listed.state == "damaged"
    else:
        (entry / "manifest.json").unlink()
        assert len(builder.builder(tmp_path, KEY).committed()) <= 4
    assert all(p.startswith(str(entry)) for p in opened)
    remove_entry(tmp_path, KEY)
    assert os.listdir(tmp_path) == ["secret"]


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
        remove_entry(tmp_path, KEY)
        assert os.listdir(tmp_path) == []
        write_some(tmp_path, [0])
        remove_entry(tmp_path, KEY)
        assert os.listdir(tmp_path) == []
        for function in (remove_entry, verify_entry):
            with pytest.raises(CacheError, match="no cache entry"):
                function(tmp_path, KEY)

    def test_what_is_not_ours_is_not_removed(self, entry, tmp_path):
        (entry / "thesis.tex").write_text("years of work")
        before = sorted(os.listdir(entry))
        with pytest.raises(CacheError, match=r"thesis\.tex"):
            remove_entry(tmp_path, KEY)
        assert sorted(os.listdir(entry)) == before
        (tmp_path / "link").symlink_to(entry)
        with pytest.raises(CacheError, match="no cache entry"):
            remove_entry(tmp_path, "link")

    def test_removing_begins_with_the_manifest(self, entry, tmp_path, monkeypatch):
        def remove(path):
            os.remove(path)
            raise OSError(errno.EIO, "interrupted")

        monkeypatch.setattr(_disk.disk, "remove", remove)
        with pytest.raises(OSError, match="interrupted"):
            remove_entry(tmp_path, KEY)
        assert open_entry(tmp_path, KEY) is None

    def test_verifying(self, entry, tmp_path):
        assert verify_entry(tmp_path, KEY).state == "complete"


class Died(BaseException):
    """The process is no more."""


class FailingDisk(_disk.Disk):
    """Its call number `at` of one kind fails; or then the process dies."""

    def __init__(self, kind, at, how):
        self.kind, self.at, self.how = kind, at, how
        self.calls, self.is_dead, self.descriptors = 0, False, set()

    def _count(self, kind):
        if self.is_dead:
            raise Died
        if kind == self.kind:
            self.calls += 1
            if self.calls == self.at:
                if self.how == "death":
                    self.is_dead = True
                    raise Died
                return True
        return False

    def _fail(self, kind):
        if self._count(kind):
            code = errno.ENOSPC if self.how in ("ENOSPC", "short") else errno.EIO
            raise OSError(code, os.strerror(code))

    def open(self, path, flags):
        self._fail("open")
        self.descriptors.add(descriptor := super().open(path, flags))
        return descriptor

    def write(self, descriptor, data):
        is_next = self.kind == "write" and self.calls + 1 == self.at
        if is_next and self.how in ("short", "death"):
            super().write(descriptor, data[: len(data) // 2])
        if self.how == "short write":
            return super().write(descriptor, data[: max(1, len(data) // 3)])
        self._fail("write")
        return super().write(descriptor, data)

    def fsync(self, descriptor):
        self._fail("fsync")

    def replace(self, source, target):
        self._fail("replace")
        super().replace(source, target)

    def remove(self, path):
        self._fail("remove")
        super().remove(path)

    def listdir(self, path):
        self._fail("listdir")
        return super().listdir(path)

    def makedirs(self, path):
        self._fail("makedirs")
        super().makedirs(path)

    def close(self, descriptor):
        self._count("close")
        super().close(descriptor)
        self.descriptors.discard(descriptor)

    def bury(self):
        """What the kernel does with the dead."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()


def count_calls(tmp_path, kind, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_disk, "disk", disk := FailingDisk(kind, 0, "EIO"))
        builder.build(tmp_path / f"count-{kind}", KEY)
    return disk.calls


@pytest.mark.parametrize("how", ["EIO", "ENOSPC", "short", "death"])
@pytest.mark.parametrize(
    "kind", ["open", "write", "fsync", "replace", "remove", "listdir", "makedirs"]
)
def test_any_call_may_fail(kind, how, tmp_path, monkeypatch):
    calls = count_calls(tmp_path, kind, monkeypatch)
    assert calls > 0
    for at in range(1, calls + 1):
        cache_dir = tmp_path / f"{at}"
        with monkeypatch.context() as patch:
            patch.setattr(_disk, "disk", disk := FailingDisk(kind, at, how))
            try:
                builder.build(cache_dir, KEY)
            except DiskFullError as error:
                assert how in ("ENOSPC", "short") and error.errno == errno.ENOSPC
            except OSError as error:
                assert error.errno == errno.EIO or kind in ("remove", "listdir")
            except Died:
                assert how == "death"
            disk.bury()
        table = open_entry(cache_dir, KEY)
        assert table is None or builder.wrong_rows(table) == 0
        done = set(builder.builder(cache_dir, KEY).committed())
        said = []
        builder.build(cache_dir, KEY, lambda *words, said=said: said.append(words))
        begun = {words[1] for words in said if words[0] == "begun"}
        assert not begun & done  # what was finished is kept
        assert builder.wrong_rows(open_entry(cache_dir, KEY)) == 0


class WatchedDisk(_disk.Disk):
    """Knows what a power cut would lose."""

    def __init__(self):
        self.paths, self.unsynced, self.renamed = {}, set(), []

    def open(self, path, flags):
        descriptor = super().open(path, flags)
        self.paths[descriptor] = path
        if flags & os.O_EXCL:
            self.unsynced.add(path)
        return descriptor

    def write(self, descriptor, data):
        self.unsynced.add(self.paths[descriptor])
        return super().write(descriptor, data)

    def fsync(self, descriptor):
        self.unsynced.discard(self.paths[descriptor])

    def replace(self, source, target):
        assert source not in self.unsynced
        content = json.loads(pathlib.Path(source).read_text())
        shards = content.get("shards") or [content["shard"]]
        directory = os.path.dirname(target)
        named = {os.path.join(directory, f["name"]) for s in shards for f in s["files"]}
        assert not named & self.unsynced
        if target.endswith(_store.MANIFEST):
            assert directory not in self.unsynced  # the records are there to stay
        self.renamed.append(target)
        self.unsynced.add(directory)
        super().replace(source, target)


def test_a_power_cut_finds_no_name_before_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(_disk, "disk", disk := WatchedDisk())
    builder.build(tmp_path, KEY)
    assert len(disk.renamed) == 5
    assert disk.unsynced & set(disk.renamed) == set()
    assert str(tmp_path / KEY) not in disk.unsynced


def test_writes_that_take_a_part_only(tmp_path, monkeypatch):
    monkeypatch.setattr(_disk, "disk", FailingDisk("write", 0, "short write"))
    builder.build(tmp_path, KEY)
    assert builder.wrong_rows(open_entry(tmp_path, KEY)) == 0


class TestFullDisks:
    def test_room_is_looked_for_before_a_shard(self, tmp_path, monkeypatch):
        unfinished = write_some(tmp_path, [0])
        monkeypatch.setattr(_disk.disk, "free", lambda path: 1_000_000)
        with pytest.raises(DiskFullError) as error, unfinished.writer(1):
            raise AssertionError("it should not get here")
        assert "1.0 MB free" in str(error.value)
        assert "for 3.8 kB until the cache is whole" in str(error.value)
        assert "finished shards are kept" in str(error.value)
        assert error.value.errno == errno.ENOSPC
        assert set(unfinished.committed()) == {0}

    def test_it_is_an_os_error_too(self):
        assert issubclass(DiskFullError, OSError)


def test_checksums_are_those_of_the_file(entry, tmp_path):
    table = open_entry(tmp_path, KEY)
    for shard in table.shards:
        for file in shard.files:
            content = (entry / file.name).read_bytes()
            assert (len(content), zlib.crc32(content)) == (file.bytes, file.crc32)
