"""Comparison of two results: which differences are larger than the sampling of the queries explains."""

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
    """Difference in a figure that both results have."""

    set: str
    metric: str
    first: float
    second: float
    interval: tuple[float, float] | None
    """95 % interval of second - first: paired bootstrap over the queries. None if the two were measured on different
    data, or the figure is not a mean over queries."""

    @property
    def better(self) -> str:
        """ "A" or "B" if the difference is significant: its interval does not contain 0."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "B" if self.interval[0] > 0 else "A"


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the figures of a file written by `onepeace evaluate -o`; UserError names a line that is not a figure."""
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
    """Differences of figures with the same set and metric, in the order of ``first``; UserError if there are none."""
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
    """The differences as aligned text; the last column names the better one if the difference is significant."""
    head = ("set", "metric", "A", "B", "B - A", "95%", "better")
    lines = []
    for d in differences:
        values = f"{d.first:.1%}", f"{d.second:.1%}", f"{d.second - d.first:+.1%}"
        lines.append((d.set, d.metric, *values, between(d.interval), d.better))
    return format_table(head, lines, right=range(2, 6))


def summary(differences: Sequence[Difference]) -> str:
    """Summary of the table in a sentence or two."""
    out = sum(bool(d.better) for d in differences)
    text = f"{out} of {len(differences)} differences are significant; by chance alone 1 in 20 would be"
    apart = sum(d.interval is None for d in differences)
    return f"{text}; {apart} have no interval (other data, or no value for each query)" if apart else text
