"""Fills an index: readers -> decoder threads -> model -> writer, in bounded memory. What was written before a stop
stays, and the same command goes on."""

import hashlib
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.files.metadata import describe_media
from onepeace.files.walk import Unreadable
from onepeace.index.index import banks_of
from onepeace.index.nearest import vectors_state
from onepeace.index.sources import (
    MADE_OF,
    Entry,
    Scan,
    is_below,
    read_shard,
    state_of,
    whole_of,
    without_surrogates,
)
from onepeace.index.store import Item, Root, Span, Store
from onepeace.index.video import Video
from onepeace.progress import Progress

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedded, Embedder

BATCH_SECONDS, BATCH_VECTORS = 2.0, 512
"""Size of a transaction: the most that a kill can cost."""
AHEAD = 64
"""Files that are read and hashed ahead of the decoders."""
CHUNK = 1 << 20
_MISSING = re.compile(r"needs (\w+): pip install")
"""As `onepeace.errors.need` says it."""
WINDOW, HOP = 10.0, 5.0
"""Seconds of a long sound that one vector stands for, and from the start of one to that of the next."""


@dataclass
class Report:
    """Numbers of what a run did to an index."""

    added: int = 0
    """Files embedded for the first time."""
    changed: int = 0
    """Files embedded again, because their content changed."""
    copied: int = 0
    """New paths whose content was known, so that its vectors were taken."""
    moved: int = 0
    """Copied files whose old path is gone."""
    unchanged: int = 0
    removed: int = 0
    vectors: int = 0
    """Vectors computed."""
    problems: list[Unreadable] = field(default_factory=list)
    """Files that could not be embedded this time, with the reasons."""
    known_problems: int = 0
    """Files that could not be embedded before either, and have not changed."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Files of kinds that the model does not read, by modality."""
    other_kinds: Counter[str] = field(default_factory=Counter)
    """Files with endings that nothing reads, by ending, and links that were not followed."""
    seconds: float = 0.0

    @property
    def embedded(self) -> int:
        return self.added + self.changed


