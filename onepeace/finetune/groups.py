"""Groups of files that belong together: near copies, or files whose paths match a pattern with the same text.

A model that was trained on a file recognises its near copies: other frames of a video, cuts of a recording, a burst of
photographs. So the parts of the data (split.py) consist of whole groups.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onepeace.datasets.layout import Record
from onepeace.embed.embedder import load
from onepeace.errors import UsageError
from onepeace.evaluate.protocols.protocol import encode
from onepeace.finetune.own_data import OwnData, media_of
from onepeace.index.groups import connected

MODEL = "tiny-fast"
"""Model whose vectors identify near copies, for any fine-tuned model; the cosines below apply to it."""
NEAR_COPY_COSINE = {"image": 0.94, "audio": 0.98}
"""Minimum cosine of two files that are near copies (docs/results/finetune.md)."""
BLOCK = 1024
"""Files that are compared with all others at once."""
GROUP = "group"
"""Target of a sample: the number of its group."""
FILE = "file"
"""Target of a sample: the name of its file."""


def assign_groups(
    data: OwnData,
    source: Path,
    pattern: str | None = None,
) -> int:
    """Store the number of its group and the name of its file in the targets of every record.

    Records are joined, also transitively, if they share a file, or are near copies by the vectors of `MODEL`; with a
    pattern, instead of near copies, if it matches the same text in their paths.

    Args:
        source: the folder or table of the files; the pattern is matched against paths relative to it.
        pattern: a regular expression; its first group is compared, or the whole match if it has no group.

    Returns:
        The number of groups.

    Raises:
        UsageError: not a regular expression, or one that matches no path.
    """
    records = data.all_records
    top = data.unpacked or (source if source.is_dir() else source.parent)
    paths = [_relative_paths(record, top) for record in records]
    pairs = _pairs_with_common_text(paths)
    if pattern is None:
        pairs += _pairs_of_near_copies(records)
    else:
        pairs += _pairs_with_common_text(_matched_texts(pattern, paths))
    groups = connected(len(records), pairs)
    for number, members in enumerate(groups):
        for index in members:
            records[index].targets[GROUP] = number
            records[index].targets[FILE] = paths[index][0]
    return len(groups)


def _relative_paths(record: Record, top: Path) -> list[str]:
    return [os.path.relpath(path, top) for path in media_of(record)]


def _pairs_of_near_copies(records: Sequence[Record]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for modality, cosine in NEAR_COPY_COSINE.items():
        indices = [index for index, record in enumerate(records) if modality in record.inputs]
        if len(indices) < 2:
            continue
        model = load(MODEL, modalities=[modality])
        files = [records[index].inputs[modality] for index in indices]
        vectors = encode(model, modality, files)
        for i, j in near_copies(vectors, cosine):
            pairs.append((indices[i], indices[j]))
    return pairs


def near_copies(vectors: NDArray, cosine: float) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of unit vectors (n, E) whose cosine is at least ``cosine``."""
    pairs = []
    for start in range(0, len(vectors), BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors.T
        for row, column in np.argwhere(cosines >= cosine).tolist():
            if start + row < column:
                pairs.append((start + row, column))
    return pairs


def _matched_texts(pattern: str, paths: Sequence[Sequence[str]]) -> list[list[str]]:
    """The texts that a pattern matches in the paths of each record."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--group {pattern!r}: not a regular expression ({error})") from error
    compared = 1 if expression.groups else 0
    texts: list[list[str]] = []
    for paths_of_record in paths:
        texts_of_record = []
        for path in paths_of_record:
            match = expression.search(path)
            if match is not None:
                texts_of_record.append(match[compared])
        texts.append(texts_of_record)
    if not any(texts):
        raise UsageError(f"--group {pattern!r}: matches no path, such as {paths[0][0]}")
    return texts


def _pairs_with_common_text(texts: Sequence[Iterable[str]]) -> list[tuple[int, int]]:
    """Pairs of numbers with a text in common: the first with the text, and each with it."""
    pairs = []
    first_with: dict[str, int] = {}
    for number, texts_of_record in enumerate(texts):
        for text in texts_of_record:
            pairs.append((first_with.setdefault(text, number), number))
    return pairs
