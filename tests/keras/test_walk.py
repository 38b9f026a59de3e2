"""Walks over the layers inside a model, and over the calls in its graph."""

import keras
import pytest
from keras import layers

from tfdeep._keras import _walk
from tfdeep.errors import ModelError


def block(name, inputs=1):
    given = [keras.Input((4,), name=f"{name}_in{i}") for i in range(inputs)]
    x = layers.Add(name="sum")(given) if inputs > 1 else given[0]
    return keras.Model(given, layers.Dense(4, "tanh", name="dense")(x), name=name)


def nested():
    inputs = keras.Input((4,), name="inputs")
    x = layers.Dense(4, name="first")(inputs)
    x = block("inner")(x)
    y = layers.Dropout(0.5, name="drop")(inputs)
    x = block("merging", 2)([x, y])
    return keras.Model(inputs, layers.ReLU(name="last")(x))


def test_layers_are_found_once_by_their_paths():
    model = nested()
    found = _walk.layers(model)
    assert found["inner/dense"] is model.get_layer("inner").get_layer("dense")
    assert list(found).index("inner") < list(found).index("inner/dense")
    assert len({id(layer) for layer in found.values()}) == len(found)


def test_what_is_inside_a_closed_layer_is_left_out():
    model = keras.Sequential([keras.Input((3, 2)), layers.LSTM(2, name="lstm")])
    assert "lstm/lstm_cell" in _walk.layers(model)
    found = _walk.layers(model, is_closed=lambda x: isinstance(x, layers.RNN))
    assert "lstm" in found and "lstm/lstm_cell" not in found


def test_calls_go_through_models_inside_the_model():
    calls, outputs = _walk.calls(nested())
    by_path = {call.path: call for call in calls}
    assert [call.path for call in outputs] == ["last"]
    assert [c.path for c in by_path["inner/dense"].before] == ["first"]
    assert {c.path for c in by_path["merging/sum"].before} == {"inner/dense", "drop"}
    assert by_path["inner/dense"].after == [by_path["merging/sum"]]
    order = [call.path for call in calls]
    assert order.index("inner/dense") < order.index("merging/sum")


def test_an_inner_model_may_hand_on_its_input():
    given = keras.Input((4,))
    made = layers.Dense(2, name="dense")(given)
    both = keras.Model(given, [given, made], name="both")
    inputs = keras.Input((4,))
    x, y = both(layers.Dense(4, name="first")(inputs))
    calls, outputs = _walk.calls(keras.Model(inputs, [x, y]))
    assert [call.path for call in outputs] == ["first", "both/dense"]
    assert [call.path for call in calls] == ["first", "both/dense"]


def test_a_layer_that_is_called_twice_has_two_calls():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    calls, _ = _walk.calls(keras.Model(inputs, shared(shared(inputs))))
    assert [call.path for call in calls] == ["shared", "shared"]
    assert calls[1].before == [calls[0]]


def test_the_next_activation_is_told_if_only_one_can_follow():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="dense")(inputs)
    x = layers.BatchNormalization()(x)
    one = keras.Model(inputs, layers.ReLU()(x))
    two = keras.Model(inputs, [layers.ReLU()(x), layers.Activation("tanh")(x)])
    for model, expected in ((one, "relu"), (two, None)):
        calls, _ = _walk.calls(model)
        assert calls[0].next_activation() == expected


def test_what_is_not_a_graph_has_no_calls():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelError):
        _walk.calls(Own())
