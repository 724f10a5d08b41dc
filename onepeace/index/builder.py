"""Fills an index: reader -> decoder threads -> model -> writer, in bounded memory, so that whatever was written stays
and the same command goes on where it was stopped."""

import logging
import os
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.files import source
from onepeace.files.source import scheme
from onepeace.files.walk import Unreadable
from onepeace.index.calibrate import Banks
from onepeace.index.index import unreadable
from onepeace.index.reading import Content, read_ahead, read_content
from onepeace.index.sources import (
    MADE_OF,
    Entry,
    Root,
    Scan,
    is_below,
    read_shard,
    state_of,
    wholes,
    without_surrogates,
)
from onepeace.index.store import Item, Span, Store
from onepeace.index.video import Video
from onepeace.progress import Progress

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedded, Embedder
    from onepeace.index.workers import Pool

log = logging.getLogger(__name__)

BATCH_SECONDS, BATCH_VECTORS = 2.0, 512
"""What is written at once: what a kill can cost."""
NAMED = 3
"""Troubles of a shard that are named; the rest is counted."""
_MISSING = re.compile(r"needs (\w+): pip install")
"""As `onepeace.errors.need` says it."""
CUT = ("audio", "video")
"""Kinds of files that may have several vectors: they are decoded in another way."""
WINDOW, HOP = 10.0, 5.0
"""Seconds of a long sound that have a vector of their own, and from the start of one to the next."""


@dataclass
class Report:
    """Numbers of what a run did to an index."""

    added: int = 0
    """Files that were embedded for the first time."""
    changed: int = 0
    """Files that were embedded again, as their content is another one."""
    copied: int = 0
    """Files with the content of another one: its vectors were taken."""
    moved: int = 0
    unchanged: int = 0
    removed: int = 0
    vectors: int = 0
    problems: list[Unreadable] = field(default_factory=list)
    """Files that could not be embedded this time, with the reasons."""
    known_problems: int = 0
    """Files that could not be embedded before, and are as they were."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Files of kinds that the model does not read, by modality."""
    other_kinds: Counter[str] = field(default_factory=Counter)
    """Files of endings that nothing reads, by ending, and links that were not followed."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of each stage, over all its threads: read (and hash), decode, model, write; and total."""

    @property
    def embedded(self) -> int:
        return self.added + self.changed


