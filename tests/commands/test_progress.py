"""Signs of life: a bar on a terminal, few lines in a log, nothing when it is not wanted."""

import logging
import sys

import pytest

from onepeace import progress
from onepeace.progress import Progress


@pytest.fixture
def lines(caplog):
    """Returns the lines of the log."""
    caplog.set_level(logging.INFO, "onepeace")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_log_gets_a_line_every_thirty_seconds(lines, clock, capsys):
    with Progress(100) as bar:
        for _ in range(60):
            clock[0] += 1
            bar.update()
    assert lines() == [
        "30 of 100 files, 1.0 a second, 1 min 10 s left",
        "60 of 100 files, 1.0 a second, 0 min 40 s left",
    ]
    assert capsys.readouterr().err == ""


def test_slow_resumed_work_has_seconds_an_item_and_a_note(lines, clock):
    with Progress(2000, "step", start=1000) as bar:
        bar.update()
        clock[0] += 40
        bar.update(10, note="loss 0.5")
    assert lines() == ["1,011 of 2,000 steps, 4.0 s each, 1 h 5 min left, loss 0.5"]


def test_terminal_has_a_bar_from_the_start_and_no_lines(lines, clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(10) as bar:
        assert "0/10" in capsys.readouterr().err
        clock[0] += 40
        bar.update(10, note="loss 0.5")
    err = capsys.readouterr().err
    assert "10/10" in err
    assert "loss 0.5" in err
    assert lines() == []


@pytest.mark.parametrize("is_terminal", [True, False])
def test_unwanted_progress_shows_nothing(lines, clock, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with Progress(10, shown=False) as bar:
        clock[0] += 40
        bar.update(10)
    assert lines() == []
    assert capsys.readouterr().err == ""
