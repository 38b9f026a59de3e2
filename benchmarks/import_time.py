"""What `import tfdeep` adds to `import keras`, in seconds.

    python benchmarks/import_time.py

Each round starts a new interpreter, imports Keras, then tfdeep, and takes the time of
the second import alone.
"""

import os
import statistics
import subprocess
import sys

CODE = """
import time, keras
start = time.perf_counter()
import tfdeep
print(time.perf_counter() - start)
"""
ROUNDS = 9


def main():
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    seconds = []
    for _ in range(ROUNDS):
        run = subprocess.run(
            [sys.executable, "-c", CODE],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        seconds.append(float(run.stdout))
    median = statistics.median(seconds)
    print(f"import tfdeep after import keras: median {median:.3f} s")
    print(f"({min(seconds):.3f} to {max(seconds):.3f} in {ROUNDS} runs; at most 0.1)")


if __name__ == "__main__":
    main()
