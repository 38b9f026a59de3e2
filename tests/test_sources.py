"""What no file of the package may do, looked for in its syntax tree."""

import ast
import pathlib

import keras
import pytest

import tfdeep

PACKAGE = pathlib.Path(tfdeep.__file__).parent

# Calls that could run what a file contains.
RUNS_FILES = {
    "load_model", "clone_model", "load", "loads", "eval", "exec", "extractall",
    "deserialize_keras_object",
}  # fmt: skip
PRIVATE_MODULES = ("keras.src", "tensorflow.python", "tensorflow.keras")
KERAS_CLASSES = (
    keras.Model,
    keras.layers.Layer,
    keras.optimizers.Optimizer,
    keras.Variable,
    keras.callbacks.Callback,
)
# What Keras calls on an object: to assign another is to patch it.
METHODS = {
    name
    for kind in KERAS_CLASSES
    for name in dir(kind)
    if callable(getattr(kind, name))
} | {"train_function", "test_function", "predict_function"}
SETTERS = {"setattr", "delattr", "object.__setattr__", "object.__delattr__"}
DICT_CHANGES = {"clear", "pop", "popitem", "setdefault", "update"}

ALLOWED = {
    "optimizers/_wrapper.py: runs files: deserialize_keras_object",  # Keras' contract
    "_demo/_data.py: runs files: load",  # np.load of the package's own digits
    "cli.py: runs files: load_model",  # a model of the user's own, by its name
    "checkpoints/_readers/_hdf5_child.py: private attribute: os._exit",
    # What the user sets on a wrapper is for the optimizer inside.
    "optimizers/_wrapper.py: patch: setattr(self.inner_optimizer, name, value)",
    # A constraint or regularizer, by the public name of the layer's setting.
    "surgery/_kernels.py: patch: setattr(kernel.variable, kind, value)",
    "surgery/_kernels.py: patch: setattr(kernel.layer, setting, value)",
    # A copy of an initializer that nobody else has.
    "initializers/_reinitialize.py: patch: vars(fresh)[name]",
}


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


class Offenses(ast.NodeVisitor):
    """The offenses of one file, as `(line, kind, what)`."""

    def __init__(self, source, in_seam=False):
        self.found = []
        self.in_seam = in_seam  # `tfdeep/_keras` may touch what Keras does not publish
        self.own_modules = set()
        self.dicts = set()  # names of the `__dict__` of another object
        self.visit(ast.parse(source))

    def add(self, node, kind, what):
        self.found.append((node.lineno, kind, what))

    def touches(self, node, kind, what):
        if not self.in_seam:
            self.add(node, kind, what)

    def is_dict_of_another(self, node):
        if isinstance(node, ast.Name):
            return node.id in self.dicts
        if isinstance(node, ast.Attribute):
            return node.attr == "__dict__" and not is_self(node.value)
        is_vars = isinstance(node, ast.Call) and ast.unparse(node.func) == "vars"
        return is_vars and bool(node.args) and not is_self(node.args[0])

    def imports(self, node, module, names):
        if module.startswith(PRIVATE_MODULES):
            self.add(node, "private module", module)
        if module.partition(".")[0] == "tfdeep":
            self.own_modules |= names
        if module == "gc" or "_living" in names:
            self.add(node, "heap", "import gc" if module == "gc" else "_living")

    def visit_Import(self, node):
        for alias in node.names:
            self.imports(node, alias.name, {alias.asname or alias.name})

    def visit_ImportFrom(self, node):
        self.imports(node, node.module or "", {a.asname or a.name for a in node.names})

    def visit_FunctionDef(self, node):
        if node.name == "_living":
            self.add(node, "heap", "_living")
        self.generic_visit(node)

    def visit_Assign(self, node):
        if self.is_dict_of_another(node.value):
            self.dicts |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        self.generic_visit(node)

    def visit_Subscript(self, node):
        is_changed = isinstance(node.ctx, (ast.Store, ast.Del))
        if is_changed and self.is_dict_of_another(node.value):
            self.touches(node, "patch", ast.unparse(node))
        self.generic_visit(node)

    def visit_Attribute(self, node):
        name, owner = node.attr, node.value
        if ast.unparse(owner) == "gc":
            self.add(node, "heap", ast.unparse(node))
        if not is_self(owner):
            if isinstance(node.ctx, (ast.Store, ast.Del)) and name in METHODS:
                self.touches(node, "patch", ast.unparse(node))
            is_private = name.startswith("_") and not name.startswith("__")
            if is_private and ast.unparse(owner) not in self.own_modules:
                self.touches(node, "private attribute", ast.unparse(node))
        self.generic_visit(node)

    def visit_Call(self, node):
        function = ast.unparse(node.func)
        name = function.rpartition(".")[2]
        # What json makes is numbers, text, lists and dicts.
        if name in RUNS_FILES and not function.startswith("json."):
            self.add(node, "runs files", name)
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                self.add(node, "runs files", "allow_pickle")
        if function in SETTERS and not is_self(node.args[0]):
            self.touches(node, "patch", ast.unparse(node))
        owner = getattr(node.func, "value", None)
        if name in DICT_CHANGES and self.is_dict_of_another(owner):
            self.touches(node, "patch", function)
        self.generic_visit(node)


