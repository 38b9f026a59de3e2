"""`plan_restore` says what would be done, and `apply` does just that."""

import json
import shutil

import keras
import numpy as np
import pytest
from keras import layers

import tfdeep
from tests import nets
from tests.checkpoints import files
from tfdeep.checkpoints import Conversion, MismatchKind, RestorePlan, Steps
from tfdeep.errors import (
    InvalidArgumentError,
    MismatchError,
    ModelError,
    SelectionError,
    UnknownFormatError,
)


@pytest.fixture
def written():
    return files.trained(nets.functional)


@pytest.fixture(params=["weights_h5", "safetensors", "tf1_saver"])
def path(request, written, tmp_path):
    return files.WRITERS[request.param](written, tmp_path)


@pytest.fixture
def npz(tmp_path):
    """Writes arrays under names with "/" to a file of one name."""

    def write(**arrays):
        named = {name.replace("__", "/"): array for name, array in arrays.items()}
        np.savez(tmp_path / "net.npz", **named)
        return tmp_path / "net.npz"

    return write


def dense(units=3, name="hidden1", **arguments):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(units, name=name, **arguments)(inputs))


KERNEL, BIAS = np.arange(12, dtype="float32").reshape(4, 3), np.ones(3, "float32")
BOTH = {"hidden1__kernel": KERNEL, "hidden1__bias": BIAS}


def unchanged(model):
    """Whether the weights are what they were when this was called."""
    before = model.get_weights()
    return lambda: all(map(np.array_equal, before, model.get_weights()))


def test_a_plan_changes_nothing_until_it_is_applied(path, written):
    model = nets.functional()
    is_as_before = unchanged(model)
    plan = tfdeep.plan_restore(model, path, include="hidden[12]")
    assert is_as_before()
    report = plan.apply()
    assert not is_as_before()
    assert report.restored == plan.restored
    assert (plan.dry_run, report.dry_run) == (True, False)
    for name in ("hidden1", "hidden2"):
        np.testing.assert_array_equal(
            model.get_layer(name).kernel, written.get_layer(name).kernel
        )


def test_restore_is_a_plan_that_is_applied(path):
    model, other = nets.functional(), nets.functional()
    options = {"include": "hidden.*", "exclude": "hidden2"}
    plan = tfdeep.plan_restore(model, path, **options)
    dry = tfdeep.restore(other, path, **options, dry_run=True)
    assert str(plan) == str(dry)
    assert plan.to_json() == dry.to_json()
    assert plan.apply() == tfdeep.restore(other, path, **options)
    assert nets.largest_difference(model, other) > 0  # the rest differs
    for name in ("hidden1", "hidden3"):
        np.testing.assert_array_equal(
            model.get_layer(name).kernel, other.get_layer(name).kernel
        )


def test_a_plan_prints_shows_and_turns_into_json(npz):
    plan = tfdeep.plan_restore(dense(), npz(**BOTH, other=np.zeros(2)))
    assert isinstance(plan, RestorePlan)
    assert str(plan).startswith("Would restore 2 variables from")
    assert "hidden1/kernel" in plan._repr_html_()
    values = json.loads(plan.to_json())
    assert [entry["path"] for entry in values["restored"]] == [
        "hidden1/kernel",
        "hidden1/bias",
    ]
    assert values["unused"] == ["other"]
    assert "model" not in values and "_request" not in values
    assert "Request" not in repr(plan)


@pytest.mark.parametrize("as_text", [False, True])
def test_a_plan_is_followed_in_another_process(as_text, npz):
    plan = tfdeep.plan_restore(dense(), npz(**BOTH), include="hidden1/bias")
    followed = tfdeep.plan_restore(
        dense(), plan.source, plan=plan.to_json() if as_text else plan
    )
    assert followed.restored == plan.restored
    assert len(followed.apply().restored) == 1


def test_a_plan_that_fails_says_so_and_applying_it_is_an_error(npz):
    model = dense(5)
    is_as_before = unchanged(model)
    plan = tfdeep.plan_restore(model, npz(hidden1__kernel=KERNEL))
    assert plan.failure == "2 of 2 variables cannot be restored"
    assert str(plan).startswith("Would fail: 2 of 2")
    with pytest.raises(MismatchError, match="2 of 2 variables cannot") as error:
        plan.apply()
    assert error.value.report.failure == plan.failure
    assert is_as_before()


