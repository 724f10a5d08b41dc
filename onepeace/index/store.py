"""The files of an index and their vectors in one SQLite database: the source of truth.

A batch of files and vectors is one transaction (WAL, synchronous=FULL), so SQLite handles crashes. SQLite does not
checksum its pages: each row has a CRC-32 over its columns, and the row of a file has the number of its vectors. `check`
(verify.py) verifies all of them, a search those of its hits.
"""

import json
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UserError
from onepeace.files.atomic import make_folder
from onepeace.index.database import (
    COLUMNS,
    DATABASE,
    SCHEMA,
    SETTINGS,
    Damaged,
    connect,
    failing,
    insert,
    keep_spare,
    reader,
    write_database,
)
from onepeace.index.items import NAMES, Item, Span, Words

INDEX_FORMAT = "7"
"""Format version on disk; an index of another version is refused."""
VECTOR = np.dtype("<f4")
MAX_FILES = 100_000
"""Number of files above which no parts of words are found."""
SHARED_MEMORY = 1 << 15
"""Minimum bytes of the file -shm while it is in use."""


class Store:
    """An index folder, open for reading, or for writing inside `transaction`.

    A reader sees a snapshot: the state when it was opened, even if another process writes.

    Args:
        write: open it for writing; the caller holds the write lock (`writing`).

    Attributes:
        meta: the model, counters, and a random id of the state; stored by `transaction`.
        is_restricted: whether some files are hidden (`show_only`).

    Raises:
        UserError: there is no index, it has another format, or it cannot be read; Damaged.
    """

    def __init__(self, folder: Path, write: bool = False) -> None:
        self.folder = folder
        self.is_restricted = False
        path = folder / DATABASE
        with failing(folder, "read"):
            if not path.is_file():
                raise no_index(folder)
            self.connection = connect(path, "mode=rw") if write else reader(path)
            try:
                self.connection.executescript(SETTINGS if write else "BEGIN")  # all reads see one state
                self.meta = self._known()
            except BaseException:
                self.close()
                raise

    def show_only(self, condition: str) -> None:
        """Hide the files that do not satisfy an SQL condition, but not their vectors: "files" becomes a view."""
        view = f"CREATE TEMP VIEW files AS SELECT *, id AS rowid FROM main.files WHERE {condition}"  # noqa: S608
        with failing(self.folder, "read"):
            self.connection.execute(view)
        self.is_restricted = True

    @property
    def embed_dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.meta["embed_dim"])

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the model; a vector is stored with the place of its modality among them."""
        return tuple(self.meta["modalities"].split())

    @classmethod
    def create(cls, folder: Path, embed_dim: int, about: dict[str, str]) -> "Store":
        """New, empty index, open for writing.

        Args:
            about: further entries of `meta`, which identify the model.

        Raises:
            UserError: the disk is full or not writable.
        """
        now = datetime.now(timezone.utc)
        meta = {
            "format_version": INDEX_FORMAT,
            "embed_dim": str(embed_dim),
            "generation": "",
            "removed": "0",
            "store": "local",
            "created": now.isoformat(timespec="seconds"),
            **about,
        }
        with failing(folder, "written"):
            make_folder(folder)
            with write_database(folder / DATABASE) as connection:
                content = json.dumps(meta).encode()
                insert(connection, "blobs", ("meta", content))
                keep_spare(connection, content)
        return cls(folder, write=True)

    def close(self) -> None:
        self.connection.close()

    def has_lost_memory(self) -> bool:
        """Whether another program has cut the file that SQLite maps; reading past its end is a bus error."""
        try:
            return os.path.getsize(f"{self.folder / DATABASE}-shm") < SHARED_MEMORY
        except OSError:  # a file that was deleted stays mapped
            return False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Context of one transaction: committed durably when it ends, or rolled back on an error.

        Raises:
            UserError: the disk is full or not writable, or the folder was moved; Damaged.
        """
        meta = dict(self.meta)
        try:
            with failing(self.folder, "written"), self.connection:
                self.connection.execute("BEGIN IMMEDIATE")
                before = self.connection.total_changes
                yield
                if self.connection.total_changes != before or self.meta != meta:
                    self.meta["generation"] = secrets.token_hex(8)
                    content = json.dumps(self.meta).encode()
                    self.keep_blob("meta", content)
                    keep_spare(self.connection, content)
        except BaseException:
            self.meta = meta
            raise
        if not (self.folder / DATABASE).exists():  # the open files were written nevertheless
            raise UserError(
                "the index was moved or deleted while it was written to; what is stored moved with it, so run the same "
                "command again with the new folder",
                where=self.folder,
            )

    def add(
        self,
        files: Sequence[tuple[Item, Sequence[Span]]],
        vectors: np.ndarray,
        words: Sequence[Words] | None = None,
    ) -> None:
        """Store files with their vectors, replacing older ones of the same path; call it in a transaction.

        Args:
            files: items, each with the spans of its vectors; an item with a problem has none. An item with an id keeps
                it.
            vectors: (n, E) finite unit rows, in the order of the spans.
            words: texts by whose words each file is found; None = none.
        """
        count = sum(len(spans) for _, spans in files)
        if vectors.shape != (count, self.embed_dim) or not np.isfinite(vectors).all():
            raise ValueError(f"vectors of shape {vectors.shape} for {count} x {self.embed_dim}, or not finite")
        if words is None:
            words = [Words()] * len(files)
        remaining = iter(np.ascontiguousarray(vectors, VECTOR))
        for (item, spans), texts in zip(files, words, strict=True):
            self.remove(self.ids("path = ?", (os.fsencode(item.path),)))
            row = (item.id or None, *item.to_row(), len(spans))
            file_id = insert(self.connection, "files", row)
            insert(self.connection, "words", (file_id, *texts))
            for span in spans:
                modality = self.modalities.index(span.modality)
                content = next(remaining).tobytes()
                vector_row = (None, file_id, modality, span.start, span.end, content)
                insert(self.connection, "vectors", vector_row)

    def remove(self, ids: Iterable[int]) -> None:
        for id_ in ids:
            for (count,) in self.select("SELECT vectors FROM files WHERE id = ?", (id_,)):
                self.meta["removed"] = str(int(self.meta["removed"]) + count)
                self.connection.execute("DELETE FROM files WHERE id = ?", (id_,))

    def count(self, where: str = "1", parameters: Sequence[Any] = ()) -> int:
        """Number of files that an SQL condition with "?" for parameters selects."""
        return self.select(f"SELECT count(*) FROM files WHERE {where}", parameters)[0][0]  # noqa: S608 (our own code)

    def items(
        self,
        where: str = "1",
        parameters: Sequence[Any] = (),
        order: str = "id",
    ) -> Iterator[Item]:
        """Files that an SQL condition with "?" for parameters selects."""
        sql = f"SELECT id, {', '.join(NAMES)} FROM files WHERE {where} ORDER BY {order}"  # noqa: S608 (our own code)
        with failing(self.folder, "read"):
            try:
                yield from map(Item.from_row, self.connection.execute(sql, parameters))
            except (ValueError, TypeError) as error:
                raise Damaged(self.folder, error) from error

    def ids(self, where: str, parameters: Sequence[Any] = ()) -> list[int]:
        """Ids of the files that a condition selects."""
        rows = self.select(f"SELECT id FROM files WHERE {where}", parameters)  # noqa: S608 (our own code)
        return [id_ for (id_,) in rows]

    def intact(self, ids: Sequence[int]) -> dict[int, tuple[Item, list[Span], np.ndarray]]:
        """Files with the spans and (n, E) float32 rows of their vectors, all verified by checksum.

        Args:
            ids: ids of the files.

        Raises:
            Damaged: a row is damaged or missing.
        """
        vectors_by_file = defaultdict(list)
        for _, file_id, *vector in self._sound("vectors", "file", ids):
            vectors_by_file[file_id].append(vector)
        files = {}
        for file_id, *values, count in self._sound("files", "id", ids):
            rows = vectors_by_file[file_id]
            if len(rows) != count:
                raise Damaged(self.folder, f"file {file_id} has {len(rows)} vectors of {count}")
            spans = [Span(self.modalities[code], start, end) for code, start, end, _ in rows]
            content = b"".join(vector for *_, vector in rows)
            vectors = np.frombuffer(content, VECTOR).reshape(-1, self.embed_dim)
            files[file_id] = Item.from_row((file_id, *values)), spans, vectors
        missing = {*ids} - files.keys()
        if missing:
            raise Damaged(self.folder, f"file {min(missing)} is missing")
        return files

    @cached_property
    def vocabulary(self) -> str:
        """All words by which files are found that begin with a letter, a line each; "" above `MAX_FILES` files, as it
        takes about 1 s for a million."""
        ((last_id,),) = self.select("SELECT max(file) FROM words")
        if (last_id or 0) > MAX_FILES:
            return ""
        self.select("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab (main, word_index, row)")
        rows = self.select("SELECT term FROM temp.vocabulary WHERE term >= 'a'")
        return "\n".join(term for (term,) in rows)

    def replace_words(self, file_id: int, words: Words) -> None:
        """Store other texts by whose words a file is found; call it in a transaction."""
        self.connection.execute("DELETE FROM words WHERE file = ?", (file_id,))
        insert(self.connection, "words", (file_id, *words))

    def words(self, ids: Sequence[int]) -> dict[int, Words]:
        """The texts by whose words files are found, verified by checksum.

        Raises:
            Damaged: a row is damaged.
        """
        rows = self._sound("words", "file", ids)
        return {file_id: Words(*texts) for file_id, *texts in rows}

    def _sound(self, table: str, column: str, values: Sequence[int | str]) -> Iterator[list[Any]]:
        """Yield the rows of a table whose ``column`` has one of the values; Damaged if a checksum differs."""
        names = ", ".join(COLUMNS[table])
        chosen = "IN (SELECT value FROM json_each(?)) ORDER BY rowid"  # any number of values
        sql = f"SELECT {names}, crc IS checksum({names}) FROM {table} WHERE {column} {chosen}"  # noqa: S608
        values_as_json = json.dumps(list(values))
        for *row, is_sound in self.select(sql, (values_as_json,)):
            if not is_sound:
                raise Damaged(self.folder, f"row {row[0]} of {table}")
            yield row

    def blob(self, name: str) -> bytes | None:
        """Content that was stored under a name, such as the calibration; None if there is none.

        Raises:
            Damaged: the content is damaged.
        """
        rows = self._sound("blobs", "name", [name])
        return next((content for _, content in rows), None)

    def keep_blob(self, name: str, content: bytes) -> None:
        """Store content for `blob`; call it in a transaction."""
        if self.blob(name) != content:
            insert(self.connection, "blobs", (name, content))

    def drop_blob(self, name: str) -> None:
        """Delete what `keep_blob` stored, if anything; call it in a transaction."""
        self.connection.execute("DELETE FROM blobs WHERE name = ?", (name,))

    def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query.

        Raises:
            UserError: the database cannot be read; Damaged.
        """
        with failing(self.folder, "read"):
            return self.connection.execute(sql, parameters).fetchall()

    def _known(self) -> dict[str, str]:
        """Metadata of the index."""
        if self.select("SELECT 1 FROM sqlite_schema WHERE name IN ('meta', 'kept')"):
            raise UserError("made by an earlier version; build it again", where=self.folder)
        content = self.blob("meta")
        if content is None:
            raise Damaged(self.folder, "its metadata is missing")
        meta: dict[str, str] = json.loads(content)
        if meta["format_version"] != INDEX_FORMAT:
            origin = f"format {meta['format_version']} by {meta.get('made_by')}"
            raise UserError(
                f"made in {origin}, and this version reads {INDEX_FORMAT}; build it again", where=self.folder
            )
        definitions = {sql for (sql,) in self.select("SELECT sql FROM sqlite_schema")}
        if not definitions.issuperset(SCHEMA):  # there are also those of the tables that FTS5 makes
            raise Damaged(self.folder, "its table definitions have changed")
        return meta


def is_index(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an index folder."""
    return os.path.isfile(Path(path) / DATABASE)  # unlike Path.is_file, does not raise for a folder without permission


def no_index(folder: Path) -> UserError:
    return UserError(f"no index there; make one with: onepeace index build {folder} FILES", where=folder)
