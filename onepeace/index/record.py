"""Step "write" of a run: counts what happens to each file, and writes the files to the database in transactions.

What was written before an interruption stays, and the same command resumes the run. Vectors that other indexes have
need not be computed again (`Elsewhere`).
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onepeace.errors import UserError
from onepeace.files.walk import Unreadable
from onepeace.index.database import Store
from onepeace.index.items import Item, Span, Words, is_table, whole_of, without_surrogates
from onepeace.index.sources import known_roots
from onepeace.index.words import words_of

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

BATCH_SECONDS = 2.0
BATCH_VECTORS = 512
"""Limits of a transaction: the most work that is lost if the process is killed."""
NAMED_FROM = "named_from"
"""Entry of an index for the folders that the names of its files begin at."""
SAME_VECTORS = ("model_hash", "preprocessing", "modalities")
"""Metadata that two indexes must have in common for equal files to have equal vectors in them."""


@dataclass
class Report:
    """Counts of what a run changed in an index."""

    added: int = 0
    """Files embedded for the first time."""
    changed: int = 0
    """Files embedded again, because their content changed."""
    copied: int = 0
    """Files with known content, whose vectors were reused."""
    moved: int = 0
    """Copied files whose old path is gone."""
    unchanged: int = 0
    recaptioned: int = 0
    """Unchanged files whose caption or other columns have changed."""
    removed: int = 0
    kept: list[Path] = field(default_factory=list)
    """Files that are missing, and kept until the next update, as a disk may not be mounted."""
    vectors: int = 0
    """Vectors computed; copied files have vectors too."""
    problems: list[Unreadable] = field(default_factory=list)
    """Files that could not be embedded this time, with the reasons."""
    known_problems: int = 0
    """Unchanged files that could not be embedded in an earlier run either."""
    noted: int = 0
    """Files embedded with a note, such as a video that ends early."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Files of kinds that the model does not support, by modality."""
    other_kinds: Counter[str] = field(default_factory=Counter)
    """Files with unsupported extensions, by extension, and links that were not followed."""
    seconds: float = 0.0
    embedder: "Embedder | None" = field(default=None, repr=False)
    """The model, if it was loaded in this process: a search after the build need not load it again."""

    @property
    def embedded(self) -> int:
        return self.added + self.changed


class Known(NamedTuple):
    """A file with its vectors, of this index or another, or one that the next transaction writes."""

    item: Item
    spans: Sequence[Span]
    vectors: np.ndarray
    """(len(spans), E) float32."""
    text: str = ""
    """Beginning of a text file, for the words that find it."""


class Elsewhere:
    """Other indexes whose vectors are made as those of an index; opened when they are first asked, then closed by
    `close`.

    Args:
        folders: of indexes; those of other models, and damaged ones, are left out.
    """

    def __init__(self, store: Store, folders: Sequence[Path]) -> None:
        self._store = store
        self._folders = [folder for folder in folders if folder != store.folder]
        self._opened = ExitStack()
        self.close = self._opened.close

    def same_file(self, item: Item) -> Known | None:
        """A file with this path, size, time and kind."""
        condition = "path = ? AND size = ? AND mtime_ns = ? AND modality = ?"
        return self._find(condition, (os.fsencode(item.path), item.size, item.mtime_ns, item.modality))

    def same_content(self, item: Item) -> Known | None:
        """A file with this content and kind."""
        return self._find("hash = ? AND modality = ?", (item.hash, item.modality))

    def _find(self, condition: str, parameters: Sequence[Any]) -> Known | None:
        for store in self._stores:
            for item in store.items(f"problem IS NULL AND {condition}", parameters):
                with suppress(KeyError):
                    found = known(store, item)
                    if found.spans:  # else it was removed just now
                        return found
        return None

    @cached_property
    def _stores(self) -> list[Store]:
        stores = []
        for folder in self._folders:
            with suppress(UserError):
                other = self._opened.enter_context(closing(Store(folder)))
                if all(other.meta[key] == self._store.meta[key] for key in SAME_VECTORS):
                    stores.append(other)
        return stores


def known(store: Store, item: Item) -> Known:
    """A file of an index with its vectors and text; KeyError if it is gone."""
    words = store.words([item.id])[item.id]
    spans, vectors = store.vectors_of(item.id)
    return Known(item, spans, vectors, words.text)


