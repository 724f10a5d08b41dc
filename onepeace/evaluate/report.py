"""The rows of an evaluation, as a table and as JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from onepeace.evaluate.intervals import interval
from onepeace.evaluate.metrics import Figure
from onepeace.files.table import format_table


class ReportRow(NamedTuple):
    """One `Figure` of one set."""

    set: str
    metric: str
    value: float
    chance: float
    n: int
    seconds: float
    """Time of the whole set, reading included."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval (intervals.py), if there is one."""
    per_query: tuple[float, ...] = ()
    """The n values that the figure is the mean of; empty if it is not a mean."""
    about: Mapping[str, Any] = {}
    """Circumstances: protocol, options, prompts, data_hash, note."""

    @classmethod
    def of(cls, name: str, figure: Figure, seconds: float, about: Mapping[str, Any]) -> "ReportRow":
        """The row of a figure of the set `name`."""
        spread = None
        if figure.per_query:
            spread = interval(figure.per_query)
        return cls(
            set=name,
            metric=figure.metric,
            value=figure.value,
            chance=figure.chance,
            n=figure.n,
            seconds=seconds,
            interval=spread,
            per_query=figure.per_query,
            about={**about, "note": figure.note},
        )

    @property
    def ratio(self) -> float | None:
        """The value divided by chance; None if chance is 0."""
        if not self.chance:
            return None
        return self.value / self.chance


def as_json(row: ReportRow, about: Mapping[str, Any], *, per_query: bool = False) -> str:
    """One line of JSON: the fields of a row, its ratio, and `about` the model.

    Args:
        per_query: include the value of each query, which a paired comparison needs.
    """
    fields = {**about}
    for key, value in row._asdict().items():
        if key not in ("about", "per_query"):
            fields[key] = value
    fields["ratio"] = row.ratio
    fields |= row.about
    if per_query:
        fields["per_query"] = [round(value, 6) for value in row.per_query]
    return json.dumps(fields)


def as_table(rows: Sequence[ReportRow]) -> str:
    """The rows as aligned text, with values in percent."""
    columns = ("set", "metric", "value", "95%", "chance", "ratio", "n", "seconds")
    cells_by_row = list(map(_cells, rows))
    return format_table(columns, cells_by_row, right=range(2, len(columns)))


def _cells(row: ReportRow) -> list[str]:
    ratio = "-"
    if row.ratio is not None:
        ratio = f"{row.ratio:.1f}"
    return [
        row.set,
        row.metric,
        f"{row.value:.1%}",
        between(row.interval),
        f"{row.chance:.1%}",
        ratio,
        f"{row.n:,}",
        f"{row.seconds:.1f}",
    ]


def between(interval: tuple[float, float] | None) -> str:
    """An interval as "45.1%..49.8%", or "-" if there is none."""
    if interval is None:
        return "-"
    low, high = interval
    return f"{low:.1%}..{high:.1%}"
