import json
import os
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import layers

import tfdeep
from tests import nets
from tests.checkpoints import files
from tfdeep.errors import (
    InvalidArgumentError,
    MismatchError,
    ModelError,
    SelectionError,
)

MODELS = {
    "functional": nets.functional,
    "sequential": nets.sequential,
    "subclassed": nets.subclassed,
}
NAMELESS = ("object_checkpoint", "managed_checkpoint", "saved_model")
each_format = pytest.mark.parametrize("kind", files.WRITERS)


values = nets.values


# Each kind of model once on either side; all other pairs are slow.
@each_format
@pytest.mark.parametrize(("source", "target"), nets.latin(MODELS, MODELS, [1]))
def test_chosen_layers_come_from_every_format_into_every_kind_of_model(
    kind, source, target, tmp_path
):
    if source == "subclassed" and kind in NAMELESS:
        pytest.skip("Keras writes these variables without the names of their layers")
    written = files.trained(MODELS[source])
    path = files.WRITERS[kind](written, tmp_path)
    model = MODELS[target]()
    before, wanted = values(model), values(written)

    report = tfdeep.restore(model, path, include="hidden[13]")

    expected = [f"hidden{i}/{name}" for i in (1, 3) for name in ("kernel", "bias")]
    assert [match.path for match in report.restored] == expected
    for name, value in values(model).items():
        chosen = wanted if name in expected else before
        np.testing.assert_array_equal(value, chosen[name])
    assert report.missing == report.mismatched == ()
    assert report.dry_run is False


@each_format
def test_batch_normalization_and_its_averages(kind, tmp_path):
    written = files.trained(nets.regularized)
    path = files.WRITERS[kind](written, tmp_path)
    model = nets.regularized()
    tfdeep.restore(model, path)
    for a, b in zip(model.get_weights(), written.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def composite():
    """Layers inside layers, inner models, and weights that are numbered alike."""
    inputs = keras.Input((6, 4))
    base = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.Conv1D(4, 3, padding="same", name="conv"),
            layers.DepthwiseConv1D(3, padding="same", name="depthwise"),
            layers.LayerNormalization(name="norm"),
        ],
        name="base",
    )
    x = base(inputs)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.Bidirectional(layers.LSTM(3, name="lstm"), name="both")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(2, name="outputs")(x))


@pytest.mark.parametrize(
    "kind", ["weights_h5", "keras", "object_checkpoint", "saved_model"]
)
def test_layers_within_layers(kind, tmp_path):
    written, model = composite(), composite()
    path = files.WRITERS[kind](written, tmp_path)
    report = tfdeep.restore(model, path)
    assert len(report.restored) == len(model.weights)
    for a, b in zip(model.get_weights(), written.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["weights_h5", "keras"])
