"""Unrelated queries of a model, and the best scores that they have in an index: what `ranking.py` compares a hit with.

A cosine alone does not say whether a hit is right: that depends on the model, the kind of the query, the kind of file,
and the size and nature of the folder. So each folder is asked beforehand for some hundred things that nobody looks for
in it: generic words and sentences, which come with the package, and generic pictures and sounds, of which only the
vectors come with a model.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, one_line
from onepeace.files.walk import Unreadable
from onepeace.index.store import MODALITIES

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.index.sources import Entry

FILE = "calibration.safetensors"
"""Its name in a model folder."""
FORMAT = "2"
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
SEEN = ("best", "squares", "sums", "counts")
"""Attributes of `Banks` that an index keeps."""
BLOCK = 1 << 14
"""Items compared at once: bounds the memory."""


class Seen(NamedTuple):
    """Cosines of the n queries of a bank with the items of one modality in an index."""

    best: NDArray
    """(n,) highest of each query."""
    means: NDArray
    """(n,) mean of each query."""
    variance: float
    """Of all of them."""
    centre: NDArray
    """(E,) mean of the queries themselves."""


class Banks:
    """Vectors of unrelated queries by bank, and what is known of them in one index.

    Attributes:
        vectors: bank -> (n, E) float32 unit rows; "BANK/MODALITY" takes the place of "BANK" for items of that modality.
        model: hash of the model that made them.
        best: (N, M) float32, best cosine of each query, bank after bank, with an item of each modality; -inf for none.
        squares: (N, M) float64, sum of the squares of those cosines.
        sums: (M, E) float64, sum of the items' vectors.
        counts: (M,) int64, number of items.
    """

    def __init__(self, vectors: Mapping[str, NDArray], model: str = "") -> None:
        self.vectors = {name: np.asarray(rows, np.float32) for name, rows in vectors.items()}
        self.model = model
        self._all = np.concatenate([*self.vectors.values()]) if vectors else np.empty((0, 0), np.float32)
        ends = np.cumsum([len(rows) for rows in self.vectors.values()]).tolist()
        self._place = {name: slice(a, b) for name, a, b in zip(self.vectors, [0, *ends], ends, strict=False)}
        self.start()

    def start(self) -> None:
        """Forget the index: no items yet."""
        self.best = np.full((len(self._all), len(MODALITIES)), -np.inf, np.float32)
        self.squares = np.zeros(self.best.shape)
        self.sums = np.zeros((len(MODALITIES), self._all.shape[1]))
        self.counts = np.zeros(len(MODALITIES), np.int64)
        self._seen: dict[tuple[str, str], Seen | None] = {}

    def add(self, vectors: NDArray, modalities: Sequence[str]) -> None:
        """Count in further items, (n, E) unit rows, and their modalities."""
        codes = [MODALITIES.index(key) if key in MODALITIES else len(MODALITIES) for key in modalities]
        self.add_codes(vectors, np.array(codes, np.int64))

    def add_codes(self, vectors: NDArray, codes: NDArray[np.integer]) -> None:
        """Count in further items, (n, E) unit rows such as a memory map; `codes` (n,) are places in MODALITIES, or
        behind them of other modalities, for which there is no bank.

        Queries against items cost 2 N n E operations, about a second for 100,000 items of 256 numbers.
        """
        if not len(self._all):
            return
        self._seen = {}
        for first in range(0, len(vectors), BLOCK):
            rows, own = np.asarray(vectors[first : first + BLOCK], np.float32), codes[first : first + BLOCK]
            for code in np.unique(own[own < len(MODALITIES)]):
                some = rows[own == code]
                cosines = self._all @ some.T
                self.best[:, code] = np.maximum(self.best[:, code], cosines.max(axis=1))
                self.squares[:, code] += np.square(cosines).sum(axis=1)
                self.sums[code] += some.sum(axis=0, dtype=np.float64)
                self.counts[code] += len(some)

    def seen(self, bank: str, modality: str) -> "Seen | None":
        """What is known of the queries of a bank with the items of a modality; None if there are no such queries or
        items."""
        if (bank, modality) not in self._seen:
            self._seen[bank, modality] = self._computed(bank, modality)
        return self._seen[bank, modality]

    def _computed(self, bank: str, modality: str) -> "Seen | None":
        if modality not in MODALITIES:
            return None
        code = MODALITIES.index(modality)
        place = self._place.get(f"{bank}/{modality}", self._place.get(bank))
        if place is None or not self.counts[code]:
            return None
        queries = self._all[place]
        means = queries @ (self.sums[code] / self.counts[code]).astype(np.float32)
        squares = float(self.squares[place, code].mean()) / int(self.counts[code])
        return Seen(self.best[place, code], means, squares - float(means.mean()) ** 2, queries.mean(axis=0))

    @classmethod
    def of_words(cls, embedder: Any, model: str = "") -> "Banks":
        """The banks of texts of a model, an `Embedder` or a pool of them, which reads them now."""
        read = {bank: embedder.encode_text(texts_of(bank), progress=False, output="numpy") for bank in TEXTS}
        return cls({bank: np.asarray(vectors) for bank, vectors in read.items()}, model)

    @classmethod
    def load(cls, content: bytes | None, best: bytes | None = None) -> "Banks":
        """Read what `to_bytes` and `best_bytes` gave; None = no banks, no items.

        Raises:
            UserError: it is damaged or of another version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if content is None:
            return cls({})
        again = "make it again: onepeace calibrate MODEL SOURCES --force"
        try:
            found = load(content)
            about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
            if about.get("format") != FORMAT:
                raise UserError(f"a calibration of another version; {again}")
            banks = cls({name: found[name] for name in json.loads(about["banks"])}, about["model"])
            if not np.isfinite(banks._all).all():
                raise ValueError("not all of its numbers are finite")
            seen = {} if best is None else load(best)
        except (SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"a calibration that is damaged or cut off ({one_line(error)}); {again}") from error
        if "best" in seen and seen["best"].shape == banks.best.shape and seen["sums"].shape == banks.sums.shape:
            banks.best, banks.squares, banks.sums, banks.counts = (seen[name].copy() for name in SEEN)
        return banks

    def to_bytes(self) -> bytes:
        """Content of a calibration file: the vectors in float16, and the hash of the model."""
        from safetensors.numpy import save

        about = {"format": FORMAT, "model": self.model, "banks": json.dumps([*self.vectors])}
        return save({name: rows.astype(np.float16) for name, rows in self.vectors.items()}, about)

    def best_bytes(self) -> bytes:
        """What is known of the queries in one index, for `load`."""
        from safetensors.numpy import save

        return save({name: np.ascontiguousarray(getattr(self, name)) for name in SEEN})


