"""What may go wrong beside the training must not end it, nor pass in silence."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeep
from tests import nets
from tfdeep.callbacks import GradientMonitor
from tfdeep.callbacks._tensorboard import TensorBoardWriter
from tfdeep.diagnostics import rules
from tfdeep.errors import InvalidArgumentError, ModelError, SickLayerWarning

STEPS = 24


def fit(callbacks, model=None, epochs=1):
    if model is None:
        model = nets.compiled(nets.functional(), "sgd")
    data = nets.dataset(STEPS * 8, 8)
    model.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)


class At(keras.callbacks.Callback):
    """Does something after a step."""

    def __init__(self, step, do):
        super().__init__()
        self.step, self.do, self.done = step, do, 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done == self.step:
            self.do(self.model)


class TestWriting:
    def test_a_log_dir_that_vanishes_ends_only_the_writing(self, tmp_path):
        monitor = GradientMonitor(tmp_path / "logs")
        vanish = At(12, lambda model: shutil.rmtree(tmp_path / "logs"))
        with pytest.warns(UserWarning, match="cannot write to its `log_dir`") as seen:
            fit([vanish, monitor])
        assert len(seen) == 1
        assert monitor.recording.total_steps == STEPS

    def test_tensorflows_error_is_not_taken_for_the_end_of_the_data(
        self, tmp_path, monkeypatch
    ):
        def write(self, *args):
            raise tf.errors.OutOfRangeError(None, None, "file size limit")

        monkeypatch.setattr(TensorBoardWriter, "write", write)
        monitor = GradientMonitor(tmp_path)
        with pytest.warns(UserWarning, match="file size limit"):
            fit([monitor])
        assert monitor.recording.total_steps == STEPS

    def test_the_next_fit_writes_again(self, tmp_path):
        monitor = GradientMonitor(tmp_path / "logs")
        vanish = At(12, lambda model: shutil.rmtree(tmp_path / "logs"))
        with pytest.warns(UserWarning, match="cannot write"):
            fit([vanish, monitor])
        fit([monitor])
        run = tfdeep.diagnostics.read_run(tmp_path / "logs")
        assert run.recording.total_steps == STEPS

    def test_a_log_dir_that_is_a_file_is_an_error_before_the_first_step(self, tmp_path):
        (tmp_path / "logs").write_text("")
        with pytest.raises(InvalidArgumentError, match="cannot write to its") as error:
            fit([GradientMonitor(tmp_path / "logs")])
        assert "nothing was trained" in str(error.value)


@dataclasses.dataclass(frozen=True)
class OwnRule(rules.Rule):
    kind = "too_calm"

    def look(self, recording):
        if recording.total_steps >= 20:
            yield rules.Symptom("", "warning", 0, "it is calm", "shout")


@dataclasses.dataclass(frozen=True)
class Fails(rules.Rule):
    kind = "fails"

    def look(self, recording):
        return recording["nothing of this name"]


class TestRulesOfOnesOwn:
    def test_may_have_a_kind_of_their_own(self, tmp_path):
        monitor = GradientMonitor(tmp_path, rules=[OwnRule()])
        with pytest.warns(SickLayerWarning, match="too_calm at the net"):
            fit([monitor], epochs=2)
        assert [finding.kind for finding in monitor.findings] == ["too_calm"]
        monitor.plot()
        tfdeep.diagnostics.write_html_report(tmp_path)

    def test_that_fail_are_left_out_with_a_warning(self):
        monitor = GradientMonitor(rules=[Fails(), OwnRule()], on_finding=None)
        with pytest.warns(UserWarning, match="The rule Fails failed") as seen:
            fit([monitor], epochs=2)
        assert len(seen) == 1
        assert monitor.recording.total_steps == 2 * STEPS
        assert len(monitor.findings) == 1


class TestAModelThatIsCompiledAnew:
    @staticmethod
    def compile(model):
        clips = tfdeep.optimizers.ClipByGlobalNorm("adam", clip_norm=1e-3)
        model.compile(clips, nets.LOSS)

    def test_is_watched_on(self):
        monitor = GradientMonitor(on_finding=None)

        class Anew(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 1:
                    TestAModelThatIsCompiledAnew.compile(self.model)

        fit([Anew(), monitor], epochs=3)
        assert monitor.recording.total_steps == 3 * STEPS
        assert np.isfinite(monitor.recording["norm"]).all()
        assert np.isfinite(monitor.recording["loss"]).all()
        assert monitor.telemetry[0].steps == 2 * STEPS

    def test_can_be_trained_after_an_interrupted_fit(self):
        def interrupt(model):
            raise KeyboardInterrupt

        model = nets.functional()
        model.compile("sgd", nets.LOSS)
        with pytest.raises(KeyboardInterrupt):
            fit([At(5, self.compile), At(9, interrupt), GradientMonitor()], model)
        x, y = nets.examples(8)
        model.train_on_batch(x, y)


def test_a_train_step_without_the_optimizer_is_not_taken_for_a_healthy_one():
    class Net(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            variables = self.trainable_variables
            for variable, gradient in zip(
                variables, tape.gradient(loss, variables), strict=True
            ):
                variable.assign_sub(0.01 * gradient)
            return {"loss": loss}

    model = Net([keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="has seen no step"):
        model.fit(
            np.ones((8, 3)), np.ones((8, 2)), verbose=0, callbacks=[GradientMonitor()]
        )


def test_the_loss_of_a_train_step_of_ones_own_is_what_it_differentiates():
    class Net(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.abs(self(x, training=True) - y))
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    inputs = keras.Input((3,))
    model = Net(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd")
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    loss = np.abs(model(x).numpy() - 1).mean()
    monitor = GradientMonitor()
    model.fit(x, np.ones((8, 2), "float32"), verbose=0, callbacks=[monitor])
    assert monitor.recording["loss"][0, 0] == pytest.approx(loss, rel=1e-5)


def test_units_are_not_called_alive_because_their_gradient_is_not_a_number():
    model, monitor = nets.functional(), GradientMonitor(on_finding=None)
    model.compile("sgd", nets.LOSS)

    def spoil(model):
        kernel = model.trainable_variables[-2]
        kernel.assign(np.full(kernel.shape, np.nan))

    fit([At(12, spoil), monitor], model)
    recording = monitor.recording
    biases = [i for i, path in enumerate(recording.variables) if path.endswith("bias")]
    silent = recording["silent_fraction"][recording.measured_steps >= 20][:, biases]
    assert len(silent) and np.isnan(silent).all()


def test_a_model_with_nothing_to_train_is_refused():
    model = nets.functional()
    model.trainable = False
    model.compile("sgd", nets.LOSS)
    with pytest.raises(ModelError, match="no gradients to watch"):
        fit([GradientMonitor()], model)


def test_without_rules_it_is_read_no_more_often_than_asked():
    monitor = GradientMonitor(rules=None, flush_every=1000)
    read = []
    fit([At(STEPS - 1, lambda model: read.append(monitor._pending)), monitor])
    assert read == [STEPS - 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rules": rules.DeadUnits()}, "call the class"),
        ({"rules": rules.DeadUnits}, "call the class"),
        ({"rules": [rules.DeadUnits]}, "call the class"),
        ({"rules": [rules.Rule()]}, "each with a `kind`"),
        ({"rules": 5}, "a list of rules"),
        ({"log_dir": 5}, "the path of a directory"),
        ({"histograms": True}, "no place for the histograms"),
        ({"activations": "yes"}, "True or False"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        GradientMonitor(**arguments)
