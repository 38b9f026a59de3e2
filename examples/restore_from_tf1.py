"""A hand-written TF1 graph's checkpoint, from `tf.train.Saver`, into a Keras model.

The old program built `dnn/hidden1` to `dnn/hidden3` and `dnn/outputs` by hand. Its
checkpoint keeps the names of the variables, so patterns over layers work as they are.

    python examples/restore_from_tf1.py
"""

import pathlib

import numpy as np

import tfdeep

FILES = pathlib.Path(__file__).parents[1] / "tests" / "goldens" / "tf215"


def main():
    model = tfdeep.models.dnn((8,), [6, 6, 6], num_outputs=3, activation="elu")
    # The first three layers, and nothing else: the scope `dnn/` is found by itself.
    part = tfdeep.restore(model, FILES / "tf1_dense_v1.ckpt", include="hidden[123]")
    print(part)
    # `tf.contrib.layers` called its variables weights and biases.
    names = {r"(.*)/weights": r"\1/kernel", r"(.*)/biases": r"\1/bias"}
    whole = tfdeep.restore(model, FILES / "tf1_contrib_v2.ckpt", rename=names)
    print(whole)
    old = np.load(FILES / "tf1_contrib.npz")
    difference = float(np.abs(model(old["probe"]) - old["output"]).max())
    print(f"outputs differ from those of the old program by at most {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
