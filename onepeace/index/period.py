"""Dates as people write them: a year, a month, a day or a time, each with a start and an end."""

import re
from datetime import datetime, timedelta

from onepeace.errors import one_line

EXAMPLES = "2024, 2024-05, 2024-05-01 or 2024-05-01T12:30"
_DATE = re.compile(
    r"(?P<year>[0-9]{4})(?:-(?P<month>[0-9]{2})(?:-(?P<day>[0-9]{2})"
    r"(?P<time>[T ][0-9]{2}:[0-9]{2}(?P<seconds>:[0-9]{2})?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?)?)?"
)


def period(text: str) -> tuple[float, float]:
    """Start and end of a date in unix seconds; the end is the first moment after it.

    A time ends a second after its start, or a minute if it has no seconds. Without an offset it is local, as are days,
    months and years.

    Raises:
        ValueError: not a date, or one that the clock of this system cannot tell.
    """
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a date; write {EXAMPLES}")
    year, month, day = int(match["year"]), int(match["month"] or 1), int(match["day"] or 1)
    try:
        if match["time"]:
            moment = datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()  # Python 3.10 knows no Z
            return moment, moment + (1 if match["seconds"] else 60)
        first = datetime(year, month, day)
        if match["day"]:
            after = first + timedelta(days=1)
        elif match["month"]:
            after = datetime(year + month // 12, month % 12 + 1, 1)
        else:
            after = datetime(year + 1, 1, 1)
        return first.timestamp(), after.timestamp()
    except (ValueError, OverflowError, OSError) as error:  # systems differ in how they say so
        raise ValueError(f"{text!r} is not a date ({one_line(error)})") from error