class Builder:
    """Puts entries into a store that is open for writing.

    Args:
        load: gives the model of the index; called when there is something to embed.
        batch_size: samples in a pass of the model.
        progress: False = silent.
    """

    def __init__(self, store: Store, load: "Callable[[], Embedder]", batch_size: int, progress: bool | None) -> None:
        self.store, self._load = store, load
        self.modalities: Sequence[str] = store.meta["modalities"].split()
        self.batch_size, self.progress = batch_size, progress
        self.report = Report()
        self.known = {item.path: item for item in store.items()}
        self._in_shards: set[str] = set()
        """Paths of samples of shards that were read, or are unchanged or unreadable."""
        self._copied: Counter[bytes | None] = Counter()
        """Contents whose vectors were taken for a new path, by hash."""
        self._results: list[tuple[Item, list[Span]]] = []
        self._vectors: list[np.ndarray] = []
        self._written = time.monotonic()

    @cached_property
    def embedder(self) -> "Embedder":
        return self._load()

    def add(self, entries: Iterable[Entry], shards: Iterable[Root] = ()) -> None:
        """Embed what is new or has changed. What is done stays in the index, whatever ends the call.

        Args:
            entries: files and rows, from `scan`.
            shards: read as streams, unless they are as they were when last read.
        """
        start = time.perf_counter()
        try:
            if stale := [entry for entry in entries if self._is_stale(entry)]:
                self._embed(stale, len(stale))
            for shard in shards:
                self._add_shard(shard)
        finally:
            self._flush()
            self.report.seconds += time.perf_counter() - start

    def remove_missing(self, found: Scan) -> None:
        """Forget the files that were not found, unless they are in a folder or shard that could not be read."""
        unread = {str(problem.path) for problem in found.problems}
        gone = [
            item
            for item in self.store.items()
            if item.path not in found.entries and item.path not in self._in_shards and not is_below(item.path, unread)
        ]
        with self.store.transaction():
            self.store.remove([item.id for item in gone])
        self.report.moved = (Counter(item.hash for item in gone) & self._copied).total()
        self.report.copied -= self.report.moved
        self.report.removed = len(gone) - self.report.moved

    @cached_property
    def _by_whole(self) -> dict[str | None, list[Item]]:
        """Samples and rows by the path of their shard or table."""
        found = defaultdict(list)
        for item in self.known.values():
            found[whole_of(item.path)].append(item)
        return found

    def _add_shard(self, shard: Root) -> None:
        known = [*self._by_whole.get(shard.path, [])]
        if shard.path in self.known:  # its problems
            known.append(self.known[shard.path])
        try:
            state = state_of(shard.path)
        except OSError as error:
            self.report.problems.append(Unreadable(Path(shard.path), error.strerror or "cannot be read"))
            self._in_shards.update(item.path for item in known)
            return
        if shard.state == state:
            self._in_shards.update(item.path for item in known)
            for item in known:
                self._count_known(item)
            return
        problems: list[str] = []

        def stale() -> Iterator[Entry]:
            for entry in read_shard(shard.path, problems):
                if entry.item.path in self._in_shards:  # a second sample of this key
                    continue
                self._in_shards.add(entry.item.path)
                if self._is_stale(entry):
                    yield entry

        self._embed(stale(), None)
        if problems:  # what is known of its samples may be behind the place where it is broken
            first, *others = dict.fromkeys(line.removeprefix(f"{shard.path}: ") for line in problems)
            rest = f"; and {len(others)} more" if others else ""
            self._note_problem(Item(shard.path, "text", *state), first + rest)
            self._in_shards.update((shard.path, *(item.path for item in known)))
        self._flush()
        with self.store.transaction():
            if not problems and shard.path in self.known:
                self.store.remove([self.known.pop(shard.path).id])
            self.store.keep_roots([replace(shard, state=state)])

    def _is_stale(self, entry: Entry) -> bool:
        """Whether an entry has to be read: it is new, or its size or time have changed."""
        item, known = entry.item, self.known.get(entry.item.path)
        if item.problem is not None:
            self._note_problem(item, item.problem)
            return False
        if not any(key in self.modalities for key in MADE_OF.get(item.modality, (item.modality,))):
            self.report.left_out[item.modality] += 1
            return False
        if known is None or _state(known) != _state(item) or _may_work_now(known):
            return True
        self._count_known(known)
        described = _described(replace(known, caption=item.caption, metadata=item.metadata), known)
        if described != known:
            self._keep_vectors(described, known)
            self._flush_if_due()
        return False

    def _count_known(self, known: Item) -> None:
        self.report.unchanged += known.problem is None
        self.report.known_problems += known.problem is not None

    def _news(self, entries: Iterable[Entry], bar: Progress) -> Generator[Entry, None, None]:
        """Entries whose content is new, read by threads up to AHEAD further; known content is settled on the way."""
        waiting: deque[Future[Entry]] = deque()
        with ThreadPoolExecutor(2, "onepeace-read") as pool:
            try:
                for entry in chain(entries, [None] * (AHEAD + 1)):
                    if entry is not None:
                        waiting.append(pool.submit(read_content, entry))
                    if waiting and (entry is None or len(waiting) > AHEAD):
                        read = waiting.popleft().result()
                        if not self._is_settled(read.item):
                            yield read
                            continue
                        bar.update()
                        self._flush_if_due()
            finally:
                for future in waiting:
                    future.cancel()

    def _is_settled(self, item: Item) -> bool:
        """Whether an item needs no embedding: it cannot be read, or a file of its content is known."""
        if item.problem is not None:
            self._note_problem(item, item.problem)
            return True
        known = self.store.items("hash = ? AND modality = ?", (item.hash, item.modality))
        same = [one for one in known if not _may_work_now(one)]
        if not same:
            return False
        old = next((one for one in same if one.path == item.path), same[0])
        item = replace(item, note=old.note)
        if old.problem is not None:
            self._note_problem(item, old.problem)
        elif old.path == item.path:  # touched
            self.report.unchanged += 1
            self._keep_vectors(_described(item, old), old)
        else:
            self.report.copied += 1
            self._copied[item.hash] += 1
            self._keep_vectors(item, old)
        return True

    def _embed(self, entries: Iterable[Entry], total: int | None) -> None:
        bar = Progress(total, shown=self.progress)
        with bar, closing(self._news(entries, bar)) as reads:
            first = next(reads, None)
            if first is None:  # before the model is loaded
                return
            waiting: deque[tuple[Item, Video | None]] = deque()

            def values(first: Entry) -> Iterator[object]:
                readable = [key for key in MADE_OF["video"] if key in self.modalities]
                for read in chain([first], reads):
                    video = None
                    if read.item.modality == "video":
                        video = Video(read.value, readable, read.item.duration)
                    waiting.append((read.item, video))
                    yield video or {read.item.modality: read.value}

            longest = getattr(self.embedder.processors.get("audio"), "max_seconds", None) or WINDOW
            cut: dict[str, Any] = {"long": "windows", "window": min(WINDOW, longest), "hop": min(HOP, longest)}
            with closing(self.embedder.stream(values(first), batch_size=self.batch_size, **cut)) as results:
                for result in results:
                    self._take(result, *waiting.popleft())
                    bar.update()
                    self._flush_if_due()

    def _take(self, result: "Embedded", item: Item, video: Video | None) -> None:
        """Keep the vectors of an entry, or the reason why there are none."""
        notes = [*(["digital silence"] if result.is_silent else []), *(video.troubles if video else [])]
        item = replace(item, note=without_surrogates("; ".join(notes)) or None)
        windows = result.windows
        if result.error is not None or result.vector is None:
            self._note_problem(item, str(result.reason))
            return
        if video is not None and windows is not None:
            spans, vectors = video.vectors(windows, result.is_silent)
        elif windows is None or len(windows.starts) == 1:
            spans, vectors = [Span(item.modality)], result.vector.numpy()[None]
        else:
            spans = [Span(item.modality, *times) for times in zip(windows.starts, windows.ends, strict=True)]
            vectors = np.asarray(windows.vectors)
        known = self.known.get(item.path)
        is_new = known is None or known.problem is not None
        self.report.added += is_new
        self.report.changed += not is_new
        self.report.vectors += len(vectors)
        self._keep(item if known is None else _described(item, known), spans, vectors)

    def _keep(self, item: Item, spans: list[Span], vectors: np.ndarray) -> None:
        self.known[item.path] = item
        self._results.append((item, spans))
        self._vectors += list(vectors)

    def _keep_vectors(self, item: Item, old: Item) -> None:
        """Keep an item with the vectors of a file of the same content."""
        _, spans, vectors = self.store.intact([old.id])[old.id]
        self._keep(item, spans, vectors)

    def _note_problem(self, item: Item, reason: str) -> None:
        item = replace(item, problem=without_surrogates(reason))
        known = self.known.get(item.path)
        is_known = known is not None and (known.problem, known.hash) == (item.problem, item.hash)
        if is_known:
            self.report.known_problems += 1
        else:
            self.report.problems.append(Unreadable(Path(item.path), reason))
        if known is None or not is_known or _state(known) != _state(item):
            self._keep(item, [], np.empty((0, self.store.embed_dim), np.float32))

    def _flush_if_due(self) -> None:
        waiting = max(len(self._vectors), len(self._results))
        if waiting >= BATCH_VECTORS or (waiting and time.monotonic() - self._written > BATCH_SECONDS):
            self._flush()

    def _flush(self) -> None:
        results, vectors = self._results, self._vectors
        self._results, self._vectors = [], []
        if results:
            rows = np.stack(vectors) if vectors else np.empty((0, self.store.embed_dim), np.float32)
            with self.store.transaction():
                self.store.add(results, rows)
        self._written = time.monotonic()


