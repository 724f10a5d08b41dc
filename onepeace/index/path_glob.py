"""Globs over the paths of files: `holiday/**/*.jpg` below a folder of the index, `/home/*/pictures/**` from the root.

    *       any letters of a name        [abc] [a-z] [!abc]   one letter of these, or one of the others
    ?       one letter of a name         **                   in place of a name: any number of folders, or none

A file is found when its whole path fits, or its path below a folder that was indexed. So `*.jpg` means the files that
lie in such a folder itself, and `**/*.jpg` those in its folders too. Capital letters differ from small ones where they
do in the file names of the system, which is what Python says of all but Windows.
"""

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import count

from onepeace.errors import UsageError, one_line
from onepeace.index.where import Condition

MAX_LENGTH = 1000
"""Characters of a glob."""
FUNCTION = "onepeace_glob"
_PART = re.compile(r"(?P<star>\*+)|(?P<any>\?)|\[(?P<others>!?)(?P<letters>\][^]]*|[^]]+)\]|(?P<letter>.)", re.DOTALL)


def path_glob(pattern: str, folders: Iterable[bytes] = ()) -> Condition:
    """Files whose path fits. The condition calls a function, which `register` adds to a connection.

    Args:
        folders: paths of the folders that were indexed, as bytes like all paths of an index.

    Raises:
        UsageError: no pattern, one that is too long, or one with letters from z to a.
    """
    if not 0 < len(pattern) <= MAX_LENGTH:
        raise UsageError(f"path-glob: a pattern has 1 to {MAX_LENGTH:,} characters, not {len(pattern):,}")
    # JSON carries the bytes of a path that are no text; SQLite would refuse them in one.
    question = json.dumps([pattern, *map(os.fsdecode, folders)])
    try:
        _test(question)
    except re.error as error:
        raise UsageError(f"path-glob: {pattern!r} is not a pattern ({one_line(error)})") from error
    return Condition(f"{FUNCTION}(files.path, ?)", (question,))


def register(connection: sqlite3.Connection) -> None:
    """Make the conditions of `path_glob` work on a connection."""
    connection.create_function(FUNCTION, 2, lambda path, question: _test(question)(path), deterministic=True)


@lru_cache(64)
def _test(question: str) -> Callable[[bytes], bool]:
    """Whether a path fits."""
    pattern, *folders = (_slashes(text) for text in json.loads(question))
    below = "|".join(re.escape(folder.rstrip("/") + "/") for folder in folders)
    ignore_case = re.IGNORECASE if os.path.normcase("A") == "a" else 0
    match = re.compile(f"(?:{below}|){_translated(pattern)}", ignore_case).fullmatch
    return lambda path: match(_slashes(os.fsdecode(path))) is not None


def _slashes(path: str) -> str:
    return path.replace(os.sep, "/")


def _translated(pattern: str) -> str:
    """The regular expression of a pattern."""
    groups = count()
    runs: list[list[str]] = [[]]  # names, between one ** and the next
    for name in pattern.split("/"):
        if name == "**":
            runs.append([])
        else:
            runs[-1].append(_translated_name(name, groups))
    if not runs[-1]:  # what is below a folder is not the folder itself
        runs[-1].append("[^/]*")
    first, *rest = runs
    if not rest:
        return "/".join(first)
    *middle, last = rest
    start = "".join(f"{name}/" for name in first)
    places = [_first_fit("[^/]*/", "".join(f"{name}/" for name in run), groups) for run in middle]
    return "".join([start, *places, "(?:[^/]*/)*", "/".join(last)])


def _translated_name(name: str, groups: Iterator[int]) -> str:
    chunks = [""]  # between one * and the next
    for part in _PART.finditer(name):
        if part["star"]:
            chunks.append("")
        elif part["letters"] is not None:
            letters = re.sub("(.)-(.)|(.)", _escaped_letters, part["letters"], flags=re.DOTALL)
            chunks[-1] += f"[^/{letters}]" if part["others"] else f"[{letters}]"
        else:
            chunks[-1] += "[^/]" if part["any"] else re.escape(part["letter"])
    if len(chunks) == 1:
        return chunks[0]
    first, *middle, last = chunks
    return "".join([first, *(_first_fit("[^/]", chunk, groups) for chunk in middle), "[^/]*", last])


def _escaped_letters(part: re.Match[str]) -> str:
    return re.escape(part[3]) if part[3] else f"{re.escape(part[1])}-{re.escape(part[2])}"


def _first_fit(skipped: str, wanted: str, groups: Iterator[int]) -> str:
    """`wanted` behind as little as possible of what is `skipped`.

    Where more stars follow, the first place that fits is as good as any. No other is tried, as else a pattern of many
    stars could take for ever; the group, which is looked for and then taken as it is, says so before Python 3.11.
    """
    group = f"g{next(groups)}"
    return f"(?=(?P<{group}>(?:{skipped})*?{wanted}))(?P={group})"
