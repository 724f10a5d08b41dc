"""`build`, `update` and `remove`, which modify an index: scan -> classify -> embed -> write."""

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from onepeace.errors import UsageError, UserError
from onepeace.index.derived import finish
from onepeace.index.filling import fill, opened, refuse_unmounted
from onepeace.index.identity import Model
from onepeace.index.loading import Settings
from onepeace.index.lock import writing
from onepeace.index.move import move
from onepeace.index.paths import places_of
from onepeace.index.report import Report
from onepeace.index.roots import Root, keep_roots, known_roots, listed, roots_of
from onepeace.index.scan import Scan, scan
from onepeace.index.store import Store, is_index


def build(
    folder: str | os.PathLike[str],
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    model: Model | None = None,
    *,
    exclude: str | Sequence[str] = (),
    follow_links: bool = False,
    **options: Any,
) -> Report:
    """Build an index of files, add files to one, or move one to another model.

    Args:
        folder: folder of the index; created if it does not exist.
        paths: folders, files, tables (.csv, .tsv, .jsonl) and webdataset shards (.tar, .tar.gz; patterns with braces);
            one, or several. None = all files of the index are embedded with another ``model``, and its vectors replace
            the old ones at once when they are complete; see `onepeace.index.move.move`.
        model: name or folder, see `onepeace.load`, or an `Embedder`; None = the model of the index, or "tiny" for a new
            one.
        exclude: patterns as in a .gitignore file.
        follow_links: follow links that lead out of the folders.
        options: ``device``, ``dtype`` (as for `onepeace.load`; not for an `Embedder`), ``batch_size``, ``progress``
            (False = silent); ``engine``, where to embed, "ray" or "ray:4"; ``store``, a vector database that finds the
            nearest vectors, "milvus://HOST", which later calls reuse. Both are modules of onepeace.plugins.

    Raises:
        UserError: nothing found, another process is writing, the index belongs to another model, the disk is full.
    """
    settings = Settings(**options).checked_for(model)
    if paths is None:
        if exclude or follow_links:
            raise UsageError("exclude and follow_links are for new paths; name them")
        return _moved(folder, model, settings)
    paths = listed(paths)
    patterns = [exclude] if isinstance(exclude, str) else exclude
    new_roots = roots_of(paths, patterns, follow_links)
    with writing(folder, create=True) as target, opened(target, model) as store:
        roots = known_roots(store).values()
        removed_roots = [root for root in roots if root.type == "removed"]
        scanned = scan([*new_roots, *removed_roots])
        if not roots and all(entry.item.problem for entry in scanned.entries.values()):
            raise UsageError(nothing_in(paths, scanned))
        with store.transaction():  # first, so that `update` resumes an interrupted build
            keep_roots(store, new_roots)
        return fill(store, scanned, settings, model=model)


def _moved(folder: str | os.PathLike[str], model: Model | None, settings: Settings) -> Report:
    """Move an index to a model; update it, if it has this model."""
    if not is_index(folder):
        raise UsageError("no index there; name the PATHS to build it of", where=os.fspath(folder))
    if model is None:
        raise UsageError(f"name PATHS to add to {os.fspath(folder)}, or with --model the model to move it to")
    report = move(folder, model, settings)
    if report is None:
        return update(folder, model, **vars(settings))
    return report


def update(folder: str | os.PathLike[str], model: Model | None = None, **options: Any) -> Report:
    """Update an index with new, changed, moved and missing files of its paths.

    Args:
        model, options: as for `build`.

    Raises:
        UserError: as for `build`; a folder is missing or has become empty: its disk may not be mounted, so no files
            are removed. Where most files of a folder are missing, they are kept once (missing.py).
    """
    settings = Settings(**options).checked_for(model)
    with writing(folder) as target, opened(target, model) as store:
        roots = known_roots(store).values()
        if not roots and store.count():
            raise UserError(
                f"the paths it was built from are lost; run: onepeace index build {folder} PATHS", where=folder
            )
        scanned = scan(roots)
        unreadable = {str(problem.path) for problem in scanned.problems}
        readable = [root for root in roots if root.path not in unreadable]
        for root in readable:
            refuse_unmounted(store, root, scanned)
        # Which files a table names that cannot be read is not known.
        is_whole = all(root in readable for root in roots if root.type == "table")
        return fill(store, scanned, settings, model=model, is_whole=is_whole)


def remove(
    folder: str | os.PathLike[str],
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> int:
    """Remove files, and all files of folders, from an index. The files on disk are not touched; `update` leaves them
    out from now on, and `build` with their own path adds them again.

    Returns:
        The number of files.

    Raises:
        UserError: a path that is not in the index, or another process is writing.
    """
    with writing(folder) as target, closing(Store(target, write=True)) as store:
        roots = known_roots(store)
        as_typed = {os.path.abspath(path): path for path in listed(paths)}
        removed_paths: set[str] = set()
        ids = []
        for item in store.items():
            places = places_of(item.path) & as_typed.keys()
            removed_paths |= places
            if places:
                ids.append(item.id)
        if unknown := as_typed.keys() - roots.keys() - removed_paths:
            raise UserError(f"not in the index {folder}", where=os.fspath(as_typed[min(unknown)]))
        # Roots below a removed folder too: `update` would add their files again.
        roots_below = {path for path in roots if places_of(path) & as_typed.keys()}
        with store.transaction():
            keep_roots(store, [Root(path, "removed") for path in as_typed.keys() | roots_below])
            store.remove(ids)
        finish(store)
        return len(ids)


def nothing_in(paths: Sequence[str | os.PathLike[str]], scanned: Scan) -> str:
    """Message for paths without a file that can be embedded."""
    places = ", ".join(os.fspath(path) for path in paths)
    lines = [f"no image, audio, video or text files in {places}"]
    unreadable = [(problem.path, problem.reason) for problem in scanned.problems]
    for entry in scanned.entries.values():
        unreadable.append((Path(entry.item.path), entry.item.problem or ""))
    if unreadable:
        path, reason = unreadable[0]
        lines.append(f"{len(unreadable)} cannot be read, such as {path}: {reason}")
    lines += [f"{count} others: {name}" for name, count in scanned.others.most_common(5)]
    return "; ".join(lines)