def test_a_plan_is_applied_as_often_as_one_likes(npz):
    model = dense()
    plan = tfdeep.plan_restore(model, npz(**BOTH))
    first = plan.apply()
    model.set_weights([np.zeros((4, 3)), np.zeros(3)])
    assert plan.apply() == first
    np.testing.assert_array_equal(model.get_weights()[0], KERNEL)


def test_values_are_those_that_the_file_has_when_the_plan_is_applied(npz):
    model = dense()
    plan = tfdeep.plan_restore(model, npz(**BOTH))
    npz(**{name: 2 * values for name, values in BOTH.items()})
    plan.apply()
    np.testing.assert_array_equal(model.get_weights()[0], 2 * KERNEL)


FILE_CHANGES = {
    "shape": {"hidden1__kernel": np.ones((4, 5), "f4"), "hidden1__bias": BIAS},
    "dtype": {"hidden1__kernel": KERNEL.astype("f8"), "hidden1__bias": BIAS},
    "missing": {"hidden1__bias": BIAS},
    "scope": {f"net__{name}": values for name, values in BOTH.items()},
    "more": {**BOTH, "other": BIAS},
}


@pytest.mark.parametrize("change", FILE_CHANGES)
@pytest.mark.parametrize("skip", [False, True])
def test_a_file_that_lists_something_else_by_now_is_an_error(change, skip, npz):
    model = dense()
    policy = "skip" if skip else "error"
    plan = tfdeep.plan_restore(
        model, npz(**BOTH), on_missing=policy, on_mismatch=policy
    )
    npz(**FILE_CHANGES[change])
    is_as_before = unchanged(model)
    with pytest.raises(MismatchError, match="changed since this plan") as error:
        plan.apply()
    assert "nothing was changed" in str(error.value)
    assert is_as_before()


def test_a_file_that_is_gone_is_an_error(npz, tmp_path):
    plan = tfdeep.plan_restore(dense(), npz(**BOTH))
    shutil.move(plan.source, tmp_path / "elsewhere.npz")
    with pytest.raises(UnknownFormatError, match="no such file"):
        plan.apply()


class TestModelsThatChange:
    def net(self, units=3, name="hidden1"):
        return keras.Sequential(
            [keras.Input((4,)), layers.Dense(units, name=name), layers.Dense(2)]
        )

    @pytest.mark.parametrize("change", ["shape", "name"])
    def test_another_layer_in_its_place_is_an_error(self, change, npz):
        model = self.net()
        plan = tfdeep.plan_restore(model, npz(**BOTH), include="hidden1")
        model.pop(), model.pop()
        if change == "shape":
            model.add(layers.Dense(5, name="hidden1"))
            expected = pytest.raises(MismatchError, match="changed since this plan")
        else:
            model.add(layers.Dense(3, name="first"))
            expected = pytest.raises(SelectionError, match="selects no variable")
        is_as_before = unchanged(model)
        with expected:
            plan.apply()
        assert is_as_before()

    def test_a_new_layer_of_the_same_name_and_shape_is_filled(self, npz):
        model = self.net()
        plan = tfdeep.plan_restore(model, npz(**BOTH), include="hidden1")
        model.pop(), model.pop()
        model.add(layers.Dense(3, name="hidden1"))
        plan.apply()
        np.testing.assert_array_equal(model.get_layer("hidden1").kernel, KERNEL)

    def test_a_model_without_its_layers_is_an_error(self, npz):
        model = self.net()
        plan = tfdeep.plan_restore(model, npz(**BOTH), include="hidden1")
        model.pop(), model.pop()
        with pytest.raises(ModelError, match="no weights"):
            plan.apply()


