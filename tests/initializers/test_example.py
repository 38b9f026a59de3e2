"""The example of the guide, in short."""

import pytest

from tests import programs


@pytest.fixture(scope="module")
def example():
    return programs.example("initialize_deep_nets")


def test_it_prints_and_draws(example, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(example, "ACTIVATIONS", ("relu", "gelu"))
    figure = tmp_path / "figure.png"
    example.main(["--depths", "5", "--output", str(figure)])
    assert figure.read_bytes().startswith(b"\x89PNG")
    rows = [line for line in capsys.readouterr().out.splitlines() if "| 5 |" in line]
    assert len(rows) == 2 * 6 - 1  # no table for GELU


def test_what_the_guide_says(example):
    def ratio(activation, start):
        norms = example.propagate(activation, start, 20)[2]
        return norms[0] / norms[-1]

    assert 0.5 < ratio("relu", "table") < 2
    assert ratio("relu", "N(0, 1)") > 1e6
    assert ratio("tanh", "table") > 100
    variance, signal, norms = example.propagate("sigmoid", "LSUV", 20)
    assert abs(variance - 1).max() < 0.02
    assert signal[-1] < 1e-3
    assert norms[0] / norms[-1] < 1e-4
