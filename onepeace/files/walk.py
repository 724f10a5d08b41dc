"""Files named on a command line, and those in the folders named there, by file ending; no file is opened."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from onepeace.errors import UsageError

LINKS = "links that lead out of the folder"
"""Key of such links in the counts of what is left out."""


class FoundFile(NamedTuple):
    """A file to read."""

    path: Path
    modality: str
    """Modality by the file's ending; "" for a file that was named and has an unknown ending."""


class Unreadable(NamedTuple):
    """A path that cannot be read."""

    path: Path
    reason: str


def walk(
    paths: Iterable[str | Path],
    modality_by_suffix: Mapping[str, str],
    skip: Callable[[Path, bool], bool] | None = None,
    *,
    follow_links: bool = False,
    others: Counter[str] | None = None,
) -> tuple[list[FoundFile], list[Unreadable]]:
    """Files at or below `paths`, each once, in the order given; a folder's own files by name, then its folders by name,
    then its links to folders.

    Inside folders, hidden names, unknown endings and links that lead out of the folder are skipped, and no folder is
    entered twice, so a loop of links ends. Files named in `paths` are never skipped.

    Args:
        modality_by_suffix: modality of each known ending, lower case, with the dot.
        skip: called with a path inside a folder and whether it is a folder itself; True = skip it.
        follow_links: follow links that lead out of the folder too.
        others: counts what is left out: files by their endings, and links.

    Returns:
        The files found, and what could not be read: broken links, pipes, folders without permission.

    Raises:
        UsageError: a path that does not exist.
    """
    found: dict[str, FoundFile] = {}
    unreadable: list[Unreadable] = []
    entered: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        unreadable.append(Unreadable(Path(error.filename), error.strerror or "cannot be read"))

    for given in paths:
        path = Path(given)
        if not os.path.lexists(path):
            raise UsageError(f"{given}: no such file or folder")
        if not os.path.isdir(path):
            _take(path, modality_by_suffix.get(path.suffix.lower(), ""), found, unreadable)
            continue
        top = os.path.join(os.path.realpath(path), "")

        def leads_out(place: Path, top: str = top) -> bool:
            if follow_links or not place.is_symlink() or os.path.join(os.path.realpath(place), "").startswith(top):
                return False
            if others is not None:
                others[LINKS] += 1
            return True

        tops = [path]  # links to folders come last, so that files get their real paths where these are walked too
        for folder, folders, names in chain.from_iterable(os.walk(start, onerror=refuse) for start in tops):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".")
                and not (skip and skip(Path(folder, name), True))
                and not leads_out(Path(folder, name))
            )
            tops += [place for name in folders if (place := Path(folder, name)).is_symlink()]
            for name in sorted(names):
                place = Path(folder, name)
                if name.startswith(".") or (skip and skip(place, False)):
                    continue
                modality = modality_by_suffix.get(place.suffix.lower())
                if modality is None:
                    if others is not None:
                        others[place.suffix.lower() or "no ending"] += 1
                elif not leads_out(place):
                    _take(place, modality, found, unreadable)
    return list(found.values()), unreadable


def _take(path: Path, modality: str, found: dict[str, FoundFile], unreadable: list[Unreadable]) -> None:
    if os.path.isfile(path):
        found.setdefault(os.path.abspath(path), FoundFile(path, modality))
    else:
        unreadable.append(Unreadable(path, _why_not(path)))


def _why_not(path: Path) -> str:
    """Reason why a path is not a readable file."""
    try:
        os.stat(path)
    except PermissionError as error:
        return error.strerror or "cannot be read"
    except OSError:
        return "a link to nothing"
    return "not a regular file"  # reading a pipe could block forever
