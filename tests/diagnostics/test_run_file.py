import json

import numpy as np
import pytest

import tfdeep
from tfdeep import cli
from tfdeep._keras._architecture import LayerInfo
from tfdeep._quantities import OF_LAYERS, OF_VARIABLES
from tfdeep.diagnostics import Finding, Recording, read_run
from tfdeep.diagnostics._run_file import (
    FILE_NAME,
    RunFileWriter,
    Thinning,
    is_written,
)
from tfdeep.errors import CorruptFileError, InvalidArgumentError, UnknownFormatError

LAYERS = (
    LayerInfo("hidden1", "Dense", "relu", "hidden1/kernel", bias="hidden1/bias"),
    LayerInfo(
        "outputs", "Dense", kernel="outputs/kernel", gain=1.25, inputs=("hidden1",)
    ),
)
VARIABLES = ("hidden1/kernel", "hidden1/bias", "outputs/kernel")
FINDING = Finding("dead_units", "hidden1", "warning", 2, "7 of 8", "another start")


def rows(count=4):
    norm = np.arange(1, 3 * count + 1, dtype=np.float32).reshape(count, 3) / 3
    mean = np.full_like(norm, np.nan)
    mean[0] = [1e-20, -2.5, np.nan]
    return {
        "loss": np.ones((count, 1), np.float32),
        "norm": norm,
        "mean": mean,
        "effective_rank": np.empty((count, 0), np.float32),
        "silent_fraction": np.full_like(norm, np.nan),
    }


def write(log_dir, values=None, first_step=0, end=True, chosen=None):
    writer = RunFileWriter(log_dir)
    writer.begin(VARIABLES, LAYERS)
    values = rows() if values is None else values
    count = len(values["loss"])
    writer.write(values, first_step, np.ones(count, bool) if chosen is None else chosen)
    writer.write_findings([FINDING])
    if end:
        writer.end(first_step + count, [])
    return log_dir / FILE_NAME


def test_it_reads_back_what_was_written(tmp_path):
    write(tmp_path)
    run = read_run(tmp_path)
    recording = run.recording
    assert recording.variables == VARIABLES
    assert str(recording.layers) == str(LAYERS)  # NaN is unlike itself
    assert recording.quantities == ("loss", "norm", "mean", "silent_fraction")
    assert list(recording.steps) == [0, 1, 2, 3]
    assert list(recording.measured_steps) == [0]
    np.testing.assert_allclose(recording["norm"], rows()["norm"], rtol=1e-4)
    np.testing.assert_allclose(recording["mean"], rows()["mean"][:1], rtol=1e-4)
    assert np.isnan(recording["silent_fraction"]).all()  # looked for, never found
    assert run.findings == (FINDING,)
    assert (run.runs, run.is_complete, run.notes) == (1, True, ())
    assert run.tfdeep_version == tfdeep.__version__


def test_it_is_strict_json_for_every_number(tmp_path):
    values = rows()
    values["norm"][0] = [np.nan, np.inf, -np.inf]
    path = write(tmp_path, values)
    step = json.loads(path.read_text().splitlines()[1])
    assert step["norm"] == [None, "inf", "-inf"]
    assert step["mean"] == [1e-20, -2.5, None]
    norm = read_run(tmp_path).recording["norm"]
    np.testing.assert_array_equal(norm[0], [np.nan, np.inf, -np.inf])
    assert step["loss"] == [1.0]


def test_left_out_steps_keep_their_numbers(tmp_path):
    write(tmp_path, rows(10), chosen=np.isin(np.arange(10), [0, 1, 4, 5, 9]))
    recording = read_run(tmp_path).recording
    assert list(recording.steps) == [0, 1, 4, 5, 9]
    np.testing.assert_allclose(
        recording["norm"], rows(10)["norm"][[0, 1, 4, 5, 9]], rtol=1e-4
    )
    assert recording.total_steps == 10


