"""The programs in `examples/` about activations and normalizations, in short."""

import pytest

from tests.programs import example


@pytest.mark.slow
def test_sigmoids_stop_training_at_a_depth_where_relus_go_on(
    tmp_path, capsys, monkeypatch
):
    pytest.importorskip("matplotlib")
    module = example("activations_side_by_side")
    monkeypatch.setattr(module, "ACTIVATIONS", ("sigmoid", "relu"))
    monkeypatch.setattr(module, "STARTS", ("VarianceScaling",))
    figure = tmp_path / "figure.png"
    options = ["--depths", "8", "6", "--epochs", "2", "--output", str(figure)]
    results = module.main(options)
    assert list(results["sigmoid", "VarianceScaling"]) == [6]  # 8 is not tried
    assert min(results["relu", "VarianceScaling"].values()) > 0.6
    stops = {name: module.stops_at(found) for (name, _), found in results.items()}
    assert stops == {"sigmoid": 6, "relu": None}
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "| over 8 |" in capsys.readouterr().out


def test_in_batches_of_two_batch_normalization_falls_behind(
    tmp_path, capsys, monkeypatch
):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "figure.png"
    module = example("batch_size_two")
    (x, y), test = module.digits()
    monkeypatch.setattr(module, "digits", lambda: ((x[:400], y[:400]), test))
    monkeypatch.setattr(module, "NORMALIZATIONS", ("BatchNorm", "WeightNorm"))
    results = module.main(
        f"--nets dense --batch-sizes 2 --epochs 1 --output {figure}".split()
    )
    accuracy = {name: found[1][-1] for (_, _, name), found in results.items()}
    assert accuracy["BatchNorm"] < 0.4
    assert accuracy["WeightNorm"] > 0.6
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "| dense | 2 | WeightNorm |" in capsys.readouterr().out


def test_the_first_outputs_of_adapted_layers_are_standardized():
    module = example("batch_size_two")
    (x, _), _ = module.digits()
    model = module.build("convolutional", "WeightNorm")
    module.adapt(model, x[:128])
    hidden, before = model.layers[0], x[:128]
    outputs = hidden(before).numpy()
    assert abs(outputs.mean(axis=(0, 1, 2))).max() < 1e-4
    assert abs(outputs.std(axis=(0, 1, 2)) - 1).max() < 1e-3
