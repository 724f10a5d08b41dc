"""Fills an index: reader -> decoder threads -> model -> writer, in bounded memory, so that whatever was written stays
and the same command goes on where it was stopped."""

import hashlib
import logging
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.files.source import scheme
from onepeace.files.walk import Unreadable
from onepeace.index.sources import Entry, read_shards
from onepeace.index.store import Item, Span, Store

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedded, Embedder

log = logging.getLogger(__name__)

BATCH_SECONDS, BATCH_VECTORS = 2.0, 512
"""What is written at once: what a kill can cost."""
AHEAD = 64
"""Files that are read and hashed before the decoders ask for them."""
CHUNK = 1 << 20
WINDOW, HOP = 10.0, 5.0
"""Seconds of a long sound that have a vector of their own, and from the start of one to the next."""


@dataclass
class Report:
    """What a run did to an index."""

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
    left_out: Counter[str] = field(default_factory=Counter)
    """Files of modalities that the model does not have."""
    problems: list[Unreadable] = field(default_factory=list)
    """Files that could not be embedded, with the reasons."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of each stage, over all its threads: read (and hash), decode, model, write; and total."""

    @property
    def embedded(self) -> int:
        return self.added + self.changed


@dataclass(frozen=True)
class _Read:
    """An entry whose content has been looked at."""

    entry: Entry
    item: Item
    """With hash, date and size in pixels or seconds."""
    error: str | None = None


class Builder:
    """Puts entries into a store that is open for writing.

    Args:
        store: of the index.
        load: gives the model that the index belongs to; called when there is something to embed.
        window, hop: of sounds longer than the model reads at once, in seconds.
        batch_size: samples in a pass of the model.
        progress: True or False; None = on a terminal.
    """

    def __init__(
        self,
        store: Store,
        load: "Callable[[], Embedder]",
        *,
        window: float = WINDOW,
        hop: float = HOP,
        batch_size: int = 32,
        progress: bool | None = None,
    ) -> None:
        self.store, self._load = store, load
        self.window, self.hop, self.batch_size, self.progress = window, hop, batch_size, progress
        self.report = Report()
        self.known = {item.path: item for item in store.items()}
        self._claimed: set[int] = set()
        """Ids of files that were found under another name."""
        self._results: list[tuple[Item, list[Span]]] = []
        self._vectors: list[np.ndarray] = []
        self._changes: list[Item] = []
        self._written = time.monotonic()
        self._settled = 0
        """Entries that were settled since the progress was shown."""

    @cached_property
    def embedder(self) -> "Embedder":
        return self._load()

    def add(self, entries: Sequence[Entry], shards: Sequence[str] = ()) -> None:
        """Embed what is new or has changed. What is done stays in the index, whatever ends the call.

        Args:
            entries: files and rows, from `scan`.
            shards: patterns of webdataset shards, read as a stream.
        """
        start = time.perf_counter()
        groups: dict[bool, list[Entry]] = {False: [], True: []}
        for entry in entries:
            groups[entry.item.modality == "audio"].append(entry)
        try:
            for is_audio, some in groups.items():
                stale = [entry for entry in some if self._is_stale(entry)]
                if stale:
                    self._embed(self._news(stale), len(stale), is_audio)
            for pattern in shards:
                for is_audio in groups:
                    some = self._of_shards(pattern, is_audio)
                    self._embed(self._news(filter(self._is_stale, some)), None, is_audio)
        finally:
            self._flush()
            self.report.seconds["total"] += time.perf_counter() - start

    def remove_missing(self, folders: Sequence[Path], found: Iterable[str]) -> None:
        """Forget the files of ``folders`` that are not among the ``found``."""
        present = set(found)
        roots = [str(folder) + os.sep for folder in folders]
        gone = [
            item.id
            for item in self.store.items()
            if item.id is not None and item.path not in present and any(item.path.startswith(root) for root in roots)
        ]
        if gone:
            self.store.remove(gone)
        self.report.removed += len(gone)

    def _of_shards(self, pattern: str, is_audio: bool) -> Iterator[Entry]:
        problems: list[Unreadable] = []
        for entry in read_shards(pattern, problems):
            if (entry.item.modality == "audio") == is_audio:
                yield entry
        if not is_audio:  # a shard is read once for each kind, and its problems are told once
            self.report.problems += problems

    def _news(self, entries: Iterable[Entry]) -> Iterator[_Read]:
        """Those whose content is new, read ahead in threads; what is known already is settled on the way."""
        with ThreadPoolExecutor(2, "onepeace-read") as pool, closing(_ahead(pool, self._timed_read, entries)) as read:
            for one in read:
                if self._settle(one):
                    self._settled += 1
                else:
                    yield one

    def _is_stale(self, entry: Entry) -> bool:
        """Whether an entry has to be read: it is new, or its size or time have changed."""
        item, known = entry.item, self.known.get(entry.item.path)
        if known is not None and (known.size, known.mtime_ns) == (item.size, item.mtime_ns):
            if known.problem is None or not scheme(item.path):  # an address may answer today
                self.report.unchanged += known.problem is None
                if known.problem:
                    self.report.problems.append(Unreadable(Path(known.path), known.problem))
                return False
        if item.modality not in self.embedder.modalities:
            self.report.left_out[item.modality] += 1
            return False
        return True

    def _timed_read(self, entry: Entry) -> _Read:
        start = time.perf_counter()
        try:
            return _read(entry)
        finally:
            self.report.seconds["read"] += time.perf_counter() - start

    def _settle(self, read: _Read) -> bool:
        """Whether an entry needs no embedding: its content is that of a file which is known, here or elsewhere."""
        item = read.item
        if read.error is not None:
            self._note_problem(item, read.error)
            return True
        if item.hash is None:
            return False
        old = self.known.get(item.path)
        if old is not None and old.hash == item.hash:  # touched
            if old.problem:
                self.report.problems.append(Unreadable(Path(old.path), old.problem))
            self.report.unchanged += old.problem is None
            self._changes.append(replace(item, id=old.id, problem=old.problem, note=old.note))
            return True
        same = "hash = ? AND modality = ? AND problem IS NULL"
        alike = [one for one in self.store.items(same, (item.hash, item.modality)) if one.id not in self._claimed]
        if not alike:
            return False
        gone = next((one for one in alike if not _is_there(one.path)), None)
        if gone is not None and gone.id is not None:
            self._claimed.add(gone.id)
            self.known.pop(gone.path, None)
            self.known[item.path] = replace(item, id=gone.id, note=gone.note)
            self._changes.append(self.known[item.path])
            self.report.moved += 1
            return True
        spans = [span for _, span in self.store.spans(alike[0].id or 0)]
        self._keep(replace(item, note=alike[0].note), spans, self.store.vectors(alike[0].id or 0))
        self.report.copied += 1
        return True

    def _embed(self, reads: Iterator[_Read], total: int | None, is_audio: bool) -> None:
        """Everything in ``reads`` through the model, into the store."""
        from tqdm.auto import tqdm

        waiting: deque[_Read] = deque()

        def values() -> Iterator[object]:
            for read in reads:
                waiting.append(read)
                yield {read.item.modality: read.entry.value}

        options: dict[str, Any] = {"batch_size": self.batch_size, "timings": self.report.seconds}
        if is_audio:
            options |= {"long": "windows", **self._window()}
        bar = tqdm(total=total, disable=None if self.progress is None else not self.progress, unit="file", delay=1)
        with closing(self.embedder.stream(values(), **options)) as results, closing(reads), bar, _silence() as silent:
            for result in results:
                read = waiting.popleft()
                note = "digital silence" if result.name in silent else None
                self._take(replace(read.item, note=note), result)
                bar.update(self._settled + 1)
                self._settled = 0
                if len(self._vectors) >= BATCH_VECTORS or time.monotonic() - self._written > BATCH_SECONDS:
                    self._flush()

    def _window(self) -> dict[str, float]:
        longest = getattr(self.embedder.processors.get("audio"), "max_seconds", None)
        return {"window": min(self.window, longest or self.window), "hop": min(self.hop, longest or self.hop)}

    def _take(self, item: Item, result: "Embedded") -> None:
        """The result of one entry."""
        if result.error is not None or result.vector is None:
            self._note_problem(item, str(result.reason))
            return
        known = self.known.get(item.path)
        self.report.added += known is None or known.problem is not None
        self.report.changed += known is not None and known.problem is None
        windows = result.windows
        if windows is None or len(windows.starts) == 1:
            self._keep(item, [Span(item.modality)], result.vector.numpy()[None])
        else:
            spans = [Span(item.modality, *times) for times in zip(windows.starts, windows.ends, strict=True)]
            self._keep(item, spans, np.asarray(windows.vectors))

    def _keep(self, item: Item, spans: list[Span], vectors: np.ndarray) -> None:
        self._results.append((item, spans))
        self._vectors += list(vectors)
        self.report.vectors += len(vectors)
        self.known[item.path] = item

    def _note_problem(self, item: Item, reason: str) -> None:
        self.report.problems.append(Unreadable(Path(item.path), reason))
        self._results.append((replace(item, problem=reason), []))

    def _flush(self) -> None:
        """Write what is waiting."""
        start = time.perf_counter()
        if self._changes:  # first: a new file may lie where one was that has moved
            self.store.change(self._changes)
        if self._results:
            vectors = np.stack(self._vectors) if self._vectors else np.empty((0, self.store.embed_dim), np.float32)
            self.store.add(self._results, vectors)
        self._results, self._vectors, self._changes = [], [], []
        self._written = time.monotonic()
        self.report.seconds["write"] += time.perf_counter() - start


