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
        spread = interval(figure.per_query) if figure.per_query else None
        about = {**about, "note": figure.note}
        return cls(name, *figure[:4], seconds, spread, figure.per_query, about)

    @property
    def ratio(self) -> float | None:
        """The value divided by chance; None if chance is 0."""
        return self.value / self.chance if self.chance else None


def as_json(row: ReportRow, about: Mapping[str, Any], *, per_query: bool = False) -> str:
    """One line of JSON: the fields of a row, its ratio, and `about` the model.

    Args:
        per_query: include the value of each query, which a paired comparison needs.
    """
    fields = {key: value for key, value in row._asdict().items() if key not in ("about", "per_query")}
    fields |= {"ratio": row.ratio, **row.about}
    if per_query:
        fields["per_query"] = [round(value, 6) for value in row.per_query]
    return json.dumps({**about, **fields})


def as_table(rows: Sequence[ReportRow]) -> str:
    """The rows as aligned text, with values in percent."""
    head = ("set", "metric", "value", "95%", "chance", "ratio", "n", "seconds")
    lines = [
        (
            r.set,
            r.metric,
            f"{r.value:.1%}",
            between(r.interval),
            f"{r.chance:.1%}",
            "-" if r.ratio is None else f"{r.ratio:.1f}",
            f"{r.n:,}",
            f"{r.seconds:.1f}",
        )
        for r in rows
    ]
    return format_table(head, lines, right=range(2, len(head)))


def between(interval: Sequence[float] | None) -> str:
    """An interval as "45.1%..49.8%", or "-" if there is none."""
    return "-" if interval is None else "..".join(f"{end:.1%}" for end in interval)
