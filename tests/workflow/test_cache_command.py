"""`tfdeep cache`, as a shell script would use it."""

import json

import pytest

import tfdeep
from tests import nets
from tfdeep.cli import DONE, FAILED, NO, main


@pytest.fixture
def cache(tmp_path):
    """Two entries, and their keys."""
    keys = []
    for include in ("hidden1", "hidden[12]"):
        model = nets.functional()
        tfdeep.freeze(model, include)
        keys.append(tfdeep.cache_frozen(model, nets.dataset(), tmp_path)[2].key)
    return str(tmp_path), keys


def damage(tmp_path, key):
    file = next((tmp_path / key).glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-7] ^= 4
    file.write_bytes(content)
    return file.name


def test_ls(cache, capsys):
    cache_dir, keys = cache
    assert main(["cache", "ls", cache_dir]) == DONE
    table = capsys.readouterr().out
    assert "2 entries" in table
    for key in keys:
        assert key[:10] in table
    assert "complete" in table
    assert "hidden2" in table
    assert all(len(line) <= 80 for line in table.splitlines()[1:])
    assert main(["cache", "ls", cache_dir, "--json"]) == DONE
    listed = json.loads(capsys.readouterr().out)
    assert [entry["key"] for entry in listed["entries"]] == sorted(keys)
    assert listed["entries"][0]["rows"] == 96


def test_ls_of_a_directory_that_holds_something_else(tmp_path, capsys):
    (tmp_path / "other.txt").write_text("not ours")
    assert main(["cache", "ls", str(tmp_path)]) == DONE
    assert "Nothing in this directory was made by `cache_frozen`" in (
        capsys.readouterr().out.replace("\n", " ")
    )


def test_verify(cache, tmp_path, capsys):
    cache_dir, (first, second) = cache
    assert main(["cache", "verify", cache_dir]) == DONE
    capsys.readouterr()
    name = damage(tmp_path, first)
    assert main(["cache", "verify", cache_dir]) == NO
    text = capsys.readouterr().out
    assert name in text
    assert "damaged" in text
    assert main(["cache", "verify", cache_dir, second[:6]]) == DONE


def test_rm(cache, tmp_path, capsys):
    cache_dir, (first, second) = cache
    damage(tmp_path, first)
    assert main(["cache", "rm", cache_dir, first[:8]]) == DONE
    assert "1 entry" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [second]
    (tmp_path / second / "shard-00000.safetensors").write_text("half")
    (tmp_path / second / "manifest.json").unlink()
    assert main(["cache", "rm", cache_dir, "--all"]) == DONE
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_done(cache, tmp_path, capsys):
    cache_dir, (first, _) = cache
    for arguments, message in (
        (["ls", str(tmp_path / "nowhere")], "no such cache"),
        (["rm", cache_dir], "neither KEY nor --all"),
        (["rm", cache_dir, first, "--all"], "KEY and --all"),
        (["rm", cache_dir, "zzz"], "not the key of one entry"),
        (["verify", cache_dir, ""], "not the key of one entry"),
    ):
        assert main(["cache", *arguments]) == FAILED
        assert message in capsys.readouterr().err
    (tmp_path / first / "notes.txt").write_text("mine")
    assert main(["cache", "rm", cache_dir, first]) == FAILED
    assert "notes.txt" in capsys.readouterr().err
    assert (tmp_path / first / "manifest.json").exists()


def test_the_help_says_when_a_key_is_needed(capsys):
    for action, words in (
        ("rm", "KEY the entries; without one, --all is needed"),
        ("verify", "KEY the entries (default: all)"),
    ):
        with pytest.raises(SystemExit):
            main(["cache", action, "--help"])
        assert words in " ".join(capsys.readouterr().out.split())
