"""Each rule fires on what it is about, and on nothing near it."""

import keras
import numpy as np
import pytest
from keras import layers

import tfdeep
from tests import nets
from tfdeep.errors import InvalidArgumentError, ModelError
from tfdeep.surgery import check_setup
from tfdeep.surgery._setup_rules import RULES

SPARSE = keras.losses.SparseCategoricalCrossentropy


def stack(*made, shape=(8,)):
    return keras.Sequential([keras.Input(shape), *made])


def dense(name, **options):
    options = {"kernel_initializer": keras.initializers.HeNormal(), **options}
    return layers.Dense(4, name=name, **options)


def compiled(model, loss, **options):
    model.compile(loss=loss, **options)
    return model


def several(count, **options):
    return stack(*(dense(f"d{i}", **options) for i in range(count)), dense("out"))


def shared_initializer():
    he = keras.initializers.HeNormal(seed=1)
    made = [layers.Dense(8, name=f"d{i}", kernel_initializer=he) for i in (1, 2)]
    return stack(*made)


def cell_with_batch_norm():
    class Cell(layers.Layer):
        state_size = output_size = 3

        def __init__(self):
            super().__init__(name="cell")
            self.norm = layers.BatchNormalization(name="norm")

        def build(self, shape):
            self.norm.build((None, 3))

        def call(self, x, states, training=None):
            return self.norm(x, training=training), states

    return stack(layers.RNN(Cell(), name="rnn"), shape=(5, 3))


def gated():
    """Squeeze and excitation: sigmoids that are gates, deep down."""
    inputs = x = keras.Input((4,))
    for i in range(6):
        gate = dense(f"gate{i}", activation="sigmoid")(x)
        x = layers.Multiply()([x, gate])
    return keras.Model(inputs, dense("out")(x))


def normalized(activation, **options):
    made = []
    for i in range(6):
        made += [
            dense(f"d{i}", use_bias=False, **options),
            layers.BatchNormalization(),
            layers.Activation(activation),
        ]
    return stack(*made, dense("out"))


def norm(**options):
    return layers.BatchNormalization(name="norm", **options)


def conv(name, **options):
    return layers.Conv2D(4, 3, name=name, use_bias=False, **options)


# By rule: models (and batch size) with the layers it must object to.
FIRES = {
    "bias_before_batch_norm": [
        (lambda: stack(dense("a"), norm()), {"a"}),
        (
            lambda: stack(layers.Conv2D(4, 3, name="a"), norm(), shape=(6, 6, 2)),
            {"a"},
        ),
    ],
    "batch_norm_after_activation": [
        (
            lambda: stack(conv("a", activation="relu"), norm(), shape=(6, 6, 2)),
            {"norm"},
        ),
        (lambda: stack(conv("a"), layers.ReLU(), norm(), shape=(6, 6, 2)), {"norm"}),
    ],
    "batch_norm_in_recurrent_net": [
        (cell_with_batch_norm, {"rnn/cell/norm"}),
        (
            lambda: stack(
                layers.GRU(3, return_sequences=True),
                norm(),
                layers.GRU(2),
                shape=(5, 2),
            ),
            {"norm"},
        ),
    ],
    "selu_without_lecun": [
        (lambda: several(1, activation="selu"), {"d0"}),
        (lambda: stack(dense("a"), layers.Activation("selu"), dense("o")), {"a"}),
    ],
    "selu_with_dropout": [
        (
            lambda: stack(
                dense("a", activation="selu"),
                layers.Dropout(0.1, name="drop"),
                dense("out"),
            ),
            {"drop"},
        )
    ],
    "dropout_before_batch_norm": [
        (lambda: stack(layers.Dropout(0.5, name="drop"), norm()), {"drop"}),
        (
            lambda: stack(
                layers.Dropout(0.5, name="drop"), dense("a"), norm(), dense("out")
            ),
            {"drop"},
        ),
    ],
    "sigmoid_in_deep_net": [
        (
            lambda: several(
                4, activation="sigmoid", kernel_initializer="glorot_uniform"
            ),
            {"d0", "d1", "d2", "d3"},
        )
    ],
    "initializer_mismatch": [
        (
            lambda: several(10, activation="relu", kernel_initializer="glorot_uniform"),
            {f"d{i}" for i in range(10)},
        ),
        (
            lambda: several(5, activation="tanh", kernel_initializer="he_normal"),
            {f"d{i}" for i in range(5)},
        ),
    ],
    "same_initial_values": [(shared_initializer, {"d1/kernel", "d2/kernel"})],
    "equal_units": [
        (lambda: stack(dense("a", kernel_initializer="ones"), dense("o")), {"a/kernel"})
    ],
    "activation_and_loss": [
        (
            lambda: compiled(
                stack(dense("o", activation="softmax")), SPARSE(from_logits=True)
            ),
            {"o"},
        ),
        (lambda: compiled(stack(dense("o")), SPARSE()), {"o"}),
        (
            lambda: compiled(stack(dense("o")), "sparse_categorical_crossentropy"),
            {"o"},
        ),
        (
            lambda: compiled(
                stack(dense("a"), layers.Softmax(name="o")), SPARSE(from_logits=True)
            ),
            {"o"},
        ),
    ],
    "softmax_of_one": [
        (lambda: stack(layers.Dense(1, name="o", activation="softmax")), {"o"})
    ],
}

