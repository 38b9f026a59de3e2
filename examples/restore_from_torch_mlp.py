"""A PyTorch multi-layer perceptron's state dict into a Keras model.

PyTorch keeps a dense layer's weight as (outputs, inputs); `layout="torch"` turns it.
Neither PyTorch nor pickle is needed to read the file.

    python examples/restore_from_torch_mlp.py
"""

import pathlib

import numpy as np

import tfdeep

FILES = pathlib.Path(__file__).parents[1] / "tests" / "goldens" / "torch"


def main():
    model = tfdeep.models.dnn((8,), [6, 6], num_outputs=3, activation="relu")
    names = {r"fc(\d)": r"hidden\1", "out": "outputs"}
    report = tfdeep.restore(model, FILES / "mlp.pt", layout="torch", rename=names)
    print(report)
    torch = np.load(FILES / "mlp.npz")
    difference = float(np.abs(model(torch["x"]) - torch["y"]).max())
    print(f"outputs differ from PyTorch's by at most {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
