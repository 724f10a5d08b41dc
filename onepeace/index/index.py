"""`Index`: an index folder as users see it. Importing this takes no torch; a query of words alone may need none."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.errors import UserError
from onepeace.files.atomic import make_folder
from onepeace.files.walk import Unreadable
from onepeace.index.sources import Scan, is_shards, scan
from onepeace.index.store import DATABASE, Item, Rows, Store

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.index.build import Report

LOCK = "lock"


class Index:
    """The vectors of files, and what is known of the files, in a folder.

    ``with Index.open("photos.index") as index: ...``. It is open for reading, and shows the state of that moment;
    another process may write meanwhile.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._rows: Rows | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Index":
        """An index that is there.

        Raises:
            UserError: no index, a damaged one, or one of another format.
        """
        return cls(Store(Path(folder)))

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.store.close()

    def __len__(self) -> int:
        """Files that have vectors."""
        return self.store.count("problem IS NULL")

    def __repr__(self) -> str:
        return f"Index({str(self.store.folder)!r}, {len(self)} files, model {self.model!r})"

    @property
    def model(self) -> str:
        """The name of the model that made the vectors."""
        return self.store.meta["model"]

    @property
    def embed_dim(self) -> int:
        return self.store.embed_dim

    def items(self) -> Iterator[Item]:
        """The files that have vectors, in the order in which they came."""
        return self.store.items("problem IS NULL")

    def problems(self) -> list[Unreadable]:
        """The files that have none, with the reasons."""
        return [Unreadable(Path(item.path), item.problem or "") for item in self.store.items("problem IS NOT NULL")]

    def rows(self) -> Rows:
        """All vectors, and what they belong to; read once."""
        if self._rows is None:
            self._rows = self.store.rows()
        return self._rows


def build(
    folder: str | os.PathLike[str],
    paths: Sequence[str],
    model: str | None = None,
    *,
    exclude: Sequence[str] = (),
    **options: Any,
) -> "Report":
    """Make an index of files, or add files to one.

    Args:
        folder: of the index; made if it is not there.
        paths: folders, files, tables (.csv, .tsv, .jsonl) and webdataset shards (.tar, .tar.gz; patterns with braces).
        model: a name as `onepeace.load` takes it; None = the model of the index, or "tiny" for a new one.
        exclude: patterns as in a .gitignore file.
        options: ``device`` and ``dtype`` as for `onepeace.load`, and those of `Builder`.

    Raises:
        UserError: nothing found, another process is writing, the index belongs to another model, the disk is full.
    """
    found = scan([path for path in paths if not is_shards(path)], exclude)
    shards = [path for path in paths if is_shards(path)]
    return _fill(folder, model, found, shards, {root: list(exclude) for root in found.folders}, False, **options)


def update(folder: str | os.PathLike[str], **options: Any) -> "Report":
    """Bring an index up to date with the folders it was made of: new, changed, moved and missing files.

    Args:
        options: as for `build`.

    Raises:
        UserError: as for `build`; a folder that is not there (a disk may not be mounted, so nothing is forgotten).
    """
    with Index.open(folder) as index:
        roots = {Path(path): options["exclude"] for path, options in index.store.roots().items()}
    if not roots:
        raise UserError(f"{folder}: made of no folder; name the files: onepeace index add FILES --index {folder}")
    if gone := [root for root in roots if not root.is_dir()]:
        remedy = f"if it is gone for good: onepeace index remove {gone[0]} --index {folder}"
        raise UserError(f"{gone[0]}: no such folder now; {remedy}")
    found = Scan()
    for root, exclude in roots.items():
        found.extend(scan([str(root)], exclude))
    return _fill(folder, None, found, [], roots, True, **options)


