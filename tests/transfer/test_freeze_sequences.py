"""Random sequences of freezing, unfreezing, compiling, fitting, saving and loading.

What must hold after each step is worked out here by name, from the rules alone:
frozen variables are bit-identical, all others move, and what an optimizer knows of a
variable is what it knew when it last trained it.
"""

import re
import warnings

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import layers

import tfdeep
from tests import nets
from tfdeep._keras import _internals, _optimizers
from tfdeep._keras._variables import model_variables
from tfdeep.errors import TrainableFlagWarning

adam = keras.optimizers.Adam
OPTIMIZERS = {
    "Adam": lambda: adam(0.01),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.9),
        momentum=0.9,
        weight_decay=0.1,
    ),
    "EMA": lambda: adam(
        0.01, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    ),
    "Nadam": lambda: keras.optimizers.Nadam(0.01),
    "wrappers": lambda: tfdeep.optimizers.Accumulate(
        tfdeep.optimizers.ClipByGlobalNorm(
            keras.optimizers.AdamW(0.01, weight_decay=0.1), 1.0
        ),
        steps=2,
    ),
    "rates": lambda: tfdeep.optimizers.LayerRates(adam(0.01), {"(base/)?hidden1": 0.5}),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        tfdeep.optimizers.SkipNonFinite(adam(0.01)), initial_scale=8.0
    ),
}
LAYERS = ["hidden1", "norm1", "hidden2", "norm2", "outputs"]
PARTS = [*LAYERS, "hidden1/bias", "norm1/gamma", "norm1/beta", "(hidden|norm)[12]"]


def functional():
    inputs = keras.Input((nets.INPUTS,))
    x = layers.Dense(4, activation="tanh", name="hidden1")(inputs)
    x = layers.BatchNormalization(name="norm1")(x)
    x = layers.Dropout(0.3, name="dropout")(x)
    x = layers.Dense(4, activation="tanh", name="hidden2")(x)
    x = layers.BatchNormalization(name="norm2")(x)
    return keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))


def nested():
    inputs = keras.Input((nets.INPUTS,))
    x = layers.Dense(4, activation="tanh", name="hidden1")(inputs)
    x = layers.BatchNormalization(name="norm1")(x)
    base = keras.Model(inputs, layers.Dropout(0.3)(x), name="base")
    outer = keras.Input((nets.INPUTS,))
    x = layers.Dense(4, activation="tanh", name="hidden2")(base(outer))
    x = layers.BatchNormalization(name="norm2")(x)
    return keras.Model(outer, layers.Dense(nets.CLASSES, name="outputs")(x))


steps = st.one_of(
    st.tuples(
        st.just("freeze"),
        st.sampled_from(PARTS),
        st.sampled_from(["inference", "inference", "train"]),
    ),
    st.tuples(st.just("unfreeze"), st.sampled_from(PARTS)),
    st.tuples(st.just("fit")),
    st.tuples(st.just("fit")),
    st.tuples(st.just("compile"), st.sampled_from([*OPTIMIZERS, "the same"])),
    st.tuples(st.just("by_hand"), st.sampled_from(LAYERS), st.booleans()),
    st.tuples(st.just("save")),
    st.tuples(st.just("load")),
    st.tuples(st.just("load_weights")),
)
starts = st.tuples(
    st.sampled_from([functional, nested]),
    st.sampled_from(list(OPTIMIZERS)),
    st.sampled_from([True, True, True, False]),  # run eagerly
)


