"""Files classified by given labels (zero-shot) or by a task head of the model: results in order, failures as values."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from onepeace.errors import UsageError
from onepeace.files.source import describe
from onepeace.files.walk import FoundFile

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.embed.predict import Predictor

READS_TEXT = ("answer", "box", "choice")
"""Tasks that are about a text beside the file."""


class ClassifiedFiles(NamedTuple):
    """The result of one file, or of several that a head reads together."""

    paths: list[Path]
    result: dict[str, Any] | None
    """Fields as in onepeace/embed/tasks.py; None if it failed."""
    reason: str = ""
    """Why it failed, without the name of the file."""


def classify_by_labels(
    embedder: "Embedder",
    files: Sequence[FoundFile],
    labels: Sequence[str],
    *,
    template: str | None = None,
    top: int = 1,
    batch_size: int = 32,
) -> Iterator[ClassifiedFiles]:
    """Yield the ``top`` labels of each file with their probabilities; see `Embedder.classify`."""
    items = [{file.modality: file.path} for file in files]
    probabilities, failures = embedder.classify(
        items, labels, template=template, batch_size=batch_size, on_error="skip"
    )
    reason_by_index = {failure.index: str(failure.reason) for failure in failures}
    rows = iter(probabilities)
    for index, file in enumerate(files):
        if index in reason_by_index:
            yield ClassifiedFiles([file.path], None, reason_by_index[index])
            continue
        scores, numbers = next(rows).sort(descending=True, stable=True)
        best = []
        for score, number in zip(scores.tolist()[:top], numbers.tolist()[:top], strict=True):
            best.append({"label": labels[number], "score": round(score, 6)})
        yield ClassifiedFiles([file.path], {"labels": best})


class HeadInput:
    """Input of a head: files, with a text about them or candidates to choose from.

    Args:
        head: the head.
        text: question, phrase or statement about each file.
        candidates: answers to choose from.

    Raises:
        UsageError: the head reads no text, or does not choose among candidates.
    """

    def __init__(self, head: "Predictor", text: str | None, candidates: Sequence[str]) -> None:
        if text is not None and head.on != "text" and head.task not in READS_TEXT:
            raise UsageError(f"the head {head.name} reads no text; leave out --text")
        if candidates and head.task != "choice":
            raise UsageError(f"the head {head.name} does not choose among --labels; leave out --labels or --text")
        self.head = head
        self.text = text
        self.candidates = list(candidates)
        self.modalities = {head.on}
        """Modalities of the files that are read."""
        if text is not None and head.on == "text":  # the text may be about files of any modality
            self.modalities = set(head.embedder.processors) - {"text"}

    def as_read(self, file: FoundFile) -> FoundFile:
        """The file with the modality by which the head reads it: a video may be read as frames or as sound."""
        if file.path.suffix.lower() in self.head.embedder.processors[self.head.on].suffixes:
            return file._replace(modality=self.head.on)
        return file

    def classify(self, files: Sequence[FoundFile], *, top: int = 1, batch_size: int = 32) -> Iterator[ClassifiedFiles]:
        """Yield the results of files of these modalities; some heads read several at a time (NLVR2: two pictures).

        Raises:
            UsageError: the number of files is not a multiple of those read at a time.
        """
        size = self.head.config.get("inputs", 1)
        if len(files) % size:
            raise UsageError(
                f"the head {self.head.name} reads {size} files at a time; {len(files)} is not a multiple of it"
            )
        groups = [files[start : start + size] for start in range(0, len(files), size)]
        items = [self._item(group) for group in groups]
        for prediction in self.head.predict(items, batch_size=batch_size, top=top):
            paths = [file.path for file in groups[prediction.index]]
            if prediction.result is None:
                reason = str(prediction.reason).removeprefix(f"{describe(paths[0])}: ")
                yield ClassifiedFiles(paths, None, reason)
            else:
                yield ClassifiedFiles(paths, dict(prediction.result))

    def _item(self, group: Sequence[FoundFile]) -> dict[str, Any]:
        """The head's input for files that it reads together."""
        paths = [file.path for file in group]
        item: dict[str, Any] = {group[0].modality: paths if len(paths) > 1 else paths[0]}
        if self.text is not None:
            item["text"] = self.text
        if self.candidates:
            item["candidates"] = self.candidates
        return item