class TestWhatApplyTakes:
    def test_values_that_are_not_finite(self, npz):
        bad = {**BOTH, "hidden1__bias": np.full(3, np.nan, "f4")}
        model = dense()
        plan = tfdeep.plan_restore(model, npz(**bad))
        is_as_before = unchanged(model)
        with pytest.raises(MismatchError, match="3 NaN or infinite values") as error:
            plan.apply()
        (mismatch,) = error.value.report.mismatched
        assert (mismatch.kind, mismatch.found) == (MismatchKind.NONFINITE, "3")
        assert is_as_before()
        assert len(plan.apply(allow_nonfinite=True).restored) == 2

    def test_a_probe(self, npz):
        plan = tfdeep.plan_restore(dense(), npz(**BOTH))
        probe = plan.apply(probe=np.ones((2, 4), "f4")).probe
        np.testing.assert_array_equal(probe.after[0], [KERNEL.sum(0) + 1] * 2)

    def test_an_assignment_that_fails(self, npz, monkeypatch):
        model = dense()
        plan = tfdeep.plan_restore(model, npz(**BOTH))
        is_as_before = unchanged(model)
        assign, calls = keras.Variable.assign, []

        def failing(variable, value):
            calls.append(variable)
            if len(calls) == 2:
                raise MemoryError("injected")
            return assign(variable, value)

        monkeypatch.setattr(keras.Variable, "assign", failing)
        with pytest.raises(MemoryError):
            plan.apply()
        assert is_as_before()
        monkeypatch.undo()
        plan.apply()
        np.testing.assert_array_equal(model.get_weights()[0], KERNEL)


class TestReasonsAreValues:
    CASES = {  # noqa: RUF012 - a table
        MismatchKind.SHAPE: ({**BOTH, "hidden1__bias": np.ones(7, "f4")}, {}),
        MismatchKind.NEEDS_CAST: ({**BOTH, "hidden1__bias": np.ones(3)}, {}),
        MismatchKind.DTYPE: ({**BOTH, "hidden1__bias": BIAS.astype("c8")}, {}),
        MismatchKind.CONVERSION: (
            BOTH,
            {"transform": {"hidden1/bias": lambda b: 1 / 0}},
        ),
    }

    @pytest.mark.parametrize("kind", CASES)
    def test_each_kind(self, kind, npz):
        arrays, options = self.CASES[kind]
        plan = tfdeep.plan_restore(dense(), npz(**arrays), **options)
        (mismatch,) = plan.mismatched
        assert mismatch.kind is kind
        values = json.loads(plan.to_json())["mismatched"][0]
        assert values["kind"] == kind.value
        assert values["reason"] == mismatch.reason

    def test_of_layers(self, written, tmp_path):
        path = files.weights_h5(written, tmp_path)

        class Doubled(layers.Dense):
            pass

        def kinds(layer):
            inputs = keras.Input((nets.INPUTS,))
            model = keras.Model(inputs, layer(inputs))
            plan = tfdeep.plan_restore(model, path)
            return {mismatch.kind for mismatch in plan.mismatched}

        assert kinds(Doubled(6, name="hidden1")) == {MismatchKind.LAYER_CLASS}
        without = layers.Dense(6, use_bias=False, name="hidden1")
        assert kinds(without) == {MismatchKind.LAYER_VARIABLES}

    def test_what_is_done_to_values(self, npz):
        arrays = {"hidden1__weight": KERNEL.T.astype("f8"), "hidden1__bias": BIAS}
        plan = tfdeep.plan_restore(
            dense(),
            npz(**arrays),
            layout="torch",
            cast=True,
            transform={"hidden1/kernel": np.negative},
        )
        kernel, bias = plan.restored
        assert kernel.steps == Steps(Conversion.TRANSPOSED, True, "float64")
        assert kernel.note == "transposed, transformed, cast from float64"
        assert bias.steps == Steps()

    def test_the_conversion_of_a_plan_is_told_by_its_value_not_by_words(self, npz):
        """Square kernels fit either way: only the plan says which way it is."""
        path = npz(hidden1__weight=np.arange(16, dtype="f4").reshape(4, 4))
        plan = tfdeep.plan_restore(dense(4), path, include=".*kernel", layout="torch")
        values = json.loads(plan.to_json())
        values["restored"][0]["note"] = "these words may change"
        model = dense(4)
        tfdeep.restore(model, path, ".*kernel", layout="torch", plan=json.dumps(values))
        np.testing.assert_array_equal(
            model.get_weights()[0], np.arange(16).reshape(4, 4).T
        )
        values["restored"][0]["steps"]["conversion"] = "gates"
        with pytest.raises((MismatchError, InvalidArgumentError)):
            tfdeep.restore(
                model, path, ".*kernel", layout="torch", plan=json.dumps(values)
            )
        values["restored"][0]["steps"]["conversion"] = "by magic"
        with pytest.raises(InvalidArgumentError, match="This is not a plan"):
            tfdeep.restore(model, path, plan=json.dumps(values))


