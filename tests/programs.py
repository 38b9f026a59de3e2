"""The programs in `examples/`, as modules, for the tests that run them."""

import importlib.util
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
