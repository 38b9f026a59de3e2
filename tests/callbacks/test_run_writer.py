import dataclasses
import json
import os
import re
import threading
import urllib.parse
import urllib.request
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import nets
from tfdeep.callbacks import GradientMonitor
from tfdeep.callbacks._run_writer import RunWriter
from tfdeep.diagnostics import Recording, read_run, rules, write_html_report
from tfdeep.diagnostics._run_file import FILE_NAME
from tfdeep.errors import SickLayerError
from tfdeep.optimizers import ClipByNorm, SkipNonFinite, Telemetry

pytest.importorskip("tensorboard")

STEPS, BATCH = 23, 16


@dataclasses.dataclass(frozen=True)
class FindsOne(rules.Rule):
    """Says of the first layer, at the end of the fit, that it is ill."""

    kind = "dead_units"
    patience: ClassVar[int] = 1

    def look(self, recording):
        yield rules.Symptom("hidden1", "critical", 3, "40% <of> 6 units", "`LeakyReLU`")


def build(optimizer=None):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((nets.INPUTS,))
    x = layers.Dense(6, activation="tanh", name="hidden1")(inputs)
    x = layers.Dense(6, activation="relu", name="hidden2")(x)
    model = keras.Model(inputs, layers.Dense(nets.CLASSES, name="outputs")(x))
    return nets.compiled(model, optimizer or keras.optimizers.SGD(0.1))


def fit(model, monitor):
    data = nets.dataset(STEPS * BATCH, BATCH)
    return model.fit(data, shuffle=False, verbose=0, callbacks=[monitor])


