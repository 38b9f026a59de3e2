"""The short form of `python -m tests.hostile.mutate`, in one process."""

import collections
import pathlib

import numpy as np
import pytest

from tests.hostile.mutate import BAD, attempt, mutated
from tests.hostile.seeds import FORMATS, contents


@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_damage_at_random(name, count, tmp_path):
    write, suffix, checked = FORMATS[name]
    path = str(write(tmp_path))
    content = pathlib.Path(f"{path}{suffix}").read_bytes()
    sound, integrity = contents(path)
    assert integrity == ("verified" if checked else "unverified")
    outcomes = collections.Counter()
    for i in range(count):
        damaged = mutated(content, np.random.default_rng([1, i]))
        outcome, text = attempt(path, suffix, damaged, sound, checked)
        assert outcome not in BAD, f"file {i}: {outcome}, {text}"
        if outcome == "other":
            assert text == "unverified"
        outcomes[outcome] += 1
    assert outcomes["error"] > 0
