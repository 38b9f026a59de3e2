"""Checks how a model is set up before it is trained."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfdeep._core._arguments import whole_number
from tfdeep._core._explain import listing
from tfdeep._core._records import Record, render_table
from tfdeep._keras import _variables
from tfdeep.surgery._setup import setup_of
from tfdeep.surgery._setup_rules import RULES


@dataclasses.dataclass(frozen=True)
class SetupFinding:
    """What one rule objects to.

    Attributes:
        rule: Name of the rule.
        layers: Paths of the layers (of weights, or the name of an optimizer) that it
            is about.
        problem: What does not go together.
        remedy: What to do instead.
        source: Where this is known from.
    """

    rule: str
    layers: tuple[str, ...]
    problem: str
    remedy: str
    source: str


@dataclasses.dataclass(frozen=True)
class SetupReport(Record):
    """What `check_setup` found.

    Attributes:
        model: Name of the model.
        rules: Names of the rules that were applied.
        findings: What they object to; empty if all is well.
    """

    model: str
    rules: tuple[str, ...]
    findings: tuple[SetupFinding, ...]

    def __str__(self) -> str:
        count = len(self.findings) or "no"
        return render_table(
            f"{self.model}: {count} objections by {len(self.rules)} rules",
            ["layers", "problem", "remedy"],
            [
                (listing(finding.layers, limit=2), finding.problem, finding.remedy)
                for finding in self.findings
            ],
            notes=[f"{f.rule}: {f.source}" for f in self.findings],
        )


def check_setup(model: Any, batch_size: int | None = None) -> SetupReport:
    """Finds combinations in a model that are known not to work well together.

    Use it before a long training. It reads layers, initial weights, and, of a compiled
    model, loss and optimizer; it changes and computes nothing. Each rule names its
    source. The rules:

    | rule | objects to |
    |---|---|
    | bias_before_batch_norm | a bias that the normalization takes out again |
    | batch_norm_after_activation | in convolutional nets |
    | batch_norm_in_recurrent_net | inside, or on the sequences of, a recurrent layer |
    | small_batch | fewer than 16 examples for a normalization's statistics |
    | selu_without_lecun | SELU with another variance scaling of Keras |
    | selu_with_dropout | Dropout instead of AlphaDropout after SELU |
    | dropout_before_batch_norm | another variance in training than at inference |
    | sigmoid_in_deep_net | 4 and more in a row without normalization |
    | initializer_mismatch | 10 Glorot with ReLU, 5 He with tanh or sigmoid, in a row |
    | same_initial_values | two kernels that start with the same numbers |
    | equal_units | a kernel whose units start with the same weights |
    | activation_and_loss | softmax with from_logits=True, or logits without it |
    | softmax_of_one | which is always 1 |
    | clipped_by_replica | Keras' clipping arguments on several replicas |

    What follows which is read from the graph of a Functional or Sequential model; of
    a subclassed one, only inside of such parts. tanh in deep nets is not objected to:
    with Glorot's scale its gradient neither vanishes nor explodes.

    Args:
        model: A built model.
        batch_size: Number of examples a step, of all replicas together. None leaves
            the rule `small_batch` out.

    Returns:
        A `tfdeep.surgery.SetupReport`, which prints as a table.

    Raises:
        ModelError: If the model has no weights yet.
        InvalidArgumentError: If `batch_size` is not a whole number > 0.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(3, name="hidden"),
    ...     keras.layers.BatchNormalization(),
    ... ])
    >>> [(f.rule, f.layers) for f in tfdeep.surgery.check_setup(model).findings]
    [('bias_before_batch_norm', ('hidden',))]
    """
    if batch_size is not None:
        batch_size = whole_number(
            batch_size,
            "batch_size",
            "check_setup",
            above=0,
            unit="examples of all replicas, or None",
            example=32,
        )
    _variables.model_variables(model)  # which says so if there are none yet
    setup = setup_of(model, batch_size)
    applied = [r for r in RULES if r.name != "small_batch" or batch_size is not None]
    return SetupReport(
        model=model.name,
        rules=tuple(rule.name for rule in applied),
        findings=tuple(
            SetupFinding(
                rule.name,
                tuple(dict.fromkeys(layers)),
                problem,
                rule.remedy,
                rule.source,
            )
            for rule in applied
            for layers, problem in rule.check(setup)
        ),
    )