class Server:
    """TensorBoard on the loopback, and what its interface answers."""

    def __init__(self, log_dir):
        from tensorboard import program

        board = program.TensorBoard()
        options = "--host 127.0.0.1 --port 0 --load_fast false --reload_interval 0"
        board.configure(argv=[None, "--logdir", str(log_dir), *options.split()])
        self._url = board.launch()
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._opener.addheaders = []

    def get(self, path, raw=False, **query):
        url = f"{self._url}data/{path}?{urllib.parse.urlencode(query)}"
        with self._opener.open(url, timeout=30) as answer:
            content = answer.read()
        return content if raw else json.loads(content)

    def wait_for(self, plugin, run, tag):
        """The files are read in the background, in order: waits for a tag."""
        pause = threading.Event()
        for _ in range(120):
            tags = self.get(f"plugin/{plugin}/tags")
            if tag in tags.get(run, {}):
                return tags[run]
            pause.wait(0.25)
        raise AssertionError(f"{tag} is not in {tags}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fit of a small net: its monitor, its directory and a TensorBoard on it."""
    log_dir = tmp_path_factory.mktemp("logs")
    model = build(ClipByNorm(ClipByNorm(keras.optimizers.SGD(0.1), 0.1), 5.0))
    monitor = GradientMonitor(
        log_dir, flush_every=4, activations=True, rules=[FindsOne()], on_finding=None
    )
    fit(model, monitor)
    server = Server(log_dir)
    server.wait_for("images", ".", "gradient_norm_by_layer")  # the last of the file
    return monitor, log_dir, server


TAGS = {
    "gradient_norm": "norm",
    "gradient_norm_after_clipping": "clipped_norm",
    "largest_gradient_entry": "largest_entry",
    "gradient_mean": "mean",
    "gradient_zero_fraction": "zero_fraction",
    "gradient_nonfinite_count": "nonfinite_count",
    "silent_fraction": "silent_fraction",
    "update_norm": "update_norm",
    "weight_norm": "weight_norm",
    "update_to_weight_ratio": "update_ratio",
}


class TestTensorBoard:
    def scalars(self, server, tag):
        found = server.get("plugin/scalars/scalars", run=".", tag=tag)
        return {step: float(value) for _, step, value in found}  # "Infinity"

    @pytest.mark.parametrize("tag", TAGS)
    def test_it_shows_what_the_monitor_recorded(self, run, tag):
        monitor, _, server = run
        tags = server.get("plugin/scalars/tags")["."]
        for path, history in monitor.history.items():
            values = history[TAGS[tag]]
            measured = {i: float(v) for i, v in enumerate(values) if not np.isnan(v)}
            assert (f"{tag}/{path}" in tags) == bool(measured)
            if tag == "largest_gradient_entry" or measured:
                assert self.scalars(server, f"{tag}/{path}") == pytest.approx(
                    measured, rel=1e-6
                )

    def test_it_shows_the_loss_and_the_layers(self, run):
        monitor, _, server = run
        recording = monitor.recording
        loss = self.scalars(server, "loss")
        assert list(loss) == list(range(STEPS))
        np.testing.assert_allclose(
            list(loss.values()), recording["loss"][:, 0], rtol=1e-6
        )
        for tag, name in (
            ("output_std", "output_std"),
            ("saturated_fraction", "flat_fraction"),
            ("inactive_fraction", "inactive_fraction"),
            ("effective_rank", "effective_rank"),
        ):
            found = self.scalars(server, f"{tag}/hidden2")
            assert list(found) == [*range(11), 20]
            column = [layer.path for layer in recording.layers].index("hidden2")
            expected = recording[name][:, column]
            np.testing.assert_allclose(list(found.values()), expected, rtol=1e-6)

    def test_nested_wrappers_of_a_class_have_tags_of_their_own(self, run):
        _, _, server = run
        outer = self.scalars(server, "optimizer/ClipByNorm/threshold")
        inner = self.scalars(server, "optimizer/ClipByNorm_2/threshold")
        assert set(outer.values()) == {5.0}
        assert list(inner.values()) == pytest.approx([0.1] * len(inner))

    def test_its_layout_has_all_layers_of_a_quantity_in_one_chart(self, run):
        _, _, server = run
        layout = server.get("plugin/custom_scalars/layout")
        charts = {
            chart["title"]: chart["multiline"]["tag"]
            for category in layout["category"]
            for chart in category["chart"]
        }
        assert [c["title"] for c in layout["category"]] == [
            "Gradients",
            "Updates",
            "Layers",
            "Optimizer",
        ]
        tags = server.get("plugin/scalars/tags")["."]

        def lines(title):
            (pattern,) = charts[title]
            return {tag for tag in tags if re.match(pattern, tag)}

        names = ("hidden1", "hidden2", "outputs")
        for part, last in (("kernels", "kernel"), ("biases", "bias")):
            assert lines(f"Gradient norm, {part}") == {
                f"gradient_norm/{name}/{last}" for name in names
            }
            assert lines(f"Update norm / weight norm, {part}") == {
                f"update_to_weight_ratio/{name}/{last}" for name in names
            }
        assert lines("Outputs where the activation is flat") >= {
            "saturated_fraction/hidden1",
            "saturated_fraction/hidden2",
        }
        assert len(lines("Threshold")) == 2
        # Every scalar has its chart, and every chart its scalars.
        shown = [tag for title in charts for tag in lines(title)]
        assert sorted(shown) == sorted(tags)
        empty = {title for title in charts if not lines(title)}
        assert not empty
        # TensorBoard agrees with us about the patterns.
        (pattern,) = charts["Loss"]
        answer = server.get("plugin/custom_scalars/scalars", run=".", tag=pattern)
        assert list(answer["tag_to_events"]) == ["loss"]

    def test_it_shows_a_heat_map(self, run):
        pytest.importorskip("matplotlib")
        _, _, server = run
        tag = "gradient_norm_by_layer"
        (image,) = server.get("plugin/images/images", run=".", tag=tag, sample=0)
        png = server.get(f"plugin/images/individualImage?{image['query']}&x", raw=True)
        assert tf.io.decode_png(png).shape[1] > 500

    def test_it_shows_the_findings(self, run):
        monitor, _, server = run
        assert len(monitor.findings) == 1
        (found,) = server.get("plugin/text/text", run=".", tag="findings")
        assert "<code>hidden1</code>, critical, since step 3" in found["text"]
        assert "<code>LeakyReLU</code>" in found["text"]
        assert "40% &lt;of" in found["text"]


def test_it_writes_histograms_of_the_finite_entries(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = RunWriter(tmp_path)
    recording = Recording(["a/kernel", "b/kernel"])
    writer.begin(recording)
    rows = {"norm": np.ones((1, 2), np.float32)}
    recording.extend(rows)
    writer.write(rows, 0)
    bad = np.full((2, 2), np.nan)
    writer.write_histograms(
        {"a/kernel": np.array([[1, 2], [np.inf, 3]]), "b/kernel": bad}, 0
    )
    writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    (event,) = events.Tensors("gradient/a/kernel")
    buckets = tf.make_ndarray(event.tensor_proto)
    assert buckets[:, 2].sum() == 3
    assert (buckets[0, 0], buckets[-1, 1]) == (1, 3)
    assert "gradient/b/kernel" not in events.Tags()["tensors"]


class TestRepeatedFits:
    def test_the_second_does_not_lose_the_first(self, tmp_path):
        model, monitor = build(), GradientMonitor(tmp_path, rules=None)
        fit(model, monitor)
        steps = monitor.recording.total_steps
        fit(model, monitor)
        norms = monitor.recording["norm"]
        second = read_run(tmp_path)
        assert second.runs == 2
        np.testing.assert_allclose(second.recording["norm"], norms[steps:], rtol=1e-4)
        assert second.recording.steps[0] == steps
        lines = (tmp_path / FILE_NAME).read_text().splitlines()
        second = next(i for i, x in enumerate(lines) if i and x.startswith('{"run"'))
        (tmp_path / "first").mkdir()
        (tmp_path / "first" / FILE_NAME).write_text("\n".join(lines[:second]) + "\n")
        before = read_run(tmp_path / "first").recording
        np.testing.assert_allclose(before["norm"], norms[:steps], rtol=1e-4)
        # No line in TensorBoard runs back to its first step.
        assert len(list(tmp_path.glob("events.*"))) == 1
        assert len(list(tmp_path.glob("fit_2/events.*"))) == 1

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
    def test_no_file_stays_open(self, tmp_path):
        def open_files():
            links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
            return [
                os.readlink(link)
                for link in links
                if os.path.islink(link) and str(tmp_path) in os.readlink(link)
            ]

        def fail(batch, logs):
            raise RuntimeError("the fit ends here")

        model, monitor = build(), GradientMonitor(tmp_path, rules=None, flush_every=1)
        for _ in range(3):
            fit(model, monitor)
        assert open_files() == []
        failing = keras.callbacks.LambdaCallback(on_train_batch_end=fail)
        x, y = nets.examples(BATCH)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="ends here"):
                model.fit(x, y, verbose=0, callbacks=[monitor, failing])
            assert len(open_files()) <= 1
        fit(model, monitor)
        assert open_files() == []
        assert read_run(tmp_path).runs == 7


def test_what_is_not_finite_is_strict_json(tmp_path):
    model = build(SkipNonFinite(keras.optimizers.SGD(0.1)))
    monitor = GradientMonitor(tmp_path, rules=None)
    x, y = nets.examples(4 * BATCH)
    x[2 * BATCH] = np.nan
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[monitor])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    for line in (tmp_path / FILE_NAME).read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    run = read_run(tmp_path)
    assert np.isinf(run.recording["norm"][2]).any()
    assert run.telemetry[0]["skipped_steps"] == 1
    assert run.telemetry[0]["summary"] == f"{monitor.telemetry[0]}."
    assert run.recording.variables == monitor.recording.variables
    # NaN is unlike itself.
    assert str(run.recording.layers) == str(
        tuple(
            dataclasses.replace(layer, gain=float(f"{layer.gain:.5g}"))
            for layer in monitor.recording.layers
        )
    )
    for name in monitor.recording.quantities:
        np.testing.assert_allclose(
            run.recording[name], monitor.recording[name], rtol=1e-4, err_msg=name
        )


