"""Containers that cannot be opened."""

import pytest

from onepeace.errors import UserError
from onepeace.files.container import open_container


def test_file_that_the_system_does_not_open_is_an_error(tmp_path):
    pytest.importorskip("av")
    with (
        pytest.raises(UserError, match=r"^a\.mp4: cannot be opened \(.+\)$"),
        open_container(tmp_path, "a.mp4"),
    ):
        pass
