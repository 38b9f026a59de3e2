"""What a program of the benchmark is: one net, faulty and repaired."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

# What a program gives: a compiled model, x, y, and the arguments of `fit`.
Prepared = tuple[keras.Model, Any, Any, dict[str, Any]]

PROGRAMS: list[Program] = []


@dataclasses.dataclass(frozen=True)
class Program:
    """A faulty training program, its repaired form, and what its fault is.

    Attributes:
        name: A short name of its own.
        source: The number of a StackOverflow question, or a word for where the fault
            was described; "own" if nowhere in particular.
        fault: What is wrong, in a line.
        kinds: The findings that name the cause, best first. What only follows from
            the cause is not among them.
        layers: Names of layers; a right finding is at one of these. Empty if the fault
            is in the whole net, its data or its optimizer: then any place is right.
        make: Prepares the program. The faulty and the repaired form differ in its
            arguments only.
        wrong: The arguments of the faulty form.
        right: The arguments of the repaired form.
        hidden: Why the fault shows neither in 300 steps nor in the setup; empty if it
            does. A program with a hidden fault is not counted.
    """

    name: str
    source: str
    fault: str
    kinds: tuple[str, ...]
    layers: tuple[str, ...]
    make: Callable[..., Prepared]
    wrong: Mapping[str, Any]
    right: Mapping[str, Any]
    hidden: str = ""

    @property
    def shows_itself(self) -> bool:
        """Whether the fault can be seen in 300 steps or in the setup."""
        return not self.hidden

    def faulty(self) -> Prepared:
        """The program as it was asked about."""
        return self._prepare(self.wrong)

    def repaired(self) -> Prepared:
        """The program without its fault."""
        return self._prepare(self.right)

    def _prepare(self, arguments: Mapping[str, Any]) -> Prepared:
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        return self.make(**arguments)


def program(
    name: str,
    source: str,
    fault: str,
    kinds: str | tuple[str, ...],
    layers: str | tuple[str, ...] = (),
    *,
    wrong: Mapping[str, Any],
    right: Mapping[str, Any],
    hidden: str = "",
) -> Callable[[Callable[..., Prepared]], Callable[..., Prepared]]:
    """Adds a program that the decorated function prepares.

    A function that prepares several programs is decorated several times.
    """

    def add(make: Callable[..., Prepared]) -> Callable[..., Prepared]:
        PROGRAMS.append(
            Program(
                name,
                source,
                fault,
                (kinds,) if isinstance(kinds, str) else kinds,
                (layers,) if isinstance(layers, str) else layers,
                make,
                wrong,
                right,
                hidden,
            )
        )
        return make

    return add