class TestSeveralRuns:
    def test_the_last_is_read(self, tmp_path):
        write(tmp_path, rows(4))
        write(tmp_path, rows(2))
        run = read_run(tmp_path)
        assert run.recording.total_steps == 2
        assert run.runs == 2
        assert run.notes == ("This is run 2 of 2 in the file; `run` chooses another.",)

    def test_each_is_found_by_its_number(self, tmp_path):
        for count in (4, 2, 3):
            write(tmp_path, rows(count))
        runs = [read_run(tmp_path, run=number) for number in (1, 2, 3)]
        assert [run.recording.total_steps for run in runs] == [4, 2, 3]
        assert [run.findings for run in runs] == [(FINDING,)] * 3
        assert "run 1 of 3" in runs[0].notes[0]

    def test_one_that_was_killed_says_so(self, tmp_path):
        path = write(tmp_path, rows(4), end=False)
        path.write_bytes(path.read_bytes()[:-20])
        write(tmp_path)
        run = read_run(tmp_path, run=1)
        assert len(run.recording.steps) == 4
        assert run.findings == ()
        assert run.notes[1:] == (
            "The last line is cut short: the program ended while writing it.",
            "The fit did not finish.",
        )

    def test_one_of_which_only_half_a_header_was_written(self, tmp_path):
        path = write(tmp_path)
        with path.open("a") as file:
            file.write('{"run":1,"tfd')
        write(tmp_path, rows(2))
        assert read_run(tmp_path).recording.total_steps == 2
        with pytest.raises(CorruptFileError, match="line 8"):
            read_run(tmp_path, run=2)

    @pytest.mark.parametrize("number", [0, 3, -1, True, 1.0, "1"])
    def test_no_such_run(self, tmp_path, number):
        write(tmp_path)
        write(tmp_path)
        with pytest.raises(InvalidArgumentError, match="holds 2 runs"):
            read_run(tmp_path, run=number)


class TestACrash:
    @pytest.mark.parametrize("kept", [-3, -40])
    def test_costs_the_last_line(self, tmp_path, kept):
        path = write(tmp_path, end=False)
        path.write_bytes(path.read_bytes()[:kept])
        run = read_run(tmp_path)
        assert len(run.recording.steps) == 4
        assert run.findings == ()
        assert not run.is_complete
        assert run.notes[0].startswith("The last line is cut short")
        assert run.notes[1].startswith("The fit is still running")

    def test_does_not_spoil_the_next_run(self, tmp_path):
        path = write(tmp_path, end=False)
        path.write_bytes(path.read_bytes()[:-20])
        write(tmp_path)
        assert read_run(tmp_path).runs == 2
        assert read_run(tmp_path).is_complete

    def test_at_the_header_leaves_the_run_before(self, tmp_path):
        path = write(tmp_path)
        with path.open("a") as file:
            file.write('{"run":1,"tfd')
        run = read_run(tmp_path)
        assert run.runs == 1
        assert len(run.recording.steps) == 4

    def test_before_the_first_step_leaves_an_empty_run(self, tmp_path):
        RunFileWriter(tmp_path).begin(VARIABLES, LAYERS)
        run = read_run(tmp_path)
        assert len(run.recording.steps) == 0
        assert not run.is_complete


