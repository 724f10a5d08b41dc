"""A model folder appears whole or not at all, and never in place of something else."""

import pytest

from onepeace.errors import UsageError
from onepeace.hub.folder import new_folder


def test_folder_in_use_is_refused_before_anything_is_computed(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")

    with pytest.raises(UsageError) as error, new_folder(tmp_path):
        pytest.fail("the block was entered")

    assert str(tmp_path) in str(error.value)
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("name", [".m.backup.tmp", ".m.2025.old", ".m.onepeace-mine.old"])
def test_writing_leaves_the_folders_of_others(tmp_path, name):
    (tmp_path / name).mkdir()
    with new_folder(tmp_path / "m"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"m", name}
