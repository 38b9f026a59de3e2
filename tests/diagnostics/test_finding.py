import dataclasses

import numpy as np

from tfdeep._keras._architecture import LayerInfo
from tfdeep.diagnostics import Finding, summarize
from tfdeep.diagnostics._finding import findings_table, group_text, grouped


def layers(count):
    return [LayerInfo(f"h{i}", "Dense", kernel=f"h{i}/kernel") for i in range(count)]


def findings(*numbers, remedy="clip", evidence="NaN"):
    return [
        Finding("nonfinite", f"h{i}", "critical", 20 - i, evidence, remedy)
        for i in numbers
    ]


def first_line(group, layers=()):
    return group_text(group, layers).splitlines()[0]


def test_only_the_sick_layers_are_named():
    group = findings(0, 1, 2, 3, 5)
    where = "critical: nonfinite at {} (5 layers), since step 15"
    assert first_line(group, layers(6)) == where.format("h0 ... h3, h5")
    # Without the layers it is not known what stands side by side.
    assert first_line(group) == where.format("h0, h1, h2, h3, h5")


def test_many_layers_are_named_in_few_words():
    assert first_line(findings(*range(7)), layers(9)).endswith(
        "at h0 ... h6 (7 layers), since step 14"
    )
    few = "at h0, h2, h4, h6, h8, h10, ... (8 layers), since step 6"
    assert first_line(findings(*range(0, 16, 2))).endswith(few)
    assert first_line(findings(*range(0, 16, 2)), layers(16)).endswith(few)


def test_two_neighbours_are_no_range():
    assert "at h0, h1 (2 layers)," in first_line(findings(0, 1), layers(2))


def test_an_activation_between_two_kernels_does_not_part_them():
    first, *rest = layers(3)
    order = [first, LayerInfo("relu", "ReLU", "relu"), *rest]
    assert "at h0 ... h2 (3 layers)," in first_line(findings(0, 1, 2), order)


def test_layers_are_named_from_the_input_to_the_output():
    assert "at h0 ... h2 (3 layers)," in first_line(findings(2, 0, 1), layers(3))


def test_a_place_that_is_found_twice_is_named_once():
    net = [Finding("loss_spike", "", "warning", i, f"loss {i}", "") for i in (5, 3)]
    for order in ((), layers(2)):
        assert first_line(net, order) == "warning: loss_spike at the net, since step 3"
        assert first_line(findings(1, 1), order).startswith(
            "critical: nonfinite at h1, since"
        )


def test_evidence_that_is_not_that_of_all_names_its_layer():
    same, other = findings(0, 1), findings(1, evidence="infinite")
    assert "\n  NaN.\n" in group_text(same)
    assert "\n  h0: NaN.\n" in group_text([same[0], *other])
    assert "\n  infinite.\n" in group_text(other)


def test_another_remedy_is_another_group():
    both = [*findings(0, 2), *findings(1, remedy="normalize")]
    assert [[f.layer for f in group] for group in grouped(both)] == [
        ["h0", "h2"],
        ["h1"],
    ]
    table = findings_table(both, layers(3))
    assert "nonfinite at h0, h2 (2 layers)" in table
    assert "nonfinite at h1, since" in table
    assert findings_table([]) == "Nothing found."


def test_a_report_that_knows_the_layers_writes_ranges():
    report = dataclasses.replace(summarize({}), findings=tuple(findings(0, 1, 2)))
    assert "nonfinite at h0, h1, h2 (3 layers)" in str(report)
    report = dataclasses.replace(report, _layers=tuple(layers(3)))
    assert "nonfinite at h0 ... h2 (3 layers)" in str(report)
    assert "_layers" not in report.to_dict()


def test_kernels_are_compared_with_kernels():
    def remarks(norms):
        history = {path: np.full(4, norm) for path, norm in norms.items()}
        return summarize(
            {path: {"norm": x, "clipped_norm": x} for path, x in history.items()}
        ).remarks

    norms = {"a/kernel": 8.0, "a/bias": 0.001, "b/kernel": 2.0, "c/gamma": 100.0}
    assert remarks(norms) == (
        "At the end b/kernel has the smallest gradient of the kernels, 4 times "
        "smaller than that of a/kernel.",
    )
    assert remarks({"a/kernel": 8.0, "a/bias": 0.001}) == ()
