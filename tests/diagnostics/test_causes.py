"""Which finding follows from which."""

import itertools
import json

import pytest

from tfdeep.diagnostics import KINDS, Finding, MonitorReport, Remedy
from tfdeep.diagnostics._causes import LEADS_TO, causes, explained


def finding(kind, layer="", step=0, severity="critical"):
    return Finding(kind, layer, severity, step, "evidence", Remedy("remedy"))


def chain(*kinds):
    """The findings of some kinds at the same step, explained."""
    return explained([finding(kind) for kind in kinds])


def test_every_kind_in_the_graph_is_a_kind():
    assert set(LEADS_TO).union(*LEADS_TO.values()) <= set(KINDS)


def test_the_graph_has_no_cycle_but_the_one_that_time_decides():
    edges = {(a, b) for a, effects in LEADS_TO.items() for b in effects}
    backward = {(a, b) for a, b in edges if KINDS.index(a) > KINDS.index(b)}
    assert backward == {("exploding_gradient", "update_too_large")}


@pytest.mark.parametrize(
    ("cause", "effects"),
    [
        ("bad_input", ["nonfinite", "no_gradient"]),
        ("input_scale", ["update_too_large", "dead_units", "no_gradient"]),
        ("input_scale", ["poor_initialization", "saturated_units"]),
        ("learning_rate", ["update_too_large", "nonfinite"]),
        ("output_mismatch", ["dead_units", "stalled", "target_scale"]),
        ("bad_labels", ["exploding_gradient", "loss_spike"]),
        ("target_scale", ["update_too_small", "slow_learning"]),
        ("poor_initialization", ["vanishing_gradient", "no_gradient", "stalled"]),
        ("update_too_large", ["dead_units", "nonfinite"]),
        ("dead_units", ["no_gradient", "rank_collapse", "stalled"]),
        ("equal_units", ["rank_collapse", "no_gradient"]),
        ("vanishing_gradient", ["update_too_small", "stalled"]),
        ("heavy_dropout", ["slow_learning"]),
    ],
)
def test_one_fault_has_one_cause(cause, effects):
    for order in itertools.permutations([cause, *effects]):
        found = chain(*order)
        assert [f.kind for f in causes(found)] == [cause]
        assert found[0].kind == cause
        assert set(found[0].explains) == {(kind, "") for kind in effects}
        assert {f.explained_by for f in found[1:]} == {(cause, "")}


def test_what_comes_much_later_is_no_cause():
    found = explained([finding("dead_units"), finding("learning_rate", step=500)])
    assert {f.kind for f in causes(found)} == {"dead_units", "learning_rate"}


def test_of_two_that_can_lead_to_each_other_the_earlier_is_the_cause():
    def first(large, exploding):
        found = explained(
            [
                finding("update_too_large", step=large),
                finding("exploding_gradient", step=exploding),
            ]
        )
        (cause,) = causes(found)
        return cause.kind

    assert first(0, 20) == "update_too_large"
    assert first(20, 0) == "exploding_gradient"
    assert first(0, 0) == "exploding_gradient"


def test_two_faults_are_two_causes_the_graver_first():
    found = explained(
        [finding("linear_net", severity="warning"), finding("vanishing_gradient", "b")]
    )
    assert [f.kind for f in causes(found)] == ["vanishing_gradient", "linear_net"]


def test_findings_of_a_kind_stay_together_in_the_order_of_the_layers():
    found = explained(
        [
            finding("dead_units", "b"),
            finding("no_gradient"),
            finding("dead_units", "a"),
        ],
        layers=["a", "b"],
    )
    assert [f.place for f in found] == [
        ("dead_units", "a"),
        ("dead_units", "b"),
        ("no_gradient", ""),
    ]


def test_kinds_of_your_own_rules_are_causes_of_their_own():
    found = explained([finding("my_rule"), finding("stalled", severity="warning")])
    assert [f.kind for f in causes(found)] == ["my_rule", "stalled"]


def test_a_report_leads_with_the_cause_and_folds_the_rest():
    found = explained(
        [
            finding("dead_units", "hidden1", step=10),
            finding("dead_units", "hidden2", step=10),
            finding("input_scale", "hidden1", severity="warning"),
        ]
    )
    report = MonitorReport(100, (), (), found)
    text = str(report)
    assert text.startswith("warning: input_scale at hidden1, since step 0")
    assert "From it follows dead_units at hidden1, hidden2." in text
    assert text.count("Fix:") == 1
    assert [f.kind for f in report.causes] == ["input_scale"]
    as_json = json.loads(report.to_json())
    assert as_json["findings"][1]["explained_by"] == ["input_scale", "hidden1"]
    assert as_json["findings"][0]["remedy"]["text"] == "remedy"


def test_text_may_stand_for_a_remedy():
    found = Finding("my_rule", "", "warning", 0, "", "do this")
    assert found.remedy == Remedy("do this", "look")
    assert str(found.remedy) == "do this"
