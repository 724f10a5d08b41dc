"""Step "embed" of a run: entries -> readers -> decoder threads -> model -> recorder, in bounded memory."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from onepeace.index.classify import may_work_now
from onepeace.index.cutting import as_video, spans_and_vectors, window_options
from onepeace.index.entries import Entry
from onepeace.index.items import Item
from onepeace.index.paths import without_surrogates
from onepeace.index.reading import CHANGES, TRIES, Reading, failed, read_entry
from onepeace.index.record import Recorder
from onepeace.index.video import Video
from onepeace.progress import Progress

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedded, Embedder

READ_AHEAD = 64
"""Number of files that are read and hashed ahead of the decoders."""
READERS = 2
"""Number of threads that read and hash."""


class Pending(NamedTuple):
    """An entry whose vectors are being computed."""

    reading: Reading
    video: Video | None


def embed_entries(
    recorder: Recorder,
    entries: Sequence[Entry],
    load: "Callable[[], Embedder]",
    *,
    batch_size: int,
    progress: bool | None,
) -> None:
    """Embed entries; again those whose files change while they are read.

    Args:
        load: returns the model of the index; called only if there is something to embed.
        batch_size: samples per forward pass of the model.
        progress: False = silent.
    """
    if not entries:
        return
    with Progress(len(entries), shown=progress) as bar:
        embedding = Embedding(recorder, load, batch_size, bar)
        for _ in range(TRIES):
            entries = embedding.run(entries)
        for entry in entries:
            recorder.record_problem(failed(entry, CHANGES).item, CHANGES)
            bar.update()


class Embedding:
    """Embeds entries once, and records them."""

    def __init__(self, recorder: Recorder, load: "Callable[[], Embedder]", batch_size: int, bar: Progress) -> None:
        self.recorder = recorder
        self.load = load
        self.batch_size = batch_size
        self.bar = bar

    def run(self, entries: Sequence[Entry]) -> list[Entry]:
        """Embed entries; returns those whose files changed during that, of which nothing is kept."""
        pending: deque[Pending] = deque()
        changed: list[Entry] = []
        with closing(self._inputs(entries, pending)) as inputs:
            first = next(inputs, None)
            if first is None:  # nothing to embed, so the model is not loaded
                return changed
            embedder = self.load()
            stream = embedder.stream(
                chain([first], inputs),
                batch_size=self.batch_size,
                **window_options(embedder),
            )
            with closing(stream) as results:
                for result in results:
                    reading, video = pending.popleft()
                    if not reading.is_current():
                        changed.append(reading.entry)
                        continue
                    self.take(result, reading, video)
                    self.bar.update()
        return changed

    def _inputs(
        self,
        entries: Sequence[Entry],
        pending: deque[Pending],
    ) -> Generator[object, None, None]:
        """Yield inputs for the embedder and add their readings to ``pending``; record items that need no embedding."""
        with ThreadPoolExecutor(READERS, "onepeace-read") as pool:
            for start in range(0, len(entries), READ_AHEAD):
                for reading in pool.map(read_entry, entries[start : start + READ_AHEAD]):
                    item = reading.item
                    if self._is_settled(item):
                        self.bar.update()
                        continue
                    video = as_video(item, reading.value, self.recorder.store.modalities)
                    pending.append(Pending(reading, video))
                    yield video or {item.modality: reading.value}

    def _is_settled(self, item: Item) -> bool:
        """Record an item that needs no embedding, as it cannot be read or its content is known; False for others."""
        if item.problem is not None:
            self.recorder.record_problem(item, item.problem)
            return True
        same_content = self.recorder.store.items("hash = ? AND modality = ?", (item.hash, item.modality))
        originals = {original.path: original for original in same_content if not may_work_now(original)}
        if not originals:
            return False
        original = originals.get(item.path) or next(iter(originals.values()))
        self.recorder.record_copy(item, original)
        return True

    def take(self, result: "Embedded", reading: Reading, video: Video | None) -> None:
        """Record the vectors of an entry, or the reason why there are none."""
        notes = []
        if result.is_silent:
            notes.append("digital silence")
        if video is not None:
            notes += video.troubles
        item = replace(reading.item, note=without_surrogates("; ".join(notes)) or None)
        if result.windows is None:
            self.recorder.record_problem(item, str(result.reason))
            return
        spans, vectors = spans_and_vectors(result.windows, item, video, is_silent=result.is_silent)
        self.recorder.record_vectors(item, spans, vectors, reading.text)
