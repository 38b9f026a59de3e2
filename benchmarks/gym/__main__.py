"""Judges the rules of tfdeep, and the published ones, on sick and healthy nets.

    python -m benchmarks.gym                   all of it, about 20 minutes
    python -m benchmarks.gym --case "relu.*"   some nets
    python -m benchmarks.gym --parts monitor   without the rest

It prints, for each net, what was found in its first 50 steps; then

* recall: of how many sick nets the right kind was found at the right layer or an
  immediate neighbor;
* false alarms: how many healthy nets had a finding;
* the same for the published rules with their default thresholds;
* of how many sick nets that were found the first remedy of the first finding makes the
  net train, where it did not before.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import tfdeep
from benchmarks.gym._case import Case, prepare, train
from benchmarks.gym._remedies import applied
from benchmarks.gym.healthy import HEALTHY
from benchmarks.gym.measure import measure
from benchmarks.gym.published import RULES, trace
from benchmarks.gym.sick import SICK
from tfdeep.diagnostics import Finding

STEPS = 50
MODES = {"default": False, "activations": True}


class _Names(keras.callbacks.Callback):
    """The layers of the model in their order."""

    def on_train_begin(self, logs=None):
        self.names = [layer.name for layer in self.model.layers]


def find(case: Case, activations: bool, steps: int = STEPS, **changes):
    """What the monitor finds in a net, and the names of its layers."""
    keras.backend.clear_session()
    monitor = tfdeep.callbacks.GradientMonitor(activations=activations, on_finding=None)
    names = _Names()
    train(case, steps, [monitor, names], **changes)
    return monitor.findings, names.names


def right(case: Case, kind: str | None, layer: str, names: Sequence[str]) -> bool:
    """Whether this is what ails a net, at the right layer or a neighbor of it."""
    if kind not in case.kinds:
        return False
    if not case.layers:
        return True
    near = set()
    for sick in case.layers:
        place = names.index(sick)
        near |= set(names[max(place - 1, 0) : place + 2])
    return layer.split("/")[0] in near


def short(findings: Sequence[Finding]) -> str:
    """Findings in a line: each kind with its first and last layer."""
    kinds: dict[str, list[str]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding.layer or "the net")
    return "; ".join(
        f"{kind} {layers[0]}" + (f"...{layers[-1]}" if len(layers) > 1 else "")
        for kind, layers in kinds.items()
    )


def judge_monitor(sick, healthy, mode: str) -> dict[str, Finding]:
    """Prints recall and false alarms; returns the first finding by net found."""
    print(f"\ntfdeep, {mode} recording, {STEPS} steps")
    good: dict[str, Finding] = {}
    for case in sick:
        findings, names = find(case, MODES[mode])
        hits = [f for f in findings if right(case, f.kind, f.layer, names)]
        if hits:
            good[case.name] = findings[0]  # what a user reads first
        print(f"  {'found' if hits else 'MISSED':7}{case.name:34}{short(findings)}")
    alarms = 0
    for case in healthy:
        findings, _ = find(case, MODES[mode])
        alarms += len(findings)
        if findings:
            print(f"  FALSE  {case.name:34}{short(findings)}")
    if sick:
        print(f"  recall {len(good)} of {len(sick)} = {len(good) / len(sick):.3f}")
    if healthy:
        print(f"  false alarms {alarms} on {len(healthy)} healthy nets")
    return good


def judge_published(sick, healthy) -> None:
    """The same of the published rules, together and one by one."""
    print(f"\npublished rules, default thresholds, {STEPS} steps")
    hits = {rule: set() for rule in RULES}
    alarms = {rule: set() for rule in RULES}
    for case in [*sick, *healthy]:
        keras.backend.clear_session()
        traced = trace(case, STEPS)
        model = case.build(**case.settings)
        names = [layer.name for layer in model.layers]
        for rule, look in RULES.items():
            found = look(traced)
            if case.kinds and any(right(case, k, layer, names) for k, layer in found):
                hits[rule].add(case.name)
            if not case.kinds and found:
                alarms[rule].add(case.name)
    for rule in RULES:
        print(f"  {rule:26}{len(hits[rule]):3} sick found,", end="")
        print(f"{len(alarms[rule]):3} healthy nets with a false alarm")
    rows = (
        ("all", set(RULES)),
        ("without CheckInputImages", set(RULES) - {"CheckInputImages"}),
    )
    for name, rules in rows:
        found = set().union(*(hits[rule] for rule in rules))
        false = set().union(*(alarms[rule] for rule in rules))
        print(f"  {name}: recall {len(found)} of {len(sick)}, ", end="")
        print(f"false alarms on {len(false)} of {len(healthy)} healthy nets")


def freezing_holds(case: Case, finding: Finding) -> bool:
    """Whether `tfdeep.freeze` in the middle of training keeps the layer as it is."""
    keras.backend.clear_session()
    model, x, y = prepare(case)
    half = len(x) // 2
    arguments = {"batch_size": case.batch_size, "shuffle": False, "verbose": 0}
    model.fit(x[:half], y[:half], **arguments)
    tfdeep.freeze(model, include=finding.layer)
    before = model.get_layer(finding.layer).get_weights()
    monitor = tfdeep.callbacks.GradientMonitor(on_finding=None)
    model.fit(x[half:], y[half:], callbacks=[monitor], **arguments)
    after = model.get_layer(finding.layer).get_weights()
    same = all((a == b).all() for a, b in zip(before, after, strict=True))
    return same and finding.kind not in {f.kind for f in monitor.findings}


def prove_remedies(sick, good: dict[str, Finding], mode: str) -> None:
    """Does what the findings say, and sees whether the net trains then."""
    print("\nthe first remedy of the first finding, 150 steps")
    mended = tried = 0
    for case in sick:
        if case.name not in good:
            continue
        tried += 1
        finding = good[case.name]
        if finding.kind == "frozen_but_trained":
            holds = freezing_holds(case, finding)
            mended += holds
            verdict = "then it stays as it is" if holds else "NOT MENDED"
            print(f"  {case.name:34}moves while frozen   {verdict}: tfdeep.freeze")
            continue
        before = measure(case)
        line = f"  {case.name:34}{before[0]:9.3g} ->{before[1]:9.3g}"
        done = False
        if changes := applied(finding.remedy, case.settings):
            after = measure(case, **changes)
            is_gone = True
            if case.learns:  # it learned before, so the finding must be gone
                findings, _ = find(case, MODES[mode], **changes)
                is_gone = finding.kind not in {f.kind for f in findings}
            done = after[2] and is_gone
            line += f"   then {after[0]:9.3g} ->{after[1]:9.3g}  {changes}"
        mended += done
        print(
            line + ("" if done else f"   NOT MENDED: {finding.kind}: {finding.remedy}")
        )
    print(f"  mended {mended} of {tried}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default="", help="a regular expression of names")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=["monitor", "published", "remedies"],
        default=["monitor", "published", "remedies"],
    )
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    options = parser.parse_args()
    sick = [case for case in SICK if re.match(options.case, case.name)]
    healthy = [case for case in HEALTHY if re.match(options.case, case.name)]
    print(f"{len(sick)} sick and {len(healthy)} healthy nets")
    good: dict[str, Finding] = {}
    mode = options.modes[-1]
    if "monitor" in options.parts or "remedies" in options.parts:
        for mode in options.modes:
            good = judge_monitor(sick, healthy, mode)
    if "published" in options.parts:
        judge_published(sick, healthy)
    if "remedies" in options.parts:
        prove_remedies(sick, good, mode)


if __name__ == "__main__":
    main()
