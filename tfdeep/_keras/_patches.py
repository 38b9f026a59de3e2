"""Changes to objects that belong to the user: one kind, listed, and taken back.

A patch replaces one attribute of one object. It goes past `__setattr__`, which in Keras
tracks what is assigned, and remembers what stood there before.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_RECORD = "_tfdeep_patches"
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Patch:
    """An attribute that tfdeep has replaced on one object.

    Attributes:
        owner: The object.
        name: The name of the attribute.
        reason: Why it was replaced.
    """

    owner: Any
    name: str
    reason: str

    def __str__(self) -> str:
        kind = type(self.owner).__name__
        return f"{kind} {getattr(self.owner, 'name', '')!r}.{self.name}: {self.reason}"


class _Record(dict[str, tuple[str, Any]]):
    """By attribute: why it was replaced, and what stood there before."""


def install(owner: Any, name: str, value: Any, reason: str) -> None:
    """Replaces an attribute of one object until `remove` is called."""
    attributes = vars(owner)
    record = attributes.setdefault(_RECORD, _Record())
    if name not in record:
        record[name] = (reason, attributes.get(name, _MISSING))
    attributes[name] = value


def remove(owner: Any, name: str) -> None:
    """Puts back what stood there before; does nothing if nothing was replaced."""
    attributes = vars(owner)
    record = attributes.get(_RECORD, {})
    if name in record:
        _, before = record.pop(name)
        _put_back(attributes, name, before)
        if not record:
            del attributes[_RECORD]


def is_installed(owner: Any, name: str) -> bool:
    """Whether an attribute of this object is replaced now."""
    return name in vars(owner).get(_RECORD, {})


@contextlib.contextmanager
def replaced(
    owner: Any, name: str, around: Callable[[Any], Any], reason: str = ""
) -> Iterator[None]:
    """Replaces an attribute while the context is open.

    Args:
        owner: The object.
        name: The name of the attribute.
        around: Makes the new value of the present one.
        reason: Why, for `listed`.
    """
    attributes = vars(owner)
    before = attributes.get(name, _MISSING)
    is_outermost = not is_installed(owner, name)
    if is_outermost:
        install(owner, name, around(getattr(owner, name)), reason)
    else:
        attributes[name] = around(getattr(owner, name))
    try:
        yield
    finally:
        if is_outermost:
            remove(owner, name)
        else:
            _put_back(attributes, name, before)


def listed(owners: Iterable[Any]) -> list[Patch]:
    """What is replaced now on these objects."""
    return [
        Patch(owner, name, reason)
        for owner in owners
        for name, (reason, _) in vars(owner).get(_RECORD, {}).items()
    ]


def _put_back(attributes: dict[str, Any], name: str, before: Any) -> None:
    if before is _MISSING:
        attributes.pop(name, None)
    else:
        attributes[name] = before
