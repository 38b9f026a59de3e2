"""Faulty training programs of many origins, to judge what tfdeep says of them."""

from benchmarks.programs import depth, inputs, labels, outputs, training
from benchmarks.programs._program import PROGRAMS, Program

__all__ = [
    "PROGRAMS",
    "Program",
    "depth",
    "inputs",
    "labels",
    "outputs",
    "training",
]
