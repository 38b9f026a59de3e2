import dataclasses
import io

import numpy as np
import pytest

import tfdeep
from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics import Finding, Recording, _plots, plot_run
from tfdeep.diagnostics._finding import KINDS
from tfdeep.diagnostics._plots import heat_map_png

pytest.importorskip("matplotlib")


def recording(layers=3, steps=30, activation="tanh", units=True, change=None):
    """A run that was made up: norms that fall by ten from layer to layer."""
    infos = tuple(
        LayerInfo(f"h{i}", "Dense", activation, f"h{i}/kernel", bias=f"h{i}/bias")
        for i in range(layers)
    )
    paths = [f"h{i}/{name}" for i in range(layers) for name in ("kernel", "bias")]
    made = Recording(paths, infos)
    due = (np.arange(steps) % 10 == 0)[:, None]
    norm = np.repeat(10.0 ** (np.arange(layers) - layers + 1), 2)
    norm = norm * np.linspace(2, 1, steps)[:, None]
    rows = {
        "loss": np.linspace(1, 0, steps)[:, None],
        "norm": norm,
        "update_norm": np.where(due, norm, np.nan) / 1000,
        "weight_norm": np.where(due, np.ones_like(norm), np.nan),
    }
    if units:
        fraction = np.where(due, np.linspace(0, 1, layers), np.nan)
        rows |= {"inactive_fraction": fraction, "flat_fraction": fraction / 2}
    if change is not None:
        change(rows)
    made.extend({name: values.astype(np.float32) for name, values in rows.items()})
    return made


