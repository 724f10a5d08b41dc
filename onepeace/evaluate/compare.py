"""Two results side by side: which of their differences are more than the chance of the queries that were drawn."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.errors import UserError
from onepeace.evaluate.intervals import Statistic, paired_interval
from onepeace.evaluate.report import between, shown
from onepeace.files.table import format_table

NEEDED = ("set", "metric", "value", "interval", "statistic", "n", "data_hash")


class Difference(NamedTuple):
    """One figure that both results have."""

    set: str
    metric: str
    first: float
    second: float
    interval: tuple[float, float] | None
    """95 % interval of second - first."""
    how: str
    """Source of the interval. "paired": bootstrap over the queries of both at once. "intervals": from those of the
    two figures, as if they were independent, which is wider. "none": there is none."""
    statistic: Statistic

    @property
    def better(self) -> str:
        """ "A" or "B" where the difference stands out: its interval does not hold 0."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "B" if (self.interval[0] > 0) != (self.statistic == "median") else "A"


def read_results(path: Path) -> list[dict[str, Any]]:
    """The figures of a file that `onepeace evaluate -o` has written; UserError names the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
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
        sets = [", ".join(sorted({row["set"] for row in rows})) for rows in (first, second)]
        raise UserError(f"the two have no figure in common: A has {sets[0]}, B has {sets[1]}")
    return [_difference(a, b) for a, b in pairs]


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
    spread, how = None, "none"
    first, second = a.get("per_query"), b.get("per_query")
    if a["data_hash"] == b["data_hash"] and first and second and len(first) == len(second):
        spread, how = paired_interval(first, second, a["statistic"]), "paired"
    elif a["interval"] and b["interval"]:
        # The ends of a difference of independent figures: the errors add up as squares, each side on its own.
        low = math.hypot(b["value"] - b["interval"][0], a["interval"][1] - a["value"])
        high = math.hypot(b["interval"][1] - b["value"], a["value"] - a["interval"][0])
        difference = b["value"] - a["value"]
        spread, how = (difference - low, difference + high), "intervals"
    return Difference(a["set"], a["metric"], a["value"], b["value"], spread, how, a["statistic"])


def as_table(differences: Sequence[Difference]) -> str:
    """The differences as aligned text; the last column names the better one where the difference stands out."""
    head = ("set", "metric", "A", "B", "B - A", "95%", "by", "better")
    lines = [
        (
            d.set,
            d.metric,
            shown(d.first, d.statistic),
            shown(d.second, d.statistic),
            shown(d.second - d.first, d.statistic, "+"),
            between(d.interval, d.statistic),
            d.how,
            d.better,
        )
        for d in differences
    ]
    return format_table(head, lines, right=range(2, 6))


def summary(differences: Sequence[Difference]) -> str:
    """Sentence or two that sum up the table."""
    out = sum(bool(d.better) for d in differences)
    text = f"{out} of {len(differences)} differences stand out; of those that are chance, 1 in 20 would"
    alone = sum(d.how == "intervals" for d in differences)
    return f"{text}; {alone} not query by query (other data, or no per_query in a file)" if alone else text
