"""`tfdeep inspect`, `restore` and `compare`, as a shell script would use them."""

import json

import keras
import numpy as np
import pytest

import tfdeep
from tests import nets
from tfdeep.cli import DONE, FAILED, NO, main


@pytest.fixture
def files(tmp_path):
    """A model, another one of the same layers, and weights of the first."""
    keras.utils.set_random_seed(1)
    model, weights = tmp_path / "model.keras", tmp_path / "net.safetensors"
    compiled = nets.functional()
    compiled.compile("adam", nets.LOSS)
    compiled.save(model)
    source = nets.functional()
    tfdeep.save_subset(source, weights)
    return model, weights, source


def test_inspect_lists_names_shapes_and_sizes(files, capsys):
    _, weights, _ = files
    assert main(["inspect", str(weights), "--include", "hidden[12]"]) == DONE
    table = capsys.readouterr().out
    assert "4 tensors" in table
    assert "hidden1/kernel" in table
    assert "outputs" not in table
    assert all(len(line) <= 80 for line in table.splitlines())


def test_inspect_prints_json(files, capsys):
    _, weights, source = files
    assert main(["inspect", str(weights), "--json"]) == DONE
    listing = json.loads(capsys.readouterr().out)
    assert listing["integrity"] == "verified"
    assert len(listing["variables"]) == len(source.weights)
    assert listing["variables"][0]["bytes"] == 8 * 6 * 4


def test_restore_writes_a_new_model(files, tmp_path, capsys):
    model, weights, source = files
    output = tmp_path / "restored.keras"
    arguments = [str(model), str(weights), "--include", "hidden1"]
    assert main(["restore", *arguments, "--output", str(output)]) == DONE
    assert "Restored 2 variables" in capsys.readouterr().out
    restored = keras.saving.load_model(output)
    assert type(restored.optimizer) is keras.optimizers.Adam
    np.testing.assert_array_equal(
        restored.get_layer("hidden1").kernel, source.get_layer("hidden1").kernel
    )
    assert main(["compare", str(output), str(weights), "--include", "hidden1"]) == DONE
    assert main(["compare", str(output), str(weights)]) == NO
    assert "different" in capsys.readouterr().out


def test_a_dry_run_makes_a_plan_that_can_be_followed(files, tmp_path, capsys):
    model, weights, _ = files
    arguments = ["restore", str(model), str(weights), "--include", "hidden1"]
    assert main([*arguments, "--dry-run", "--json"]) == DONE
    plan = tmp_path / "plan.json"
    plan.write_text(capsys.readouterr().out)
    output = tmp_path / "restored.weights.h5"
    assert main([*arguments, "--plan", str(plan), "--output", str(output)]) == DONE
    assert output.exists()


def test_what_does_not_fit_is_a_no(files, tmp_path, capsys):
    model, weights, _ = files
    arguments = [str(model), str(weights), "--rename", "hidden1=first"]
    output = tmp_path / "restored.keras"
    assert main(["restore", *arguments, "--dry-run"]) == NO
    assert "missing in the file" in capsys.readouterr().out
    assert main(["restore", *arguments, "--output", str(output)]) == NO
    assert "nothing was changed" in capsys.readouterr().err
    assert not output.exists()
    arguments += ["--skip-missing", "--output", str(output)]
    assert main(["restore", *arguments]) == DONE


@pytest.mark.parametrize("command", ["inspect", "restore", "compare"])
def test_what_cannot_be_read_is_a_failure(command, files, capsys):
    model, _, _ = files
    arguments = [] if command == "inspect" else [str(model)]
    more = ["--dry-run"] if command == "restore" else []
    assert main([command, *arguments, "nowhere.h5", *more]) == FAILED
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["restore", "compare"])
def test_a_model_is_a_keras_file(command, files, tmp_path, capsys):
    """Of the older formats, not every Keras refuses to run the code in them."""
    model = tmp_path / "model.h5"
    ran = tmp_path / "ran"
    mark = str(ran)
    inner = keras.layers.Lambda(lambda x: (open(mark, "w").close(), x)[1])
    keras.Sequential([keras.Input((2,)), inner]).save(model)
    ran.unlink()  # to build it has run it, too
    more = ["--dry-run"] if command == "restore" else []
    assert main([command, str(model), str(files[1]), *more]) == FAILED
    message = capsys.readouterr().err
    assert "a .keras file" in message
    assert "nothing was changed" in message
    assert not ran.exists()


def test_names_that_would_steer_a_terminal_are_escaped(tmp_path, capsys):
    path = tmp_path / "net.npz"
    np.savez(path, **{"a\x1b[2Jb": np.ones(1)})
    assert main(["inspect", str(path)]) == DONE
    assert "\x1b" not in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == DONE
    assert capsys.readouterr().out == f"tfdeep {tfdeep.__version__}\n"