# Models that come near and are well: no rule at all objects.
WELL = {
    "no bias": lambda: stack(dense("a", use_bias=False), norm(), dense("o")),
    "bias of an activation before the norm": lambda: stack(
        dense("a", activation="relu"), norm(), dense("o")
    ),
    "bias with a norm that has none": lambda: stack(dense("a"), norm(center=False)),
    "layer norm": lambda: stack(dense("a"), layers.LayerNormalization(), dense("o")),
    "dense relu before the norm": lambda: stack(
        dense("a", activation="relu"), norm(), dense("o")
    ),
    "last state of a recurrent layer": lambda: stack(
        layers.GRU(3), norm(), dense("o"), shape=(5, 2)
    ),
    "selu as it should be": lambda: stack(
        dense("a", activation="selu", kernel_initializer="lecun_normal"),
        layers.AlphaDropout(0.1),
        dense("o"),
    ),
    "selu with somebody's own initializer": lambda: stack(
        dense(
            "a",
            activation="selu",
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.3),
        )
    ),
    "dropout after the last norm": lambda: stack(
        dense("a", use_bias=False), norm(), layers.Dropout(0.5), dense("o")
    ),
    "dropout at rate 0": lambda: stack(layers.Dropout(0.0), norm()),
    "dropped branches": lambda: stack(
        layers.Dropout(0.2, noise_shape=(None, 1)), norm(), dense("o")
    ),
    "three sigmoids": lambda: several(
        3, activation="sigmoid", kernel_initializer="glorot_uniform"
    ),
    "gates": gated,
    "deep tanh": lambda: several(
        20, activation="tanh", kernel_initializer="glorot_uniform"
    ),
    "deep relu": lambda: several(20, activation="relu"),
    "four relus of glorot": lambda: several(
        4, activation="relu", kernel_initializer="glorot_uniform"
    ),
    "deep and normalized": lambda: normalized(
        "sigmoid", kernel_initializer="he_normal"
    ),
    "deep, normalized, glorot": lambda: normalized(
        "relu", kernel_initializer="glorot_uniform"
    ),
    "zero last layer": lambda: stack(
        dense("a"), dense("b", kernel_initializer="zeros")
    ),
    "two identities": lambda: stack(
        layers.Dense(8, kernel_initializer="identity"),
        layers.Dense(8, kernel_initializer="identity"),
    ),
    "logits": lambda: compiled(stack(dense("o")), SPARSE(from_logits=True)),
    "probabilities": lambda: compiled(
        stack(dense("o", activation="softmax")), SPARSE()
    ),
    "regression": lambda: compiled(stack(dense("o")), "mse"),
    "sigmoid of one": lambda: compiled(
        stack(layers.Dense(1, activation="sigmoid")), "binary_crossentropy"
    ),
    "clipping on one device": lambda: compiled(
        stack(dense("o")), "mse", optimizer=keras.optimizers.SGD(clipnorm=1.0)
    ),
    "subclassed": nets.subclassed,
    "dnn": lambda: tfdeep.models.dnn((8,), [4] * 6, 3, batch_norm=True),
}

CASES = [
    pytest.param(rule, *case, id=f"{rule}-{i}")
    for rule, cases in FIRES.items()
    for i, case in enumerate(cases)
]


