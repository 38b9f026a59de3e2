"""What is said of units and inputs names the examples that it rests on."""

import keras
import numpy as np
import pytest
from keras import layers

import tfdeep
from tests import nets
from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics import Recording
from tfdeep.diagnostics.rules import (
    DeadUnits,
    InputScale,
    RankCollapse,
    SaturatedUnits,
)

STEPS = 20


def recording(examples, kind="Dense", activation="relu", units=64, **quantities):
    """Two layers, of which the first is as the quantities say at every step."""
    infos = [
        LayerInfo(
            name,
            kind,
            activation=activation,
            kernel=f"{name}/kernel",
            units=units,
            fan_in=64,
            inputs=before,
        )
        for name, before in (("low", ()), ("sick", ("low",)), ("top", ("sick",)))
    ]
    run = Recording([f"{x.path}/kernel" for x in infos], infos)
    rows = {"loss": np.ones((STEPS, 1)), "norm": np.ones((STEPS, 3))}
    rows["weight_norm"] = rows["norm"]
    if examples:
        rows["examples"] = np.full((STEPS, 1), examples)
    for name, (low, sick) in quantities.items():
        rows[name] = np.tile([low, sick, low], (STEPS, 1))
    run.extend({name: np.float32(values) for name, values in rows.items()})
    return run


@pytest.mark.parametrize(
    ("batch", "dead", "kind", "found"),
    [
        (2, 1.0, "Dense", None),
        (4, 0.75, "Dense", None),
        (4, 0.75, "Conv2D", ("warning", 20)),
        (4, 0.95, "Dense", ("warning", 20)),
        (32, 0.75, "Dense", ("warning", 160)),
        (32, 0.95, "Dense", ("critical", 160)),
        (1000, 0.95, "Dense", ("critical", 640)),
    ],
)
def test_dead_units(batch, dead, kind, found):
    run = recording(batch, kind, inactive_fraction=(0.1, dead))
    symptoms = list(DeadUnits().look(run))
    assert len(symptoms) == (found is not None)
    for symptom in symptoms:
        severity, examples = found
        assert symptom.severity == severity
        text = f"{dead:.0%} of units dead: not active on any of {examples} examples"
        assert symptom.evidence == text


def test_of_wide_layers_fewer_examples_are_seen():
    run = recording(128, units=4096, inactive_fraction=(0.1, 0.95))
    (symptom,) = DeadUnits().look(run)
    assert "any of 80 examples" in symptom.evidence


@pytest.mark.parametrize(("batch", "said"), [(2, None), (32, ", on 96 examples")])
def test_saturated_units(batch, said):
    run = recording(batch, activation="tanh", flat_fraction=(0.1, 0.95))
    found = [s.evidence for s in SaturatedUnits().look(run)]
    assert found == ([] if said is None else [f"95% of its outputs saturated{said}"])


@pytest.mark.parametrize(("batch", "said"), [(4, None), (32, ", on 32 examples")])
def test_rank_collapse(batch, said):
    run = recording(batch, effective_rank=(6.0, 1.0), output_mean=(0.1, 0.1))
    run.extend({"effective_rank": np.float32([[6, 1, 1]])} | _last(run))
    found = [s.evidence for s in RankCollapse().look(run)]
    assert bool(found) == (said is not None)
    assert all(evidence.endswith(said) for evidence in found)


def _last(run):
    names = ("loss", "norm", "weight_norm", "examples", "output_mean")
    return {name: run[name][-1:] for name in names}


@pytest.mark.parametrize(("batch", "said"), [(0, ""), (1, ", on 10 examples")])
def test_input_scale(batch, said):
    run = recording(batch)
    rows = {name: run[name][:10] for name in run.quantities}
    fresh = Recording(run.variables, run.layers)
    offsets = np.full((10, 1), 100, np.float32)
    fresh.extend({**rows, "input_offset": offsets, "input_spread": offsets})
    found = [s.evidence for s in InputScale().look(fresh)]
    assert found == [f"it gets inputs of mean 1e+02 and standard deviation 1e+02{said}"]


class TestDiagnose:
    @staticmethod
    def net():
        keras.utils.set_random_seed(0)
        sparse = keras.initializers.Constant(-0.9)
        return keras.Sequential(
            [
                keras.Input((nets.INPUTS,)),
                layers.Dense(64, "relu", bias_initializer=sparse, name="hidden"),
                layers.Dense(nets.CLASSES),
            ]
        )

    def test_units_that_are_active_on_few_examples_are_not_dead(self):
        x, y = nets.examples(4)
        diagnosis = tfdeep.diagnose(self.net(), x, y, nets.LOSS)
        assert diagnosis.layers[0].inactive_fraction > 0.5
        assert "dead_units" not in [f.kind for f in diagnosis.findings]

    def test_those_of_which_many_examples_say_so_are(self):
        model, (x, y) = self.net(), nets.examples(256)
        findings = tfdeep.diagnose(model, x, y, nets.LOSS).findings
        assert "dead_units" not in [f.kind for f in findings]
        model.layers[0].bias.assign(-100 * np.ones(64))
        findings = tfdeep.diagnose(model, x, y, nets.LOSS).findings
        (dead,) = [f for f in findings if f.kind == "dead_units"]
        assert dead.evidence == (
            "100% of units dead: not active on any of 128 examples"
        )