class Builder:
    """Puts entries into a store that is open for writing.

    Args:
        store: of the index.
        load: gives the model that the index belongs to; called when there is something to embed.
        banks: unrelated queries, whose best scores are kept with the files.
        batch_size: samples in a pass of the model.
        progress: False = silent.
    """

    def __init__(
        self,
        store: Store,
        load: "Callable[[], Embedder | Pool]",
        banks: Banks,
        *,
        batch_size: int = 32,
        progress: bool | None = None,
    ) -> None:
        self.store, self._load, self.banks = store, load, banks
        self.modalities: Sequence[str] = store.meta["modalities"].split()
        self.window, self.hop = float(store.meta["window"]), float(store.meta["hop"])
        self.batch_size, self.progress = batch_size, progress
        self.report = Report()
        self.known = {item.path: item for item in store.items()}
        self._in_shards: set[str] = set()
        """Paths of items that are in a shard which was read, or need not be."""
        self._claimed: set[int] = set()
        """Ids of files that were found under another name."""
        self._results: list[tuple[Item, list[Span]]] = []
        self._vectors: list[np.ndarray] = []
        self._changes: list[Item] = []
        self._written = time.monotonic()
        self._settled = 0
        """Entries that were settled since the progress was shown."""

    @cached_property
    def embedder(self) -> "Embedder | Pool":
        return self._load()

    def add(self, entries: Iterable[Entry], shards: Iterable[Root] = ()) -> None:
        """Embed what is new or has changed. What is done stays in the index, whatever ends the call.

        Args:
            entries: files and rows, from `scan`.
            shards: read as a stream, if they are not as they were when they were last read.
        """
        start = time.perf_counter()
        groups: dict[bool, list[Entry]] = {False: [], True: []}
        try:
            for entry in entries:
                if self._is_stale(entry):
                    groups[entry.item.modality in CUT].append(entry)
            for is_cut, some in groups.items():
                self._embed(self._news(some), len(some), is_cut)
            for shard in shards:
                self._add_shard(shard)
        finally:
            self._flush()
            self.report.seconds["total"] += time.perf_counter() - start

    def remove_missing(self, found: Scan) -> None:
        """Forget the files that were not found, unless they are in a folder or shard that could not be read."""
        unread = {str(problem.path) for problem in found.problems}
        gone = [
            item.id
            for item in self.store.items()
            if item.id is not None
            and item.path not in found.entries
            and item.path not in self._in_shards
            and not is_below(item.path, unread)
        ]
        if gone:
            with self.store.transaction():
                self.store.remove(gone)
        self.report.removed += len(gone)

    @cached_property
    def _by_whole(self) -> dict[str, list[Item]]:
        """The items that are a part of something, by the path of that."""
        found = defaultdict(list)
        for item in self.known.values():
            for whole in wholes(item.path):
                found[whole].append(item)
        return found

    def _add_shard(self, shard: Root) -> None:
        known = [*self._by_whole.get(shard.path, [])]
        if shard.path in self.known:  # what was wrong with it
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
        has_cut = False

        def entries(is_cut: bool, problems: list[str]) -> Iterator[Entry]:
            nonlocal has_cut
            for entry in read_shard(shard.path, problems):
                has_cut |= entry.item.modality in CUT
                if (entry.item.modality in CUT) == is_cut:
                    self._in_shards.add(entry.item.path)
                    if self._is_stale(entry):
                        yield entry

        self._embed(self._news(entries(False, problems)), None, False)
        if has_cut:  # read again: sounds and videos are decoded in another way, and there may be too many to be kept
            self._embed(self._news(entries(True, [])), None, True)
        self._flush()
        if problems:  # what is known of its samples may be behind the place where it is broken
            lines = list(dict.fromkeys(line.removeprefix(f"{source.describe(shard.path)}: ") for line in problems))
            rest = f"; and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
            self._note_problem(Item(shard.path, "text", *state), "; ".join(lines[:NAMED]) + rest)
            self._flush()
            self._in_shards.update((shard.path, *(item.path for item in known)))
            if scheme(shard.path):  # it may answer better next time
                return
        with self.store.transaction():
            if not problems and shard.path in self.known:
                self.store.remove([id_ for id_ in [self.known.pop(shard.path).id] if id_ is not None])
            self.store.keep_roots({shard.path: replace(shard, state=state).options})

    def _news(self, entries: Iterable[Entry]) -> Generator[Content, None, None]:
        """Those whose content is new, read ahead in threads; what is known already is settled on the way."""
        with closing(read_ahead(entries, self._timed_read)) as read:
            for one in read:
                if self._settle(one):
                    self._settled += 1
                    self._flush_if_due()
                else:
                    yield one

    def _is_stale(self, entry: Entry) -> bool:
        """Whether an entry has to be read: it is new, or its size or time have changed."""
        item, known = entry.item, self.known.get(entry.item.path)
        if item.problem is not None:
            self._note_problem(item, item.problem)
            return False
        if not any(key in self.modalities for key in MADE_OF.get(item.modality, (item.modality,))):
            self.report.left_out[item.modality] += 1
            return False
        if known is None or _state(known) != _state(item) or (known.problem and _may_work_now(known)):
            return True
        self._count_known(known)
        described = _described(replace(known, caption=item.caption, metadata=item.metadata), known)
        if described != known:
            self._change(described)
        return False

    def _count_known(self, known: Item) -> None:
        self.report.unchanged += known.problem is None
        self.report.known_problems += known.problem is not None

    def _timed_read(self, entry: Entry) -> Content:
        start = time.perf_counter()
        try:
            return read_content(entry)
        finally:
            self.report.seconds["read"] += time.perf_counter() - start

    def _settle(self, read: Content) -> bool:
        """Whether an entry needs no embedding: its content is that of a file which is known, here or elsewhere."""
        item = read.item
        if read.error is not None:
            self._note_problem(item, read.error)
            return True
        if item.hash is None:
            return False
        old = self.known.get(item.path)
        if old is not None and (old.hash, old.modality) == (item.hash, item.modality):  # touched
            if old.problem and _may_work_now(old):
                return False
            self._count_known(old)
            self._change(replace(_described(item, old), problem=old.problem, note=old.note))
            return True
        same = self.store.items("hash = ? AND modality = ?", (item.hash, item.modality))
        alike = [one for one in same if not (one.problem and _may_work_now(one))]
        if not alike:
            return False
        gone = next((one for one in alike if one.id not in self._claimed and not _is_there(one.path)), None)
        if gone is not None and gone.id is not None:
            self._claimed.add(gone.id)
            self.known.pop(gone.path, None)
            self._change(replace(_described(item, gone), problem=gone.problem, note=gone.note))
            self.report.moved += 1
            return True
        if reason := alike[0].problem:
            self._note_problem(item, reason)
            return True
        _, spans, vectors = self.store.intact([alike[0].id or 0])[alike[0].id or 0]
        self._keep(replace(item, note=alike[0].note), spans, vectors)
        self.report.copied += 1
        return True

    def _embed(self, reads: Generator[Content, None, None], total: int | None, is_cut: bool) -> None:
        """Everything in ``reads`` through the model, into the store."""
        with closing(reads):
            first = next(reads, None)
            if first is None:  # before the model is loaded
                return
            waiting: deque[tuple[Content, Video | None]] = deque()

            def values(first: Content) -> Iterator[object]:
                for read in chain([first], reads):
                    video = self._video(read) if read.item.modality == "video" else None
                    waiting.append((read, video))
                    yield video or {read.item.modality: read.entry.value}

            options: dict[str, Any] = {"batch_size": self.batch_size, "timings": self.report.seconds}
            if is_cut:
                options |= {"long": "windows", **self._window()}
            bar = Progress(total, shown=self.progress)
            with closing(self.embedder.stream(values(first), **options)) as results, bar, _silence() as silent:
                for result in results:
                    read, video = waiting.popleft()
                    is_silent = result.name in silent
                    notes = [*(["digital silence"] if is_silent else []), *(video.troubles if video else [])]
                    note = without_surrogates("; ".join(notes)) or None
                    self._take(replace(read.item, note=note), result, _kept(read.item, result, video, is_silent))
                    bar.update(self._settled + 1)
                    self._settled = 0
                    self._flush_if_due()
            self._settled = 0

    def _video(self, read: Content) -> Video:
        readable = [key for key in MADE_OF["video"] if key in self.modalities]
        return Video(read.entry.value, readable, read.item.duration)

    def _window(self) -> dict[str, float]:
        longest = getattr(self.embedder.processors.get("audio"), "max_seconds", None)
        return {"window": min(self.window, longest or self.window), "hop": min(self.hop, longest or self.hop)}

    def _take(self, item: Item, result: "Embedded", kept: tuple[list[Span], np.ndarray] | None) -> None:
        """The result of an entry, and what is kept of it."""
        if kept is None:
            self._note_problem(item, str(result.reason))
            return
        known = self.known.get(item.path)
        is_new = known is None or known.problem is not None
        self.report.added += is_new
        self.report.changed += not is_new
        self._keep(item, *kept)

    def _keep(self, item: Item, spans: list[Span], vectors: np.ndarray) -> None:
        known = self.known.get(item.path)
        self.known[item.path] = item if known is None else replace(_described(item, known), id=None)
        self._results.append((self.known[item.path], spans))
        self._vectors += list(vectors)
        self.report.vectors += len(vectors)

    def _change(self, item: Item) -> None:
        """New fields of a file that is there; its vectors stay."""
        self.known[item.path] = item
        self._changes.append(item)

    def _note_problem(self, item: Item, reason: str) -> None:
        item = replace(item, problem=without_surrogates(reason))
        known = self.known.get(item.path)
        if known is not None and _trouble(known) == _trouble(item):
            self.report.known_problems += 1
            return
        self.report.problems.append(unreadable(item.path, reason))
        self.known[item.path] = item if known is None else replace(_described(item, known), id=None)
        self._results.append((self.known[item.path], []))

    def _flush_if_due(self) -> None:
        waiting = max(len(self._vectors), len(self._results), len(self._changes))
        if waiting >= BATCH_VECTORS or (waiting and time.monotonic() - self._written > BATCH_SECONDS):
            self._flush()

    def _flush(self) -> None:
        """Write what is waiting, as one transaction."""
        start = time.perf_counter()
        if self._changes or self._results:
            vectors = np.stack(self._vectors) if self._vectors else np.empty((0, self.store.embed_dim), np.float32)
            spans = [span for _, own in self._results for span in own]
            with self.store.transaction():
                self.store.change(self._changes)  # first: a new file may lie where one was that has moved
                self.store.add(self._results, vectors)
                if len(vectors):
                    self.banks.add(vectors, [span.modality for span in spans])
                    self.store.keep_blob("best", self.banks.best_bytes())
        self._results, self._vectors, self._changes = [], [], []
        self._written = time.monotonic()
        self.report.seconds["write"] += time.perf_counter() - start


