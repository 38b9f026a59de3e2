"""Datasets over tables, in memory and on disk."""

import itertools

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tests import nets
from tfdeep._core import _files
from tfdeep.transfer import _features, _shards
from tfdeep.transfer._features import Table, features_of
from tfdeep.transfer._shards import Builder, Column, Entry

KEY = "table"


@pytest.fixture(autouse=True)
def _as_large_tables_are_read(monkeypatch):
    monkeypatch.setattr(_features, "_SMALL", 0)  # small ones: test_cache.py


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(_files, "_sync", lambda path, flags: None)


def store(cache_dir, arrays, key=KEY, shard_bytes=1000):
    columns = [Column(str(i), a.dtype.name, a.shape[1:]) for i, a in enumerate(arrays)]
    builder = Builder(cache_dir, key, columns, len(arrays[0]), shard_bytes)
    for number, rows in enumerate(builder.shards):
        with builder.claim(number):
            block = [array[rows.start : rows.stop] for array in arrays]
            builder.write(number, [block], {})
    builder.finish({})
    return Entry(cache_dir, key).open().arrays


def in_memory(columns):
    return Table([[column] for column in columns])


def arrays(rows=103, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(rows, 3, 5)).astype("float32"),
        np.arange(rows),
        rng.normal(size=(rows, 7)).astype(ml_dtypes.bfloat16),
        rng.random((rows, 2)) < 0.5,
        rng.integers(0, 256, (rows, 3)).astype("uint8"),
    ]


@pytest.fixture(params=["memory", "one shard", "several shards"])
def make_table(request, tmp_path):
    shard_bytes = 10**9 if request.param == "one shard" else 1000
    keys = map(str, itertools.count())

    def make(columns):
        if request.param == "memory":
            return in_memory(columns)
        return Table(store(tmp_path, columns, next(keys), shard_bytes))

    return make


def numbers(dataset):
    """The row numbers in the dataset's batches."""
    return [element[1].numpy().tolist() for element in dataset]


class TestRows:
    def test_any_rows_in_any_order(self, make_table):
        columns = arrays()
        table = make_table(columns)
        assert (table.rows, table.bytes) == (103, sum(a.nbytes for a in columns))
        rng = np.random.default_rng(1)
        for indices in (rng.permutation(103), rng.integers(0, 103, 7), [102], [0, 0]):
            found = table.take(tf.constant(indices, tf.int64))
            for tensor, column in zip(found, columns, strict=True):
                expected = column[np.asarray(indices)]
                assert tensor.dtype == expected.dtype
                assert tensor.shape == expected.shape
                assert tensor.numpy().tobytes() == expected.tobytes()

    @pytest.mark.parametrize("dtype", list(_shards._DTYPES))
    def test_dtypes(self, dtype, tmp_path):
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        raw = np.random.default_rng(0).integers(0, 256, (50, 6 * kind.itemsize), "u1")
        values = (raw % 2 if dtype == "bool" else raw).view(kind).reshape(50, 2, 3)
        table = Table(store(tmp_path, [values]))
        indices = np.arange(50)[::-3]
        (found,) = table.take(tf.constant(indices))
        assert found.dtype.name == dtype
        assert found.numpy().tobytes() == values[indices].tobytes()

    def test_rows_longer_and_shorter_than_a_page(self, tmp_path):
        for width, shard_bytes in ((1, 10), (4097, 9000), (1024, 4096 * 3), (3000, 1)):
            values = np.random.default_rng(0).integers(0, 256, (64, width), "uint8")
            table = Table(store(tmp_path, [values], f"{width}", shard_bytes))
            order = np.random.default_rng(1).permutation(64)
            (found,) = table.take(tf.constant(order))
            np.testing.assert_array_equal(found, values[order])

    def test_columns_in_another_order_and_twice(self, tmp_path):
        columns = arrays()
        arrays_of = store(tmp_path, columns)
        table = Table([arrays_of[i] for i in (3, 0, 3)])
        found = table.take(tf.constant([5, 4], tf.int64))
        for tensor, i in zip(found, (3, 0, 3), strict=True):
            np.testing.assert_array_equal(tensor, columns[i][[5, 4]])

    def test_an_entry_may_be_removed_while_it_is_read(self, tmp_path):
        columns = arrays()
        dataset = features_of([Table(store(tmp_path, columns))], [103])
        Entry(tmp_path, KEY).remove()
        ((features, *_),) = dataset
        np.testing.assert_array_equal(features, columns[0])

    def test_text_in_memory(self):
        table = in_memory([np.array(["a", "b", "c"], object)])
        (found,) = table.take(tf.constant([2, 0], tf.int64))
        assert found.numpy().tolist() == [b"c", b"a"]


class TestOrder:
    @pytest.mark.parametrize(
        "sizes", [[103], [10] * 10 + [3], [1, 50, 2, 49, 1], [1] * 103]
    )
    def test_the_tables_own(self, sizes, make_table):
        dataset = features_of([make_table(arrays())], sizes)
        assert int(dataset.cardinality()) == len(sizes)
        for _ in range(2):
            batches = numbers(dataset)
            assert list(map(len, batches)) == sizes
            assert [*itertools.chain(*batches)] == list(range(103))

    def test_every_shuffle_is_a_new_one_of_all_rows(self, make_table):
        columns = arrays()
        dataset = features_of([make_table(columns)], [10] * 10 + [3], shuffle=True)
        seen = []
        for _ in range(5):
            order = []
            for features, rows, *_ in dataset:
                np.testing.assert_array_equal(features, columns[0][rows.numpy()])
                order += rows.numpy().tolist()
            assert sorted(order) == list(range(103))
            seen.append(tuple(order))
        assert len(set(seen)) == 5 and tuple(range(103)) not in seen

    def test_every_order_is_equally_likely(self):
        dataset = features_of([in_memory([np.zeros(4), np.arange(4)])], [4], True)
        rounds = 1200
        found = [tuple(order) for order in numbers(dataset.repeat(rounds))]
        expected = rounds / 24
        chi2 = sum(
            (found.count(order) - expected) ** 2 / expected
            for order in itertools.permutations(range(4))
        )
        assert chi2 < 49.7  # of 23 degrees of freedom, once in a thousand

    def test_shuffles_follow_from_the_seed(self, make_table):
        table = make_table(arrays())

        def orders(seed=None):
            dataset = features_of([table], [103], True, seed)
            return [numbers(dataset) for _ in range(2)]

        keras.utils.set_random_seed(1)
        first, second = orders(), orders()
        keras.utils.set_random_seed(1)
        assert [orders(), orders()] == [first, second]
        assert first != second
        keras.utils.set_random_seed(2)
        assert orders() != first
        assert orders(seed=5) == orders(seed=5) != orders(seed=6)

    def test_memory_and_disk_give_the_same(self, tmp_path):
        columns = arrays()
        tables = in_memory(columns), Table(store(tmp_path, columns))
        first, second = (features_of([t], [10] * 10 + [3], True, 3) for t in tables)
        assert numbers(first) == numbers(second)

    def test_pack_makes_the_elements(self, make_table):
        dataset = features_of(
            [make_table(arrays())], [103], pack=lambda x, y, *rest: {"x": x, "y": y}
        )
        assert set(dataset.element_spec) == {"x", "y"}


