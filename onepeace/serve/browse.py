"""What an index offers to the page besides hits: files over time, names to complete, tags, points of the map."""

import os
import re
from typing import Any

import numpy as np

from onepeace.errors import UserError, printable
from onepeace.index import filters
from onepeace.index.filters import Condition, embedded
from onepeace.index.items import as_text, name_and_place
from onepeace.index.state import State
from onepeace.index.words import plain, quoted, separated

UNITS = {"year": "%Y", "month": "%Y-%m", "day": "%Y-%m-%d"}
"""Periods of a timeline, and their formats in SQLite's strftime."""
DAY = 86400.0
BY_YEAR = 6 * 365.25 * DAY
"""Seconds between the first and the last file from which a timeline has years."""
BY_MONTH = 90 * DAY
"""Seconds between the first and the last file from which a timeline has months."""
NAMES = 8
"""Maximum number of names suggested."""
EXAMINED = 400
"""Maximum number of files that are examined for names."""
FIELDS = {
    "camera": "camera",
    "lens": "lens",
    "keywords": "keyword",
    "place": "place",
    "artist": "artist",
    "album": "album",
    "genre": "genre",
}
"""Tags whose values are listed, and the fields of conditions that have them."""
VALUES = 20
"""Maximum number of values of a field that are listed."""
TAGGED = 50_000
"""Maximum number of files whose tags are counted, in half a second."""
CAPTION = 200
"""Maximum number of characters shown of a caption on the map."""
DIGITS = 4
"""Decimals of a coordinate on the map, between 0 and 1."""
NOT_IN_WORDS = re.compile(r"[\W_]+")


def timeline(state: State, condition: Condition | None = None) -> dict[str, Any]:
    """Numbers of files with vectors by period: {"unit": "year", "periods": [["2023", 12], ...]}, in order of time.

    The unit is a year, a month or a day, depending on the time between the first and the last file.

    Args:
        condition: for the files; None = all.
    """
    passing = _files_that_pass(condition)
    dated = f"{passing.sql} AND date IS NOT NULL"
    ((first, last),) = state.store.select(f"SELECT min(date), max(date) {dated}", passing.params)
    if first is None:
        return {"unit": "day", "periods": []}
    if last - first > BY_YEAR:
        unit = "year"
    elif last - first > BY_MONTH:
        unit = "month"
    else:
        unit = "day"
    period = "strftime(?, date, 'unixepoch', 'localtime')"
    rows = state.store.select(
        f"SELECT {period} AS period, count(*) {dated} GROUP BY period ORDER BY period",
        (UNITS[unit], *passing.params),
    )
    return {"unit": unit, "periods": [[period, count] for period, count in rows if period is not None]}


def kinds(state: State, condition: Condition | None = None) -> dict[str, int]:
    """Numbers of files with vectors by kind.

    Args:
        condition: for the files; None = all.
    """
    passing = _files_that_pass(condition)
    return dict(state.store.select(f"SELECT kind, count(*) {passing.sql} GROUP BY kind", passing.params))


def names(state: State, words: str) -> dict[str, Any]:
    """Files and folders whose names have a text at the start of a word, those that start with it first.

    Returns:
        {"files": [{"name", "path", "kind"}, ...], "folders": [{"name", "path"}, ...]}, at most `NAMES` of each.
    """
    text = separated(plain(words)).strip()
    expression = f"name : {quoted(text)} *"
    rows = state.store.select(
        "SELECT path, kind FROM word_index JOIN files ON files.id = word_index.rowid "
        "WHERE word_index MATCH ? AND problem IS NULL LIMIT ?",
        (expression, EXAMINED),
    )
    part = _as_words(text)
    files = []
    folders = set()
    for raw_path, kind in rows:
        path = os.fsdecode(raw_path)
        name, folder = name_and_place(path)
        if part in _as_words(name):
            files.append({"name": as_text(name), "path": as_text(path), "kind": kind})
        if part in _as_words(os.path.basename(folder)) and as_text(folder) == folder:
            folders.add(folder)
    named_folders = [{"name": os.path.basename(folder), "path": folder} for folder in folders]

    def order(entry: dict[str, str]) -> tuple[bool, str]:
        name = _as_words(entry["name"])
        return not name.startswith(part), name

    return {"files": sorted(files, key=order)[:NAMES], "folders": sorted(named_folders, key=order)[:NAMES]}


def values(state: State) -> dict[str, list[tuple[str, int]]]:
    """The most frequent values of the tags of the newest files, by field of conditions.

    Returns:
        {"camera": [("X100V", 12), ...], ...}, at most `VALUES` of each field.
    """
    rows = state.store.select(
        "WITH tagged AS (SELECT tags FROM files WHERE problem IS NULL AND tags != '{}' ORDER BY id DESC LIMIT ?) "
        "SELECT tag.key, value.value, count(*) AS number FROM tagged, json_each(tagged.tags) AS tag, "
        "json_each(iif(tag.type = 'array', tag.value, json_array(tag.value))) AS value "
        "GROUP BY tag.key, value.value ORDER BY number DESC, value.value",
        (TAGGED,),
    )
    by_field: dict[str, list[tuple[str, int]]] = {field: [] for field in FIELDS.values()}
    for tag, value, number in rows:
        if tag in FIELDS and len(by_field[FIELDS[tag]]) < VALUES:
            by_field[FIELDS[tag]].append((str(value), number))
    return {field: listed for field, listed in by_field.items() if listed}


def points(state: State) -> dict[str, Any]:
    """The files as 2-D points, which page/map.js draws.

    Returns:
        {"kinds", "places", "points": [[x, y, kind, name, place, id], ...], "captions"}.

    Raises:
        UserError: the index has no files.
    """
    from onepeace.index.groups import plane

    items, vectors = state.means()
    if not items:
        raise UserError("no files in it", where=state.folder)
    kind_of_item = [item.kind for item in items]
    positions = plane(vectors, np.array(kind_of_item)).tolist()
    kinds = list(dict.fromkeys([kind for kind in filters.kinds() if kind in kind_of_item] + kind_of_item))
    folder_numbers: dict[str, int] = {}
    rows = []
    for item, (x, y) in zip(items, positions, strict=True):
        name, folder = map(printable, name_and_place(item.path))
        folder_number = folder_numbers.setdefault(folder, len(folder_numbers))
        kind_number = kinds.index(item.kind)
        rows.append([round(x, DIGITS), round(1 - y, DIGITS), kind_number, name, folder_number, item.id])
    return {
        "kinds": kinds,
        "places": list(folder_numbers),
        "points": rows,
        "captions": {i: item.caption[:CAPTION] for i, item in enumerate(items) if item.caption},
    }


def _files_that_pass(condition: Condition | None) -> Condition:
    """The end of a SELECT of the files with vectors that satisfy a condition, from FROM on."""
    passing = embedded(condition)
    return passing._replace(sql=f"FROM files WHERE {passing.sql}")


def _as_words(name: str) -> str:
    return NOT_IN_WORDS.sub(" ", name.casefold())
