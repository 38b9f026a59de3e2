"""Training on cached features gives the weights that training without gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tests.transfer.test_cache import OPTIMIZERS


def mobile_net():
    """MobileNetV2 whose moving averages are those of a training."""
    keras.utils.set_random_seed(0)
    base = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
    )
    images, _ = next(iter(images_of_three_classes()))
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    base(images, training=True)
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    inputs = keras.Input((32, 32, 3))
    x = layers.Dropout(0.0)(base(inputs))
    model = keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))
    return model, base


def images_of_three_classes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 32, 32, 3)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, rng.integers(0, 3, 24))).batch(8)


CLASS_WEIGHTS = {0: 0.5, 1: 1.0, 2: 2.0}
QUICK = [("SGD", True, True), ("Adam", False, False)]


@pytest.mark.parametrize(
    ("optimizer", "whole", "weighted"),
    nets.slow_unless(
        lambda *case: case in QUICK, OPTIMIZERS, [True, False], [False, True]
    ),
)
def test_mobile_net(optimizer, whole, weighted, tmp_path):
    weights = CLASS_WEIGHTS if weighted else None
    trained = []
    data = images_of_three_classes()
    for cached in (False, True):
        model, base = mobile_net()
        first = [layer.name for layer in base.layers if layer.weights][:-4]
        before = model.get_weights()
        include = base.name if whole else [f"{base.name}/{name}" for name in first]
        report = tfdeep.freeze(model, include)
        assert len(report.batch_norm_inference) == (52 if whole else 50)
        head = model
        if cached:
            head, data, report = tfdeep.cache_frozen(model, data, tmp_path)
            assert len(report.boundary) == 1
        head.compile(OPTIMIZERS[optimizer](), nets.LOSS)
        head.fit(data, epochs=3, class_weight=weights, verbose=0)
        trained.append(model)
    assert nets.largest_difference(*trained) <= 1e-6
    moved = [
        float(np.abs(a - b).max())
        for a, b in zip(before, trained[1].get_weights(), strict=True)
    ]
    assert moved[-1] > 1e-3
    assert (max(moved[-10:-2]) > 1e-3) != whole
    assert max(moved[: len(moved) // 2]) == 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_two_inputs_and_two_outputs_with_weights(optimizer, where, tmp_path):
    rng = np.random.default_rng(0)
    x = {
        "image": rng.normal(size=(40, 6)).astype("float32"),
        "text": rng.normal(size=(40, 3)).astype("float32"),
    }
    y = {"a": rng.integers(0, 3, 40), "b": rng.normal(size=(40, 1)).astype("float32")}
    w = {"a": rng.random(40).astype("float32"), "b": rng.random(40).astype("float32")}
    data = tf.data.Dataset.from_tensor_slices((x, y, w)).batch(16)
    trained = []
    for cached in (False, True):
        keras.utils.set_random_seed(1)
        image, text = keras.Input((6,), name="image"), keras.Input((3,), name="text")
        first = layers.Dense(5, activation="tanh", name="image_hidden")(image)
        second = layers.Dense(5, activation="tanh", name="text_hidden")(text)
        both = layers.Concatenate()([first, second])
        outputs = {
            "a": layers.Dense(3, name="a")(both),
            "b": layers.Dense(1, name="b")(layers.Dense(4, name="top")(second)),
        }
        model = keras.Model({"image": image, "text": text}, outputs)
        tfdeep.freeze(model, ".*_hidden")
        head, features = model, data
        if cached:
            cache_dir = tmp_path if where == "disk" else None
            head, features, report = tfdeep.cache_frozen(model, data, cache_dir)
            assert len(report.boundary) == 2
        head.compile(
            OPTIMIZERS[optimizer](),
            loss={"a": nets.LOSS, "b": "mse"},
            weighted_metrics={"a": ["accuracy"], "b": ["mae"]},
        )
        head.fit(features, epochs=4, verbose=0)
        trained.append(model)
    assert nets.largest_difference(*trained) <= 1e-6
    assert report.check(batches=3) <= 1e-5
