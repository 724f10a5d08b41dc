"""The rows of an evaluation, as a table for a person and as JSON."""

import json
from collections.abc import Sequence
from typing import NamedTuple

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

    @property
    def ratio(self) -> float:
        """How many times chance the value is."""
        return self.value / self.chance


def as_json(row: Row, model: str) -> str:
    """One line of JSON: the fields of a row, its ratio, and the name of the model."""
    return json.dumps({"model": model, **row._asdict(), "ratio": row.ratio})


def as_table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, with values in percent."""
    head = ("set", "metric", "value", "chance", "ratio", "n", "seconds")
    lines = [
        (r.set, r.metric, f"{r.value:.1%}", f"{r.chance:.1%}", f"{r.ratio:.1f}", f"{r.n:,}", f"{r.seconds:.1f}")
        for r in rows
    ]
    return format_table(head, lines, right=range(2, len(head)))