def test_a_half_precision_model(kind, tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    try:
        written, model = nets.functional(), nets.functional()
    finally:
        keras.config.set_dtype_policy("float32")
    tfdeep.restore(model, files.WRITERS[kind](written, tmp_path))
    for a, b in zip(model.weights, written.weights, strict=True):
        assert a.dtype == "bfloat16"
        assert (a.numpy() == b.numpy()).all()


class TestScopesAndNames:
    def test_a_scope_around_all_names_is_found(self, tmp_path):
        written = nets.functional()
        path = files.tf1_saver(written, tmp_path, scope="dnn/")
        model = nets.functional()
        report = tfdeep.restore(model, path, include="hidden[123]")
        assert report.restored[0].source == "dnn/hidden1/kernel"
        np.testing.assert_array_equal(
            model.get_layer("hidden2").kernel, written.get_layer("hidden2").kernel
        )

    def test_the_old_single_file_format(self, tmp_path):
        written = nets.functional()
        path = files.tf1_saver_v1(written, tmp_path)
        model = nets.functional()
        tfdeep.restore(model, path)
        assert nets.largest_difference(model, written) == 0

    def test_the_index_file_names_the_checkpoint(self, tmp_path):
        written = nets.functional()
        path = files.object_checkpoint(written, tmp_path)
        model = nets.functional()
        tfdeep.restore(model, f"{path}.index")
        assert nets.largest_difference(model, written) == 0

    @pytest.mark.parametrize("fitted", [False, True])
    def test_a_subclassed_model_is_named_by_its_attributes(self, fitted, tmp_path):
        """In an object-based checkpoint Keras leaves out the names of its layers."""

        class Net(keras.Model):
            def __init__(self):
                super().__init__()
                self.hidden1 = layers.Dense(6, name="hidden1")
                self.last = layers.Dense(nets.CLASSES, name="outputs")

            def call(self, x):
                return self.last(self.hidden1(x))

        written, model = Net(), Net()
        for net in (written, model):
            net(np.zeros((1, nets.INPUTS)))
        if fitted:
            written.compile("adam", nets.LOSS)
            written.fit(nets.dataset(), verbose=0)
        path = files.object_checkpoint(written, tmp_path)
        tfdeep.restore(model, path, include="hidden1")
        np.testing.assert_array_equal(model.hidden1.kernel, written.hidden1.kernel)
        tfdeep.restore(model, path, include="outputs", rename={"model/last": "outputs"})
        assert nets.largest_difference(model, written) == 0

    def two_copies(self, directory):
        import tensorflow as tf

        first, second = nets.sequential(), nets.sequential()
        path = str(directory / "two")
        tf.train.Checkpoint(first=first, second=second).write(path)
        return path, first, second

    def test_two_scopes_that_would_do_are_an_error(self, tmp_path):
        path, first, _ = self.two_copies(tmp_path)
        model = nets.functional()
        with pytest.raises(InvalidArgumentError, match="more than once"):
            tfdeep.restore(model, path)
        report = tfdeep.restore(model, path, rename={first.name: ""})
        assert report.restored[0].source == f"{first.name}/hidden1/kernel"
        assert nets.largest_difference(model, first) == 0

    def test_rename_by_regular_expression(self, tmp_path):
        written = keras.Sequential(
            [
                keras.Input((nets.INPUTS,)),
                *[layers.Dense(6, name=f"fc{i}") for i in (1, 2, 3)],
                layers.Dense(nets.CLASSES, name="logits"),
            ]
        )
        path = files.weights_h5(written, tmp_path)
        model = nets.functional()
        rename = {r"fc(\d)": r"hidden\1", "logits": "outputs"}
        report = tfdeep.restore(model, path, rename=rename)
        assert nets.largest_difference(model, written) == 0
        assert report.restored[0].source == "fc1/0"

    def test_rename_by_function(self, tmp_path):
        written = nets.functional()
        path = files.tf1_saver(written, tmp_path, scope="a/b/")
        model = nets.functional()
        tfdeep.restore(model, path, rename=lambda name: name.removeprefix("a/b/"))
        assert nets.largest_difference(model, written) == 0

    def test_a_rename_that_matches_nothing_is_an_error(self, tmp_path):
        path = files.weights_h5(nets.functional(), tmp_path)
        with pytest.raises(SelectionError, match="`rename` matches no name"):
            tfdeep.restore(nets.functional(), path, rename={"fc1": "hidden1"})

    def test_a_rename_onto_a_name_that_exists_is_an_error(self, tmp_path):
        path = files.weights_h5(nets.functional(), tmp_path)
        with pytest.raises(InvalidArgumentError, match="would both be called"):
            tfdeep.restore(nets.functional(), path, rename={"hidden2": "hidden3"})


def changed(**changes):
    """The functional model with some of its layers made otherwise."""
    made = {
        name: layers.Dense(6, activation="relu", name=name)
        for name in ("hidden1", "hidden2", "hidden3")
    }
    made["outputs"] = layers.Dense(nets.CLASSES, name="outputs")
    made |= changes
    inputs = x = keras.Input((nets.INPUTS,))
    for layer in made.values():
        if layer is not None:
            x = layer(x)
    return keras.Model(inputs, x)


class Doubled(layers.Dense):
    """A layer that names and shapes its weights as `Dense`, and means another thing."""


MISFITS = {
    "shape": ({"hidden3": layers.Dense(7, name="hidden3")}, "shape (6, 6) in the file"),
    "renamed": ({"hidden2": layers.Dense(6, name="middle")}, "missing in the file"),
    "no bias": (
        {"hidden2": layers.Dense(6, use_bias=False, name="hidden2")},
        "2 variables",
    ),
    "dtype": (
        {"hidden2": layers.Dense(6, name="hidden2", dtype="float64")},
        "dtype float32 in the file, float64",
    ),
    "added": ({"more": layers.Dense(nets.CLASSES, name="more")}, "missing in the file"),
    "class": ({"hidden2": Doubled(6, name="hidden2")}, "the file's layer is a dense"),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("kind", ["weights_h5", "keras", "tf1_saver"])
def test_what_does_not_fit_is_an_error_that_changes_nothing(misfit, kind, tmp_path):
    if kind == "tf1_saver" and misfit in ("no bias", "class"):
        pytest.skip(
            "this format names each variable, so nothing can be taken for another"
        )
    path = files.WRITERS[kind](nets.functional(), tmp_path)
    changes, reason = MISFITS[misfit]
    model = changed(**changes)
    before = model.get_weights()
    with pytest.raises(MismatchError) as error:
        tfdeep.restore(model, path)
    assert reason in str(error.value)
    assert "nothing was changed" in str(error.value)
    report = error.value.report
    assert report.missing or report.mismatched
    assert report == tfdeep.restore(model, path, dry_run=True)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_layers_of_one_shape_in_another_order_go_to_their_names(tmp_path):
    written = nets.functional()
    path = files.weights_h5(written, tmp_path)
    swapped = changed(
        hidden2=layers.Dense(6, name="hidden3"), hidden3=layers.Dense(6, name="hidden2")
    )
    tfdeep.restore(swapped, path)
    for name in ("hidden2", "hidden3"):
        np.testing.assert_array_equal(
            swapped.get_layer(name).kernel, written.get_layer(name).kernel
        )


def test_a_normalization_with_other_parts_is_not_filled_by_position(tmp_path):
    def model(**arguments):
        inputs = keras.Input((4,))
        return keras.Model(
            inputs, layers.BatchNormalization(name="norm", **arguments)(inputs)
        )

    path = files.weights_h5(model(scale=False), tmp_path)
    with pytest.raises(MismatchError, match="the file's layer has 3 variables"):
        tfdeep.restore(model(), path)


def test_a_pattern_that_selects_nothing(tmp_path):
    path = files.weights_h5(nets.functional(), tmp_path)
    with pytest.raises(SelectionError, match="nearest names: hidden3"):
        tfdeep.restore(nets.functional(), path, include="hidden[789]")


def test_a_model_that_is_not_built(tmp_path):
    path = files.weights_h5(nets.functional(), tmp_path)
    with pytest.raises(ModelError, match="has no weights yet"):
        tfdeep.restore(keras.Sequential([layers.Dense(3)]), path)


def test_two_variables_of_one_path(tmp_path):
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = layers.Dense(2, name="same"), layers.Dense(2, name="same")

        def call(self, x):
            return self.a(x) + self.b(x)

    model = Twice()
    model(np.zeros((1, 2)))
    path = files.weights_h5(model, tmp_path)
    with pytest.raises(InvalidArgumentError, match="the same path"):
        tfdeep.restore(model, path)


def test_the_first_layers_may_be_restored_beside_others_that_do_not_fit(tmp_path):
    path = files.weights_h5(nets.functional(), tmp_path)
    model = changed(outputs=layers.Dense(99, name="outputs"))
    report = tfdeep.restore(model, path, exclude="outputs")
    assert len(report.restored) == 6
    assert report.unused == ("outputs/0", "outputs/1")


def test_a_dry_run_changes_nothing_and_tells_all(tmp_path):
    path = files.weights_h5(nets.functional(), tmp_path)
    model = changed(hidden3=layers.Dense(7, name="hidden3"))
    before = model.get_weights()
    report = tfdeep.restore(model, path, dry_run=True)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [m.path for m in report.mismatched] == [
        "hidden3/kernel",
        "hidden3/bias",
        "outputs/kernel",
    ]
    assert len(report.restored) == 5
    assert json.loads(report.to_json())["dry_run"] is True


def test_a_dry_run_says_that_the_call_would_fail(tmp_path):
    path = files.weights_h5(nets.functional(), tmp_path)
    model = changed(
        hidden3=layers.Dense(7, name="hidden3"),
        more=layers.Dense(nets.CLASSES, name="more"),
    )

    def heading(**arguments):
        report = tfdeep.restore(model, path, dry_run=True, **arguments)
        return str(report).split(" from")[0], bool(report.failure)

    fails = "Would fail: 5 of 10 variables cannot be restored", True
    assert heading() == fails
    with pytest.raises(MismatchError) as error:
        tfdeep.restore(model, path)
    assert str(error.value.report).startswith(fails[0])
    assert heading(on_missing="skip") == (
        "Would fail: 3 of 10 variables cannot be restored",
        True,
    )
    skip = {"on_missing": "skip", "on_mismatch": "skip"}
    assert heading(**skip) == ("Would restore 5 variables", False)
    assert heading(**skip, min_restored=6) == (
        "Would fail: only 5 of 10 variables can be restored",
        True,
    )
    assert heading(include="hidden1/bias") == ("Would restore 1 variable", False)


def test_the_arguments_swapped(tmp_path):
    path = files.weights_h5(nets.functional(), tmp_path)
    with pytest.raises(InvalidArgumentError, match="must be a model") as error:
        tfdeep.restore(path, nets.functional())
    assert "swap the first two arguments" in str(error.value)
    with pytest.raises(InvalidArgumentError, match="must be a model") as error:
        tfdeep.restore(path, path)
    assert "swap the" not in str(error.value)


def test_the_remedy_names_what_can_help(tmp_path):
    path = files.weights_h5(nets.functional(), tmp_path)
    cases = {
        "added": ['`on_missing="skip"`', "`rename`"],
        "shape": ['`on_mismatch="skip"`', "`layout`"],
        "dtype": ['`on_mismatch="skip"`', "`cast=True`"],
        "class": ['`on_mismatch="skip"`'],
    }
    options = sorted({option for named in cases.values() for option in named})
    for misfit, named in cases.items():
        with pytest.raises(MismatchError) as error:
            tfdeep.restore(changed(**MISFITS[misfit][0]), path)
        remedy = str(error.value).rpartition("Fix:")[2]
        assert [o for o in options if o in remedy] == sorted(named), misfit
        assert "narrow `include`" in remedy


@pytest.mark.parametrize("fails_at", range(8))
def test_an_assignment_that_fails_leaves_all_variables_as_they_were(
    fails_at, tmp_path, monkeypatch
):
    path = files.weights_h5(nets.functional(), tmp_path)
    model = nets.functional()
    before = model.get_weights()
    calls = iter(range(100))
    assign = keras.Variable.assign

    def failing(variable, value):
        if next(calls) == fails_at:
            raise MemoryError("injected")
        return assign(variable, value)

    monkeypatch.setattr(keras.Variable, "assign", failing)
    with pytest.raises(MemoryError, match="injected"):
        tfdeep.restore(model, path)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@each_format
@pytest.mark.parametrize(
    "system", ["this one", pytest.param("without preadv", marks=pytest.mark.slow)]
)
def test_several_threads_may_read_from_one_file(kind, system, tmp_path, monkeypatch):
    if system == "without preadv":  # as on Windows
        monkeypatch.delattr(os, "preadv", raising=False)
    path = files.WRITERS[kind](files.trained(nets.functional), tmp_path)
    with tfdeep.checkpoints.open(path) as reader:
        names = [info.name for info in reader.variables] * 8
        wanted = {name: reader.read(name) for name in names}
        with ThreadPoolExecutor(8) as pool:
            for name, values in zip(names, pool.map(reader.read, names), strict=True):
                np.testing.assert_array_equal(values, wanted[name])


def test_the_report_fits_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = files.tf1_saver(nets.functional(), tmp_path)
    text = str(tfdeep.restore(nets.functional(), path, include="hidden[123]"))
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("Restored 6 variables from")
    assert "not used: outputs/bias, outputs/kernel" in text
