"""Checks the argument `rules`."""

from __future__ import annotations

from typing import Any

from tfdeep._core._explain import explain
from tfdeep.diagnostics.rules import Rule, default_rules
from tfdeep.errors import InvalidArgumentError


def checked(rules: Any, owner: str) -> tuple[Rule, ...]:
    """The rules, "default" for one of each kind; or an error if they are none."""
    if isinstance(rules, str) and rules == "default":
        return tuple(default_rules())
    is_list = isinstance(rules, (list, tuple))
    if not is_list or not all(isinstance(rule, Rule) and rule.kind for rule in rules):
        raise InvalidArgumentError(
            explain(
                f"`{owner}` cannot apply these rules.",
                received=f"rules={rules!r}",
                expected='"default", None, or a list of rules, each with a `kind`',
                fix="call the class and make a list: "
                "`rules=[tfdeep.diagnostics.rules.DeadUnits()]`; nothing was changed",
            )
        )
    return tuple(rules)
