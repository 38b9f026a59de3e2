"""Penalties and constraints on the kernels of built models."""

import keras
import numpy as np
import pytest
from keras import layers

from tests import nets
from tfdeep.constraints import FanInMaxNorm
from tfdeep.errors import InvalidArgumentError, ModelError, SelectionError
from tfdeep.surgery import constrain, regularize


def penalty(model):
    return float(sum(map(float, model.losses)))


def expected_penalty(kernels, l1=0.0, l2=0.0):
    values = [np.asarray(kernel, "float64") for kernel in kernels]
    return sum(l1 * np.abs(w).sum() + l2 * (w**2).sum() for w in values)


@pytest.mark.parametrize("make", [nets.functional, nets.sequential, nets.subclassed])
def test_the_loss_grows_by_the_definition(make):
    model = make()
    x, y = nets.examples()
    model.compile(keras.optimizers.SGD(0.0), nets.LOSS)
    plain = model.evaluate(x, y, verbose=0)
    report = regularize(model, l1=1e-2, l2=3e-2, include="hidden[12]")
    kernels = [w for w in model.weights if w.name == "kernel"][:2]
    expected = expected_penalty(kernels, 1e-2, 3e-2)
    assert penalty(model) == pytest.approx(expected, rel=1e-5)
    assert sum(k.penalty for k in report.kernels) == pytest.approx(expected, rel=1e-5)
    # The compiled steps were traced without it.
    assert model.evaluate(x, y, verbose=0) == pytest.approx(plain + expected, rel=1e-4)


def test_a_fit_that_was_traced_before_trains_with_it():
    model = nets.functional()
    x, _ = nets.examples()
    y = model.predict(x, verbose=0)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, y, batch_size=96, verbose=0)  # no gradient: the targets are met
    kernel = model.get_layer("hidden1").kernel
    before = kernel.numpy()
    regularize(model, l2=0.5, include="hidden1")
    model.fit(x, y, batch_size=96, verbose=0)
    np.testing.assert_allclose(kernel.numpy(), before * (1 - 0.1 * 2 * 0.5), rtol=1e-4)


def test_a_second_call_is_in_place_of_the_first():
    model = nets.functional()
    regularize(model, l1=0.5, l2=0.5)
    report = regularize(model, l2=1e-3)
    kernels = [w for w in model.weights if w.name == "kernel"]
    assert penalty(model) == pytest.approx(expected_penalty(kernels, 0, 1e-3), rel=1e-5)
    assert report.kernels[0].before == "l1=0.5, l2=0.5"
    assert len(model.losses) == 4
    regularize(model)
    assert model.losses == []
    assert model.get_layer("hidden1").kernel_regularizer is None


def test_kernels_only():
    inputs = keras.Input((6, 6, 2))
    x = layers.SeparableConv2D(3, 3, name="separable")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.DepthwiseConv2D(2, name="depthwise")(layers.PReLU(name="prelu")(x))
    x = layers.Reshape((9, 3))(x)
    x = layers.Bidirectional(layers.LSTM(2, return_sequences=True), name="bi")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    report = regularize(keras.Model(inputs, x), l2=1e-3)
    saved = {k.path: k.saved for k in report.kernels}
    assert list(saved) == [
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
        "depthwise/kernel",
        "bi/forward_lstm/lstm_cell/kernel",
        "bi/forward_lstm/lstm_cell/recurrent_kernel",
        "bi/backward_lstm/lstm_cell/kernel",
        "bi/backward_lstm/lstm_cell/recurrent_kernel",
        "attention/query/kernel",
        "attention/key/kernel",
        "attention/value/kernel",
        "attention/attention_output/kernel",
    ]
    assert all(
        is_saved != path.startswith("attention") for path, is_saved in saved.items()
    )


