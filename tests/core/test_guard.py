import pytest

from tfdeep._core._guard import Guard
from tfdeep.errors import InvalidArgumentError


def test_what_fails_is_left_out_with_one_warning():
    calls = []

    def fail(x):
        calls.append(x)
        raise ValueError("three\nlines\nof text")

    guard = Guard("GradientMonitor")
    with pytest.warns(UserWarning, match="cannot measure the loss, and leaves") as seen:
        assert guard("the loss", fail, 1, otherwise=7) == 7
        assert guard("the loss", fail, 2) is None
    assert len(seen) == 1
    assert calls == [1]
    assert guard.left_out == {"the loss": "ValueError: three"}
    assert guard("the input", lambda x: x + 1, 2) == 3


@pytest.mark.parametrize("error", [InvalidArgumentError, KeyboardInterrupt])
def test_what_is_meant_for_the_user_passes(error):
    def fail():
        raise error("told")

    with pytest.raises(error):
        Guard("GradientMonitor")("the loss", fail)
