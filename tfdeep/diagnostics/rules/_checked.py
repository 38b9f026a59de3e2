"""The `rules` that somebody was given."""

from __future__ import annotations

from typing import Any

from tfdeep._core._explain import explain
from tfdeep.diagnostics.rules._rule import Rule
from tfdeep.errors import InvalidArgumentError


def checked(rules: Any, owner: str) -> tuple[Rule, ...]:
    """A list of rules, or an error in the name of who was to ask them."""
    is_list = isinstance(rules, (list, tuple))
    if not is_list or not all(isinstance(rule, Rule) and rule.kind for rule in rules):
        raise InvalidArgumentError(
            explain(
                f"`{owner}` cannot ask these rules.",
                received=f"rules={rules!r}",
                expected='"default", None, or a list of rules, each with a `kind`',
                fix="call the class and make a list: "
                "`rules=[tfdeep.diagnostics.rules.DeadUnits()]`; nothing was changed",
            )
        )
    return tuple(rules)
