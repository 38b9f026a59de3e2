"""A checkpoint of tensorflow-addons' WeightNormalization into plain dense layers.

The wrapper keeps a direction v (under the name `kernel`) and a length g for each unit;
the kernel that the layer used is w = g v / ||v||. A transform makes it from the two.

    python examples/restore_from_weight_normalization.py
"""

import pathlib

import numpy as np

import tfdeep

FILES = pathlib.Path(__file__).parents[1] / "tests" / "goldens" / "tf215"


def folded(g):
    """w = g v / ||v||, with the norm over the inputs of each unit."""
    return lambda v: (g * v / np.linalg.norm(v, axis=0)).astype("float32")


def main():
    source = FILES / "weight_norm_object.ckpt"
    with tfdeep.checkpoints.open(source) as reader:
        g = {name: reader.read(f"{name}/g") for name in ("hidden1", "hidden2")}
    model = tfdeep.models.dnn((8,), [6, 6], num_outputs=3, activation="elu")
    transform = {f"{name}/kernel": folded(length) for name, length in g.items()}
    print(tfdeep.restore(model, source, transform=transform))
    old = np.load(FILES / "weight_norm.npz")
    difference = float(np.abs(model(old["probe"]) - old["output"]).max())
    print(f"outputs differ from those of the old program by at most {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
