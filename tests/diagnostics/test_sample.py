"""Which examples `diagnose` looks at."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdeep
from tests import nets
from tfdeep.diagnostics._batch import one_batch


def net(*shape, **options):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input(shape, **options), layers.Flatten(), layers.Dense(nets.CLASSES)]
    )


@pytest.mark.parametrize("convert", [np.asarray, tf.constant])
def test_arrays_are_sampled_all_over(convert):
    rows = np.arange(10_000.0)
    batch = one_batch(convert(rows[:, None]), convert(rows))
    assert batch.examples == 256
    np.testing.assert_array_equal(batch.x[:, 0], batch.y)
    assert len(set(batch.y.numpy())) == 256
    assert np.mean(batch.y) == pytest.approx(5000, abs=500)
    np.testing.assert_array_equal(one_batch(rows, rows).y, batch.y)


def test_sorted_inputs_have_the_mean_of_all():
    x = np.linspace(-100, 100, 2000)[:, None] / 60
    found = tfdeep.diagnose(net(1), x, np.zeros(2000), nets.LOSS)
    assert "input_scale" not in [f.kind for f in found.findings]


@pytest.mark.parametrize(
    ("pixels", "examples"), [(8, 256), (32, 256), (64, 85), (96, 37), (150, 32)]
)
def test_fewer_images_the_larger_they_are(pixels, examples):
    images = np.broadcast_to(np.float32(0), (300, pixels, pixels, 3))
    assert one_batch(images).examples == examples
    data = tf.data.Dataset.from_tensors(np.zeros((pixels, pixels, 3), "float32"))
    assert one_batch(data.repeat().batch(8)).examples == examples


def test_long_vectors_are_not_fewer():
    assert one_batch(np.zeros((300, 100_000), "float32")).examples == 256


class TestDatasets:
    @pytest.mark.parametrize(("count", "used"), [(3, 3), (40, 40), (1000, 256)])
    @pytest.mark.parametrize("batch_size", [1, 16, 500])
    def test_several_batches(self, count, used, batch_size):
        x = np.arange(float(count))
        data = tf.data.Dataset.from_tensor_slices((x[:, None], x, x)).batch(batch_size)
        batch = one_batch(data)
        assert batch.examples == used
        np.testing.assert_array_equal(batch.x[:, 0], batch.y)
        np.testing.assert_array_equal(batch.sample_weight, batch.y)

    def test_no_more_batches_than_are_needed(self):
        def endless():
            for _ in range(4):
                yield np.zeros((64, 8), "float32"), np.zeros(64)
            raise AssertionError("a batch too many")

        shapes = (tf.TensorSpec((None, 8)), tf.TensorSpec((None,)))
        data = tf.data.Dataset.from_generator(endless, output_signature=shapes)
        assert one_batch(data).examples == 256

    def test_a_batch_of_another_shape_ends_it(self):
        def batches():
            yield np.zeros((16, 8), "float32")
            yield np.zeros((16, 9), "float32")

        spec = tf.TensorSpec((None, None))
        data = tf.data.Dataset.from_generator(batches, output_signature=spec)
        assert one_batch(data).examples == 16

    def test_labels_beside_it_are_those_of_its_first_batch(self):
        data = tf.data.Dataset.from_tensor_slices(np.zeros((64, 8))).batch(16)
        assert one_batch(data, np.zeros(16)).examples == 16


@pytest.mark.parametrize("is_dataset", [True, False])
def test_a_model_that_asks_for_a_number_of_examples(is_dataset):
    model, (x, y) = net(nets.INPUTS, batch_size=12), nets.examples(60)
    data = [tf.data.Dataset.from_tensor_slices((x, y)).batch(12)]
    data = data if is_dataset else [x, y]
    assert tfdeep.diagnose(model, *data, loss=nets.LOSS).examples == 12
