"""Makes the unrelated queries of a model that a hit is compared with (ranking.py)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, one_line
from onepeace.files.walk import Unreadable
from onepeace.index.ranking import Banks

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.index.sources import Entry

FILE = "calibration.safetensors"
"""Its name in a model folder."""
TEXTS = {
    "word": "names.txt",
    "word/audio": "sounds.txt",
    "sentence": "sentences.txt",
    "sentence/audio": "sound_sentences.txt",
}
"""Bank -> its texts, a file of this package with one in each line.

Sounds have texts of their own: most things make no sound, and a query for a sound beats their names too easily."""
KEPT = {"image": 0.9, "audio": 0.15}
"""Bank of what a model folder brings -> share that is kept of the files it is made from: those least like the others.

What has its like among generic files has it in many folders too, and then it is no query without an answer. There are
fewer kinds of sounds than of pictures, so more of them are left out."""
DRAWN = 1000
"""Pictures, and sounds, that a bank is made from."""


def texts_of(bank: str) -> list[str]:
    """The texts of a bank that come with the package."""
    return resources.files("onepeace.index").joinpath(TEXTS[bank]).read_text(encoding="utf-8").splitlines()


def banks_of_words(embedder: Any) -> Banks:
    """The banks of texts of a model, an `Embedder` or a pool of them, which reads them now."""
    return Banks({bank: np.asarray(embedder.encode_text(texts_of(bank), progress=False)) for bank in TEXTS})


def read_calibration(folder: Path, model: str) -> bytes | None:
    """Content of the calibration file of a model folder; None if there is none, or it is of another model.

    Args:
        model: hash of the model (onepeace/hub/fingerprint.py).

    Raises:
        UserError: the file is damaged or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
        return content if Banks.load(content).model == model else None
    except (UserError, OSError) as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def calibrate(
    embedder: "Embedder", sources: Sequence[str], problems: list[Unreadable], *, model: str, batch_size: int = 32
) -> Banks:
    """The banks of a model: the texts of the package, and pictures and sounds of sources, as many of each source.

    Args:
        sources: shards, tables and folders, as `onepeace index build` takes them.
        problems: gets what cannot be read.
        model: hash of the model.

    Raises:
        UserError: nothing in the sources is a picture or sound that the model reads.
    """
    from onepeace.progress import Progress

    kinds = [key for key in KEPT if key in embedder.modalities]
    drawn = [_draw(_entries(source, problems), kinds) for source in sources]
    vectors = banks_of_words(embedder).vectors
    for kind in kinds:
        turns = zip_longest(*(own[kind] for own in drawn))  # one of each source, again and again
        chosen = [entry for turn in turns for entry in turn if entry is not None][:DRAWN]
        results = embedder.stream(({kind: entry.value} for entry in chosen), batch_size=batch_size)
        rows = []
        with closing(results), Progress(len(chosen), f"{kind} file") as bar:
            for entry, result in zip(chosen, results, strict=True):
                bar.update()
                if result.vector is None:
                    problems.append(Unreadable(entry.item.path, result.reason or "not computed"))
                else:
                    rows.append(result.vector.numpy())
        if rows:
            vectors[kind] = least_alike(np.stack(rows), KEPT[kind])
    if not any(kind in vectors for kind in KEPT):
        raise UserError(f"{', '.join(sources)}: no picture or sound that this model reads")
    return Banks(vectors, model)


def least_alike(vectors: NDArray, share: float) -> NDArray:
    """The share of unit vectors (n, E) whose nearest other one is the farthest away, at least one."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    return vectors[np.sort(np.argsort(cosines.max(axis=1), kind="stable")[: max(1, round(share * len(vectors)))])]


def _entries(source: str, problems: list[Unreadable]) -> "Iterator[Entry]":
    """All that is in a source."""
    from onepeace.index.sources import read_shard, roots_of, scan

    roots = roots_of([source])
    found = scan(roots)
    problems += found.problems
    yield from found.entries.values()
    for root in roots:
        if root.kind == "shard":
            broken: list[str] = []
            yield from read_shard(root.path, broken)
            problems += [Unreadable(root.path, line) for line in broken]


def _draw(entries: "Iterator[Entry]", kinds: Sequence[str]) -> "dict[str, list[Entry]]":
    """At most DRAWN entries of each kind by chance, always the same, in random order: those with the smallest random
    numbers, so that no more than twice as many are in memory."""
    chance = Random(0)  # noqa: S311
    drawn: dict[str, list[tuple[float, Entry]]] = defaultdict(list)
    for entry in entries:
        if entry.item.modality in kinds and not entry.item.problem:
            own = drawn[entry.item.modality]
            own.append((chance.random(), entry))
            if len(own) >= 2 * DRAWN:
                own[:] = sorted(own, key=lambda pair: pair[0])[:DRAWN]
    return {kind: [entry for _, entry in sorted(drawn[kind], key=lambda pair: pair[0])[:DRAWN]] for kind in kinds}
