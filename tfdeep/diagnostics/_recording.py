"""The numbers of a run, step by step, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfdeep import _quantities
from tfdeep._core._explain import explain
from tfdeep._keras._architecture import LayerInfo
from tfdeep._keras._program import Program
from tfdeep._quantities import EACH_STEP, Of, When
from tfdeep.errors import InvalidArgumentError

_MEMORY = 4_000_000  # bytes for each of the two tables


class Recording:
    """What was recorded in a run: every step at first, fewer and fewer later.

    Quantities are arrays of shape (steps, columns). A column is a variable, a layer,
    or (of the loss and the first layer's input) the whole net.

    Args:
        variables: Paths of the variables.
        layers: The layers, from the input to the output.
        memory: Most bytes that either of the two tables may take.
        stands_for: How many steps each recorded step stands for: what a single probe
            shows is taken to last.
        program: How the model is trained, where that is known.

    Attributes:
        epochs: The number of steps at the end of each epoch, and its logs.
        total_steps: How many steps were recorded, kept or not.
        memo: Results that the rules share; emptied when steps are added.
    """

    def __init__(
        self,
        variables: Sequence[str],
        layers: Sequence[LayerInfo] = (),
        memory: int = _MEMORY,
        stands_for: int = 1,
        program: Program | None = None,
    ) -> None:
        self.variables = tuple(variables)
        self.layers = tuple(layers)
        self.stands_for = stands_for
        self.program = program or Program()
        self.epochs: list[tuple[int, dict[str, float]]] = []
        self.total_steps = 0
        self.memo: dict[Any, Any] = {}
        self._index()
        self._each = _Table(memory)
        self._due = _Table(memory)

    def _index(self) -> None:
        self._columns = {path: i for i, path in enumerate(self.variables)}
        self._columns_of = {
            layer.path: [
                i
                for i, path in enumerate(self.variables)
                if path.startswith(f"{layer.path}/")
            ]
            for layer in self.layers
        }

    def widen(self, variables: Sequence[str]) -> None:
        """Adds columns for variables that were not recorded so far.

        Args:
            variables: Paths of all the variables, the present ones among them.
        """
        places = [list(variables).index(path) for path in self.variables]
        self.variables = tuple(variables)
        self._index()
        for table in (self._each, self._due):
            for name in table.names:
                quantity = _quantities.BY_NAME.get(name)
                if quantity is not None and quantity.of is Of.VARIABLE:
                    table.widen(name, places, len(variables))
        self.memo.clear()

    def extend(
        self, rows: Mapping[str, np.ndarray], first_step: int | None = None
    ) -> None:
        """Adds the next steps.

        Args:
            rows: By quantity, an array of shape (steps, columns); NaN where a step
                was not measured. A quantity that is left out was not measured at
                any of them.
            first_step: The number of the first of them, if some before it are not
                known. Defaults to the next one.

        Raises:
            InvalidArgumentError: If there is no quantity with a column.
        """
        rows = {name: values for name, values in rows.items() if values.shape[1]}
        if not rows:
            raise InvalidArgumentError(
                explain(
                    "There is nothing to extend the recording by.",
                    received="rows without a quantity that has columns",
                    expected="by quantity, an array of shape (steps, columns)",
                    fix='give at least one, e.g. `{"loss": losses[:, np.newaxis]}`',
                )
            )
        count = len(next(iter(rows.values())))
        first = self.total_steps if first_step is None else first_step
        steps = np.arange(first, first + count)
        self._each.extend(steps, {k: v for k, v in rows.items() if k in EACH_STEP})
        due = {k: v for k, v in rows.items() if k not in EACH_STEP}
        measured = np.zeros(count, bool)
        for name, values in due.items():
            if _quantities.is_measured(name):
                measured |= ~np.isnan(values).all(axis=1)
        self._due.extend(steps[measured], {k: v[measured] for k, v in due.items()})
        self.total_steps = first + count
        self.memo.clear()

    @property
    def lasted(self) -> int:
        """For how many steps the run has lasted, or is taken to last."""
        return self.total_steps * self.stands_for

    @property
    def steps(self) -> np.ndarray:
        """The numbers of the kept steps."""
        return self._each.steps

    @property
    def measured_steps(self) -> np.ndarray:
        """Those of the kept steps that were measured in detail."""
        return self._due.steps

    @property
    def quantities(self) -> tuple[str, ...]:
        """The names of what was recorded."""
        return (*self._each.names, *self._due.names)

    def __contains__(self, quantity: object) -> bool:
        return quantity in self.quantities

    def __getitem__(self, quantity: str) -> np.ndarray:
        """A quantity at `steps`, or at `measured_steps`: (steps, columns)."""
        table = self._each if quantity in EACH_STEP else self._due
        return table[quantity]

    def width(self, name: str) -> int | None:
        """How many columns a quantity has; None if it is not in the table."""
        quantity = _quantities.BY_NAME.get(name)
        if quantity is None or quantity.when is When.DERIVED:
            return None
        columns = {
            Of.NET: 1,
            Of.VARIABLE: len(self.variables),
            Of.LAYER: len(self.layers),
            Of.OUTPUT: len(self.program.outputs),
        }
        return columns[quantity.of]

    def at_steps(self, quantity: str) -> np.ndarray:
        """A quantity at `steps`, NaN where it was not measured."""
        values = self[quantity]
        if quantity in EACH_STEP:
            return values
        spread = np.full((len(self.steps), values.shape[1]), np.nan, np.float32)
        _, here, there = np.intersect1d(
            self.steps, self.measured_steps, return_indices=True
        )
        spread[here] = values[there]
        return spread

    def column(self, variable: str | None) -> int | None:
        """The column of a variable; None if it was not recorded."""
        return None if variable is None else self._columns.get(variable)

    def columns_of(self, layer: LayerInfo) -> list[int]:
        """The columns of all recorded weights of a layer."""
        return self._columns_of[layer.path]


class _Table:
    """Rows of several quantities by step; thins itself out when it is full."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._count = 0
        self._stride = 1
        self._steps = np.empty(0, np.int64)
        self._columns: dict[str, np.ndarray] = {}

    @property
    def steps(self) -> np.ndarray:
        return self._steps[: self._count]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._columns)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name][: self._count]

    def extend(self, steps: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        for name, values in rows.items():
            if name not in self._columns:  # not measured so far
                shape = len(self._steps), values.shape[1]
                self._columns[name] = np.full(shape, np.nan, np.float32)
        width = 8 + 4 * sum(v.shape[1] for v in self._columns.values())
        most = max(self._memory // width, 512)
        for start in range(0, len(steps), most // 4):
            part = slice(start, start + most // 4)
            count = len(steps[part])
            if self._count + count > most:
                self._thin(most)
            self._reserve(min(max(2 * self._count, self._count + count, 256), most))
            into = slice(self._count, self._count + count)
            self._steps[into] = steps[part]
            for name, column in self._columns.items():
                column[into] = rows[name][part] if name in rows else np.nan
            self._count += count

    def widen(self, name: str, places: Sequence[int], width: int) -> None:
        """Moves the columns of a quantity to these places among more of them."""
        narrow = self._columns[name]
        self._columns[name] = np.full((len(narrow), width), np.nan, np.float32)
        self._columns[name][:, places] = narrow

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._steps):
            return
        self._steps = _grown(self._steps, rows)
        self._columns = {n: _grown(v, rows) for n, v in self._columns.items()}

    def _thin(self, most: int) -> None:
        """Keeps the first eighth, the last quarter, and ever fewer in between."""
        steps = self.steps
        place = np.arange(self._count)
        ends = (place < most // 8) | (place >= self._count - most // 4)
        while True:
            kept = np.flatnonzero(ends | (steps % self._stride == 0))
            if len(kept) <= most * 3 // 4:
                break
            self._stride *= 2
        self._count = len(kept)
        self._steps[: self._count] = steps[kept]
        for values in self._columns.values():
            values[: self._count] = values[kept]


def _grown(values: np.ndarray, rows: int) -> np.ndarray:
    grown = np.empty((rows, *values.shape[1:]), values.dtype)
    grown[: len(values)] = values
    return grown