class TestBadInput:
    def test_no_directory(self, tmp_path):
        with pytest.raises(InvalidArgumentError, match="does not exist"):
            read_run(tmp_path / "nowhere")

    def test_no_run_in_it(self, tmp_path):
        with pytest.raises(InvalidArgumentError, match=f"holds no {FILE_NAME}") as e:
            read_run(tmp_path)
        assert "GradientMonitor(log_dir)" in str(e.value)

    def test_the_directory_above(self, tmp_path):
        (tmp_path / "first").mkdir()
        write(tmp_path / "first")
        with pytest.raises(
            InvalidArgumentError, match=r"directory of one run: .*first"
        ):
            read_run(tmp_path)

    @pytest.mark.parametrize(
        "content", [b"", b"\x89PNG\r\n\x1a\n\0\0", b'{"run"', b"[1, 2]\n", b"words\n"]
    )
    def test_another_file(self, tmp_path, content):
        (tmp_path / FILE_NAME).write_bytes(content)
        with pytest.raises(UnknownFormatError, match="not the file of a monitored run"):
            read_run(tmp_path)

    def test_another_version(self, tmp_path):
        (tmp_path / FILE_NAME).write_text('{"run":2,"tfdeep":"9.0"}\n')
        with pytest.raises(UnknownFormatError, match=r"format 2, written by tfdeep 9"):
            read_run(tmp_path)

    @pytest.mark.parametrize(
        "line",
        [
            "words",
            "[1]",
            "7",
            '{"step":"x"}',
            '{"step":1,"norm":[1,2]}',
            '{"step":1,"norm":["?",1,2]}',
            '{"step":1,"norm":7}',
            '{"step":0}',
            '{"finding":{}}',
            '{"finding":7}',
            '{"end":null}',
            '{"telemetry":[7]}',
            '{"step":Infinity,"loss":[1]}',
            '{"step":99999999999999999999,"loss":[1]}',
            '{"step":9223372036854775807,"loss":[1]}',
            '{"step":-1,"loss":[1]}',
            '{"end":1e999}',
            '{"end":1e300}',
            f'{{"step":1,"loss":[{"9" * 400}]}}',
            '{"step":1,"loss":[1e39]}',  # no float32
            '{"step":1,"norm":[1,2,3,4]}',
            '{"step":1,"loss":[1,2]}',
            '{"step":1,"effective_rank":[1]}',
            "[" * 100_000,
            '{"step":' * 100_000,
            '{"finding":{"kind":"","layer":"","severity":"","first_step":1e300,'
            '"evidence":"","remedy":""}}',
        ],
        ids=lambda line: line[:40],
    )
    def test_a_damaged_line(self, tmp_path, line, capsys):
        path = write(tmp_path)
        lines = path.read_text().splitlines()
        lines.insert(2, line)
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(CorruptFileError, match=r"damaged\.\n.*line 3: "):
            read_run(tmp_path)
        assert cli.main(["report", str(tmp_path)]) == cli.FAILED
        assert "The file of the run is damaged" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ('{"step":0}\n{"step":1}\n', "line 2: the first step has no"),
            (
                '{"step":0,"loss":[1],"norm":[1,2]}\n',
                "'norm' has 2 numbers instead of 3",
            ),
        ],
    )
    def test_a_first_row_that_is_not_the_headers(self, tmp_path, rows, message):
        RunFileWriter(tmp_path).begin(VARIABLES, LAYERS)
        with (tmp_path / FILE_NAME).open("a") as file:
            file.write(rows)
        with pytest.raises(CorruptFileError, match=message):
            read_run(tmp_path)

    def test_the_directory_of_tensorboard(self, tmp_path):
        write(tmp_path / "log")
        write(tmp_path / "log")
        (tmp_path / "log" / "fit_2").mkdir()
        with pytest.raises(InvalidArgumentError, match=r"give .*log' with `run=2`"):
            read_run(tmp_path / "log" / "fit_2")

    @pytest.mark.parametrize(
        "header",
        [
            '{"run":1}',
            '{"run":1,"variables":7,"layers":[]}',
            '{"run":1,"variables":[],"layers":[{"kind":"Dense"}]}',
            '{"run":1,"variables":[],"layers":[7]}',
            '{"run":1,',
            '{"run":' + "[" * 100_000,
            '{"run":1,"variables":[],"layers":[{"path":"a","kind":"b","inputs":7}]}',
            '{"run":1,"variables":[],"layers":[{"path":"a","kind":"b","gain":'
            + "9" * 400
            + "}]}",
        ],
        ids=lambda header: header[:40],
    )
    def test_a_damaged_header(self, tmp_path, header):
        (tmp_path / FILE_NAME).write_text(header + '\n{"end":0}\n')
        with pytest.raises(CorruptFileError, match="The file of the run is damaged"):
            read_run(tmp_path)

    def test_what_a_later_version_adds_is_left_out(self, tmp_path):
        path = write(tmp_path)
        header, *lines = path.read_text().splitlines()
        header = json.loads(header)
        header["layers"][0]["colour"] = "blue"
        lines.insert(1, '{"weather":"fine"}')
        path.write_text("\n".join([json.dumps(header, separators=(",", ":")), *lines]))
        run = read_run(tmp_path)
        assert len(run.recording.steps) == 4
        assert run.recording.layers[0].path == "hidden1"

    def test_a_quantity_of_a_later_version_is_left_out(self, tmp_path):
        path = write(tmp_path)
        header, first, *lines = path.read_text().splitlines()
        more = ',"weather":[1,2,3,4,5],"mood":"fine"}'
        path.write_text("\n".join([header, first[:-1] + more, *lines]) + "\n")
        recording = read_run(tmp_path).recording
        assert recording.quantities == ("loss", "norm", "mean", "silent_fraction")
        np.testing.assert_allclose(recording["norm"], rows()["norm"], rtol=1e-4)

    def test_names_that_are_none_do_no_harm(self, tmp_path):
        layer = {"path": 7, "kind": {}, "activation": [], "kernel": [], "bias": 1.5}
        header = {"run": 1, "variables": ["a/kernel"], "layers": [layer]}
        (tmp_path / FILE_NAME).write_text(
            json.dumps(header, separators=(",", ":"))
            + '\n{"step":0,"loss":[1],"norm":[1]}\n'
        )
        tfdeep.diagnostics.write_html_report(tmp_path)


