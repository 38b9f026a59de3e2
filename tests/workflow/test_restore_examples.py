"""The programs of the guide to restoring run, and compute what the old ones did."""

import pytest

from tests.programs import example

SAME = 1e-5  # the largest difference of an output


@pytest.mark.parametrize(
    "origin",
    ["tf1", "keras2", "torch_mlp", "torch_resnet", "weight_normalization"],
)
def test_outputs_are_those_of_the_old_program(origin):
    assert example(f"restore_from_{origin}").main() < SAME


def test_safetensors():
    difference, is_equal = example("restore_from_safetensors").main()
    assert difference < SAME
    assert is_equal
