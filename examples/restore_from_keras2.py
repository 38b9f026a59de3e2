"""The `.h5` file of a Keras 2 model into a Keras 3 model, layer by layer.

Keras 3 goes by position when it loads such a file; tfdeep goes by the names in it. The
architecture in the file is not looked at: the model is yours.

    python examples/restore_from_keras2.py
"""

import pathlib

import keras
import numpy as np
from keras import layers

import tfdeep

FILES = pathlib.Path(__file__).parents[1] / "tests" / "goldens" / "tf215"


def build():
    inputs = keras.Input((5, 4))
    x = layers.LSTM(4, return_sequences=True, name="lstm1")(inputs)
    both = layers.LSTM(3, return_sequences=True, name="lstm")
    x = layers.Bidirectional(both, name="bidirectional1")(x)
    x = layers.GRU(4, name="gru1")(x)
    return keras.Model(inputs, layers.Dense(3, name="outputs")(x))


def main():
    model = build()
    old = np.load(FILES / "rnn.npz")
    report = tfdeep.restore(model, FILES / "rnn_model.h5", probe=old["probe"])
    print(report)
    difference = float(np.abs(report.probe.after[0] - old["output"]).max())
    print(f"outputs differ from those of Keras 2 by at most {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