def offenses():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        found = Offenses(path.read_text(), in_seam=name.startswith("_keras/")).found
        for line, kind, what in found:
            yield f"{name}:{line}", f"{name}: {kind}: {what}"


def test_the_package_does_nothing_of_the_kind():
    found = list(offenses())
    assert [f"{where}: {what}" for where, what in found if what not in ALLOWED] == []
    assert ALLOWED - {what for _, what in found} == set(), "delete these entries"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("vars(model)['call'] = f", "patch"),
        ("del vars(model)['call']", "patch"),
        ("vars(model).update(call=f)", "patch"),
        ("vars(model).pop('call')", "patch"),
        ("model.__dict__['call'] = f", "patch"),
        ("model.__dict__.setdefault('call', f)", "patch"),
        ("own = vars(model)\nown['call'] = f", "patch"),
        ("own = self.model.__dict__\nown.update(call=f)", "patch"),
        ("setattr(model, 'call', f)", "patch"),
        ("delattr(model, name)", "patch"),
        ("object.__setattr__(model, 'call', f)", "patch"),
        ("model.train_function = f", "patch"),
        ("self.model.train_step = f", "patch"),
        ("a, layer.call = f, g", "patch"),
        ("with f() as optimizer.apply: pass", "patch"),
        ("layer.__class__ = Other", "patch"),
        ("del model.make_train_function", "patch"),
        ("x = model._losses", "private attribute"),
        ("self.model._losses.clear()", "private attribute"),
        ("import keras.src.models", "private module"),
        ("from tensorflow.python import eager", "private module"),
        ("keras.models.load_model(path)", "runs files"),
        ("eval(text)", "runs files"),
        ("pickle.loads(data)", "runs files"),
        ("np.open(path, allow_pickle=flag)", "runs files"),
        ("import gc", "heap"),
        ("gc.get_objects()", "heap"),
        ("from tfdeep._keras import _living", "heap"),
    ],
)
def test_an_offense_is_seen(source, expected):
    assert {kind for _, kind, _ in Offenses(source).found} == {expected}
    in_seam = {kind for _, kind, _ in Offenses(source, in_seam=True).found}
    assert in_seam == {expected} - {"patch", "private attribute"}


@pytest.mark.parametrize(
    "source",
    [
        "vars(self)['call'] = f",
        "self.__dict__.update(call=f)",
        "setattr(self, name, value)",
        "object.__setattr__(self, name, value)",
        "super().__setattr__(name, value)",
        "self.call = f",
        "self._losses = []",
        "x = vars(model)['call']",
        "x = vars(model).get('call')",
        "found = {}\nfound['call'] = f\nfound.update(call=f)",
        "model.stop_training = True",  # which Keras publishes
        "layer.trainable = False",
        "optimizer.learning_rate = 0.1",
        "from tfdeep._core import _paths\n_paths._match(p)",
        "json.loads(text)",
        "np.open(path, allow_pickle=False)",
    ],
)
def test_what_is_allowed_is_none(source):
    assert Offenses(source).found == []
