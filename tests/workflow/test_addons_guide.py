"""The guide for users of tensorflow-addons: complete, running, and right."""

import collections
import pathlib
import re

import keras
import numpy as np
import pytest

import tfdeep

ROOT = pathlib.Path(tfdeep.__file__).parent.parent
GUIDE = (ROOT / "docs" / "moving_from_tensorflow_addons.md").read_text()
GOLDENS = ROOT / "tests" / "goldens" / "tfa_symbols"
SYMBOLS = (GOLDENS / "symbols.txt").read_text().splitlines()[1:]
FEWEST_COMPARED = 45

Row = collections.namedtuple("Row", "symbols place line")


def rows():
    for text in GUIDE.splitlines():
        cells = [cell.strip() for cell in text.strip("|").split(" | ")]
        if text.startswith("| `tfa."):
            assert len(cells) in (2, 3), text
            line = cells[2].strip("` |") if len(cells) == 3 else ""
            yield Row(
                re.findall(r"`(tfa\.[^`]+)`", cells[0]), cells[1].rstrip(" |"), line
            )


ROWS = list(rows())
WITH_LINE = [row for row in ROWS if row.line]


@pytest.fixture(scope="module")
def names():
    """What the first code block of the guide defines."""
    found = {}
    exec(re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL).group(1), found)
    return found


def test_every_public_symbol_is_in_the_guide_once():
    listed = [symbol for row in ROWS for symbol in row.symbols]
    assert sorted(listed) == sorted(SYMBOLS)
    assert len(listed) == 192


def test_every_row_says_where_and_those_of_keras_and_tfdeep_how():
    for row in ROWS:
        assert row.place
        if row.place.startswith(
            ("Keras ", "Keras,", "tfdeep", "formula", "TensorFlow")
        ):
            is_elsewhere = row.place.startswith("Keras Recommenders")
            assert row.line or is_elsewhere, row.symbols


def is_new(row):
    return re.search(r"Keras \+", row.place) is not None


@pytest.mark.parametrize("row", WITH_LINE, ids=lambda row: row.symbols[0])
def test_every_line_runs_and_gives_what_tensorflow_addons_gave(row, names):
    try:
        exec(f"found = {row.line}", scope := dict(names))
    except AttributeError as error:
        if is_new(row) and "keras" in str(error):
            pytest.skip(f"not in Keras {keras.__version__}")
        raise
    found = scope["found"]
    assert found is not None
    if not row.place.endswith("="):
        return
    with np.load(GOLDENS / "values.npz") as goldens:
        compared = [symbol for symbol in row.symbols if symbol in goldens.files]
        assert compared, "the guide says that it was compared"
        for symbol in compared:
            value = np.asarray(keras.ops.convert_to_numpy(found), "float64")
            np.testing.assert_allclose(
                value, goldens[symbol], rtol=2e-5, atol=2e-6, err_msg=symbol
            )


def test_what_was_measured_is_said():
    said = {s for row in ROWS if row.place.endswith("=") for s in row.symbols}
    with np.load(GOLDENS / "values.npz") as goldens:
        assert set(goldens.files) <= said
        assert len(goldens.files) >= FEWEST_COMPARED
