"""Files that are there whole or not at all."""

import pytest

from minivl2.files import written_whole


def contents(folder):
    return {p.name: p.read_text() for p in folder.iterdir()}


def test_files_appear_only_when_all_are_written(tmp_path):
    folder = tmp_path / "deep" / "folder"
    with written_whole(folder) as staged:
        (staged / "a").write_text("1")
        assert not folder.exists()
        (staged / "b").write_text("2")
    assert contents(folder) == {"a": "1", "b": "2"}
    assert list(folder.parent.iterdir()) == [folder]        # no litter beside it


def test_files_of_the_same_name_are_replaced_and_others_stay(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("old"), (folder / "mine").write_text("kept")
    with written_whole(folder) as staged:
        assert list(staged.iterdir()) == []
        (staged / "a").write_text("new")
        assert contents(folder) == {"a": "old", "mine": "kept"}
    assert contents(folder) == {"a": "new", "mine": "kept"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(tmp_path, error):
    """Also Ctrl-C, in the middle of a file."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("old")
    with pytest.raises(error), written_whole(folder) as staged:
        (staged / "a").write_text("half of the n")
        raise error
    assert contents(folder) == {"a": "old"}
    assert list(tmp_path.iterdir()) == [folder]


def test_an_error_leaves_no_new_folder(tmp_path):
    with pytest.raises(ValueError), written_whole(tmp_path / "folder") as staged:
        (staged / "a").write_text("1")
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_who_has_the_old_file_open_keeps_the_old_file(tmp_path):
    """A model is mapped from the very file that it is saved to: the file must be replaced and not overwritten."""
    (tmp_path / "a").write_text("old")
    with open(tmp_path / "a") as reader:
        with written_whole(tmp_path) as staged:
            (staged / "a").write_text("new")
        assert reader.read() == "old"
    assert contents(tmp_path) == {"a": "new"}
