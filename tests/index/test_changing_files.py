"""Files that another program writes while they are indexed: a hash and a vector are of the same content, or there are
none."""

import os
from types import SimpleNamespace

import pytest
from support import crash
from support.indexes import content, counts

from onepeace.index import maintain

OLD = b"an old text"
NEW = b"another one"
TIME = 1_000_000_000


def rewrite(path):
    """Write other content of the same length and time."""
    path.write_bytes(NEW)
    os.utime(path, (TIME, TIME))


def replace(path):
    new_path = path.with_suffix(".new")
    rewrite(new_path)
    new_path.replace(path)


@pytest.mark.parametrize("change", [rewrite, replace, os.unlink])
def test_file_that_changes_before_it_is_decoded(tmp_path, index, monkeypatch, change):
    """The next update embeds it, and a copy of it is embedded at once."""
    text = tmp_path / "files" / "a.txt"
    copy = text.with_name("copy.txt")
    text.parent.mkdir()
    for path in (text, copy):
        path.write_bytes(OLD)
        os.utime(path, (TIME, TIME))

    embedded = crash.embedded

    def change_and_embed(path, dim):
        if path == text:
            change(text)
        if path.exists():
            return embedded(path, dim)
        return SimpleNamespace(windows=None, reason="no such file", is_silent=False)

    with crash.without_model():
        with monkeypatch.context() as patch:
            patch.setattr(crash, "embedded", change_and_embed)
            report = maintain.build(index, text.parent, progress=False)
        files = content(index)
        next_report = maintain.update(index, progress=False)

    (problem,) = report.problems
    assert "changes" in problem.reason
    assert (files[str(text)].fields["hash"], len(files[str(text)].vectors)) == (None, 0)
    assert (files[str(copy)].vectors == crash.vectors_of(OLD)).all()
    if change is os.unlink:
        assert counts(next_report) == {"unchanged": 1, "removed": 1}
    else:
        assert counts(next_report) == {"unchanged": 1, "added": 1}
        assert (content(index)[str(text)].vectors == crash.vectors_of(NEW)).all()