def score(store: Store) -> None:
    """Bring the scores that unrelated queries have in an index up to date."""
    if store.meta.get("scored") != (state := vectors_state(store)):
        best = banks_of(store).best_bytes()
        with store.transaction():
            store.keep_blob("best", best)
            store.meta["scored"] = state


def read_content(entry: Entry) -> Entry:
    """An entry with its hash, date and size in pixels or seconds, or a problem."""
    item, value = entry.item, entry.value
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    about = hashlib.blake2b(digest_size=16)
    known: dict[str, Any] = {"date": None}
    try:
        if isinstance(value, Path):
            with open(value, "rb") as file:
                while chunk := file.read(CHUNK):
                    about.update(chunk)
            known = vars(describe_media(value, item.modality))
        else:
            about.update(value)
    except OSError as error:
        return replace(entry, item=replace(item, problem=error.strerror or "cannot be read"))
    date = item.mtime_ns / 1e9 or None if known["date"] is None else known["date"]
    return replace(entry, item=replace(item, hash=about.digest(), **{**known, "date": date}))


def _state(item: Item) -> tuple[Any, ...]:
    """What tells, without reading it, that a file is as it was."""
    return item.size, item.mtime_ns, item.modality


def _described(item: Item, old: Item) -> Item:
    """An item with what a table once said of an older state of it, unless there is news."""
    return replace(item, caption=item.caption or old.caption, metadata=item.metadata or old.metadata)


def _may_work_now(item: Item) -> bool:
    """Whether an unchanged file with a problem is worth another try: it could not be opened (a permission may be given
    meanwhile), or a package was missing that is there now."""
    missing = _MISSING.search(item.problem or "")
    is_readable = item.hash is None or (missing is not None and find_spec(missing[1]) is not None)
    return item.problem is not None and is_readable