class TestPasses:
    """Several tables, one after the other."""

    def passes(self, count, sizes, make=in_memory, **arguments):
        rows = sum(sizes)
        tables = [make([np.full(rows, i), np.arange(rows)]) for i in range(count)]
        return features_of(tables, sizes, **arguments)

    def which(self, dataset):
        (found,) = {int(i) for which, _ in dataset for i in which}
        return found

    @pytest.mark.parametrize("shuffle", [False, True])
    def test_iterating_goes_round(self, shuffle, make_table):
        dataset = self.passes(3, [2, 5], make_table, shuffle=shuffle)
        assert [self.which(dataset) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]

    def test_repeat_goes_round(self):
        dataset = self.passes(2, [2, 3]).repeat(3)
        assert [int(which[0]) for which, _ in dataset] == [0, 0, 1, 1, 0, 0]

    def test_a_glance_does_not_count(self):
        dataset = self.passes(2, [1] * 40)
        for _ in range(3):
            next(iter(dataset))
        assert [self.which(dataset) for _ in range(2)] == [0, 1]

    def test_an_epoch_cut_short_counts(self):
        dataset = self.passes(3, [1] * 40)
        assert [self.which(dataset.take(20)) for _ in range(4)] == [0, 1, 2, 0]

    @pytest.mark.parametrize("steps_per_epoch", [None, 20, 30])
    def test_fit_goes_round(self, steps_per_epoch):
        """Keras goes on with its iterator when `steps_per_epoch` cuts an epoch."""
        dataset = self.passes(3, [1] * 40)
        seen = []

        class Spy(keras.Model):
            def train_step(self, data):
                tf.py_function(lambda i: seen.append(int(i[0])), [data[0]], [])
                return {"loss": 0.0}

        model = Spy()
        model.compile()
        data = dataset.repeat() if steps_per_epoch else dataset
        model.fit(data, epochs=6, steps_per_epoch=steps_per_epoch, verbose=0)
        count = 6 * (steps_per_epoch or 40)
        assert seen == [i // 40 % 3 for i in range(count)]


def train(dataset, strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(dataset, epochs=4, verbose=0)
    return [weight.numpy() for weight in model.weights]


class TestReplicas:
    def tables(self, tmp_path, count):
        found = []
        for i in range(count):
            x = np.random.default_rng(i).normal(size=(96, 5)).astype("float32")
            columns = [x, x[:, :3] ** 2]
            found.append(Table(store(tmp_path, columns, key=f"{i}")))
        return found

    @pytest.mark.parametrize(
        ("variants", "shuffle", "inside"),
        [(1, False, False), (3, True, False), (3, True, True)],
    )
    def test_weights_are_those_of_one_device(self, variants, shuffle, inside, tmp_path):
        tables = self.tables(tmp_path, variants)

        def dataset():
            return features_of(tables, [16] * 6, shuffle, seed=1)

        one = train(dataset(), tf.distribute.get_strategy())
        mirrored = nets.two_replicas()
        with mirrored.scope():  # where a user may well call `cache_frozen`
            data = dataset() if inside else None
        two = train(data or dataset(), mirrored)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)

    def orders_of(self, table, seeds, drawn=(0, 0)):
        """The orders of two workers that drew their own seeds, in two epochs."""
        datasets = []
        for seed, before in zip(seeds, drawn, strict=True):
            keras.utils.set_random_seed(seed)
            for _ in range(before):
                tf.random.uniform([])
            datasets.append(features_of([table], [16] * 6, True))
        return [[numbers(dataset) for dataset in datasets] for _ in range(2)]

    def test_workers_that_draw_the_same_seed_share_one_order(self, tmp_path):
        table = Table(store(tmp_path, arrays(96)))
        (first, second), (first_again, second_again) = self.orders_of(table, (7, 7))
        assert first == second
        assert first_again == second_again
        assert sorted(itertools.chain(*first)) == list(range(96))
        assert sorted(itertools.chain(*first_again)) == list(range(96))
        assert [*map(len, first)] == [*map(len, first_again)] == [16] * 6
        assert first != first_again

    @pytest.mark.parametrize(("seeds", "drawn"), [((7, 8), (0, 0)), ((7, 7), (0, 1))])
    def test_workers_that_draw_others_do_not(self, seeds, drawn, tmp_path):
        """So a strategy's workers are given theirs: see `_common_seed`."""
        table = Table(store(tmp_path, arrays(96)))
        first, second = self.orders_of(table, seeds, drawn)[0]
        assert first != second


def test_a_table_is_not_read_into_memory(tmp_path):
    """Neither by opening it nor by taking rows of it."""

    def anonymous():  # MB that are no pages of a file
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1e3

    try:
        anonymous()
    except (OSError, StopIteration):
        pytest.skip("needs Linux")
    values = np.zeros((4000, 10_000), "float32")  # 160 MB
    stored = store(tmp_path, [values], shard_bytes=10**7)
    del values
    before = anonymous()
    table = Table(stored)
    for (batch,) in features_of([table], [40] * 100, shuffle=True):
        assert batch.shape == (40, 10_000)
    assert anonymous() - before < 60
