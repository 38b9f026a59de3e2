"""Each rule on recordings made by hand: when it speaks, and when it must not."""

import dataclasses

import numpy as np
import pytest

import tfdeep
from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics import Recording, rules
from tfdeep.diagnostics._examiner import Examiner

STEPS = 60
TENTH = np.arange(STEPS) % 10 == 0
DUE = np.array([step < 10 or step % 10 == 0 for step in range(STEPS)])


class Run:
    """A healthy run of three layers; a test makes it sick and asks a rule."""

    def __init__(self, activation="relu", **facts):
        last = len(self.names) - 1
        self.layers = [
            LayerInfo(
                name,
                "Dense",
                activation="linear" if i == last else activation,
                kernel=f"{name}/kernel",
                bias=f"{name}/bias",
                units=64,
                fan_in=64,
                gain=1.4,
                is_untouched=True,
                inputs=(self.names[i - 1],) if i else (),
                inputs_add_up=True,
                makes_output=i == last,
                **facts,
            )
            for i, name in enumerate(self.names)
        ]
        self.variables = [f"{n}/{w}" for n in self.names for w in ("kernel", "bias")]
        rng = np.random.default_rng(0)
        shape = (STEPS, len(self.variables))
        self.rows = {
            "loss": 2.3 * np.exp(-np.arange(STEPS) / 30)[:, np.newaxis],
            "norm": np.exp(rng.normal(0, 0.1, shape)),
            "weight_norm": self.at_due(10.0, shape),
            "update_norm": np.where(TENTH[:, np.newaxis], np.full(shape, 0.05), np.nan),
            "silent_fraction": self.at_due(0.1, shape),
            "is_frozen": np.full(shape, np.nan),
            "input_offset": self.at_due(0.3, (STEPS, 1)),
            "input_spread": self.at_due(0.9, (STEPS, 1)),
        }
        self.rows["clipped_norm"] = self.rows["norm"]

    names = ("hidden1", "hidden2", "hidden3", "outputs")

    @staticmethod
    def at_due(value, shape):
        return np.where(DUE[:, np.newaxis], np.full(shape, value), np.nan)

    def with_activations(self):
        shape = (STEPS, len(self.layers))
        values = {
            "output_mean": 0.1,
            "output_std": 1.0,
            "flat_fraction": 0.1,
            "inactive_fraction": 0.05,
            "effective_rank": 6.0,
            "nonfinite_output": 0.0,
        }
        for name, value in values.items():
            self.rows[name] = self.at_due(value, shape)
        return self

    def set(self, name, columns, values, steps=slice(None)):
        """Sets a quantity of some variables or layers, where it is measured."""
        block = self.rows[name] = self.rows[name].copy()
        for column in columns:
            known = ~np.isnan(block[steps, column])
            spread = np.broadcast_to(values, block[steps, column].shape)
            block[steps, column] = np.where(known, spread, np.nan)
        if name == "norm":
            self.rows["clipped_norm"] = block
        return self

    def layer(self, name, **facts):
        place = self.names.index(name)
        self.layers[place] = dataclasses.replace(self.layers[place], **facts)
        return self

    def examine(self, chosen=None):
        recording = Recording(self.variables, self.layers)
        examiner = Examiner(chosen or rules.default_rules())
        found = []
        for start in range(0, STEPS, 10):
            recording.extend(
                {
                    n: v[start : start + 10].astype("float32")
                    for n, v in self.rows.items()
                }
            )
            found += examiner.examine(recording)
        return found

    def kinds(self):
        return {(finding.kind, finding.layer) for finding in self.examine()}


KERNEL = {"hidden1": 0, "hidden2": 2, "hidden3": 4, "outputs": 6}


@pytest.mark.parametrize("activations", [False, True])
def test_a_healthy_run_has_no_findings(activations):
    run = Run().with_activations() if activations else Run()
    assert run.examine() == []


