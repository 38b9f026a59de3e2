import json

import keras
import numpy as np
import pytest

import tfdeep
from tests import nets
from tests.transfer.test_cache import pair
from tfdeep.errors import DataError, InvalidArgumentError, SelectionError


def test_it_is_the_program_of_its_parts(tmp_path):
    by_hand, model = pair(nets.regularized)
    data, other = nets.dataset(count=104), nets.dataset(count=40)
    include = ["hidden[12]", "norm1"]

    tfdeep.freeze(by_hand, include)
    head, features, _ = tfdeep.cache_frozen(by_hand, data)
    adam = keras.optimizers.Adam(0.01)
    head.compile(adam, nets.LOSS)
    keras.utils.set_random_seed(3)
    head.fit(features, epochs=3, verbose=0)
    by_hand.compile(adam, nets.LOSS)
    tfdeep.unfreeze(by_hand, "hidden2")
    adam.learning_rate = 0.001
    by_hand.fit(data, initial_epoch=3, epochs=5, verbose=0)

    keras.utils.set_random_seed(3)
    report = tfdeep.finetune(
        model,
        data,
        nets.LOSS,
        freeze=include,
        optimizer=keras.optimizers.Adam(0.01),
        metrics=["accuracy"],
        epochs=5,
        unfreeze={3: "hidden2"},
        validation_data=other,
        shuffle=False,
        cache_dir=tmp_path / "cache",
        log_dir=tmp_path / "logs",
        verbose=0,
    )
    assert nets.largest_difference(model, by_hand) <= 1e-6
    assert [(s.first_epoch, s.epochs) for s in report.stages] == [(0, 3), (3, 2)]
    assert {len(values) for values in report.history.values()} == {5}
    assert set(report.history) >= {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert model.optimizer.iterations == 5 * 7
    assert len(list((tmp_path / "cache").iterdir())) == 2
    loss, accuracy = model.evaluate(other, verbose=0)
    assert loss == pytest.approx(report.history["val_loss"][-1], abs=1e-6)
    assert accuracy == pytest.approx(report.stages[-1].logs["val_accuracy"])


def test_the_report(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model = nets.functional()
    report = tfdeep.finetune(
        model, nets.dataset(), nets.LOSS, freeze="hidden[12]", epochs=2, verbose=0
    )
    text = str(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "train hidden3, outputs" in text
    assert report.stages[0].trainable == 6 * 6 + 6 + 6 * 3 + 3
    assert json.loads(report.to_json())["cache"]["examples"] == 96
    assert model.evaluate(nets.dataset(), verbose=0) > 0


def test_batches_of_single_examples_and_wrappers():
    model = nets.functional()
    before = model.get_layer("hidden1").get_weights()
    data = nets.dataset().unbatch()
    report = tfdeep.finetune(
        model,
        data.apply(tf_cardinality(96)),
        nets.LOSS,
        freeze="hidden[12]",
        optimizer=tfdeep.optimizers.ClipByGlobalNorm("adam", clip_norm=1.0),
        epochs=3,
        unfreeze={1: "hidden2", 2: "hidden1"},
        batch_size=16,
        verbose=0,
    )
    assert [stage.trainable for stage in report.stages] == [63, 105, 159]
    assert np.abs(before[0] - model.get_layer("hidden1").get_weights()[0]).max() > 0
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-5)


def tf_cardinality(count):
    import tensorflow as tf

    return tf.data.experimental.assert_cardinality(count)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"epochs": 0}, InvalidArgumentError),
        ({"epochs": 3, "unfreeze": {3: "hidden2"}}, InvalidArgumentError),
        ({"epochs": 3, "unfreeze": {0: "hidden2"}}, InvalidArgumentError),
        ({"epochs": 3, "unfreeze": {1: "hidden9"}}, SelectionError),
        ({"freeze": "nothing"}, SelectionError),
    ],
    ids=str,
)
def test_what_cannot_work_is_met_before_training(arguments, error):
    model = nets.functional()
    before = model.get_weights()
    arguments = {"freeze": "hidden[12]", **arguments}
    with pytest.raises(error, match="nothing was"):
        tfdeep.finetune(model, nets.dataset(), nets.LOSS, verbose=0, **arguments)
    assert len(model.trainable_weights) == len(model.weights)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_was_frozen_for_a_dataset_that_cannot_be_cached_is_unfrozen_again():
    model = nets.functional()
    model.get_layer("hidden1").trainable = False
    with pytest.raises(DataError):
        tfdeep.finetune(
            model, nets.dataset().repeat(), nets.LOSS, freeze="hidden[12]", verbose=0
        )
    assert not model.get_layer("hidden1").trainable_weights
    assert len(model.get_layer("hidden2").trainable_weights) == 2
