import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfdeep
from tests import nets
from tfdeep.errors import SelectionError

MODELS = {
    "functional": nets.functional,
    "sequential": nets.sequential,
    "subclassed": nets.subclassed,
}


def fit(model, epochs=1, **arguments):
    model.fit(nets.dataset(), epochs=epochs, shuffle=False, verbose=0, **arguments)


def values(model):
    from tfdeep._core._paths import model_variables

    return {v.path: v.variable.numpy() for v in model_variables(model)}


def moved(before, after):
    return {path for path in before if (before[path] != after[path]).any()}


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("fitted", [False, True], ids=["before a fit", "after a fit"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5),
        lambda: keras.optimizers.SGD(
            0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
        ),
        lambda: tfdeep.optimizers.ClipByNorm(keras.optimizers.Adam(0.01), 1.0),
    ],
    ids=["SGD", "AdamW", "EMA", "EMA overwrites", "wrapped"],
)
def test_frozen_variables_stay_as_they_are(build, fitted, optimizer):
    model = MODELS[build]()
    model.compile(optimizer(), nets.LOSS)
    if fitted:
        fit(model)
    report = tfdeep.freeze(model, include="hidden[12]")
    before = values(model)
    fit(model, epochs=2)
    expected = {
        f"{layer}/{w}" for layer in ("hidden3", "outputs") for w in ("kernel", "bias")
    }
    assert moved(before, values(model)) == expected
    assert set(report.trainable) == expected
    assert set(report.frozen) | expected == set(before)


@pytest.mark.parametrize("build", MODELS)
def test_moments_and_steps_survive_freezing_and_unfreezing(build):
    """The optimizer goes on as if the other variables had never been touched."""
    model, plain = MODELS[build](), MODELS[build]()
    plain.set_weights(model.get_weights())
    for m in (model, plain):
        m.compile(keras.optimizers.Adam(0.01), nets.LOSS)
        fit(m)
    optimizer = model.optimizer
    tfdeep.freeze(model, include="hidden1")
    tfdeep.unfreeze(model, include="hidden1")
    for m in (model, plain):
        fit(m)
    assert model.optimizer is optimizer
    assert nets.largest_difference(model, plain) == 0