def test_vanishing():
    run = Run("sigmoid").set("norm", [0, 1], 1e-6)
    run.set("norm", [2, 3], 1e-4).set("norm", [4, 5], 1e-2)
    assert run.kinds() == {
        ("vanishing_gradient", "hidden1"),
        ("vanishing_gradient", "hidden2"),
    }
    finding = run.examine()[0]
    assert finding.severity == "warning"
    assert "times smaller than that of outputs" in finding.evidence
    assert "keras.initializers.HeNormal()" in finding.remedy.text


def test_gradients_that_are_small_everywhere_do_not_vanish():
    assert Run().set("norm", range(8), 1e-9).kinds() == set()


def test_a_gradient_that_goes_around_a_layer_does_not_vanish():
    assert Run().set("norm", [2, 3], 1e-9).kinds() == set()


def test_one_sudden_drop_is_told_from_a_steady_one():
    run = Run().set("norm", [0, 1, 2, 3], 1e-8)
    assert "check what lies between hidden2 and hidden3" in run.examine()[0].remedy.text


def test_exploding_toward_the_input():
    run = Run().set("norm", [0, 1], 1e5)
    assert ("exploding_gradient", "hidden1") in run.kinds()


def test_a_branch_of_small_weight_in_the_loss_makes_no_other_explode():
    run = Run().layer("hidden3", inputs=("hidden1",))
    run.layer("outputs", inputs=("hidden1",))
    assert run.set("norm", [6, 7], 1e-4).kinds() == set()


def test_exploding_from_step_to_step_with_the_loss():
    growth = np.logspace(0, 6, STEPS)
    run = Run().set("norm", range(8), growth).set("loss", [0], 2 * growth)
    found = run.kinds()
    assert {("exploding_gradient", name) for name in Run.names} <= found


def test_a_gradient_that_is_clipped_hard_is_tamed():
    run = Run().set("norm", range(8), 1e5)
    run.rows["clipped_norm"] = np.full_like(run.rows["norm"], 0.1)
    assert run.kinds() == set()


class TestNonFinite:
    def test_the_layers_from_the_cause_down_are_named(self):
        run = Run().set("norm", [0, 1, 2, 3], np.inf, slice(30, 31))
        found = [f for f in run.examine() if f.kind == "nonfinite"]
        assert [f.layer for f in found] == ["hidden1", "hidden2"]
        assert {f.first_step for f in found} == {30}
        assert "add an epsilon" in found[0].remedy.text

    def test_the_first_output_is_named_where_outputs_are_seen(self):
        run = Run().with_activations()
        run.set("norm", range(8), np.inf, slice(30, None))
        run.set("nonfinite_output", [1, 2, 3], 1.0, slice(30, None))
        found = [f for f in run.examine() if f.kind == "nonfinite"]
        assert [(f.layer, f.first_step) for f in found] == [("hidden2", 30)]

    def test_finite_entries_with_a_norm_beyond_float32_are_too_large(self):
        run = Run().set("norm", [0, 1, 2, 3], np.inf, slice(30, 31))
        shape = run.rows["norm"].shape
        run.rows["nonfinite_count"] = run.at_due(0.0, shape)
        run.rows["largest_entry"] = run.at_due(3.6e21, shape)
        found = [f for f in run.examine() if f.kind == "nonfinite"]
        assert [f.layer for f in found] == ["hidden1", "hidden2"]
        for finding in found:
            assert "too large for float32: its largest entry is 3.6e+21" in (
                finding.evidence
            )
            assert "NaN" not in finding.evidence
            assert finding.remedy.text.startswith("keras.initializers.HeNormal()")
            assert "epsilon" not in finding.remedy.text
        # Below the cause the entries themselves may be infinite.
        run.set("nonfinite_count", [0, 1], 7.0, slice(30, 31))
        first, second = (f for f in run.examine() if f.kind == "nonfinite")
        assert "NaN or infinite" in first.evidence
        assert "too large for float32" in second.evidence
        assert first.remedy == second.remedy
        run.set("nonfinite_count", [2, 3], 7.0, slice(30, 31))
        assert "add an epsilon" in run.examine()[0].remedy.text

    def test_what_loss_scaling_skips_is_none(self):
        run = Run()
        run.rows["norm"][5:8] = np.nan
        run.rows["clipped_norm"][5:8] = np.nan
        assert run.kinds() == set()

    def test_nothing_but_skipped_steps_is_not_a_matter_of_the_scale(self):
        run = Run()
        run.rows["norm"][25:] = np.nan
        run.rows["clipped_norm"][25:] = np.nan
        found = [f for f in run.examine() if f.kind == "nonfinite"]
        assert [(f.layer, f.first_step) for f in found] == [("", 25)]
        assert "25 steps were skipped" in found[0].evidence

    def test_what_is_frozen_or_cut_off_is_not_skipped(self):
        run = Run()
        for name in ("norm", "clipped_norm"):
            run.rows[name] = np.full_like(run.rows[name], np.nan)
        assert "nonfinite" not in {kind for kind, _ in run.kinds()}
        run = Run()
        run.rows["is_frozen"][25:] = 1
        run.rows["norm"][25:] = run.rows["clipped_norm"][25:] = np.nan
        assert run.kinds() == set()


