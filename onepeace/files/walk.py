"""Files that a command line means: files as named, folders walked. Knows file endings, opens nothing."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from onepeace.errors import UsageError

LINKS = "links that lead out of the folder"
"""Key in the count of what is left out."""


class Found(NamedTuple):
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
) -> tuple[list[Found], list[Unreadable]]:
    """Files meant by `paths`, each once, in the order given; a folder's own files by name, then its folders by name,
    then its links to folders.

    Inside folders, hidden names, unknown endings and links that lead out of the folder are passed over, and no folder
    is entered twice, so a loop of links ends. A named file is taken whatever its name is.

    Args:
        modality_by_suffix: modality of each known ending, lower case, with the dot.
        skip: says of a path inside a folder, and whether that is a folder itself, that it is passed over.
        follow_links: follow links that lead out of the folder too.
        others: counts what is left out: files by their endings, and links.

    Returns:
        The files found, and what could not be read: broken links, pipes, folders without permission.

    Raises:
        UsageError: a path that does not exist.
    """
    found: dict[str, Found] = {}
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

        tops = [path]  # links to folders come last, so that a file has its real path where that is met too
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


def _take(path: Path, modality: str, found: dict[str, Found], unreadable: list[Unreadable]) -> None:
    if os.path.isfile(path):
        found.setdefault(os.path.abspath(path), Found(path, modality))
    else:
        unreadable.append(Unreadable(path, _why_not(path)))


def _why_not(path: Path) -> str:
    """Why a path is no file to read."""
    try:
        os.stat(path)
    except PermissionError as error:
        return error.strerror or "cannot be read"
    except OSError:
        return "a link to nothing"
    return "not a regular file"  # a pipe would be waited for without end
