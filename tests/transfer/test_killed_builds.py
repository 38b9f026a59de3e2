"""Builders of a cache killed at any moment, and many at once.

`pytest --long` kills a thousand times and races a hundred, otherwise a few.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.transfer import builder
from tfdeep._core._files import TEMPORARY
from tfdeep.transfer._shards import Entry, entries

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def is_long(request):
    return request.config.getoption("--slow")


@needs_fork
def test_killed_at_any_moment(tmp_path, request):
    kills = 1000 if is_long(request) else 200
    rng = random.Random(0)
    forks = subprocess.Popen(
        [sys.executable, builder.__file__, "forks", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    whole = time_of_a_build(forks)
    completed = interrupted = left_over = 0
    finished = set()  # shards of the entry at hand
    try:
        for _ in range(kills):
            key = f"entry-{completed}"
            print(key, file=forks.stdin, flush=True)
            word, child = forks.stdout.readline().split()
            assert word == "child"
            time.sleep(rng.uniform(0, whole))
            os.kill(int(child), signal.SIGKILL)

            begun, done = set(), set(finished)
            while (line := forks.stdout.readline()) != "dead\n":
                word, *shard = line.split()
                if word == "begun":
                    assert int(shard[0]) not in finished | begun
                    begun.add(int(shard[0]))
                elif word == "done":
                    done.add(int(shard[0]))
            directory = tmp_path / key
            shards = set(Entry(tmp_path, key).finished())
            assert done <= shards, "a finished shard is lost"
            assert len(begun - shards) <= 1, "more than one shard is lost"
            table = Entry(tmp_path, key).open()
            assert table or word != "complete"
            interrupted += bool(shards - finished and not table)
            finished = shards
            if table:
                assert builder.wrong_rows(table) == 0
                left_over += temporary(directory)
                completed, finished = completed + 1, set()
            else:
                assert temporary(directory) <= 2
    finally:
        forks.stdin.close()
        forks.kill()
        forks.wait()
    assert completed > 1 and interrupted > kills / 10
    assert left_over <= completed / 10, "what the dead left behind piles up"


def time_of_a_build(forks):
    """In seconds, on this machine."""
    print("whole", file=forks.stdin, flush=True)
    _, child = forks.stdout.readline().split()
    begin = time.perf_counter()
    while forks.stdout.readline() != "complete\n":
        pass
    seconds = time.perf_counter() - begin
    os.kill(int(child), signal.SIGKILL)
    assert forks.stdout.readline() == "dead\n"
    return seconds


def temporary(directory):
    """How many files there are that no writer has finished."""
    return sum(bool(TEMPORARY.fullmatch(p.name)) for p in directory.glob(".*"))


@needs_fork
def test_builders_and_readers_at_once_without_locks(tmp_path, request):
    for round_number in range(100 if is_long(request) else 4):
        key = f"round-{round_number}"
        run = subprocess.run(
            [sys.executable, builder.__file__, "race", str(tmp_path), key, "8", "4"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.stdout == "failed 0\n", run.stdout + run.stderr
        assert builder.wrong_rows(Entry(tmp_path, key).open()) == 0
    assert {entry.state for entry in entries(tmp_path)} == {"complete"}