def test_saving_keeps_what_the_report_says(tmp_path):
    inputs = keras.Input((6, 3), dtype="float32")
    x = layers.Conv1D(4, 2, name="conv")(inputs)
    x = layers.SeparableConv1D(4, 2, name="separable")(x)
    x = layers.DepthwiseConv1D(2, name="depthwise")(x)
    x = layers.GRU(3, name="gru")(x)
    inner = keras.Sequential([layers.Dense(3, name="dense")], name="inner")
    model = keras.Model(inputs, inner(x))
    report = regularize(model, l1=1e-2, l2=1e-3)
    assert all(kernel.saved for kernel in report.kernels)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert len(loaded.losses) == len(report.kernels) == 7
    assert penalty(loaded) == pytest.approx(penalty(model), rel=1e-6)
    assert not any(k.saved for k in regularize(nets.subclassed(), l2=1.0).kernels)


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", True])
def test_factors_that_are_none_are_refused(name, value):
    model = nets.functional()
    with pytest.raises(InvalidArgumentError, match=name):
        regularize(model, **{name: value})
    assert model.losses == []


def test_patterns_that_select_no_kernel_are_refused():
    model = nets.functional()
    for verb in (
        lambda include: regularize(model, l2=1.0, include=include),
        lambda include: constrain(model, "non_neg", include=include),
    ):
        with pytest.raises(SelectionError):
            verb("hidden9")
        with pytest.raises(SelectionError):
            verb("hidden1/bias")
    assert model.losses == []
    with pytest.raises(ModelError, match="no kernels"):
        regularize(
            keras.Sequential([keras.Input((3,)), layers.BatchNormalization()]), l2=1.0
        )


def norms(kernel, axes):
    return np.sqrt((kernel.numpy().astype("float64") ** 2).sum(axis=axes))


def test_a_constraint_holds_at_once_and_after_each_step():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.Conv2DTranspose(3, 2, name="transposed")(x)
    x = layers.Dense(1, name="outputs")(layers.Flatten()(x))
    model = keras.Model(inputs, x)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    x, y = np.random.default_rng(0).normal(size=(8, 6, 6, 2)), np.ones((8, 1))
    model.fit(x, y, verbose=0)  # traced without the constraint
    outputs = model.get_layer("outputs").kernel.numpy()
    report = constrain(model, FanInMaxNorm(0.1), exclude="outputs")
    np.testing.assert_array_equal(model.get_layer("outputs").kernel.numpy(), outputs)
    assert [k.path for k in report.kernels] == ["conv/kernel", "transposed/kernel"]
    for _ in range(3):
        assert norms(model.get_layer("conv").kernel, (0, 1, 2)).max() <= 0.1 + 1e-6
        assert (
            norms(model.get_layer("transposed").kernel, (0, 1, 3)).max() <= 0.1 + 1e-6
        )
        model.fit(x, y, verbose=0)


def test_a_constraint_is_saved_replaced_and_taken_away(tmp_path):
    model = nets.functional()
    constrain(model, FanInMaxNorm(0.1))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.get_layer("hidden1").kernel.constraint.max_value == 0.1
    report = constrain(loaded, "non_neg", include="hidden1")
    assert report.kernels[0].before == "FanInMaxNorm"
    kernel = loaded.get_layer("hidden1").kernel
    assert kernel.numpy().min() >= 0
    assert 0 < report.kernels[0].changed <= kernel.numpy().size
    constrain(loaded, None)
    assert kernel.constraint is None
    assert "non_neg" not in str(report) and "NonNeg on 1 kernels" in str(report)


def test_a_constraint_that_does_not_fit_changes_nothing():
    class Breaks(keras.constraints.Constraint):
        def __call__(self, w):
            return w / 0 if w.shape == (6, 3) else w * 0

    model = nets.functional()
    before = model.get_weights()
    with pytest.raises(InvalidArgumentError, match="outputs/kernel"):
        constrain(model, Breaks())
    with pytest.raises(InvalidArgumentError, match="needs a constraint"):
        constrain(model, lambda w: w)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.get_layer("hidden1").kernel.constraint is None
