"""Files that another program writes while they are indexed: a hash and a vector are of the same content, or there are
none."""

import os
import time
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import crash

from onepeace.index import maintain, reading
from onepeace.index.store import Store

OLD, NEW = b"an old text", b"another one"
TIME = 1_000_000_000


def rewritten(path: Path) -> None:
    """As long as before, and with the same time."""
    path.write_bytes(NEW)
    os.utime(path, (TIME, TIME))


def rewritten_at_once(path: Path) -> None:
    """As a change within the same tick of the clock, after which the file has the same times."""
    path.write_bytes(NEW)


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(NEW)
    os.utime(other, (TIME, TIME))
    other.replace(path)


def swapped_for_a_moment(path: Path) -> None:
    """Decoded is another file than before and after."""
    other = path.with_suffix(".other")
    other.write_bytes(NEW)
    path.rename(path.with_suffix(".kept"))
    other.rename(path)


def deleted(path: Path) -> None:
    path.unlink()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "files" / "a.txt"
    path.parent.mkdir()
    path.write_bytes(OLD)
    os.utime(path, (TIME, TIME))
    return path


@pytest.fixture
def build(text, tmp_path, monkeypatch):
    """Builds an index while a program changes the file before it is decoded, so many times; returns its one item."""

    def run(change, times=1):
        changes = iter(times * [change])

        class Embedder(crash.Embedder):
            def stream(self, values, **options):
                for value in values:
                    path = value["text"]
                    next(changes, lambda path: None)(path)
                    if path.exists():
                        yield from super().stream([value])
                    else:
                        yield SimpleNamespace(windows=None, reason="no such file", is_silent=False)
                    kept = path.with_suffix(".kept")
                    if kept.exists():
                        kept.replace(path)

        with crash.without_model(), monkeypatch.context() as patch:
            patch.setattr(crash, "Embedder", Embedder)
            report = maintain.build(tmp_path / "index", text.parent, progress=False)
        with closing(Store(tmp_path / "index")) as store:
            (item,) = store.items()
            _, _, vectors = store.intact([item.id])[item.id]
        return report, item, vectors

    return run


@pytest.mark.parametrize("change", [rewritten, replaced, swapped_for_a_moment])
def test_file_that_changes_once_is_read_again(build, text, change):
    report, item, vectors = build(change)
    content = text.read_bytes()
    assert item.hash == blake2b(content, digest_size=16).digest()
    assert (vectors == crash.vectors_of(content)).all()
    assert (report.added, report.problems) == (1, [])
    assert (item.size, item.mtime_ns) == (text.stat().st_size, text.stat().st_mtime_ns)


def test_change_that_no_time_shows_is_seen(build, text, monkeypatch):
    state = reading.FileState(len(OLD), time.time_ns(), time.time_ns())
    monkeypatch.setattr(reading.FileState, "of", lambda status: state)
    _, item, vectors = build(rewritten_at_once)
    assert item.hash == blake2b(NEW, digest_size=16).digest()
    assert (vectors == crash.vectors_of(NEW)).all()


@pytest.mark.parametrize("change", [rewritten, swapped_for_a_moment])
def test_file_that_never_stays_is_a_problem_that_the_next_update_tries_again(build, text, tmp_path, change):
    report, item, vectors = build(change, times=10)
    assert [problem.reason for problem in report.problems] == [item.problem] == ["changes while it is read"]
    assert (item.hash, len(vectors)) == (None, 0)
    with crash.without_model():
        assert maintain.update(tmp_path / "index", progress=False).added == 1


def test_file_that_goes_is_a_problem(build):
    report, item, vectors = build(deleted)
    assert (len(report.problems), item.hash, len(vectors)) == (1, None, 0)
