"""Hits of a query on stdout: as a table, as JSON, and those of two indexes side by side."""

import json
import os
from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from onepeace.commands import files
from onepeace.files.table import format_table

if TYPE_CHECKING:
    from onepeace.index.search import Hit, Results


def print_json(results: "Results", **about: Any) -> None:
    """A line for each hit, with what is known of the query first."""
    for hit in results.hits:
        print(json.dumps({**about, **_plain(hit)}))


def print_table(results: "Results") -> None:
    if results.relevant is False and results.hits:
        print("nothing relevant found; the nearest are:")
    if not results.hits:
        none = ": there is no file but the query's own and those that the filters leave out"
        print("nothing found" + ("" if results.compared else none))
        return
    times = any(hit.start is not None for hit in results.hits)
    scale = _scale(results)
    head = ("rank", scale, "kind", *(("at",) if times else ()), "path")
    rows = []
    for hit in results.hits:
        at = () if not times else ("" if hit.start is None else _clock(hit.start),)
        more = f" (+{len(hit.copies)} alike)" if hit.copies else ""
        path = files.shown(near(hit.item.path)) + more
        rows.append((str(hit.rank), _value(hit, scale), hit.item.modality, *at, path))
    print(format_table(head, rows))


def print_both(found: Mapping[str, "Results"]) -> None:
    """The hits of two indexes side by side; each with its rank in the other, if it is among the hits there."""
    (one, two), names = found.values(), list(found)
    ranks = [{hit.item.path: hit.rank for hit in results.hits} for results in (one, two)]
    common = len(ranks[0].keys() & ranks[1].keys())
    print(f"{common} of {max(map(len, ranks))} hits in both")
    scales = [_scale(results) for results in (one, two)]
    head = ("rank", *(column for pair in zip(scales, names, strict=True) for column in pair))
    rows = []
    for number, pair in enumerate(zip_longest(one.hits, two.hits), 1):
        cells = [str(pair[0].rank if pair[0] else number)]
        for hit, scale, there in zip(pair, scales, reversed(ranks), strict=True):
            if hit is None:
                cells += ["", ""]
                continue
            rank = there.get(hit.item.path)
            cells += [_value(hit, scale), files.shown(near(hit.item.path)) + (f" ({rank})" if rank else "")]
        rows.append(tuple(cells))
    print(format_table(head, rows) if rows else f"nothing found in {names[0]} nor in {names[1]}")


def _scale(results: "Results") -> str:
    return "match" if any(hit.match is not None for hit in results.hits) else "score"


def _value(hit: "Hit", scale: str) -> str:
    """On that scale; of a hit without a match there is none, as a cosine is no probability."""
    value = hit.match if scale == "match" else hit.score
    return "-" if value is None else f"{value:.3f}"


def _plain(hit: "Hit") -> dict[str, Any]:
    """A hit as JSON writes it."""
    item = hit.item
    about: dict[str, Any] = {"rank": hit.rank, "score": round(hit.score, 6), "z": round(hit.z, 6), "match": hit.match}
    about |= {"modality": item.modality, "path": near(item.path), "start": hit.start, "end": hit.end}
    about |= {name: getattr(item, name) for name in ("date", "width", "height", "duration", "caption")}
    return {key: value for key, value in about.items() if value is not None} | (
        {"copies": list(hit.copies)} if hit.copies else {}
    )


def near(path: str) -> str:
    """A path as one types it: below the working folder without that; others, and addresses, as they are."""
    return path.removeprefix(os.getcwd() + os.sep)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
