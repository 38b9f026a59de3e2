"""The programs in `examples/`, run as a reader runs them."""

import numpy as np
import pytest

from tests.programs import example


def test_at_the_cliff_the_unclipped_step_jumps_ten_times_as_far(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "cliff.png"
    ratio, unclipped, clipped = example("cliff").main(["--output", str(figure)])
    assert ratio > 10
    assert unclipped[-1] > 0.08  # on the far plateau
    assert clipped[-10:].min() < 0.01  # in the valley below the cliff
    assert figure.stat().st_size > 10_000
    assert "times as far" in capsys.readouterr().out


def test_a_long_recurrent_network_diverges_unclipped_and_learns_clipped(tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "rnn.png"
    unclipped, clipped = example("exploding_rnn").main(
        ["--output", str(figure), "--epochs", "4"]
    )
    assert np.isnan(unclipped[-1])
    assert np.isfinite(clipped).all()
    assert clipped[-10:].mean() < clipped[:10].mean() / 2
    assert figure.stat().st_size > 10_000


@pytest.mark.slow
def test_a_net_that_does_not_train_is_mended_by_what_the_monitor_says():
    sick_layers = example("find_the_sick_layer")
    sick, losses = sick_layers.train("sigmoid", normalization=False, epochs=1)
    assert losses[-1] > 2.2  # ten equal probabilities have 2.303
    first = sick.findings[0]
    assert (first.kind, first.layer) == ("vanishing_gradient", "hidden1")
    assert 'activation="relu" with keras.initializers.HeNormal()' in first.remedy.text
    mended, losses = sick_layers.train("relu", normalization=False, epochs=4)
    assert losses[-1] < 1.3
    assert mended.findings == ()