def drawn(run, findings=()):
    """The page, once it has been drawn: norms, heat map, updates, loss, and units."""
    figure = plot_run(run, findings)
    figure.savefig(io.BytesIO(), format="png", dpi=10)
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def lines(axes):
    return {
        line.get_label(): line.get_xydata()
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def test_it_draws_each_kernel_at_its_steps():
    norms, heat, updates, _, units = drawn(recording())
    assert list(lines(norms)) == ["h0", "h1", "h2"]
    assert norms.get_yscale() == updates.get_yscale() == "log"
    np.testing.assert_allclose(lines(norms)["h2"][:, 0], np.arange(30))
    np.testing.assert_allclose(
        lines(norms)["h0"][1:-1, 1], np.linspace(0.02, 0.01, 30)[1:-1], rtol=1e-5
    )
    np.testing.assert_allclose(
        lines(updates)["h2"], [[0, 2e-3], [10, 0.00165517], [20, 0.00131034]], rtol=1e-4
    )
    assert [label.get_text() for label in heat.get_yticklabels()] == ["h0", "h1", "h2"]
    colors = heat.collections[0].get_array().reshape(3, -1)
    assert (colors[0] < colors[1]).all() and (colors[1] < colors[2]).all()
    assert units.get_title() == "Dead units and saturated outputs"
    np.testing.assert_allclose(lines(units)["h2"][:, 1], 1)


def titles(run):
    return [axes.get_title().partition(";")[0] for axes in drawn(run)]


def test_it_draws_the_loss_with_and_without_units():
    usual = [
        "Gradient norm of each layer",
        "Gradient norm, layers by steps",
        "Size of the updates",
        "Loss of each step",
    ]
    assert titles(recording(units=False)) == usual
    assert titles(recording()) == [*usual, "Dead units and saturated outputs"]


def silent(rows):
    rows["silent_fraction"] = np.where(np.isnan(rows["update_norm"]), np.nan, 0.25)


@pytest.mark.parametrize("activation", ["linear", "softmax", "leaky_relu"])
def test_what_cannot_die_has_no_dead_units(activation):
    run = recording(activation=activation, units=False, change=silent)
    assert titles(run)[-1] == "Loss of each step"


def test_a_linear_output_is_not_among_the_units():
    run = recording(activation="relu", units=False, change=silent)
    *hidden, output = run.layers
    run.layers = (*hidden, dataclasses.replace(output, activation="linear"))
    assert list(lines(drawn(run)[-1])) == ["h0", "h1"]


def test_the_activation_behind_a_layer_counts():
    run = recording(layers=1, activation="linear", units=False, change=silent)
    relu = LayerInfo("relu", "ReLU", "relu", inputs=("h0",))
    run.layers = (*run.layers, relu)
    assert list(lines(drawn(run)[-1])) == ["h0"]
    # What a normalization takes away has no gradient, and is not dead.
    norm = LayerInfo("norm", "BatchNormalization", inputs=("h0",))
    relu = dataclasses.replace(relu, inputs=("norm",))
    run.layers, run.memo = (run.layers[0], norm, relu), {}
    assert titles(run)[-1] == "Loss of each step"


def test_the_flat_side_of_relu_is_not_saturation():
    *_, units = drawn(recording(activation="relu"))
    assert units.get_title() == "Dead units"


def test_the_fraction_of_silent_units_stands_in_for_dead_ones():
    *_, units = drawn(recording(units=False, change=silent))
    assert units.get_title() == "Dead units"
    np.testing.assert_allclose(lines(units)["h1"][:, 1], 0.25)


def test_many_layers_have_no_legend_and_few_names():
    norms, heat, updates, _, units = drawn(recording(layers=60))
    assert lines(norms) == lines(updates) == lines(units) == {}
    assert "dark: near the input" in norms.get_title()
    names = [label.get_text() for label in heat.get_yticklabels()]
    assert names[0] == "h0" and names[-1] == "h59"
    assert len(names) <= 21


def test_a_long_run_has_few_points_and_keeps_its_spikes():
    def change(rows):
        rows["norm"][61_234] = 1e6

    run = recording(layers=2, steps=70_000, change=change)
    norms, heat, *_ = drawn(run)
    assert all(len(line.get_xdata()) < 1000 for line in norms.get_lines())
    assert norms.get_ylim()[1] > 1e6
    assert heat.collections[0].get_array().size <= 2 * 240


def test_gradients_that_are_not_finite_are_marked():
    def change(rows):
        rows["norm"][20:] = np.inf
        rows["norm"][:, 0] = 0
        rows["norm"][:5] = np.nan
        rows["loss"][20:] = np.nan
        rows["update_norm"][20:] = np.inf

    norms, heat, *_ = drawn(recording(change=change, units=False))
    np.testing.assert_array_equal(
        lines(norms)["NaN or infinite"][:, 0], np.arange(20, 30)
    )
    assert "red: NaN or infinite" in heat.get_title()
    assert "black: zero" in heat.get_title()


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_run_of_one_such_value_can_be_drawn(value):
    def change(rows):
        for values in rows.values():
            values[:] = value

    drawn(recording(change=change))
    drawn(recording(steps=1, change=change))


@pytest.mark.parametrize("steps", [0, 1, 2, 11])
def test_short_runs_can_be_drawn(steps):
    drawn(recording(steps=steps))


def test_a_run_without_layers_or_numbers_can_be_drawn():
    drawn(Recording([]))
    drawn(Recording(["a/kernel"]))
    bare = Recording(["a/bias", "$x^2$/kernel_$"])
    bare.extend({"norm": np.ones((3, 2), np.float32)})
    assert list(lines(drawn(bare)[0])) == [r"\$x^2\$/kernel_\$"]


def test_findings_stand_at_their_layer_and_step():
    run = recording()
    findings = [
        Finding("vanishing_gradient", "h1", "critical", 12, "", ""),
        Finding("vanishing_gradient", "h2", "critical", 14, "", ""),
        Finding("loss_spike", "", "warning", 3, "", ""),
        Finding("of_the_future", "unknown", "odd", 10**9, "", ""),
    ]
    heat = drawn(run, findings)[1]
    found = lines(heat)
    np.testing.assert_array_equal(found["vanishing gradient"], [[12.5, 1]])
    np.testing.assert_array_equal(found["loss spike"], [[3.5, -0.5]])
    assert len(heat.get_lines()) == 4
    names = [text.get_text() for text in heat.get_legend().get_texts()]
    assert names == ["vanishing gradient", "loss spike", "of the future"]
    title = heat.get_legend().get_title().get_text()
    assert title == "Findings; red: critical, orange: warning"


def test_a_kind_has_the_same_mark_in_every_figure():
    findings = [Finding(kind, "h1", "warning", 0, "", "") for kind in KINDS]

    def marks(findings):
        heat = drawn(recording(), findings)[1]
        return {x.get_label(): x.get_marker() for x in heat.get_lines()}

    every = marks(findings)
    assert len(set(every.values())) == len(KINDS)
    assert marks(findings[::-1]) == every
    assert marks(findings[5:6]).items() <= every.items()
    assert set(marks([Finding("own", "h1", "warning", 0, "", "")]).values()).isdisjoint(
        every.values()
    )


def test_the_heat_map_is_a_png():
    assert heat_map_png(recording(layers=60)).startswith(b"\x89PNG")
    assert heat_map_png(Recording([])) is None


def test_a_running_median_is_that_of_its_neighbours():
    x = np.array([1.0, 100.0, 2.0, 3.0, np.nan])
    np.testing.assert_allclose(_plots._running_median(x), [50.5, 2, 3, 2.5, 3])


def test_norms_by_history_can_be_drawn(tmp_path):
    history = {"a/kernel": {"norm": np.array([1.0, np.inf, 2.0])}, "a/bias": {}}
    figure = tfdeep.diagnostics.plot_gradient_norms(history, "norms")
    figure.savefig(tmp_path / "norms.png")
    (axes,) = figure.axes
    assert axes.get_title() == "norms"
    assert list(lines(axes)) == ["a/kernel"]
    assert axes.get_xlabel() == "kept step"  # which of the run's steps is not told


def test_norms_by_history_stand_at_their_steps():
    history = {"a/kernel": {"norm": np.array([4.0, 1.0, 2.0])}}
    steps = np.array([0, 10, 200])
    (axes,) = tfdeep.diagnostics.plot_gradient_norms(history, steps=steps).axes
    np.testing.assert_array_equal(lines(axes)["a/kernel"][:, 0], steps)
    assert axes.get_xlabel() == "step"
