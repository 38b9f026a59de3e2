"""The command `tfdeep`."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tfdeep", description="Train deep Keras networks and reuse their layers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="restore, freeze, cache and fine-tune on real images",
        description="Trains a network on five classes of images, reuses its first "
        "layers for five others, and compares four ways to do so.",
    )
    demo.add_argument(
        "--dataset",
        choices=DATASETS,
        default="digits",
        help="the images; all but digits are downloaded (default: digits)",
    )
    demo.add_argument(
        "--quick", action="store_true", help="fewer epochs and seeds; within a minute"
    )
    demo.add_argument(
        "--seed", type=int, default=42, help="makes a run repeatable (default: 42)"
    )
    demo.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("tfdeep_demo"),
        help="directory for weights, logs and the figure (default: tfdeep_demo)",
    )
    report = commands.add_parser(
        "report",
        help="write a monitored run as a page of HTML",
        description="Writes what a GradientMonitor(log_dir) recorded as one page: "
        "what is wrong with which layer, figures, a table of the weights.",
    )
    report.add_argument(
        "log_dir", metavar="LOGDIR", type=pathlib.Path, help="the monitor's log_dir"
    )
    report.add_argument(
        "--output",
        metavar="FILE",
        type=pathlib.Path,
        help="the page (default: LOGDIR/report.html)",
    )
    options = parser.parse_args(arguments)
    return _report(options) if options.command == "report" else _demo(options)


def _demo(options: argparse.Namespace) -> int:
    # TensorFlow's start-up messages would bury the tables.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tfdeep._demo._run import run_demo
    from tfdeep.errors import TfdeepError

    try:
        run_demo(
            dataset=options.dataset,
            seed=options.seed,
            num_seeds=2 if options.quick else 5,
            epochs=8 if options.quick else 20,
            output=options.output,
            say=lambda thing: print(thing, flush=True),
        )
    except TfdeepError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _report(options: argparse.Namespace) -> int:
    from tfdeep.diagnostics._html_report import write_html_report
    from tfdeep.errors import TfdeepError

    try:
        path = write_html_report(options.log_dir, options.output)
    except (TfdeepError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0
