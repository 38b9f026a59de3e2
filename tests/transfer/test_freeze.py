import copy
import re

import keras
import numpy as np
import pytest
from keras import layers

import tfdeep
from tests import nets
from tfdeep.errors import InvalidArgumentError, SelectionError, TrainableFlagWarning

MODELS = {
    "functional": nets.functional,
    "sequential": nets.sequential,
    "subclassed": nets.subclassed,
}


def fit(model, epochs=1, **arguments):
    model.fit(nets.dataset(), epochs=epochs, shuffle=False, verbose=0, **arguments)


def fit_briefly(model):
    model.fit(*nets.examples(16), batch_size=16, shuffle=False, verbose=0)


values = nets.values


def moved(before, after):
    return {path for path in before if (before[path] != after[path]).any()}


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
def test_frozen_variables_stay_as_they_are(fitted, optimizer):
    model = nets.compiled(nets.functional(), optimizer())
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
        fit(nets.compiled(m, keras.optimizers.Adam(0.01)))
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

    STATISTICS = frozenset({"norm1/moving_mean", "norm1/moving_variance"})

    def test_its_averages_go_on_by_request(self):
        model = nets.regularized()
        model.compile("adam", nets.LOSS)
        fit(model)
        report = tfdeep.freeze(model, ["hidden1", "norm1"], batch_norm="train")
        assert report.batch_norm_train == ("norm1",)
        assert report.batch_norm_inference == ()
        assert "batch norm by the batch: norm1" in str(report)
        # Another call for other layers leaves it at that.
        tfdeep.freeze(model, "hidden2")
        assert tfdeep.unfreeze(model, "hidden3").batch_norm_train == ("norm1",)
        before = values(model)
        fit(model)
        changed = moved(before, values(model))
        assert changed >= self.STATISTICS
        assert not {p for p in changed if p.startswith(("hidden1/", "hidden2/"))}
        assert not {"norm1/gamma", "norm1/beta"} & changed

        report = tfdeep.freeze(model, "norm1")
        assert report.batch_norm_inference == ("norm1",)
        assert "batch norm by moving statistics: norm1" in str(report)
        before = values(model)
        fit(model)
        assert not {p for p in moved(before, values(model)) if "norm1" in p}
        assert tfdeep.unfreeze(model).batch_norm_inference == ()

    @pytest.mark.parametrize("how", ["inference", "train"])
    def test_frozen_weight_by_weight(self, how):
        model = nets.regularized()
        tfdeep.freeze(model, "norm1/gamma", batch_norm=how)
        assert model.get_layer("norm1").trainable
        tfdeep.freeze(model, "norm1/beta", batch_norm=how)
        assert model.get_layer("norm1").trainable == (how == "train")

    def test_inside_a_layer_that_hands_training_on(self):
        class Block(layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.norm = layers.BatchNormalization(name="norm")
                self.dropout = layers.Dropout(0.5, name="drop")

            def call(self, x, training=None):
                return self.dropout(self.norm(x, training=training), training=training)

        inputs = keras.Input((3,))
        model = keras.Model(
            inputs, layers.Dense(2, name="outputs")(Block(name="block")(inputs))
        )
        report = tfdeep.freeze(model, "block", batch_norm="train")
        assert report.batch_norm_train == ("block/norm",)
        assert report.inference == ("drop",)
        before = values(model)
        model(np.ones((8, 3), "float32"), training=True)
        assert moved(before, values(model)) == {
            "block/norm/moving_mean",
            "block/norm/moving_variance",
        }
        tfdeep.freeze(model, "block")
        before = values(model)
        model(np.ones((8, 3), "float32"), training=True)
        assert moved(before, values(model)) == set()

    def test_another_way_is_refused(self):
        model = nets.regularized()
        with pytest.raises(InvalidArgumentError, match="batch_norm='eval'"):
            tfdeep.freeze(model, "norm1", batch_norm="eval")
        assert len(model.trainable_weights) == 12

    def test_without_weights_of_its_own_to_train(self):
        inputs = keras.Input((nets.INPUTS,))
        x = layers.Dense(4, name="hidden1")(inputs)
        x = layers.BatchNormalization(center=False, scale=False, name="norm")(x)
        model = keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))
        model.compile("sgd", nets.LOSS)
        tfdeep.freeze(model, include="hidden1")
        assert model.get_layer("norm").trainable
        before = values(model)
        fit(model)
        assert {"norm/moving_mean", "norm/moving_variance"} < moved(
            before, values(model)
        )
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


