"""Writing files whole or not at all, and what the errors name."""

import os

import pytest

from slimvit_jax.files import atomic_path, write_text


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "plain").write_text("")
    for path in (tmp_path / "folder.txt", tmp_path / "plain" / "x.txt", tmp_path / ("n" * 300 + ".txt")):
        with pytest.raises(OSError) as caught:
            write_text(path, "text")
        assert str(caught.value.filename) in (str(path), str(path.parent)), path
    with pytest.raises(IsADirectoryError):
        write_text("", "text")
    assert sorted(os.listdir(tmp_path)) == ["folder.txt", "plain"]
    long = tmp_path / ("n" * 250 + ".txt")
    write_text(long, "text")
    assert long.read_text() == "text"


def test_a_failed_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
