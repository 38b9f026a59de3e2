"""Changes to objects of the user are listed, and taken back without a trace."""

import keras
import numpy as np
import pytest

import tfdeep
from tests import nets
from tfdeep._keras import _patches, installed


class Thing:
    def method(self):
        return "own"


def test_a_patch_is_taken_back_without_a_trace():
    thing = Thing()
    _patches.install(thing, "method", lambda: "patched", "a test")
    assert thing.method() == "patched"
    assert _patches.is_installed(thing, "method")
    [patch] = _patches.listed([thing])
    assert (patch.owner, patch.name, patch.reason) == (thing, "method", "a test")
    _patches.remove(thing, "method")
    assert thing.method() == "own"
    assert vars(thing) == {}


def test_what_stood_there_before_comes_back():
    thing = Thing()
    thing.method = lambda: "by hand"
    _patches.install(thing, "method", lambda: "first", "")
    _patches.install(thing, "method", lambda: "second", "")
    _patches.remove(thing, "method")
    assert thing.method() == "by hand"
    _patches.remove(thing, "method")
    assert thing.method() == "by hand"


def test_contexts_nest():
    thing = Thing()

    def louder(method):
        return lambda: method() + "!"

    with _patches.replaced(thing, "method", louder):
        with pytest.raises(RuntimeError), _patches.replaced(thing, "method", louder):
            assert thing.method() == "own!!"
            raise RuntimeError
        assert thing.method() == "own!"
    assert vars(thing) == {}


def test_what_is_installed_on_a_model_can_be_said():
    model = nets.functional()
    model.compile("adam", nets.LOSS)
    assert installed(model) == []
    tfdeep.freeze(model, "hidden1")
    names = {(type(p.owner), p.name) for p in installed(model)}
    assert names == {(type(model), "make_train_function")}
    monitor = tfdeep.callbacks.GradientMonitor(on_finding=None)
    x, y = nets.examples(8)
    model.fit(x, y, verbose=0, callbacks=[monitor])
    assert {(type(p.owner), p.name) for p in installed(model)} == names


def test_layers_that_run_as_at_inference_are_listed():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="hidden"),
            keras.layers.Dropout(0.5, name="drop"),
            keras.layers.Dense(4, name="more"),
            keras.layers.Dense(1, name="outputs"),
        ]
    )
    model.compile("sgd", "mse")
    tfdeep.freeze(model, ["hidden", "more"])
    calls = [p for p in installed(model) if p.name == "call"]
    assert [p.owner.name for p in calls] == ["drop"]
    assert "inference" in str(calls[0])
    tfdeep.unfreeze(model)
    assert not [p for p in installed(model) if p.name == "call"]


def test_a_saved_model_knows_nothing_of_patches(tmp_path):
    model = nets.functional()
    model.compile("adam", nets.LOSS)
    x, y = nets.examples(8)
    model.fit(x, y, verbose=0, callbacks=[tfdeep.callbacks.GradientMonitor()])
    tfdeep.freeze(model, "hidden1")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert installed(loaded) == []
    np.testing.assert_array_equal(loaded(x), model(x))