def texts_of(bank: str) -> list[str]:
    """The texts of a bank that come with the package."""
    from importlib import resources

    return resources.files("onepeace.index").joinpath(TEXTS[bank]).read_text(encoding="utf-8").splitlines()


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
    vectors = Banks.of_words(embedder).vectors
    for kind in kinds:
        turns = zip_longest(*(own[kind] for own in drawn))  # one of each source, again and again
        chosen = [entry for turn in turns for entry in turn if entry is not None][:DRAWN]
        items = ({kind: entry.value} for entry in chosen)
        rows = []
        with (
            closing(embedder.stream(items, batch_size=batch_size)) as results,
            Progress(len(chosen), f"{kind} file") as bar,
        ):
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


def _draw(entries: "Iterable[Entry]", kinds: Sequence[str]) -> "dict[str, list[Entry]]":
    """At most DRAWN entries of each kind by chance, always the same, in random order (Vitter's algorithm R)."""
    from random import Random

    chance = Random(0)  # noqa: S311
    drawn: dict[str, list[Entry]] = {kind: [] for kind in kinds}
    counts = Counter[str]()
    for entry in entries:
        kind = entry.item.modality
        if kind not in drawn or entry.item.problem:
            continue
        counts[kind] += 1
        if len(drawn[kind]) < DRAWN:
            drawn[kind].append(entry)
        elif (place := chance.randrange(counts[kind])) < DRAWN:
            drawn[kind][place] = entry
    for own in drawn.values():
        chance.shuffle(own)
    return drawn