class TestFlagsSetByHand:
    """Keras: its train step goes on as traced, or raises `Unknown variable`."""

    def touched(self, **arguments):
        model = nets.functional()
        model.compile(keras.optimizers.Adam(0.01), nets.LOSS, **arguments)
        fit(model)
        tfdeep.freeze(model, "hidden1")
        fit(model)
        return model

    @pytest.mark.parametrize("eagerly", [False, True])
    def test_a_frozen_layer_is_not_trained_and_named(self, eagerly):
        model = self.touched(run_eagerly=eagerly)
        model.get_layer("hidden2").trainable = False
        before = values(model)
        with pytest.warns(TrainableFlagWarning, match="frozen by hand: hidden2/kernel"):
            fit(model)
        changed = {path.split("/")[0] for path in moved(before, values(model))}
        assert changed == {"hidden3", "outputs"}
        assert int(model.optimizer.iterations) == 18

    def test_an_unfrozen_layer_is_trained_and_named(self):
        model = self.touched()
        model.get_layer("hidden1").trainable = True
        before = values(model)
        with pytest.warns(TrainableFlagWarning, match="unfrozen by hand: hidden1") as w:
            fit(model)
        assert moved(before, values(model)) == set(before)
        assert w[0].filename == __file__  # and not a file of Keras'

    def test_a_flag_of_one_variable(self):
        model = self.touched()
        model.get_layer("hidden2").bias.trainable = False
        before = values(model)
        with pytest.warns(TrainableFlagWarning, match="by hand: hidden2/bias\n"):
            model.train_on_batch(*nets.examples(16))
        assert "hidden2/bias" not in moved(before, values(model))

    def test_all_flags(self):
        model = self.touched()
        model.trainable = False
        before = values(model)
        with pytest.warns(TrainableFlagWarning, match="hidden2"):
            fit(model)
        assert moved(before, values(model)) == set()

    def test_what_takes_effect_anyway_is_not_warned_of(self, recwarn):
        model = self.touched()
        fit(model)
        tfdeep.unfreeze(model)
        fit(model)
        model.get_layer("hidden2").trainable = False
        model.compile("adam", nets.LOSS)
        fit(model)
        model.get_layer("hidden2").trainable = True
        model.compile(model.optimizer, nets.LOSS)  # in plain Keras: Unknown variable
        before = values(model)
        fit(model)
        assert moved(before, values(model)) == set(before)
        assert not [w for w in recwarn if w.category is TrainableFlagWarning]

    def test_the_model_is_copied_and_saved_as_before(self, tmp_path):
        model = self.touched()
        model.save(tmp_path / "model.keras")
        for other in (
            keras.saving.load_model(tmp_path / "model.keras"),
            copy.deepcopy(model),
            keras.models.clone_model(model),
        ):
            assert "make_train_function" not in vars(other)


class Unregistered(keras.optimizers.schedules.LearningRateSchedule):
    """Of a user's own, without a config."""

    def __call__(self, step):
        return 0.01 / (1 + keras.ops.cast(step, "float32"))


class Own(keras.optimizers.SGD):
    """Of a user's own; its config says nothing of `gain`."""

    def __init__(self, gain=0.5, **kwargs):
        super().__init__(**kwargs)
        self.gain = gain

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient * self.gain, variable, learning_rate)


def groups(of):
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("new in Keras 3.15")
    return keras.optimizers.MultiOptimizer(of())


