"""Step "write" of a run: counts what happens to each file, and writes the files to the database in transactions.

What was written before an interruption stays, and the same command resumes the run.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onepeace.files.walk import Unreadable
from onepeace.index.items import Item, Span, Words
from onepeace.index.part import Part
from onepeace.index.paths import without_surrogates
from onepeace.index.report import Report
from onepeace.index.roots import known_roots
from onepeace.index.store import Store
from onepeace.index.tokens import words_of

BATCH_SECONDS = 2.0
BATCH_VECTORS = 512
"""Limits of a transaction: the most work that is lost if the process is killed."""


NAMED_FROM = "named_from"
"""Entry of an index for the folders that the names of its files begin at."""


class Row(NamedTuple):
    """A file that the next transaction writes."""

    item: Item
    spans: Sequence[Span]
    vectors: np.ndarray
    """(len(spans), E) float32."""
    words: Words = Words()


class Recorder:
    """Writes files into a store that is open for writing.

    Args:
        part: what is looked at; None = all.

    Attributes:
        items: the latest `Item` of each path of the part, also those that are not written yet.
        condition: SQL condition for the files of the part.
        report: counts of the run.
        num_copies: number of new paths that reused the vectors of known content, by hash of the content.
    """

    def __init__(self, store: Store, report: Report, part: Part | None = None) -> None:
        self.store = store
        self.report = report
        self.condition = "1" if part is None else part.sql()
        self.items = {item.path: item for item in store.items(self.condition)}
        roots = known_roots(store).values()
        self._folders = [root.path for root in roots if root.type == "folder"]
        self.num_copies: Counter[bytes | None] = Counter()
        self._waiting: list[Row] = []
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
        self.report.vectors += len(vectors)
        if item.note is not None:
            self.report.noted += 1
        self._add(Row(item, spans, vectors, words_of(item, self._folders, text)))

    def record_copy(self, item: Item, original: Item) -> None:
        """A file with the content of a file of the index, which may be itself with another time."""
        item = replace(item, note=original.note)
        if original.problem is not None:
            self.record_problem(item, original.problem)
            return
        if original.path == item.path:
            self.report.unchanged += 1
        else:
            self.report.copied += 1
            self.num_copies[item.hash] += 1
        self._add_with_vectors_of(item, original)

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
            self._add_with_vectors_of(described, previous)

    def record_problem(self, item: Item, reason: str) -> None:
        """A file that cannot be embedded."""
        item = replace(item, problem=without_surrogates(reason))
        previous = self.items.get(item.path)
        is_known = previous is not None and previous.problem == item.problem and previous.hash == item.hash
        if is_known:
            self.report.known_problems += 1
        else:
            self.report.problems.append(Unreadable(Path(item.path), reason))
        if previous is None or replace(previous, id=0) != item:
            no_vectors = np.empty((0, self.store.embed_dim), np.float32)
            self._add(Row(item, [], no_vectors))

    @property
    def has_rows(self) -> bool:
        """Whether files wait to be written."""
        return bool(self._waiting)

    def flush(self) -> None:
        """Write the files that wait, in one transaction."""
        rows = self._waiting
        self._waiting = []
        if rows:
            files = [(row.item, row.spans) for row in rows]
            vectors = np.concatenate([row.vectors for row in rows])
            words = [row.words for row in rows]
            with self.store.transaction():
                self.store.add(files, vectors, words)
        self._last_write = time.monotonic()

    def _add_with_vectors_of(self, item: Item, original: Item) -> None:
        """Add a file with the vectors and the text of a file with the same content."""
        _, spans, vectors = self.store.intact([original.id])[original.id]
        text = self.store.words([original.id])[original.id].text
        self._add(Row(item, spans, vectors, words_of(item, self._folders, text)))

    def _add(self, row: Row) -> None:
        self.items[row.item.path] = row.item
        self._waiting.append(row)
        num_vectors = sum(max(1, len(waiting.spans)) for waiting in self._waiting)
        if num_vectors >= BATCH_VECTORS or time.monotonic() - self._last_write > BATCH_SECONDS:
            self.flush()
