"""`save_subset` killed at any moment, and on a full disk: the last file always reads.

`pytest --long` kills a hundred times for each format, otherwise five times.
"""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tfdeep
from tests.checkpoints.test_round_trips import functional, values

SUFFIXES = [".weights.h5", ".safetensors", ".npz", ".ckpt"]

# Saves model 0, 1, 2, ... whose every weight is that number, and says so before it
# begins and after it has ended. It forks before TensorFlow has started any thread.
SAVER = """
import os, sys
import keras, numpy as np, tensorflow as tf
import tfdeep
from tests.checkpoints.test_round_trips import functional

path = sys.argv[1]
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        model, number = functional(), int(line)
        while True:
            for weight in model.weights:
                if weight.dtype == "float32":
                    weight.assign(np.full(weight.shape, number, "float32"))
            tfdeep.save_subset(model, path)
            os.write(1, f"saved {number}\\n".encode())
            number += 1
    os.write(1, f"child {child}\\n".encode())
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_at_any_moment(suffix, kills, tmp_path):
    path = tmp_path / f"net{suffix}"
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    rng = random.Random(0)
    model, number, done = functional(), 0, 0
    try:
        for _ in range(kills):
            print(number, file=saver.stdin, flush=True)
            child = int(saver.stdout.readline().split()[1])
            done = int(saver.stdout.readline().split()[1])  # a whole file is there
            time.sleep(rng.uniform(0, 0.4))
            os.kill(child, signal.SIGKILL)
            while (line := saver.stdout.readline()) != "dead\n":
                done = int(line.split()[1])
            tfdeep.restore(model, path)
            found = {
                float(number)
                for value in values(model).values()
                if value.dtype.kind == "f"
                for number in np.unique(value)
            }
            # The last that was said to be saved, or the one that was just being saved.
            assert found <= {float(done)} or found <= {float(done + 1)}
            number = done + 1
    finally:
        saver.kill()
        saver.wait()


@pytest.mark.parametrize("levels", [10, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk(suffix, levels, tmp_path):
    """Needs the right to mount a small tmpfs."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        model, path = functional(), place / f"net{suffix}"
        tfdeep.save_subset(model, path)
        before = {name: value.copy() for name, value in values(model).items()}
        there = sorted(os.listdir(place))
        failed = 0
        for fill in range(350_000, 409_600, 59_600 // levels):
            filler = place / "filler"
            with contextlib.suppress(OSError):
                filler.write_bytes(bytes(fill))
            for weight in model.weights:
                if weight.dtype == "float32":
                    weight.assign(weight * 0 + fill)
            try:
                tfdeep.save_subset(model, path)
                before = {name: value.copy() for name, value in values(model).items()}
            except OSError:
                failed += 1
            filler.unlink()
            with tfdeep.checkpoints.open(path) as reader:
                assert len(reader.variables) == len(before)
            fresh = functional()
            tfdeep.restore(fresh, path)
            for name, value in values(fresh).items():
                assert value.tobytes() == before[name].tobytes()
            assert len(os.listdir(place)) == len(there)
        assert failed > max(levels // 10, 3)
    finally:
        subprocess.run(["umount", str(place)], check=True)
