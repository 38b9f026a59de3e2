import ast
import pathlib

import pytest

import tfdeep
from tfdeep._core._explain import listing

PACKAGE = pathlib.Path(tfdeep.__file__).parent


def test_long_lists_say_how_many_are_left_out():
    assert listing(range(7), limit=5) == "0, 1, 2, 3, 4 and 2 more"
    assert listing([]) == "none"


def raised_errors():
    """Every `raise SomeTfdeepError(...)` in the package, with its file and line."""
    names = set(tfdeep.errors.__all__) - {"TfdeepError"}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
                yield pytest.param(
                    node, id=f"{path.relative_to(PACKAGE)}:{node.lineno}"
                )


@pytest.mark.parametrize("node", raised_errors())
def test_every_error_is_explained(node):
    message = node.args[0]
    assert isinstance(message, ast.Call)
    function = ast.unparse(message.func)
    assert function in ("explain", "self._explained")  # the latter calls the former
    # The sentence comes first; the other parts have names, or stand in their order.
    parts = len(message.args) + len(message.keywords)
    given = [keyword.arg for keyword in message.keywords]
    assert parts == 4
    assert given == ["received", "expected", "fix"][3 - len(given) :]
