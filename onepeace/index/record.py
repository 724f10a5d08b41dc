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
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onepeace.errors import MissingPackage, UserError
from onepeace.files.walk import Unreadable
from onepeace.index.database import Damaged, Store
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
    removed: int = 0
    kept: list[Path] = field(default_factory=list)
    """Files that are missing, and kept until the next update, as a disk may not be mounted."""
    vectors: int = 0
    """Vectors computed; copied files have vectors too."""
    problems: list[Unreadable] = field(default_factory=list)
    """Files that could not be embedded this time, with the reasons."""
    known_problems: int = 0
    """Unchanged files that could not be embedded in an earlier run either."""
    notes: list[Unreadable] = field(default_factory=list)
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
    """With a problem if it has no vectors."""
    spans: Sequence[Span] = ()
    """The parts of the file that its vectors stand for."""
    vectors: np.ndarray = np.empty((0, 0), np.float32)
    """(len(spans), E) float32."""
    text: str = ""
    """Words of a text file (`words_in`)."""


def known(store: Store, item: Item) -> Known:
    """A file of an index with its vectors, none if it is gone, and its text.

    Raises:
        Damaged: it is not what was written.
    """
    return Known(item, *store.contents_of(item))


class Recorder:
    """Writes files into a store that is open for writing.

    Args:
        reuse: folders of other indexes, whose vectors are taken for equal files; those of other models, and damaged
            ones, are left out. They are opened when one is first asked.

    Attributes:
        items: the latest `Item` of each path, also those that are not written yet.
        report: counts of the run.
        num_copies: number of new paths that reused the vectors of known content, by hash of the content.
    """

    def __init__(self, store: Store, report: Report, reuse: Sequence[Path] = ()) -> None:
        self.store = store
        self.report = report
        self.items = {item.path: item for item in store.items()}
        roots = known_roots(store).values()
        self._folders = [root.path for root in roots if root.type == "folder"]
        self._reuse = reuse
        self._opened = ExitStack()
        self.num_copies: Counter[bytes | None] = Counter()
        self._waiting: list[Known] = []
        self._last_write = time.monotonic()

    def close(self) -> None:
        """Write the files that wait, and close the other indexes."""
        with self._opened:
            self.flush()

    def renew_names(self) -> None:
        """Write anew by which names files are found, if the indexed folders have changed: names begin at the outermost
        one."""
        content = json.dumps(sorted(self._folders)).encode()
        folders = hashlib.blake2b(content, digest_size=8).hexdigest()
        if self.store.meta.get(NAMED_FROM) == folders:
            return
        with self.store.transaction():
            for item in self.items.values():
                before = self.store.words(item.id)
                words = words_of(item, self._folders, before.text)
                if item.problem is None and words != before:
                    self.store.replace_words(item.id, words)
            self.store.meta[NAMED_FROM] = folders

    def same_file(self, item: Item) -> Known | None:
        """A file of another index with this path, size, time and kind."""
        condition = "path = ? AND size = ? AND mtime_ns = ? AND kind = ?"
        return self._elsewhere(condition, (os.fsencode(item.path), item.size, item.mtime_ns, item.kind))

    def same_content(self, item: Item) -> Known | None:
        """A file of this index, itself before others, or of another one, with this content and kind."""
        content = (item.hash, item.kind)
        same = list(self.store.items("hash = ? AND kind = ?", content))
        for original in sorted(same, key=lambda original: original.path != item.path):
            if not may_work_now(original):
                return known(self.store, original)
        return self._elsewhere("hash = ? AND kind = ?", content)

    def _elsewhere(self, condition: str, parameters: Sequence[Any]) -> Known | None:
        for store in self._others:
            with suppress(Damaged):  # or it was written again just now
                for item in store.items(f"problem IS NULL AND {condition}", parameters):
                    found = known(store, item)
                    if found.spans:  # else it was removed just now
                        return found
        return None

    @cached_property
    def _others(self) -> list[Store]:
        stores = []
        for folder in self._reuse:
            with suppress(UserError):
                other = self._opened.enter_context(closing(Store(folder)))
                if folder != self.store.folder and all(other.meta[key] == self.store.meta[key] for key in SAME_VECTORS):
                    stores.append(other)
        return stores

    def record_vectors(self, file: Known) -> None:
        """A file that was embedded."""
        previous = self.items.get(file.item.path)
        if previous is None or previous.problem is not None:
            self.report.added += 1
        else:
            self.report.changed += 1
        if file.item.note is not None:
            self.report.notes.append(Unreadable(Path(file.item.path), file.item.note))
        self.report.vectors += len(file.vectors)
        self._add(file)

    def record_copy(self, item: Item, original: Known) -> None:
        """A file with the content of another, or with the one that it had before, at another time."""
        item = replace(item, note=original.item.note)
        previous = self.items.get(item.path)
        if original.item.problem is not None:
            self.record_problem(item, original.item.problem)
            return
        if previous is not None and previous.hash == item.hash:
            self.report.unchanged += 1
        else:
            self.report.copied += 1
            self.num_copies[item.hash] += 1
        self._add(original._replace(item=item))

    def record_unchanged(self, previous: Item, item: Item) -> None:
        """A file that is as it was, though its caption and other columns may have changed."""
        if previous.problem is None:
            self.report.unchanged += 1
        else:
            self.report.known_problems += 1
        described = replace(previous, caption=item.caption, metadata=item.metadata)
        if described != previous:
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
            self._add(Known(item))

    def flush(self) -> None:
        """Write the files that wait, in one transaction."""
        files = self._waiting
        self._waiting = []
        if files:
            with self.store.transaction():
                for file in files:
                    words = Words()
                    if file.item.problem is None:
                        words = words_of(file.item, self._folders, file.text)
                    self.store.add(file.item, file.spans, file.vectors, words)
        self._last_write = time.monotonic()

    def _add(self, file: Known) -> None:
        self.items[file.item.path] = file.item
        self._waiting.append(file)
        num_vectors = sum(max(1, len(waiting.spans)) for waiting in self._waiting)
        if num_vectors >= BATCH_VECTORS or time.monotonic() - self._last_write > BATCH_SECONDS:
            self.flush()


def may_work_now(item: Item) -> bool:
    """Whether to retry an unchanged file with a problem: it could not be opened (permissions may have changed), or a
    package was missing that is now installed."""
    if item.problem is None:
        return False
    if item.hash is None:
        return True
    package = MissingPackage.named_in(item.problem)
    return package is not None and find_spec(package) is not None


def _was_not_read(item: Item) -> bool:
    """Whether the content of a file or sample is not known, so that it may be what it was; a row of a table was read
    with its table."""
    whole = whole_of(item.path)
    return item.hash is None and (whole is None or not is_table(whole))
