"""The command `tfdeep`.

Exit codes: 0, done; 1, the answer is no (what was to be restored does not fit, what was
compared differs); 2, it could not be done.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from tfdeep import __version__

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")

DONE, NO, FAILED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tfdeep", description="Train deep Keras networks and reuse their layers."
    )
    parser.add_argument("--version", action="version", version=f"tfdeep {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in _COMMANDS:
        add(commands)
    options = parser.parse_args(arguments)
    # TensorFlow's start-up messages would bury the tables.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tfdeep.errors import MismatchError, TfdeepError

    try:
        return int(options.run(options))
    except (TfdeepError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return NO if isinstance(error, MismatchError) else FAILED


# tfdeep demo


def _add_demo(commands: Any) -> None:
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
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from tfdeep._demo._run import run_demo

    run_demo(
        dataset=options.dataset,
        seed=options.seed,
        num_seeds=2 if options.quick else 5,
        epochs=8 if options.quick else 20,
        output=options.output,
        say=lambda thing: print(thing, flush=True),
    )
    return DONE


# tfdeep inspect


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="list what a file of weights holds",
        description="Lists the tensors of a file of weights of any format. No values "
        "are read and no code in the file is run.",
    )
    _add_file(inspect)
    _add_patterns(inspect, "the file's names")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from tfdeep.checkpoints._inspect import inspect

    report = inspect(
        options.file, options.include, options.exclude, options.allow_remote
    )
    print(report.to_json() if options.json else report)
    return DONE


# tfdeep restore, tfdeep compare


def _add_restore(commands: Any) -> None:
    restore = commands.add_parser(
        "restore",
        help="fill a model's variables from a file of weights",
        description="Fills chosen variables of MODEL from FILE and writes the result. "
        "MODEL is loaded by Keras and so must be your own.",
    )
    _add_model(restore)
    _add_file(restore)
    _add_patterns(restore, "the model's paths")
    _add_matching(restore)
    restore.add_argument(
        "--output",
        metavar="FILE",
        help="where to write: a `.keras` file, or a `.weights.h5`",
    )
    restore.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave alone what FILE lacks, and report it",
    )
    restore.add_argument(
        "--skip-mismatch",
        action="store_true",
        help="leave alone what does not fit, and report it",
    )
    restore.add_argument(
        "--plan", metavar="FILE", help="a plan that `--dry-run --json` printed"
    )
    restore.add_argument(
        "--dry-run", action="store_true", help="say what would go where; write nothing"
    )
    restore.add_argument("--json", action="store_true", help="print JSON")
    restore.set_defaults(run=_restore)


def _restore(options: argparse.Namespace) -> int:
    import tfdeep

    if not options.dry_run and options.output is None:
        raise _wrong(
            "neither --output nor --dry-run", "one of them", "--output a.keras"
        )
    if options.output and not options.output.endswith((".keras", ".weights.h5")):
        fix = "--output restored.keras"
        raise _wrong(f"--output {options.output}", "a .keras or .weights.h5 file", fix)
    model = _model(options.model)
    plan = options.plan and pathlib.Path(options.plan).read_text(encoding="utf-8")
    report = tfdeep.restore(
        model,
        options.file,
        on_missing="skip" if options.skip_missing else "error",
        on_mismatch="skip" if options.skip_mismatch else "error",
        plan=plan,
        dry_run=options.dry_run,
        **_matching(options),
    )
    print(report.to_json() if options.json else report)
    if options.dry_run:
        return NO if report.failure else DONE
    if options.output.endswith(".weights.h5"):
        model.save_weights(options.output)
    else:
        model.save(options.output)
    return DONE


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="say which variables of a model equal those in a file",
        description="Compares the variables of MODEL with FILE to the last bit. The "
        "exit code is 0 if all are equal. MODEL is loaded by Keras and so must be your "
        "own.",
    )
    _add_model(compare)
    _add_file(compare)
    _add_patterns(compare, "the model's paths")
    _add_matching(compare)
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    import tfdeep

    model = _model(options.model)
    report = tfdeep.checkpoints.compare(model, options.file, **_matching(options))
    print(report.to_json() if options.json else report)
    return DONE if report.is_equal else NO


def _wrong(received: str, expected: str, fix: str) -> Exception:
    from tfdeep._core._explain import explain
    from tfdeep.errors import InvalidArgumentError

    return InvalidArgumentError(
        explain(
            "`tfdeep` cannot do this.",
            received=received,
            expected=expected,
            fix=f"{fix}; nothing was changed",
        )
    )


def _model(path: str) -> Any:
    import keras

    if not path.endswith(".keras"):  # Keras 3.8 takes code from a .h5
        fix = "save the model with `model.save('model.keras')`"
        raise _wrong(f"MODEL {path}", "a .keras file", fix)
    try:
        return keras.saving.load_model(path)
    except ValueError as error:
        raise OSError(f"Keras cannot load {path!r}: {error}") from error


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.keras", help="a model of your own")


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="a file, prefix or directory of weights"
    )
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="FILE may be a URL, such as gs://bucket/file; it is copied",
    )


def _add_patterns(parser: argparse.ArgumentParser, what: str) -> None:
    for name, verb in (("--include", "to take"), ("--exclude", "to leave out")):
        parser.add_argument(
            name,
            metavar="REGEX",
            action="append",
            help=f"{verb}: matches whole components of {what}; may be repeated",
        )


def _add_matching(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        action="append",
        help="OLD is a regular expression over names in FILE; may be repeated",
    )
    parser.add_argument("--layout", choices=["torch"], help="FILE is PyTorch's")
    parser.add_argument("--cast", action="store_true", help="convert dtypes")


def _matching(options: argparse.Namespace) -> dict[str, Any]:
    for rule in options.rename or ():
        if "=" not in rule:
            raise _wrong(f"--rename {rule}", "OLD=NEW", "--rename encoder= deletes it")
    rename = dict(rule.partition("=")[::2] for rule in options.rename or ())
    return {
        "include": options.include,
        "exclude": options.exclude,
        "rename": rename or None,
        "layout": options.layout,
        "cast": options.cast,
        "allow_remote": options.allow_remote,
    }


# tfdeep cache


def _add_cache(commands: Any) -> None:
    cache = commands.add_parser(
        "cache",
        help="list, verify or remove what cache_frozen has stored",
        description="Looks after a cache_dir of `tfdeep.cache_frozen`. KEY may be the "
        "first characters of a key.",
    )
    actions = cache.add_subparsers(dest="action", required=True)
    for name, keys, about in (
        ("ls", None, "list the entries"),
        (
            "verify",
            "the entries (default: all)",
            "read every byte and compare checksums; exit code 1 if damaged",
        ),
        ("rm", "the entries; without one, --all is needed", "remove entries"),
    ):
        action = actions.add_parser(name, help=about, description=about.capitalize())
        action.add_argument("cache_dir", metavar="DIR", help="the cache_dir")
        if keys:
            action.add_argument("keys", metavar="KEY", nargs="*", help=keys)
        if name == "rm":
            action.add_argument("--all", action="store_true", help="remove all entries")
        action.add_argument("--json", action="store_true", help="print JSON")
    cache.set_defaults(run=_cache)


def _cache(options: argparse.Namespace) -> int:
    from tfdeep import transfer

    if options.action == "ls":
        found = transfer.list_cache(options.cache_dir)
    elif options.action == "verify":
        found = transfer.verify_cache(options.cache_dir, options.keys)
    else:
        if bool(options.keys) == options.all:
            raise _wrong(
                "KEY and --all" if options.all else "neither KEY nor --all",
                "one of them",
                "tfdeep cache rm DIR KEY",
            )
        found = transfer.remove_cache(options.cache_dir, options.keys)
    if options.json:
        print(found.to_json())
    else:
        print(f"Removed from {found}" if options.action == "rm" else found)
    return NO if found.problems else DONE


# tfdeep report


def _add_report(commands: Any) -> None:
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
    report.add_argument(
        "--run",
        metavar="N",
        type=int,
        dest="number",
        help="which of the fits into LOGDIR, 1 for the first (default: the last)",
    )
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from tfdeep.diagnostics._html_report import write_html_report

    print(write_html_report(options.log_dir, options.output, options.number))
    return DONE


_COMMANDS = (
    _add_demo,
    _add_inspect,
    _add_restore,
    _add_compare,
    _add_report,
    _add_cache,
)
