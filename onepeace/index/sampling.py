"""The vectors that a calibration is fitted on: some samples of each source, drawn by chance and embedded."""

import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.data.sample import Sample
from onepeace.errors import UsageError, one_line
from onepeace.files.embeddings import Embeddings
from onepeace.files.walk import Unreadable, walk
from onepeace.index.fitting import ALONE, Vectors

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

CAPTIONS = 2
"""Captions of one sample that are taken, chosen by chance: two match each other."""


def read(source: str, problems: list[Unreadable]) -> Iterator[Sample]:
    """The samples of a table, of shards or of a folder, in order; what cannot be read is added to `problems`.

    Raises:
        UsageError: no such file or folder.
        UserError: a table that cannot be read, shards of which none is there.
    """
    from onepeace.datasets.layout import Skipped
    from onepeace.datasets.pairs import from_table
    from onepeace.datasets.tables import SUFFIXES

    path = Path(source)
    if path.is_dir():
        yield from _folder(path, problems)
    elif path.suffix.lower() in SUFFIXES:
        if not path.is_file():
            raise UsageError(f"{source}: no such file or folder")
        for record in from_table(path, {}):
            if isinstance(record, Skipped):
                problems.append(Unreadable(Path(record.where), record.reason))
            else:
                yield record
    elif source.endswith((".tar", ".tar.gz")):
        yield from _shards(source, problems)
    else:
        raise UsageError(f"{source}: is no folder, and no table or shard by its ending")


def _folder(folder: Path, problems: list[Unreadable]) -> Iterator[Sample]:
    """Each picture and sound, and each line of a text file."""
    from onepeace.processors import guessed

    found, unreadable = walk([folder], {suffix: key for key, cls in guessed().items() for suffix in cls.suffixes})
    problems.extend(unreadable)
    for path, modality in found:
        if modality != "text":
            yield Sample("", os.fspath(path), {modality: path}, {})
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Unreadable(path, one_line(error)))
        else:
            yield from (Sample("", os.fspath(path), {"text": [line.strip()]}, {}) for line in lines if line.strip())


def _shards(pattern: str, problems: list[Unreadable]) -> Iterator[Sample]:
    from onepeace.data.shards import expand, raw_samples, usable_sample
    from onepeace.datasets.pairs import media
    from onepeace.processors import PROCESSORS

    broken: list[str] = []
    for shard in expand(pattern):
        for raw in raw_samples(shard, broken):
            endings = {f".{member.rpartition('.')[2]}" for member in raw}
            modalities = [key for key in media() if endings & set(PROCESSORS[key].suffixes)]
            if sample := usable_sample(raw, shard, modalities or media(), broken):
                yield sample
    problems.extend(Unreadable(Path(shard), reason) for shard, _, reason in (line.partition(": ") for line in broken))


def draw_samples(samples: Iterable[Sample], most: int) -> list[Sample]:
    """At most that many samples of each kind (a picture with captions, a text, ...) by chance, always the same.

    They are drawn as they are read (Vitter's algorithm R), so that a source larger than memory may be read.
    """
    chance = random.Random(0)  # noqa: S311
    drawn: dict[tuple[str, ...], list[Sample]] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for sample in samples:
        kind = tuple(sorted(key for key, value in sample.inputs.items() if value))
        kept = drawn.setdefault(kind, [])
        counts[kind] += 1
        if len(kept) < most:
            kept.append(sample)
        elif (place := chance.randrange(counts[kind])) < most:
            kept[place] = sample
    return [sample for kept in drawn.values() for sample in kept]


@dataclass
class _Item:
    """Something to embed."""

    modality: str
    value: object
    sample: int
    group: int
    about: str
    """Modalities that a text goes with. Texts about pictures, about sounds and about nothing weigh the same in the
    bank, however many there are: which of them a search means is not known."""
    times: int = 0
    """How often a text came."""


def embed(
    model: "Embedder", samples: Sequence[Sample], batch_size: int, problems: list[Unreadable]
) -> dict[str, Vectors]:
    """The vectors of the samples' pictures, sounds and some of their captions, by modality; equal texts once.

    Items belong together when the samples' labels, or without one the first captions, are the same. Modalities that
    the model lacks are left out, and what fails is added to `problems`.
    """
    from tqdm.auto import tqdm

    chance = random.Random(0)  # noqa: S311
    groups: dict[str, int] = {}
    items: list[_Item] = []
    texts: dict[str, _Item] = {}
    for index, sample in enumerate(samples):
        others = [key for key in sample.inputs if key != "text"]
        name = sample.label if sample.label is not None else next(iter(sample.captions), None) if others else None
        group = ALONE if name is None else groups.setdefault(str(name).casefold(), len(groups))
        items += [_Item(key, sample.inputs[key], index, group, "", 1) for key in others]
        for caption in chance.sample(sample.captions, min(CAPTIONS, len(sample.captions))):
            item = texts.setdefault(caption, _Item("text", caption, index, group, " ".join(sorted(others))))
            item.times += 1
    items += texts.values()
    items = [item for item in items if item.modality in model.modalities]
    rows: dict[str, list[tuple[Any, _Item]]] = {}
    with closing(model.stream(({item.modality: item.value} for item in items), batch_size=batch_size)) as results:
        bar = tqdm(results, total=len(items), disable=None, delay=1, unit="item")
        for item, result in zip(items, bar, strict=True):
            if result.vector is None:
                sample = samples[item.sample]
                problems.append(Unreadable(Path(sample.source), f"{sample.key}: {result.reason}".removeprefix(": ")))
            else:
                rows.setdefault(item.modality, []).append((result.vector.numpy(), item))
    found = {}
    for key, pairs in rows.items():
        whole: Counter[str] = Counter()
        for _, item in pairs:
            whole[item.about] += item.times
        found[key] = Vectors(
            np.array([vector for vector, _ in pairs]),
            np.array([item.sample for _, item in pairs]),
            np.array([item.group for _, item in pairs]),
            np.array([item.times / whole[item.about] for _, item in pairs]),
        )
    return found


def of_embeddings(embeddings: Embeddings) -> dict[str, Vectors]:
    """Vectors that were made elsewhere, by modality.

    Rows belong together when the `label` of their metadata, or without one their caption, is the same; of a text
    without either its path is its words. A caption's rows are one sample; those of a label are many.
    """
    groups: dict[str, int] = {}
    samples: dict[str, int] = {}
    rows: dict[str, list[tuple[int, int, int]]] = {}
    about = embeddings.about or [{}] * len(embeddings.paths)
    for row, (path, modality, more) in enumerate(zip(embeddings.paths, embeddings.modalities, about, strict=True)):
        metadata = more.get("metadata")
        label = metadata.get("label") if isinstance(metadata, dict) else None
        name = label or more.get("caption") or (path if modality == "text" else None)
        group = ALONE if name is None else groups.setdefault(str(name).casefold(), len(groups))
        sample = samples.setdefault(path if label or name is None else str(name).casefold(), len(samples))
        rows.setdefault(modality, []).append((row, sample, group))
    found = {}
    for modality, own in rows.items():
        chosen, numbers, belonging = np.array(own).T
        vectors = np.array(embeddings.vectors[chosen], np.float32)
        found[modality] = Vectors(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), numbers, belonging)
    return found