class Recorder:
    """Writes files into a store that is open for writing.

    Attributes:
        items: the latest `Item` of each path, also those that are not written yet.
        report: counts of the run.
        num_copies: number of new paths that reused the vectors of known content, by hash of the content.
    """

    def __init__(self, store: Store, report: Report) -> None:
        self.store = store
        self.report = report
        self.items = {item.path: item for item in store.items()}
        roots = known_roots(store).values()
        self._folders = [root.path for root in roots if root.type == "folder"]
        self.num_copies: Counter[bytes | None] = Counter()
        self._waiting: list[Known] = []
        self._last_write = time.monotonic()

    def renew_names(self) -> None:
        """Write anew by which names files are found, if the indexed folders have changed: names begin at the outermost
        one."""
        content = json.dumps(sorted(self._folders)).encode()
        folders = hashlib.blake2b(content, digest_size=8).hexdigest()
        if self.store.meta.get(NAMED_FROM) == folders:
            return
        items = [item for item in self.items.values() if item.problem is None]
        with self.store.transaction():
            for start in range(0, len(items), BATCH_VECTORS):
                batch = items[start : start + BATCH_VECTORS]
                words_by_file = self.store.words([item.id for item in batch])
                for item in batch:
                    words = words_of(item, self._folders, words_by_file[item.id].text)
                    if words != words_by_file[item.id]:
                        self.store.replace_words(item.id, words)
            self.store.meta[NAMED_FROM] = folders

    def record_vectors(
        self,
        item: Item,
        spans: Sequence[Span],
        vectors: np.ndarray,
        text: str = "",
    ) -> None:
        """A file that was embedded.

        Args:
            text: beginning of a text file.
        """
        previous = self.items.get(item.path)
        if previous is None or previous.problem is not None:
            self.report.added += 1
        else:
            self.report.changed += 1
        if item.note is not None:
            self.report.noted += 1
        self.report.vectors += len(vectors)
        self._add(Known(item, spans, vectors, text))

    def record_copy(self, item: Item, original: Item) -> None:
        """A file with the content of a file of the index, which may be itself with another time."""
        item = replace(item, note=original.note)
        if original.problem is not None:
            self.record_problem(item, original.problem)
        elif original.path == item.path:
            self.report.unchanged += 1
            self._add(known(self.store, original)._replace(item=item))
        else:
            self.record_known(item, known(self.store, original))

    def record_known(self, item: Item, original: Known) -> None:
        """A file whose vectors are those of a file with the same content."""
        self.report.copied += 1
        self.num_copies[item.hash] += 1
        self._add(original._replace(item=item))

    def record_unchanged(self, previous: Item, item: Item) -> None:
        """A file that is as it was, though its caption and other columns may have changed."""
        has_vectors = previous.problem is None
        if has_vectors:
            self.report.unchanged += 1
        else:
            self.report.known_problems += 1
        described = replace(previous, caption=item.caption, metadata=item.metadata)
        if described != previous:
            if has_vectors:
                self.report.recaptioned += 1
            self._add(known(self.store, previous)._replace(item=described))

    def record_problem(self, item: Item, reason: str) -> None:
        """A file that cannot be embedded. One that could not even be read keeps the vectors that it has."""
        item = replace(item, problem=without_surrogates(reason))
        previous = self.items.get(item.path)
        is_known = previous is not None and previous.problem == item.problem and previous.hash == item.hash
        if is_known:
            self.report.known_problems += 1
        else:
            self.report.problems.append(Unreadable(Path(item.path), reason))
        if previous is not None and previous.problem is None and _was_not_read(item):
            return
        if previous is None or replace(previous, id=0) != item:
            no_vectors = np.empty((0, self.store.embed_dim), np.float32)
            self._add(Known(item, [], no_vectors))

    def flush(self) -> None:
        """Write the files that wait, in one transaction."""
        files = self._waiting
        self._waiting = []
        if files:
            vectors = np.concatenate([file.vectors for file in files])
            with self.store.transaction():
                self.store.add([(file.item, file.spans) for file in files], vectors, [*map(self._words_of, files)])
        self._last_write = time.monotonic()

    def _words_of(self, file: Known) -> Words:
        """The words that find a file; none for one that could not be embedded."""
        return words_of(file.item, self._folders, file.text) if file.item.problem is None else Words()

    def _add(self, file: Known) -> None:
        self.items[file.item.path] = file.item
        self._waiting.append(file)
        num_vectors = sum(max(1, len(waiting.spans)) for waiting in self._waiting)
        if num_vectors >= BATCH_VECTORS or time.monotonic() - self._last_write > BATCH_SECONDS:
            self.flush()


def _was_not_read(item: Item) -> bool:
    """Whether the content of a file or sample is not known, so that it may be what it was; a row of a table was read
    with its table."""
    whole = whole_of(item.path)
    return item.hash is None and (whole is None or not is_table(whole))
