"""Dates as people write them."""

import time
from datetime import datetime, timezone

import pytest

from onepeace.index.filters import period


@pytest.fixture(autouse=True)
def _time_zone(monkeypatch):
    """Central Europe's, with summer time from the last Sunday of March to that of October."""
    if not hasattr(time, "tzset"):
        pytest.skip("the time zone of this system cannot be set")
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(*parts):
    return datetime(*parts, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2024", (2023, 12, 31, 23), (2024, 12, 31, 23)),
        ("2024-12", (2024, 11, 30, 23), (2024, 12, 31, 23)),
        ("2024-02", (2024, 1, 31, 23), (2024, 2, 29, 23)),
        ("2024-03", (2024, 2, 29, 23), (2024, 3, 31, 22)),
        ("2024-03-31", (2024, 3, 30, 23), (2024, 3, 31, 22)),
        ("2024-10-27", (2024, 10, 26, 22), (2024, 10, 27, 23)),
        ("2024-05-01T12:30", (2024, 5, 1, 10, 30), (2024, 5, 1, 10, 31)),
    ],
)
def test_period_starts_and_ends_in_local_time(text, start, end):
    assert period(text) == (utc(*start), utc(*end))


@pytest.mark.parametrize(
    "text",
    ["", "24", "2024-", "2024-05-01T", "2024-05-01T25:00", "20240501", "0000", "9999", "2024\n"],
)
def test_other_text_is_no_date(text):
    with pytest.raises(ValueError, match="is not a date"):
        period(text)
