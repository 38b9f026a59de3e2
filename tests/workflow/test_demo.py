import importlib.util
import re

import numpy as np
import pytest

from tfdeep import cli
from tfdeep._demo import _data, _run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One small run of the demo: what it says, what it returns, what it leaves."""
    output = tmp_path_factory.mktemp("demo")
    said = []
    result = _run.run_demo(
        "digits", 3, 2, 3, output, lambda thing: said.append(str(thing))
    )
    return "\n".join(said), result, output


def test_it_goes_through_all_the_parts(demo):
    text, _, output = demo
    for part in (
        "Restored 6 variables from",
        "are frozen",
        "Cached 200 examples in 10 batches",
        "Test accuracy on",
        "Gradients over 30 steps",
        f"tensorboard --logdir {output / 'logs'}",
        str(output / "gradient_norms.png"),
    ):
        assert part in text


def test_it_compares_four_ways_over_the_seeds(demo):
    _, result, _ = demo
    assert list(result.accuracies) == [
        _run.RANDOM,
        _run.RESTORED,
        _run.FROZEN,
        _run.CACHED,
    ]
    assert all(len(values) == 2 for values in result.accuracies.values())
    assert result.largest_difference <= 1e-6
    assert result.accuracies[_run.FROZEN] == result.accuracies[_run.CACHED]


def test_it_leaves_a_figure_logs_and_weights(demo):
    _, _, output = demo
    assert (output / "gradient_norms.png").read_bytes().startswith(b"\x89PNG")
    assert list((output / "logs").rglob("events.out.tfevents.*"))
    assert (output / "digits_0to4.weights.h5").exists()


@pytest.mark.slow
def test_a_seed_makes_it_repeatable_to_the_bit(demo, tmp_path):
    again = _run.run_demo("digits", 3, 2, 3, tmp_path, lambda thing: None)
    assert again.digest == demo[1].digest


@pytest.mark.slow
def test_another_seed_gives_another_run(demo, tmp_path):
    other = _run.run_demo("digits", 4, 2, 3, tmp_path, lambda thing: None)
    assert other.digest != demo[1].digest


def test_the_digits_are_as_they_should_be():
    source, target = _data.load_tasks("digits")
    assert (source.classes, target.classes) == ("0-4", "5-9")
    assert len(target.x_train) == 200
    for task in (source, target):
        assert task.x_train.shape[1:] == (64,)
        assert (task.x_train.min(), task.x_train.max()) == (0, 1)
        assert set(task.y_train) == set(task.y_test) == set(range(5))


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((28, 28), id="mnist", marks=pytest.mark.slow),
        pytest.param((32, 32, 3), id="cifar10"),
    ],
)
def test_other_images_fit_as_well_and_what_is_not_installed_is_told(
    shape, monkeypatch, tmp_path
):
    """The other datasets are downloaded by Keras; here is something of their shape."""
    rng = np.random.default_rng(0)

    def loaded():
        def part(count):
            labels = np.arange(count) % 10
            images = rng.integers(0, 256, (count, *shape)).astype("uint8")
            return images, labels[:, np.newaxis] if len(shape) == 3 else labels

        return part(200), part(50)

    monkeypatch.setattr("keras.datasets.mnist.load_data", loaded)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = []
    _run.run_demo("mnist", 0, 1, 1, tmp_path, lambda thing: said.append(str(thing)))
    text = "\n".join(said)
    assert "Test accuracy on 25 images" in text
    # No optional package is installed here.
    assert "pip install tfdeep[tensorboard]" in text
    assert "pip install tfdeep[plots]" in text
    assert not (tmp_path / "gradient_norms.png").exists()


def test_a_download_that_fails_is_explained(monkeypatch, capsys, tmp_path):
    def fails():
        raise Exception("URL fetch failure on https://example.org")

    monkeypatch.setattr("keras.datasets.mnist.load_data", fails)
    assert cli.main(["demo", "--dataset", "mnist", "--output", str(tmp_path)]) == 2
    assert "URL fetch failure" in capsys.readouterr().err


def test_the_command_line_takes_what_the_readme_says(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(_run, "run_demo", lambda **arguments: calls.append(arguments))
    assert cli.main(["demo", "--quick", "--seed", "7"]) == 0
    assert calls[0]["seed"] == 7
    assert calls[0]["num_seeds"] < 5
    with pytest.raises(SystemExit):
        cli.main(["demo", "--dataset", "imagenet"])
    assert re.search(r"digits.*mnist.*fashion_mnist.*cifar10", capsys.readouterr().err)
    assert cli.DATASETS == _data.DATASETS
