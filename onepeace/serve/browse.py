"""What an index offers to the page besides hits: numbers of files over time, and names to complete."""

import os
from typing import Any

from onepeace.index import Index
from onepeace.index.filters import Condition, compile_condition
from onepeace.index.items import as_text
from onepeace.index.paths import name_and_place

UNITS = {"year": "%Y", "month": "%Y-%m", "day": "%Y-%m-%d"}
"""Periods of a timeline, and their formats in SQLite's strftime."""
YEAR, DAY = 365.25 * 86400, 86400
BY_YEAR, BY_MONTH = 6 * YEAR, 90 * DAY
"""Seconds between the first and the last file from which a timeline has years, or months."""
NAMES = 8
"""Maximum number of names suggested."""
EXAMINED = 400
"""Maximum number of paths that are examined for names."""


def timeline(index: Index, where: str | None = None) -> dict[str, Any]:
    """Numbers of files with vectors by period: {"unit": "year", "periods": [["2023", 12], ...]}, in order of time.

    The unit is a year, a month or a day, depending on the time between the first and the last file.

    Args:
        where: a condition on the files (filters.py).
    """
    condition = Condition("1") if where is None else compile_condition(where)
    dated = f"FROM files WHERE problem IS NULL AND date IS NOT NULL AND ({condition.sql})"
    ((first, last),) = index.store.select(f"SELECT min(date), max(date) {dated}", condition.params)
    if first is None:
        return {"unit": "day", "periods": []}
    if last - first > BY_YEAR:
        unit = "year"
    elif last - first > BY_MONTH:
        unit = "month"
    else:
        unit = "day"
    period = "strftime(?, date, 'unixepoch', 'localtime')"
    rows = index.store.select(
        f"SELECT {period} AS period, count(*) {dated} GROUP BY period ORDER BY period",
        (UNITS[unit], *condition.params),
    )
    return {"unit": unit, "periods": [[period, count] for period, count in rows if period is not None]}


def names(index: Index, words: str) -> dict[str, Any]:
    """Files and folders whose names contain a text, those that start with it first.

    Returns:
        {"files": [{"name", "path", "kind"}, ...], "folders": [{"name", "below"}, ...]}, at most `NAMES` of each; below
        is the start of the paths of a folder's files.
    """
    part = words.strip().casefold()
    if not part:
        return {"files": [], "folders": []}
    condition = compile_condition(f"{part!r} in path")
    named = f"FROM files WHERE problem IS NULL AND ({condition.sql})"
    rows = index.store.select(f"SELECT path, modality {named} LIMIT {EXAMINED}", condition.params)
    files = []
    folders = set()
    for raw_path, kind in rows:
        path = os.fsdecode(raw_path)
        name, _ = name_and_place(path)
        if part in name.casefold():
            files.append({"name": as_text(name), "path": as_text(path), "kind": kind})
        below = path[: len(path) - len(name)]
        if part in _folder_name(below).casefold():
            folders.add(below)
    named_folders = [{"name": _folder_name(below), "below": below} for below in folders if as_text(below) == below]

    def order(entry: dict[str, str]) -> tuple[bool, str]:
        name = entry["name"].casefold()
        return not name.startswith(part), name

    return {"files": sorted(files, key=order)[:NAMES], "folders": sorted(named_folders, key=order)[:NAMES]}


def _folder_name(below: str) -> str:
    """Name of a folder or shard, from the start of the paths of its files."""
    return os.path.basename(below.removesuffix("::").rstrip(os.sep))