class TestNoGradient:
    @staticmethod
    def cut_off(run):
        for name in ("norm", "clipped_norm"):
            run.rows[name] = run.rows[name].copy()
            run.rows[name][:, :4] = np.nan
        return run

    def test_cut_off(self):
        run = self.cut_off(Run()).set("update_norm", range(4), 0.0)
        assert run.kinds() == {("no_gradient", "hidden1"), ("no_gradient", "hidden2")}

    def test_what_changes_is_trained_elsewhere(self):
        kinds = {kind for kind, _ in self.cut_off(Run()).kinds()}
        assert "no_gradient" not in kinds

    def test_what_has_changed_long_ago_is_not(self):
        run = self.cut_off(Run()).set("update_norm", range(4), 0.0, slice(20, None))
        assert ("no_gradient", "hidden1") in run.kinds()

    def test_a_rare_task_may_go_without_for_a_while(self):
        run = Run().layer("hidden3", inputs=("hidden1",))
        run.layer("outputs", inputs=("hidden1",))
        assert run.set("norm", [4, 5], 0.0, slice(5, 30)).kinds() == set()
        run = Run().set("norm", [4, 5], 0.0, slice(5, None))
        assert ("no_gradient", "hidden3") in run.kinds()

    def test_a_kernel_without_beside_a_bias_with_one_has_an_input_of_zero(self):
        found = Run().set("norm", [4], 0.0).examine()
        assert [(f.kind, f.layer) for f in found] == [("no_gradient", "hidden3")]
        assert "its input is zero" in found[0].evidence

    def test_a_loss_of_zero_from_the_first_step_on_is_no_success(self):
        found = Run().set("norm", range(8), 0.0).set("loss", [0], 0.0).examine()
        assert [(f.kind, f.layer) for f in found] == [("no_gradient", "")]
        assert "sample_weight" in found[0].remedy.text

    def test_a_bias_without_gradient_is_no_illness(self):
        assert Run().set("norm", [3], 0.0).kinds() == set()

    def test_a_loss_of_zero_asks_for_nothing(self):
        steps = slice(20, None)
        run = Run().set("norm", range(8), 0.0, steps).set("loss", [0], 0.0, steps)
        assert run.kinds() == set()

    def test_frozen_between_trained_layers_at_random_values(self):
        run = Run().layer("hidden2", is_trainable=False)
        run.variables = [v for v in run.variables if "hidden2" not in v]
        run.rows = {
            name: np.delete(values, [2, 3], axis=1) if values.shape[1] == 8 else values
            for name, values in run.rows.items()
        }
        assert run.kinds() == {("no_gradient", "hidden2")}
        run.layer("hidden2", is_trainable=False, is_untouched=False)  # pretrained
        assert run.kinds() == set()

    def test_frozen_copies_beside_the_trained_layers_are_left_alone(self):
        run = Run().layer("hidden2", is_trainable=False, inputs=())
        run.layer("hidden3", inputs=("hidden1",))
        assert run.kinds() == set()
        run = Run().layer("hidden2", is_trainable=False)
        run.layer("outputs", makes_output=False)
        assert run.kinds() == set()  # without a graph nobody knows

    def test_frozen_behind_a_concatenation_is_found(self):
        run = Run().layer("hidden2", is_trainable=False, inputs_add_up=False)
        assert ("no_gradient", "hidden2") in run.kinds()


