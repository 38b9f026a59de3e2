import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

import tfdeep
from tests import nets
from tfdeep._core._paths import select
from tfdeep._keras._variables import model_variables
from tfdeep.errors import ModelError, SelectionError

PATHS = [
    "hidden1/kernel",
    "hidden1/bias",
    "hidden2/kernel",
    "hidden10/kernel",
    "base/block2/conv/kernel",
    "outputs/kernel",
]


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (None, PATHS),
        ("hidden[123]", ["hidden1/kernel", "hidden1/bias", "hidden2/kernel"]),
        ("hidden1", ["hidden1/kernel", "hidden1/bias"]),
        ("hidden1/kernel", ["hidden1/kernel"]),
        ("hidden.*/kernel", ["hidden1/kernel", "hidden2/kernel", "hidden10/kernel"]),
        ("base/block2/.*", ["base/block2/conv/kernel"]),
        ("base", ["base/block2/conv/kernel"]),
        (["hidden1/bias", "outputs"], ["hidden1/bias", "outputs/kernel"]),
        ("hidden1|outputs", ["hidden1/kernel", "hidden1/bias", "outputs/kernel"]),
        ("(?i)HIDDEN10", ["hidden10/kernel"]),
        (".*", PATHS),
    ],
)
def test_a_pattern_matches_whole_components_from_the_start(include, expected):
    assert select(PATHS, include) == expected


@pytest.mark.parametrize(
    "pattern", ["hidden", "idden1", "kernel", "hidden1/ker", "block2"]
)
def test_a_part_of_a_component_does_not_match(pattern):
    with pytest.raises(SelectionError, match="selects no variable"):
        select(PATHS, pattern)


def test_exclude_takes_away_from_what_is_included():
    assert select(PATHS, "hidden1", exclude=".*/bias") == ["hidden1/kernel"]


def test_a_pattern_that_selects_nothing_names_the_nearest():
    with pytest.raises(SelectionError) as error:
        select(PATHS, "hiden2")
    assert "'hiden2' against 6 variables" in str(error.value)
    assert "nearest names: hidden2" in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        ("hidden*", "any characters are '.*': pass 'hidden.*'; nearest names"),
        ("*/kernel", "any characters are '.*': '.*/kernel'; nothing"),
        ("kernel", "names of its layers: pass '.*/kernel'; nearest names"),
        ("kernel|bias", "pass '.*/(kernel|bias)'; "),
        ("hidden", "a name must match to its end: pass 'hidden.*'; "),
        ("dnn/hidden1", "leave out the model's name: 'hidden1'; nearest names"),
        ("sequential/hidden1/bias", "leave out the model's name: 'hidden1/bias'; "),
        ("hiden2", "Fix:      nearest names: hidden2"),
        ("(?i)KERNEL", "Fix:      nearest names"),
        ("hidden1/outputs", "Fix:      nearest names"),  # hidden1 is no model's name
        ("hidden[", "close the bracket with ']'"),
        ("(hidden1", "close the parenthesis with ')'"),
        ("hidden1)", "escape special characters"),
        (3, "a string, not an int"),
        (3, "pass the name of a layer, as `layer.name`; nothing"),
        (np.zeros((1, 1)), "a string, not an ndarray"),
        (layers.LSTM(2, name="lstm"), "a string, not an LSTM"),
        (layers.Dense(2, name="hidden1"), "pass its name, 'hidden1'; nothing"),
    ],
)
def test_a_bad_pattern_is_mended_in_the_message(pattern, remedy):
    with pytest.raises(SelectionError) as error:
        select(PATHS, [pattern] if isinstance(pattern, np.ndarray) else pattern)
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("hidden[", None, "not a regular expression"),
        (3, None, "not a regular expression"),
        ([None], None, "not a regular expression"),
        (None, "nothing", "selects no variable"),
        ("hidden1", "hidden.*", "No variable is left"),
        ([], None, "No variable is left"),
    ],
)
def test_bad_patterns_are_refused(include, exclude, message):
    if include == 3:
        include = [3]
    with pytest.raises(SelectionError, match=message):
        select(PATHS, include, exclude)


names = st.text("ab1_", min_size=1, max_size=4)
paths = st.lists(
    st.lists(names, min_size=1, max_size=4).map("/".join), min_size=1, unique=True
)


@given(paths, st.data())
def test_the_leading_components_of_a_path_select_all_below_them(paths, data):
    path = data.draw(st.sampled_from(paths))
    parts = path.split("/")
    prefix = "/".join(parts[: data.draw(st.integers(1, len(parts)))])
    below = [p for p in paths if p == prefix or p.startswith(prefix + "/")]
    assert select(paths, prefix) == below


@pytest.mark.parametrize(
    "build",
    [nets.functional, nets.sequential, nets.subclassed],
    ids=lambda f: f.__name__,
)
def test_paths_are_the_same_for_every_kind_of_model(build):
    assert [v.path for v in model_variables(build())] == [
        f"{layer}/{name}"
        for layer in ("hidden1", "hidden2", "hidden3", "outputs")
        for name in ("kernel", "bias")
    ]


def test_paths_name_the_layers_around_a_variable():
    class Block(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.parts = [layers.Dense(2, name="dense"), layers.BatchNormalization()]

        def build(self, input_shape):
            self.gain = self.add_weight(shape=(), name="gain")
            self.parts[0].build(input_shape)
            self.parts[1].build((*input_shape[:-1], 2))

        def call(self, x):
            return self.gain * self.parts[1](self.parts[0](x))

    inputs = keras.Input((4, 3))
    base = keras.Model(inputs, Block(name="block")(inputs), name="base")
    outer = keras.Input((4, 3))
    x = layers.MultiHeadAttention(1, 2, name="attention")(base(outer), base(outer))
    model = keras.Model(outer, layers.Bidirectional(layers.LSTM(2), name="both")(x))
    found = [v.path for v in model_variables(model)]
    assert found[:3] == [
        "base/block/gain",
        "base/block/dense/kernel",
        "base/block/dense/bias",
    ]
    assert "attention/query/kernel" in found
    assert "both/forward_lstm/lstm_cell/kernel" in found
    assert len(found) == len(set(found)) == len(model.weights)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ModelError, match="has no weights yet"):
        tfdeep.freeze(keras.Sequential([layers.Dense(3)]), "dense")
