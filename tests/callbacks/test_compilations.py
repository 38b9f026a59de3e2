"""XLA compiles a monitored step once: a step takes seconds to compile."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import keras
import numpy as np
import tfdeep

log_dir, clips = sys.argv[1], sys.argv[2] == "True"
optimizer = keras.optimizers.Adam()
if clips:
    optimizer = tfdeep.optimizers.ClipByGlobalNorm(optimizer, clip_norm=1.0)
model = tfdeep.models.dnn((4,), [8], 2)
loss = keras.losses.SparseCategoricalCrossentropy(True)
model.compile(
    optimizer, loss, jit_compile=True, steps_per_execution=int(sys.argv[3])
)
monitor = tfdeep.callbacks.GradientMonitor(log_dir, activations=clips, histograms=clips)
x, y = np.random.normal(size=(24 * 8, 4)).astype("float32"), np.zeros(24 * 8)
model.fit(x, y, batch_size=8, verbose=0, callbacks=[monitor])
"""


@pytest.mark.parametrize(
    ("clips", "steps_per_execution"),
    [
        (True, 4),
        pytest.param(False, 4, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
    ],
)
def test_a_monitored_step_is_compiled_once(tmp_path, clips, steps_per_execution):
    flags = f"--xla_dump_to={tmp_path / 'xla'} --xla_dump_hlo_as_text"
    subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, str(tmp_path / "logs")),
            *(str(clips), str(steps_per_execution)),
        ],
        env={**os.environ, "XLA_FLAGS": flags},
        check=True,
        capture_output=True,
    )
    compiled = list((tmp_path / "xla").glob("*step*.before_optimizations.txt"))
    assert len(compiled) == 1