def test_frozen_but_trained():
    run = Run()
    run.rows["is_frozen"][20:, [2, 3]] = 1
    (finding,) = run.examine()
    assert (finding.kind, finding.layer) == ("frozen_but_trained", "hidden2")
    assert finding.first_step == 20
    assert "tfdeep.freeze" in finding.remedy.text


def test_frozen_in_time_is_no_illness():
    run = Run()
    run.rows["is_frozen"][20:, [2, 3]] = 1
    for name in ("norm", "clipped_norm"):
        run.rows[name] = run.rows[name].copy()
        run.rows[name][20:, [2, 3]] = np.nan
    assert run.kinds() == set()


class TestDeadUnits:
    def test_by_activations(self):
        run = Run().with_activations()
        run.set("inactive_fraction", [1], 0.96, slice(30, None))
        (finding,) = run.examine()
        assert (finding.kind, finding.layer) == ("dead_units", "hidden2")
        assert (finding.severity, finding.first_step) == ("critical", 30)
        assert "96% of units dead" in finding.evidence
        assert "a tenth of the learning rate" in finding.remedy.text

    def test_by_the_gradient_of_the_bias(self):
        run = Run().set("silent_fraction", [3], 0.96)
        assert run.kinds() == {("dead_units", "hidden2")}

    def test_a_layer_behind_a_dead_one_is_not_blamed(self):
        run = Run().with_activations()
        run.set("inactive_fraction", [1, 2], 1.0)
        assert run.kinds() == {("dead_units", "hidden2")}

    def test_a_few_of_few_units_are_dead_by_chance(self):
        run = Run().layer("hidden2", units=6).set("silent_fraction", [3], 0.5)
        assert run.kinds() == set()


def test_saturated():
    run = Run("tanh").with_activations().set("flat_fraction", [1], 0.97)
    assert run.kinds() == {("saturated_units", "hidden2")}
    run = Run("relu").with_activations().set("flat_fraction", [1], 0.97)
    assert run.kinds() == set()  # of ReLU it is sparse


def test_saturated_outputs_are_meant_to_be():
    run = Run("tanh").layer("outputs", activation="sigmoid").with_activations()
    assert run.set("flat_fraction", [3], 0.99).kinds() == set()
    run.layer("hidden3", makes_output=True)  # which other layers read as well
    assert run.set("flat_fraction", [2], 0.99).kinds() == set()


def test_a_layer_with_a_tiny_input_is_not_saturated():
    run = Run("tanh").set("norm", [2], 1e-7)
    assert ("saturated_units", "hidden2") not in run.kinds()
    run.set("norm", [0, 1, 2, 3], 1e-7)  # nor is its bias heard
    assert ("saturated_units", "hidden2") in run.kinds()


