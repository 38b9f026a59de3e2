"""What tfdeep reads of Keras' private attributes.

Checked with Keras 3.8.0, 3.10.0, 3.12.4 and 3.15.1. A new Keras that moves one of
them fails here first, with the name of what moved.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep._keras import _internals


def test_sublayers_are_the_layers_directly_inside_in_order():
    model = nets.subclassed()
    assert [layer.name for layer in _internals.sublayers(model)] == [
        "hidden1",
        "hidden2",
        "hidden3",
        "outputs",
    ]
    nested = nets.nested()
    names = [layer.name for layer in _internals.sublayers(nested)]
    assert names[1:] == ["base", "outputs"]


def test_the_producer_of_a_tensor_is_the_call_that_made_it():
    model = nets.residual()
    node = _internals.producer(model.outputs[0])
    assert node.operation is model.get_layer("outputs")
    assert (
        _internals.producer(node.input_tensors[0]).output_tensors[0]
        is (node.input_tensors[0])
    )


def test_a_node_can_be_called_again_on_other_tensors():
    inputs = keras.Input((3,))
    outputs = layers.Concatenate(name="both")([inputs, inputs])
    node = _internals.producer(outputs)
    other = keras.Input((5,))
    assert _internals.call_node(node, {id(inputs): other}).shape == (None, 10)


def test_trainable_variables_stay_declared_when_they_are_frozen():
    layer = layers.BatchNormalization()
    layer.build((None, 4))
    layer.trainable = False
    names = [v.name for v in _internals.declared_trainable(layer)]
    assert names == ["gamma", "beta"]


@pytest.mark.parametrize("scaled", [False, True])
def test_an_optimizer_knows_what_it_was_built_for(scaled):
    model = nets.functional()
    optimizer = keras.optimizers.Adam()
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    assert _internals.built_for(optimizer) == []
    optimizer.build(model.trainable_variables)
    built_for = _internals.built_for(optimizer)
    assert [id(v) for v in built_for] == [id(v) for v in model.trainable_variables]


def test_an_optimizer_knows_the_strategy_it_was_made_in():
    bare = keras.optimizers.SGD()
    assert _internals.strategy_of(bare) is tf.distribute.get_strategy()
    strategy = nets.two_replicas()
    with strategy.scope():
        assert _internals.strategy_of(keras.optimizers.SGD()) is strategy


def test_a_strategy_knows_how_it_sums():
    assert _internals.all_reduce_of(tf.distribute.get_strategy()) is None
    own = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], own)
    assert _internals.all_reduce_of(strategy) is own
    default = _internals.all_reduce_of(nets.two_replicas())
    assert default is not None


def test_an_optimizer_can_be_kept_from_summing_over_replicas():
    strategy = nets.two_replicas()
    with strategy.scope():
        weight = keras.Variable([0.0])
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build([weight])

    @tf.function
    def step():
        strategy.run(
            lambda: _internals.apply_reduced(optimizer, [tf.constant([1.0])], [weight])
        )

    step()
    assert float(weight.numpy()[0]) == -1.0  # and not twice that


def test_a_value_is_read_as_it_is_in_mixed_precision():
    class Probe(layers.Layer):
        def build(self, input_shape):
            self.weight = self.add_weight(shape=(1,), initializer="ones")

        def call(self, x):
            uncast = _internals.uncast_value(self.weight)
            self.seen = (uncast.dtype, self.weight.value.dtype, uncast)
            return x

    probe = Probe(dtype="mixed_float16")
    probe(tf.zeros((1, 1)))
    assert probe.seen[:2] == (tf.float32, tf.float16)
    doubled = tf.constant([2.0])
    probe.stateless_call([doubled], [], tf.zeros((1, 1)))
    assert float(probe.seen[2][0]) == 2.0


def test_the_state_of_an_optimizer_by_variable():
    """The names in `Adafactor` are the same for all kernels."""
    model = nets.functional()
    optimizer = keras.optimizers.Adafactor()
    optimizer.build(model.trainable_variables)
    state = _internals.optimizer_state(optimizer)
    assert len(state) == len(optimizer.variables)
    for attribute, shape in (("_r", (6,)), ("_c", (3,)), ("_v", (6, 3))):
        kernel = model.get_layer("outputs").kernel
        variable, owner = state[attribute, id(kernel)]
        assert owner is kernel
        assert variable.shape == shape
    assert state["_iterations", None][0] is optimizer.iterations


def test_a_schedule_can_be_hidden():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)
    optimizer = keras.optimizers.SGD(schedule)
    with _internals.schedule_hidden(optimizer) as hidden:
        assert hidden is schedule
        assert isinstance(optimizer.get_config()["learning_rate"], float)
    assert optimizer.get_config()["learning_rate"]["class_name"] == "ExponentialDecay"
    with _internals.schedule_hidden(keras.optimizers.SGD(0.5)) as hidden:
        assert hidden is None


def test_an_optimizer_can_have_a_rate_for_each_variable():
    a, b = keras.Variable([1.0]), keras.Variable([1.0])
    optimizer = keras.optimizers.SGD(1.0, weight_decay=0.5)
    optimizer.build([a, b])
    owner = keras.optimizers.SGD()
    _internals.multiply_rates(optimizer, owner, [(a, 0.5)])
    optimizer.apply([tf.ones(1), tf.ones(1)], [a, b])
    assert (a.numpy()[0], b.numpy()[0]) == (1 - 0.25 - 0.5, 1 - 0.5 - 1)


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="new in Keras 3.15"
)
def test_the_groups_of_a_multi_optimizer():
    a, b = keras.Variable([1.0]), keras.Variable([1.0])
    optimizer = keras.optimizers.MultiOptimizer(lambda v: keras.optimizers.SGD(1.0))
    optimizer.build([a])
    group_of = _internals.group_chooser(optimizer)
    assert group_of(a) is optimizer.optimizers[0]
    assert group_of(b) is group_of(b) is not group_of(a)
    kept = _internals.groups_kept(optimizer, optimizer)
    assert set(kept) <= set(vars(optimizer))


class TestSubstitutedVariables:
    """An optimizer that was fitted to other variables is whole to TensorFlow, too."""

    WRAPPERS = {  # noqa: RUF012 - a table
        "plain": lambda o: o,
        "accumulated": lambda o: tfdeep.optimizers.Accumulate(o, 2),
        "clipped": lambda o: tfdeep.optimizers.ClipByGlobalNorm(o, 1.0),
        "loss scale": keras.optimizers.LossScaleOptimizer,
    }

    def model(self, wrapper):
        model = nets.functional()
        optimizer = self.WRAPPERS[wrapper](keras.optimizers.Adam(use_ema=True))
        model.compile(optimizer, nets.LOSS)
        model.fit(*nets.examples(32), batch_size=8, verbose=0)
        tfdeep.freeze(model, "hidden1")
        model.fit(*nets.examples(32), batch_size=8, verbose=0)
        return model

    @pytest.mark.parametrize("unfrozen", [False, True])
    @pytest.mark.parametrize("wrapper", WRAPPERS)
    def test_a_checkpoint_is_written_and_read(self, wrapper, unfrozen, tmp_path):
        model = self.model(wrapper)
        if unfrozen:
            tfdeep.unfreeze(model)
        optimizer = model.optimizer
        path = tf.train.Checkpoint(optimizer=optimizer).save(tmp_path / "checkpoint")
        before = [variable.numpy() for variable in optimizer.variables]
        for variable in optimizer.variables:
            variable.assign(tf.ones_like(variable.value) * 77)
        status = tf.train.Checkpoint(optimizer=optimizer).restore(path)
        status.assert_existing_objects_matched()
        for variable, value in zip(optimizer.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value, err_msg=variable.path)

    @pytest.mark.parametrize("wrapper", WRAPPERS)
    def test_the_model_can_be_exported(self, wrapper, tmp_path):
        model = self.model(wrapper)
        model.export(tmp_path / "exported", verbose=False)
        exported = tf.saved_model.load(tmp_path / "exported")
        x, _ = nets.examples(4)
        np.testing.assert_allclose(exported.serve(x), model(x), rtol=1e-6)
