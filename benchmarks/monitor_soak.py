"""Whether a long monitored run stays small: memory, open files, event files.

    python benchmarks/monitor_soak.py                   100,000 steps, some minutes
    python benchmarks/monitor_soak.py --steps 20000

Prints resident memory, open file descriptors, and the size of what was written, every
ten thousand steps; and what they grew by after step 10,000.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import tfdeep

EVERY = 10_000


def resident_megabytes():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Gauge(keras.callbacks.Callback):
    """Looks at this process every so many steps."""

    def __init__(self, log_dir):
        super().__init__()
        self.log_dir, self.rows = pathlib.Path(log_dir), []

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % EVERY == 0:
            files = list(pathlib.Path("/proc/self/fd").iterdir())
            sizes = {
                path.name: path.stat().st_size / 1e6
                for path in self.log_dir.rglob("*")
                if path.is_file()
            }
            events = sum(size for name, size in sizes.items() if "tfevents" in name)
            others = sum(sizes.values()) - events
            row = (batch + 1, resident_megabytes(), len(files), events, others)
            self.rows.append(row)
            print("{:>8} {:>10.1f} {:>6} {:>12.1f} {:>9.1f}".format(*row), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--plain", action="store_true", help="without the monitor")
    options = parser.parse_args()
    model = tfdeep.models.dnn((64,), [100] * 20, 10, activation="relu")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16 * 100, 64)).astype("float32")
    y = rng.integers(0, 10, len(x))
    with tempfile.TemporaryDirectory() as log_dir:
        gauge = Gauge(log_dir)
        callbacks = [gauge]
        if not options.plain:
            monitor = tfdeep.callbacks.GradientMonitor(
                log_dir, activations=True, on_finding=None
            )
            callbacks = [monitor, gauge]
        print(f"{'step':>8} {'memory MB':>10} {'files':>6} {'events MB':>12}", end="")
        print(f" {'jsonl MB':>9}")
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).cache().repeat()
        model.fit(data, steps_per_epoch=options.steps, verbose=0, callbacks=callbacks)
    first, last = gauge.rows[0], gauge.rows[-1]
    print(f"after step {first[0]}: memory {last[1] - first[1]:+.1f} MB, ", end="")
    print(f"files {last[2] - first[2]:+d}")


if __name__ == "__main__":
    main()
