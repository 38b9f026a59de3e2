"""The example of the guide, and what the guide says of it."""

import re

from tests.programs import ROOT, example


def test_the_start_from_data_takes_out_the_size_of_the_first_weights(capsys):
    results = example("layers_start_from_data").main()
    for (_, adapted), found in results.items():
        if adapted:
            assert all(abs(s - 0.628) < 0.02 for s in found)
    assert results[0.02, False][-1] < 1e-6
    said = re.findall(
        r"^\| (N\(0, .*?) \| (\S+) \| (\S+) \|$",
        (ROOT / "docs" / "layers.md").read_text(),
        re.MULTILINE,
    )
    printed = capsys.readouterr().out.splitlines()[1:]
    assert len(said) == len(printed) == 6
    for (label, *numbers), line in zip(said, printed, strict=True):
        assert line.startswith(label.replace("²", "^2"))
        for number, value in zip(numbers, line.split()[-2:], strict=True):
            assert abs(float(number) / float(value) - 1) < 0.02