class Run:
    """A model, and what must be true of it."""

    def __init__(self, start, directory):
        build, optimizer, self.eagerly = start
        self.directory = directory
        self.model = build()
        self.paths = set(self.read())
        self.statistics = {p for p in self.paths if "moving" in p}
        self.frozen = set()  # of those that could be trained
        self.live = {"norm1", "norm2"}  # whose statistics training updates
        self.saved = None
        self.compile(optimizer)
        tfdeep.unfreeze(self.model)

    # What the model holds.

    def read(self):
        return {
            v.path.removeprefix("base/"): v.variable.numpy()
            for v in model_variables(self.model)
        }

    def state(self):
        """What the optimizer knows, by name and place: inner ones use a name again."""
        found = {}
        for variable in self.model.optimizer.variables:
            name = re.sub(r"^variable(_\d+)?$", "unnamed", variable.name)
            place = sum(key[0] == name for key in found)
            found[name, place] = variable.numpy()
        return found

    def steps_made(self):
        # Of the innermost: Keras 3.8 counts none for a loss scale.
        return int(_optimizers.chain(self.model.optimizer)[-1].iterations)

    def trained(self):
        return self.paths - self.frozen - self.statistics

    def chosen(self, part):
        return {p for p in self.paths if re.match(f"{part}(/|$)", p)}

    def norms_of(self, chosen):
        return {p.split("/")[0] for p in chosen if p.startswith("norm")}

    def wholly_frozen(self, layer):
        own = self.chosen(layer) - self.statistics
        return own <= self.frozen and layer not in self.live

    # The steps.

    def freeze(self, part, batch_norm):
        chosen = self.chosen(part)
        report = tfdeep.freeze(self.model, f"(base/)?{part}", batch_norm=batch_norm)
        self.frozen |= chosen - self.statistics
        for norm in self.norms_of(chosen):
            if not self.trained() & self.chosen(norm):
                self.live.discard(norm)
                if batch_norm == "train":
                    self.live.add(norm)
        self.took_effect(report)

    def unfreeze(self, part):
        chosen = self.chosen(part)
        report = tfdeep.unfreeze(self.model, f"(base/)?{part}")
        self.frozen -= chosen
        self.live |= self.norms_of(chosen)
        self.took_effect(report)

    def by_hand(self, layer, trainable):
        variables = model_variables(self.model)
        for v in variables:
            if v.layer.name == layer:
                v.layer.trainable = trainable
        # What the flags then say is Keras' to decide.
        trained = {id(variable) for variable in self.model.trainable_variables}
        for v in variables:
            path = v.path.removeprefix("base/")
            if path in self.statistics:
                change = self.live.add if v.layer.trainable else self.live.discard
                change(v.layer.name)
            else:
                is_trained = id(v.variable) in trained
                change = self.frozen.discard if is_trained else self.frozen.add
                change(path)

    def took_effect(self, report):
        assert {p.removeprefix("base/") for p in report.trainable} == self.trained()
        if self.in_effect is not None:
            self.in_effect = self.trained()
        if not self.model.optimizer.built:
            return
        now = self.state()
        for key in self.known.keys() & now.keys():
            np.testing.assert_array_equal(now[key], self.known[key], err_msg=str(key))
        names = {
            v.variable.path.replace("/", "_"): v.path.removeprefix("base/")
            for v in model_variables(self.model)
        }
        for name, _ in self.known.keys() - now.keys():
            [path] = [names[n] for n in names if name.startswith(f"{n}_")]
            assert path in self.frozen

    def compile(self, optimizer):
        if optimizer == "the same":
            optimizer = self.model.optimizer
        else:
            self.kind, self.known = optimizer, {}
            optimizer = OPTIMIZERS[optimizer]()
        self.model.compile(optimizer, nets.LOSS, run_eagerly=self.eagerly)
        self.in_effect = None  # whatever the flags say at the next fit

    def fit(self):
        before = self.read()
        count = self.steps_made()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.model.fit(*nets.examples(16), batch_size=8, verbose=0)
        told = [w for w in caught if w.category is TrainableFlagWarning]
        assert bool(told) == (self.in_effect not in (None, self.trained()))
        now = self.read()
        moved = {p for p in now if (now[p] != before[p]).any()}
        updated = {p for p in self.statistics if p.split("/")[0] in self.live}
        assert moved == self.trained() | updated
        if self.trained():
            made = 1 if self.kind == "wrappers" else 2
            assert self.steps_made() == count + made
        self.in_effect = self.trained()
        self.known |= self.state()

    def save(self):
        self.model.save(self.directory / "model.keras")
        self.model.save_weights(self.directory / "model.weights.h5")
        own = (self.kind, self.trained(), set(self.frozen), set(self.live))
        # By what it holds beside the flags, Keras cannot load an optimizer.
        holds = _internals.built_for(self.model.optimizer)
        fits = {id(v) for v in holds} == {id(v) for v in self.model.trainable_variables}
        state = self.state() if fits else None
        self.saved = (self.read(), state, *own)

    def load_weights(self):
        if self.saved is None or self.saved[2:4] != (self.kind, self.trained()):
            return  # Keras knows the optimizer's state by its place in a list
        values, *_ = self.saved
        self.model.load_weights(self.directory / "model.weights.h5")
        np.testing.assert_equal(self.read(), values)
        self.known |= self.state()

    def load(self):
        if self.saved is None:
            return
        values, state, self.kind, _, frozen, live = self.saved
        self.model = keras.saving.load_model(self.directory / "model.keras")
        self.model.run_eagerly = self.eagerly
        np.testing.assert_equal(self.read(), values)
        self.frozen, self.live, self.in_effect = set(frozen), set(live), None
        # A file says of whole layers only that they are frozen.
        lost = {p for p in frozen if not self.wholly_frozen(p.split("/")[0])}
        self.known = self.state()
        if state is not None and not lost:
            np.testing.assert_equal(self.known, state)
        for path in lost:
            tfdeep.freeze(self.model, f"(base/)?{path}", batch_norm="train")
        if self.trained():  # which changes nothing, and watches the flags
            path = sorted(self.trained())[0]
            assert tfdeep.unfreeze(self.model, f"(base/)?{path}").changed == ()
        else:
            tfdeep.freeze(self.model)


@pytest.mark.parametrize(
    ("count", "shortest", "longest"),
    [(3, 4, 8), pytest.param(100, 14, 20, marks=pytest.mark.slow)],
)
def test_any_sequence(count, shortest, longest, tmp_path):
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],  # to shrink a failure takes minutes
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(starts, st.lists(steps, min_size=shortest, max_size=longest))
    def run(start, sequence):
        keras.utils.clear_session(free_memory=False)
        run = Run(start, tmp_path)
        for name, *arguments in [("fit",), *sequence, ("fit",)]:
            getattr(run, name)(*arguments)

    run()
