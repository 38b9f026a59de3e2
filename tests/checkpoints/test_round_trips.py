"""Every format, every way to build a model, every kind of layer: bit for bit."""

import keras
import numpy as np
import pytest
from keras import layers

import tfdeep
from tests import nets
from tests.checkpoints import files
from tfdeep.errors import MismatchError

IDS, LENGTH = 11, 6


class SelfAttention(layers.Layer):
    """Attention of a sequence to itself, for models that pass one tensor on."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.attention = layers.MultiHeadAttention(2, 4, name="attention")

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x)


def parts():
    return [
        layers.Embedding(IDS, 8, name="embedding"),
        SelfAttention(name="attends"),
        layers.LSTM(5, return_sequences=True, name="lstm"),
        layers.Bidirectional(
            layers.GRU(4, return_sequences=True, name="within"), name="both"
        ),
        layers.GRU(6, return_sequences=True, name="gru"),
        layers.Reshape((LENGTH, 6, 1), name="image"),
        layers.Conv2D(4, 3, padding="same", name="conv"),
        layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
        layers.BatchNormalization(name="norm"),
        layers.Flatten(name="flat"),
        layers.Dense(7, name="hidden"),
        layers.Dense(3, name="outputs"),
    ]


def sequential():
    return keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *parts()])


def functional():
    inputs = x = keras.Input((LENGTH,), dtype="int32")
    for layer in parts():
        x = layer(x)
    return keras.Model(inputs, x)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding, self.attends, self.lstm, self.both, self.gru, *rest = parts()
        self.image, self.conv, self.depthwise, self.norm, self.flat, *rest = rest
        self.hidden, self.outputs_layer = rest

    def call(self, x, training=False):
        for name in ("embedding", "attends", "lstm", "both", "gru", "image", "conv"):
            x = getattr(self, name)(x)
        x = self.norm(self.depthwise(x), training=training)
        return self.outputs_layer(self.hidden(self.flat(x)))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, LENGTH), "int32"))
    return model


def nested():
    every = parts()
    trunk = keras.Sequential(
        [keras.Input((LENGTH,), dtype="int32"), *every[:6]], name="trunk"
    )
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = trunk(inputs)
    middle = x = keras.Input(x.shape[1:])
    for layer in every[6:10]:
        x = layer(x)
    block = keras.Model(middle, x, name="block")
    x = block(trunk(inputs))
    for layer in every[10:]:
        x = layer(x)
    return keras.Model(inputs, x)


MODELS = {
    "sequential": sequential,
    "functional": functional,
    "subclassed": subclassed,
    "nested": nested,
}


values = nets.values


def built(kind, seed):
    """A model whose every variable, averages included, has values of its own."""
    keras.utils.set_random_seed(seed)
    model = MODELS[kind]()
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.dtype == "float32":
            variable.assign(rng.normal(size=variable.shape))
    return model


OFTEN = ("weights_h5", "tf1_saver", "safetensors", "subset_weights_h5")


# All formats with one kind of model, some with all; all other pairs are slow.
@pytest.mark.parametrize(
    ("kind", "build"),
    nets.slow_unless(
        lambda kind, build: build == "nested" or kind in OFTEN,
        files.NAMED_WRITERS,
        MODELS,
    ),
)
def test_all_comes_back_bit_for_bit(kind, build, tmp_path):
    written, model = built(build, 1), built(build, 2)
    path = files.NAMED_WRITERS[kind](written, tmp_path)
    report = tfdeep.restore(model, path)
    wanted, found = values(written), values(model)
    assert len(report.restored) == len(wanted) == 33
    assert report.unused == ()
    for name in wanted:
        assert wanted[name].tobytes() == found[name].tobytes(), name
    assert tfdeep.checkpoints.compare(model, path).is_equal


@pytest.mark.parametrize("kind", ["object_checkpoint", "saved_model"])
@pytest.mark.parametrize("build", ["sequential", "functional", "nested"])
def test_object_based_checkpoints_bring_back_what_they_name(kind, build, tmp_path):
    written, model = built(build, 1), built(build, 2)
    path = files.WRITERS[kind](written, tmp_path)
    tfdeep.restore(model, path)
    wanted, found = values(written), values(model)
    for name in wanted:
        assert wanted[name].tobytes() == found[name].tobytes(), name


# What Keras takes by position, or passes over, without a word.


def stack(*names, first=6, **changes):
    """A stack of dense layers with these names, some of them made otherwise."""
    inputs = x = keras.Input((first,))
    for name in names:
        x = changes.get(name, lambda n: layers.Dense(6, name=n))(name)(x)
    return keras.Model(inputs, x)


def dense(**arguments):
    return lambda name: layers.Dense(6, name=name, **arguments)


class Other(layers.Dense):
    """Weights like those of `Dense`, and another meaning."""


# A model, and the paths that a file of `stack("a", "b", "c")` cannot fill or must not.
SILENT = {
    "inserted in front": (lambda: stack("new", "a", "b", "c"), {"new"}),
    "inserted between": (lambda: stack("a", "new", "b", "c"), {"new"}),
    "appended": (lambda: stack("a", "b", "c", "new"), {"new"}),
    "one renamed": (lambda: stack("a", "x", "c"), {"x"}),
    "all renamed": (lambda: stack("x", "y", "z"), {"x", "y", "z"}),
    "another shape": (
        lambda: stack("a", "b", "c", c=lambda n: layers.Dense(7, name=n)),
        {"c"},
    ),
    "another input": (lambda: stack("a", "b", "c", first=5), {"a"}),
    "another dtype": (lambda: stack("a", "b", "c", b=dense(dtype="float64")), {"b"}),
}
# What is right, if names decide: nothing to report, and every value at its name.
BY_NAME = {
    "the same": lambda: stack("a", "b", "c"),
    "swapped": lambda: stack("b", "a", "c"),
    "turned round": lambda: stack("c", "b", "a"),
    "without the first": lambda: stack("b", "c"),
    "without the last": lambda: stack("a", "b"),
}
FORMATS = {
    **files.NAMED_WRITERS,
    "object_checkpoint": files.object_checkpoint,
    "saved_model": files.saved_model,
}


@pytest.mark.parametrize(("kind", "scenario"), nets.latin(FORMATS, SILENT))
def test_what_cannot_be_filled_is_reported_and_nothing_is_changed(
    scenario, kind, tmp_path
):
    path = FORMATS[kind](stack("a", "b", "c"), tmp_path)
    make, layers_at_fault = SILENT[scenario]
    model = make()
    before = values(model)
    with pytest.raises(MismatchError) as error:
        tfdeep.restore(model, path)
    report = error.value.report
    faults = {*report.missing, *(m.path for m in report.mismatched)}
    assert {fault.partition("/")[0] for fault in faults} == layers_at_fault
    after = values(model)
    for name in before:
        assert before[name].tobytes() == after[name].tobytes()
    if len(layers_at_fault) < 3:
        report = tfdeep.restore(model, path, on_missing="skip", on_mismatch="skip")
        assert {*report.missing, *(m.path for m in report.mismatched)} == faults
        assert not faults & {match.path for match in report.restored}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("scenario", BY_NAME)
def test_names_decide_where_keras_goes_by_position(scenario, kind, tmp_path):
    written = stack("a", "b", "c")
    path = FORMATS[kind](written, tmp_path)
    model = BY_NAME[scenario]()
    report = tfdeep.restore(model, path)
    wanted = values(written)
    for name, value in values(model).items():
        assert value.tobytes() == wanted[name].tobytes()
    assert len(report.unused) == len(wanted) - len(model.weights)


@pytest.mark.parametrize("kind", ["weights_h5", "sharded_weights", "keras"])
@pytest.mark.parametrize(
    "change", [dense(use_bias=False), lambda name: Other(6, name=name)]
)
def test_numbered_variables_of_another_layer_are_not_taken(kind, change, tmp_path):
    path = FORMATS[kind](stack("a", "b", "c"), tmp_path)
    with pytest.raises(MismatchError, match="the file's layer"):
        tfdeep.restore(stack("a", "b", "c", b=change), path)