class TestPoorInitialization:
    @pytest.mark.parametrize("gain", [10.0, 0.03])
    def test_gains_multiply(self, gain):
        run = Run()
        for name in Run.names:
            run.layer(name, gain=gain)
        found = {layer for kind, layer in run.kinds() if kind == "poor_initialization"}
        assert found and "hidden1" not in found

    def test_of_bounded_activations_one_layer_is_enough(self):
        run = Run("tanh").layer("hidden2", gain=10.0)
        assert run.kinds() == {("poor_initialization", "hidden2")}

    def test_a_pretrained_net_is_left_alone(self):
        run = Run()
        for name in Run.names:
            run.layer(name, gain=10.0, is_untouched=False)
        assert run.kinds() == set()

    def test_normalization_starts_anew(self):
        run = Run()
        for name in Run.names:
            run.layer(name, gain=10.0, kind="GroupNormalization")
        assert run.kinds() == set()

    def test_behind_a_product_the_scale_is_not_known(self):
        run = Run("sigmoid")
        for name in Run.names:
            run.layer(name, activation="relu", gain=4.0)
        run.layer("hidden3", activation="sigmoid", gain=1.0)
        assert run.kinds() == {("poor_initialization", "hidden3")}
        assert run.layer("hidden3", inputs_add_up=False).kinds() == set()

    def test_random_features_are_frozen_on_purpose(self):
        run = Run().layer("hidden1", gain=20.0)
        assert run.kinds() == {("poor_initialization", "hidden1")}
        assert run.layer("hidden1", is_trainable=False).kinds() == set()

    def test_where_sums_grow_the_weights_are_not_blamed(self):
        run = Run().layer("hidden1", gain=9.0).layer("hidden2", gain=9.0)
        run.layer("hidden3", gain=9.0)
        run.layer("outputs", gain=1.4)
        found = [f for f in run.examine() if f.layer == "outputs"]
        assert "BatchNormalization" in found[0].remedy.text
        assert "HeNormal" not in found[0].remedy.text

    def test_zero_weights_that_learn_are_a_way_to_start(self):
        assert Run().layer("outputs", gain=0.0).kinds() == set()


class TestInputScale:
    @pytest.mark.parametrize(
        ("offset", "spread"), [(80.0, 80.0), (50.0, 1.0), (0.0, 1e-6)]
    )
    def test_far_off(self, offset, spread):
        run = Run().set("input_offset", [0], offset).set("input_spread", [0], spread)
        assert run.kinds() == {("input_scale", "hidden1")}

    @pytest.mark.parametrize(("offset", "spread"), [(0.13, 0.3), (6.0, 6.0), (0, 0.01)])
    def test_as_pixels_or_words_are(self, offset, spread):
        run = Run().set("input_offset", [0], offset).set("input_spread", [0], spread)
        assert run.kinds() == set()

    def test_numbers_of_words_have_no_scale(self):
        run = Run().layer("hidden1", kind="Embedding").set("input_offset", [0], 500.0)
        assert run.kinds() == set()


def test_rank_collapse_counts_while_the_loss_is_high():
    run = Run().with_activations().set("effective_rank", [1, 2], 1.01)
    assert run.kinds() == set()  # it tells two classes apart
    run.set("loss", [0], 2.3)
    assert ("rank_collapse", "hidden2") in run.kinds()


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (1.16, "its 64 units have an effective rank of 1.2; a layer below has 6.0"),
        (0.99999, "its 64 units have an effective rank of 1.0; a layer below has 6.0"),
        (0.0, "its outputs are the same for all examples; a layer below has an"),
    ],
)
def test_a_rank_is_told_in_words(rank, words):
    run = Run().with_activations().set("effective_rank", [1, 2], rank)
    run.set("loss", [0], 2.3)
    (evidence,) = {f.evidence for f in run.examine() if f.layer == "hidden2"}
    assert words in evidence
    assert "of 0" not in evidence


def test_a_narrow_gate_has_a_low_rank_by_design():
    run = Run().with_activations().set("effective_rank", [1, 2], 1.01)
    run.layer("hidden2", fan_in=4).layer("hidden3", units=4).set("loss", [0], 2.3)
    assert run.kinds() == set()


def test_equal_units_are_seen_without_activations():
    run = Run().layer("hidden2", is_symmetric=True).set("loss", [0], 2.3)
    assert run.kinds() == {("equal_units", "hidden2")}


