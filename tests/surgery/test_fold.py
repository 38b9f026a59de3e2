"""Batch normalization folded away: the same outputs, and what is kept says why."""

import keras
import numpy as np
import pytest
from keras import layers

from tests import nets
from tfdeep.errors import ModelError
from tfdeep.surgery import fold_batch_norm

RNG = np.random.default_rng(0)


def randomized(model):
    """Statistics, gains and biases far from those of a new model."""
    for weight in model.weights:
        if weight.name in ("moving_variance", "gamma"):
            weight.assign(RNG.uniform(0.3, 3.0, size=weight.shape))
        elif weight.name in ("moving_mean", "beta", "bias"):
            weight.assign(RNG.normal(size=weight.shape))
    return model


def examples(model, count=4):
    return [
        RNG.normal(size=(count, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]


def assert_same_outputs(model, folded, rtol=1e-4, atol=2e-5):
    x = examples(model)
    x = x if len(x) > 1 else x[0]
    expected = keras.tree.flatten(model(x, training=False))
    found = keras.tree.flatten(folded(x, training=False))
    for a, b in zip(expected, found, strict=True):
        assert np.abs(a).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def norms_in(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    ]


BEFORE = {
    "dense": (lambda: layers.Dense(5), (3,), -1),
    "dense without bias": (lambda: layers.Dense(5, use_bias=False), (3,), -1),
    "dense on sequences": (lambda: layers.Dense(5), (4, 3), -1),
    "conv1d": (lambda: layers.Conv1D(4, 3), (6, 2), -1),
    "conv2d": (lambda: layers.Conv2D(4, 3, padding="same", strides=2), (6, 7, 2), -1),
    "dilated": (lambda: layers.Conv2D(4, 2, dilation_rate=2), (6, 7, 2), -1),
    "grouped": (lambda: layers.Conv2D(6, 3, groups=2, use_bias=False), (5, 5, 4), -1),
    "conv3d": (lambda: layers.Conv3D(3, 2), (3, 4, 3, 2), -1),
    "depthwise1d": (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), (6, 3), -1),
    "depthwise": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
        (5, 5, 3),
        -1,
    ),
    "separable1d": (lambda: layers.SeparableConv1D(4, 3), (6, 3), -1),
    "separable": (
        lambda: layers.SeparableConv2D(4, 3, depth_multiplier=2, padding="same"),
        (5, 5, 3),
        -1,
    ),
    "transposed1d": (lambda: layers.Conv1DTranspose(4, 3, strides=2), (5, 2), -1),
    "transposed": (
        lambda: layers.Conv2DTranspose(
            4, 3, strides=2, padding="same", output_padding=1, use_bias=False
        ),
        (5, 5, 2),
        -1,
    ),
    "transposed3d": (lambda: layers.Conv3DTranspose(3, 2), (2, 3, 2, 2), -1),
}


@pytest.mark.parametrize("kind", BEFORE)
def test_the_layer_before_takes_it_in(kind):
    make, shape, axis = BEFORE[kind]
    inputs = keras.Input(shape)
    x = layers.BatchNormalization(axis=axis, name="norm")(make()(inputs))
    model = randomized(keras.Model(inputs, layers.ReLU()(x)))
    before = nets.weights_of(model)
    folded, report = fold_batch_norm(model)
    assert report.folded == ("norm",)
    assert norms_in(folded) == []
    assert len(folded.layers) == len(model.layers) - 1
    assert folded.non_trainable_weights == []
    assert_same_outputs(model, folded)
    for path, value in nets.weights_of(model).items():
        np.testing.assert_array_equal(value, before[path])


AFTER = {
    "dense": (lambda: layers.Dense(5), (3,)),
    "dense on sequences": (lambda: layers.Dense(5, activation="tanh"), (4, 3)),
    "conv1d": (lambda: layers.Conv1D(4, 3), (6, 2)),
    "conv2d": (lambda: layers.Conv2D(4, 3, strides=2, use_bias=False), (7, 6, 2)),
    "grouped": (lambda: layers.Conv2D(6, 3, groups=2), (5, 5, 4)),
    "conv3d": (lambda: layers.Conv3D(3, 2), (3, 4, 3, 2)),
    "window of one": (lambda: layers.Conv2D(4, 1, padding="same"), (5, 5, 2)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 5, 3)),
    "separable": (lambda: layers.SeparableConv2D(4, 3, depth_multiplier=2), (5, 5, 3)),
}