def test_every_quantity_that_is_written_can_be_read():
    recording = Recording(VARIABLES, LAYERS)
    widths = {name: recording.width(name) for name in OF_VARIABLES}
    assert set(widths.values()) == {3}
    assert {recording.width(name) for name in OF_LAYERS} == {2}
    of_the_net = ("loss", "input_offset", "input_spread")
    assert {recording.width(name) for name in of_the_net} == {1}
    assert recording.width("weather") is None


class TestExtend:
    def test_what_is_left_out_is_unknown(self):
        recording = Recording(VARIABLES, LAYERS)
        recording.extend({"loss": np.full((3, 1), 5), "mean": np.ones((3, 3))})
        recording.extend({"mean": np.full((2, 3), 2)})
        np.testing.assert_array_equal(
            recording["loss"][:, 0], [5, 5, 5, np.nan, np.nan]
        )
        assert recording["mean"][:, 0].tolist() == [1, 1, 1, 2, 2]
        recording.extend({"loss": np.full((1, 1), 6)})
        assert list(recording.measured_steps) == [0, 1, 2, 3, 4]
        assert recording["loss"][-1] == 6

    def test_what_is_new_was_unknown(self):
        recording = Recording(VARIABLES, LAYERS)
        recording.extend({"loss": np.ones((3, 1)), "mean": np.ones((3, 3))})
        recording.extend({"norm": np.full((2, 3), 2), "flat_fraction": np.ones((2, 2))})
        np.testing.assert_array_equal(recording["norm"][:, 0], [np.nan] * 3 + [2, 2])
        np.testing.assert_array_equal(
            recording["flat_fraction"][:, 1], [np.nan] * 3 + [1, 1]
        )
        np.testing.assert_array_equal(
            recording["mean"][:, 0], [1, 1, 1, np.nan, np.nan]
        )

    def test_a_full_table_takes_what_is_new(self):
        recording = Recording(VARIABLES, LAYERS, memory=0)
        recording.extend({"loss": np.arange(2000.0)[:, None]})
        recording.extend({"norm": np.arange(6000.0).reshape(2000, 3)})
        assert recording.total_steps == 4000
        later = recording.steps >= 2000
        np.testing.assert_array_equal(np.isnan(recording["norm"][:, 0]), ~later)
        np.testing.assert_array_equal(np.isnan(recording["loss"][:, 0]), later)

    @pytest.mark.parametrize("nothing", [{}, {"loss": np.empty((3, 0))}])
    def test_by_nothing(self, nothing):
        with pytest.raises(InvalidArgumentError, match="nothing to extend"):
            Recording(VARIABLES).extend(nothing)


class TestThinning:
    def test_long_runs_are_written_ever_more_sparsely(self):
        written = [step for step in range(100_000) if is_written(step)]
        assert written[:1024] == list(range(1024))
        assert len(written) < 5_000
        assert max(np.diff(written)) <= 100_000 / 512

    def test_measured_rows_are_counted_by_themselves(self):
        thinning, kept = Thinning(40), []
        for first in range(0, 20_000, 100):
            mean = np.full((100, 2), np.nan, np.float32)
            mean[::10] = 1
            frozen = np.ones((100, 2), np.float32)  # says nothing of the step
            each, detailed = thinning.choose({"mean": mean, "is_frozen": frozen}, first)
            assert list(np.flatnonzero(each)) == [
                i for i in range(100) if is_written(first + i)
            ]
            kept += (first + np.flatnonzero(detailed)).tolist()
        assert kept[:256] == list(range(0, 2560, 10))
        assert 256 < len(kept) < 700

    def test_a_large_net_is_written_more_sparsely(self):
        def count(weights):
            thinning = Thinning(weights)
            each, _ = thinning.choose({"norm": np.ones((10_000, 1))}, 0)
            return each.sum()

        assert count(10) == count(50) > count(51) > count(300) == count(10_000) > 400