def _fill(
    folder: str | os.PathLike[str],
    model: str | None,
    found: Scan,
    shards: Sequence[str],
    roots: Mapping[Path, Sequence[str]],
    remove_missing: bool,
    *,
    device: str | None = None,
    dtype: str = "auto",
    **options: Any,
) -> "Report":
    from onepeace.index.build import Builder

    with writing(folder) as target:
        store, load = _open(target, model, device, dtype)
        try:
            builder = Builder(store, load, **options)
            builder.report.problems += found.problems
            with store.transaction() as connection:
                for root, exclude in roots.items():  # for `update`
                    row = (os.fsencode(root), json.dumps({"exclude": list(exclude)}))
                    sql = "INSERT INTO roots VALUES (?, ?) ON CONFLICT DO UPDATE SET options = excluded.options"
                    connection.execute(f"{sql} WHERE options != excluded.options", row)
            builder.add(found.entries, shards)
            if remove_missing:
                builder.remove_missing(list(roots), [entry.item.path for entry in found.entries])
            store.backup()
        finally:
            store.close()
    return builder.report


def remove(folder: str | os.PathLike[str], paths: Sequence[str]) -> int:
    """Forget files, and all files of folders; gives how many. The files themselves are not touched."""
    with writing(folder) as target:
        store = Store(target, write=True)
        try:
            ids: set[int] = set()
            for given in paths:
                path = os.path.abspath(given)
                below = (path + os.sep, path + "::")
                found = {i.id for i in store.items() if i.path in (given, path) or i.path.startswith(below)}
                if not found:
                    raise UserError(f"{given}: not in the index {folder}")
                ids |= {id_ for id_ in found if id_ is not None}
            with store.transaction() as connection:
                roots = [(os.fsencode(os.path.abspath(given)),) for given in paths]
                connection.executemany("DELETE FROM roots WHERE path = ?", roots)
            store.remove(sorted(ids))
            store.backup()
            return len(ids)
        finally:
            store.close()


@contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder of an index while no other process writes to it; made if it is not there.

    Raises:
        UserError: another process is writing; it is a folder of something else.
    """
    from filelock import FileLock, Timeout

    target = Path(folder)
    if target.is_dir() and any(target.iterdir()) and not (target / DATABASE).exists() and not (target / LOCK).exists():
        raise UserError(f"{target}: a folder with other files in it, and no index; name a new folder")
    try:
        make_folder(target)
        with FileLock(target / LOCK, timeout=0):
            yield target
    except Timeout:
        raise UserError(f"{target}: another process is writing to this index; wait until it has ended") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error


def _open(
    folder: Path, model: str | None, device: str | None, dtype: str
) -> tuple[Store, "Callable[[], Embedder]"]:
    """The store of a folder, new if there is none, and what loads the model it belongs to."""
    from onepeace import __version__
    from onepeace.embed.embedder import load

    if not (folder / DATABASE).exists():
        name = model or "tiny"
        embedder = load(name, device=device, dtype=dtype)
        about = {**identity(name), "made_by": f"onepeace {__version__}"}
        return Store.create(folder, embedder.embed_dim, about), lambda: embedder
    store = Store(folder, write=True)
    try:
        name = model or store.meta["model"]
        check_model(store, identity(name))
    except BaseException:
        store.close()
        raise
    return store, lambda: load(name, device=device, dtype=dtype)


def identity(model: str) -> dict[str, str]:
    """What vectors of a model depend on, as an index keeps it."""
    from onepeace.hub.fingerprint import fingerprint
    from onepeace.hub.resolve import resolve
    from onepeace.processors import VERSION

    folder = resolve(model)
    name = str(folder) if Path(model).expanduser().is_dir() else model
    return {"model": name, "model_hash": fingerprint(folder), "preprocessing": VERSION}


def check_model(store: Store, about: dict[str, str]) -> None:
    """UserError if an index was made by another model, or by another version of the preprocessing."""
    theirs = store.meta
    for key, what in (("model_hash", "model"), ("preprocessing", "preprocessing")):
        if theirs[key] != about[key]:
            own, other = (f"{meta['model']} ({meta[key]})" for meta in (about, theirs))
            raise UserError(
                f"{store.folder}: made with another {what}, {other}, not {own}; vectors of both cannot be compared. "
                "Name the model it was made with, or build a new index"
            )