@pytest.mark.parametrize("kind", AFTER)
def test_the_layer_after_takes_it_in(kind):
    make, shape = AFTER[kind]
    model = keras.Sequential(
        [keras.Input(shape), layers.BatchNormalization(name="norm"), make()]
    )
    folded, report = fold_batch_norm(randomized(model))
    assert report.folded == ("norm",)
    assert norms_in(folded) == []
    assert_same_outputs(model, folded)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Conv2D(4, 3, padding="same"),
        lambda: layers.Conv2DTranspose(4, 3),
        lambda: layers.SeparableConv2D(4, 3, padding="same"),
    ],
)
def test_a_shift_must_not_reach_padding(make):
    model = keras.Sequential(
        [keras.Input((5, 5, 2)), layers.BatchNormalization(name="norm"), make()]
    )
    folded, report = fold_batch_norm(randomized(model))
    assert "zero padding" in report.folds[0].reason
    assert len(norms_in(folded)) == 1
    assert_same_outputs(model, folded)


def kept(build):
    """The report of a model in which the normalization called "norm" stays."""
    model = randomized(build())
    folded, report = fold_batch_norm(model)
    assert report.kept == ("norm",)
    assert len(norms_in(folded)) == 1
    assert_same_outputs(model, folded)
    return report.folds[0].reason


def test_what_is_kept_says_why():
    norm = lambda **options: layers.BatchNormalization(name="norm", **options)  # noqa: E731
    dense = lambda name, **options: layers.Dense(4, name=name, **options)  # noqa: E731
    inputs = keras.Input((4,))

    def model(*made):
        x = inputs
        for layer in made:
            x = layer(x)
        return keras.Model(inputs, x)

    reason = kept(lambda: model(dense("a", activation="relu"), norm(), layers.ReLU()))
    assert reason == "the activation of a before it; ReLU re_lu after it"
    reason = kept(lambda: model(dense("a"), layers.ReLU(name="r"), norm()))
    assert reason == "ReLU r before it; the output of the model after it"
    reason = kept(lambda: model(norm()))
    assert reason == "the input before it; the output of the model after it"

    def several_readers():
        a = dense("a")(inputs)
        return keras.Model(inputs, [norm()(a), layers.ReLU()(a)])

    assert kept(several_readers).startswith("what it normalizes is read by others")

    def shared_layer():
        a = dense("a")
        return keras.Model(inputs, [norm()(a(inputs)), a(layers.ReLU()(inputs))])

    assert kept(shared_layer).startswith("a is shared")

    def shared_norm():
        n = norm()
        return keras.Model(inputs, n(dense("b")(n(dense("a")(inputs)))))

    assert kept(shared_norm) == "is called several times"

    def other_axis():
        image = keras.Input((4, 4, 4))
        x = layers.Conv2D(4, 1, name="conv")(image)
        return keras.Model(image, norm(axis=1)(x))

    assert "another axis than the channels of conv" in kept(other_axis)
    reason = kept(
        lambda: keras.Model(inputs, norm()(dense("a")(inputs), training=True))
    )
    assert reason == "is called with training=True"

    class Own(layers.Dense):
        pass

    assert kept(lambda: model(Own(4, name="own"), norm())).startswith("Own own before")

    found = model(dense("a"), norm())
    found.get_layer("norm").moving_variance.assign([1, 1, 1, np.nan])
    assert fold_batch_norm(found)[1].folds[0].reason == "its weights are not finite"


def test_chains_and_both_sides_at_once():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.BatchNormalization(name="first"),
            layers.Dense(4, name="dense"),
            layers.BatchNormalization(name="second", scale=False),
            layers.BatchNormalization(name="third", center=False),
            layers.Activation("tanh"),
            layers.Dense(2, name="outputs"),
        ]
    )
    folded, report = fold_batch_norm(randomized(model))
    assert [(fold.path, fold.into) for fold in report.folds] == [
        ("first", "dense"),
        ("second", "dense"),
        ("third", "dense"),
    ]
    assert report.weights_after == 3 * 4 + 4 + 4 * 2 + 2
    assert_same_outputs(model, folded)


