"""Long fits: what costs more than a norm is measured more rarely later on."""

import keras
import numpy as np
import pytest

import tfdeep
from tests import nets

STEPS, AN_EXECUTION = 1400, 100
RATE = 0.01
DUE = [*range(10), *range(10, 1000, 10), *range(1000, STEPS, 50)]


def fit(*callbacks, steps=STEPS, epochs=1, steps_accumulated=None, **monitor):
    keras.utils.set_random_seed(0)
    model = tfdeep.models.dnn((nets.INPUTS,), [32] * 3, nets.CLASSES, activation="relu")
    optimizer = keras.optimizers.SGD(
        RATE, gradient_accumulation_steps=steps_accumulated
    )
    nets.compiled(model, optimizer, steps_per_execution=AN_EXECUTION)
    monitor = tfdeep.callbacks.GradientMonitor(on_finding=None, **monitor)
    model.fit(
        nets.dataset(steps // epochs * 16, 16),
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks, monitor],
    )
    return monitor


def measured(values):
    return np.flatnonzero(~np.isnan(values)).tolist()


def test_details_are_measured_at_every_tenth_step_and_later_at_every_fiftieth():
    monitor = fit(activations=True)
    for history in monitor.history.values():
        assert measured(history["norm"]) == list(range(STEPS))
        assert measured(history["largest_entry"]) == DUE
        of_updates = [*range(0, 1000, 10), *range(1000, STEPS, 50)]
        assert measured(history["update_norm"]) == of_updates
        expected = RATE * history["norm"][of_updates]
        np.testing.assert_allclose(
            history["update_norm"][of_updates], expected, rtol=2e-3
        )
    spread = monitor.recording.at_steps("output_std")[:, 1]
    assert measured(spread) == DUE


@pytest.mark.parametrize("count", [4, 7, 300])
def test_an_update_of_accumulated_gradients_is_found_at_any_time(count):
    history = fit(steps_accumulated=count).history
    period = count * max(-(-10 // count), 2)
    starts = [
        step
        for step in range(0, STEPS, period)
        if (step + count < 1000 or step % (5 * period) == 0) and step + count <= STEPS
    ]
    for of_variable in history.values():
        found = measured(of_variable["update_norm"])
        assert found == [step + count - 1 for step in starts]
        assert (of_variable["update_norm"][found] > 0).all()


class Kills(keras.callbacks.Callback):
    """Lets a layer die at step 1,200."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch * 200 == 1200:
            self.model.get_layer("hidden2").bias.assign(np.full(32, -20.0))


@pytest.mark.parametrize("activations", [False, True])
def test_units_that_die_late_are_found_after_five_measured_steps(activations):
    monitor = fit(Kills(), epochs=9, steps=1800, activations=activations)
    (finding,) = monitor.findings
    assert (finding.kind, finding.layer) == ("dead_units", "hidden2")
    assert finding.first_step == 1400
    dead = "inactive_fraction" if activations else "silent_fraction"
    dead = np.nanmax(monitor.recording[dead], axis=1)
    steps = monitor.recording.measured_steps
    assert not (dead[(steps > 10) & (steps < 1400)] > 0.5).any()
    assert (dead[steps >= 1400] == 1).all()
