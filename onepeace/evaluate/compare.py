"""Comparison of two results, A and B: which differences are larger than those that other queries would make."""

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
        """The better result, "A" (the first) or "B", if the difference is significant: its interval does not contain 0;
        else "". All metrics are better the higher they are."""
        if self.interval is None:
            return ""
        low, high = self.interval
        if low > 0:
            return "B"
        if high < 0:
            return "A"
        return ""


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the figures of a file written by `onepeace evaluate -o`; UserError names a line that is not a figure."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read ({getattr(error, 'strerror', None) or error})", where=path) from error
    rows = []
    for number, line in enumerate(lines, 1):
        rows.append(_read_row(line, f"{path}:{number}"))
    if not rows:
        raise UserError("holds no results", where=path)
    return rows


def _read_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise UserError(f"not a result in JSON ({error})", where=where) from error
    for field in NEEDED:
        if field not in row:
            raise UserError(f"has no {field}; compare files of onepeace evaluate -o", where=where)
    return row


def compare(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Differences of figures with the same set and metric, in the order of ``first``; UserError if there are none."""
    rows_of_second = {_key(row): row for row in second}
    differences = []
    for row in first:
        partner = rows_of_second.get(_key(row))
        if partner is not None:
            differences.append(_difference(row, partner))
    if not differences:
        raise UserError(f"the two have no figure in common: A has {_listed(first)}; B has {_listed(second)}")
    return differences


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["set"], row["metric"]


def _listed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Sets and metrics of the rows, for a message."""
    return ", ".join(sorted({f"{row['set']} {row['metric']}" for row in rows}))


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> Difference:
    interval = None
    if _are_paired(first, second):
        interval = paired_interval(first["per_query"], second["per_query"])
    return Difference(
        set=first["set"],
        metric=first["metric"],
        first=first["value"],
        second=second["value"],
        interval=interval,
    )


def _are_paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether both have a value for each query, of the same queries."""
    if first["data_hash"] != second["data_hash"] or not first["per_query"]:
        return False
    return len(first["per_query"]) == len(second["per_query"])


def as_table(differences: Sequence[Difference]) -> str:
    """The differences as aligned text; the last column names the better one if the difference is significant."""
    columns = ("set", "metric", "A", "B", "B - A", "95%", "better")
    lines = []
    for difference in differences:
        cells = [
            difference.set,
            difference.metric,
            f"{difference.first:.1%}",
            f"{difference.second:.1%}",
            f"{difference.second - difference.first:+.1%}",
            between(difference.interval),
            difference.better,
        ]
        lines.append(cells)
    return format_table(columns, lines, right=range(2, 6))


def summary(differences: Sequence[Difference]) -> str:
    """Summary of the table in a sentence or two."""
    num_significant = sum(bool(difference.better) for difference in differences)
    num_unpaired = sum(difference.interval is None for difference in differences)
    text = f"{num_significant} of {len(differences)} differences are significant; by chance alone, 1 in 20 is"
    if num_unpaired:
        text += f"; {num_unpaired} have no interval (other data, or no value for each query)"
    return text
