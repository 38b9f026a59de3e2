"""Files that are there whole or not at all."""

import os
import stat

import pytest
import tensorflow as tf

from tfdeep._core._files import directory_at, is_remote, replaced


class TestReplaced:
    @pytest.mark.parametrize("overwrite", [True, False])
    def test_a_new_file(self, overwrite, tmp_path):
        path = tmp_path / "file"
        with replaced(str(path), overwrite) as temporary:
            assert os.path.dirname(temporary) == str(tmp_path)
            assert not path.exists()
            with open(temporary, "w") as file:
                file.write("new")
        assert path.read_text() == "new"
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize(("overwrite", "content"), [(True, "new"), (False, "old")])
    def test_a_file_that_is_there(self, overwrite, content, tmp_path):
        path = tmp_path / "file"
        path.write_text("old")
        with replaced(str(path), overwrite) as temporary, open(temporary, "w") as file:
            file.write("new")
        assert path.read_text() == content
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_an_error_changes_nothing(self, error, tmp_path):
        path = tmp_path / "file"
        path.write_text("old")
        with pytest.raises(error), replaced(str(path)) as temporary:
            with open(temporary, "w") as file:
                file.write("half")
            raise error
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["file"]

    def test_it_may_be_read_by_whom_other_files_may(self, tmp_path):
        """Even if the writer puts a private file in the place of the temporary one."""
        (tmp_path / "other").write_text("")
        with replaced(str(tmp_path / "file")) as temporary:
            private = os.open(tmp_path / "private", os.O_CREAT | os.O_WRONLY, 0o600)
            os.close(private)
            os.replace(tmp_path / "private", temporary)
        modes = [stat.S_IMODE(os.stat(tmp_path / n).st_mode) for n in ("file", "other")]
        assert modes[0] == modes[1]

    def test_a_path_in_the_working_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with replaced("file") as temporary, open(temporary, "w") as file:
            file.write("new")
        assert (tmp_path / "file").read_text() == "new"


@pytest.fixture(params=["here", "elsewhere"])
def directory(request, tmp_path):
    made = directory_at(
        str(tmp_path / "d") if request.param == "here" else "ram://test_files/d"
    )
    yield made
    if made.exists():
        tf.io.gfile.rmtree(made.path)


class TestDirectories:
    """What is the same here and where only `tf.io.gfile` can read."""

    def test_one_that_does_not_exist(self, directory):
        assert not directory.exists()
        assert directory.names() == []
        assert directory.size("file") is None
        directory.remove_itself()

    def test_files(self, directory):
        directory.make()
        directory.write("file", [b"some", memoryview(b" content")])
        directory.write("file", [b"other"], overwrite=False)
        assert directory.names() == ["file"]
        assert directory.size("file") == 12
        assert directory.read("file", 4) == b"some"
        with directory.copied(["file"]) as copy, open(copy.at("file")) as file:
            assert file.read() == "some content"
        directory.write("file", [b"other"])
        assert directory.read("file", 100) == b"other"
        with pytest.raises(OSError, match="not empty"):
            directory.remove_itself()
        directory.remove("file")
        directory.remove("file")
        directory.remove_itself()
        assert not directory.exists()

    def test_a_file_that_is_not_there(self, directory):
        directory.make()
        with pytest.raises(FileNotFoundError):
            directory.read("file", 1)

    def test_a_directory_is_no_file(self, directory):
        directory_at(directory.at("inner")).make()
        assert directory.names() == ["inner"]
        assert directory.size("inner") is None


@pytest.mark.parametrize(
    ("path", "found"),
    [("gs://b/x", True), ("ram://x", True), ("/a/b", False), (r"C:\a", False)],
)
def test_paths_that_name_a_scheme(path, found):
    assert is_remote(path) == found
