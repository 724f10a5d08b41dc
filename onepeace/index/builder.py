"""Fills an index: entries -> readers -> decoder threads -> model -> writer, in bounded memory.

Files written before an interruption are kept, and the same command resumes the run.
"""

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.files.walk import Unreadable
from onepeace.index.items import Item, Span
from onepeace.index.reading import CHANGES, TRIES, Reading, failed, read_entry
from onepeace.index.sources import PARTS, Entry, Scan, places_of, without_surrogates
from onepeace.index.store import Store
from onepeace.index.video import Video
from onepeace.progress import Progress

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedded, Embedder

BATCH_SECONDS, BATCH_VECTORS = 2.0, 512
"""Limits of a transaction: the most work that is lost if the process is killed."""
AHEAD = 64
"""Number of files that are read and hashed ahead of the decoders."""
_MISSING = re.compile(r"needs (\w+): pip install")
"""Pattern of the message of `onepeace.errors.need`."""
WINDOW, HOP = 10.0, 5.0
"""Window and hop in seconds; a sound that is longer than the window gets one vector per window."""


@dataclass
class Report:
    """Counts of what a run changed in an index."""

    added: int = 0
    """Files embedded for the first time."""
    changed: int = 0
    """Files embedded again, because their content changed."""
    copied: int = 0
    """New paths with known content, whose vectors were reused."""
    moved: int = 0
    """Copied files whose old path is gone."""
    unchanged: int = 0
    recaptioned: int = 0
    """Unchanged files whose caption or other columns have changed."""
    removed: int = 0
    vectors: int = 0
    """Vectors computed."""
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


