"""A PyTorch residual block, convolutions and batch normalization, into a Keras model.

What has to be minded beside the weights: PyTorch puts channels first, pads by numbers
and normalizes with epsilon 1e-5.

    python examples/restore_from_torch_resnet.py
"""

import pathlib

import keras
import numpy as np
from keras import layers

import tfdeep

FILES = pathlib.Path(__file__).parents[1] / "tests" / "goldens" / "torch"


def convolution(x, filters, size, strides=1, name=None):
    if size == 3:  # padding=1 in PyTorch; Keras' "same" pads strided inputs otherwise
        x = layers.ZeroPadding2D(1)(x)
    kind = layers.Conv2D(filters, size, strides, use_bias=False, name=name)
    return kind(x)


def normalization(x, name):
    return layers.BatchNormalization(epsilon=1e-5, name=name)(x)


def build():
    inputs = keras.Input((10, 8, 3))
    x = convolution(inputs, 4, 3, name="conv1")
    x = layers.ReLU()(normalization(x, "bn1"))
    y = convolution(x, 6, 3, 2, name="block_conv1")
    y = layers.ReLU()(normalization(y, "block_bn1"))
    y = normalization(convolution(y, 6, 3, name="block_conv2"), "block_bn2")
    short = convolution(x, 6, 1, 2, name="short_conv")
    x = layers.ReLU()(layers.Add()([y, normalization(short, "short_bn")]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="fc")(x))


def main():
    model = build()
    names = {
        "layer1/0/downsample/0": "short_conv",
        "layer1/0/downsample/1": "short_bn",
        r"layer1/0/(conv|bn)(\d)": r"block_\1\2",
    }
    report = tfdeep.restore(model, FILES / "resnet.pt", layout="torch", rename=names)
    print(report)
    torch = np.load(FILES / "resnet.npz")
    images = np.moveaxis(torch["x"], 1, -1)
    difference = float(np.abs(model(images) - torch["y"]).max())
    print(f"outputs differ from PyTorch's by at most {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
