"""What holds for the package as a whole."""

import ast
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
SOURCES = sorted(PACKAGE.rglob("*.py"))
PUBLIC_MODULES = [tfdeep] + [
    importlib.import_module(f"tfdeep.{m.name}")
    for m in pkgutil.iter_modules(tfdeep.__path__)
    if not m.name.startswith("_") and m.name != "cli"
]


def public_objects():
    for module in PUBLIC_MODULES:
        for name in module.__all__:
            item = getattr(module, name)
            if not inspect.ismodule(item):
                yield pytest.param(module, name, item, id=f"{module.__name__}.{name}")


each_public_object = pytest.mark.parametrize(
    ("module", "name", "item"), list(public_objects())
)


@pytest.mark.parametrize("module", PUBLIC_MODULES, ids=lambda m: m.__name__)
def test_every_exported_name_exists_and_is_sorted(module):
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name)


def test_each_object_has_one_public_path():
    paths = {}
    for parameters in public_objects():
        module, name, item = parameters.values
        paths.setdefault(id(item), []).append(f"{module.__name__}.{name}")
    assert [path for path in paths.values() if len(path) > 1] == []


@each_public_object
def test_public_objects_are_documented(module, name, item):
    doc = inspect.getdoc(item)
    assert doc
    assert len(doc.splitlines()[0]) <= 88
    if inspect.isfunction(item):
        assert ">>> " in doc, "a function's docstring has an example that is run"
    parameters = inspect.signature(item).parameters if inspect.isfunction(item) else {}
    for parameter in parameters:
        assert f"\n    {parameter}: " in doc


# Initializers that stand in for Keras' own: the same names, by the activation.
IN_PLACE_OF_KERAS = {"HeNormal", "HeUniform", "Orthogonal", "VarianceScaling"}


@each_public_object
def test_no_name_is_one_that_keras_has(module, name, item):
    if module is tfdeep.initializers and name in IN_PLACE_OF_KERAS:
        return
    part = module.__name__.removeprefix("tfdeep").lstrip(".")
    theirs = getattr(keras, part, None) if part else keras
    assert not hasattr(theirs, name) if theirs is not None else True


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_user_files_are_data(path):
    """Nothing that runs what a file contains is ever called."""
    banned = {
        "load_model", "clone_model", "load", "loads", "eval", "exec", "extractall",
        "deserialize_keras_object",
    }  # fmt: skip
    allowed = {
        ("optimizers/_wrapper.py", "deserialize_keras_object"),  # Keras' own contract
        ("_demo/_data.py", "load"),  # np.load of the package's own digits
        ("cli.py", "load_model"),  # a model of the user's own, by its name
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if getattr(getattr(node.func, "value", None), "id", "") == "json":
                continue  # which makes nothing but numbers, text, lists and dicts
            where = (path.relative_to(PACKAGE).as_posix(), name)
            assert name not in banned or where in allowed, (
                f"{where}, line {node.lineno}"
            )
            for keyword in node.keywords:
                is_off = getattr(keyword.value, "value", None) is False
                assert keyword.arg != "allow_pickle" or is_off


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_modules_of_others_are_not_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert not name.startswith(
                ("keras.src", "tensorflow.python", "tensorflow.keras")
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_attributes_of_keras_are_read_in_one_module(path):
    if path.name == "_internals.py":
        return
    own = {
        "self",
        "cls",
        "current",
        "own",
        "os",
        "_gradients",
        "_internals",
        "_paths",
        "_graph",
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            if node.attr.startswith("__"):
                continue
            value = node.value
            root = getattr(value, "id", None) or getattr(value, "attr", None)
            assert root in own, f"{path.name}:{node.lineno}: {root}.{node.attr}"


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
