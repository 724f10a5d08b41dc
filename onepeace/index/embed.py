"""Step "embed" of a run: entries -> readers -> decoder threads -> model -> recorder, in bounded memory.

Each content is embedded once: files that equal one of the index, or of this run, get its vectors. A long sound has a
vector for each window, a video one for each picture that differs and for each window of its sound (`Video`).
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.embed.items import CompositeItem, Part
from onepeace.errors import UsageError, UserError, need, reason_at
from onepeace.extensions import plugin
from onepeace.files.source import describe
from onepeace.files.video import STEP, frames
from onepeace.index.content import CHANGES, Reading, read_entry
from onepeace.index.items import Span, without_surrogates
from onepeace.index.record import Known, Recorder, Report
from onepeace.index.scan import modalities_of
from onepeace.index.sources import Entry
from onepeace.index.verify import Model, is_name
from onepeace.progress import Progress, status

if TYPE_CHECKING:
    from torch import Tensor

    from onepeace.embed.embedder import Embedder
    from onepeace.embed.encode import Windows

READ_AHEAD = 64
"""Number of files that are read and hashed ahead of the decoders."""
READERS = 2
"""Number of threads that read and hash."""
WINDOW = 10.0
HOP = 5.0
"""Window and hop in seconds; a sound that is longer than the window gets one vector per window."""
COMPILE_FROM = 5000
"""Number of new files from which a wide model is compiled: this takes 20 s to a minute, and saves a seventh."""
ALIKE = 0.98
"""Minimum cosine of successive pictures of which only the first is stored."""
MOST = 1000
"""Maximum number of frames embedded per video; in longer videos they are farther apart."""
PARTS_AHEAD = 16
"""Pictures, and windows of the sound, decoded ahead."""

Pieces = Iterable[tuple[float, float, "Tensor"]]


@dataclass(frozen=True)
class Settings:
    """Options of `build` and `update`, which documents them."""

    device: str | None = None
    dtype: str = "auto"
    engine: str | None = None
    store: str | None = None
    batch_size: int = 32
    progress: bool | None = None
    reuse: Sequence[Path] = ()

    def checked_for(self, model: Model | None) -> "Settings":
        """These settings, if they have an effect on a model.

        Raises:
            UsageError: the model is an `Embedder`, which is loaded already.
        """
        is_loaded = not (model is None or is_name(model))
        if is_loaded and (self.device, self.dtype, self.engine) != (None, "auto", None):
            raise UsageError("device, dtype and engine are for a model that is given by its name; leave them out")
        return self


@contextmanager
def model_on_demand(
    model: Model, settings: Settings, num_new: int, report: Report
) -> "Iterator[Callable[[], Embedder]]":
    """Context of a function that loads the model, or starts the engine, when it is first called.

    Args:
        num_new: number of files to embed.
        report: gets the model, if it is used in this process.
    """
    with ExitStack() as stack:

        @cache
        def load() -> "Embedder":
            if not is_name(model):
                report.embedder = model
                return model
            if settings.engine is None:
                report.embedder = load_model(model, settings, num_new)
                return report.embedder
            status(f"loading the model {model} ...")
            open_engine = plugin(settings.engine, "open_engine")
            engine = open_engine(settings.engine, model, settings.device, settings.dtype)
            return stack.enter_context(closing(engine))

        yield load


def load_model(name: str | os.PathLike[str], settings: Settings, num_new: int) -> "Embedder":
    """Load the model; a wide one is compiled if there are many files to embed."""
    from onepeace import compiling
    from onepeace.embed import embedder

    status(f"loading the model {name} ...")
    model = embedder.load(name, device=settings.device, dtype=settings.dtype)
    if num_new >= COMPILE_FROM and compiling.width(model.module) >= compiling.MIN_WIDTH:
        status("compiling the model's blocks, about a minute ...")
        compiling.compile_blocks(model.encoder)
    return model


def embed_entries(
    recorder: Recorder, entries: Sequence[Entry], load: "Callable[[], Embedder]", settings: Settings
) -> None:
    """Embed entries and record them.

    Args:
        load: returns the model of the index; called only if there is something to embed.
    """
    with Progress(len(entries), shown=settings.progress) as bar:
        while entries:
            entries = Embedding(recorder, load, settings.batch_size, bar).run(entries)


class Video(CompositeItem):
    """Pictures at scene changes and every 5 seconds within a scene, and the windows of the sound.

    Args:
        value: a path, or the content of a file.
        modalities: image and audio, or the one of them that the model supports.
        duration: seconds, if known. A video of more than `MOST` seconds has a picture at most every duration / `MOST`.

    When all parts have been consumed, `troubles` has the errors of the pictures and the sound; the item fails only if
    neither can be read.
    """

    copied = ("troubles", "num_pictures")

    def __init__(
        self,
        value: str | os.PathLike[str] | bytes,
        modalities: Sequence[str],
        duration: float | None = None,
    ) -> None:
        self.value = value
        self.name = describe(value)
        self.modalities = modalities
        self.duration = duration
        self.troubles: list[str] = []
        self.num_pictures = 0

    def parts(self, pieces: Callable[[str, object], Pieces]) -> list[Part]:
        need("av", "media")
        pieces_by_modality = {"image": self._pictures(pieces), "audio": pieces("audio", self.value)}
        parts = []
        for modality in self.modalities:
            readable = self._as_far_as_readable(pieces_by_modality[modality])
            first_pieces = list(islice(readable, PARTS_AHEAD))
            if first_pieces:
                parts.append(Part(modality, chain(first_pieces, readable)))
        if not parts:
            raise UserError("; ".join(self.troubles))
        return parts

    def _pictures(
        self,
        pieces: Callable[[str, object], Pieces],
    ) -> Iterator[tuple[float, float, "Tensor"]]:
        step = max(STEP, (self.duration or 0.0) / MOST)
        for frame in frames(self.value, step=step):
            if self.num_pictures == MOST:
                raise UserError(f"only its first {MOST} pictures are in the index, up to second {frame.time:.0f}")
            for _, _, sample in pieces("image", frame.image):
                self.num_pictures += 1
                yield frame.time, frame.time, sample

    def _as_far_as_readable(self, pieces: Pieces) -> Iterator[tuple[float, float, "Tensor"]]:
        try:
            yield from pieces
        except UserError as error:
            reason = reason_at(self.name, error)
            if reason not in self.troubles:  # a file that cannot be opened fails twice
                self.troubles.append(reason)

    def vectors(self, windows: "Windows", is_silent: bool) -> tuple[list[Span], np.ndarray]:
        """Spans and vectors to store: those of the first of successive similar pictures, each until the next one, and
        those of the windows of the sound, unless it is silent and there are pictures."""
        vectors = np.asarray(windows.vectors)
        rows: list[int] = []
        for row in range(self.num_pictures):
            if not rows or vectors[rows[-1]] @ vectors[row] < ALIKE:
                rows.append(row)
        last_picture = windows.starts[self.num_pictures - 1]
        times = [*(windows.starts[row] for row in rows), max(self.duration or 0.0, last_picture)]
        spans = [Span("image", start, end) for start, end in pairwise(times)]
        if not (is_silent and rows):
            for row in range(self.num_pictures, len(vectors)):
                spans.append(Span("audio", windows.starts[row], windows.ends[row]))
                rows.append(row)
        return spans, vectors[rows]


def _window_options(embedder: "Embedder") -> dict[str, Any]:
    """Options of `Embedder.stream` that cut long sounds into windows that the model can read."""
    longest = WINDOW
    processor = embedder.processors.get("audio")
    if processor is not None and processor.max_seconds is not None:
        longest = processor.max_seconds
    return {"long": "windows", "window": min(WINDOW, longest), "hop": min(HOP, longest)}


def _file_of(result: Any, reading: Reading, video: Video | None) -> Known:
    """Vectors of a file and notes about it, or the problem with it."""
    notes = ["digital silence"] if result.is_silent else []
    if video is not None:
        notes += video.troubles
    item = replace(reading.item, note=without_surrogates("; ".join(notes)) or None)
    windows = result.windows
    if windows is None:
        return Known(replace(item, problem=str(result.reason)))
    vectors = np.asarray(windows.vectors)
    if video is not None:
        spans, vectors = video.vectors(windows, result.is_silent)
    elif len(vectors) == 1:
        spans = [Span(item.kind)]
    else:
        times = zip(windows.starts, windows.ends, strict=True)
        spans = [Span(item.kind, start, end) for start, end in times]
    return Known(item, spans, vectors, reading.text)


@dataclass
class Embedding:
    """Embeds entries once, and records them."""

    recorder: Recorder
    load: "Callable[[], Embedder]"
    batch_size: int
    bar: Progress
    _contents: set[tuple[bytes | None, str]] = field(default_factory=set)
    """Hash and kind of each content that was given to the model."""
    _copies: list[Reading] = field(default_factory=list)
    """Files with one of these contents."""
    _pending: deque[tuple[Reading, Video | None]] = field(default_factory=deque)
    """Files that the model has been given, and has not answered."""

    def run(self, entries: Sequence[Entry]) -> list[Entry]:
        """Embed entries; returns those that equalled a file which changed during that."""
        with closing(self._inputs(entries)) as inputs, closing(self._results(inputs)) as results:
            for result in results:
                reading, video = self._pending.popleft()
                file = _file_of(result, reading, video)
                if not reading.is_current():
                    self.recorder.record_problem(reading.entry.item, CHANGES)
                elif file.item.problem is None:
                    self.recorder.record_vectors(file)
                else:
                    self.recorder.record_problem(file.item, file.item.problem)
                self.bar.update()
        self.recorder.flush()
        return [reading.entry for reading in self._copies if not self._is_settled(reading)]

    def _inputs(self, entries: Sequence[Entry]) -> Generator[object, None, None]:
        """Yield what the model is given of the files that must be embedded; record the others."""
        for reading in read_ahead(entries):
            item = reading.item
            content = (item.hash, item.kind)
            if content in self._contents:
                self._copies.append(reading)
            elif not self._is_settled(reading):
                self._contents.add(content)
                video = None
                if item.kind == "video":
                    modalities = modalities_of(item, self.recorder.store.modalities)
                    video = Video(reading.value, modalities, item.duration)
                self._pending.append((reading, video))
                yield video or {item.kind: reading.value}

    def _results(self, inputs: Iterator[object]) -> Generator[Any, None, None]:
        """Yield what the model says of its inputs; it is loaded for the first."""
        for first in inputs:
            embedder = self.load()
            options = _window_options(embedder)
            with closing(embedder.stream(chain([first], inputs), batch_size=self.batch_size, **options)) as results:
                yield from results

    def _is_settled(self, reading: Reading) -> bool:
        """Record a file that needs no embedding, as it cannot be read or its content is known; False for others."""
        item = reading.item
        if item.problem is not None:
            self.recorder.record_problem(item, item.problem)
        elif original := self.recorder.same_content(item):
            # A row of a table with this content has no words of a text file.
            self.recorder.record_copy(item, original._replace(text=reading.text))
        else:
            return False
        self.bar.update()
        return True


def read_ahead(entries: Sequence[Entry]) -> Iterator[Reading]:
    """Read entries a few at a time, by several threads, in their order."""
    with ThreadPoolExecutor(READERS, "onepeace-read") as pool:
        for start in range(0, len(entries), READ_AHEAD):
            yield from pool.map(read_entry, entries[start : start + READ_AHEAD])
