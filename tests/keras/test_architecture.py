"""What is read of a model's graph."""

import keras
import pytest
from keras import layers

from tfdeep._keras._architecture import describe


def described(join):
    inputs = keras.Input((4,))
    first = layers.Dense(4, name="first")(inputs)
    second = layers.Dense(4, name="second")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="last")(join(first, second)))
    return {layer.path: layer for layer in describe(model)}


class Half(layers.Layer):
    def call(self, inputs):
        return inputs / 2


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: layers.Add()([a, b]),
        lambda a, b: a + b,
        lambda a, b: layers.Dropout(0.5)(a + b),
        lambda a, b: layers.GlobalMaxPooling1D()(layers.Reshape((4, 1))(a - b)),
    ],
)
def test_inputs_add_up_through_sums_and_pooling(join):
    last = described(join)["last"]
    assert last.inputs == ("first", "second")
    assert last.inputs_add_up


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: layers.Multiply()([a, b]),
        lambda a, b: layers.Concatenate()([a, b]),
        lambda a, b: a * b,
        lambda a, b: layers.Add()([Half()(a), b]),
        lambda a, b: layers.Lambda(lambda z: z[0] + z[1])([a, b]),
    ],
)
def test_inputs_do_not_add_up_through_products_and_what_is_not_known(join):
    known = described(join)
    assert known["last"].inputs == ("first", "second")
    assert not known["last"].inputs_add_up
    assert known["first"].inputs_add_up


def test_it_is_followed_into_inner_models_and_out_of_them():
    inner_inputs = keras.Input((4,))
    inner = keras.Model(
        inner_inputs, layers.Dense(4, name="inside")(inner_inputs), name="inner"
    )
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="first")(inputs)
    x = inner(Half()(x))
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    known = {layer.path: layer for layer in describe(model)}
    assert known["inner/inside"].inputs == ("first",)
    assert not known["inner/inside"].inputs_add_up
    assert known["last"].inputs_add_up


def test_a_layer_in_the_middle_may_make_an_output():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="middle")(inputs)
    model = keras.Model(inputs, [x, layers.Dense(2, name="last")(x)])
    assert [layer.makes_output for layer in describe(model)] == [True, True]
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    assert [layer.makes_output for layer in describe(model)] == [False, True]


def test_the_units_of_a_recurrent_layer_are_not_those_of_its_gates():
    model = keras.Sequential([keras.Input((5, 3)), layers.GRU(16, name="gru")])
    assert describe(model)[0].units == 16


def test_without_a_graph_nothing_is_known():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Dense(4), layers.Dense(2)

        def call(self, inputs):
            return self.second(self.first(inputs))

    model = Net()
    model(keras.ops.zeros((1, 4)))
    first, second = describe(model)
    assert second.inputs == (first.path,)
    assert not second.inputs_add_up
