"""Unfreezing during a fit, against a fit by hand in parts."""

import keras
import numpy as np
import pytest

import tfdeep
from tests import nets
from tfdeep.callbacks import GradualUnfreeze
from tfdeep.errors import (
    InvalidArgumentError,
    ModelError,
    SelectionError,
    TrainableFlagWarning,
)

STAGES = {1: "hidden2", 2: ["hidden1"]}
FAR_APART = {1: "hidden2", 4: "hidden1"}


def weights(model):
    return {v.path: v.numpy() for v in model.weights}


class Changes(keras.callbacks.Callback):
    """Which layers each epoch has trained."""

    def on_train_begin(self, logs=None):
        self.seen = {}

    def on_epoch_begin(self, epoch, logs=None):
        self.before = weights(self.model)

    def on_epoch_end(self, epoch, logs=None):
        now = weights(self.model)
        changed = {p for p in now if (now[p] != self.before[p]).any()}
        self.seen[epoch] = {path.split("/")[-2] for path in changed}


def fit(model, epochs, callbacks=(), **arguments):
    data = nets.dataset()
    return model.fit(
        data, epochs=epochs, callbacks=list(callbacks), verbose=0, **arguments
    )


def frozen(optimizer=None, build=nets.functional, **arguments):
    model = build()
    tfdeep.freeze(model, "hidden[12]")
    return nets.compiled(model, optimizer or keras.optimizers.Adam(0.01), **arguments)


HEAD = {"hidden3", "outputs"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"run_eagerly": True},
        {"jit_compile": True},
        {"steps_per_execution": 4, "jit_compile": False},
    ],
    ids=["eager", "XLA", "steps_per_execution"],
)
def test_each_stage_trains_what_it_names(arguments):
    model = frozen(**arguments)
    optimizer = model.optimizer
    callback, changes = GradualUnfreeze(STAGES), Changes()
    history = fit(model, 4, [callback, changes]).history
    assert changes.seen == {
        0: HEAD,
        1: HEAD | {"hidden2"},
        2: HEAD | {"hidden1", "hidden2"},
        3: HEAD | {"hidden1", "hidden2"},
    }
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 4 * 6
    assert len(history["loss"]) == 4
    assert callback.reports[1].changed == ("hidden2/kernel", "hidden2/bias")
    assert callback.reports[2].frozen == ()