def _kept(item: Item, result: "Embedded", video: Video | None, is_silent: bool) -> tuple[list[Span], np.ndarray] | None:
    """The vectors of an entry and what they stand for; None if it could not be embedded."""
    windows = result.windows
    if result.error is not None or result.vector is None:
        return None
    if video is not None and windows is not None:
        return video.vectors(windows, is_silent)
    if windows is None or len(windows.starts) == 1:
        return [Span(item.modality)], result.vector.numpy()[None]
    spans = [Span(item.modality, *times) for times in zip(windows.starts, windows.ends, strict=True)]
    return spans, np.asarray(windows.vectors)


def _is_there(path: str) -> bool:
    """Whether a file, or the shard or table it is part of, exists; an address counts as there."""
    return bool(scheme(path)) or any(os.path.isfile(place) for place in (path, *wholes(path)))


def _state(item: Item) -> tuple[Any, ...]:
    """What tells, without reading it, that a file is as it was."""
    return item.size, item.mtime_ns, item.modality


def _trouble(item: Item) -> tuple[Any, ...]:
    """What is the same of a file that cannot be embedded now as before."""
    return item.problem, item.hash, *_state(item)


def _described(item: Item, old: Item) -> Item:
    """The item in the place of an older state of it: what a table once said of it stays, unless there is news."""
    return replace(item, id=old.id, caption=item.caption or old.caption, metadata=item.metadata or old.metadata)


def _may_work_now(item: Item) -> bool:
    """Whether a file with a problem is worth another try, though it is as it was: it could not be read at all (an
    address may answer today, a permission be given), or the package that was missing is there."""
    missing = _MISSING.search(item.problem or "")
    return item.hash is None or (missing is not None and find_spec(missing[1]) is not None)


@contextmanager
def _silence() -> Iterator[set[str]]:
    """Names of the sounds that are found to be wholly silent meanwhile, which is only logged."""
    names: set[str] = set()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            name, found, _ = record.getMessage().partition(": digital silence")
            if found:
                names.add(name)

    logger, listener = logging.getLogger("onepeace.processors.audio"), Listener()
    propagate = logger.propagate
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield names
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate
