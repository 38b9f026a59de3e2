"""What `restore` does beyond names that are equal."""

import json
import os
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

import tfdeep
from tests import nets
from tests.checkpoints import files
from tfdeep.errors import InvalidArgumentError, LimitError, MismatchError, ModelError

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def net(*units, first=4, dtype="float32"):
    inputs = x = keras.Input((first,))
    for i, count in enumerate(units, 1):
        x = layers.Dense(count, name=f"hidden{i}", dtype=dtype)(x)
    return keras.Model(inputs, x)


def npz(directory, **arrays):
    path = directory / "net.npz"
    np.savez(path, **{name.replace("__", "/"): a for name, a in arrays.items()})
    return path


def arrays(first=4, units=3, dtype="float32"):
    rng = np.random.default_rng(0)
    return {
        "hidden1__kernel": rng.normal(size=(first, units)).astype(dtype),
        "hidden1__bias": rng.normal(size=units).astype(dtype),
    }


class TestSkipping:
    def test_missing_variables_are_left_alone_and_reported(self, tmp_path):
        path, model = npz(tmp_path, **arrays()), net(3, 3)
        before = model.get_layer("hidden2").get_weights()
        report = tfdeep.restore(model, path, on_missing="skip")
        assert report.missing == ("hidden2/kernel", "hidden2/bias")
        assert len(report.restored) == 2
        for a, b in zip(before, model.get_layer("hidden2").get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert "missing in the file" in str(report)

    def test_mismatches_are_still_errors(self, tmp_path):
        path = npz(tmp_path, **arrays(units=5))
        with pytest.raises(MismatchError):
            tfdeep.restore(net(3), path, on_missing="skip")
        report = tfdeep.restore(
            net(5, 3),
            npz(tmp_path, **arrays(units=5), hidden2__kernel=np.zeros((9, 9), "f4")),
            on_missing="skip",
            on_mismatch="skip",
        )
        assert [m.path for m in report.mismatched] == ["hidden2/kernel"]

    @pytest.mark.parametrize("least", [1, 3])
    def test_too_few_are_an_error(self, least, tmp_path):
        path = npz(tmp_path, **arrays()) if least == 3 else npz(tmp_path, x=np.ones(1))
        with pytest.raises(MismatchError, match=f"min_restored={least}"):
            tfdeep.restore(net(3, 3), path, on_missing="skip", min_restored=least)

    def test_another_word_is_an_error(self, tmp_path):
        with pytest.raises(InvalidArgumentError, match="on_missing='ignore'"):
            tfdeep.restore(net(3), tmp_path, on_missing="ignore")


class TestValues:
    def test_a_transform_makes_what_fits(self, tmp_path):
        path = npz(tmp_path, **arrays(first=6))
        model = net(3)
        report = tfdeep.restore(
            model, path, transform={"hidden1/kernel": lambda kernel: kernel[:4]}
        )
        np.testing.assert_array_equal(
            model.get_layer("hidden1").kernel, arrays(first=6)["hidden1__kernel"][:4]
        )
        assert [m.path for m in report.transformed] == ["hidden1/kernel"]
        assert "transformed" in str(report)

    def test_what_a_transform_made_stays_its_own(self, tmp_path):
        kept = np.ones(4096, np.float32)
        kept = kept[-kept.ctypes.data % 64 // 4 :][:3]  # where a tensor may begin
        transform = {"hidden1/bias": lambda _: kept}
        model = net(3)
        tfdeep.restore(model, npz(tmp_path, **arrays()), transform=transform)
        bias = model.get_layer("hidden1").bias
        np.testing.assert_array_equal(bias, 1)
        kept[:] = 5
        np.testing.assert_array_equal(bias, 1)

    def test_a_transform_that_fails_changes_nothing(self, tmp_path):
        path, model = npz(tmp_path, **arrays()), net(3)
        before = model.get_weights()

        def refuse(values):
            raise RuntimeError("no such thing")

        with pytest.raises(MismatchError, match="no such thing"):
            tfdeep.restore(model, path, transform={"hidden1/bias": refuse})
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_dtypes_are_converted_by_request_only(self, tmp_path):
        path, model = npz(tmp_path, **arrays(dtype="float64")), net(3)
        with pytest.raises(MismatchError, match="`cast=True` converts"):
            tfdeep.restore(model, path)
        report = tfdeep.restore(model, path, cast=True)
        assert report.restored[0].note == "cast from float64"
        np.testing.assert_allclose(
            model.get_layer("hidden1").bias, arrays()["hidden1__bias"], rtol=1e-6
        )

    def test_what_a_transform_makes_may_be_cast(self, tmp_path):
        def doubled(kernel):
            kernel *= 2  # in place
            return kernel.astype("float64")

        model = net(3)
        transform = {"hidden1/kernel": doubled}
        tfdeep.restore(model, npz(tmp_path, **arrays()), transform=transform, cast=True)
        expected = 2 * arrays()["hidden1__kernel"]
        np.testing.assert_array_equal(model.get_layer("hidden1").kernel, expected)

    def test_whole_numbers_become_floating_point_and_not_the_other_way(self, tmp_path):
        whole = {n: np.arange(a.size).reshape(a.shape) for n, a in arrays().items()}
        model = net(3)
        tfdeep.restore(model, npz(tmp_path, **whole), cast=True)
        np.testing.assert_array_equal(model.get_layer("hidden1").bias, [0, 1, 2])
        imaginary = {name: a.astype("complex64") for name, a in arrays().items()}
        with pytest.raises(MismatchError, match="complex64"):
            tfdeep.restore(model, npz(tmp_path, **imaginary), cast=True)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_values_that_are_not_finite_are_an_error(self, bad, tmp_path):
        broken = arrays()
        broken["hidden1__kernel"][1, 2] = bad
        path, model = npz(tmp_path, **broken), net(3)
        before = model.get_weights()
        with pytest.raises(MismatchError, match="1 NaN or infinite values"):
            tfdeep.restore(model, path)
        np.testing.assert_array_equal(before[0], model.get_weights()[0])
        report = tfdeep.restore(model, path, on_mismatch="skip")
        assert [m.path for m in report.restored] == ["hidden1/bias"]
        np.testing.assert_array_equal(before[0], model.get_weights()[0])
        tfdeep.restore(model, path, allow_nonfinite=True)
        np.testing.assert_array_equal(model.get_weights()[0], broken["hidden1__kernel"])

    def test_a_cast_that_overflows_is_an_error(self, tmp_path):
        large = {name: np.full_like(a, 1e300, "f8") for name, a in arrays().items()}
        with pytest.raises(MismatchError, match="12 NaN or infinite values"):
            tfdeep.restore(net(3), npz(tmp_path, **large), cast=True)


class TestPlans:
    @pytest.mark.parametrize("as_text", [False, True])
    def test_a_plan_is_followed(self, as_text, tmp_path):
        path = npz(tmp_path, fc1__kernel=arrays()["hidden1__kernel"])
        plan = tfdeep.restore(
            net(3), path, "hidden1/kernel", rename={"fc1": "hidden1"}, dry_run=True
        )
        assert [m.renamed for m in plan.renamed] == ["hidden1/kernel"]
        model = net(3)
        report = tfdeep.restore(model, path, plan=plan.to_json() if as_text else plan)
        assert [m.path for m in report.restored] == ["hidden1/kernel"]
        np.testing.assert_array_equal(
            model.get_layer("hidden1").kernel, arrays()["hidden1__kernel"]
        )

    def test_a_plan_that_cannot_be_followed_is_an_error(self, tmp_path):
        path = npz(tmp_path, **arrays())
        plan = tfdeep.restore(net(3), path, dry_run=True)
        with pytest.raises(MismatchError, match="missing in the file"):
            tfdeep.restore(net(3), npz(tmp_path, x=np.ones(1)), plan=plan)
        with pytest.raises(InvalidArgumentError, match="the model lacks"):
            tfdeep.restore(nets.functional(), path, include="hidden2", plan=plan)
        with pytest.raises(InvalidArgumentError, match="This is not a plan"):
            tfdeep.restore(net(3), path, plan='{"restored": 3}')
        with pytest.raises(InvalidArgumentError, match="one of them"):
            tfdeep.restore(net(3), path, plan=plan, rename={"x": "y"})

    def test_a_plan_is_followed_to_the_letter_or_not_at_all(self, tmp_path):
        path = npz(tmp_path, **arrays(units=4))
        model = net(4)
        plan = tfdeep.restore(
            model, path, transform={"hidden1/kernel": lambda k: 5 * k}, dry_run=True
        )
        before = model.get_weights()
        with pytest.raises(InvalidArgumentError, match="cannot be followed"):
            tfdeep.restore(model, path, plan=plan)
        np.testing.assert_array_equal(before[0], model.get_weights()[0])
        torch = npz(tmp_path, **{"hidden1.weight": np.ones((4, 4), "f4")})
        plan = tfdeep.restore(model, torch, ".*/kernel", layout="torch", dry_run=True)
        with pytest.raises((InvalidArgumentError, MismatchError)):
            tfdeep.restore(model, torch, ".*/kernel", plan=plan)

    def test_a_report_is_json(self, tmp_path):
        report = tfdeep.restore(
            net(3), npz(tmp_path, **arrays()), probe=np.ones((2, 4), "float32")
        )
        assert json.loads(report.to_json())["probe"]["largest_change"] > 0


@pytest.mark.parametrize("kind", files.NAMED_WRITERS)
def test_a_dry_run_reads_no_values(kind, tmp_path, monkeypatch):
    model = nets.functional()
    path = files.NAMED_WRITERS[kind](model, tmp_path)
    with tfdeep.checkpoints.open(path) as reader:
        monkeypatch.setattr(
            type(reader), "read", lambda self, name: pytest.fail("values were read")
        )
    assert len(tfdeep.restore(model, path, dry_run=True).restored) == 8


def test_a_probe_shows_the_outputs_before_and_after(tmp_path):
    path, model = npz(tmp_path, **arrays()), net(3)
    batch = np.ones((2, 4), "float32")
    before = np.asarray(model(batch))
    probe = tfdeep.restore(model, path, probe=batch).probe
    np.testing.assert_array_equal(probe.before[0], before)
    np.testing.assert_array_equal(probe.after[0], np.asarray(model(batch)))
    assert probe.largest_change == np.abs(probe.after[0] - before).max()


class TestOptimizer:
    def trained(self, build=nets.functional):
        return files.trained(build)

    @pytest.mark.parametrize("kind", ["weights_h5", "keras"])
    def test_moments_come_back(self, kind, tmp_path):
        written = self.trained()
        path = files.WRITERS[kind](written, tmp_path)
        model = nets.functional()
        model.compile("adam", nets.LOSS)
        model.optimizer.build(model.trainable_variables)
        report = tfdeep.restore(model, path, optimizer=True)
        assert report.unused == ()
        for a, b in zip(
            written.optimizer.variables, model.optimizer.variables, strict=True
        ):
            np.testing.assert_array_equal(a.numpy(), b.numpy())

    def test_numbers_are_not_trusted_for_another_model(self, tmp_path):
        path = files.weights_h5(self.trained(), tmp_path)
        model = nets.functional()
        model.get_layer("hidden1").trainable = False
        model.compile("adam", nets.LOSS)
        model.optimizer.build(model.trainable_variables)
        with pytest.raises(MismatchError, match="missing in the file"):
            tfdeep.restore(model, path, optimizer=True)

    @pytest.mark.parametrize("name", ["dense_model.h5", "dense_object.ckpt"])
    def test_moments_come_back_from_keras_2(self, name):
        path = GOLDENS / "tf215" / name
        model = tfdeep.models.dnn((8,), [6, 6, 6], 3, activation="elu")
        model.compile("adam")
        model.optimizer.build(model.trainable_variables)
        report = tfdeep.restore(
            model, path, optimizer=True, exclude="optimizer/adam/learning_rate"
        )
        assert report.unused in ((), ("learning_rate",))
        assert int(model.optimizer.iterations.numpy()) == 8
        with tfdeep.checkpoints.open(path) as reader:
            prefix = "optimizer/" if name.endswith(".h5") else ""
            m = reader.read(f"{prefix}Adam/m/hidden2/kernel")
        (slot,) = [
            v
            for v in model.optimizer.variables
            if v.path.endswith("hidden2_kernel_momentum")
        ]
        np.testing.assert_array_equal(slot.numpy(), m)
        assert np.abs(m).max() > 0

    def test_a_part_of_the_moments(self, tmp_path):
        written = self.trained()
        path = files.weights_h5(written, tmp_path)
        model = nets.functional()
        model.compile("adam", nets.LOSS)
        model.optimizer.build(model.trainable_variables)
        exclude = r"optimizer/adam(_\d+)?/(.*_)?(hidden1_.*|learning_rate)"
        report = tfdeep.restore(model, path, exclude=exclude, optimizer=True)
        restored = {match.path for match in report.restored}
        pairs = zip(written.optimizer.variables, model.optimizer.variables, strict=True)
        for a, b in pairs:
            if f"optimizer/{b.path}" in restored:
                np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert 12 < len(report.restored) < 8 + 18

    @pytest.mark.parametrize("other", ["order", "class"])
    def test_moments_of_another_model_or_optimizer(self, other, tmp_path):
        def stack(names, optimizer):
            inputs = x = keras.Input((3,))
            for name in names:
                x = layers.Dense(3, name=name)(x)
            model = keras.Model(inputs, x)
            model.compile(optimizer, "mse")
            model.optimizer.build(model.trainable_variables)
            return model

        path = files.weights_h5(stack("abc", "adam"), tmp_path)
        names, optimizer = ("bac", "adam") if other == "order" else ("abc", "adadelta")
        with pytest.raises(MismatchError):
            tfdeep.restore(stack(names, optimizer), path, optimizer=True)

    def test_an_optimizer_without_variables(self, tmp_path):
        path = files.weights_h5(nets.functional(), tmp_path)
        with pytest.raises(ModelError, match="no variables to restore"):
            tfdeep.restore(nets.functional(), path, optimizer=True)


def test_layers_whose_names_have_dots_are_found_in_a_file_of_torch(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, name="block.1")(inputs))
    kernel = np.arange(12, dtype="float32").reshape(3, 4)
    path = npz(tmp_path, **{"block.1.weight": kernel, "block.1.bias": kernel[:, 0]})
    tfdeep.restore(model, path, layout="torch")
    np.testing.assert_array_equal(model.get_layer("block.1").kernel, kernel.T)


class TestAmbiguousNames:
    def test_one_tensor_does_not_fill_two_variables(self, tmp_path):
        def twice():
            inner_input = keras.Input((3,))
            inner = layers.Dense(3, name="d")(inner_input)
            inner = keras.Model(inner_input, inner, name="inner")
            inputs = keras.Input((3,))
            return keras.Model(inputs, inner(layers.Dense(3, name="d")(inputs)))

        path = tmp_path / "one.npz"
        tfdeep.save_subset(twice(), path, include="d")
        with pytest.raises(MismatchError, match="inner/d/kernel: missing"):
            tfdeep.restore(twice(), path)

    def test_two_scopes_are_an_error_even_if_one_has_more(self, tmp_path):
        values = {f"{s}__{n}": a for s in ("net", "ema") for n, a in arrays().items()}
        path = npz(tmp_path, **values, ema__hidden2__bias=np.ones(3, "f4"))
        with pytest.raises(InvalidArgumentError, match="more than once"):
            tfdeep.restore(net(3, 3), path, on_missing="skip")


@pytest.mark.parametrize(
    "arguments",
    [
        {"rename": ["a"]},
        {"rename": {"hidden1": r"\2"}},
        {"rename": {"hidden1": 3}},
        {"include": 5},
        {"include": [5]},
    ],
)
def test_arguments_that_cannot_work(arguments, tmp_path):
    with pytest.raises(tfdeep.errors.TfdeepError, match="nothing was changed"):
        tfdeep.restore(net(3), npz(tmp_path, **arrays()), **arguments)


def test_names_that_would_steer_a_terminal_are_escaped(tmp_path):
    path = npz(tmp_path, **{f"x\x1b[2J__{n}": a for n, a in arrays().items()}, y=[1.0])
    assert "\x1b" not in str(tfdeep.restore(net(3), path))
    assert "\x1b" not in str(tfdeep.checkpoints.compare(net(3), path))


def test_limits_are_the_callers_to_set(tmp_path):
    path = npz(tmp_path, **arrays())
    with pytest.raises(LimitError, match=r"Limits\(tensor_bytes=...\)"):
        tfdeep.restore(net(3), path, limits=tfdeep.checkpoints.Limits(tensor_bytes=16))


class TestRemote:
    def test_a_url_is_refused_unless_asked_for(self):
        with pytest.raises(tfdeep.errors.UnsafeFileError, match="allow_remote=True"):
            tfdeep.restore(net(3), "gs://bucket/net.npz")

    @pytest.mark.parametrize(
        "kind",
        ["npz", "tf1_saver", "saved_model", "sharded_weights", "tf1_saver, its index"],
    )
    def test_it_is_copied_and_the_copy_removed(self, kind, tmp_path):
        written = nets.functional()
        kind, _, part = kind.partition(", ")
        path = (files.NAMED_WRITERS | files.WRITERS)[kind](written, tmp_path)
        path = f"{path}.index" if part else path
        model = nets.functional()
        url = f"file://{path}"
        with tfdeep.checkpoints.open(url, allow_remote=True) as reader:
            directory = reader._directory.name
        assert not os.path.exists(directory)
        tfdeep.restore(model, url, allow_remote=True)
        np.testing.assert_array_equal(
            model.get_layer("hidden1").kernel, written.get_layer("hidden1").kernel
        )
