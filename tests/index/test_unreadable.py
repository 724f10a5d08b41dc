"""Files that cannot be read: each is kept with its reason, and tried again when that may help."""

import os
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from support.broken_files import write_broken, write_good
from support.indexes import counts

from onepeace.index import Index, content, maintain
from onepeace.index.database import Store


@pytest.fixture
def reasons(index):
    """Gives the reason of each problem of the index by the name of the file."""

    def read():
        with Index.open(index) as opened:
            return {os.path.basename(problem.path): problem.reason for problem in opened.problems()}

    return read


def test_broken_files_have_reasons(build, reasons, tmp_path, samples):
    words = write_broken(tmp_path / "files", samples)
    write_good(tmp_path / "files", samples, 3)

    build(tmp_path / "files")

    assert reasons().keys() == words.keys()
    for name, word in words.items():
        assert word in reasons()[name]


def test_file_that_could_not_be_opened_is_tried_again(build, words, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as context:
        context.setattr(content, "open", refuse, raising=False)
        report = build(words)
        assert {problem.reason for problem in report.problems} == {"Permission denied"}
        assert counts(build(words)) == {"known_problems": 6}

    assert counts(build(words)) == {"added": 6}  # though neither size nor time have changed


def test_file_that_lacked_a_package_is_tried_when_it_is_there(build, words, index):
    build(words)
    with closing(Store(index, write=True)) as store, store.transaction():
        items = list(store.items())
        for item, module in [(items[0], "json"), (items[1], "no_such_package")]:
            problem = f'it is: needs {module}: pip install "onepeace[media]"'
            store.add(replace(item, problem=problem), [], np.empty((0, 16)))

    assert counts(build(words)) == {"added": 1, "unchanged": 4, "known_problems": 1}


def test_pipe_that_replaces_a_file_after_the_scan_is_not_waited_for(build, words, monkeypatch):
    scan = maintain.scan

    def scan_and_replace(roots):
        scanned = scan(roots)
        (words / "0.txt").unlink()
        os.mkfifo(words / "0.txt")
        return scanned

    monkeypatch.setattr(maintain, "scan", scan_and_replace)

    (problem,) = build(words).problems

    assert problem == (words / "0.txt", "not a regular file")


def test_file_that_is_too_large_is_not_hashed(build, words, monkeypatch):
    monkeypatch.setattr(content, "LIMITS", {"text": 20})
    monkeypatch.setattr(content, "_hash", None)
    for path in words.iterdir():
        path.write_text("words above the limit of a text")

    (reason,) = {problem.reason for problem in build(words).problems}

    assert "31 bytes" in reason
    assert "20" in reason
