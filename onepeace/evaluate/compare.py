"""Two results side by side: which of their differences are more than the chance of the queries that were drawn."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.errors import UsageError, UserError
from onepeace.evaluate.intervals import paired_interval
from onepeace.evaluate.report import between
from onepeace.files.table import format_table

NEEDED = ("set", "metric", "value", "data_hash", "per_query")


class Difference(NamedTuple):
    """One figure that both results have."""

    set: str
    metric: str
    first: float
    second: float
    interval: tuple[float, float] | None
    """95 % interval of second - first: bootstrap over the queries of both at once. None where the two were measured on
    other data, or the figure is no mean over queries."""

    @property
    def better(self) -> str:
        """ "A" or "B" where the difference stands out: its interval does not hold 0."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "B" if self.interval[0] > 0 else "A"


def read_results(path: Path) -> list[dict[str, Any]]:
    """The figures of a file that `onepeace evaluate -o` has written; UserError names the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a result in JSON ({error})") from error
        if lacking := [field for field in NEEDED if field not in row]:
            raise UserError(f"{path}:{number}: has no {lacking[0]}; compare files of onepeace evaluate -o")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no results")
    return rows


def compare(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """The figures of the same set and metric, in the order of the first; UserError when there are none."""
    others = {(row["set"], row["metric"]): row for row in second}
    pairs = [(row, others[key]) for row in first if (key := (row["set"], row["metric"])) in others]
    if not pairs:
        a, b = (", ".join(sorted({f"{row['set']} {row['metric']}" for row in rows})) for rows in (first, second))
        raise UserError(f"the two have no figure in common: A has {a}; B has {b}")
    return [_difference(a, b) for a, b in pairs]


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
    is_paired = a["data_hash"] == b["data_hash"] and a["per_query"] and len(a["per_query"]) == len(b["per_query"])
    spread = paired_interval(a["per_query"], b["per_query"]) if is_paired else None
    return Difference(a["set"], a["metric"], a["value"], b["value"], spread)


def as_table(differences: Sequence[Difference]) -> str:
    """The differences as aligned text; the last column names the better one where the difference stands out."""
    head = ("set", "metric", "A", "B", "B - A", "95%", "better")
    lines = [
        (
            d.set,
            d.metric,
            f"{d.first:.1%}",
            f"{d.second:.1%}",
            f"{d.second - d.first:+.1%}",
            between(d.interval),
            d.better,
        )
        for d in differences
    ]
    return format_table(head, lines, right=range(2, 6))


def summary(differences: Sequence[Difference]) -> str:
    """Sentence or two that sum up the table."""
    out = sum(bool(d.better) for d in differences)
    text = f"{out} of {len(differences)} differences stand out; of those that are chance, 1 in 20 would"
    apart = sum(d.interval is None for d in differences)
    return f"{text}; {apart} have no interval (other data, or no value for each query)" if apart else text
