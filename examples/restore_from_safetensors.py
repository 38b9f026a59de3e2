"""A `.safetensors` file of a PyTorch model, and one that tfdeep writes.

python examples/restore_from_safetensors.py
"""

import pathlib
import tempfile

import numpy as np

import tfdeep

FILES = pathlib.Path(__file__).parents[1] / "tests" / "goldens" / "torch"


def main():
    model = tfdeep.models.dnn((8,), [6, 6], num_outputs=3, activation="relu")
    names = {r"fc(\d)": r"hidden\1", "out": "outputs"}
    path = FILES / "mlp.safetensors"
    print(tfdeep.restore(model, path, layout="torch", rename=names))
    torch = np.load(FILES / "mlp.npz")
    difference = float(np.abs(model(torch["x"]) - torch["y"]).max())
    print(f"outputs differ from PyTorch's by at most {difference:.1e}")

    # What is worth reusing goes into a file of its own, in Keras' layout, checksummed.
    with tempfile.TemporaryDirectory() as directory:
        trunk = pathlib.Path(directory) / "trunk.safetensors"
        tfdeep.save_subset(model, trunk, include="hidden[12]")
        other = tfdeep.models.dnn((8,), [6, 6, 6], num_outputs=7)
        print(tfdeep.restore(other, trunk, include="hidden[12]"))
        compared = tfdeep.checkpoints.compare(other, trunk, include="hidden[12]")
    print(compared)
    return difference, compared.is_equal


if __name__ == "__main__":
    main()
