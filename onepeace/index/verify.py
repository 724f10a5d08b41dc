"""Checks of an index: that a model is the one that made its vectors, and that nothing of it is damaged."""

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from onepeace.errors import UserError
from onepeace.index.database import Damaged, Store, build_again, failing, update_again
from onepeace.index.vectors import faults

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from onepeace.embed.embedder import Embedder

Model: TypeAlias = Union[str, os.PathLike[str], "Embedder"]
"""Name of a model (see `onepeace.load`), or a model."""
FOREIGN = "foreign"
"""Entry of the metadata of an index whose model cannot be loaded by its name."""
INCOMPLETE = "problem IS NULL AND id NOT IN (SELECT file FROM vectors) OR id NOT IN (SELECT file FROM words)"
"""SQL condition for files that lack vectors or words."""


def is_name(model: Model) -> "TypeIs[str | os.PathLike[str]]":
    """Whether a model is given by its name, and not as an object."""
    return isinstance(model, (str, os.PathLike))


def identity(model: Model) -> dict[str, str]:
    """Name and hash of a model and the version of the preprocessing, which determine its vectors."""
    from onepeace.hub.resolve import fetch_model
    from onepeace.processors import VERSION

    name, model_hash, is_loadable = fetch_model(model).identity if is_name(model) else model.identity
    entries = {"model": name, "model_hash": model_hash, "preprocessing": VERSION}
    if not is_loadable:
        entries["model_hash"] = _hash_with_name(name, model_hash)
        entries[FOREIGN] = "yes"
    return entries


def _hash_with_name(name: str, maker_hash: str) -> str:
    """Hash of a model whose maker may have given a hash like "1"; it is part of names of files in the cache."""
    return hashlib.blake2b(f"{name}\0{maker_hash}".encode(), digest_size=8).hexdigest()


def check_model(folder: Path, meta: Mapping[str, str], model: Model | None = None) -> dict[str, str]:
    """The `identity` of a model, which must be that of an index.

    Args:
        folder, meta: folder and metadata of the index.
        model: None = the model of the index, by its name.

    Raises:
        UserError: the model cannot be found, or the index was built with another model or another version of the
            preprocessing.
    """
    if model is None:
        model = meta["model"]
        if FOREIGN in meta:
            raise UserError(f"made with an Embedder of your own, {model}; pass it as model=", where=folder)
    try:
        entries = identity(model)
    except UserError as error:
        made_with = f"the index {folder} was made with {meta['model']}"
        raise UserError(f"{error}; {made_with}; if that has another name here, give it with --model") from error
    for key, what in (("model_hash", "model"), ("preprocessing", "preprocessing")):
        if entries[key] != meta[key]:
            made_with = f"{meta['model']} ({meta[key]}), not {entries['model']} ({entries[key]})"
            raise UserError(
                f"made with another {what}, {made_with}; vectors of both cannot be compared, so leave out --model; or "
                f"embed all files of the index with this one: {_command_to_move(folder, entries)}",
                where=folder,
            )
    return entries


def _command_to_move(folder: Path, entries: dict[str, str]) -> str:
    if FOREIGN in entries:
        return f"build({str(folder)!r}, model=...)"
    return f"onepeace index build {shlex.quote(str(folder))} --model {shlex.quote(entries['model'])}"


@dataclass
class CheckReport:
    """Faults of an index."""

    folder: Path
    files: int = 0
    """Files that have vectors."""
    damaged: list[str] = field(default_factory=list)
    """One line per fault of the database."""
    lost: list[str] = field(default_factory=list)
    """One line per file beside the database that an update writes again."""

    @property
    def ok(self) -> bool:
        return not self.damaged and not self.lost

    def __str__(self) -> str:
        if self.ok:
            return f"the index is intact; files with vectors: {self.files:,}"
        remedy = build_again(self.folder) if self.damaged else update_again(self.folder)
        return "\n".join([*self.damaged, *self.lost, remedy])


def check(folder: str | os.PathLike[str]) -> CheckReport:
    """Look for damage in an index: pages, tables, counts, and files, vectors and derived files that are not what was
    written.

    Raises:
        UserError: there is no index, it has another format, or it cannot be read.
    """
    report = CheckReport(Path(folder))
    try:
        with closing(Store(report.folder)) as store, store.snapshot(), failing(report.folder, "read"):
            report.damaged = list(dict.fromkeys(_faults(store)))  # SQLite may report one twice
            report.lost = list(faults(store))
            report.files = store.count("problem IS NULL")
    except Damaged as error:
        report.damaged.append(error.damage)
    return report


def _faults(store: Store) -> Iterator[str]:
    """Yield one line for each fault of an index."""
    for (line,) in store.select("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield line
    number = len(store.select("PRAGMA foreign_key_check"))
    if number:
        yield f"rows that belong to no file: {number}"
    number = store.count(INCOMPLETE)
    if number:
        yield f"files without their vectors or words: {number}"
    for item in store.items():
        try:
            store.contents_of(item)
        except Damaged as error:
            yield error.damage
    for (name,) in store.select("SELECT name FROM blobs"):
        store.blob(name)