class TestNames:
    """Inside tfdeep names have "/" between components, whatever a file has."""

    TORCH = {  # noqa: RUF012 - a table
        "encoder.block.0.weight": KERNEL.T,
        "encoder.block.0.bias": BIAS,
    }

    @pytest.mark.parametrize(
        "rename",
        [
            {"encoder/block/0": "hidden1"},
            {"encoder.block.0": "hidden1"},
            {r"encoder\.block\.(\d)": "hidden1"},
            {r"encoder[.]block[.]0": "hidden1"},
            {r"encoder/([\w.]+)\.0": "hidden1"},
            lambda name: name.replace("encoder/block/0", "hidden1"),
            lambda name: "hidden1." + name.rpartition("/")[2],
        ],
        ids=lambda rename: rename.__name__ if callable(rename) else str(rename),
    )
    @pytest.mark.parametrize("kind", ["npz", "safetensors"])
    def test_rename_with_dots_or_slashes(self, rename, kind, npz, tmp_path):
        if kind == "npz":
            path = npz(**self.TORCH)
        else:
            from safetensors.numpy import save_file

            path = tmp_path / "net.safetensors"
            contiguous = {n: np.ascontiguousarray(a) for n, a in self.TORCH.items()}
            save_file(contiguous, str(path))
        model = dense()
        plan = tfdeep.plan_restore(model, path, layout="torch", rename=rename)
        assert [match.source for match in plan.restored] == list(self.TORCH)
        plan.apply()
        np.testing.assert_array_equal(model.get_weights()[0], KERNEL)

    def test_a_function_that_returns_no_name(self, npz):
        with pytest.raises(InvalidArgumentError, match="other than a name"):
            tfdeep.plan_restore(dense(), npz(**BOTH), rename=lambda name: None)

    def test_names_with_dots_in_a_file_of_keras_layout(self, npz):
        path = npz(**{"hidden1.kernel": KERNEL, "hidden1.bias": BIAS})
        plan = tfdeep.plan_restore(dense(), path)
        assert [match.source for match in plan.restored] == [
            "hidden1.kernel",
            "hidden1.bias",
        ]
        assert plan.renamed == ()

    @pytest.mark.parametrize("kind", ["weights_h5", "keras", "safetensors"])
    def test_layers_of_keras_whose_names_have_dots(self, kind, tmp_path):
        written, model = dense(name="block.1"), dense(name="block.1")
        plan = tfdeep.plan_restore(model, files.WRITERS[kind](written, tmp_path))
        assert all(match.source.startswith("block.1/") for match in plan.restored)
        plan.apply()
        assert nets.largest_difference(model, written) == 0

    def test_two_names_that_differ_in_their_separators_only(self, npz):
        path = npz(**BOTH, **{"hidden1.bias": BIAS})
        with pytest.raises(InvalidArgumentError, match="would both be called"):
            tfdeep.plan_restore(dense(), path)

    def test_inspect_shows_names_as_the_file_has_them(self, npz):
        from tfdeep.checkpoints._inspect import inspect

        path = npz(**self.TORCH)
        assert [i.name for i in inspect(path).variables] == list(self.TORCH)
        for pattern in ("encoder/block", r"encoder\.block\.0", "encoder.block.0.bias"):
            found = [info.name for info in inspect(path, pattern).variables]
            assert found == list(self.TORCH)[pattern.endswith("bias") :]
