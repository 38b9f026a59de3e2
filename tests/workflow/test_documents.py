"""The documents hold what they say."""

import pathlib
import re

import numpy as np
import tensorflow as tf

import tfdeep
from tfdeep._demo._data import load_tasks

ROOT = pathlib.Path(tfdeep.__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_program_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    program = re.search(r"```python\n(import keras, tfdeep.*?)```", README, re.DOTALL)
    (tmp_path / "saved_models").symlink_to(ROOT / "saved_models")
    monkeypatch.chdir(tmp_path)
    _, task = load_tasks("digits")
    names = {
        "train_dataset": tf.data.Dataset.from_tensor_slices(
            (task.x_train, task.y_train)
        ).batch(20),
        "test_dataset": tf.data.Dataset.from_tensor_slices(
            (task.x_test, task.y_test)
        ).batch(100),
    }
    exec(program.group(1), names)
    accuracy = names["model"].evaluate(names["test_dataset"], verbose=0)[1]
    assert accuracy > 0.85
    assert list((tmp_path / "logs" / "run1").glob("events.*"))
    printed = capsys.readouterr().out
    assert "Restored 6 variables" in printed
    assert "Gradients over 200 steps" in printed


def test_continuous_integration_runs_the_test_command_of_the_readme():
    command = re.search(r"^Run the tests:\n\n```bash\n(.+)\n```$", README, re.MULTILINE)
    assert command.group(1) in (ROOT / ".ci" / "run").read_text().splitlines()


def test_both_files_of_the_pretrained_model_hold_the_same_weights():
    models = []
    for name in ("digits_0to4.weights.h5", "digits_0to4.ckpt"):
        model = tfdeep.models.dnn((64,), [100] * 5, num_outputs=5)
        tfdeep.restore(model, ROOT / "saved_models" / name)
        models.append(model)
    for a, b in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_pretrained_model_is_as_accurate_as_its_readme_says():
    model = tfdeep.models.dnn((64,), [100] * 5, num_outputs=5)
    tfdeep.restore(model, ROOT / "saved_models" / "digits_0to4.weights.h5")
    source, _ = load_tasks("digits")
    right = np.argmax(model(source.x_test), axis=1) == source.y_test
    said = re.search(r"\| (0\.\d+) \|\n", (ROOT / "saved_models/README.md").read_text())
    assert f"{right.mean():.3f}" == said.group(1)


def test_links_lead_somewhere():
    for document in [
        *ROOT.glob("*.md"),
        *ROOT.glob("saved_models/*.md"),
        *ROOT.glob("docs/*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
    for path in re.findall(r"`((?:tests|benchmarks|examples)/[^`* ]+)`", README):
        assert (ROOT / path).exists()
