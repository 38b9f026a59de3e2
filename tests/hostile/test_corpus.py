"""No file, however it was made, crashes, hangs, exhausts or escapes a reader."""

import pathlib
import sys

import pytest

import tfdeep
from tests.checkpoints.files import processor_time
from tests.hostile import corpus
from tests.hostile.seeds import contents
from tfdeep.errors import TfdeepError

CASES = [(kind, name) for kind, files in corpus.CORPUS.items() for name in files]
MOST_SECONDS = 5.0  # of processor time
MOST_MEMORY = 200_000_000  # bytes, beside four times the file


def test_there_are_at_least_three_hundred():
    assert len(CASES) >= 300


def reset_peak():
    if sys.platform == "linux":
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak():
    if sys.platform != "linux":
        return 0
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_it_is_refused(kind, name, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"canary" * 100)
    directory = tmp_path / "files"
    directory.mkdir()
    path = corpus.CORPUS[kind][name](directory)
    there = sorted(tmp_path.rglob("*"))
    size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
    reset_peak()
    before, begin = peak(), processor_time()
    with pytest.raises(TfdeepError) as error:
        contents(path)
    assert processor_time() - begin < MOST_SECONDS
    assert peak() - before < 4 * size + MOST_MEMORY
    assert sorted(tmp_path.rglob("*")) == there
    assert "canary" not in str(error.value)
    assert "Fix:" in str(error.value)
    # Nor is it read by the verb, which changes nothing.
    model = tfdeep.models.dnn((4,), hidden_units=[3], num_outputs=2)
    with pytest.raises(TfdeepError):
        tfdeep.restore(model, path)
