"""Builds that are interrupted: what was done is kept, and the next one goes on."""

import pytest
from support.broken_files import write_good
from support.indexes import content, counts

from onepeace.errors import UserError
from onepeace.index import check
from onepeace.index.record import Recorder

OF_OTHERS = ["vectors-old.bin", "lists-of-words.faiss", ".notes.tmp", ".last.pt.onepeace-0123abcd.tmp"]
"""Names that are like those of an index."""


def test_interrupt_keeps_what_is_done(build, check_as_new, index, tmp_path, samples, monkeypatch):
    write_good(tmp_path / "files", samples, 20)
    record_vectors = Recorder.record_vectors
    recorded = []

    def record_eight(self, file):
        if len(recorded) == 8:
            raise KeyboardInterrupt
        recorded.append(file.item.path)
        record_vectors(self, file)

    with monkeypatch.context() as context:
        context.setattr(Recorder, "record_vectors", record_eight)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "files", batch_size=4)

    assert content(index).keys() == set(recorded)
    assert counts(build(tmp_path / "files")) == {"added": 12, "unchanged": 8}
    check_as_new(tmp_path / "files")


def test_index_that_is_moved_meanwhile_keeps_what_is_done(build, words, index, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    record_vectors = Recorder.record_vectors

    def record_and_move(self, file):
        record_vectors(self, file)
        if index.exists():
            index.rename(moved)
        self.flush()

    with monkeypatch.context() as context:
        context.setattr(Recorder, "record_vectors", record_and_move)
        with pytest.raises(UserError, match=f"{index}: .* moved"):
            build(words, batch_size=1)

    assert not index.exists()
    assert len(content(moved)) == 1
    assert check(moved).ok
    assert counts(build(words, into=moved)) == {"added": 5, "unchanged": 1}


def test_build_that_failed_at_its_first_write_can_be_repeated(build, words, monkeypatch):
    """What the failed build leaves does not make the folder pass for another program's."""

    def fail(*_):
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("onepeace.index.database.write_database", fail)
        with pytest.raises(UserError, match="disk"):
            build(words)

    assert counts(build(words)) == {"added": 6}


def test_what_a_killed_run_left_is_removed_and_nothing_else(build, update, words, index):
    build(words)
    unique = "0123456789abcdef"
    ours = [
        *(f".vectors-{unique}.bin.onepeace-0123abcd.tmp", ".index.sqlite.onepeace-0123abcd.tmp-journal"),
        *(f"vectors-{unique}.bin", f"lists-{unique}.faiss"),
    ]
    for name in (*ours, *OF_OTHERS):
        (index / name).write_text("left")

    update()

    assert not any((index / name).exists() for name in ours)
    assert all((index / name).exists() for name in OF_OTHERS)


@pytest.mark.parametrize("name", [*OF_OTHERS, "next"])
def test_folder_of_others_with_a_lock_is_no_index(build, words, index, tmp_path, name):
    """As a training run leaves in its folder: nothing in it is removed."""
    (tmp_path / "empty").mkdir()
    index.mkdir()
    for path in (index / ".lock", index / name / "last.pt" if name == "next" else index / name):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    before = sorted(index.rglob("*"))

    for folder in (words, tmp_path / "empty"):
        with pytest.raises(UserError):
            build(folder)
        assert sorted(index.rglob("*")) == before
