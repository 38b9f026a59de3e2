"""The programs in `examples/` about depth: each number that the guide speaks of."""

import numpy as np
import pytest

from tests.programs import example


def scale_of_the_gradient(result):
    """How many times as large the gradient is in the first layer as in the last."""
    _, _, backward = result
    return np.sqrt(backward[0] / backward[-1])


@pytest.fixture(scope="module")
def variances():
    return example("variance_through_depth").main([])


def test_with_sigmoid_the_variance_does_not_keep_growing(variances):
    forward, outputs, _ = variances["sigmoid", "N(0, 1)"]
    shown = forward[[0, 1, 4, 9]]
    np.testing.assert_allclose(shown, [101.2, 42.0, 47.3, 32.1], rtol=0.01)
    assert 90 < forward[0] < 112
    assert forward[-1] < forward[0]
    assert outputs.max() <= 0.25


def test_with_relu_the_variance_grows_in_each_layer(variances):
    forward, _, _ = variances["relu", "N(0, 1)"]
    assert (np.diff(forward) > 0).all()
    shown = forward[[0, 1, 4, 9]]
    np.testing.assert_allclose(shown, [101, 4744, 5.7e8, 9.2e16], rtol=0.01)


@pytest.mark.parametrize(
    ("activation", "initialization", "low", "high"),
    [
        ("relu", "He", 0.5, 2),
        ("relu", "N(0, 1)", 1e6, 1e9),
        ("tanh", "Glorot", 0.05, 1),
        ("sigmoid", "N(0, 1)", 0.5, 0.8),
        ("sigmoid", "Glorot", 1e-6, 1e-5),
    ],
)
def test_the_gradient_keeps_its_scale_only_with_a_fitting_initialization(
    variances, activation, initialization, low, high
):
    assert low < scale_of_the_gradient(variances[activation, initialization]) < high


def test_how_far_normal_weights_carry_the_gradient_of_sigmoids_depends_on_the_width():
    propagate = example("variance_through_depth").propagate
    scales = [
        scale_of_the_gradient(propagate("sigmoid", "N(0, 1)", units))
        for units in (10, 100, 300)
    ]
    np.testing.assert_allclose(scales, [0.0029, 0.64, 7.4], rtol=0.05)


def test_gradient_ratios_of_twenty_layers():
    found = example("gradient_ratio").main(["--depths", "20"])
    ratios = {label: by_depth[20] for label, by_depth in found.items()}
    assert ratios["sigmoid, Glorot"] == pytest.approx(7.8e-13, rel=0.1)
    assert ratios["tanh, Glorot"] == pytest.approx(0.89, abs=0.05)
    assert ratios["relu, He"] == pytest.approx(0.55, abs=0.05)
    assert ratios["sigmoid, Glorot, BN"] == pytest.approx(1.36, abs=0.1)
    # By seed between 0.05 and 0.4: small, but no vanishing gradient.
    assert 0.02 < ratios["sigmoid, N(0, 1)"] < 1


def test_the_gradient_of_sigmoid_layers_vanishes_with_depth():
    net = ("sigmoid", "glorot_uniform", False)
    module = example("gradient_ratio")
    norms = [module.gradient_norms(*net, depth) for depth in (2, 5, 10)]
    ratios = [n[0] / n[-1] for n in norms]
    assert ratios[0] > 30 * ratios[1] > 30 * 30 * ratios[2]


def test_sigmoids_saturate_with_normal_weights_and_relus_die_at_large_rates(tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "figure.png"
    saturated, dead = example("saturated_and_dead").main(["--output", str(figure)])
    assert figure.stat().st_size > 10_000
    assert saturated["N(0, 1)"][0] == pytest.approx(0.64, abs=0.03)
    assert saturated["N(0, 1)"][-1] < saturated["N(0, 1)"][0]
    assert saturated["Glorot"].max() < 0.0005
    mean = {rate: np.mean(fractions) for rate, (fractions, _, _) in dead.items()}
    lost = {rate: np.mean(fractions) for rate, (_, fractions, _) in dead.items()}
    assert mean[0.01] < 0.15
    assert mean[0.1] < 0.15
    assert mean[1.0] > 0.5
    # With seed 42 the net ends in NaN; where it does not, nearly all units are dead.
    assert mean[2.0] + lost[2.0] > 0.8
    _, _, accuracy = dead[2.0]
    assert accuracy < 0.2
    assert not any(lost[rate] for rate in (0.01, 0.1))


@pytest.mark.slow
def test_twenty_sigmoid_layers_learn_with_batch_normalization_only(tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "figure.png"
    runs = example("batch_normalization_effect").main(["--output", str(figure)])
    assert figure.stat().st_size > 10_000
    losses, ratio, accuracy = runs["Glorot"]
    assert accuracy < 0.2
    assert ratio < 1e-9
    assert losses[-1] == pytest.approx(np.log(10), abs=0.01)
    losses, ratio, accuracy = runs["Glorot, BN"]
    assert accuracy > 0.85
    assert ratio == pytest.approx(1.36, abs=0.1)
    assert losses[-1] < 0.6
    assert 0.2 < runs["N(0, 1)"][2] < 0.6


def test_a_tenth_of_the_products_of_fifty_numbers_exceeds_the_claimed_bound():
    module = example("fifty_products")
    median, measured = module.main([])
    assert median == pytest.approx(-21.58, abs=0.05)
    assert module.exact_median() == pytest.approx(-21.58, abs=0.02)
    assert measured[1e-18] == pytest.approx(0.108, abs=0.003)
    exact = [module.probability_above(bound) for bound in module.BOUNDS]
    np.testing.assert_allclose(exact, [0.1078, 0.0532, 0.0079], atol=5e-5)
    assert module.probability_above(0.3, factors=1) == pytest.approx(0.7)


def test_products_of_matrices_degenerate_unless_they_are_nearly_orthogonal():
    module = example("degenerating_matrices")
    assert module.effective_rank(np.eye(100)) == pytest.approx(100)
    curves = module.main([])
    at = [0, 1, 4, 9, 19, 49]
    linear, relu = curves["linear"][at], curves["relu"][at]
    np.testing.assert_allclose(linear, [80.2, 66.8, 44.5, 28.1, 15.9, 8.2], atol=1)
    np.testing.assert_allclose(relu, [53.5, 41.6, 22.3, 14.1, 9.0, 3.1], atol=1)
    assert (np.diff(linear) < 0).all()
    assert (np.diff(relu) < 0).all()
    assert (curves["relu"] < curves["linear"]).all()
    np.testing.assert_allclose(curves["orthogonal"], 100)
    assert curves["residual"][-1] == pytest.approx(87.9, abs=1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("variance_through_depth", []),
        ("gradient_ratio", ["--depths", "2", "3"]),
        ("fifty_products", ["--count", "1000"]),
        ("degenerating_matrices", []),
    ],
)
def test_the_figures_are_drawn(name, options, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "figure.png"
    example(name).main(["--output", str(figure), *options])
    assert figure.stat().st_size > 10_000
    assert f"figure in {figure}" in capsys.readouterr().out
