"""Damages sound files of every format at random, and reads them.

    python -m tests.hostile.mutate --count 1000 --seed 0
    python -m tests.hostile.mutate --count 20000 --format safetensors

For each format it prints how many files gave an error of `tfdeep.errors`, the right
values, or other values; other values are silent damage where the format has checksums,
and must be marked "unverified" where it has none. What must be zero: crashes, files
that took over five seconds of processor time, other exceptions, silent damage, and
memory beyond four times the file and 200 MB. The exit code says so.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import pathlib
import sys
import tempfile

import numpy as np

SLOW = 5.0  # seconds of processor time
MEMORY = 200e6  # bytes, beside four times the file
_HOSTILE = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
_HOSTILE += (2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one thing wrong."""
    data = bytearray(content)
    place = int(rng.integers(len(data)))
    kind = rng.choice(["bit", "byte", "cut", "zeros", "integer", "delete", "insert"])
    if kind == "bit":
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == "byte":
        data[place] = int(rng.integers(256))
    elif kind == "cut":
        del data[place:]
    elif kind == "zeros":
        count = int(rng.choice([4, 16, 64, 512]))
        data[place : place + count] = bytes(len(data[place : place + count]))
    elif kind == "integer":
        size = int(rng.choice([1, 2, 4, 8]))
        number = _HOSTILE[int(rng.integers(len(_HOSTILE)))] % (1 << (8 * size))
        data[place : place + size] = number.to_bytes(size, "little")
    elif kind == "delete":
        del data[place : place + int(rng.integers(1, 64))]
    else:
        data[place:place] = rng.bytes(int(rng.integers(1, 64)))
    return bytes(data)


def attempt(path: str, suffix: str, content: bytes, sound, checked: bool):
    """Reads a damaged file: what came of it, in a word, and what to say of it."""
    from tests.checkpoints.files import processor_time
    from tests.hostile.seeds import contents, same
    from tfdeep.errors import TfdeepError

    pathlib.Path(f"{path}{suffix}").write_bytes(content)
    begin = processor_time()
    try:
        values, integrity = contents(path)
    except TfdeepError as error:
        outcome, text = "error", type(error).__name__
    except Exception as error:
        outcome, text = "foreign", f"{type(error).__name__}: {error}"
    else:
        is_same, text = same(values, sound), integrity
        outcome = "same" if is_same else "other"
        if not is_same and (checked or integrity == "verified"):
            outcome = "silent"
    if processor_time() - begin > SLOW:
        outcome = "slow"
    return outcome, text


def _work(name: str, first: int, count: int, seed: int, results) -> None:
    """Reads so many damaged files of one format; says which it is at."""
    from tests.hostile.seeds import FORMATS, contents

    write, suffix, checked = FORMATS[name]
    with tempfile.TemporaryDirectory() as directory:
        path = str(write(directory))
        content = pathlib.Path(f"{path}{suffix}").read_bytes()
        sound, _ = contents(path)
        before = _peak_memory()
        for i in range(first, first + count):
            results.put(("begin", i, None, None))
            rng = np.random.default_rng([seed, i])
            outcome = attempt(path, suffix, mutated(content, rng), sound, checked)
            if _peak_memory() - before > 4 * len(content) + MEMORY:
                outcome = ("memory", f"{(_peak_memory() - before) / 1e6:.0f} MB")
            results.put(("end", i, *outcome))
    results.put(("done", first, None, None))


def _peak_memory() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Processes that read for this one count from nothing.
    return (own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * unit


def run(name: str, count: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """Damages and reads so many files of one format, in a process of its own.

    A process that dies counts as a crash, and another one goes on after that file.
    """
    context = multiprocessing.get_context("spawn")
    outcomes: collections.Counter = collections.Counter()
    notes = []
    first = 0
    while first < count:
        results = context.Queue()
        worker = context.Process(
            target=_work, args=(name, first, count - first, seed, results)
        )
        worker.start()
        current, is_done, has_begun = first, False, False
        while not is_done:
            try:
                state, i, outcome, text = results.get(timeout=1)
            except Exception:  # nothing came within a second
                if worker.is_alive():
                    continue
                if not has_begun:
                    raise RuntimeError(f"no file of {name} could be made") from None
                outcomes["crash"] += 1
                notes.append(f"{name} {current}: crash, exit {worker.exitcode}")
                current += 1
                break
            if state == "begin":
                current, has_begun = i, True
            elif state == "end":
                outcomes[outcome] += 1
                current = i + 1
                if outcome not in ("error", "same", "other"):
                    notes.append(f"{name} {i}: {outcome} {text}")
            else:
                is_done = True
        worker.join()
        first = current
    return outcomes, notes


BAD = ("silent", "foreign", "slow", "memory", "crash")


def main() -> int:
    from tests.hostile.seeds import FORMATS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="files of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS, action="append")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    columns = ("error", "same", "other", *BAD)
    print(f"{options.count} damaged files of each format, seed {options.seed}\n")
    print(f"{'format':>22}", *(f"{column:>8}" for column in columns), flush=True)
    failed = 0
    for name in options.format or FORMATS:
        outcomes, notes = run(name, options.count, options.seed)
        print(f"{name:>22}", *(f"{outcomes[c]:>8}" for c in columns), flush=True)
        for note in notes:
            print("   ", note)
        failed += sum(outcomes[bad] for bad in BAD)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