o, k = tfdeep.optimizers, keras.optimizers
KINDS = {
    name: lambda name=name: getattr(k, name)(0.01)
    for name in (
        "SGD", "Adam", "Adamax", "Nadam", "Adagrad", "Adadelta", "RMSprop", "Ftrl",
        "Lion", "Lamb", "Adafactor", "Muon",
    )
    if hasattr(k, name)
}  # fmt: skip
KINDS |= {
    "momentum": lambda: k.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    "centered": lambda: k.RMSprop(0.01, momentum=0.9, centered=True),
    "amsgrad": lambda: k.AdamW(0.01, amsgrad=True),
    "EMA": lambda: k.Adam(0.01, use_ema=True, ema_momentum=0.5),
    "EMA overwrites": lambda: k.SGD(
        0.01, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "accumulation": lambda: k.Adam(0.01, gradient_accumulation_steps=3),
    "schedule of one's own": lambda: o.ClipByNorm(k.Adam(Unregistered()), 1.0),
    "function": lambda: k.Adam(lambda: 0.01),
    "optimizer of one's own": lambda: o.SkipNonFinite(
        Own(gain=0.9, learning_rate=0.01, momentum=0.9)
    ),
    "loss scale": lambda: k.LossScaleOptimizer(
        o.Accumulate(o.ClipByNorm(k.Adam(0.01), 1.0), steps=3)
    ),
    "safe loss scale": lambda: o.SafeLossScaleOptimizer(
        o.AdaptiveClip(k.Adam(0.01, use_ema=True))
    ),
    "norm histories": lambda: o.PercentileClip(o.ZScoreClip(k.Adam(0.01)), 30.0),
    "rates": lambda: o.LayerRates(k.Adam(0.01), {"hidden1": 0.5}),
    "groups": lambda: o.ClipByGlobalNorm(
        groups(
            lambda: k.OptimizerMap(
                k.SGD(0.01, momentum=0.9), {"hidden1/.*": k.Adam(0.01)}
            )
        ),
        1.0,
    ),
    "a group for each variable": lambda: groups(lambda: lambda variable: k.Adam(0.01)),
}


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_goes_on_as_if_it_had_not_been_touched(kind):
    """Against the same optimizer in plain Keras, to the last bit of its state."""
    model, plain = nets.functional(), nets.functional()
    plain.set_weights(model.get_weights())
    for m in (model, plain):
        m.compile(KINDS[kind](), nets.LOSS, run_eagerly=True)
        fit_briefly(m)
    tfdeep.freeze(model, "hidden[12]")
    tfdeep.freeze(model, "hidden3/kernel")
    tfdeep.unfreeze(model, "hidden2")
    tfdeep.unfreeze(model)
    for m in (model, plain):
        fit_briefly(m)
    assert nets.largest_difference(model, plain) == 0

    def state(m):
        return sorted(
            (re.sub(r"variable.*", "variable", v.name), v.numpy().tobytes())
            for v in m.optimizer.variables
        )

    assert state(model) == state(plain)
    tfdeep.freeze(model, "hidden1")
    before = values(model)
    fit_briefly(model)
    changed = {path.split("/")[0] for path in moved(before, values(model))}
    assert changed == {"hidden2", "hidden3", "outputs"}


def test_inner_models_whose_layers_have_the_same_names():
    """Keras gives their variables the same paths, and the moments the same names."""

    def tower(name):
        inputs = keras.Input((nets.INPUTS,))
        x = layers.Dense(4, activation="tanh", name="hidden")(inputs)
        return keras.Model(inputs, x, name=name)

    def build():
        inputs = keras.Input((nets.INPUTS,))
        x = layers.Concatenate()([tower("left")(inputs), tower("right")(inputs)])
        return keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))

    model, plain = build(), build()
    plain.set_weights(model.get_weights())
    for m in (model, plain):
        m.compile(keras.optimizers.Adam(0.01), nets.LOSS, run_eagerly=True)
        fit_briefly(m)
    tfdeep.freeze(model, "left")
    tfdeep.freeze(model, "right/hidden/bias")
    tfdeep.unfreeze(model)
    for m in (model, plain):
        fit_briefly(m)
    assert nets.largest_difference(model, plain) == 0


def test_averages_of_what_is_unfrozen_late_start_at_its_weights():
    """They start at zero in Keras, and the end of `fit` writes them to the weights."""
    model = nets.functional()
    tfdeep.freeze(model, "hidden1")
    model.compile(keras.optimizers.SGD(1e-6, use_ema=True, ema_momentum=0.9), nets.LOSS)
    fit(model)
    before = model.get_layer("hidden1").kernel.numpy()
    tfdeep.unfreeze(model)
    fit(model)
    after = model.get_layer("hidden1").kernel.numpy()
    assert (before != after).any()
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize("scaled", [True, False], ids=["loss scale", "without"])
@pytest.mark.filterwarnings("error::tfdeep.errors.TrainableFlagWarning")
def test_mixed_precision(scaled):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = nets.functional()
        model.compile("adam", nets.LOSS, auto_scale_loss=scaled)
    finally:
        keras.config.set_dtype_policy("float32")
    fit(model)
    state = {v.name: v.numpy() for v in model.optimizer.variables}
    tfdeep.freeze(model, "hidden[12]")
    tfdeep.unfreeze(model, "hidden2")
    now = {v.name: v.numpy() for v in model.optimizer.variables}
    assert {name.split("_")[0] for name in state.keys() - now.keys()} == {"hidden1"}
    np.testing.assert_equal(now, {name: state[name] for name in now})
    before = values(model)
    fit(model)
    changed = {path.split("/")[0] for path in moved(before, values(model))}
    assert changed == {"hidden2", "hidden3", "outputs"}