def test_long_runs_stay_small(tmp_path):
    """Ten thousand steps of a net of forty weights, in rows made up."""
    paths = [f"hidden{i}/{name}" for i in range(20) for name in ("kernel", "bias")]
    writer, recording = RunWriter(tmp_path), Recording(paths)
    writer.begin(recording)
    steps, chunk = 10_000, 500
    for first in range(0, steps, chunk):
        rows = {
            name: np.random.default_rng(first).random((chunk, 40)).astype(np.float32)
            for name in ("norm", "clipped_norm", "largest_entry", "mean")
        }
        rows["mean"][np.arange(chunk) % 10 != 0] = np.nan
        recording.extend(rows)
        writer.write(rows, first)
    writer.write_telemetry([Telemetry("ClipByNorm", 1, 1, 0, 1.0, 1.0, 1.0)], steps)
    writer.close()
    (events,) = tmp_path.glob("events.*")
    assert events.stat().st_size < 18_000_000
    assert (tmp_path / FILE_NAME).stat().st_size < 5_000_000
    run = read_run(tmp_path)
    assert run.is_complete
    assert run.recording.total_steps == steps
    assert run.recording.steps[-1] == steps - 1  # also where it is not one of the few
    kept = run.recording.steps
    assert list(kept[:1024]) == list(range(1024))
    np.testing.assert_allclose(
        run.recording["norm"][kept >= steps - chunk],
        rows["norm"][kept[kept >= steps - chunk] - (steps - chunk)],
        rtol=1e-4,
    )


def test_two_monitors_of_one_fit_do_not_write_into_one_file(tmp_path):
    first, second = (GradientMonitor(tmp_path, on_finding=None) for _ in range(2))
    model = build()
    data = nets.dataset(STEPS * BATCH, BATCH)
    for fits in (1, 2):
        model.fit(data, shuffle=False, verbose=0, callbacks=[first, second])
        for place in (tmp_path, tmp_path / "monitor_2"):
            run = read_run(place)
            assert (run.runs, run.is_complete) == (fits, True)
            assert run.recording.total_steps == fits * STEPS
    fit(model, first)  # alone, where it always wrote
    assert read_run(tmp_path).runs == 3


def test_a_run_that_a_finding_ended_is_not_complete(tmp_path):
    monitor = GradientMonitor(tmp_path, rules=[FindsOne()], on_finding="raise")
    with pytest.raises(SickLayerError):
        fit(build(), monitor)
    run = read_run(tmp_path)
    assert not run.is_complete
    assert any("did not finish" in note for note in run.notes)
    assert len(run.findings) == 1
    assert 0 < run.recording.total_steps < STEPS


def test_the_page_of_a_short_run_says_that_it_is_short(tmp_path):
    model, data = build(), nets.dataset(9 * BATCH, BATCH)
    monitor = GradientMonitor(tmp_path, on_finding=None)
    model.fit(data, shuffle=False, verbose=0, callbacks=[monitor])
    page = write_html_report(tmp_path).read_text()
    assert "9 steps are too few to judge: 50 are needed." in page
