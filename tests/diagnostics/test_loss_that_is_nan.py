"""A loss that is not finite is a finding, whatever the loss scale excuses."""

import keras
import numpy as np
import pytest
from keras import layers

import tfdeep
from tests import nets
from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics import Recording
from tfdeep.diagnostics.rules import NonFinite


@pytest.fixture
def half():
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy("mixed_float16")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("activations", [False, True])
def test_in_float16(half, first, activations):
    model = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = nets.examples()
    y = np.where(np.arange(len(y)) // 8 == first, np.nan, y)
    monitor = tfdeep.callbacks.GradientMonitor(activations=activations, on_finding=None)
    model.fit(x, y, 8, shuffle=False, callbacks=[monitor], verbose=0)
    (found,) = [f for f in monitor.findings if f.kind == "nonfinite"]
    assert (found.layer, found.first_step) == ("", first)
    assert found.evidence.startswith("the loss is NaN")


def recording(loss, norm, **rows):
    found = Recording(["a/kernel"], [LayerInfo("a", "Dense", kernel="a/kernel")])
    rows = {"loss": loss, "norm": norm, "weight_norm": np.ones(len(loss)), **rows}
    found.extend({name: np.float32(v)[:, np.newaxis] for name, v in rows.items()})
    return found


class TestTheRule:
    ones = np.ones(30)
    skipped = np.where(np.arange(30) % 10 == 5, np.nan, 1.0)

    def test_steps_that_loss_scaling_skips_are_normal(self):
        run = recording(self.ones, self.skipped, examples=32 * self.ones)
        assert list(NonFinite().look(run)) == []

    def test_a_step_that_is_skipped_for_its_loss_is_not(self):
        examples = np.where(np.isnan(self.skipped), 32, np.nan)
        run = recording(self.skipped, self.skipped, examples=examples)
        (found,) = NonFinite().look(run)
        assert (found.layer, found.first_step) == ("", 5)

    def test_steps_that_were_not_recorded_are_no_loss(self):
        run = recording(self.skipped, self.skipped)
        assert list(NonFinite().look(run)) == []
        run = recording(np.nan * self.ones, self.ones)
        assert list(NonFinite().look(run)) == []

    def test_a_loss_that_no_gradient_follows(self):
        loss = np.where(np.arange(30) == 7, np.nan, 1.0)
        (found,) = NonFinite().look(recording(loss, self.ones))
        assert found.first_step == 7