def test_updates_that_are_too_large_count_while_the_loss_does_not_fall():
    run = Run().set("update_norm", [2], 5.0)
    assert run.kinds() == set()
    assert run.set("loss", [0], 2.3).kinds() == {("update_too_large", "hidden2")}


class TestUpdateTooSmall:
    def test_at_every_layer(self):
        run = Run().set("update_norm", range(8), 1e-7).set("loss", [0], 2.3)
        assert run.kinds() == {("update_too_small", name) for name in Run.names}

    @pytest.mark.filterwarnings("error")
    def test_a_loss_of_zero_asks_for_no_update(self):
        run = Run().set("update_norm", range(8), 1e-7).set("loss", [0], 0.0)
        assert {kind for kind, _ in run.kinds()} <= {"no_gradient"}

    def test_a_warm_up_grows(self):
        ramp = np.logspace(-9, -6, STEPS)
        run = Run().set("update_norm", range(8), ramp).set("loss", [0], 2.3)
        assert run.kinds() == set()

    def test_a_schedule_ends(self):
        ramp = np.logspace(-1, -8, STEPS)
        run = Run().set("update_norm", range(8), ramp).set("loss", [0], 2.3)
        assert run.kinds() == set()


def test_loss_spike():
    run = Run().set("loss", [0], 100.0, slice(40, 41))
    run.set("norm", [4], 500.0, slice(40, 41))
    found = [f for f in run.examine() if f.kind == "loss_spike"]
    assert [(f.layer, f.first_step) for f in found] == [("hidden3", 40)]
    assert Run().set("loss", [0], 6.0, slice(40, 41)).kinds() == set()


def test_stalled_takes_its_time():
    noise = np.random.default_rng(0).normal(2.3, 0.1, STEPS)
    run = Run().set("loss", [0], noise)
    assert run.kinds() == set()
    assert {f.kind for f in run.examine([rules.Stalled(steps=50)])} == {"stalled"}


class TestHysteresis:
    def test_a_symptom_must_last(self):
        run = Run().with_activations()
        run.set("inactive_fraction", [1], 0.96, slice(50, None))
        assert run.kinds() == set()  # seen by the last examination only

    def test_a_finding_is_reported_once(self):
        run = Run().set("silent_fraction", [3], 0.96)
        assert len(run.examine()) == 1

    def test_it_may_come_again_after_it_was_gone(self):
        @dataclasses.dataclass(frozen=True)
        class AtSteps(rules.Rule):
            kind = "stalled"
            patience = 1
            seen: tuple[int, ...]

            def look(self, recording):
                if recording.total_steps in self.seen:
                    step = recording.total_steps
                    yield rules.Symptom("", "warning", step, "seen", "rest")

        for seen, times in (((10, 20), 1), ((10, 30), 1), ((10, 50), 2)):
            assert len(Run().examine([AtSteps(seen)])) == times


def test_thresholds_are_the_fields_of_a_rule():
    run = Run().set("norm", [0, 1], 1e-2)
    assert run.examine([rules.VanishingGradient()]) == []
    assert len(run.examine([rules.VanishingGradient(ratio=0.1)])) == 1


def test_there_is_one_rule_of_each_kind():
    kinds = [rule.kind for rule in rules.default_rules()]
    assert kinds == list(tfdeep.diagnostics.KINDS)


def test_a_penalty_that_falls_hides_no_stalled_loss():
    steps = rules.Stalled().steps
    recording = Recording(["a/kernel"], [LayerInfo("a", "Dense", is_untouched=True)])
    falling = np.linspace(10, 3, steps)[:, np.newaxis]
    rows = {"norm": np.ones((steps, 1)), "loss": falling}
    recording.extend(rows)
    assert list(rules.Stalled().look(recording)) == []
    recording = Recording(["a/kernel"], recording.layers)
    recording.extend({**rows, "data_loss": np.full((steps, 1), 2.3)})
    (symptom,) = rules.Stalled().look(recording)
    assert "2.3 at first and is 2.3" in symptom.evidence