@pytest.mark.parametrize(("rule", "make", "layers_meant"), CASES)
def test_a_rule_fires_on_what_it_is_about(rule, make, layers_meant):
    findings = [f for f in check_setup(make()).findings if f.rule == rule]
    assert [set(f.layers) for f in findings] == [layers_meant]
    assert findings[0].problem and findings[0].remedy and findings[0].source


@pytest.mark.parametrize("case", WELL)
def test_nothing_is_said_of_models_that_are_well(case):
    assert check_setup(WELL[case](), batch_size=32).findings == ()


def test_every_rule_is_tested_and_described():
    others = {"small_batch", "clipped_by_replica"}  # in tests of their own
    assert {rule.name for rule in RULES} == {*FIRES, *others}
    for rule in RULES:
        assert f"| {rule.name} |" in check_setup.__doc__


@pytest.mark.parametrize(("batch_size", "fires"), [(2, True), (15, True), (16, False)])
def test_batches_too_small_for_statistics(batch_size, fires):
    model = stack(dense("a", use_bias=False), norm(), dense("o"))
    report = check_setup(model, batch_size=batch_size)
    assert [f.rule for f in report.findings] == ["small_batch"] * fires
    assert "small_batch" in report.rules
    assert "small_batch" not in check_setup(model).rules
    model.get_layer("norm").trainable = False  # it uses its moving averages then
    assert check_setup(model, batch_size=batch_size).findings == ()


def test_what_counts_on_two_replicas():
    def model(**options):
        with nets.two_replicas().scope():
            made = stack(dense("a", use_bias=False), norm(**options), dense("o"))
            optimizer = keras.optimizers.Adam(global_clipnorm=1.0)
            return compiled(made, "mse", optimizer=optimizer)

    report = check_setup(model(), batch_size=24)
    assert [f.rule for f in report.findings] == ["small_batch", "clipped_by_replica"]
    assert "statistics of 12 examples" in report.findings[0].problem
    assert "2 replicas" in report.findings[1].problem
    report = check_setup(model(synchronized=True), batch_size=24)
    assert [f.rule for f in report.findings] == ["clipped_by_replica"]


def test_rules_look_into_inner_models_and_across_their_borders():
    inner = stack(dense("a"), norm())
    inner.name = "inner"
    inputs = keras.Input((8,))
    x = dense("first")(inputs)
    top = keras.Sequential([norm(), dense("o")], name="top")
    outer = keras.Model(inputs, top(inner(layers.Concatenate()([x, x]))))
    assert check_setup(outer).findings[0].layers == ("inner/a",)
    straight = keras.Model(inputs, top(x))
    assert check_setup(straight).findings[0].layers == ("first",)


def test_nothing_is_changed_and_the_report_prints():
    model = stack(dense("a"), norm(), dense("o"))
    before = model.get_weights()
    report = check_setup(model, batch_size=4)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    text = str(report)
    assert "2 objections by 14 rules" in text
    assert "use_bias=False" in text
    assert "arXiv:1502.03167" in text
    assert max(map(len, text.splitlines())) <= 80
    assert report.to_dict()["findings"][0]["rule"] == "bias_before_batch_norm"


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("MobileNetV2", []),
        # Its convolutions have biases that batch normalization takes out again.
        ("ResNet50", ["bias_before_batch_norm"]),
        ("EfficientNetB0", []),
        # Thirteen convolutions and two dense layers with ReLU and Glorot's scale.
        pytest.param("VGG16", ["initializer_mismatch"], marks=pytest.mark.slow),
    ],
)
def test_well_known_networks(name, rules):
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=(32, 32, 3), classes=10)
    model.compile("adam", "sparse_categorical_crossentropy")
    report = check_setup(model, batch_size=32)
    assert [finding.rule for finding in report.findings] == rules


def test_a_few_relu_layers_with_the_default_initializer_are_left_alone():
    assert check_setup(several(9, activation="relu")).findings == ()


def test_what_cannot_be_checked_is_refused():
    for size in (0, -3, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="batch_size"):
            check_setup(nets.functional(), batch_size=size)
    with pytest.raises(ModelError, match="no weights"):
        check_setup(keras.Sequential([layers.Dense(3)]))
