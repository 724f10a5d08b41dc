"""Files that another program writes while they are indexed: a hash and a vector are of the same content, or there are
none."""

import os
import time
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import crash
from support.indexes import content

from onepeace.index import maintain
from onepeace.index.content import FileState

OLD = b"an old text"
NEW = b"another one"
TIME = 1_000_000_000


def rewrite(path: Path) -> None:
    """Write other content of the same length and time."""
    path.write_bytes(NEW)
    os.utime(path, (TIME, TIME))


def rewrite_at_once(path: Path) -> None:
    """Write other content within the same tick of the clock, so that the file has the same times."""
    path.write_bytes(NEW)


def replace(path: Path) -> None:
    new_path = path.with_suffix(".new")
    rewrite(new_path)
    new_path.replace(path)


def swap_for_a_moment(path: Path) -> None:
    """Decoded is another file than before and after."""
    path.rename(path.with_suffix(".kept"))
    path.write_bytes(NEW)


def swap_back(path: Path) -> None:
    kept_path = path.with_suffix(".kept")
    if kept_path.exists():
        kept_path.replace(path)


def delete(path: Path) -> None:
    path.unlink()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "files" / "a.txt"
    path.parent.mkdir()
    path.write_bytes(OLD)
    os.utime(path, (TIME, TIME))
    return path


class Indexed(SimpleNamespace):
    """What building an index of the text gave: report, fields of the item, vectors."""


@pytest.fixture
def build(text, index, monkeypatch):
    """Builds an index while a program changes the file before it is decoded, so many times."""

    def run(change, times=1):
        class Embedder(crash.Embedder):
            changes = times

            def stream(self, values, **options):
                for value in values:
                    if self.changes:
                        self.changes -= 1
                        change(text)
                    if text.exists():
                        yield from super().stream([value])
                    else:
                        yield SimpleNamespace(windows=None, reason="no such file", is_silent=False)
                    swap_back(text)

        with crash.without_model(), monkeypatch.context() as patch:
            patch.setattr(crash, "Embedder", Embedder)
            report = maintain.build(index, text.parent, progress=False)
        (file,) = content(index).values()
        return Indexed(report=report, vectors=file.vectors, **file.fields)

    return run


@pytest.mark.parametrize("change", [rewrite, replace, swap_for_a_moment])
def test_file_that_changes_once_is_read_again(build, text, change):
    indexed = build(change)

    read = text.read_bytes()
    assert indexed.hash == blake2b(read, digest_size=16).digest()
    assert (indexed.vectors == crash.vectors_of(read)).all()
    assert (indexed.size, indexed.mtime_ns) == (text.stat().st_size, text.stat().st_mtime_ns)
    assert (indexed.report.added, indexed.report.problems) == (1, [])


def test_change_that_no_time_shows_is_seen(build, monkeypatch):
    state = FileState(len(OLD), time.time_ns(), time.time_ns())
    monkeypatch.setattr(FileState, "of", lambda status: state)

    indexed = build(rewrite_at_once)

    assert indexed.hash == blake2b(NEW, digest_size=16).digest()
    assert (indexed.vectors == crash.vectors_of(NEW)).all()


@pytest.mark.parametrize("change", [rewrite, swap_for_a_moment])
def test_file_that_never_stays_is_a_problem_that_the_next_update_tries_again(build, index, change):
    indexed = build(change, times=10)

    (problem,) = indexed.report.problems
    assert "changes" in problem.reason
    assert indexed.problem == problem.reason
    assert indexed.hash is None
    assert len(indexed.vectors) == 0
    with crash.without_model():
        assert maintain.update(index, progress=False).added == 1


def test_file_that_goes_is_a_problem(build):
    indexed = build(delete)

    assert len(indexed.report.problems) == 1
    assert indexed.hash is None
    assert len(indexed.vectors) == 0
