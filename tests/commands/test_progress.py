"""Signs of life: a bar on a terminal, few lines in a log, nothing when it is not wanted."""

import logging
import sys

import pytest

from onepeace import progress
from onepeace.progress import Progress, status


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "onepeace")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_thirty_seconds_with_rate_and_time_left(lines, clock, capsys):
    with Progress(100) as bar:
        for _ in range(60):
            clock[0] += 1
            bar.update()
    assert lines() == [
        "30 of 100 files, 1.0 a second, 1 min 10 s left",
        "60 of 100 files, 1.0 a second, 0 min 40 s left",
    ]
    assert capsys.readouterr().err == ""


def test_work_of_unknown_length_has_a_rate(lines, clock):
    with Progress(None, "row") as rows:
        rows.update(10)
        clock[0] += 40
        rows.update(80)
    assert lines() == ["90 rows, 2.0 a second"]


def test_the_time_until_the_first_is_in_no_estimate(lines, clock):
    with Progress(400) as bar:
        for seconds in (70, 30):
            clock[0] += seconds
            bar.update(30)
    assert lines() == ["30 of 400 files", "60 of 400 files, 1.0 a second, 5 min 40 s left"]


def test_a_terminal_has_a_bar_from_the_start(lines, clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(10):
        assert "0/10" in capsys.readouterr().err
        clock[0] += 40
    assert lines() == []


def test_nothing_is_said_where_nobody_wants_to_know(lines, clock, capsys, monkeypatch):
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        with Progress(10, shown=False) as bar:
            clock[0] += 40
            bar.update(10)
    assert (lines(), capsys.readouterr().err) == ([], "")


def test_status_is_a_line_of_the_log(lines):
    status("loading the model tiny ...")
    assert lines() == ["loading the model tiny ..."]