def test_inner_models_skips_and_several_outputs():
    image = keras.Input((6, 6, 3))
    x = first = layers.Conv2D(4, 3, padding="same", name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(4, 3, padding="same", name="conv2")(layers.ReLU()(x))
    x = layers.BatchNormalization(name="norm2")(x)
    inner = keras.Model(image, [layers.Add()([x, first]), x], name="inner")
    a, b = keras.Input((6, 6, 3), name="a"), keras.Input((6, 6, 3), name="b")
    top = keras.Sequential(
        [layers.Dense(3, name="dense"), layers.BatchNormalization(name="norm")],
        name="top",
    )
    left, right = inner(a)[0], inner(b)[1]
    outputs = {"sum": top(left + right), "b": layers.Flatten()(right)}
    model = randomized(keras.Model({"a": a, "b": b}, outputs))
    folded, report = fold_batch_norm(model)
    assert dict((fold.path, fold.into) for fold in report.folds) == {
        "inner/norm": None,  # the skip reads the convolution too
        "inner/norm2": "inner/conv2",
        "top/norm": "top/dense",
    }
    assert folded.count_params() == report.weights_after
    x = dict(zip("ab", examples(model), strict=True))
    expected, found = model(x, training=False), folded(x, training=False)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_allclose(expected[name], found[name], rtol=1e-4, atol=2e-5)


def test_a_layer_of_layers_keeps_its_own():
    model = keras.Sequential(
        [
            keras.Input((4, 3)),
            layers.TimeDistributed(layers.BatchNormalization(name="norm"), name="td"),
        ]
    )
    _, report = fold_batch_norm(model)
    assert report.folds[0].path == "td/norm"
    assert report.folds[0].reason == "inside a layer of its own"


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((5, 5, 2))
        x = layers.BatchNormalization()(layers.Conv2D(4, 3, name="conv")(inputs))
        model = randomized(keras.Model(inputs, layers.ReLU()(x)))
    finally:
        keras.config.set_dtype_policy("float32")
    folded, _ = fold_batch_norm(model)
    assert folded.get_layer("conv").dtype_policy.name == "mixed_float16"
    assert folded.get_layer("conv").kernel.dtype == "float32"
    assert folded.output.dtype == "float16"
    assert_same_outputs(model, folded, rtol=0.01, atol=0.01)


def test_a_model_made_under_a_strategy():
    with nets.two_replicas().scope():
        model = randomized(
            keras.Sequential(
                [keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()]
            )
        )
        folded, _ = fold_batch_norm(model)
    assert_same_outputs(model, folded)


def test_a_folded_model_is_saved_and_loaded(tmp_path):
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(3, name="dense")(inputs))
    model = randomized(
        keras.Model(inputs, layers.Dense(2, name="out")(layers.ReLU()(x)))
    )
    folded, _ = fold_batch_norm(model)
    for saved in (model, folded):
        saved.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        assert_same_outputs(model, loaded)


def test_nothing_to_fold_and_no_graph():
    model = nets.functional()
    folded, report = fold_batch_norm(model)
    assert report.folds == ()
    assert report.weights_before == report.weights_after
    assert_same_outputs(model, folded)
    with pytest.raises(ModelError, match="no graph"):
        fold_batch_norm(nets.subclassed())


def test_the_report_prints():
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="one")(layers.Dense(3, name="dense")(inputs))
    x = layers.BatchNormalization(name="two")(layers.ReLU(name="relu")(x))
    _, report = fold_batch_norm(keras.Model(inputs, x, name="net"))
    text = str(report)
    assert "net: 1 of 2 batch normalizations folded, 39 weights became 27" in text
    assert "kept: ReLU relu" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "folds"),
    [
        ("MobileNetV2", 52),
        pytest.param("ResNet50", 53, marks=pytest.mark.slow),
        pytest.param("EfficientNetB0", 49, marks=pytest.mark.slow),
    ],
)
def test_the_whole_of_well_known_networks_is_folded(name, folds):
    make = getattr(keras.applications, name)
    model = randomized(make(weights=None, input_shape=(32, 32, 3), classes=10))
    for weight in model.weights:  # such that signals neither die nor overflow
        if weight.name in ("moving_variance", "gamma"):
            weight.assign(RNG.uniform(0.8, 1.2, size=weight.shape))
    folded, report = fold_batch_norm(model)
    assert (len(report.folded), report.kept) == (folds, ())
    x = RNG.uniform(0, 255, size=(2, 32, 32, 3)).astype("float32")
    a, b = model(x, training=False), folded(x, training=False)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
