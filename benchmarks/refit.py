"""What a second fit costs: time of `fit` with `GradientMonitor` over time without.

    python benchmarks/refit.py
    python benchmarks/refit.py --net mobilenet --rounds 5

Two models of one kind are fitted by turns, ten times each, one as it is and one with
one and the same monitor; the first of the two changes from turn to turn. For each net
stand the time to the end of the first step of the first fit, in which TensorFlow traces
it; the second fit; the tenth; the median of all from the second on; and by how much the
resident size of the process grew in a fit from the third on, on average, monitored and
plain. Each ratio is the median over the rounds, each of which makes its models anew.

Below, the same of what else used to trace the step again, with the number of traces:
`unfreeze` after a fit with a frozen layer, flags that are toggled from fit to fit, a
plain fit after a monitored one, and a new monitor for each fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import tfdeep

FITS = 10
OUTPUTS = 10


def dense(depth):
    return tfdeep.models.dnn((64,), [100] * depth, OUTPUTS, activation="relu")


def application(name):
    make = getattr(keras.applications, name)
    return make(
        input_shape=(64, 64, 3),
        weights=None,
        classes=OUTPUTS,
        classifier_activation=None,
    )


@dataclasses.dataclass(frozen=True)
class Net:
    """A network, how many steps a fit has, and what is frozen in it."""

    name: str
    build: Callable[[], keras.Model]
    shape: tuple[int, ...]
    steps: int
    rounds: int
    frozen: str


NETS = (
    Net("5x100", lambda: dense(5), (64,), 50, 5, "hidden1"),
    Net("20x100", lambda: dense(20), (64,), 50, 5, "hidden1"),
    Net("mobilenet", lambda: application("MobileNetV2"), (64, 64, 3), 2, 2, "Conv1"),
    Net(
        "efficientnet",
        lambda: application("EfficientNetB0"),
        (64, 64, 3),
        2,
        2,
        "stem_conv",
    ),
)


class FirstStep(keras.callbacks.Callback):
    """Takes the time at the end of the first step."""

    def on_train_begin(self, logs=None):
        self.ended = None

    def on_train_batch_end(self, batch, logs=None):
        if self.ended is None:
            self.ended = time.perf_counter()


class Subject:
    """A model that is fitted again and again, and counts the traces of its step."""

    def __init__(self, net: Net) -> None:
        keras.utils.set_random_seed(0)
        self.traces = 0
        self.model = net.build()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        def counted(y, predicted):  # called while the step is traced
            self.traces += 1
            return loss(y, predicted)

        self.model.compile(keras.optimizers.SGD(1e-3), counted)
        rng = np.random.default_rng(0)
        count = net.steps * 32
        self.x = rng.normal(size=(count, *net.shape)).astype("float32")
        self.y = rng.integers(0, OUTPUTS, count)
        self.monitor = monitor()

    def fit(self, *callbacks) -> tuple[float, float]:
        """Seconds of a fit, and those to the end of its first step."""
        gc.collect()
        first = FirstStep()
        began = time.perf_counter()
        self.model.fit(
            self.x, self.y, batch_size=32, verbose=0, callbacks=[first, *callbacks]
        )
        return time.perf_counter() - began, first.ended - began


def monitor():
    return tfdeep.callbacks.GradientMonitor(on_finding=None)


def resident() -> float:
    """The resident size of this process, in MB."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def refits(net: Net, rounds: int) -> None:
    """Prints the ratios of fits with one monitor to plain fits."""
    first, second, tenth, later = [], [], [], []
    growth: dict[str, list[float]] = {"plain": [], "monitored": []}
    for number in range(rounds):
        plain, watched = Subject(net), Subject(net)
        times: dict[str, list[float]] = {"plain": [], "monitored": []}
        starts = {}
        for turn in range(FITS):
            ways = ["plain", "monitored"]
            for way in ways if (turn + number) % 2 else reversed(ways):
                before = resident()
                if way == "plain":
                    seconds, start = plain.fit()
                else:
                    seconds, start = watched.fit(watched.monitor)
                times[way].append(seconds)
                starts.setdefault(way, start)
                gc.collect()
                if turn > 1:
                    growth[way].append(resident() - before)
        ratios = np.divide(times["monitored"], times["plain"])
        first.append(starts["monitored"] / starts["plain"])
        second.append(ratios[1])
        tenth.append(ratios[-1])
        later.append(statistics.median(ratios[1:]))
        plain_seconds = statistics.median(times["plain"][1:])
        del plain, watched
        keras.utils.clear_session()
    columns = [statistics.median(x) for x in (first, second, tenth, later)]
    print(
        f"{net.name:<13} {plain_seconds:>9.3f} s"
        + "".join(f"{x:>12.3f}" for x in columns)
        + f"{np.mean(growth['monitored']):>12.2f}, {np.mean(growth['plain']):.2f}",
        flush=True,
    )


def changes(net: Net) -> None:
    """Prints traces and ratios of what changes between two fits."""

    def row(what: str, traces: int, ratios: Sequence[float]) -> None:
        print(
            f"{net.name:<13} {what:<46} {traces:>7} {statistics.median(ratios):>10.3f}",
            flush=True,
        )

    plain, subject = Subject(net), Subject(net)
    plain.fit()
    subject.fit()

    def paired(fits: int, before: Callable[[int], None], *callbacks) -> list[float]:
        ratios = []
        for number in range(fits):
            before(number)
            ratios.append(subject.fit(*callbacks)[0] / plain.fit()[0])
        return ratios

    def toggle(number: int) -> None:
        change = tfdeep.unfreeze if number % 2 else tfdeep.freeze
        change(subject.model, net.frozen)

    tfdeep.freeze(subject.model, net.frozen)
    subject.fit()
    before = subject.traces
    tfdeep.unfreeze(subject.model)
    ratios = paired(5, lambda _: None)
    row("unfreeze of what was trained before", subject.traces - before, ratios)
    paired(2, toggle)
    before = subject.traces
    ratios = paired(6, toggle)
    row("flags toggled before each fit", subject.traces - before, ratios)
    paired(2, toggle, subject.monitor)
    before = subject.traces
    ratios = paired(6, toggle, subject.monitor)
    row("the same, monitored", subject.traces - before, ratios)
    tfdeep.unfreeze(subject.model)
    before = subject.traces
    ratios = paired(5, lambda _: None)
    row("plain after a monitored fit", subject.traces - before, ratios)
    before = subject.traces
    ratios = [subject.fit(monitor())[0] / plain.fit()[0] for _ in range(6)]
    row("a new monitor for each fit", subject.traces - before, ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", action="append", choices=[net.name for net in NETS])
    parser.add_argument("--rounds", type=int, help="models of each net")
    arguments = parser.parse_args()
    nets = [net for net in NETS if arguments.net is None or net.name in arguments.net]
    Subject(NETS[0]).fit(monitor())  # what is done once a process
    print("net           plain refit  first step  second fit   tenth fit    2nd-10th")
    print(
        f"{'':<25}"
        + "  (limit 1.25)"
        + "  (1.10)      (1.10)      (1.10)  MB a fit (1)"
    )
    for net in nets:
        refits(net, arguments.rounds or net.rounds)
    print()
    print(f"{'net':<13} {'change':<46} {'traces':>7} {'over plain':>10}")
    for net in nets:
        changes(net)


if __name__ == "__main__":
    main()