def test_it_is_the_same_as_several_fits_by_hand():
    """One optimizer over all variables, of which it is given more at each stage."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 6, 0.5)
    model, by_hand = frozen(keras.optimizers.Adam(schedule)), nets.functional()
    by_hand.set_weights(model.get_weights())
    fit(model, 3, [GradualUnfreeze(STAGES)])

    adam = keras.optimizers.Adam(schedule)
    adam.build(by_hand.trainable_variables)
    for names in (HEAD, HEAD | {"hidden2"}, HEAD | {"hidden1", "hidden2"}):
        for layer in by_hand.layers:
            layer.trainable = layer.name in names
        by_hand.compile(adam, nets.LOSS)
        fit(by_hand, 1)
    assert nets.largest_difference(model, by_hand) < 1e-6


def test_a_fit_that_starts_later_catches_up():
    model = frozen()
    callback, changes = GradualUnfreeze(STAGES, rate_factor=0.5), Changes()
    fit(model, 4, [callback, changes], initial_epoch=3)
    assert changes.seen == {3: HEAD | {"hidden1", "hidden2"}}
    assert sorted(callback.reports) == [1, 2]
    assert float(model.optimizer.learning_rate) == np.float32(0.01)


def test_the_learning_rate_is_lowered_as_a_stage_begins():
    rates = []
    reader = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: rates.append(
            float(model.optimizer.learning_rate)
        )
    )
    model = frozen(tfdeep.optimizers.ClipByNorm(keras.optimizers.SGD(0.5), 1.0))
    fit(model, 4, [GradualUnfreeze({1: "hidden2", 3: "hidden1"}, None, 0.5), reader])
    assert rates == [0.5, 0.25, 0.25, 0.125]


def test_beside_other_callbacks(tmp_path):
    model = frozen(keras.optimizers.Adam(0.01))
    monitor = tfdeep.callbacks.GradientMonitor(rules=None)
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.5, patience=1, min_delta=100.0
    )
    path = str(tmp_path / "{epoch}.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    changes = Changes()
    fit(model, 3, [monitor, GradualUnfreeze(STAGES), plateau, checkpoint, changes])
    assert changes.seen[2] == HEAD | {"hidden1", "hidden2"}
    assert len(monitor.history["outputs/kernel"]["norm"]) == 3 * 6
    assert np.isfinite(monitor.history["outputs/kernel"]["norm"]).all()
    assert float(model.optimizer.learning_rate) == np.float32(0.0025)
    for epoch, trained in ((1, 4), (2, 6), (3, 8)):
        loaded = keras.saving.load_model(tmp_path / f"{epoch}.keras")
        assert len(loaded.trainable_variables) == trained
        assert int(loaded.optimizer.iterations) == epoch * 6
    assert nets.largest_difference(model, loaded) == 0


def test_on_two_replicas():
    single = frozen(keras.optimizers.SGD(0.1, momentum=0.9))
    with nets.two_replicas().scope():
        model = frozen(keras.optimizers.SGD(0.1, momentum=0.9))
        model.set_weights(single.get_weights())
    changes = Changes()
    fit(model, 3, [GradualUnfreeze(STAGES), changes])
    fit(single, 3, [GradualUnfreeze(STAGES)])
    assert changes.seen[0] == HEAD
    assert changes.seen[2] == HEAD | {"hidden1", "hidden2"}
    assert nets.largest_difference(model, single) < 1e-5


def test_what_is_excluded_stays_frozen():
    model = nets.regularized()
    tfdeep.freeze(model, ["hidden[12]", "norm1"])
    model.compile("adam", nets.LOSS)
    changes = Changes()
    fit(model, 2, [GradualUnfreeze({1: ".*1"}, exclude="norm.*"), changes])
    assert "hidden1" in changes.seen[1]
    assert "norm1" not in changes.seen[1]


def test_flags_set_by_hand_are_noticed():
    model = nets.functional()
    model.compile("adam", nets.LOSS)
    fit(model, 1)
    model.get_layer("hidden1").trainable = False
    changes = Changes()
    with pytest.warns(TrainableFlagWarning, match="frozen by hand: hidden1/kernel"):
        fit(model, 1, [GradualUnfreeze({5: "hidden1"}), changes])
    assert changes.seen[0] == HEAD | {"hidden2"}


class Interruption(RuntimeError):
    pass


class Interrupt(keras.callbacks.Callback):
    """Raises within an epoch, unless it is None."""

    def __init__(self, epoch):
        super().__init__()
        self.stops_in = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.stops = epoch == self.stops_in

    def on_train_batch_end(self, batch, logs=None):
        if self.stops and batch == 1:
            raise Interruption


class TestResumed:
    """An interrupted fit that `BackupAndRestore` resumes, against one that was not."""

    def begin(self, make=keras.optimizers.Adam, run_eagerly=True):
        keras.utils.set_random_seed(3)
        return frozen(make(0.01), run_eagerly=run_eagerly)

    def run(self, model, path, stops_in=None, backup_first=False, save_freq="epoch"):
        """A fit of 6 epochs of 3 batches; returns what was trained and reported."""
        gradual = GradualUnfreeze(FAR_APART, rate_factor=0.5)
        backup = keras.callbacks.BackupAndRestore(str(path), save_freq=save_freq)
        both = [backup, gradual] if backup_first else [gradual, backup]
        changes = Changes()
        callbacks = [*both, changes, Interrupt(stops_in)]
        try:
            model.fit(nets.dataset(48), epochs=6, callbacks=callbacks, verbose=0)
        except Interruption:
            assert stops_in is not None
        return changes.seen, gradual.reports

    def state(self, model):
        """Weights and all that the optimizer knows, moments and rate included."""
        return [v.numpy() for v in (*model.weights, *model.optimizer.variables)]

    @pytest.mark.parametrize(
        ("stops_in", "backup_first"),
        [
            (3, False),
            (5, True),
            *(
                pytest.param(stops_in, backup_first, marks=pytest.mark.slow)
                for stops_in in range(6)
                for backup_first in (False, True)
            ),
        ],
    )
    def test_it_goes_on_as_if_nothing_had_happened(
        self, stops_in, backup_first, tmp_path, recwarn
    ):
        whole, model = self.begin(), self.begin()
        expected, reports = self.run(whole, tmp_path / "whole")
        self.run(self.begin(), tmp_path / "backup", stops_in, backup_first)
        seen, found = self.run(model, tmp_path / "backup", None, backup_first)
        assert seen == {e: expected[e] for e in range(stops_in, 6)}
        assert {e: r.changed for e, r in found.items()} == {
            e: r.changed for e, r in reports.items()
        }
        np.testing.assert_equal(self.state(model), self.state(whole))
        assert not [w for w in recwarn if "loading" in str(w.message)]

    @pytest.mark.parametrize(
        ("make", "run_eagerly"),
        [
            (keras.optimizers.Adam, False),
            (
                lambda rate: tfdeep.optimizers.ClipByGlobalNorm(
                    tfdeep.optimizers.LayerRates(
                        keras.optimizers.Adam(rate), {".*1": 0.1}
                    ),
                    clip_norm=0.5,
                ),
                True,
            ),
            (
                lambda rate: keras.optimizers.LossScaleOptimizer(
                    keras.optimizers.SGD(rate, momentum=0.9, use_ema=True)
                ),
                True,
            ),
            (
                lambda rate: tfdeep.optimizers.Accumulate(
                    keras.optimizers.Adam(rate), 2
                ),
                True,
            ),
            (
                lambda rate: keras.optimizers.MultiOptimizer(
                    keras.optimizers.OptimizerMap(
                        keras.optimizers.Adam(rate),
                        {"hidden2/.*": keras.optimizers.Adam(2 * rate)},
                    )
                ),
                True,
            ),
        ],
        ids=["compiled", "wrappers", "loss scale and averages", "accumulated", "multi"],
    )
    def test_kinds_of_optimizers(self, make, run_eagerly, tmp_path, recwarn, request):
        is_multi = request.node.callspec.id == "multi"
        if is_multi and not hasattr(keras.optimizers, "MultiOptimizer"):
            pytest.skip("needs Keras 3.15")
        whole = self.begin(make, run_eagerly)
        self.run(whole, tmp_path / "whole")
        self.run(self.begin(make, run_eagerly), tmp_path / "backup", stops_in=5)
        model = self.begin(make, run_eagerly)
        self.run(model, tmp_path / "backup")
        np.testing.assert_equal(self.state(model), self.state(whole))
        assert not [w for w in recwarn if "load" in str(w.message)]

    @pytest.mark.slow
    def test_on_two_replicas(self, tmp_path):
        def begin():
            with nets.two_replicas().scope():
                return self.begin(run_eagerly=False)

        whole, model = begin(), begin()
        self.run(whole, tmp_path / "whole")
        self.run(begin(), tmp_path / "backup", stops_in=3)
        self.run(model, tmp_path / "backup")
        np.testing.assert_equal(self.state(model), self.state(whole))

    def test_a_backup_within_the_epoch_of_a_stage(self, tmp_path):
        """Keras begins the epoch anew; its stage lowers the rate but once."""
        self.run(self.begin(), tmp_path, stops_in=4, save_freq=1)
        model = self.begin()
        seen, reports = self.run(model, tmp_path)
        assert (sorted(seen), sorted(reports)) == ([4, 5], [1, 4])
        assert int(model.optimizer.iterations) == 4 * 3 + 2 + 2 * 3
        assert float(model.optimizer.learning_rate) == np.float32(0.0025)

    def test_a_later_start_without_a_backup(self):
        """It unfreezes what it should; the stage of the first epoch begins there."""
        model = self.begin()
        gradual, changes = GradualUnfreeze(FAR_APART, rate_factor=0.5), Changes()
        fit(model, 5, [gradual, changes], initial_epoch=4)
        assert changes.seen == {4: HEAD | {"hidden1", "hidden2"}}
        assert float(model.optimizer.learning_rate) == np.float32(0.005)

    def test_a_backup_of_another_stage_than_any_is_refused(self, tmp_path):
        """Such as an earlier one: a fit of the same object that got further."""
        model = self.begin()
        self.run(model, tmp_path, stops_in=4)
        with pytest.raises(ModelError, match="that of none of the stages"):
            self.run(model, tmp_path)
        assert int(model.optimizer.iterations) == 4 * 3 + 2
        assert "load_weights" not in vars(model)

    def test_what_else_loading_says_is_said(self, tmp_path):
        """Here by a wrapper whose own state is not in the file."""
        clips = tfdeep.optimizers.ClipByGlobalNorm
        plain = self.begin(lambda rate: clips(keras.optimizers.Adam(rate), 1.0))
        self.run(plain, tmp_path / "clipped", stops_in=5)
        model = self.begin(
            lambda rate: tfdeep.optimizers.Accumulate(keras.optimizers.Adam(rate), 2)
        )
        with pytest.warns(UserWarning, match="The state of `.*` is not loaded"):
            self.run(model, tmp_path / "clipped")

    def test_loading_is_left_alone_from_the_first_epoch_on(self, tmp_path):
        path = str(tmp_path / "later.weights.h5")
        later = self.begin()
        fit(later, 2, [GradualUnfreeze(FAR_APART)])
        later.save_weights(path)
        model = self.begin()
        load = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: model.load_weights(path)
        )
        for callbacks in ([GradualUnfreeze({3: "hidden2"}), load], [load]):
            with pytest.warns(UserWarning, match="Skipping variable loading"):
                fit(model, 1, callbacks)
            assert not model.get_layer("hidden2").trainable
        fit(model, 0, [GradualUnfreeze({3: "hidden2"})])
        assert "load_weights" not in vars(model)

    def test_loading_is_left_alone_where_a_backup_cannot_be_read(self, tmp_path):
        model = self.begin()
        self.run(model, tmp_path, stops_in=3)
        (file,) = tmp_path.rglob("*.weights.h5")
        file.write_bytes(b"damaged")
        model = self.begin()
        with pytest.raises(OSError):
            self.run(model, tmp_path)
        assert "load_weights" not in vars(model)

    def test_a_list_of_callbacks_is_used_again(self):
        model = self.begin()
        gradual = GradualUnfreeze({0: "hidden2"})
        callbacks = keras.callbacks.CallbackList([gradual], True, model=model)
        for _ in range(2):
            tfdeep.freeze(model, "hidden2")
            model.fit(nets.dataset(), epochs=1, callbacks=callbacks, verbose=0)
            assert model.get_layer("hidden2").trainable


class TestRefused:
    @pytest.mark.parametrize(
        "stages", [{}, None, {-1: "a"}, {1.5: "a"}, {True: "a"}, {1: None}, {1: []}]
    )
    def test_stages(self, stages):
        with pytest.raises(InvalidArgumentError, match="cannot follow these stages"):
            GradualUnfreeze(stages)

    def test_patterns_that_are_none(self):
        with pytest.raises(SelectionError):
            GradualUnfreeze({1: "hidden["})
        with pytest.raises(SelectionError):
            GradualUnfreeze({1: ["hidden1", 3]})

    @pytest.mark.parametrize("factor", [0, -1.0, float("inf"), "half", True])
    def test_factors(self, factor):
        with pytest.raises(InvalidArgumentError, match="cannot multiply"):
            GradualUnfreeze(STAGES, rate_factor=factor)

    @pytest.mark.parametrize(
        "arguments", [({1: "hidden2", 9: "hidden7"},), ({1: "hidden2"}, "norm")]
    )
    def test_patterns_that_select_nothing_before_the_first_step(self, arguments):
        model = frozen()
        before = weights(model)
        with pytest.raises(SelectionError, match="selects no variable"):
            fit(model, 1, [GradualUnfreeze(*arguments)])
        np.testing.assert_equal(weights(model), before)
        assert "load_weights" not in vars(model)

    def test_a_factor_for_a_schedule(self):
        schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 6, 0.5)
        model = frozen(keras.optimizers.Adam(schedule))
        with pytest.raises(InvalidArgumentError, match="a schedule gives"):
            fit(model, 1, [GradualUnfreeze(STAGES, rate_factor=0.5)])