def _read(entry: Entry) -> _Read:
    """Hash and describe the content of an entry; an address is left to the embedder."""
    item = entry.item
    value = entry.value
    if isinstance(value, str) and item.modality == "text":
        value = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, str):
        return _Read(entry, item)
    try:
        about = hashlib.blake2b(digest_size=16)
        if isinstance(value, Path):
            with open(value, "rb") as file:
                while chunk := file.read(CHUNK):
                    about.update(chunk)
        else:
            about.update(value)
    except OSError as error:
        return _Read(entry, item, error.strerror or "cannot be read")
    return _Read(entry, replace(item, hash=about.digest(), **describe(value, item)))


def describe(value: Path | bytes, item: Item) -> dict[str, Any]:
    return {"date": item.mtime_ns / 1e9 or None}


def _is_there(path: str) -> bool:
    """Whether a file, or the shard or table it is part of, exists; an address counts as there."""
    return bool(scheme(path)) or os.path.exists(path.partition("::")[0])


def _ahead(pool: ThreadPoolExecutor, function: Any, entries: Iterable[Entry]) -> Iterator[_Read]:
    """function(entry) of each, in order, AHEAD of them at once in work."""
    waiting: deque[Future[_Read]] = deque()
    try:
        for entry in entries:
            waiting.append(pool.submit(function, entry))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def _silence() -> Iterator[set[str]]:
    """The names of the sounds that are found to be wholly silent meanwhile, which is only logged."""
    names: set[str] = set()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "digital silence" in record.msg and isinstance(record.args, tuple):
                names.add(str(record.args[0]))

    logger, listener = logging.getLogger("onepeace.processors.audio"), Listener()
    propagate = logger.propagate
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield names
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate
