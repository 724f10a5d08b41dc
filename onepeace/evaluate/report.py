"""The rows of an evaluation, as a table for a person and as JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from onepeace.evaluate.intervals import Statistic
from onepeace.files.table import format_table


class Row(NamedTuple):
    """One `Figure` of one set."""

    set: str
    metric: str
    value: float
    chance: float
    n: int
    seconds: float
    """Time of the whole set, reading included."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval (intervals.py), where there is one."""
    per_query: tuple[float, ...] = ()
    """The n values it is the mean or median of, if it is that."""
    statistic: Statistic = "mean"
    about: Mapping[str, Any] = {}
    """Circumstances: protocol, options, prompts, data_hash, note."""

    @property
    def ratio(self) -> float | None:
        """Factor by which the value beats chance; of a rank, the lower is the better. None where guessing
        reaches nothing."""
        if not self.chance:
            return None
        return self.chance / self.value if self.statistic == "median" else self.value / self.chance


def as_json(row: Row, about: Mapping[str, Any], *, per_query: bool = False) -> str:
    """One line of JSON: the fields of a row, its ratio, and `about` the model.

    Args:
        per_query: with the value of each query, which a paired comparison needs.
    """
    fields = {key: value for key, value in row._asdict().items() if key not in ("about", "per_query", "statistic")}
    fields |= {"ratio": row.ratio, "statistic": row.statistic, **row.about}
    if per_query:
        fields["per_query"] = [round(value, 6) for value in row.per_query]
    return json.dumps({**about, **fields})


def as_table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, with values in percent, ranks as they are."""
    head = ("set", "metric", "value", "95%", "chance", "ratio", "n", "seconds")
    lines = [
        (
            r.set,
            r.metric,
            shown(r.value, r.statistic),
            between(r.interval, r.statistic),
            shown(r.chance, r.statistic),
            "-" if r.ratio is None else f"{r.ratio:.1f}",
            f"{r.n:,}",
            f"{r.seconds:.1f}",
        )
        for r in rows
    ]
    return format_table(head, lines, right=range(2, len(head)))


def shown(value: float, statistic: Statistic, sign: str = "") -> str:
    """A share as 47.5%, a rank as 12; with `sign` "+" its sign always."""
    return f"{value:{sign}g}" if statistic == "median" else f"{value:{sign}.1%}"


def between(interval: Sequence[float] | None, statistic: Statistic) -> str:
    """An interval as "45.1%..49.8%", or "-" where there is none."""
    return "-" if interval is None else "..".join(shown(end, statistic) for end in interval)
