"""Makes the pretrained model of this directory.

    python saved_models/make_digits_0to4.py

Trains `tfdeep.models.dnn` on the digits 0 to 4 and writes its weights in two formats.
Run it only to add a format: files that stand here are not changed, because checkpoints
of users name them. To replace them all the same, pass `--overwrite`.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

import tfdeep
from tfdeep._demo._data import load_tasks
from tfdeep._demo._run import HIDDEN_UNITS, train_source

HERE = pathlib.Path(__file__).parent
NAME = "digits_0to4"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--overwrite", action="store_true")
    if list(HERE.glob(f"{NAME}.*")) and not parser.parse_args().overwrite:
        parser.error(f"{NAME} is there already; `--overwrite` replaces it")
    source, _ = load_tasks("digits")
    keras.utils.set_random_seed(42)
    model = train_source(source, epochs=20)
    results = model.evaluate(source.x_test, source.y_test, verbose=0, return_dict=True)

    # Without the optimizer, whose state would triple the files' size.
    plain = tfdeep.models.dnn((64,), HIDDEN_UNITS, num_outputs=5, activation="elu")
    plain.set_weights(model.get_weights())
    plain.save_weights(HERE / f"{NAME}.weights.h5")
    tf.train.Checkpoint(model=plain).write(str(HERE / f"{NAME}.ckpt"))
    print(f"hidden_units={HIDDEN_UNITS}, tensorflow {tf.__version__}, ", end="")
    print(f"keras {keras.__version__}: test accuracy {results['accuracy']:.3f}")


if __name__ == "__main__":
    main()