class Builder:
    """Writes entries into a store that is open for writing.

    Args:
        whole: whether all paths of the index were scanned, so that captions that were not found are removed.
        load: returns the model of the index; called only if there is something to embed.
        batch_size: samples per forward pass of the model.
        progress: False = silent.
    """

    def __init__(
        self,
        store: Store,
        found: Scan,
        whole: bool,
        load: "Callable[[], Embedder]",
        batch_size: int,
        progress: bool | None,
    ) -> None:
        self.store, self.found, self.load = store, found, load
        self.keeps_captions = not whole or bool(found.problems)  # a table that cannot be read may still have them
        self.batch_size, self.progress = batch_size, progress
        self.report = Report(problems=[*found.problems], other_kinds=found.others)
        self.known = {item.path: item for item in store.items()}
        self._copied: Counter[bytes | None] = Counter()
        """Number of new paths that reused the vectors of known content, by hash of the content."""
        self._waiting: list[tuple[Item, list[Span], np.ndarray]] = []
        """Items, spans and vectors that the next transaction writes."""
        self._written = time.monotonic()

    def fill(self) -> None:
        """Embed new and changed entries. Finished ones stay in the index even if the call is interrupted."""
        start = time.perf_counter()
        try:
            entries = [*self._new()]
            if entries:
                with Progress(len(entries), shown=self.progress) as bar:
                    self._embed_until_unchanged(entries, bar)
        finally:
            self._flush()
            self.report.seconds += time.perf_counter() - start

    def remove_missing(self) -> None:
        """Remove files that were not found, except in folders or shards that could not be read."""
        entries = self.found.entries
        unread = {str(problem.path) for problem in self.found.problems}
        unread |= {path for path, entry in entries.items() if entry.item.problem is not None}
        gone = [item for item in self.store.items() if item.path not in entries and not places_of(item.path) & unread]
        with self.store.transaction():
            self.store.remove([item.id for item in gone])
        self.report.moved = (Counter(item.hash for item in gone) & self._copied).total()
        self.report.copied -= self.report.moved
        self.report.removed = len(gone) - self.report.moved

    def _new(self) -> Iterator[Entry]:
        """Entries to read: new ones, those whose size, time or kind has changed, and those that a retry may mend."""
        for item, value in self.found.entries.values():
            known = self.known.get(item.path)
            if known is not None and self.keeps_captions:
                item = replace(item, caption=item.caption or known.caption, metadata=item.metadata or known.metadata)
            if item.problem is not None:
                self._keep_problem(item, item.problem)
            elif not any(key in self.store.kinds for key in PARTS.get(item.modality, (item.modality,))):
                self.report.left_out[item.modality] += 1
            elif known is None or _state(known) != _state(item) or _may_work_now(known):
                yield Entry(item, value)
            else:
                self.report.unchanged += known.problem is None
                self.report.known_problems += known.problem is not None
                described = replace(known, caption=item.caption, metadata=item.metadata)
                if described != known:
                    self.report.recaptioned += known.problem is None
                    self._keep_as(described, known)

    def _embed_until_unchanged(self, entries: list[Entry], bar: Progress) -> None:
        """Embed entries; again those whose files change while they are read."""
        for _ in range(TRIES):
            entries = self._embed(entries, bar)
        for entry in entries:
            self._keep_problem(failed(entry, CHANGES).item, CHANGES)
            bar.update()

    def _embed(self, entries: list[Entry], bar: Progress) -> list[Entry]:
        """Embed entries once; returns those whose files changed meanwhile, of which nothing is kept."""
        taken: deque[tuple[Reading, Video | None]] = deque()
        changed: list[Entry] = []
        with closing(self._values(entries, taken, bar)) as values:
            first = next(values, None)
            if first is None:  # nothing to embed, so the model is not loaded
                return changed
            embedder = self.load()
            longest = getattr(embedder.processors.get("audio"), "max_seconds", None) or WINDOW
            cut: dict[str, Any] = {"long": "windows", "window": min(WINDOW, longest), "hop": min(HOP, longest)}
            with closing(embedder.stream(chain([first], values), batch_size=self.batch_size, **cut)) as results:
                for result in results:
                    reading, video = taken.popleft()
                    if not reading.is_current():
                        changed.append(reading.entry)
                        continue
                    self._take(result, reading.item, video)
                    bar.update()
        return changed

    def _values(
        self, entries: list[Entry], taken: deque[tuple[Reading, Video | None]], bar: Progress
    ) -> Generator[object, None, None]:
        """Yield inputs for the embedder and add their readings to ``taken``; store items that need no embedding."""
        readable = [key for key in PARTS["video"] if key in self.store.kinds]
        with ThreadPoolExecutor(2, "onepeace-read") as pool:
            for start in range(0, len(entries), AHEAD):
                for reading in pool.map(read_entry, entries[start : start + AHEAD]):
                    item = reading.item
                    if self._is_settled(item):
                        bar.update()
                        continue
                    video = Video(reading.value, readable, item.duration) if item.modality == "video" else None
                    taken.append((reading, video))
                    yield video or {item.modality: reading.value}

    def _is_settled(self, item: Item) -> bool:
        """Store an item that needs no embedding, as it cannot be read or its content is known; False for others."""
        if item.problem is not None:
            self._keep_problem(item, item.problem)
            return True
        known = self.store.items("hash = ? AND modality = ?", (item.hash, item.modality))
        same = [one for one in known if not _may_work_now(one)]
        if not same:
            return False
        old = next((one for one in same if one.path == item.path), same[0])
        item = replace(item, note=old.note)
        if old.problem is not None:
            self._keep_problem(item, old.problem)
            return True
        if old.path == item.path:  # only its time has changed
            self.report.unchanged += 1
        else:
            self.report.copied += 1
            self._copied[item.hash] += 1
        self._keep_as(item, old)
        return True

    def _take(self, result: "Embedded", item: Item, video: Video | None) -> None:
        """Keep the vectors of an entry, or the reason why there are none."""
        notes = [*(["digital silence"] if result.is_silent else []), *(video.troubles if video else [])]
        item = replace(item, note=without_surrogates("; ".join(notes)) or None)
        windows = result.windows
        if windows is None:  # it failed
            self._keep_problem(item, str(result.reason))
            return
        spans, vectors = [Span(item.modality)], np.asarray(windows.vectors)
        if video is not None:
            spans, vectors = video.vectors(windows, result.is_silent)
        elif len(vectors) > 1:
            spans = [Span(item.modality, *times) for times in zip(windows.starts, windows.ends, strict=True)]
        known = self.known.get(item.path)
        is_new = known is None or known.problem is not None
        self.report.added += is_new
        self.report.changed += not is_new
        self.report.vectors += len(vectors)
        self.report.noted += item.note is not None
        self._keep(item, spans, vectors)

    def _keep_as(self, item: Item, old: Item) -> None:
        """Keep an item with the vectors of a file with the same content."""
        self._keep(item, *self.store.intact([old.id])[old.id][1:])

    def _keep_problem(self, item: Item, reason: str) -> None:
        item = replace(item, problem=without_surrogates(reason))
        known = self.known.get(item.path)
        if known is not None and (known.problem, known.hash) == (item.problem, item.hash):
            self.report.known_problems += 1
        else:
            self.report.problems.append(Unreadable(Path(item.path), reason))
        if known is None or replace(known, id=0) != item:
            self._keep(item, [], np.empty((0, self.store.embed_dim), np.float32))

    def _keep(self, item: Item, spans: list[Span], vectors: np.ndarray) -> None:
        self.known[item.path] = item
        self._waiting.append((item, spans, vectors))
        count = sum(max(1, len(spans)) for _, spans, _ in self._waiting)
        if count >= BATCH_VECTORS or time.monotonic() - self._written > BATCH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            with self.store.transaction():
                self.store.add([one[:2] for one in waiting], np.concatenate([vectors for *_, vectors in waiting]))
        self._written = time.monotonic()


def _state(item: Item) -> tuple[Any, ...]:
    """Size, time and kind of a file, which is considered unchanged if all three are the same."""
    return item.size, item.mtime_ns, item.modality


def _may_work_now(item: Item) -> bool:
    """Whether to retry an unchanged file with a problem: it could not be opened (permissions may have changed), or a
    package was missing that is now installed."""
    missing = _MISSING.search(item.problem or "")
    is_readable = item.hash is None or (missing is not None and find_spec(missing[1]) is not None)
    return item.problem is not None and is_readable
