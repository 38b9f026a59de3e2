"""What the monitor does with what the rules find, in real fits."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep.callbacks import GradientMonitor
from tfdeep.diagnostics import Finding, rules
from tfdeep.errors import InvalidArgumentError, SickLayerError, SickLayerWarning


def sick_model(**arguments):
    """A dead layer in the middle."""
    keras.utils.set_random_seed(0)
    model = tfdeep.models.dnn((nets.INPUTS,), [32] * 4, nets.CLASSES, activation="relu")
    model.get_layer("hidden2").bias.assign(np.full(32, -20.0))
    return nets.compiled(model, "sgd", **arguments)


def fit(model, monitor, steps=60):
    data = nets.dataset(steps * 16, 16)
    return model.fit(data, shuffle=False, verbose=0, callbacks=[monitor])


@pytest.mark.parametrize(
    ("arguments", "activations"),
    [
        ({}, False),
        ({}, True),
        ({"jit_compile": True}, True),
        ({"steps_per_execution": 7}, False),
        ({"run_eagerly": True}, True),
        pytest.param({"jit_compile": True}, False, marks=pytest.mark.slow),
        pytest.param({"steps_per_execution": 7}, True, marks=pytest.mark.slow),
        pytest.param({"run_eagerly": True}, False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_sick_layer_is_named(activations, arguments):
    monitor = GradientMonitor(activations=activations, on_finding=None)
    fit(sick_model(**arguments), monitor)
    (finding,) = monitor.findings
    assert finding.kind == "dead_units"
    assert finding.layer == "hidden2"
    assert finding.first_step < 10
    assert monitor.report().findings == monitor.findings
    assert "100% of units dead" in str(monitor.report())
    assert monitor.report().to_dict()["findings"][0]["kind"] == "dead_units"


def test_findings_do_not_depend_on_when_the_rings_are_read():
    found = []
    for flush_every in (1, 7, 100):
        monitor = GradientMonitor(flush_every=flush_every, on_finding=None)
        fit(sick_model(), monitor)
        found.append(monitor.findings)
    assert found[0] == found[1] == found[2]


def test_warn():
    with pytest.warns(
        SickLayerWarning, match="dead_units at hidden2, since step 0\n  100% of units"
    ):
        fit(sick_model(), GradientMonitor())


@pytest.mark.parametrize("on_finding", ["warn", "stop"])
def test_neighbours_share_one_warning(on_finding):
    keras.utils.set_random_seed(0)
    wide = keras.initializers.RandomNormal(stddev=1.0, seed=0)
    hidden = [layers.Dense(64, "relu", kernel_initializer=wide) for _ in range(12)]
    model = keras.Sequential([*hidden, layers.Dense(nets.CLASSES)])
    model.compile("sgd", nets.LOSS)
    monitor = GradientMonitor(on_finding=on_finding)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SickLayerWarning)
        fit(model, monitor, steps=20)
    told = [str(w.message) for w in caught if w.category is SickLayerWarning]
    assert len(monitor.findings) > 2 * len(told)
    report = str(monitor.report())
    for text in told:
        assert text in report
    assert any("layers), since step" in text for text in told)
    assert model.stop_training == (on_finding == "stop")


def test_stop():
    monitor = GradientMonitor(on_finding="stop")
    with pytest.warns(SickLayerWarning):
        fit(sick_model(), monitor)
    # Keras stops at the end of the epoch, or of the step that asked for it.
    assert monitor.recording.total_steps <= 21


def test_raise(tmp_path):
    model = sick_model()
    optimizer, monitor = model.optimizer, GradientMonitor(tmp_path, on_finding="raise")
    with pytest.raises(SickLayerError, match="hidden2 does not train: dead_units") as e:
        fit(model, monitor)
    assert e.value.finding == monitor.findings[0]
    assert "Fix:" in str(e.value)
    assert "apply" not in vars(optimizer)
    written = tfdeep.diagnostics.read_run(tmp_path).findings
    assert tuple(written) == monitor.findings


def test_a_callable_is_told_each_finding():
    told = []
    monitor = GradientMonitor(on_finding=told.append)
    fit(sick_model(), monitor)
    assert tuple(told) == monitor.findings
    assert isinstance(told[0], Finding)


@pytest.mark.parametrize("chosen", [None, [], [rules.LossSpike()]])
def test_rules_can_be_switched_off(chosen):
    monitor = GradientMonitor(rules=chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SickLayerWarning)
        fit(sick_model(), monitor)
    assert monitor.findings == ()


@pytest.mark.parametrize("value", ["loud", 3, ["warn"]])
def test_what_to_do_must_be_known(value):
    with pytest.raises(InvalidArgumentError, match="on_finding="):
        GradientMonitor(on_finding=value)


@pytest.mark.parametrize("value", ["all", [rules.DeadUnits], ["dead_units"]])
def test_rules_must_be_rules(value):
    with pytest.raises(InvalidArgumentError, match="rules="):
        GradientMonitor(rules=value)


class TestFrozenTooLate:
    def model(self):
        model = nets.functional()
        nets.compiled(model, keras.optimizers.SGD(0.1, momentum=0.9))
        model.fit(nets.dataset(), verbose=0, shuffle=False)
        return model

    def findings(self, model):
        monitor = GradientMonitor(on_finding=None)
        fit(model, monitor, steps=30)
        return {(f.kind, f.layer) for f in monitor.findings}

    @pytest.mark.skipif(
        tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15),
        reason="Keras does not keep the flags of compile",
    )
    def test_a_flag_after_a_fit_is_too_late(self):
        model = self.model()
        model.get_layer("hidden2").trainable = False
        assert ("frozen_but_trained", "hidden2") in self.findings(model)

    def test_compiled_again_it_is_not(self):
        model = self.model()
        model.get_layer("hidden1").trainable = False
        model.compile(model.optimizer, nets.LOSS)
        model.fit(nets.dataset(), verbose=0, shuffle=False)
        assert ("frozen_but_trained", "hidden1") not in self.findings(model)

    def test_nor_when_tfdeep_froze_it(self):
        model = self.model()
        tfdeep.freeze(model, "hidden1")
        assert ("frozen_but_trained", "hidden1") not in self.findings(model)


def test_a_train_step_of_ones_own_is_watched():
    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    recordings = []
    for kind in (keras.Model, Own):
        keras.utils.set_random_seed(0)
        plain = nets.functional()
        model = kind(plain.inputs, plain.outputs)
        model.compile("sgd", nets.LOSS)
        monitor = GradientMonitor(activations=True, on_finding=None)
        fit(model, monitor, steps=6)
        recordings.append(monitor.recording)
    for name in ("loss", "norm", "output_std"):
        assert np.isfinite(recordings[1][name]).all()
        np.testing.assert_allclose(*(r[name] for r in recordings), rtol=1e-5)


def test_replicas_see_the_same_illness():
    with nets.two_replicas().scope():
        model = sick_model()
    monitor = GradientMonitor(activations=True, on_finding=None)
    fit(model, monitor)
    assert [(f.kind, f.layer) for f in monitor.findings] == [("dead_units", "hidden2")]


def test_long_runs_stay_within_bounded_memory():
    recording = tfdeep.diagnostics.Recording([f"w{i}" for i in range(40)])
    rng = np.random.default_rng(0)
    total = 0
    while total < 100_000:
        norm = rng.random((1000, 40), dtype="float32")
        norm[:, 0] = np.arange(total, total + 1000)
        mean = np.where(
            (np.arange(total, total + 1000) % 10 == 0)[:, None], norm, np.nan
        )
        recording.extend({"norm": norm, "mean": mean.astype("float32")})
        total += 1000
    assert recording.total_steps == 100_000
    for name, steps in (("norm", recording.steps), ("mean", recording.measured_steps)):
        values = recording[name]
        assert values.nbytes < 5_000_000
        np.testing.assert_array_equal(values[:, 0], steps)
        np.testing.assert_array_equal(
            steps[:300], steps[0] + np.arange(300) * (steps[1] - steps[0])
        )
        assert steps[-1] >= 99_990
        assert np.diff(steps).max() <= 2000


def test_layers_that_hold_layers():
    """A subclassed layer, a nested model and attention, with their paths."""

    class Block(layers.Layer):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.up = layers.Dense(16, activation="relu", name="up")
            self.down = layers.Dense(8, name="down")

        def call(self, x):
            return x + self.down(self.up(x))

    inputs = keras.Input((4, 8))
    x = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    x = Block(name="block")(x)
    inner = keras.Input((4, 8))
    base = keras.Model(inner, layers.Dense(8, name="dense")(inner), name="base")
    x = layers.Flatten()(base(x))
    model = keras.Model(inputs, layers.Dense(1, name="outputs")(x))
    model.compile("adam", "mse")
    monitor = GradientMonitor(activations=True, on_finding=None)
    x = np.random.default_rng(0).normal(size=(64, 4, 8))
    model.fit(x, np.zeros(64), batch_size=8, verbose=0, callbacks=[monitor])
    recording = monitor.recording
    assert [(layer.path, layer.inputs) for layer in recording.layers] == [
        ("attention/query", ()),
        ("attention/key", ()),
        ("attention/value", ()),
        ("attention/attention_output", ("attention/value",)),
        ("block/up", ("attention/attention_output",)),
        ("block/down", ("block/up",)),
        ("base/dense", ("block/down",)),
        ("outputs", ("base/dense",)),
    ]
    assert np.isfinite(recording["output_std"]).all()
