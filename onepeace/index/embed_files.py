"""`embed_files`: the vectors of files, tables and texts in one file, without an index.

A file is cut as for an index: a long sound has a vector per window, a video one per scene and window of its sound.
Memory is bounded but for the names of the files.
"""

from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.errors import UsageError
from onepeace.files.walk import Unreadable
from onepeace.index.content import read_entry
from onepeace.index.embed import as_video, spans_and_vectors, window_options
from onepeace.index.items import Item
from onepeace.index.scan import modalities_of, scan
from onepeace.index.sources import Entry, listed, roots_of
from onepeace.index.vector_file import check_extension, write_vectors
from onepeace.index.video import Video
from onepeace.progress import Progress

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.embed.encode import Windows

AHEAD = 64
"""Files that are read ahead of the decoders."""
TEXT = "text"
"""Name of the texts in the column of paths: "text::1"."""


@dataclass
class Embedding:
    """What `embed_files` wrote."""

    vectors: int = 0
    files: int = 0
    """Files, rows and texts that have vectors."""
    problems: list[Unreadable] = field(default_factory=list)
    """Files that could not be embedded, with the reasons."""
    notes: list[Unreadable] = field(default_factory=list)
    """Files that were embedded, and what is odd about them: silence, a video that ends early."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Files of kinds that the model does not read, by kind."""
    other_kinds: Counter[str] = field(default_factory=Counter)
    """Files with unsupported extensions, by extension."""


def embed_files(
    embedder: "Embedder",
    paths: str | PathLike[str] | Sequence[str | PathLike[str]],
    target: Path,
    *,
    texts: Iterable[str] = (),
    batch_size: int = 32,
    progress: bool | None = None,
) -> Embedding:
    """Write the vectors of texts, and of files, folders, tables and shards, to a file, in this order.

    Args:
        paths: as for `onepeace.index.build`; may be empty if there are texts.
        target: .npz or .parquet (vector_file.py). It is not written if nothing can be embedded.
        texts: read as they are needed; text number N has the path "text::N".
        progress: False = silent; None = a bar on a terminal.

    Raises:
        UsageError: a path that does not exist, no file below the paths, an unknown file extension; UserError: the disk
            is full, pyarrow is not installed.
    """
    check_extension(target)
    run = _Run(embedder, batch_size)
    entries = run.entries_of(paths)
    write = None
    with ExitStack() as stack:
        results = stack.enter_context(closing(run.results(texts, entries, progress)))
        for rows, vectors in results:
            if write is None:
                write = stack.enter_context(write_vectors(target, embedder.embed_dim))
            write(rows, vectors)
    return run.report


class _Run:
    """One run of `embed_files`, which keeps account of it in `report`."""

    def __init__(self, embedder: "Embedder", batch_size: int) -> None:
        self.embedder = embedder
        self.batch_size = batch_size
        self.report = Embedding()
        self._embedding: deque[tuple[Item, Video | None]] = deque()
        """Items whose inputs the embedder has taken and not yet answered."""

    def entries_of(self, paths: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Entry]:
        """The files at or below the paths that the model reads."""
        roots = roots_of(listed(paths))
        scanned = scan(roots)
        self.report.problems += scanned.problems
        self.report.other_kinds = scanned.others
        entries = []
        for entry in scanned.entries.values():
            if entry.item.problem is not None:
                self._fail(entry.item, entry.item.problem)
            elif modalities_of(entry.item, self.embedder.modalities):
                entries.append(entry)
            else:
                self.report.left_out[entry.item.modality] += 1
        if roots and not scanned.entries and not scanned.problems:
            names = ", ".join(root.path for root in roots)
            raise UsageError(f"no image, audio, video or text files in {names}")
        return entries

    def results(
        self, texts: Iterable[str], entries: Sequence[Entry], progress: bool | None
    ) -> Generator[tuple[list[Mapping[str, Any]], np.ndarray], None, None]:
        """Yield the columns and vectors (n, E) of the texts, then those of the entries."""
        inputs = self._inputs(texts, entries)
        stream = self.embedder.stream(inputs, batch_size=self.batch_size, **window_options(self.embedder))
        with closing(stream) as results, Progress(len(entries) or None, shown=progress) as bar:
            for result in results:
                item, video = self._embedding.popleft()
                windows = result.windows
                if windows is None:
                    self._fail(item, str(result.reason))
                else:
                    yield self._rows_of(item, video, windows, is_silent=result.is_silent)
                bar.update()

    def _inputs(self, texts: Iterable[str], entries: Sequence[Entry]) -> Iterator[object]:
        """Yield inputs for the embedder, and add their items to those that are being embedded."""
        for number, text in enumerate(texts, 1):
            self._embedding.append((Item(f"{TEXT}::{number}", "text"), None))
            yield {"text": text}
        with ThreadPoolExecutor(2, "onepeace-read") as pool:
            for start in range(0, len(entries), AHEAD):
                for reading in pool.map(read_entry, entries[start : start + AHEAD]):
                    item = reading.item
                    if item.problem is None:
                        yield self._input(item, reading.value)
                    else:
                        self._fail(item, item.problem)

    def _input(self, item: Item, value: Any) -> object:
        video = as_video(item, value, self.embedder.modalities)
        self._embedding.append((item, video))
        return video or {item.modality: value}

    def _rows_of(
        self, item: Item, video: Video | None, windows: "Windows", *, is_silent: bool
    ) -> tuple[list[Mapping[str, Any]], np.ndarray]:
        """Columns and vectors (n, E) of an item."""
        notes = ["digital silence"] if is_silent else []
        notes += video.troubles if video else []
        self.report.notes += [Unreadable(Path(item.path), note) for note in notes]
        spans, vectors = spans_and_vectors(windows, item, video, is_silent=is_silent)
        self.report.files += 1
        self.report.vectors += len(vectors)
        return [{"path": item.path, "kind": item.modality, **vars(span)} for span in spans], vectors

    def _fail(self, item: Item, reason: str) -> None:
        self.report.problems.append(Unreadable(Path(item.path), reason))
