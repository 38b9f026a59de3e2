"""What holds for the package as a whole."""

import importlib
import inspect
import os
import pathlib
import pkgutil
import subprocess
import sys

import keras
import pytest

import tfdeep

PACKAGE = pathlib.Path(tfdeep.__file__).parent


def public_modules(package):
    """A package and its public parts, and theirs."""
    yield package
    for part in pkgutil.iter_modules(getattr(package, "__path__", ())):
        name = f"{package.__name__}.{part.name}"
        if not part.name.startswith("_") and name != "tfdeep.cli":
            yield from public_modules(importlib.import_module(name))


PUBLIC_MODULES = list(public_modules(tfdeep))
each_public_module = pytest.mark.parametrize(
    "module", PUBLIC_MODULES, ids=lambda m: m.__name__
)


def public_objects(module):
    items = [(name, getattr(module, name)) for name in module.__all__]
    return [(name, item) for name, item in items if not inspect.ismodule(item)]


def test_the_parts_of_parts_are_looked_at():
    assert tfdeep.diagnostics.rules in PUBLIC_MODULES


@each_public_module
def test_every_exported_name_exists_and_is_sorted(module):
    constants_first = sorted(module.__all__, key=lambda n: (not n.isupper(), n))
    assert module.__all__ == constants_first
    for name in module.__all__:
        assert hasattr(module, name)


def test_each_object_has_one_public_path():
    paths = {}
    for module in PUBLIC_MODULES:
        for name, item in public_objects(module):
            paths.setdefault(id(item), []).append(f"{module.__name__}.{name}")
    assert [path for path in paths.values() if len(path) > 1] == []


def undocumented(item):
    """What the docstring of a public object lacks."""
    doc = inspect.getdoc(item) or ""
    if not doc or len(doc.splitlines()[0]) > 88:
        yield "a first line of at most 88 characters"
    if inspect.isfunction(item):
        if ">>> " not in doc:
            yield "an example that is run"
        for parameter in inspect.signature(item).parameters:
            if f"\n    {parameter}: " not in doc:
                yield f"the argument {parameter}"


@each_public_module
def test_public_objects_are_documented(module):
    lacks = {name: list(undocumented(item)) for name, item in public_objects(module)}
    assert {name: what for name, what in lacks.items() if what} == {}


# Initializers that stand in for Keras' own: the same names, by the activation.
IN_PLACE_OF_KERAS = {"HeNormal", "HeUniform", "Orthogonal", "VarianceScaling"}


def names_of_keras():
    """All names that Keras publishes, of whatever part."""
    parts = [keras] + [
        getattr(keras, name)
        for name in dir(keras)
        if inspect.ismodule(getattr(keras, name)) and not name.startswith("_")
    ]
    return {name for part in parts for name in dir(part) if not name.startswith("_")}


def test_no_name_is_one_that_keras_has():
    theirs = names_of_keras()
    assert {"Dense", "Adam", "clone_model", "HeNormal", "MaxNorm"} <= theirs
    ours = {name for module in PUBLIC_MODULES for name, _ in public_objects(module)}
    assert ours & theirs == IN_PLACE_OF_KERAS


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_another_backend_is_refused_at_import():
    """A backend that is not even installed: Keras itself must be told apart from it."""
    code = "import keras, types; keras.backend.backend = lambda: 'jax'\nimport tfdeep"
    result = run_python(code)
    assert "tfdeep works with Keras on TensorFlow" in result.stderr
    assert "KERAS_BACKEND=tensorflow" in result.stderr


def test_importing_needs_no_optional_package():
    code = (
        "import sys\n"
        "import keras\n"
        "before = set(sys.modules)\n"
        "import tfdeep\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new & {'tensorboard', 'matplotlib', 'torch', 'pickle5', 'rich'}))"
    )
    assert run_python(code).stdout.strip() == "[]"


def test_the_changelog_names_this_version():
    changelog = (PACKAGE.parent / "CHANGELOG.md").read_text()
    assert f"## {tfdeep.__version__}" in changelog