class TestUnfreezingWhatTheOptimizerDoesNotKnow:
    """Keras: `Unknown variable`, or a new optimizer that has forgotten everything."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: keras.optimizers.Adam(0.01),
            lambda: keras.optimizers.SGD(
                keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5), momentum=0.9
            ),
            lambda: tfdeep.optimizers.ClipByGlobalNorm(
                keras.optimizers.Adam(0.01), 1.0
            ),
            lambda: keras.optimizers.LossScaleOptimizer(
                tfdeep.optimizers.ClipByNorm(keras.optimizers.Adam(0.01), 1.0)
            ),
        ],
        ids=["Adam", "schedule", "wrapped", "loss scale"],
    )
    def test_what_it_knows_is_kept(self, make):
        model = nets.functional()
        tfdeep.freeze(model, include="hidden[12]")
        optimizer = make()
        model.compile(optimizer, nets.LOSS)
        fit(model)
        state = {v.name: v.numpy() for v in optimizer.variables}
        inner = getattr(optimizer, "inner_optimizer", None)

        tfdeep.unfreeze(model, include="hidden2")

        assert model.optimizer is optimizer
        assert getattr(optimizer, "inner_optimizer", None) is inner
        now = {v.name: v.numpy() for v in optimizer.variables}
        assert set(state) < set(now)
        for name, value in state.items():
            np.testing.assert_array_equal(now[name], value)
        counts = (inner or optimizer).iterations
        assert int(counts) == 6
        before = values(model)
        fit(model)
        assert moved(before, values(model)) == set(before) - {
            "hidden1/kernel",
            "hidden1/bias",
        }
        assert int((inner or optimizer).iterations) == 12

    def test_saved_afterwards_it_goes_on_the_same(self, tmp_path):
        model = nets.functional()
        tfdeep.freeze(model, include="hidden[12]")
        model.compile(keras.optimizers.Adam(0.01), nets.LOSS)
        fit(model)
        tfdeep.unfreeze(model)
        fit(model)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        for m in (model, loaded):
            fit(m)
        assert nets.largest_difference(model, loaded) == 0


def test_exclusions_from_weight_decay_survive():
    model = nets.functional()
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, nets.LOSS)
    fit(model)
    tfdeep.freeze(model, include="hidden[123]")
    bias = model.get_layer("outputs").bias
    model.get_layer("outputs").bias.assign([100.0] * nets.CLASSES)
    fit(model)
    assert (bias.numpy() > 99).all()


def test_an_optimizer_that_cannot_be_built_anew_leaves_the_flags_as_they_were():
    class Stubborn(keras.optimizers.SGD):
        def get_config(self):
            raise NotImplementedError("no config")

    model = nets.functional()
    model.compile(Stubborn(0.1), nets.LOSS)
    fit(model)
    with pytest.raises(NotImplementedError):
        tfdeep.freeze(model, include="hidden1")
    assert len(model.trainable_weights) == 8


def test_one_variable_of_a_layer():
    model = nets.functional()
    model.compile("adam", nets.LOSS)
    report = tfdeep.freeze(model, include="hidden1/kernel")
    before = values(model)
    fit(model)
    assert moved(before, values(model)) == set(before) - {"hidden1/kernel"}
    assert report.layers[0].state == "in part"
    assert model.get_layer("hidden1").trainable
    tfdeep.freeze(model, include="hidden1/bias")
    assert not model.get_layer("hidden1").trainable
    tfdeep.unfreeze(model, include="hidden1/bias")
    before = values(model)
    fit(model)
    assert moved(before, values(model)) == set(before) - {"hidden1/kernel"}
    tfdeep.unfreeze(model, include="hidden1/kernel")
    before = values(model)
    fit(model)
    assert moved(before, values(model)) == set(before)


class TestBatchNormalization:
    def test_its_averages_stand_still_only_when_it_is_frozen(self):
        model = nets.regularized()
        model.compile("adam", nets.LOSS)
        fit(model)
        tfdeep.freeze(model, include=["hidden1", "norm1"])
        before = values(model)
        fit(model)
        changed = moved(before, values(model))
        assert not {p for p in changed if p.startswith(("hidden1/", "norm1/"))}
        assert {"norm3/moving_mean", "norm3/moving_variance"} <= changed

    def test_without_weights_of_its_own_to_train(self):
        inputs = keras.Input((nets.INPUTS,))
        x = layers.Dense(4, name="hidden1")(inputs)
        x = layers.BatchNormalization(center=False, scale=False, name="norm")(x)
        model = keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))
        model.compile("sgd", nets.LOSS)
        tfdeep.freeze(model, include="hidden1")
        assert model.get_layer("norm").trainable
        tfdeep.freeze(model, include="norm")
        before = values(model)
        fit(model)
        assert moved(before, values(model)) == {"outputs/kernel", "outputs/bias"}
        tfdeep.unfreeze(model, include="norm")
        assert model.get_layer("norm").trainable


class TestTheFrozenPartRunsAsAtInference:
    def outputs(self, model, training):
        x, _ = nets.examples(32)
        return model(x, training=training).numpy()

    def test_dropout_between_frozen_layers(self):
        model = nets.regularized()
        cut = keras.Model(model.input, model.get_layer("hidden2").output)
        assert (self.outputs(cut, True) != self.outputs(cut, False)).any()
        report = tfdeep.freeze(model, include=["hidden[12]", "norm1"])
        assert report.inference == ("dropout1",)
        assert "as at inference: dropout1" in str(report)
        np.testing.assert_array_equal(self.outputs(cut, True), self.outputs(cut, False))
        # The dropout behind the last frozen layer still acts on the head.
        assert (self.outputs(model, True) != self.outputs(model, False)).any()

    def test_unfreezing_makes_it_act_again(self):
        model = nets.regularized()
        cut = keras.Model(model.input, model.get_layer("hidden2").output)
        tfdeep.freeze(model, include=["hidden[12]", "norm1"])
        report = tfdeep.unfreeze(model, include="hidden2")
        assert report.inference == ()
        assert (self.outputs(cut, True) != self.outputs(cut, False)).any()

    @pytest.mark.parametrize(
        "layer",
        [
            lambda: layers.LSTM(4, dropout=0.5, name="frozen"),
            lambda: layers.Bidirectional(
                layers.GRU(4, recurrent_dropout=0.5), name="frozen"
            ),
            lambda: keras.Sequential(
                [layers.Dense(4), layers.GaussianNoise(1.0), layers.Flatten()],
                name="frozen",
            ),
        ],
        ids=["LSTM", "Bidirectional", "Sequential"],
    )
    def test_what_acts_inside_a_frozen_layer(self, layer):
        inputs = keras.Input((4, 2))
        model = keras.Model(inputs, layers.Dense(2, name="outputs")(layer()(inputs)))
        x = np.random.default_rng(0).normal(size=(8, 4, 2)).astype("float32")
        assert (model(x, training=True).numpy() != model(x).numpy()).any()
        tfdeep.freeze(model, include="frozen")
        np.testing.assert_array_equal(model(x, training=True), model(x, training=False))
        tfdeep.unfreeze(model)
        assert (model(x, training=True).numpy() != model(x).numpy()).any()

    def test_a_layer_of_ones_own_that_leaves_training_to_its_context(self):
        class Block(layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.dense = layers.Dense(4)
                self.dropout = layers.Dropout(0.5)

            def call(self, x):
                return self.dropout(self.dense(x))

        inputs = keras.Input((3,))
        model = keras.Model(
            inputs, layers.Dense(2, name="outputs")(Block(name="block")(inputs))
        )
        tfdeep.freeze(model, include="block")
        x = np.ones((8, 3), "float32")
        np.testing.assert_array_equal(model(x, training=True), model(x, training=False))

    def test_augmentation_before_the_frozen_part_goes_on(self):
        inputs = keras.Input((8, 8, 1))
        x = layers.RandomFlip(name="flip")(inputs)
        x = layers.Flatten()(layers.Conv2D(2, 3, name="conv")(x))
        model = keras.Model(inputs, layers.Dense(2, name="outputs")(x))
        assert tfdeep.freeze(model, include="conv").inference == ()

    def test_layers_that_make_nothing_of_training_are_left_alone(self):
        report = tfdeep.freeze(nets.functional())
        assert report.inference == ()


def test_inner_models_and_their_parts():
    model = nets.nested()
    model.compile("adam", nets.LOSS)
    tfdeep.freeze(model, include="base")
    assert not model.get_layer("base").trainable
    tfdeep.unfreeze(model, include="base/hidden3")
    before = values(model)
    fit(model)
    assert moved(before, values(model)) == {
        "base/hidden3/kernel",
        "base/hidden3/bias",
        "outputs/kernel",
        "outputs/bias",
    }


def test_flags_set_by_hand_are_kept():
    model = nets.functional()
    model.get_layer("hidden3").trainable = False
    report = tfdeep.freeze(model, include="hidden1")
    assert {p.split("/")[0] for p in report.frozen} == {"hidden1", "hidden3"}
    assert report.changed == ("hidden1/kernel", "hidden1/bias")
    report = tfdeep.unfreeze(model, include="hidden1")
    assert {p.split("/")[0] for p in report.frozen} == {"hidden3"}


def test_everything_may_be_frozen_and_unfrozen():
    model = nets.functional()
    assert tfdeep.freeze(model).trainable == ()
    assert tfdeep.unfreeze(model).frozen == ()
    assert "nothing changed" in str(tfdeep.unfreeze(model))


def test_a_pattern_that_selects_nothing_changes_nothing():
    model = nets.functional()
    with pytest.raises(SelectionError):
        tfdeep.freeze(model, include=["hidden1", "hidden7"])
    assert len(model.trainable_weights) == 8


def test_the_report_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = str(tfdeep.freeze(nets.nested(), include="base/hidden[12]"))
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["base/hidden1", "frozen", "*", "54", "0"] in rows
    assert ["base/hidden3", "trainable", "0", "42"] in rows


PARTS = ["hidden1", "hidden2", "hidden3", "norm1", "norm3", "outputs", "hidden1/bias"]
actions = st.lists(
    st.tuples(st.sampled_from(["freeze", "unfreeze", "fit"]), st.sampled_from(PARTS)),
    min_size=2,
    max_size=6,
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(actions)
def test_any_sequence_of_freezing_unfreezing_and_fitting(sequence):
    model = nets.regularized()
    model.compile(keras.optimizers.Adam(0.01), nets.LOSS)
    frozen = set()
    everything = set(values(model))
    for action, part in [*sequence, ("fit", "")]:
        chosen = {p for p in everything if p == part or p.startswith(part + "/")}
        if action == "freeze":
            frozen |= chosen
            assert set(tfdeep.freeze(model, part).frozen) >= frozen
        elif action == "unfreeze":
            frozen -= chosen
            report = tfdeep.unfreeze(model, part)
            assert set(report.frozen) >= frozen
        elif len(model.trainable_weights):
            before = values(model)
            model.fit(*nets.examples(32), batch_size=16, verbose=0)
            trained = {v for v in everything if "moving" not in v} - frozen
            changed = moved(before, values(model))
            assert not changed & frozen
            assert {p for p in changed if "moving" not in p} == trained
